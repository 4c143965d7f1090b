//! Processes of one use (`mode = "once"`): each runs one task, one conversation, or one command of the kind `xargs`.

pub(crate) mod conversation;
pub(crate) mod task;
pub(crate) mod xargs;

//! Runs the calls of a message in one slot.

pub(crate) mod execute;
pub(crate) mod work_cursor;

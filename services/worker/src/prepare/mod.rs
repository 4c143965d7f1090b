//! What an admitted task needs before its handler starts.

pub(crate) mod payload_files;
pub(crate) mod payloads;

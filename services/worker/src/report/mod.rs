//! What this worker says of itself: its record, its counts, its metrics and health over HTTP, the spans of its
//! tasks, and the lines of those that failed.

pub(crate) mod failure_log;
pub(crate) mod heartbeat;
pub(crate) mod http;
pub(crate) mod spans;
pub(crate) mod stats;

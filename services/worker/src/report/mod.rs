//! What this worker says of itself: its record, its counts, its metrics and health over HTTP, and the spans of its tasks.

pub(crate) mod heartbeat;
pub(crate) mod http;
pub(crate) mod spans;
pub(crate) mod stats;

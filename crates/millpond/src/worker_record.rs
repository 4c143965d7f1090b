//! What a worker says of itself in the workers bucket, renewed by a heartbeat. No I/O, no clock.

use serde::{Deserialize, Serialize};

/// The record of one worker process, under its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Its name, one token; unique among live workers.
    pub name: String,
    /// Drawn at random when the process started: tells two processes of one name apart.
    pub nonce: String,
    /// Host name.
    pub host: String,
    /// Process id on that host.
    pub pid: u32,
    /// The queues it serves.
    pub queues: Vec<String>,
    /// The kinds it can run, sorted.
    pub kinds: Vec<String>,
    /// Tasks that it runs at once.
    pub slots: u32,
    /// Tasks (or batches) that run now.
    pub running: u32,
    /// Leases held, running or not.
    pub held: u32,
    /// True from the moment it stops taking tasks.
    pub draining: bool,
    /// Items done since it started.
    pub done: u64,
    /// Attempts failed since it started.
    pub failed: u64,
    /// Kinds that it was handed lately and does not know, as `<queue>.<kind>`, sorted.
    pub unknown_kinds: Vec<String>,
    /// When the process started, Unix time in milliseconds.
    pub started_ms: i64,
    /// When this record was written, Unix time in milliseconds.
    pub heartbeat_ms: i64,
}

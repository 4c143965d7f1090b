//! What a worker says of itself in the workers bucket, renewed by a heartbeat. No I/O, no clock.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The record of one worker process, under its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
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
    /// Tasks that compute and that it runs at once; kinds with slots of their own come on top.
    pub slots: u32,
    /// Tasks that wait for something else and that it runs at once.
    #[serde(default)]
    pub io_slots: u32,
    /// Tasks (or batches) that run now.
    pub running: u32,
    /// Leases held, running or not.
    pub held: u32,
    /// True from the moment it stops taking tasks.
    pub draining: bool,
    /// It runs signed tasks only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub signed_only: bool,
    /// Items done since it started.
    pub done: u64,
    /// Attempts failed since it started.
    pub failed: u64,
    /// Done and failed by kind, those with any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_kind: BTreeMap<String, KindCount>,
    /// CPU time of the worker itself, in percent of one core, since the record before.
    #[serde(default)]
    pub cpu_percent: f64,
    /// Resident memory of the worker itself, in bytes.
    #[serde(default)]
    pub rss_bytes: u64,
    /// Its child processes, by name; [`crate::limits::CHILDREN_LISTED_MAX`] at the most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<ChildRecord>,
    /// Kinds whose children cannot be started, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub troubles: BTreeMap<String, String>,
    /// Where its health and metrics are served, `host:port`; none when they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Kinds that it was handed lately and does not know, as `<queue>.<kind>`, sorted.
    pub unknown_kinds: Vec<String>,
    /// When the process started, Unix time in milliseconds.
    pub started_ms: i64,
    /// When this record was written, Unix time in milliseconds.
    pub heartbeat_ms: i64,
}

/// How many items of a kind ended how, since the worker started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct KindCount {
    /// With a result.
    pub done: u64,
    /// Attempts that failed.
    pub failed: u64,
}

/// What a child process does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ChildState {
    /// It was started and has not said that it is ready.
    Starting,
    /// It waits for a task.
    Idle,
    /// It works on a task.
    Busy,
    /// It was told to end.
    Stopping,
}

impl ChildState {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Stopping => "stopping",
        }
    }
}

/// One child process of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ChildRecord {
    /// `<worker>/<kind>-<n>`; the same number is used again after it has ended.
    pub name: String,
    /// The kind that it runs.
    pub kind: String,
    /// Process id of its guard, below which it runs; 0 before it has one.
    pub pid: u32,
    /// What it does.
    pub state: ChildState,
    /// The task that it works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// For how long, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_ms: Option<u64>,
    /// How far that is, from 0 to 1, as the child says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<f64>,
    /// What the child says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Tasks that it has answered.
    pub done: u64,
    /// Children of this name that ended before it.
    pub restarts: u32,
    /// CPU time of it and all below it, in percent of one core, of late.
    pub cpu_percent: f64,
    /// Resident memory of it and all below it, in bytes.
    pub rss_bytes: u64,
    /// When it was started, Unix time in milliseconds.
    pub started_ms: i64,
}

//! The record of a worker in the workers bucket, renewed by its heartbeat. No I/O, no clock.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::wire::bounds::{self, Bounded};
use crate::wire::number::WIRE_NUMBER_UNWRITTEN;

/// How often a worker renews its record.
pub const WORKER_HEARTBEAT_EVERY: Duration = Duration::from_secs(2);
/// A worker whose record is older is gone.
pub const WORKER_LOST_AFTER: Duration = Duration::from_secs(8);
/// Children that a worker's record lists, at the most.
pub const CHILDREN_LISTED_MAX: usize = 256;
/// Unknown kinds that a worker's record lists, at the most.
pub const UNKNOWN_KINDS_LISTED_MAX: usize = 20;

/// Kinds that every worker has, for trial. Each is on where `--built-in` names it.
pub const BUILT_IN_KINDS: [&str; 8] = ["echo", "square", "is_prime", "count_primes", "fetch", "sleep", "spin", "fail"];

/// What to do where no worker knows a kind that is built in; nothing for another.
#[must_use]
pub fn built_in_hint(kind: &str) -> String {
    if !BUILT_IN_KINDS.contains(&kind) {
        return String::new();
    }
    format!("; {kind} is built in for trial, and is on where a worker's --built-in (MILLPOND_WORKER_BUILT_IN) names it")
}

const _: () = assert!(WORKER_HEARTBEAT_EVERY.as_millis() * 3 <= WORKER_LOST_AFTER.as_millis());

/// The record of one worker process, under its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct WorkerRecord {
    /// Its name, one token; unique among live workers.
    pub name: String,
    /// Drawn at random when the process started: tells two processes of one name apart.
    pub nonce: String,
    /// The wire number that it speaks; records without one were written before there was one.
    #[serde(default = "wire_number_unwritten")]
    pub wire: u32,
    /// Host name.
    pub host: String,
    /// Process id on that host.
    pub pid: u32,
    /// The queues it serves.
    pub queues: Vec<String>,
    /// The kinds it can run, sorted.
    pub kinds: Vec<String>,
    /// How many tasks that compute it runs at once; kinds with slots of their own come on top.
    pub slots: u32,
    /// How many tasks that wait for something else it runs at once.
    #[serde(default)]
    pub io_slots: u32,
    /// Tasks (or batches) that run now.
    pub running: u32,
    /// Leases held, running or not.
    pub held: u32,
    /// True from the moment it stops taking tasks.
    pub draining: bool,
    /// Whether it runs signed tasks only.
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
    /// Its child processes, by name; [`CHILDREN_LISTED_MAX`] at the most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<ChildRecord>,
    /// Kinds whose children cannot be started, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub troubles: BTreeMap<String, String>,
    /// Where its health and metrics are served, `host:port`; none when they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Kinds that it does not know and that lately came to it, as `<queue>.<kind>`, sorted; [`UNKNOWN_KINDS_LISTED_MAX`] at
    /// the most.
    pub unknown_kinds: Vec<String>,
    /// How many such kinds there are beyond these.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unknown_kinds_more: u64,
    /// How far the clock of its machine is ahead of the server's, in milliseconds; 0 where they agree within a second. All times
    /// here are the server's.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub clock_ahead_ms: i64,
    /// When the process started, Unix time in milliseconds.
    pub started_ms: i64,
    /// When this record was written, Unix time in milliseconds.
    pub heartbeat_ms: i64,
}

impl WorkerRecord {
    /// Whether the worker has not renewed its record for so long that it is gone; `now_ms` is Unix time in milliseconds.
    #[must_use]
    pub fn is_lost(&self, now_ms: i64) -> bool {
        u128::try_from(now_ms.saturating_sub(self.heartbeat_ms)).unwrap_or(0) > WORKER_LOST_AFTER.as_millis()
    }
}

impl Bounded for WorkerRecord {
    fn check(&self) -> Result<(), String> {
        bounds::count("done", self.done)?;
        bounds::count("failed", self.failed)?;
        bounds::count("rss_bytes", self.rss_bytes)?;
        bounds::load("cpu_percent", self.cpu_percent)?;
        bounds::time("started_ms", self.started_ms)?;
        bounds::time("heartbeat_ms", self.heartbeat_ms)?;
        for count in self.by_kind.values() {
            bounds::count("done", count.done)?;
            bounds::count("failed", count.failed)?;
        }
        self.children.check()
    }
}

impl Bounded for ChildRecord {
    fn check(&self) -> Result<(), String> {
        bounds::count("task_ms", self.task_ms.unwrap_or(0))?;
        bounds::load("progress", self.progress.unwrap_or(0.0))?;
        bounds::count("done", self.done)?;
        bounds::load("cpu_percent", self.cpu_percent)?;
        bounds::count("rss_bytes", self.rss_bytes)?;
        bounds::time("started_ms", self.started_ms)
    }
}

fn is_zero<N: Default + PartialEq>(number: &N) -> bool {
    *number == N::default()
}

pub(crate) fn wire_number_unwritten() -> u32 {
    WIRE_NUMBER_UNWRITTEN
}

/// How the items of a kind ended since the worker started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct KindCount {
    /// With a result.
    pub done: u64,
    /// Attempts that failed.
    pub failed: u64,
}

/// The state of a child process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ChildState {
    /// It was started and is not ready yet.
    #[default]
    Starting,
    /// It waits for a task.
    Idle,
    /// It works on a task.
    Busy,
    /// It was asked to end.
    Stopping,
}

impl ChildState {
    /// The state as the record has it.
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
    /// Its state.
    pub state: ChildState,
    /// The id of the task that it works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// How long it has worked on the task, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_ms: Option<u64>,
    /// Whether it has written nothing since it was given the task: no answer, no progress, no log line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub silent: bool,
    /// The progress that the child reported, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<f64>,
    /// The note that the child reported with it.
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

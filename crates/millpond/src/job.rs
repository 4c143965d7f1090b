//! A job: tasks submitted together, with a total and progress. Its record lies in the jobs bucket under its name.
//! No I/O, no clock.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::wire::bounds::{self, Bounded};

/// How often a producer renews the record of its job.
pub const JOB_HEARTBEAT_EVERY: Duration = Duration::from_secs(2);
/// An open job whose record is older is stalled: its producer is gone.
pub const JOB_STALLED_AFTER: Duration = Duration::from_secs(8);

const _: () = assert!(JOB_HEARTBEAT_EVERY.as_millis() * 3 <= JOB_STALLED_AFTER.as_millis());

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Its producer still adds tasks; `heartbeat_ms` shows whether it is alive.
    Open,
    /// All its tasks are published; `total` is known.
    Closed,
    /// An operator has cancelled it: tasks that had not ended are cancelled, and no more are published.
    Cancelled,
}

/// How a job stands, as a collector shows it: its record, and what of it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum JobStatus {
    /// Its producer adds to it.
    #[serde(rename = "open")]
    Open,
    /// All of it is published; some of it has not ended.
    #[serde(rename = "closed")]
    Closed,
    /// Its producer is gone before the end of its input.
    #[serde(rename = "stalled")]
    Stalled,
    /// All of it has ended.
    #[serde(rename = "finished")]
    Finished,
    /// It was cancelled.
    #[serde(rename = "cancelled")]
    Cancelled,
    /// Tasks without a record of their job: it was made by publishing to subjects that name it.
    #[serde(rename = "session")]
    Session,
}

impl JobStatus {
    /// All of them, in the order of their declaration.
    pub const ALL: &[Self] = &[Self::Open, Self::Closed, Self::Stalled, Self::Finished, Self::Cancelled, Self::Session];

    /// As it is written in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Stalled => "stalled",
            Self::Finished => "finished",
            Self::Cancelled => "cancelled",
            Self::Session => "session",
        }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The task that starts when a job has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct JobContinuation {
    /// Its queue.
    pub queue: String,
    /// Its kind.
    pub kind: String,
}

/// The record of a job.
///
/// ```
/// let text = r#"{"job":"j1","queue":"default","kind":"square","epoch":1,"state":"closed","total":100,"published":100,"results_after":0,"producer":"p","created_ms":1,"heartbeat_ms":2}"#;
/// let record: millpond::job::JobRecord = serde_json::from_str(text).unwrap();
/// assert_eq!(serde_json::to_string(&record).unwrap(), text);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its name: one subject token.
    pub job: String,
    /// The queue of its tasks.
    pub queue: String,
    /// The kind of its tasks.
    pub kind: String,
    /// From 1; a new one after a cancellation or an intended re-run, part of its tasks' ids.
    pub epoch: u32,
    /// Open, closed or cancelled.
    pub state: JobState,
    /// How many tasks it has, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// The task that runs once all others have ended, with the counts as its argument.
    #[serde(alias = "then", default, skip_serializing_if = "Option::is_none")]
    pub continuation: Option<JobContinuation>,
    /// The signature of that, by who submits the job with a key ([`crate::signature::Signer::sign_continuation`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuation_signature: Option<String>,
    /// Tasks acknowledged by the server without a gap, from index 0.
    pub published: u64,
    /// SHA-256 of the first `published` values of its input, each followed by a line break: a producer that resumes the job must
    /// bring the same ones. None while nothing is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// The last sequence of RESULTS when it was made: its results come after it.
    #[serde(default)]
    pub results_after: u64,
    /// The process that publishes it, a random word: a producer that finds another one here stops.
    #[serde(default)]
    pub producer: String,
    /// When it was made, Unix time in milliseconds.
    pub created_ms: i64,
    /// When its producer last renewed the record, Unix time in milliseconds.
    pub heartbeat_ms: i64,
}

impl Bounded for JobRecord {
    fn check(&self) -> Result<(), String> {
        bounds::count("total", self.total.unwrap_or(0))?;
        bounds::count("published", self.published)?;
        bounds::count("results_after", self.results_after)?;
        bounds::time("created_ms", self.created_ms)?;
        bounds::time("heartbeat_ms", self.heartbeat_ms)
    }
}

impl JobRecord {
    /// Whether the producer of an open job has not renewed its record for too long; `now_ms` is Unix time in milliseconds.
    #[must_use]
    pub fn is_stalled(&self, now_ms: i64) -> bool {
        u128::try_from(now_ms.saturating_sub(self.heartbeat_ms)).unwrap_or(0) > JOB_STALLED_AFTER.as_millis()
    }

    /// The id of the task, or of the batch of `len`, at `index`.
    #[must_use]
    pub fn task_id(&self, index: u64, batch: Option<u32>) -> String {
        match batch {
            None => format!("{}.{}/{index}", self.job, self.epoch),
            Some(len) => format!("{}.{}/{index}+{len}", self.job, self.epoch),
        }
    }

    /// Whether the message of this original id was published by this epoch of the job.
    #[must_use]
    pub fn owns(&self, original_id: &str) -> bool {
        epoch_of(&self.job, original_id) == Some(self.epoch)
    }
}

/// The epoch of a job that an id belongs to: `<job>.<epoch>/…`. None for ids that a client did not make for it.
///
/// ```
/// use millpond::job::epoch_of;
/// assert_eq!(epoch_of("j1", "j1.2/7+3"), Some(2));
/// assert_eq!(epoch_of("j1", "a1"), None);
/// ```
#[must_use]
pub fn epoch_of(job: &str, id: &str) -> Option<u32> {
    let rest = id.strip_prefix(job)?.strip_prefix('.')?;
    rest.split_once('/')?.0.parse().ok()
}

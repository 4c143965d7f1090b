//! What a client requests of a collector about a task or a job by its name, and what comes back: where it stands, and that it is
//! cancelled. On `ctl.request.status` and `ctl.request.cancel`.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Client;
use super::errors::RequestError;
use crate::bus::operate::control::{ControlError, ControlReply};
use crate::job::JobStatus;
use crate::wire::bounds::{self, Bounded};
use crate::wire::decode::decode;

/// How long a collector may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Which task or job a request is about.
///
/// ```
/// use millpond::client::Named;
///
/// let text = r#"{"queue":"default","kind":"square","id":"order-7"}"#;
/// let named: Named = serde_json::from_str(text).unwrap();
/// assert!(matches!(named, Named::Task { .. }));
/// assert_eq!(serde_json::to_string(&named).unwrap(), text);
/// assert!(matches!(serde_json::from_str(r#"{"job":"report-7"}"#).unwrap(), Named::Job { .. }));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Named {
    /// A task.
    Task {
        /// Its queue.
        queue: String,
        /// Its kind.
        kind: String,
        /// Its id.
        id: String,
    },
    /// A job.
    Job {
        /// Its name.
        job: String,
    },
}

impl Bounded for Named {}

/// Where a task is that somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum TaskState {
    /// It has a result.
    #[serde(rename = "done")]
    Done,
    /// It failed for good.
    #[serde(rename = "dead")]
    Dead,
    /// It was cancelled.
    #[serde(rename = "cancelled")]
    Cancelled,
    /// A worker has it.
    #[serde(rename = "running")]
    Running,
    /// It waits for its time.
    #[serde(rename = "scheduled")]
    Scheduled,
    /// It waits for a slot, or behind others.
    #[serde(rename = "waiting")]
    Waiting,
    /// Its queue is paused.
    #[serde(rename = "paused")]
    Paused,
    /// No live worker serves its queue and knows its kind.
    #[serde(rename = "no_worker")]
    NoWorker,
    /// It is neither stored nor found.
    #[serde(rename = "unknown")]
    Unknown,
}

/// Where a task stands.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TaskStanding {
    /// Where it is.
    pub state: TaskState,
    /// The reason, and what to do, as a sentence for a person.
    pub sentence: String,
}

impl Bounded for TaskStanding {}

/// A task that is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct CancelledTask {
    /// The task has ended already, because it waited for its time; else its worker ends it, or the worker that gets it.
    pub ended: bool,
}

impl Bounded for CancelledTask {}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct JobProgress {
    /// How it stands.
    pub state: JobStatus,
    /// How many tasks it has, once all are published.
    pub total: Option<u64>,
    /// Tasks with a result.
    pub done: u64,
    /// Tasks that failed and wait for their next attempt.
    pub retrying: u64,
    /// Tasks that failed for good.
    pub dead: u64,
    /// Tasks that were cancelled.
    pub cancelled: u64,
    /// Tasks that a purge of their queue removed before they had an end.
    pub purged: u64,
    /// Of a job without a record ([`JobStatus::Session`]): whether nothing of it waits or runs.
    #[serde(default)]
    pub ended: Option<bool>,
}

impl Bounded for JobProgress {
    fn check(&self) -> Result<(), String> {
        let Self { total, done, retrying, dead, cancelled, purged, .. } = *self;
        let counts = [("done", done), ("retrying", retrying), ("dead", dead), ("cancelled", cancelled)];
        bounds::count("total", total.unwrap_or(0))?;
        counts.into_iter().chain([("purged", purged)]).try_for_each(|(what, n)| bounds::count(what, n))
    }
}

impl JobProgress {
    /// Whether nothing of it runs any more: all of it that was published has ended, or it was cancelled.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state, JobStatus::Finished | JobStatus::Cancelled) || self.ended == Some(true)
    }

    /// Whether each of its tasks has a result.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.has_ended() && self.state != JobStatus::Cancelled && self.dead + self.cancelled + self.purged == 0
    }
}

impl Client {
    /// Requests something of a collector.
    pub(super) async fn request<A: DeserializeOwned + Bounded>(
        &self,
        subject: &str,
        named: &Named,
    ) -> Result<A, RequestError> {
        match self.bus.request(subject, named, ANSWER_WITHIN).await {
            Ok(ControlReply::Ok(answer)) => {
                decode(answer.get().as_bytes()).map_err(|error| RequestError::Failed { reason: error.to_string() })
            }
            Ok(ControlReply::Refused(reason)) => Err(RequestError::Refused { reason }),
            Ok(ControlReply::Error(reason)) => Err(RequestError::Failed { reason }),
            Err(ControlError::Nobody(_)) => Err(RequestError::NoCollector),
            Err(error) => Err(RequestError::Failed { reason: error.to_string() }),
        }
    }
}

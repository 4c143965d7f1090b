//! Jobs: rows of the list, how their tasks ended, and their cancellation.

use millpond::job::JobContinuation;
pub use millpond::job::JobStatus;
use millpond::outcome::Failure;
use millpond::payload::PayloadRef;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use crate::raw::present;
use crate::tasks::TaskStatus;

/// Which jobs.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct JobQuery {
    /// Whose name begins so.
    #[param(example = "report-", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// In this state.
    #[param(example = "open", nullable = false, inline)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<JobStatus>,
}

/// A job and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobRow {
    /// Its name.
    pub job: String,
    /// How it stands.
    pub state: JobStatus,
    /// The queue of its tasks.
    pub queue: String,
    /// The kind of its tasks.
    pub kind: String,
    /// How many tasks it has, once all are published.
    pub total: Option<u64>,
    /// How many tasks are published; not for a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub published: Option<u64>,
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
    /// When it was made, Unix time in milliseconds.
    pub created_ms: i64,
    /// When its producer last renewed its record, Unix time in milliseconds; not for a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub heartbeat_ms: Option<i64>,
    /// Counts on when the name is used again, from 1; not for a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub epoch: Option<u32>,
    /// The task that its end starts.
    pub continuation: Option<JobContinuation>,
    /// Why that task is refused for good; only where one job is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub continuation_refused: Option<String>,
    /// Whether all that was published of a session has ended, so that nothing of it waits or runs; only where one job is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub ended: Option<bool>,
}

/// How a task of a job ended.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JobResult {
    /// Its place in the job, from 0; null for a task that has none.
    pub index: Option<i64>,
    /// The id of the task.
    pub id: String,
    /// The queue of the task.
    pub queue: String,
    /// The kind of the task.
    pub kind: String,
    /// How it stands.
    pub status: TaskStatus,
    /// The first 16 bytes of the SHA-256 of its arguments, in hex, where its publisher gave the id; only where one task is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub digest: Option<String>,
    /// What the handler returned, any JSON value.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub result: Option<Box<RawValue>>,
    /// The same as text, where JSON parsers differ about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub result_text: Option<String>,
    /// The handler wrote bytes that are no JSON; the result is `{"base64":"…"}`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub result_is_bytes: bool,
    /// Where the result lies in the store of payloads.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub stored_result: Option<PayloadRef>,
    /// Why there is no result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub failure: Option<Failure>,
}

/// A job that is cancelled.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JobCancelled {
    /// Its name.
    pub job: String,
    /// This epoch and all before it are cancelled; 0 for a job without a record.
    pub epoch: u32,
    /// Messages that waited and were removed.
    pub removed: u64,
}

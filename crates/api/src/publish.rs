//! What the producer is asked and answers: tasks and jobs that are published over HTTP.

use millpond::outcome::Failure;
use millpond::payload::PayloadRef;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use crate::jobs::JobStatus;
use crate::named::named;
use crate::raw::{halves, present};

/// How a task is published.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct PublishTaskQuery {
    /// The job that it belongs to.
    #[param(example = "report-7", pattern = "^[A-Za-z0-9_-]{1,64}$", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Answer when it has ended, 200, or after this long, 202: a duration such as `30s`, 10 minutes at the most.
    #[param(example = "2s", pattern = "^([0-9]{1,3}ms|[1-5]?[0-9]{1,2}s|[0-9]m|10m)$", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<String>,
}

/// A task that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskPublished {
    /// Its id: the Idempotency-Key, or a random one.
    pub id: String,
    /// The queue that it was published to.
    pub queue: String,
    /// Which handler runs it.
    pub kind: String,
    /// The job that it belongs to; with `wait`, one of its own. Where the server had the id already, the job that was asked for.
    pub job: Option<String>,
    /// True when the server had this id already: nothing was published.
    pub duplicate: bool,
}

named! {
    /// How a task ended.
    FinalStatus {
        /// It has a result.
        Done = "done",
        /// It failed for good; a dead letter has the evidence.
        Dead = "dead",
        /// It was cancelled.
        Cancelled = "cancelled",
    }
}

/// How a task ended, and with what.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TaskEnding {
    /// How it ended.
    pub status: FinalStatus,
    /// What the handler returned, any JSON value; only when it is done.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub result: Option<Box<RawValue>>,
    /// The handler wrote bytes that are no JSON; the result is `{"base64":"…"}`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub result_is_bytes: bool,
    /// Why it failed; when it is dead, or done with a result that is gone (`result_lost`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub failure: Option<Failure>,
}

/// A task that has ended.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TaskEnded {
    /// Its id.
    pub id: String,
    /// How it ended.
    #[serde(flatten)]
    pub ending: TaskEnding,
}

/// A task of a job that has ended: one line of the results.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct JobTaskEnded {
    /// Its place in the job, from 0.
    pub index: u64,
    /// Its id.
    pub id: String,
    /// How it ended.
    #[serde(flatten)]
    pub ending: TaskEnding,
}

/// The fields beside an ending.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    index: u64,
    id: String,
}

impl<'de> Deserialize<'de> for TaskEnded {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        halves(from).map(|(Named { id, .. }, ending)| Self { id, ending })
    }
}

impl<'de> Deserialize<'de> for JobTaskEnded {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        halves(from).map(|(Named { index, id }, ending)| Self { index, id, ending })
    }
}

/// The last line of the results of a job whose tasks have all ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobSummary {
    /// Its name.
    pub job: String,
    /// How many tasks it has.
    pub total: u64,
    /// Tasks with a result.
    pub done: u64,
    /// Tasks that failed for good.
    pub dead: u64,
    /// Tasks that were cancelled.
    pub cancelled: u64,
}

/// A large payload that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PayloadStored {
    /// What a task that is published over NATS has in its header `Millpond-Ref`.
    #[serde(rename = "ref")]
    pub at: PayloadRef,
    /// A task that needs it must have started by then: what is to stand in its `Millpond-Expires`, RFC 3339.
    pub expires: String,
}

/// How a job is published.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct PublishJobQuery {
    /// Its name, a new one; drawn at random when none.
    #[param(example = "report-7", pattern = "^[A-Za-z0-9_-]{1,64}$", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Answer with the results as they come, a line each, while the body is still being read.
    #[param(example = true, nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<bool>,
    /// With `wait`: in the order of the input instead of as they come.
    #[param(example = true, nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ordered: Option<bool>,
    /// Tasks in one message: a number from 1 to 1000, or `auto`: batches form by how long the tasks take.
    #[param(example = "auto", pattern = "^(auto|[1-9][0-9]{0,2}|1000)$", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    /// When all of it has ended, run this kind (or `queue.kind`) with the counts as its argument.
    #[param(example = "report", nullable = false, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continuation: Option<String>,
}

/// A job that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobPublished {
    /// Its name.
    pub job: String,
    /// How many tasks it has.
    pub tasks: u64,
    /// The id of the first task; the others count on.
    pub first_id: String,
    /// True when it was stored before, under this Idempotency-Key: nothing was published.
    pub duplicate: bool,
}

/// How far the publishing of a job is, by its record; of a session, by its tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobProgress {
    /// Its name.
    pub job: String,
    /// The queue of its tasks.
    pub queue: String,
    /// The kind of its tasks.
    pub kind: String,
    /// `open`, `stalled`, `closed` or `cancelled`: the producer does not know what has ended. `session`: it has no record, and a
    /// collector knows it by its tasks.
    pub state: JobStatus,
    /// Tasks that the server has stored, without a gap from the first; of a session those that have ended an attempt.
    pub published: u64,
    /// How many tasks it has; null until its producer has come to the end.
    pub total: Option<u64>,
    /// When it was made, Unix time in milliseconds.
    pub created_ms: i64,
    /// When its producer last renewed its record, Unix time in milliseconds; not for a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub heartbeat_ms: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::round_trips;

    #[test]
    fn endings_are_read_and_written_as_they_came() {
        round_trips::<TaskEnded>(r#"{"id":"a","status":"done","result":null}"#);
        round_trips::<TaskEnded>(r#"{"id":"a","status":"done","result":{"base64":"6Q=="},"result_is_bytes":true}"#);
        round_trips::<JobTaskEnded>(r#"{"index":7,"id":"a","status":"done","result":{"b":1.0,"b":2}}"#);
        round_trips::<TaskEnded>(
            r#"{"id":"a","status":"dead","failure":{"type":"error","message":"no","retry":true}}"#,
        );
    }
}

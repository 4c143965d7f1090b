//! Tasks: rows of the list, one task with all that is known of it, why it has no result, and its cancellation.

pub use millpond::client::TaskState;
use millpond::outcome::Failure;
use millpond::payload::PayloadRef;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use crate::dead_letters::{DeadLetterDetails, DeadLetterId};
use crate::ids::task_id;
use crate::named::named;
use crate::raw::{halves, present};
use crate::time::time_ms;

named! {
    /// How a task stands.
    TaskStatus {
        /// A batch with items that have not ended.
        Partial = "partial",
        /// It failed; a later attempt waits.
        Retrying = "retrying",
        /// It failed for good; a dead letter waits for a person.
        Dead = "dead",
        /// It has a result.
        Done = "done",
        /// It was cancelled.
        Cancelled = "cancelled",
    }
}

named! {
    /// How one attempt ended.
    AttemptStatus {
        /// With results only.
        Done = "done",
        /// With a failure.
        Failed = "failed",
        /// It was cancelled.
        Cancelled = "cancelled",
        /// Its worker stopped before it was done, and gave it to others.
        #[serde(alias = "handed back")]
        Released = "released",
        /// Some items of the batch have a result, others have none.
        #[serde(alias = "partly done")]
        PartlyDone = "partly_done",
    }
}

/// Which tasks. A filter that is not given leaves all.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct TaskQuery {
    /// Of this job.
    #[param(example = "report-7", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Of this queue.
    #[param(example = "default", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// Of this kind.
    #[param(example = "square", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// With this status.
    #[param(example = "dead", nullable = false, inline)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<TaskStatus>,
    /// Whose last attempt ran on this worker.
    #[param(example = "w1", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Published at this time or later: RFC 3339, or Unix time in milliseconds.
    #[param(value_type = Option<String>, example = "2020-01-31T12:00:00Z", pattern = "^(-?[0-9]{1,15}|[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z)$", nullable = false)]
    #[serde(default, deserialize_with = "time_ms", skip_serializing_if = "Option::is_none")]
    pub since: Option<i64>,
    /// Published before this time.
    #[param(value_type = Option<String>, example = "2100-01-31T12:00:00Z", pattern = "^(-?[0-9]{1,15}|[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z)$", nullable = false)]
    #[serde(default, deserialize_with = "time_ms", skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
    /// With a failure whose type or message has this text, in small or capital letters.
    #[param(example = "timeout", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Which task, or which dead letter.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct TaskIdQuery {
    /// Its id; `<id>/<i>` for an item of a batch.
    #[param(example = "order-7", pattern = "^[!-~]([ -~]{0,254}[!-~])?$")]
    #[serde(deserialize_with = "task_id")]
    pub id: String,
    /// Its queue, where tasks of several have this id.
    #[param(example = "default", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// Its kind, where tasks of several have this id.
    #[param(example = "square", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// A task, an item of a batch, or a batch.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TaskRow {
    /// The queue that it was published to.
    pub queue: String,
    /// Unique in its queue and kind.
    pub id: String,
    /// Which handler runs it.
    pub kind: String,
    /// The job that it belongs to.
    pub job: Option<String>,
    /// Its place in its job, from 0; of a batch the place of its first item.
    pub index: Option<i64>,
    /// Of an item of a batch: the id of the batch as it was first published.
    pub original_id: Option<String>,
    /// Of a batch: how many items it has.
    pub items: Option<i64>,
    /// How many items, or 0 or 1 of a task, have a result.
    pub done: i64,
    /// How it stands.
    pub status: TaskStatus,
    /// The last attempt that is known, from 1.
    pub attempt: i64,
    /// The worker that ran that attempt.
    pub worker: String,
    /// When it was published, Unix time in milliseconds.
    pub published_ms: i64,
    /// When that attempt began, Unix time in milliseconds.
    pub started_ms: Option<i64>,
    /// When that attempt ended, Unix time in milliseconds.
    pub ended_ms: Option<i64>,
    /// When the collector stored what it last got of this task, Unix time in milliseconds.
    pub stored_ms: i64,
    /// The W3C trace id, 32 hex digits.
    pub trace: Option<String>,
    /// Where its result went: `<queue>.<kind>` of the next step of its chain.
    pub continuation: Option<String>,
    /// The first 16 bytes of the SHA-256 of its arguments, in hex, where its publisher gave the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub digest: Option<String>,
    /// What the handler returned, any JSON value; of a batch an array, with null where there is none yet.
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
    /// The size of the result in bytes, where it is too large for a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub result_bytes: Option<u64>,
    /// Where the result lies in the store of payloads.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub stored_result: Option<PayloadRef>,
    /// Of a batch: where the results of these items lie in the store of payloads, by the item's number.
    #[serde(default, rename = "refs", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, nullable = false)]
    pub stored_results: Option<Box<RawValue>>,
    /// Of a batch: the items whose handlers wrote bytes that are no JSON; their results are `{"base64":"…"}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub bytes_items: Option<Vec<u32>>,
}

/// A task with all that is known of it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TaskDetails {
    /// The row that a list shows of it; its result is whole here.
    #[serde(flatten)]
    pub row: TaskRow,
    /// What happened to it.
    #[serde(flatten)]
    pub history: TaskHistory,
}

impl<'de> Deserialize<'de> for TaskDetails {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        halves(from).map(|(row, history)| Self { row, history })
    }
}

/// What happened to a task.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct TaskHistory {
    /// Its attempts in their order.
    pub attempts: Vec<Attempt>,
    /// Its dead letter, while it waits for a person.
    pub dead: Option<DeadLetterDetails>,
    /// The dead letters that it left behind because it was run again, the oldest first.
    pub replays: Vec<Replay>,
    /// The dead letter of another queue that it was made of.
    pub replay_of: Option<DeadLetterId>,
}

/// One execution that ended.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    /// Its number, from 1.
    pub attempt: i64,
    /// The worker that ran it.
    pub worker: Option<String>,
    /// When it began, Unix time in milliseconds.
    pub started_ms: Option<i64>,
    /// When it ended, Unix time in milliseconds.
    pub ended_ms: Option<i64>,
    /// How it ended.
    pub status: Option<AttemptStatus>,
    /// The name of the child process that it failed in.
    pub child: Option<String>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// The W3C trace id, 32 hex digits.
    pub trace: Option<String>,
}

/// A dead letter that was run again.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Replay {
    /// The attempt that was its last.
    pub attempt: i64,
    /// Why it was dead-lettered.
    pub reason: String,
    /// When it was dead-lettered, Unix time in milliseconds.
    pub dead_lettered_ms: i64,
    /// The role that ran it again.
    pub by: String,
    /// When that was, Unix time in milliseconds.
    pub at_ms: i64,
    /// Whether it was run again with other arguments.
    pub arguments: bool,
    /// The queue that it was moved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub to_queue: Option<String>,
    /// The id of its task in that queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub new_id: Option<String>,
}

/// Why a task has no result.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The id of the task.
    pub id: String,
    /// Its queue, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub queue: Option<String>,
    /// Its kind, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub kind: Option<String>,
    /// Where it is.
    pub state: TaskState,
    /// The reason, and what to do, for a person.
    pub sentence: String,
}

/// Which task to cancel.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelTask {
    /// Its id; `<id>/<i>` for an item of a batch.
    #[schema(pattern = "^[!-~]([ -~]{0,254}[!-~])?$")]
    #[serde(deserialize_with = "task_id")]
    pub id: String,
    /// Its queue, where tasks of several have this id, or where it is not published yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// Its kind, where tasks of several have this id. Without it all kinds are meant of a task that is not published yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// A task that is cancelled.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TaskCancelled {
    /// The id of the task.
    pub id: String,
    /// The queue of the task.
    pub queue: String,
    /// The kind of the task; none: of whatever kind it will be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub kind: Option<String>,
    /// True when the task has ended already; else its worker ends it, or the worker that gets it.
    pub ended: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::round_trips;

    #[test]
    fn results_are_read_and_written_as_they_came() {
        let before = r#"{"queue":"q","id":"t","kind":"k","job":null,"index":null,"original_id":null,"items":null,"done":1,"status":"done","attempt":1,"worker":"w","published_ms":1,"started_ms":null,"ended_ms":null,"stored_ms":2,"trace":null,"continuation":null,"result":"#;
        let behind = r#","attempts":[],"dead":null,"replays":[],"replay_of":null}"#;
        for result in ["1.0", "123456789012345678901", r#"{"b":1,"a":2,"b":3}"#, "null", r#""\ud800""#] {
            round_trips::<TaskRow>(&format!("{before}{result}}}"));
            round_trips::<TaskDetails>(&format!("{before}{result}{behind}"));
        }
    }

    #[test]
    fn names_of_before_are_read() {
        let read = |text| serde_json::from_str::<AttemptStatus>(text).unwrap();
        assert_eq!(
            (read(r#""handed back""#), read(r#""partly done""#)),
            (AttemptStatus::Released, AttemptStatus::PartlyDone)
        );
        assert_eq!(format!("{:>7}", TaskStatus::Done), "   done");
    }
}

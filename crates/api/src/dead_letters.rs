//! Dead letters: rows of the list, one with its evidence, and what an operator does with them.

use millpond::dead_letter::Evidence;
use millpond::outcome::{FailedAttempt, Failure};
use millpond::payload::PayloadRef;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use crate::ids::task_id;
use crate::raw::{halves, present};
use crate::time::time_ms;

/// Dead letters of one request at the most.
pub const DEAD_LETTERS_MAX: usize = 1000;
/// Dead letters that are acted on in a second, where the caller does not say.
pub const DEAD_LETTERS_PER_SECOND: u32 = 1000;
/// Dead letters that are acted on in a second at the most.
pub const DEAD_LETTERS_PER_SECOND_MAX: u32 = 100_000;

/// Which dead letters. A filter that is not given leaves all; one that is not known is refused, so that it does not mean
/// all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams, ToSchema)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct DeadLetterQuery {
    /// Of this queue.
    #[param(example = "default", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// Of this kind.
    #[param(example = "square", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Of this job.
    #[param(example = "report-7", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// With this reason: `exhausted`, `fatal`, `unknown_kind`, `kills_workers`, `expired`, …
    #[param(example = "fatal", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Dead-lettered by this worker.
    #[param(example = "w1", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Whose failure has this text in its type or message, in small or capital letters.
    #[param(example = "timeout", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Dead-lettered at this time or later: RFC 3339, or Unix time in milliseconds.
    #[param(value_type = Option<String>, example = "2020-01-31T12:00:00Z", pattern = "^(-?[0-9]{1,15}|[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z)$", nullable = false)]
    #[schema(value_type = Option<String>, format = "date-time")]
    #[serde(deserialize_with = "time_ms", skip_serializing_if = "Option::is_none")]
    pub since: Option<i64>,
    /// Dead-lettered before this time.
    #[param(value_type = Option<String>, example = "2100-01-31T12:00:00Z", pattern = "^(-?[0-9]{1,15}|[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z)$", nullable = false)]
    #[schema(value_type = Option<String>, format = "date-time")]
    #[serde(deserialize_with = "time_ms", skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
}

/// Names one dead letter: a later one of the same task is another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterId {
    /// The queue that its task died in.
    pub queue: String,
    /// The kind of its task; needed where tasks of several kinds have this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub kind: Option<String>,
    /// The id of its task.
    #[schema(pattern = "^[!-~]([ -~]{0,254}[!-~])?$")]
    #[serde(deserialize_with = "task_id")]
    pub id: String,
    /// The attempt that was the last, from 1; 0 when it never ran.
    pub attempt: u32,
}

/// A dead letter.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterRow {
    /// The queue that its task died in.
    pub queue: String,
    /// The id of its task.
    pub id: String,
    /// The kind of its task.
    pub kind: String,
    /// The job that its task belongs to.
    pub job: Option<String>,
    /// The place of its task in that job, from 0.
    pub index: Option<i64>,
    /// The attempt that was the last, from 1; 0 when it never ran.
    pub attempt: u32,
    /// Why: `exhausted`, `fatal`, `unknown_kind`, `kills_workers`, `expired`, …
    pub reason: String,
    /// The last failure.
    pub failure: Failure,
    /// The worker that dead-lettered it.
    pub worker: String,
    /// The W3C trace id, 32 hex digits.
    pub trace: Option<String>,
    /// When it was dead-lettered, Unix time in milliseconds.
    pub dead_lettered_ms: i64,
}

/// A dead letter with its evidence.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeadLetterDetails {
    /// The row that a list shows of it.
    #[serde(flatten)]
    pub row: DeadLetterRow,
    /// What a list leaves out.
    #[serde(flatten)]
    pub contents: DeadLetterContents,
}

impl<'de> Deserialize<'de> for DeadLetterDetails {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        halves(from).map(|(row, contents)| Self { row, contents })
    }
}

/// What is kept of a dead letter's task.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterContents {
    /// The failures of the attempts before the last, compact, oldest first.
    pub failures: Vec<FailedAttempt>,
    /// All that its worker knew (docs/protocol.md).
    pub evidence: Evidence,
    /// The headers of its message: pairs of name and value.
    #[schema(value_type = Vec<Vec<String>>)]
    pub headers: Vec<(String, String)>,
    /// Its arguments, any JSON value.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub payload: Option<Box<RawValue>>,
    /// The same as text, where JSON parsers differ about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub payload_text: Option<String>,
    /// Its arguments in base64, where they are no JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub payload_base64: Option<String>,
    /// Where its arguments lie in the store of payloads.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub stored_payload: Option<PayloadRef>,
}

/// What an operator does with dead letters, and with which: `dead_letters` or a `filter`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ActOnDeadLetters {
    /// These, 1000 at the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 1000)]
    pub dead_letters: Option<Vec<DeadLetterId>>,
    /// All that wait and fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<DeadLetterQuery>,
    /// With a filter: so many at the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<u32>,
    /// The `next` of the answer before, unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Only report what would be done.
    pub dry_run: bool,
    /// So many a second at the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100_000, default = 1000)]
    pub rate: Option<u32>,
    /// Retry only: in this queue, as new tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    pub queue: Option<String>,
    /// Retry of one dead letter only: with these arguments, any JSON value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub arguments: Option<Box<RawValue>>,
}

/// What became of each dead letter, in the order of the request.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeadLettersActedOn {
    /// One row a dead letter.
    pub rows: Vec<DeadLetterActedOn>,
    /// Where to go on; null when that was all.
    pub next: Option<String>,
    /// How many there are in all: of the filter, or that were named.
    pub matched: u64,
}

/// What became of a dead letter.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterActedOn {
    /// The queue that its task died in.
    pub queue: String,
    /// The kind of its task; none where it does not wait and the request named none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub kind: Option<String>,
    /// The id of its task.
    pub id: String,
    /// The attempt that was the last.
    pub attempt: u32,
    /// Whether it was done, or would be.
    pub ok: bool,
    /// True when nothing was done, and only reported.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(nullable = false)]
    pub dry_run: bool,
    /// The id of the new task, in another queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub new_id: Option<String>,
    /// Why it was not done.
    pub error: Option<String>,
}

//! Which tasks, which dead letters: the same words for lists and exports. A filter that is not given leaves all.

use axum::http::StatusCode;
use millpond::wire::subject::check_token;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::asked::time_field;
use super::refusal::Refusal;
use crate::store::{JobFilter, TaskFilter};

/// How a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum TaskStatus {
    /// A batch with items that have not ended.
    Partial,
    /// It failed; a later attempt waits.
    Retrying,
    /// It failed for good; a dead letter waits for a person.
    Dead,
    /// It has a result.
    Done,
    /// It was cancelled.
    Cancelled,
}

impl TaskStatus {
    fn name(self) -> &'static str {
        match self {
            Self::Partial => "partial",
            Self::Retrying => "retrying",
            Self::Dead => "dead",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Which tasks.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskQuery {
    /// Of this job.
    #[param(example = "report-7", nullable = false)]
    job: Option<String>,
    /// Of this queue.
    #[param(example = "default", nullable = false)]
    queue: Option<String>,
    /// Of this kind.
    #[param(example = "square", nullable = false)]
    kind: Option<String>,
    /// That stand so.
    #[param(example = "dead", nullable = false, inline)]
    status: Option<TaskStatus>,
    /// Whose last attempt ran on this worker.
    #[param(example = "w1", nullable = false)]
    worker: Option<String>,
    /// Published at this time or later: RFC 3339, or Unix time in milliseconds.
    #[param(value_type = Option<String>, example = "2020-01-31T12:00:00Z", pattern = "^(-?[0-9]{1,15}|[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z)$", nullable = false)]
    #[serde(default, deserialize_with = "time_field")]
    since: Option<i64>,
    /// Published before this time.
    #[param(value_type = Option<String>, example = "2100-01-31T12:00:00Z", pattern = "^(-?[0-9]{1,15}|[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z)$", nullable = false)]
    #[serde(default, deserialize_with = "time_field")]
    until: Option<i64>,
    /// With a failure whose type or message has this text, in small or capital letters.
    #[param(example = "timeout", nullable = false)]
    error: Option<String>,
}

impl From<TaskQuery> for TaskFilter {
    fn from(asked: TaskQuery) -> Self {
        let TaskQuery { job, queue, kind, status, worker, since, until, error } = asked;
        let status = status.map(|status| status.name().to_owned());
        let error = error.filter(|text| !text.is_empty());
        Self { job, queue, kind, status, worker, since_ms: since, until_ms: until, error }
    }
}

/// Which dead letters.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct DeadQuery {
    /// Of this queue.
    #[param(example = "default", nullable = false)]
    queue: Option<String>,
    /// Of this kind.
    #[param(example = "square", nullable = false)]
    kind: Option<String>,
    /// Of this job.
    #[param(example = "report-7", nullable = false)]
    job: Option<String>,
    /// With this reason: `exhausted`, `fatal`, `unknown_kind`, `kills_workers`, `expired`, …
    #[param(example = "fatal", nullable = false)]
    reason: Option<String>,
    /// Buried by this worker.
    #[param(example = "w1", nullable = false)]
    worker: Option<String>,
    /// Whose failure has this text in its type or message, in small or capital letters.
    #[param(example = "timeout", nullable = false)]
    error: Option<String>,
    /// Buried at this time or later: RFC 3339, or Unix time in milliseconds.
    #[param(value_type = Option<String>, example = "2020-01-31T12:00:00Z", pattern = "^(-?[0-9]{1,15}|[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z)$", nullable = false)]
    #[serde(default, deserialize_with = "time_field")]
    since: Option<i64>,
    /// Buried before this time.
    #[param(value_type = Option<String>, example = "2100-01-31T12:00:00Z", pattern = "^(-?[0-9]{1,15}|[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z)$", nullable = false)]
    #[serde(default, deserialize_with = "time_field")]
    until: Option<i64>,
}

impl DeadQuery {
    /// The filter, and the reason.
    pub(super) fn split(self) -> (TaskFilter, Option<String>) {
        let Self { queue, kind, job, reason, worker, error, since, until } = self;
        let error = error.filter(|text| !text.is_empty());
        (TaskFilter { job, queue, kind, status: None, worker, since_ms: since, until_ms: until, error }, reason)
    }
}

/// Which jobs.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct JobQuery {
    /// Whose name begins so.
    #[param(example = "report-", nullable = false)]
    name: Option<String>,
    /// That stand so.
    #[param(example = "open", nullable = false, inline)]
    state: Option<JobStatus>,
}

impl From<JobQuery> for JobFilter {
    fn from(asked: JobQuery) -> Self {
        Self { name: asked.name, state: asked.state.map(|state| state.name().to_owned()) }
    }
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum JobStatus {
    /// Its producer adds to it.
    Open,
    /// All of it is published; some of it has not ended.
    Closed,
    /// Its producer is gone before the end of its input.
    Stalled,
    /// All of it has ended.
    Finished,
    /// It was cancelled.
    Cancelled,
    /// Tasks without a record of their job: nobody closes it.
    Session,
}

impl JobStatus {
    fn name(self) -> &'static str {
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

/// Which part of the series.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct SeriesQuery {
    /// How far back.
    #[param(example = "1h", nullable = false, inline)]
    pub(super) window: Option<Window>,
    /// Of this queue; of all when it is not said.
    #[param(example = "default", nullable = false)]
    pub(super) queue: Option<String>,
}

/// How far back the series goes: in steps of ten seconds up to an hour, of five minutes beyond.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
pub(super) enum Window {
    #[serde(rename = "15m")]
    Quarter,
    #[default]
    #[serde(rename = "1h")]
    Hour,
    #[serde(rename = "6h")]
    Morning,
    #[serde(rename = "24h")]
    Day,
    #[serde(rename = "7d")]
    Week,
}

impl Window {
    /// Its length, in milliseconds.
    pub(super) fn back_ms(self) -> i64 {
        let minutes = match self {
            Self::Quarter => 15,
            Self::Hour => 60,
            Self::Morning => 6 * 60,
            Self::Day => 24 * 60,
            Self::Week => 7 * 24 * 60,
        };
        minutes * 60_000
    }
}

/// Which task.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct OneQuery {
    /// Its id; `<id>/<i>` for an item of a batch.
    #[param(example = "order-7")]
    pub(super) id: String,
    /// Its queue, where several have this id.
    #[param(example = "default", nullable = false)]
    pub(super) queue: Option<String>,
}

/// Nothing may be said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoQuery {}

/// A name in a path or a body.
pub(super) fn check_name(what: &'static str, name: &str) -> Result<(), Refusal> {
    check_token(what, name).map_err(|wrong| Refusal::new(StatusCode::BAD_REQUEST, wrong.to_string()))
}

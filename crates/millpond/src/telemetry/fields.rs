//! Names of the fields of log lines and spans. They are constants, because the mapping of the log store has them too.

/// Id of a task in logs and spans.
pub const FIELD_TASK_ID: &str = "task_id";
/// Kind of a task.
pub const FIELD_KIND: &str = "kind";
/// Queue of a task.
pub const FIELD_QUEUE: &str = "queue";
/// Job of a task.
pub const FIELD_JOB: &str = "job";
/// Number of an attempt.
pub const FIELD_ATTEMPT: &str = "attempt";
/// W3C trace id, in text lines; `trace.id` in JSON.
pub(super) const FIELD_TRACE_ID: &str = "trace_id";
/// W3C span id, in text lines; `span.id` in JSON.
pub(super) const FIELD_SPAN_ID: &str = "span_id";

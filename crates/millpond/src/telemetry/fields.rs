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
/// The type of the exception that a line tells of (<https://opentelemetry.io/docs/specs/semconv/exceptions/exceptions-logs/>);
/// `error.type` in JSON.
pub(super) const FIELD_EXCEPTION_TYPE: &str = "exception.type";
/// Its message; `error.message` in JSON.
pub(super) const FIELD_EXCEPTION_MESSAGE: &str = "exception.message";
/// Where it was raised; `error.stack_trace` in JSON.
pub(super) const FIELD_STACKTRACE: &str = "exception.stacktrace";
/// The object that holds what a handler's JSON line says beside its message.
pub(super) const FIELD_OWN: &str = "fields";
/// W3C trace id, in text lines; `trace.id` in JSON.
pub(super) const FIELD_TRACE_ID: &str = "trace_id";
/// W3C span id, in text lines; `span.id` in JSON.
pub(super) const FIELD_SPAN_ID: &str = "span_id";

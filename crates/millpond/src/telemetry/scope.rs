//! The task that a thread works on, for its log lines and for the spans of its handler.

use opentelemetry::trace::{FutureExt, TraceContextExt};
use opentelemetry::{Context, ContextGuard};

use serde_json::{Map, Value};

use super::fields::{
    FIELD_ATTEMPT, FIELD_EXCEPTION_TYPE, FIELD_KIND, FIELD_OWN, FIELD_QUEUE, FIELD_STACKTRACE, FIELD_TASK_ID,
};
use super::trace::TraceContext;

/// The fields that log lines about a task get.
#[derive(Debug, Clone)]
pub struct TaskFields {
    /// Its id.
    pub task_id: String,
    /// Its queue; none when the lines have it already.
    pub queue: Option<String>,
    /// Its kind; none when the lines have it already.
    pub kind: Option<String>,
    /// The attempt, from 1.
    pub attempt: u32,
}

/// What a log line says beside its message, as whoever wrote it had it.
#[derive(Debug, Clone, Default)]
pub struct LineFields {
    /// Fields of its own.
    pub fields: Map<String, Value>,
    /// The type of the exception that it tells of.
    pub exception_type: Option<String>,
    /// Where that exception was raised.
    pub stacktrace: Option<String>,
}

/// A task that a thread or a future works on: log lines get its fields and its trace, on standard error and exported, and
/// spans of `tracing` are below its attempt.
#[derive(Clone)]
pub struct Scope(Context);

impl Scope {
    /// The scope of a task and of the span of its attempt.
    #[must_use]
    pub fn new(task: TaskFields, trace: Option<TraceContext>) -> Self {
        let context = Context::new().with_value(task);
        Self(match trace {
            Some(trace) => context.with_remote_span_context(trace.context(true)),
            None => context,
        })
    }

    /// The same scope, for one line with fields of its own.
    #[must_use]
    pub fn with_line(&self, line: LineFields) -> Self {
        Self(self.0.with_value(line))
    }

    /// The scope that this thread is in.
    #[must_use]
    pub fn current() -> Self {
        Self(Context::current())
    }

    /// Enters the scope on this thread until the guard is dropped.
    #[must_use]
    pub fn enter(&self) -> ContextGuard {
        self.0.clone().attach()
    }

    /// Enters the scope whenever `future` is polled.
    pub fn around<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        future.with_context(self.0.clone())
    }
}

/// Calls `each` with every field of the task that this thread works on now, and of the line that it writes.
pub(super) fn fields(mut each: impl FnMut(&'static str, FieldValue<'_>)) {
    Context::map_current(|context| {
        if let Some(task) = context.get::<TaskFields>() {
            each(FIELD_TASK_ID, FieldValue::Text(&task.task_id));
            task.queue.iter().for_each(|queue| each(FIELD_QUEUE, FieldValue::Text(queue)));
            task.kind.iter().for_each(|kind| each(FIELD_KIND, FieldValue::Text(kind)));
            each(FIELD_ATTEMPT, FieldValue::Number(task.attempt));
        }
        if let Some(line) = context.get::<LineFields>() {
            if !line.fields.is_empty() {
                each(FIELD_OWN, FieldValue::Object(&line.fields));
            }
            line.exception_type.iter().for_each(|name| each(FIELD_EXCEPTION_TYPE, FieldValue::Text(name)));
            line.stacktrace.iter().for_each(|text| each(FIELD_STACKTRACE, FieldValue::Lines(text)));
        }
    });
}

/// The ids of the trace and span that this thread works on now, in hex.
pub(super) fn ids() -> Option<(String, String)> {
    TraceContext::current().map(|context| (context.trace_id(), context.span_hex()))
}

/// The value of a field.
#[derive(Debug, Clone, Copy)]
pub(super) enum FieldValue<'a> {
    Text(&'a str),
    Number(u32),
    /// A text of several lines.
    Lines(&'a str),
    Object(&'a Map<String, Value>),
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_scope_is_left_again() {
        let task = TaskFields { task_id: "t".into(), queue: None, kind: Some("k".into()), attempt: 2 };
        let scope = Scope::new(task, TraceContext::parse(TEXT));
        let seen = || {
            let mut seen = String::new();
            fields(|name, value| seen.push_str(&format!("{name}={value:?} ")));
            (seen, ids())
        };
        assert_eq!(seen(), (String::new(), None));
        {
            let _in = scope.enter();
            let (fields, ids) = seen();
            assert_eq!(fields, "task_id=Text(\"t\") kind=Text(\"k\") attempt=Number(2) ");
            assert_eq!(ids.unwrap().1, "b7ad6b7169203331");
        }
        assert_eq!(seen(), (String::new(), None));
    }
}

//! The span of a publish: one that this process exports, or one of the program's tracer provider. Without the feature `telemetry`
//! there is none, and a trace context that is given is passed on.

#[cfg(feature = "telemetry")]
use std::time::SystemTime;

use super::NewTask;
use super::errors::SubmitError;
#[cfg(feature = "telemetry")]
use crate::outcome::Failure;
use crate::telemetry::TraceContext;
#[cfg(feature = "telemetry")]
use crate::telemetry::{FIELD_JOB, FIELD_KIND, FIELD_QUEUE, FIELD_TASK_ID, Span, SpanKind, record};

/// What the span is about, and its type in the messaging conventions.
#[cfg(feature = "telemetry")]
const PUBLISH: (&str, Option<&str>) = ("publish", Some("send"));

/// A publish that has begun.
pub(super) struct PublishSpan {
    /// Where the task belongs; none where nobody has begun a trace.
    pub(super) trace: Option<TraceContext>,
    #[cfg(feature = "telemetry")]
    parent: Option<TraceContext>,
    #[cfg(feature = "telemetry")]
    started: SystemTime,
    #[cfg(feature = "telemetry")]
    in_program: Option<Span>,
}

impl PublishSpan {
    /// Begins it below `parent`, or a trace that follows from the task.
    #[cfg(feature = "telemetry")]
    pub(super) fn start(task: &NewTask, id: &str, parent: Option<TraceContext>) -> Self {
        let started = SystemTime::now();
        let own = || {
            parent.map_or_else(|| TraceContext::of_publish(&task.queue, &task.kind, id), |parent| Some(parent.child()))
        };
        let begun = Span::in_program(PUBLISH, || destination(task), SpanKind::Producer, parent, started);
        let (in_program, trace) = begun.map_or_else(|| (None, own()), |(span, place)| (Some(span), Some(place)));
        Self { trace, parent, started, in_program }
    }

    /// Passes on what is given.
    #[cfg(not(feature = "telemetry"))]
    pub(super) fn start(_: &NewTask, _: &str, parent: Option<TraceContext>) -> Self {
        Self { trace: parent }
    }

    /// Ends it.
    #[cfg(feature = "telemetry")]
    pub(super) fn end(self, task: &NewTask, id: &str, failed: Option<&SubmitError>) {
        let Self { trace, parent, started, in_program } = self;
        let Some(trace) = trace.filter(|trace| trace.is_recorded()) else { return };
        let mut span = in_program
            .unwrap_or_else(|| Span::new(PUBLISH, &destination(task), SpanKind::Producer, (trace, parent), started));
        span.attribute(FIELD_TASK_ID, id);
        span.attribute(FIELD_QUEUE, &task.queue);
        span.attribute(FIELD_KIND, &task.kind);
        if let Some(job) = &task.job {
            span.attribute(FIELD_JOB, job);
        }
        if let Some(items) = task.batch {
            span.message_count(items as usize);
        }
        if let Some(error) = failed {
            span.failed(&Failure::new("not_stored", error.to_string()));
        }
        record(span);
    }

    /// There is none.
    #[cfg(not(feature = "telemetry"))]
    pub(super) fn end(self, _: &NewTask, _: &str, _: Option<&SubmitError>) {}
}

#[cfg(feature = "telemetry")]
fn destination(task: &NewTask) -> String {
    ["tasks", &task.queue, &task.kind].join(".")
}

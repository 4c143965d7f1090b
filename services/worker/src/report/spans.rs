//! The trace of an attempt: its place, the scope of what is logged meanwhile, and its spans: how long its message waited,
//! and how it ran. Whatever is published again keeps the trace.

use std::time::{Duration, SystemTime};

use millpond::bus::consume::lease::Lease;
use millpond::dead_letter::ReplayOf;
use millpond::outcome::Failure;
use millpond::task::Task;
use millpond::telemetry::{
    FIELD_ATTEMPT, FIELD_JOB, FIELD_KIND, FIELD_QUEUE, FIELD_TASK_ID, Scope, Span, SpanKind, TaskFields, TraceContext,
    record, time_of,
};
use millpond::wire::headers::HEADER_REPLAY_OF;

use crate::call_end::CallEnd;

/// From the start of a millisecond to its end.
const END_OF_MILLISECOND: Duration = Duration::from_micros(999);

/// What the spans are about, and its type in the messaging conventions.
const WAIT: (&str, Option<&str>) = ("wait", None);
const PROCESS: (&str, Option<&str>) = ("process", Some("process"));

/// The places of an attempt's spans.
pub(crate) struct AttemptSpans {
    /// The span that published the task; none when the task was published without one.
    parent: Option<TraceContext>,
    wait: TraceContext,
    /// The attempt's own span; what its handler does is below it.
    pub(crate) attempt: TraceContext,
    /// The spans themselves, in a program with a tracer provider of its own.
    in_program: Option<Box<SpansInProgram>>,
}

/// They have begun, and end when they are recorded.
struct SpansInProgram {
    wait: Option<Span>,
    attempt: Option<Span>,
}

/// Begins them below the publish; a trace that begins here begins with the wait.
fn in_program(lease: &Lease, parent: Option<TraceContext>) -> Option<AttemptSpans> {
    let (destination, now) = (|| destination(&lease.task), SystemTime::now());
    let since = waited_since_within(lease, now);
    let (wait_span, wait) = Span::in_program(WAIT, destination, SpanKind::Internal, parent, since)?;
    let below = Some(parent.unwrap_or(wait));
    let (span, attempt) = Span::in_program(PROCESS, destination, SpanKind::Consumer, below, now)?;
    let spans = SpansInProgram { wait: Some(wait_span), attempt: Some(span) };
    Some(AttemptSpans { parent, wait, attempt, in_program: Some(Box::new(spans)) })
}

/// Since when the message waited. These times are cut to milliseconds: the end of one keeps the wait behind what came before it.
fn waited_since_within(lease: &Lease, at: SystemTime) -> SystemTime {
    (AttemptSpans::waited_since(lease) + END_OF_MILLISECOND).min(at)
}

/// Where a task belongs, as its publisher has written it.
fn published_trace(task: &Task) -> Option<TraceContext> {
    task.traceparent().and_then(TraceContext::parse)
}

/// Where a task belongs that was published without a trace.
fn derived_trace(task: &Task) -> TraceContext {
    TraceContext::of_task(&task.subject.queue, &task.subject.kind, &task.original_id)
}

/// Where a task belongs whose attempt does not run.
pub(crate) fn trace_of(task: &Task) -> TraceContext {
    published_trace(task).unwrap_or_else(|| derived_trace(task))
}

impl AttemptSpans {
    pub(crate) fn new(lease: &Lease) -> Self {
        let parent = published_trace(&lease.task);
        in_program(lease, parent).unwrap_or_else(|| match parent {
            Some(parent) => {
                Self { parent: Some(parent), wait: parent.child(), attempt: parent.child(), in_program: None }
            }
            // Nothing came before: the trace begins with the wait.
            None => {
                let wait = derived_trace(&lease.task).child();
                Self { parent: None, wait, attempt: wait.child(), in_program: None }
            }
        })
    }

    /// The scope of the attempt.
    pub(crate) fn scope(&self, task: &Task) -> Scope {
        let (queue, kind) = (Some(task.subject.queue.clone()), Some(task.subject.kind.clone()));
        Scope::new(TaskFields { task_id: task.id(), queue, kind, attempt: task.attempt }, Some(self.attempt))
    }

    /// Since when the message waited: for its first attempt since it was published, else since the one before ended.
    pub(crate) fn waited_since(lease: &Lease) -> SystemTime {
        let before = lease.task.failures.last().filter(|failed| failed.attempt + 1 == lease.task.attempt);
        time_of(before.map_or(lease.stored_ms(), |failed| failed.ended_ms))
    }

    /// The attempt that this one follows: of a retry or a replay the one that failed before, of a task that was made of another
    /// queue's dead letter that one's last.
    fn before(&self, task: &Task) -> Option<TraceContext> {
        let failed = task.failures.last().filter(|failed| failed.attempt + 1 == task.attempt);
        if let Some(failed) = failed {
            return TraceContext::of_ids(&self.attempt.trace_id(), failed.span.as_deref()?);
        }
        let of = task.forwarded.iter().find(|(name, _)| task.attempt == 1 && name == HEADER_REPLAY_OF)?;
        let of: ReplayOf = serde_json::from_str(&of.1).ok()?;
        TraceContext::of_ids(of.trace.as_deref()?, of.span.as_deref()?)
    }

    /// Records the wait of an attempt that starts.
    pub(crate) fn started(&mut self, lease: &Lease, at: SystemTime) {
        if self.wait.is_recorded() {
            let (since, place) = (waited_since_within(lease, at), (self.wait, self.parent));
            let begun = self.in_program.as_mut().and_then(|spans| spans.wait.take());
            record(span(begun, (WAIT, SpanKind::Internal), &lease.task, place, since).ended(at));
        }
    }

    /// Records an attempt that ran, with how its items ended; `cancelled` when it was stopped because nobody wants it any more.
    pub(crate) fn ran(&mut self, task: &Task, started: SystemTime, ends: &[CallEnd], cancelled: bool) {
        if !self.attempt.is_recorded() {
            return;
        }
        let failures = ends.iter().filter_map(|end| match end {
            CallEnd::Failed(failure) => Some(failure),
            CallEnd::Done(_) | CallEnd::Bytes(_) | CallEnd::NotRun => None,
        });
        let failures: Vec<&Failure> = failures.collect();
        let place = (self.attempt, Some(self.parent.unwrap_or(self.wait)));
        let begun = self.in_program.as_mut().and_then(|spans| spans.attempt.take());
        let mut span = span(begun, (PROCESS, SpanKind::Consumer), task, place, started);
        if let Some(parent) = self.parent {
            span.link(parent);
        }
        if let Some(before) = self.before(task) {
            span.link(before);
        }
        span.attribute(FIELD_QUEUE, &task.subject.queue);
        span.attribute(FIELD_KIND, &task.subject.kind);
        if let Some(job) = &task.subject.job {
            span.attribute(FIELD_JOB, job);
        }
        if task.is_batch() {
            span.message_count(task.items_len() as usize);
            span.attribute("failed", i64::try_from(failures.len()).unwrap_or(i64::MAX));
        }
        if cancelled {
            span.cancelled();
        } else if let Some(first) = failures.first() {
            span.failed(first);
        }
        record(span);
    }
}

fn destination(task: &Task) -> String {
    ["tasks", &task.subject.queue, &task.subject.kind].join(".")
}

/// The span that has begun, or one, with what the spans of a message have in common.
fn span(
    begun: Option<Span>,
    (operation, kind): ((&'static str, Option<&'static str>), SpanKind),
    task: &Task,
    place: (TraceContext, Option<TraceContext>),
    started: SystemTime,
) -> Span {
    let mut span = begun.unwrap_or_else(|| Span::new(operation, &destination(task), kind, place, started));
    span.attribute(FIELD_TASK_ID, &task.id());
    span.attribute(FIELD_ATTEMPT, i64::from(task.attempt));
    span
}

/// The span of a call: a question that is answered and not stored.
pub(crate) fn called(
    (queue, kind, id): (&str, &str, &str),
    trace: TraceContext,
    parent: Option<TraceContext>,
    started: SystemTime,
    failure: Option<&Failure>,
) {
    if !trace.is_recorded() {
        return;
    }
    let (operation, destination) = (("process", Some("process")), ["call", queue, kind].join("."));
    let mut span = Span::new(operation, &destination, SpanKind::Server, (trace, parent), started);
    span.attribute(FIELD_TASK_ID, id);
    span.attribute(FIELD_QUEUE, queue);
    span.attribute(FIELD_KIND, kind);
    if let Some(failure) = failure {
        span.failed(failure);
    }
    record(span);
}

//! The trace of an attempt: its place, the scope of what is logged meanwhile, and its spans: how long its message waited,
//! and how it ran. Whatever is published again keeps the trace.

use std::time::SystemTime;

use millpond::bus::lease::Lease;
use millpond::outcome::Failure;
use millpond::task::Task;
use millpond::telemetry::{
    About, FIELD_ATTEMPT, FIELD_JOB, FIELD_KIND, FIELD_QUEUE, FIELD_TASK_ID, KeyValue, Scope, Span, SpanKind,
    TraceContext, batch_of, messaging, record, time_of,
};

use crate::share::CallEnd;

/// The places of an attempt's spans.
#[derive(Clone, Copy)]
pub(crate) struct Traced {
    /// The span that published the task; none when it says none.
    parent: Option<TraceContext>,
    wait: TraceContext,
    /// The attempt's own: what its handler does is below it.
    pub(crate) attempt: TraceContext,
}

/// Where a task belongs that does not run here.
pub(crate) fn trace_of(task: &Task) -> TraceContext {
    let said = task.traceparent().and_then(TraceContext::parse);
    said.unwrap_or_else(|| TraceContext::of_task(&task.subject.queue, &task.root))
}

impl Traced {
    pub(crate) fn new(task: &Task) -> Self {
        let wait = trace_of(task).child();
        match task.traceparent().and_then(TraceContext::parse) {
            Some(parent) => Self { parent: Some(parent), wait, attempt: parent.child() },
            // Nobody has told where it came from: its wait is what the trace begins with.
            None => Self { parent: None, wait, attempt: wait.child() },
        }
    }

    /// The scope of the attempt.
    pub(crate) fn scope(&self, task: &Task) -> Scope {
        let (queue, kind) = (Some(task.subject.queue.clone()), Some(task.subject.kind.clone()));
        Scope::new(About { task_id: task.id(), queue, kind, attempt: task.attempt }, Some(self.attempt))
    }

    /// Since when the message waited: for its first attempt since it was published, else since the one before ended.
    pub(crate) fn waited_since(lease: &Lease) -> SystemTime {
        let before = lease.task.failures.last().filter(|failed| failed.attempt + 1 == lease.task.attempt);
        time_of(before.map_or(lease.stored_ms(), |failed| failed.ended_ms))
    }

    /// It starts: its wait is over.
    pub(crate) fn started(&self, lease: &Lease, at: SystemTime) {
        if self.wait.is_recorded() {
            record(Span {
                trace: self.wait,
                parent: self.parent,
                kind: SpanKind::Internal,
                started: Self::waited_since(lease),
                ended: at,
                links: Vec::new(),
                failure: None,
                ..span("wait", None, &lease.task)
            });
        }
    }

    /// It ran, and this came of it.
    pub(crate) fn ran(&self, task: &Task, started: SystemTime, ends: &[CallEnd]) {
        if !self.attempt.is_recorded() {
            return;
        }
        let failed = ends.iter().filter(|end| matches!(end, CallEnd::Failed(_))).count();
        let failure = ends.iter().find_map(|end| match end {
            CallEnd::Failed(failure) => Some(failure.clone()),
            CallEnd::Done(_) | CallEnd::NotRun => None,
        });
        let mut span = Span {
            trace: self.attempt,
            parent: Some(self.parent.unwrap_or(self.wait)),
            kind: SpanKind::Consumer,
            started,
            ended: SystemTime::now(),
            links: self.parent.into_iter().collect(),
            failure,
            ..span("process", Some("process"), task)
        };
        span.attributes.push(KeyValue::new(FIELD_QUEUE, task.subject.queue.clone()));
        span.attributes.push(KeyValue::new(FIELD_KIND, task.subject.kind.clone()));
        span.attributes.extend(task.subject.job.clone().map(|job| KeyValue::new(FIELD_JOB, job)));
        if task.is_batch() {
            span.attributes.push(batch_of(task.items_len() as usize));
            span.attributes.push(KeyValue::new("failed", i64::try_from(failed).unwrap_or(i64::MAX)));
        }
        record(span);
    }
}

/// What the spans of a message have in common.
fn span(operation: &'static str, kind: Option<&'static str>, task: &Task) -> Span {
    let destination = format!("tasks.{}.{}", task.subject.queue, task.subject.kind);
    let name = format!("{operation} {destination}");
    let mut attributes = messaging(operation, kind, destination);
    attributes.push(KeyValue::new(FIELD_TASK_ID, task.id()));
    attributes.push(KeyValue::new(FIELD_ATTEMPT, i64::from(task.attempt)));
    let (trace, kind, now) = (trace_of(task), SpanKind::Internal, SystemTime::UNIX_EPOCH);
    Span { trace, parent: None, name, kind, started: now, ended: now, attributes, links: Vec::new(), failure: None }
}

/// The span of a call: a question that is answered and not stored.
pub(crate) fn called(
    (queue, kind_of, id): (&str, &str, &str),
    trace: TraceContext,
    parent: Option<TraceContext>,
    started: SystemTime,
    failure: Option<Failure>,
) {
    if !trace.is_recorded() {
        return;
    }
    let destination = format!("call.{queue}.{kind_of}");
    let name = format!("process {destination}");
    let mut attributes = messaging("process", Some("process"), destination);
    attributes.push(KeyValue::new(FIELD_TASK_ID, id.to_owned()));
    attributes.push(KeyValue::new(FIELD_QUEUE, queue.to_owned()));
    attributes.push(KeyValue::new(FIELD_KIND, kind_of.to_owned()));
    let (kind, links, ended) = (SpanKind::Server, Vec::new(), SystemTime::now());
    record(Span { trace, parent, name, kind, started, ended, attributes, links, failure });
}

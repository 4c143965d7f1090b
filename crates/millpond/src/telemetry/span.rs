//! Spans: whether one is exported, and how it is given to the exporter. A span is made when it is over, from its data; one
//! that is not sampled costs nothing. docs/observability.md lists them.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{Event, Link, Status};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{
    Sampler, SamplingDecision, ShouldSample, SpanData, SpanEvents, SpanLinks, SpanProcessor,
};

use super::TraceContext;
use super::export::QueuedSpans;
use crate::limits::SPAN_LINKS_MAX;
use crate::outcome::Failure;

pub use opentelemetry::trace::SpanKind;

/// Attributes of the spans that have the most: one allocation each.
const ATTRIBUTES_MOST: usize = 12;

/// A span that is over.
#[derive(Debug)]
pub struct Span {
    /// Its own place.
    pub trace: TraceContext,
    /// The span above it; none: it is the first of its trace.
    pub parent: Option<TraceContext>,
    /// `{operation} {destination}`, of few values.
    pub name: String,
    /// What it is to the message.
    pub kind: SpanKind,
    /// Its begin.
    pub started: SystemTime,
    /// Its end.
    pub ended: SystemTime,
    /// What it is about.
    pub attributes: Vec<KeyValue>,
    /// Spans of other traces that it is about; more than [`SPAN_LINKS_MAX`] are counted only.
    pub links: Vec<TraceContext>,
    /// Why it failed.
    pub failure: Option<Failure>,
}

impl Span {
    /// One that ends now, of what is done with a message
    /// (<https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/>): the operation, its type in these
    /// conventions where it has one, and the subject. Its place, and the span above it.
    #[must_use]
    pub fn new(
        (operation, of_type): (&'static str, Option<&'static str>),
        destination: String,
        kind: SpanKind,
        (trace, parent): (TraceContext, Option<TraceContext>),
        started: SystemTime,
    ) -> Self {
        let name = format!("{operation} {destination}");
        let mut attributes = Vec::with_capacity(ATTRIBUTES_MOST);
        attributes.push(KeyValue::new("messaging.system", "nats"));
        attributes.push(KeyValue::new("messaging.operation.name", operation));
        attributes.extend(of_type.map(|of_type| KeyValue::new("messaging.operation.type", of_type)));
        attributes.push(KeyValue::new("messaging.destination.name", destination));
        let (links, ended) = (Vec::new(), SystemTime::now());
        Self { trace, parent, name, kind, started, ended, attributes, links, failure: None }
    }

    /// Says one thing more of it.
    pub fn say(&mut self, name: &'static str, value: impl Into<opentelemetry::Value>) {
        self.attributes.push(KeyValue::new(name, value));
    }

    /// Says how many tasks its message has.
    pub fn say_batch(&mut self, messages: usize) {
        self.say("messaging.batch.message_count", i64::try_from(messages).unwrap_or(i64::MAX));
    }
}

/// Who takes spans, and which.
struct Export {
    to: QueuedSpans,
    sampling: Sampling,
    scope: InstrumentationScope,
}

/// Which traces are exported.
#[derive(Debug, Clone)]
pub(super) struct Sampling {
    /// Whoever began the trace has decided.
    by_parent: bool,
    root: Sampler,
}

static EXPORT: OnceLock<Export> = OnceLock::new();

/// Exports spans from now on.
pub(super) fn export(to: QueuedSpans, sampling: Sampling, scope: InstrumentationScope) {
    let _ = EXPORT.set(Export { to, sampling, scope });
}

pub(super) fn is_exported() -> bool {
    EXPORT.get().is_some()
}

pub(super) fn is_sampled(by_parent: Option<bool>, trace: u128) -> bool {
    EXPORT.get().is_some_and(|export| export.sampling.is_sampled(by_parent, trace))
}

impl Sampling {
    /// As `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG` say.
    pub(super) fn new(name: Option<&str>, ratio: Option<&str>) -> Result<Self, String> {
        let name = name.filter(|name| !name.is_empty()).unwrap_or("parentbased_always_on");
        let (by_parent, root) = name.strip_prefix("parentbased_").map_or((false, name), |root| (true, root));
        let root = match root {
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => {
                let ratio = ratio.unwrap_or("1");
                let number = ratio.parse().ok().filter(|number| (0.0..=1.0).contains(number));
                Sampler::TraceIdRatioBased(number.ok_or_else(|| {
                    format!("OTEL_TRACES_SAMPLER_ARG {ratio:?} must be a share from 0 to 1, such as 0.01")
                })?)
            }
            _ => {
                return Err(format!(
                    "OTEL_TRACES_SAMPLER {name:?} must be always_on, always_off, traceidratio, or one of these after \
                     `parentbased_`"
                ));
            }
        };
        Ok(Self { by_parent, root })
    }

    fn is_sampled(&self, by_parent: Option<bool>, trace: u128) -> bool {
        match by_parent.filter(|_| self.by_parent) {
            Some(decided) => decided,
            None => {
                let trace = trace.into();
                let result = self.root.should_sample(None, trace, "", &SpanKind::Internal, &[], &[]);
                result.decision == SamplingDecision::RecordAndSample
            }
        }
    }

    /// The same for spans that `tracing` makes.
    pub(super) fn sampler(self) -> Sampler {
        if self.by_parent { Sampler::ParentBased(Box::new(self.root)) } else { self.root }
    }
}

/// Gives it to the exporter; call it only for a trace that [is recorded](TraceContext::is_recorded). Never waits: when the
/// exporter is behind, the span is counted as dropped.
pub fn record(span: Span) {
    let Some(export) = EXPORT.get() else { return };
    let mut links = SpanLinks::default();
    let beyond = span.links.len().saturating_sub(SPAN_LINKS_MAX);
    links.links = span.links.iter().take(SPAN_LINKS_MAX).map(|to| Link::new(to.context(true), Vec::new(), 0)).collect();
    links.dropped_count = u32::try_from(beyond).unwrap_or(u32::MAX);
    let (mut attributes, mut events, mut status) = (span.attributes, SpanEvents::default(), Status::Unset);
    if let Some(failure) = span.failure {
        attributes.push(KeyValue::new("error.type", failure.kind.clone()));
        let mut what = vec![
            KeyValue::new("exception.type", failure.kind),
            KeyValue::new("exception.message", failure.message.clone()),
        ];
        what.extend(failure.traceback.map(|trace| KeyValue::new("exception.stacktrace", trace)));
        events.events.push(Event::new("exception", span.ended, what, 0));
        status = Status::error(failure.message);
    }
    let is_remote = span.parent.is_some() && span.kind != SpanKind::Internal;
    export.to.on_end(SpanData {
        span_context: span.trace.context(false),
        parent_span_id: span.parent.map_or(opentelemetry::SpanId::INVALID, TraceContext::span_number),
        parent_span_is_remote: is_remote,
        span_kind: span.kind,
        name: span.name.into(),
        start_time: span.started,
        // A clock that was set back makes no negative time.
        end_time: span.ended.max(span.started),
        attributes,
        dropped_attributes_count: 0,
        events,
        links,
        status,
        instrumentation_scope: export.scope.clone(),
    });
}

/// Unix time in milliseconds as a span has it.
#[must_use]
pub fn time_of(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_decides_what_is_exported() {
        let sampled =
            |name: Option<&str>, ratio, parent, trace| Sampling::new(name, ratio).unwrap().is_sampled(parent, trace);
        let high = u128::MAX >> 1;
        for (name, ratio, parent, trace, expected) in [
            (None, None, None, 1, true),
            (None, None, Some(false), 1, false),
            (Some("always_on"), None, Some(false), 1, true),
            (Some("always_off"), None, Some(true), 1, false),
            (Some("parentbased_traceidratio"), Some("0.01"), Some(true), high, true),
            (Some("parentbased_traceidratio"), Some("0.01"), None, high, false),
            (Some("parentbased_traceidratio"), Some("0.01"), None, 1, true),
            (Some("parentbased_always_off"), None, None, 1, false),
        ] {
            assert_eq!(sampled(name, ratio, parent, trace), expected, "{name:?} {ratio:?} {parent:?} {trace:x}");
        }
        for (name, ratio) in [("jaeger_remote", None), ("traceidratio", Some("2")), ("traceidratio", Some("x"))] {
            assert!(Sampling::new(Some(name), ratio).is_err(), "{name} {ratio:?}");
        }
    }
}

//! Spans. Where this process exports them, a span is encoded once it is over, in the form in which it is sent; one that is not
//! sampled costs nothing. In a program with a tracer provider of its own they are that provider's. docs/observability.md lists them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::global::{self, BoxedSpan};
use opentelemetry::trace::{Span as _, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, InstrumentationScope, KeyValue, Value};
use opentelemetry_proto::tonic::trace::v1::SpanFlags;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind as WireKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use super::otlp::{AttributeValue, CONVENTIONS, attribute, begin, bytes, field, fixed32, fixed64, number};
use super::sampling::is_up_to_program;
use super::trace::TraceContext;
use crate::outcome::Failure;

pub use opentelemetry::trace::SpanKind;

/// Links of one span; of more, only the number is sent.
pub const SPAN_LINKS_MAX: usize = 128;
/// Most spans are no larger, in bytes: so each needs one allocation.
const SPAN_BYTES_MOST: usize = 640;
/// Bytes of a link: two ids and flags, each after its field number, the ids after their lengths as well.
const LINK_BYTES: usize = (2 + 16) + (2 + 8) + (1 + 4);

/// An operation by its name, and its type in the conventions, where it has one.
type Operation = (&'static str, Option<&'static str>);

/// A span that is over, or one of the program's provider, which is over when it is [recorded](super::record).
#[derive(Debug)]
pub struct Span {
    started: SystemTime,
    /// None: when it is recorded.
    ended: Option<SystemTime>,
    links: usize,
    form: SpanForm,
}

#[derive(Debug)]
enum SpanForm {
    Encoded(Vec<u8>),
    InProgram(BoxedSpan),
}

impl Span {
    /// A span that ends now, of an operation on a message
    /// (<https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/>). `operation` comes with its type in these
    /// conventions, where it has one; `destination` is the subject; `trace` comes with the parent span, none when this span
    /// is the first of its trace.
    #[must_use]
    pub fn new(
        (operation, of_type): Operation,
        destination: &str,
        kind: SpanKind,
        (trace, parent): (TraceContext, Option<TraceContext>),
        started: SystemTime,
    ) -> Self {
        let mut wire = Vec::with_capacity(SPAN_BYTES_MOST);
        bytes(field::TRACE_ID, &trace.trace_bytes(), &mut wire);
        bytes(field::SPAN_ID, &trace.span_bytes(), &mut wire);
        if let Some(parent) = parent {
            bytes(field::PARENT_SPAN_ID, &parent.span_bytes(), &mut wire);
        }
        // `{operation} {destination}`, of few values.
        begin(field::NAME, operation.len() + 1 + destination.len(), &mut wire);
        wire.extend_from_slice(operation.as_bytes());
        wire.push(b' ');
        wire.extend_from_slice(destination.as_bytes());
        let is_remote = parent.is_some() && kind != SpanKind::Internal;
        number(field::KIND, u64::try_from(WireKind::from(kind) as i32).unwrap_or(0), &mut wire);
        fixed32(field::FLAGS, flags(is_remote), &mut wire);
        fixed64(field::START_TIME, nanoseconds(started), &mut wire);
        let span = Self { started, ended: Some(SystemTime::now()), links: 0, form: SpanForm::Encoded(wire) };
        span.of_message((operation, of_type), destination)
    }

    /// Starts such a span in the provider that the program has set for its process ([`opentelemetry::global`]), with its place. None
    /// where there is no such provider, or where telemetry was [started](super::start). Without `parent` it is below the span that
    /// is current.
    #[must_use]
    pub fn in_program(
        (operation, of_type): Operation,
        destination: impl FnOnce() -> String,
        kind: SpanKind,
        parent: Option<TraceContext>,
        started: SystemTime,
    ) -> Option<(Self, TraceContext)> {
        if !is_up_to_program() {
            return None;
        }
        let destination = destination();
        let mut context = Context::current();
        if let Some(parent) = parent.filter(|parent| Some(*parent) != TraceContext::current()) {
            context = context.with_remote_span_context(parent.context(true));
        }
        let of = InstrumentationScope::builder("millpond").with_version(env!("CARGO_PKG_VERSION"));
        let tracer = global::tracer_with_scope(of.with_schema_url(CONVENTIONS).build());
        let builder = tracer.span_builder(format!("{operation} {destination}")).with_kind(kind);
        let span = builder.with_start_time(started).start_with_context(&tracer, &context);
        // A program without a provider has one that answers with the parent.
        let is_new = span.span_context().span_id() != context.span().span_context().span_id();
        let place = TraceContext::in_program(span.span_context()).filter(|_| is_new)?;
        let span = Self { started, ended: None, links: 0, form: SpanForm::InProgram(span) };
        Some((span.of_message((operation, of_type), &destination), place))
    }

    /// The attributes that all have.
    fn of_message(mut self, (operation, of_type): Operation, destination: &str) -> Self {
        self.attribute("messaging.system", "nats");
        self.attribute("messaging.operation.name", operation);
        if let Some(of_type) = of_type {
            self.attribute("messaging.operation.type", of_type);
        }
        self.attribute("messaging.destination.name", destination);
        self
    }

    /// The same span with another end.
    #[must_use]
    pub fn ended(self, at: SystemTime) -> Self {
        Self { ended: Some(at), ..self }
    }

    /// Adds an attribute.
    pub fn attribute<'a>(&mut self, name: &'static str, value: impl Into<AttributeValue<'a>>) {
        match &mut self.form {
            SpanForm::Encoded(wire) => attribute(field::ATTRIBUTES, name, value.into(), wire),
            SpanForm::InProgram(span) => span.set_attribute(KeyValue::new(name, Value::from(value.into()))),
        }
    }

    /// Adds the number of tasks in the message.
    pub fn message_count(&mut self, messages: usize) {
        self.attribute("messaging.batch.message_count", i64::try_from(messages).unwrap_or(i64::MAX));
    }

    /// Links to a span of another trace; of more than [`SPAN_LINKS_MAX`] only the number is sent.
    pub fn link(&mut self, to: TraceContext) {
        self.links += 1;
        if self.links > SPAN_LINKS_MAX {
            return;
        }
        match &mut self.form {
            SpanForm::Encoded(wire) => {
                begin(field::LINKS, LINK_BYTES, wire);
                bytes(field::TRACE_ID, &to.trace_bytes(), wire);
                bytes(field::SPAN_ID, &to.span_bytes(), wire);
                fixed32(field::LINK_FLAGS, flags(true), wire);
            }
            SpanForm::InProgram(span) => span.add_link(to.context(true), Vec::new()),
        }
    }

    /// Sets the status to failed, and adds the reason as an attribute and as an event.
    pub fn failed(&mut self, failure: &Failure) {
        self.attribute("error.type", &failure.kind);
        let about = [("exception.type", &failure.kind), ("exception.message", &failure.message)];
        let about = about.into_iter().chain(failure.traceback.iter().map(|text| ("exception.stacktrace", text)));
        let at = self.ended.unwrap_or_else(SystemTime::now);
        match &mut self.form {
            SpanForm::Encoded(wire) => {
                let mut event = Vec::new();
                fixed64(field::EVENT_TIME, nanoseconds(at), &mut event);
                bytes(field::EVENT_NAME, b"exception", &mut event);
                about.for_each(|(name, text)| attribute(field::EVENT_ATTRIBUTES, name, text.into(), &mut event));
                bytes(field::EVENTS, &event, wire);
            }
            SpanForm::InProgram(span) => {
                let about = about.map(|(name, text)| KeyValue::new(name, text.clone())).collect();
                span.add_event_with_timestamp("exception", at, about);
            }
        }
        self.failed_with(&failure.message);
    }

    /// Sets the status to failed because the task was cancelled, without an exception: nothing is wrong with it.
    pub fn cancelled(&mut self) {
        self.attribute("error.type", "cancelled");
        self.failed_with("the task was cancelled");
    }

    fn failed_with(&mut self, message: &str) {
        match &mut self.form {
            SpanForm::Encoded(wire) => {
                let mut status = Vec::new();
                bytes(field::STATUS_MESSAGE, message.as_bytes(), &mut status);
                number(field::STATUS_CODE, u64::try_from(StatusCode::Error as i32).unwrap_or(0), &mut status);
                bytes(field::STATUS, &status, wire);
            }
            SpanForm::InProgram(span) => span.set_status(Status::error(message.to_owned())),
        }
    }

    /// Ends it: the encoded span; none of one that the program's provider has.
    pub(super) fn end(self) -> Option<Vec<u8>> {
        // A clock that was set back makes no negative time.
        let ended = self.ended.unwrap_or_else(SystemTime::now).max(self.started);
        match self.form {
            SpanForm::Encoded(mut wire) => {
                fixed64(field::END_TIME, nanoseconds(ended), &mut wire);
                let beyond = self.links.saturating_sub(SPAN_LINKS_MAX);
                if beyond > 0 {
                    number(field::DROPPED_LINKS, beyond as u64, &mut wire);
                }
                Some(wire)
            }
            SpanForm::InProgram(mut span) => {
                span.end_with_timestamp(ended);
                None
            }
        }
    }
}

/// The flags of a sampled span that say whether its parent, or the target of its link, belongs to another process.
fn flags(is_remote: bool) -> u32 {
    let remote = if is_remote { SpanFlags::ContextIsRemoteMask as u32 } else { 0 };
    1 | SpanFlags::ContextHasIsRemoteMask as u32 | remote
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Unix time in milliseconds as a `SystemTime`.
#[must_use]
pub fn time_of(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::KeyValue;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::trace::v1::Span as WireSpan;
    use opentelemetry_sdk::Resource;
    use prost::Message;

    use super::super::otlp::{self, Envelope};
    use super::*;

    fn text(attributes: &[KeyValue]) -> Vec<String> {
        let value = |of: &KeyValue| match of.value.as_ref().and_then(|value| value.value.clone()) {
            Some(Value::StringValue(text)) => format!("{}={text}", of.key),
            Some(Value::IntValue(number)) => format!("{}={number}", of.key),
            other => format!("{}: {other:?}", of.key),
        };
        attributes.iter().map(value).collect()
    }

    /// Encodes spans, and decodes them as a Collector does.
    fn sent(spans: Vec<Span>) -> Vec<WireSpan> {
        let mut wire = Vec::new();
        spans.into_iter().for_each(|span| otlp::span(&span.end().unwrap(), &mut wire));
        let resource = Resource::builder_empty().with_service_name("s").build();
        let request = Envelope::new(&resource).request(&wire, &[]);
        let mut read = ExportTraceServiceRequest::decode(request.as_slice()).unwrap();
        let mut of = read.resource_spans.pop().unwrap();
        assert_eq!(text(&of.resource.unwrap().attributes), ["service.name=s"]);
        let scoped = of.scope_spans.pop().unwrap();
        assert_eq!(scoped.scope.unwrap().name, "millpond");
        assert!(read.resource_spans.is_empty() && of.scope_spans.is_empty());
        scoped.spans
    }

    fn place(n: u8) -> TraceContext {
        TraceContext::of_ids(&format!("{n:032x}"), &format!("{n:016x}")).unwrap()
    }

    #[test]
    fn a_collector_reads_what_was_encoded() {
        let mut failure = Failure::new("ValueError", "no");
        failure.traceback = Some("l".repeat(300));
        let mut long = Span::new(
            ("process", Some("process")),
            "tasks.q.k",
            SpanKind::Consumer,
            (place(1), Some(place(2))),
            time_of(1500),
        )
        .ended(time_of(2500));
        long.attribute("attempt", -3);
        long.attribute("kind", "x".repeat(200).as_str());
        long.message_count(700);
        (0..SPAN_LINKS_MAX + 2).for_each(|_| long.link(place(9)));
        long.failed(&failure);
        let backwards =
            Span::new(("wait", None), "d", SpanKind::Internal, (place(3), None), time_of(5)).ended(time_of(4));
        let read = sent(vec![long, backwards]);
        let [long, backwards] = read.as_slice() else { panic!("{read:?}") };

        assert_eq!(
            (&long.trace_id[15], &long.span_id[7], &long.parent_span_id[7], long.trace_id.len(), long.span_id.len()),
            (&1, &1, &2, 16, 8)
        );
        assert_eq!(
            (long.name.as_str(), long.kind, long.flags),
            ("process tasks.q.k", WireKind::Consumer as i32, 0x301)
        );
        assert_eq!((long.start_time_unix_nano, long.end_time_unix_nano), (1_500_000_000, 2_500_000_000));
        assert_eq!(
            text(&long.attributes),
            [
                "messaging.system=nats",
                "messaging.operation.name=process",
                "messaging.operation.type=process",
                "messaging.destination.name=tasks.q.k",
                "attempt=-3",
                &format!("kind={}", "x".repeat(200)),
                "messaging.batch.message_count=700",
                "error.type=ValueError",
            ]
        );
        assert_eq!((long.links.len(), long.dropped_links_count), (SPAN_LINKS_MAX, 2));
        assert!(long.links.iter().all(|l| l.trace_id[15] == 9 && l.span_id[7] == 9 && l.flags == 0x301));
        let [event] = long.events.as_slice() else { panic!("{:?}", long.events) };
        assert_eq!((event.name.as_str(), event.time_unix_nano), ("exception", 2_500_000_000));
        let stack = format!("exception.stacktrace={}", "l".repeat(300));
        assert_eq!(text(&event.attributes), ["exception.type=ValueError", "exception.message=no", &stack]);
        let status = long.status.as_ref().unwrap();
        assert_eq!((status.code, status.message.as_str()), (StatusCode::Error as i32, "no"));

        assert_eq!((backwards.parent_span_id.len(), backwards.flags, &backwards.status), (0, 0x101, &None));
        assert_eq!(backwards.start_time_unix_nano, backwards.end_time_unix_nano);
        assert_eq!(backwards.attributes.len(), 3);
    }
}

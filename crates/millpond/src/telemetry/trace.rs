//! Which trace something belongs to: the W3C trace context that travels in the header `traceparent`, and the scope that
//! gives log lines their task and spans of a handler their parent.

use data_encoding::HEXLOWER;
use opentelemetry::trace::{FutureExt, SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry::{Context, ContextGuard};
use rand::RngExt;
use sha2::{Digest, Sha256};

use super::span;

/// A W3C trace context (<https://www.w3.org/TR/trace-context/#traceparent-header>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    sampled: bool,
}

impl TraceContext {
    /// That of a span which begins a new trace; none where this process exports no spans: whoever exports some begins it.
    #[must_use]
    pub fn begin() -> Option<Self> {
        span::is_exported().then(|| {
            let mut rng = rand::rng();
            let (trace, span) = (rng.random::<u128>() | 1, rng.random::<u64>() | 1);
            Self { trace, span, sampled: span::is_sampled(None, trace) }
        })
    }

    /// The same, whatever the sampler says: for a span that refers to sampled ones.
    #[must_use]
    pub fn begin_sampled() -> Option<Self> {
        Self::begin().map(|begun| Self { sampled: true, ..begun })
    }

    /// That of what this thread works on now: a task, or a span of the program.
    #[must_use]
    pub fn current() -> Option<Self> {
        Context::map_current(|context| {
            let span = context.span();
            let context = span.span_context();
            context.is_valid().then(|| Self {
                trace: u128::from_be_bytes(context.trace_id().to_bytes()),
                span: u64::from_be_bytes(context.span_id().to_bytes()),
                sampled: context.is_sampled(),
            })
        })
    }

    /// That of a span of this process below `parent`, or of one that begins a trace.
    #[must_use]
    pub fn below(parent: Option<Self>) -> Option<Self> {
        parent.map(Self::child).or_else(Self::begin)
    }

    /// That of a task which came without one. It follows from what the task is, so that all its deliveries and attempts are
    /// in one trace, wherever they run.
    #[must_use]
    pub fn of_task(queue: &str, root: &str) -> Self {
        let hash = Sha256::new().chain_update(queue).chain_update([0]).chain_update(root).finalize();
        let number = |bytes: &[u8]| bytes.iter().fold(0_u128, |n, byte| n << 8 | u128::from(*byte));
        let (trace, rest) = hash.split_at(16);
        let (trace, span) = (number(trace) | 1, number(rest));
        let span = u64::try_from(span & u128::from(u64::MAX)).unwrap_or(0) | 1;
        Self { trace, span, sampled: span::is_sampled(None, trace) }
    }

    /// That of the publish of a task which begins its trace; none where it is not exported. So nothing needs to be told of it:
    /// whoever runs the task comes to the same trace, and with the same sampler to the same decision.
    #[must_use]
    pub fn of_publish(queue: &str, root: &str) -> Option<Self> {
        let task = span::is_exported().then(|| Self::of_task(queue, root))?;
        task.sampled.then(|| task.child())
    }

    /// That of a span of this process below this one; this one itself where no such span would be exported, so that the next
    /// one is below the last that was.
    #[must_use]
    pub fn child(self) -> Self {
        let sampled = span::is_exported() && span::is_sampled(Some(self.sampled), self.trace);
        if sampled { Self { span: rand::rng().random::<u64>() | 1, sampled, ..self } } else { self }
    }

    /// Whether its span is exported by this process.
    #[must_use]
    pub fn is_recorded(self) -> bool {
        self.sampled && span::is_exported()
    }

    /// Reads a `traceparent`; none when it is not a valid one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let part = |from: usize, to: usize| text.get(from..to);
        let (version, trace, span, flags) = (part(0, 2)?, part(3, 35)?, part(36, 52)?, part(53, 55)?);
        // Later versions may have more behind the flags.
        let is_apart = [2, 35, 52, 55].iter().all(|at| text.as_bytes().get(*at).is_none_or(|byte| *byte == b'-'));
        if !is_apart || version == "ff" {
            return None;
        }
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self { sampled, ..Self::of_ids(trace, span)? })
    }

    /// That of a span that was exported, by its ids in hex.
    #[must_use]
    pub fn of_ids(trace: &str, span: &str) -> Option<Self> {
        if trace.len() != 32 || span.len() != 16 {
            return None;
        }
        let (trace, span) = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
        (trace != 0 && span != 0).then_some(Self { trace, span, sampled: true })
    }

    /// The header's value.
    #[must_use]
    pub fn to_traceparent(self) -> String {
        let mut text = String::with_capacity("00-".len() + 32 + "-".len() + 16 + "-01".len());
        text.push_str("00-");
        HEXLOWER.encode_append(&self.trace_bytes(), &mut text);
        text.push('-');
        HEXLOWER.encode_append(&self.span_bytes(), &mut text);
        text.push_str(if self.sampled { "-01" } else { "-00" });
        text
    }

    /// The trace id, 32 hex digits.
    #[must_use]
    pub fn trace_id(self) -> String {
        HEXLOWER.encode(&self.trace_bytes())
    }

    /// The span id, 16 hex digits; none where no such span is exported.
    #[must_use]
    pub fn span_id(self) -> Option<String> {
        self.is_recorded().then(|| HEXLOWER.encode(&self.span_bytes()))
    }

    pub(super) fn trace_bytes(self) -> [u8; 16] {
        self.trace.to_be_bytes()
    }

    pub(super) fn span_bytes(self) -> [u8; 8] {
        self.span.to_be_bytes()
    }

    pub(super) fn context(self, is_remote: bool) -> SpanContext {
        let flags = if self.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let (trace, span) = (TraceId::from_bytes(self.trace_bytes()), SpanId::from_bytes(self.span_bytes()));
        SpanContext::new(trace, span, flags, is_remote, TraceState::default())
    }
}

/// The task that log lines are about.
#[derive(Debug, Clone)]
pub struct About {
    /// Its id.
    pub task_id: String,
    /// Its queue; none when the line says it itself.
    pub queue: Option<String>,
    /// Its kind; none when the line says it itself.
    pub kind: Option<String>,
    /// The attempt, from 1.
    pub attempt: u32,
}

/// What is logged and traced within belongs to a task: lines get its fields and its trace, on standard error and
/// exported, and spans of `tracing` are below its attempt.
#[derive(Clone)]
pub struct Scope(Context);

impl Scope {
    /// Of a task, and its attempt's span.
    #[must_use]
    pub fn new(about: About, trace: Option<TraceContext>) -> Self {
        let context = Context::new().with_value(about);
        Self(match trace {
            Some(trace) => context.with_remote_span_context(trace.context(true)),
            None => context,
        })
    }

    /// The one that this thread is in.
    #[must_use]
    pub fn current() -> Self {
        Self(Context::current())
    }

    /// Until the guard is dropped, on this thread.
    #[must_use]
    pub fn enter(&self) -> ContextGuard {
        self.0.clone().attach()
    }

    /// While `future` is polled.
    pub fn around<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        future.with_context(self.0.clone())
    }
}

/// The fields of the task that this thread works on now, as log lines have them.
pub(super) fn fields(mut each: impl FnMut(&'static str, Field<'_>)) {
    Context::map_current(|context| {
        if let Some(about) = context.get::<About>() {
            each(super::FIELD_TASK_ID, Field::Text(&about.task_id));
            about.queue.iter().for_each(|queue| each(super::FIELD_QUEUE, Field::Text(queue)));
            about.kind.iter().for_each(|kind| each(super::FIELD_KIND, Field::Text(kind)));
            each(super::FIELD_ATTEMPT, Field::Number(about.attempt));
        }
    });
}

/// The ids of the trace and span that this thread works on now, in hex.
pub(super) fn ids() -> Option<(String, String)> {
    TraceContext::current().map(|context| (context.trace_id(), HEXLOWER.encode(&context.span_bytes())))
}

/// The value of a field.
#[derive(Debug, Clone, Copy)]
pub(super) enum Field<'a> {
    Text(&'a str),
    Number(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn traceparent_reads_back() {
        let context = TraceContext::parse(TEXT).unwrap();
        assert_eq!(context.to_traceparent(), TEXT);
        assert_eq!(TraceContext::parse(&format!("{TEXT}-more")), Some(context));
        for bad in [
            "",
            "00-0-0-00",
            &TEXT.replacen("00", "ff", 1),
            &TEXT.replace("b7ad6b7169203331", "0000000000000000"),
            &TEXT.replace('-', "_"),
            &format!("{TEXT}0"),
            &TEXT[..54],
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_bare_task_has_the_same_trace_wherever_it_runs() {
        let one = TraceContext::of_task("q", "a");
        assert_eq!(one, TraceContext::of_task("q", "a"));
        assert_ne!(one.trace_id(), TraceContext::of_task("qa", "").trace_id());
    }

    #[test]
    fn who_exports_nothing_passes_on_what_came() {
        let came = TraceContext::parse(TEXT).unwrap();
        assert_eq!(TraceContext::below(Some(came)), Some(came));
        assert_eq!(TraceContext::below(None), None);
        assert_eq!(came.span_id(), None);
    }

    #[test]
    fn a_scope_is_left_again() {
        let about = About { task_id: "t".into(), queue: None, kind: Some("k".into()), attempt: 2 };
        let scope = Scope::new(about, TraceContext::parse(TEXT));
        let said = || {
            let mut said = String::new();
            fields(|name, value| said.push_str(&format!("{name}={value:?} ")));
            (said, ids())
        };
        assert_eq!(said(), (String::new(), None));
        {
            let _in = scope.enter();
            let (fields, ids) = said();
            assert_eq!(fields, "task_id=Text(\"t\") kind=Text(\"k\") attempt=Number(2) ");
            assert_eq!(ids.unwrap().1, "b7ad6b7169203331");
        }
        assert_eq!(said(), (String::new(), None));
    }
}

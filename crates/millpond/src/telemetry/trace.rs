//! Trace contexts: which trace and span something belongs to, as the header `traceparent` carries it.

use data_encoding::HEXLOWER;
#[cfg(feature = "telemetry")]
use opentelemetry::Context;
#[cfg(feature = "telemetry")]
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use rand::RngExt;
use sha2::{Digest, Sha256};

#[cfg(feature = "telemetry")]
use super::sampling::{is_exported, is_sampled};

/// A W3C trace context (<https://www.w3.org/TR/trace-context/#traceparent-header>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    sampled: bool,
    /// Its span is one of the program's provider.
    in_program: bool,
}

impl TraceContext {
    /// The context of a span that begins a new trace; none where this process exports no spans, so that the next process
    /// that does begins it.
    #[must_use]
    pub fn begin() -> Option<Self> {
        is_exported().then(|| {
            let mut rng = rand::rng();
            let (trace, span) = (rng.random::<u128>() | 1, rng.random::<u64>() | 1);
            Self { trace, span, sampled: is_sampled(None, trace), in_program: false }
        })
    }

    /// The same, sampled in any case: for a span that links to sampled ones.
    #[must_use]
    pub fn begin_sampled() -> Option<Self> {
        Self::begin().map(|begun| Self { sampled: true, ..begun })
    }

    /// The context of the task or span that this thread works on now.
    #[cfg(feature = "telemetry")]
    #[must_use]
    pub fn current() -> Option<Self> {
        Context::map_current(|context| Self::of_context(context.span().span_context()))
    }

    /// As the library has it; none of one that is not valid.
    #[cfg(feature = "telemetry")]
    fn of_context(context: &SpanContext) -> Option<Self> {
        context.is_valid().then(|| Self {
            trace: u128::from_be_bytes(context.trace_id().to_bytes()),
            span: u64::from_be_bytes(context.span_id().to_bytes()),
            sampled: context.is_sampled(),
            in_program: false,
        })
    }

    /// The same of a span that the program's provider has.
    #[cfg(feature = "telemetry")]
    pub(super) fn in_program(context: &SpanContext) -> Option<Self> {
        Self::of_context(context).map(|place| Self { in_program: true, ..place })
    }

    /// None: a program without telemetry has no spans.
    #[cfg(not(feature = "telemetry"))]
    #[must_use]
    pub fn current() -> Option<Self> {
        None
    }

    /// The context of a span of this process below `parent`, or of one that begins a trace.
    #[must_use]
    pub fn below(parent: Option<Self>) -> Option<Self> {
        parent.map(Self::child).or_else(Self::begin)
    }

    /// The context of a task that came without one. It follows from the task's identity, so that all its deliveries and
    /// attempts are in one trace, wherever they run.
    #[must_use]
    pub fn of_task(queue: &str, kind: &str, original_id: &str) -> Self {
        let hash = Sha256::new().chain_update(queue).chain_update([0]).chain_update(kind).chain_update([0]);
        let hash = hash.chain_update(original_id).finalize();
        let number = |bytes: &[u8]| bytes.iter().fold(0_u128, |n, byte| n << 8 | u128::from(*byte));
        let (trace, rest) = hash.split_at(16);
        let (trace, span) = (number(trace) | 1, number(rest));
        let span = u64::try_from(span & u128::from(u64::MAX)).unwrap_or(0) | 1;
        Self { trace, span, sampled: is_sampled(None, trace), in_program: false }
    }

    /// The context of the publish of a task that begins its trace; none where that is not exported. Nothing of it needs to
    /// travel: the worker that runs the task computes the same trace, and with the same sampler the same decision.
    #[must_use]
    pub fn of_publish(queue: &str, kind: &str, original_id: &str) -> Option<Self> {
        let task = is_exported().then(|| Self::of_task(queue, kind, original_id))?;
        task.sampled.then(|| task.child())
    }

    /// The context of a span of this process below this one; this one itself where no such span would be exported, so that
    /// the parent of a span is always one that was.
    #[must_use]
    pub fn child(self) -> Self {
        let sampled = is_exported() && is_sampled(Some(self.sampled), self.trace);
        if sampled { Self { span: rand::rng().random::<u64>() | 1, sampled, in_program: false, ..self } } else { self }
    }

    /// Whether this process exports the span of this context, or its program's provider does.
    #[must_use]
    pub fn is_recorded(self) -> bool {
        self.sampled && (self.in_program || is_exported())
    }

    /// Parses a `traceparent`; none when it is not valid.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let part = |from: usize, to: usize| text.get(from..to);
        let (version, trace, span, flags) = (part(0, 2)?, part(3, 35)?, part(36, 52)?, part(53, 55)?);
        // Later versions may have more after the flags.
        let is_apart = [2, 35, 52, 55].iter().all(|at| text.as_bytes().get(*at).is_none_or(|byte| *byte == b'-'));
        if !is_apart || version == "ff" {
            return None;
        }
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self { sampled, ..Self::of_ids(trace, span)? })
    }

    /// The context of a span that was exported, by its ids in hex.
    #[must_use]
    pub fn of_ids(trace: &str, span: &str) -> Option<Self> {
        if trace.len() != 32 || span.len() != 16 {
            return None;
        }
        let (trace, span) = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
        (trace != 0 && span != 0).then_some(Self { trace, span, sampled: true, in_program: false })
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

    /// The span id, 16 hex digits; none where this process does not export the span.
    #[must_use]
    pub fn span_id(self) -> Option<String> {
        self.is_recorded().then(|| self.span_hex())
    }

    /// The span id, 16 hex digits, whether or not its span is exported.
    pub(super) fn span_hex(self) -> String {
        HEXLOWER.encode(&self.span_bytes())
    }

    pub(super) fn trace_bytes(self) -> [u8; 16] {
        self.trace.to_be_bytes()
    }

    pub(super) fn span_bytes(self) -> [u8; 8] {
        self.span.to_be_bytes()
    }

    /// The same as the library has it.
    #[cfg(feature = "telemetry")]
    pub(super) fn context(self, is_remote: bool) -> SpanContext {
        let flags = if self.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let (trace, span) = (TraceId::from_bytes(self.trace_bytes()), SpanId::from_bytes(self.span_bytes()));
        SpanContext::new(trace, span, flags, is_remote, TraceState::default())
    }
}

/// A program without telemetry exports no spans.
#[cfg(not(feature = "telemetry"))]
fn is_exported() -> bool {
    false
}

/// A program without telemetry samples no trace.
#[cfg(not(feature = "telemetry"))]
fn is_sampled(_by_parent: Option<bool>, _trace: u128) -> bool {
    false
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
        let one = TraceContext::of_task("q", "k", "a");
        assert_eq!(one, TraceContext::of_task("q", "k", "a"));
        for (queue, kind, id) in [("qk", "", "a"), ("q", "ka", ""), ("q", "other", "a"), ("other", "k", "a")] {
            assert_ne!(one.trace_id(), TraceContext::of_task(queue, kind, id).trace_id());
        }
    }

    #[test]
    fn who_exports_nothing_passes_on_what_came() {
        let came = TraceContext::parse(TEXT).unwrap();
        assert_eq!(TraceContext::below(Some(came)), Some(came));
        assert_eq!(TraceContext::below(None), None);
        assert_eq!(came.span_id(), None);
    }
}

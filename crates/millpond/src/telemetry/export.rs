//! The export of spans and log records: they wait in bounded queues for a thread that sends them by OTLP over HTTP. The thread
//! that hands one over never waits, and what cannot be sent is counted.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use opentelemetry::logs::{AnyValue, LogRecord};
use opentelemetry::{Context, InstrumentationScope, Key};
use opentelemetry_otlp::{ExporterBuildError, LogExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::logs::{
    BatchConfigBuilder as LogsConfig, BatchLogProcessor, LogBatch, LogExporter as _, LogProcessor, SdkLogRecord,
};
use opentelemetry_sdk::trace::{Span as SdkSpan, SpanData, SpanProcessor};
use serde_json::{Map, Value};

use super::export_counts::{LOGS, TELEMETRY_QUEUE_MAX, TRACES};
use super::lines::NAMED_AFTER_PLACE;
use super::otlp::{self, Envelope};
use super::otlp_http::OtlpReceiver;
use super::scope::{FieldValue, fields};
use super::span::Span;

/// Spans or log records of one export.
const EXPORT_BATCH_MAX: usize = 1024;
/// How long a span or a log record waits for others before it is exported.
const EXPORT_EVERY: Duration = Duration::from_secs(1);

/// The event name of a line that has none of its own.
const EVENT_NAME_OF_LINES: &str = "millpond.log";

/// Bytes of an encoded span of a child; a larger one is left out.
const CHILD_SPAN_BYTES_MAX: usize = 64 * 1024;

const _: () = assert!(EXPORT_BATCH_MAX * 2 <= TELEMETRY_QUEUE_MAX);

/// The queue of this process's spans, once they are exported.
static SPANS: OnceLock<QueuedSpans> = OnceLock::new();

/// Exports spans through this queue from now on.
pub(super) fn export(spans: QueuedSpans) {
    let _ = SPANS.set(spans);
}

/// Ends a span and hands it to the exporter; call it only for a trace that [is recorded](super::TraceContext::is_recorded). Never
/// waits: when the exporter is behind, the span is counted as dropped.
pub fn record(span: Span) {
    if let (Some(wire), Some(spans)) = (span.end(), SPANS.get()) {
        spans.take(&wire);
    }
}

/// Takes a span that a child process has encoded ([`start_in_child`](super::start_in_child)); what is none is left out.
pub fn record_of_child(scoped: &[u8]) {
    if let Some(spans) = SPANS.get().filter(|_| scoped.len() <= CHILD_SPAN_BYTES_MAX && otlp::is_scoped_span(scoped))
        && TRACES.lets_in()
    {
        spans.0.put(|batch| batch.scoped.extend_from_slice(scoped));
    }
}

/// Sends log records, and counts them.
#[derive(Debug)]
struct CountedLogs(LogExporter);

impl opentelemetry_sdk::logs::LogExporter for CountedLogs {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let count = batch.iter().count();
        let result = self.0.export(batch).await;
        LOGS.left(count, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

/// Encoded spans that are sent together: our own, and those of handlers in their scopes.
#[derive(Debug, Default)]
struct SpanBatch {
    spans: Vec<u8>,
    scoped: Vec<u8>,
    count: usize,
}

#[derive(Debug, Default)]
struct PendingSpans {
    batches: VecDeque<SpanBatch>,
    /// Bytes of spans in the last full batch: the next one is allocated with as many.
    usual_bytes: usize,
    /// What waits is to be sent now; nothing comes after it.
    ends: bool,
    /// Everything was sent.
    ended: bool,
}

impl PendingSpans {
    fn is_due(&self) -> bool {
        self.ends || self.batches.front().is_some_and(|batch| batch.count >= EXPORT_BATCH_MAX)
    }
}

#[derive(Debug, Default)]
struct SpanQueue {
    waiting: Mutex<PendingSpans>,
    changed: Condvar,
}

/// The sending end of the queue of spans. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct QueuedSpans(Arc<SpanQueue>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl QueuedSpans {
    /// Starts the thread that sends the spans; the error is a reason for a person.
    pub(super) fn start(resource: &Resource) -> Result<Self, String> {
        let receiver = OtlpReceiver::from_env(TRACES.signal)?;
        let (queued, envelope) = (Self(Arc::default()), Envelope::new(resource));
        let queue = queued.0.clone();
        let send = move || {
            while let Some(batch) = queue.next() {
                let answer = receiver.send(envelope.request(&batch.spans, &batch.scoped));
                let refused = answer.as_deref().map_or(0, otlp::refused).min(batch.count);
                TRACES.left(batch.count - refused, &answer.map(drop).map_err(OTelSdkError::InternalFailure));
                if refused > 0 {
                    TRACES.left(refused, &Err(OTelSdkError::InternalFailure("the receiver refused some spans".into())));
                }
            }
        };
        std::thread::Builder::new().name("spans".to_owned()).spawn(send).map_err(|e| e.to_string())?;
        Ok(queued)
    }

    /// Takes one of our own spans, encoded.
    pub(super) fn take(&self, span: &[u8]) {
        if TRACES.lets_in() {
            self.0.put(|batch| otlp::span(span, &mut batch.spans));
        }
    }

    /// Sends what waits and ends the thread; returns when everything was sent, or after this time.
    pub(super) fn end(&self, within: Duration) {
        let mut waiting = lock(&self.0.waiting);
        waiting.ends = true;
        self.0.changed.notify_all();
        drop(self.0.changed.wait_timeout_while(waiting, within, |waiting| !waiting.ended));
    }
}

impl SpanQueue {
    fn put(&self, write: impl FnOnce(&mut SpanBatch)) {
        let mut waiting = lock(&self.waiting);
        if waiting.batches.back().is_none_or(|last| last.count >= EXPORT_BATCH_MAX) {
            let spans = Vec::with_capacity(waiting.usual_bytes);
            waiting.batches.push_back(SpanBatch { spans, ..SpanBatch::default() });
        }
        let PendingSpans { batches, usual_bytes, .. } = &mut *waiting;
        if let Some(batch) = batches.back_mut() {
            write(batch);
            batch.count += 1;
            if batch.count == EXPORT_BATCH_MAX {
                *usual_bytes = batch.spans.len();
            }
        }
        if waiting.is_due() {
            self.changed.notify_all();
        }
    }

    /// The next batch to send; none after the last.
    fn next(&self) -> Option<SpanBatch> {
        let mut waiting = lock(&self.waiting);
        loop {
            let waited = self.changed.wait_timeout_while(waiting, EXPORT_EVERY, |waiting| !waiting.is_due());
            (waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if let Some(batch) = waiting.batches.pop_front() {
                return Some(batch);
            }
            if waiting.ends {
                waiting.ended = true;
                self.changed.notify_all();
                return None;
            }
        }
    }
}

/// Spans that a handler makes with `tracing`.
impl SpanProcessor for QueuedSpans {
    fn on_start(&self, _: &mut SdkSpan, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if TRACES.lets_in() {
            self.0.put(|batch| otlp::scoped(span, &mut batch.scoped));
        }
    }

    /// Spans are sent each second anyway.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, within: Duration) -> OTelSdkResult {
        self.end(within);
        Ok(())
    }
}

/// Spans of a handler in a child process, which exports nothing itself: each is encoded and told to its worker.
pub(super) struct ToldSpans(Box<Tell>);

/// What an encoded span is given to.
type Tell = dyn Fn(&[u8]) + Send + Sync;

impl ToldSpans {
    pub(super) fn new(tell: impl Fn(&[u8]) + Send + Sync + 'static) -> Self {
        Self(Box::new(tell))
    }
}

impl fmt::Debug for ToldSpans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ToldSpans")
    }
}

impl SpanProcessor for ToldSpans {
    fn on_start(&self, _: &mut SdkSpan, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        let mut scoped = Vec::new();
        otlp::scoped(span, &mut scoped);
        if scoped.len() <= CHILD_SPAN_BYTES_MAX {
            (self.0)(&scoped);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

fn any_object(object: &Map<String, Value>) -> AnyValue {
    let entries = object.iter().map(|(name, value)| (Key::new(name.clone()), any(value)));
    AnyValue::Map(Box::new(entries.collect()))
}

fn any(value: &Value) -> AnyValue {
    match value {
        Value::Bool(value) => AnyValue::Boolean(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => AnyValue::Int(number),
            (None, Some(number)) => AnyValue::Double(number),
            (None, None) => AnyValue::from(number.to_string()),
        },
        Value::String(text) => AnyValue::from(text.clone()),
        Value::Array(values) => AnyValue::ListAny(Box::new(values.iter().map(any).collect())),
        Value::Object(object) => any_object(object),
        Value::Null => AnyValue::from("null"),
    }
}

/// The queue of log records; each gets the fields of the task that its thread works on.
#[derive(Debug)]
pub(super) struct QueuedLogs(BatchLogProcessor);

impl QueuedLogs {
    /// Starts the thread that sends the records.
    pub(super) fn start(resource: &Resource) -> Result<Self, ExporterBuildError> {
        let mut exporter = LogExporter::builder().with_http().build()?;
        exporter.set_resource(resource);
        let config = LogsConfig::default()
            .with_max_queue_size(TELEMETRY_QUEUE_MAX)
            .with_max_export_batch_size(EXPORT_BATCH_MAX)
            .with_scheduled_delay(EXPORT_EVERY);
        let builder = BatchLogProcessor::builder(CountedLogs(exporter));
        Ok(Self(builder.with_batch_config(config.build()).build()))
    }
}

impl LogProcessor for QueuedLogs {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if !LOGS.lets_in() {
            return;
        }
        // Lines without a name of their own are named by `tracing` after their place in the source.
        if record.event_name().is_some_and(|name| name.starts_with(NAMED_AFTER_PLACE)) {
            record.set_event_name(EVENT_NAME_OF_LINES);
        }
        let mut of_task: Vec<(&'static str, AnyValue)> = Vec::new();
        fields(|name, value| {
            let value = match value {
                FieldValue::Text(text) | FieldValue::Lines(text) => AnyValue::from(text.to_owned()),
                FieldValue::Number(number) => AnyValue::from(i64::from(number)),
                FieldValue::Object(object) => any_object(object),
            };
            of_task.push((name, value));
        });
        let has = |name: &str| record.attributes_iter().any(|(key, _)| key.as_str() == name);
        of_task.retain(|(name, _)| !has(name));
        for (name, value) in of_task {
            record.add_attribute(Key::new(name), value);
        }
        self.0.emit(record, scope);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::KeyValue;
    use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use prost::Message;

    use super::*;

    #[test]
    fn spans_are_sent_in_few_batches_each_in_its_scope() {
        let queued = QueuedSpans(Arc::default());
        let provider = SdkTracerProvider::builder().with_span_processor(queued.clone()).build();
        let mut theirs = provider.tracer("handler").start("step");
        theirs.set_attribute(KeyValue::new("attempt", 1));
        theirs.end();
        // Empty spans will do: only their number counts.
        (0..EXPORT_BATCH_MAX).for_each(|_| queued.take(&[]));
        lock(&queued.0.waiting).ends = true;
        let (first, second) = (queued.0.next().unwrap(), queued.0.next().unwrap());
        assert_eq!((first.count, second.count, queued.0.next().is_none()), (EXPORT_BATCH_MAX, 1, true));
        assert!(lock(&queued.0.waiting).ended);
        let request = Envelope::new(&Resource::builder_empty().build()).request(&first.spans, &first.scoped);
        let read = ExportTraceServiceRequest::decode(request.as_slice()).unwrap();
        let [ours, theirs] = read.resource_spans[0].scope_spans.as_slice() else { panic!("{read:?}") };
        assert_eq!(ours.spans.len(), EXPORT_BATCH_MAX - 1);
        assert_eq!((theirs.scope.as_ref().unwrap().name.as_str(), theirs.spans.len()), ("handler", 1));
        assert_eq!((theirs.spans[0].name.as_str(), theirs.spans[0].attributes[0].key.as_str()), ("step", "attempt"));
    }
}

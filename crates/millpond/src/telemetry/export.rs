//! The way out: spans and log records wait in bounded queues for a thread that sends them by OTLP over HTTP. Whoever gives
//! one never waits, and what cannot be sent is counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::logs::{AnyValue, LogRecord};
use opentelemetry::{Context, InstrumentationScope, Key};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, OTEL_EXPORTER_OTLP_TIMEOUT, OTEL_EXPORTER_OTLP_TIMEOUT_DEFAULT,
    OTEL_EXPORTER_OTLP_TRACES_TIMEOUT, SpanExporter, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{
    BatchConfigBuilder as LogsConfig, BatchLogProcessor, LogBatch, LogExporter as _, LogProcessor, SdkLogRecord,
};
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};

use super::otlp::{self, Envelope};
use super::trace::{Field, fields};
use crate::limits::{TELEMETRY_BATCH_MAX, TELEMETRY_QUEUE_MAX, TELEMETRY_SEND_EVERY};

/// Counts what waits to be sent, what was sent, and what was lost. Nothing gets past it uncounted: the queue behind it
/// is as long as it lets in.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) signal: &'static str,
    waiting: AtomicUsize,
    sent: AtomicU64,
    dropped: AtomicU64,
    /// The last that was tried was lost, and this was said.
    failing: AtomicBool,
}

pub(super) static TRACES: Gate = Gate::new("traces");
pub(super) static LOGS: Gate = Gate::new("logs");

/// How a signal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) waiting: usize,
    pub(super) sent: u64,
    pub(super) dropped: u64,
}

impl Gate {
    const fn new(signal: &'static str) -> Self {
        Self {
            signal,
            waiting: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            failing: AtomicBool::new(false),
        }
    }

    /// Whether there is room for one more; where there is none it counts as dropped.
    fn lets_in(&self) -> bool {
        let more = |waiting| (waiting < TELEMETRY_QUEUE_MAX).then_some(waiting + 1);
        let room = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if !room {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        room
    }

    fn left(&self, count: usize, result: &OTelSdkResult) {
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        let counter = if result.is_ok() { &self.sent } else { &self.dropped };
        counter.fetch_add(count as u64, Ordering::Relaxed);
        let was = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match result {
            Err(error) if !was => tracing::warn!(
                signal = self.signal,
                %error,
                "telemetry cannot be exported; it is dropped and counted, tasks go on"
            ),
            Ok(()) if was => {
                tracing::info!(signal = self.signal, dropped = self.counted().dropped, "telemetry is exported again");
            }
            _ => {}
        }
    }

    pub(super) fn counted(&self) -> Counted {
        Counted {
            waiting: self.waiting.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

/// Sends log records.
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

/// Spans that are sent together, as they travel: our own, and those of handlers in their scopes.
#[derive(Debug, Default)]
struct Batch {
    spans: Vec<u8>,
    scoped: Vec<u8>,
    count: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    batches: VecDeque<Batch>,
    /// Bytes of spans in the last that was full: the next one takes no more allocations.
    usual_bytes: usize,
    /// All is to be sent, and no more.
    ends: bool,
    /// All was sent.
    ended: bool,
}

impl Waiting {
    fn is_due(&self) -> bool {
        self.ends || self.batches.front().is_some_and(|batch| batch.count >= TELEMETRY_BATCH_MAX)
    }
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// Spans on their way. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct QueuedSpans(Arc<Queue>);

/// The library's exporter knows where to send, with which headers, and what to try again; it is given no spans, and this one
/// puts what is to be sent in the place of its body.
#[derive(Debug)]
struct Post {
    client: reqwest::blocking::Client,
    body: Arc<Mutex<Bytes>>,
}

#[async_trait]
impl HttpClient for Post {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let body = lock(&self.body).clone();
        self.client.send_bytes(request.map(|_| body)).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long one request may take: what a client of one's own must be told.
fn request_timeout() -> Duration {
    let asked = |name| std::env::var(name).ok()?.parse().ok();
    let asked = asked(OTEL_EXPORTER_OTLP_TRACES_TIMEOUT).or_else(|| asked(OTEL_EXPORTER_OTLP_TIMEOUT));
    asked.map_or(OTEL_EXPORTER_OTLP_TIMEOUT_DEFAULT, Duration::from_millis)
}

impl QueuedSpans {
    /// Starts the thread that sends them; an error says what is wrong.
    pub(super) fn start(resource: &Resource) -> Result<Self, String> {
        let client = reqwest::blocking::Client::builder().timeout(request_timeout()).build();
        let body = Arc::<Mutex<Bytes>>::default();
        let post = Post { client: client.map_err(|e| e.to_string())?, body: body.clone() };
        let exporter = SpanExporter::builder().with_http().with_http_client(post).build().map_err(|e| e.to_string())?;
        let (queued, envelope) = (Self(Arc::default()), Envelope::new(resource));
        let queue = queued.0.clone();
        let send = move || {
            while let Some(batch) = queue.next() {
                *lock(&body) = envelope.request(&batch.spans, &batch.scoped).into();
                let result = futures_executor::block_on(exporter.export(Vec::new()));
                TRACES.left(batch.count, &result);
            }
        };
        std::thread::Builder::new().name("spans".to_owned()).spawn(send).map_err(|e| e.to_string())?;
        Ok(queued)
    }

    /// Takes one of ours, as it travels.
    pub(super) fn take(&self, span: &[u8]) {
        if TRACES.lets_in() {
            self.0.put(|batch| otlp::span(span, &mut batch.spans));
        }
    }

    /// Sends what waits, and then no more; it is over when all was sent, or after this time.
    pub(super) fn end(&self, within: Duration) {
        let mut waiting = lock(&self.0.waiting);
        waiting.ends = true;
        self.0.changed.notify_all();
        drop(self.0.changed.wait_timeout_while(waiting, within, |waiting| !waiting.ended));
    }
}

impl Queue {
    fn put(&self, write: impl FnOnce(&mut Batch)) {
        let mut waiting = lock(&self.waiting);
        if waiting.batches.back().is_none_or(|last| last.count >= TELEMETRY_BATCH_MAX) {
            let spans = Vec::with_capacity(waiting.usual_bytes);
            waiting.batches.push_back(Batch { spans, ..Batch::default() });
        }
        let Waiting { batches, usual_bytes, .. } = &mut *waiting;
        if let Some(batch) = batches.back_mut() {
            write(batch);
            batch.count += 1;
            if batch.count == TELEMETRY_BATCH_MAX {
                *usual_bytes = batch.spans.len();
            }
        }
        if waiting.is_due() {
            self.changed.notify_all();
        }
    }

    /// What is to be sent next; none when all was sent that there will be.
    fn next(&self) -> Option<Batch> {
        let mut waiting = lock(&self.waiting);
        loop {
            let waited = self.changed.wait_timeout_while(waiting, TELEMETRY_SEND_EVERY, |waiting| !waiting.is_due());
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
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if TRACES.lets_in() {
            self.0.put(|batch| otlp::scoped(span, &mut batch.scoped));
        }
    }

    /// They are sent each second anyway.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, within: Duration) -> OTelSdkResult {
        self.end(within);
        Ok(())
    }
}

/// Log records on their way; they get the fields of the task that their thread works on.
#[derive(Debug)]
pub(super) struct QueuedLogs(BatchLogProcessor);

impl QueuedLogs {
    /// Starts the thread that sends them.
    pub(super) fn start(resource: &Resource) -> Result<Self, ExporterBuildError> {
        let mut exporter = LogExporter::builder().with_http().build()?;
        exporter.set_resource(resource);
        let config = LogsConfig::default()
            .with_max_queue_size(TELEMETRY_QUEUE_MAX)
            .with_max_export_batch_size(TELEMETRY_BATCH_MAX)
            .with_scheduled_delay(TELEMETRY_SEND_EVERY);
        let builder = BatchLogProcessor::builder(CountedLogs(exporter));
        Ok(Self(builder.with_batch_config(config.build()).build()))
    }
}

impl LogProcessor for QueuedLogs {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if !LOGS.lets_in() {
            return;
        }
        let mut about: Vec<(&'static str, AnyValue)> = Vec::new();
        fields(|name, value| {
            let value = match value {
                Field::Text(text) => AnyValue::from(text.to_owned()),
                Field::Number(number) => AnyValue::from(i64::from(number)),
            };
            about.push((name, value));
        });
        let said = |name: &str| record.attributes_iter().any(|(key, _)| key.as_str() == name);
        about.retain(|(name, _)| !said(name));
        for (name, value) in about {
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
    use opentelemetry_sdk::error::OTelSdkError;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use prost::Message;

    use super::*;

    #[test]
    fn nothing_is_lost_uncounted() {
        let gate = Gate::new("test");
        let beyond = 7;
        let let_in = (0..TELEMETRY_QUEUE_MAX + beyond).filter(|_| gate.lets_in()).count();
        assert_eq!(let_in, TELEMETRY_QUEUE_MAX);
        gate.left(10, &Ok(()));
        gate.left(5, &Err(OTelSdkError::InternalFailure("no".into())));
        let waiting = TELEMETRY_QUEUE_MAX - 15;
        assert_eq!(gate.counted(), Counted { waiting, sent: 10, dropped: 5 + beyond as u64 });
    }

    #[test]
    fn spans_are_sent_in_few_batches_each_in_its_scope() {
        let queued = QueuedSpans(Arc::default());
        let provider = SdkTracerProvider::builder().with_span_processor(queued.clone()).build();
        let mut theirs = provider.tracer("handler").start("step");
        theirs.set_attribute(KeyValue::new("attempt", 1));
        theirs.end();
        // A span of which nothing is known.
        (0..TELEMETRY_BATCH_MAX).for_each(|_| queued.take(&[]));
        lock(&queued.0.waiting).ends = true;
        let (first, second) = (queued.0.next().unwrap(), queued.0.next().unwrap());
        assert_eq!((first.count, second.count, queued.0.next().is_none()), (TELEMETRY_BATCH_MAX, 1, true));
        assert!(lock(&queued.0.waiting).ended);
        let request = Envelope::new(&Resource::builder_empty().build()).request(&first.spans, &first.scoped);
        let read = ExportTraceServiceRequest::decode(request.as_slice()).unwrap();
        let [ours, theirs] = read.resource_spans[0].scope_spans.as_slice() else { panic!("{read:?}") };
        assert_eq!(ours.spans.len(), TELEMETRY_BATCH_MAX - 1);
        assert_eq!((theirs.scope.as_ref().unwrap().name.as_str(), theirs.spans.len()), ("handler", 1));
        assert_eq!((theirs.spans[0].name.as_str(), theirs.spans[0].attributes[0].key.as_str()), ("step", "attempt"));
    }
}

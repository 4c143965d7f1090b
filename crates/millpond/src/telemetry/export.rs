//! The way out: spans and log records wait in bounded queues for a thread that sends them by OTLP over HTTP. Whoever gives
//! one never waits, and what cannot be sent is counted.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::logs::{AnyValue, LogRecord};
use opentelemetry::{Context, InstrumentationScope, Key};
use opentelemetry_otlp::{ExporterBuildError, LogExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{
    BatchConfigBuilder as LogsConfig, BatchLogProcessor, LogBatch, LogExporter as _, LogProcessor, SdkLogRecord,
};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder as SpansConfig, BatchSpanProcessor, Span, SpanData, SpanExporter as _, SpanProcessor,
};

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

/// Sends spans.
#[derive(Debug)]
struct CountedSpans(SpanExporter);

impl opentelemetry_sdk::trace::SpanExporter for CountedSpans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let result = self.0.export(batch).await;
        TRACES.left(count, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
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

/// Spans on their way. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct QueuedSpans(std::sync::Arc<BatchSpanProcessor>);

impl QueuedSpans {
    /// Starts the thread that sends them.
    pub(super) fn start(resource: &Resource) -> Result<Self, ExporterBuildError> {
        let mut exporter = SpanExporter::builder().with_http().build()?;
        exporter.set_resource(resource);
        let config = SpansConfig::default()
            .with_max_queue_size(TELEMETRY_QUEUE_MAX)
            .with_max_export_batch_size(TELEMETRY_BATCH_MAX)
            .with_scheduled_delay(TELEMETRY_SEND_EVERY);
        let processor = BatchSpanProcessor::new(CountedSpans(exporter), config.build());
        Ok(Self(std::sync::Arc::new(processor)))
    }
}

impl SpanProcessor for QueuedSpans {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if TRACES.lets_in() {
            self.0.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
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
    use opentelemetry_sdk::error::OTelSdkError;

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
}

//! Logs to standard error, and spans over OTLP/HTTP when `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
//! Field names are constants here, because they are the mapping of the log store too. Trace context travels in every
//! message, whether or not anything is exported.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use rand::RngExt;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::LogArgs;

/// Id of a task in logs and spans.
pub const FIELD_TASK_ID: &str = "task_id";
/// Kind of a task.
pub const FIELD_KIND: &str = "kind";
/// Queue of a task.
pub const FIELD_QUEUE: &str = "queue";
/// Number of an attempt.
pub const FIELD_ATTEMPT: &str = "attempt";
/// Name of a worker.
pub const FIELD_WORKER: &str = "worker";
/// W3C trace id.
pub const FIELD_TRACE_ID: &str = "trace_id";

/// A log file that is larger is put aside as `<file>.1`, in bytes.
const LOG_FILE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Log files that are kept beside the newest.
const LOG_FILES_KEPT: usize = 5;
/// A gauge that was not set for so long is not shown.
const GAUGE_IDLE: Duration = Duration::from_secs(10);

/// Keeps the exporter alive; flushes it when dropped.
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Why logs or spans cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("MILLPOND_LOG / --log {filter:?} is not a log filter such as info or warn,millpond=debug: {reason}")]
    Filter {
        /// As typed.
        filter: String,
        /// What the parser says.
        reason: String,
    },
    /// The log file cannot be written.
    #[error("cannot write the log file {path} (--log-file): {reason}", path = path.display())]
    File {
        /// As typed.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The endpoint is not one.
    #[error("cannot export spans (check OTEL_EXPORTER_OTLP_ENDPOINT): {reason}")]
    Exporter {
        /// What the exporter says.
        reason: String,
    },
}

/// Starts logs and, where an endpoint is set, spans; call it once, outside the async runtime's threads or early in main.
///
/// # Errors
/// [`TelemetryError`] names the setting that is wrong.
pub fn start(service: &'static str, args: &LogArgs) -> Result<Telemetry, TelemetryError> {
    // The NATS client tells at INFO what `bus` tells already; a filter that names it has the last word.
    let filter = EnvFilter::try_new(format!("async_nats=warn,{}", args.log))
        .map_err(|e| TelemetryError::Filter { filter: args.log.clone(), reason: e.to_string() })?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    let lines = if args.log_json { lines.json().boxed() } else { lines.compact().boxed() };
    let file = args.log_file.as_deref().map(open).transpose()?.map(|file| {
        let lines = tracing_subscriber::fmt::layer().with_writer(file).with_ansi(false).with_target(false);
        if args.log_json { lines.json().boxed() } else { lines.compact().boxed() }
    });
    let provider = provider(service)?;
    // The exporter's own HTTP client must not trace itself.
    let spans = provider.as_ref().map(|p| {
        let quiet = EnvFilter::new("info,hyper=off,reqwest=off,h2=off,opentelemetry=off,async_nats=off");
        tracing_opentelemetry::layer()
            .with_tracer(p.tracer("millpond"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
            .with_filter(quiet)
    });
    let lines = lines.and_then(file);
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).try_init();
    Ok(Telemetry { provider })
}

/// A log file that is put aside when it is large; written line by line, so that none is lost.
fn open(path: &Path) -> Result<Mutex<FileRotate<AppendCount>>, TelemetryError> {
    // The file is opened for good below, and not told when that fails.
    let tried = std::fs::File::options().create(true).append(true).open(path);
    tried.map_err(|e| TelemetryError::File { path: path.to_owned(), reason: e.to_string() })?;
    let limit = ContentLimit::BytesSurpassed(LOG_FILE_BYTES_MAX);
    let old = AppendCount::new(LOG_FILES_KEPT);
    Ok(Mutex::new(FileRotate::new(path, old, limit, Compression::None, None)))
}

/// Starts logs in a child process of a worker, as lines that the worker reads.
pub fn start_in_child() {
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
    let filter = EnvFilter::try_from_env("MILLPOND_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
}

/// The metrics of this process as text for Prometheus; the first call starts them.
#[must_use]
pub fn metrics() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    let handle = HANDLE.get_or_init(|| {
        // A gauge of something that is gone (a child) is not shown for ever.
        let builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::GAUGE, Some(GAUGE_IDLE));
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        // Another recorder of this process stays; then ours counts nothing.
        let _ = metrics::set_global_recorder(recorder);
        handle
    });
    handle.clone()
}

fn provider(service: &'static str) -> Result<Option<SdkTracerProvider>, TelemetryError> {
    if std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_none_or(|v| v.is_empty()) {
        return Ok(None);
    }
    let exporter =
        SpanExporter::builder().with_http().build().map_err(|e| TelemetryError::Exporter { reason: e.to_string() })?;
    let resource = Resource::builder().with_service_name(service).build();
    Ok(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
}

impl Telemetry {
    /// Sends what is still queued; waits for it, five seconds at the most. Call it before the process ends.
    pub fn flush(&self) {
        if let Some(provider) = &self.provider {
            let _ = provider.shutdown_with_timeout(Duration::from_secs(5));
        }
    }
}

/// A W3C trace context, as it travels in the header `traceparent`
/// (<https://www.w3.org/TR/trace-context/#traceparent-header>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    sampled: bool,
}

impl TraceContext {
    /// A new trace, of a root span that nobody exports.
    #[must_use]
    pub fn random() -> Self {
        let mut rng = rand::rng();
        Self { trace: rng.random::<u128>() | 1, span: rng.random::<u64>() | 1, sampled: false }
    }

    /// Reads a `traceparent`; none when it is not a valid one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version.len() != 2 || version == "ff" || trace.len() != 32 || span.len() != 16 || flags.len() != 2 {
            return None;
        }
        let context = Self {
            trace: u128::from_str_radix(trace, 16).ok()?,
            span: u64::from_str_radix(span, 16).ok()?,
            sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
        };
        (context.trace != 0 && context.span != 0).then_some(context)
    }

    /// The header's value.
    #[must_use]
    pub fn to_traceparent(self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }

    /// The trace id, 32 hex digits.
    #[must_use]
    pub fn trace_id(self) -> String {
        format!("{:032x}", self.trace)
    }

    /// Makes `span` a child of this context, where spans are exported.
    pub fn adopt(self, span: &tracing::Span) {
        let flags = if self.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let remote = SpanContext::new(
            TraceId::from_bytes(self.trace.to_be_bytes()),
            SpanId::from_bytes(self.span.to_be_bytes()),
            flags,
            true,
            TraceState::default(),
        );
        let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(remote));
    }

    /// The context of `span` where spans are exported, else this one's, or a new trace.
    #[must_use]
    pub fn of(span: &tracing::Span) -> Option<Self> {
        let context = span.context();
        let span_context = context.span().span_context().clone();
        span_context.is_valid().then(|| Self {
            trace: u128::from_be_bytes(span_context.trace_id().to_bytes()),
            span: u64::from_be_bytes(span_context.span_id().to_bytes()),
            sampled: span_context.is_sampled(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_reads_back() {
        let context = TraceContext::random();
        assert_eq!(TraceContext::parse(&context.to_traceparent()), Some(context));
        for bad in ["", "00-0-0-00", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }
}

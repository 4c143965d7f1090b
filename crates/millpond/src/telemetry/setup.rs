//! Logs to standard error and to a file; spans and the same logs over OTLP/HTTP when `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
//! A service calls this once, early in `main`.

use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::export::{self, QueuedLogs, QueuedSpans, ToldSpans};
#[cfg(feature = "metrics")]
use super::export_counts::METRICS;
use super::export_counts::{LOGS, TRACES};
use super::lines::LineFormat;
#[cfg(feature = "metrics")]
use super::otlp_metrics;
use super::sampling::{self, Sampling};
use crate::config::{LogArgs, variable};

/// How long the export of the last spans and log records may take before the process ends.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);
/// A log file that is larger is put aside as `<file>.1`, in bytes.
const LOG_FILE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Lines of handlers, and the text of failures, are for the user of the service alone.
const LOG_FILE_MODE: u32 = 0o600;
/// Log files that are kept beside the newest.
const LOG_FILES_KEPT: usize = 5;
/// Logs of HTTP clients, the exporter's own among them: exporting these lines would produce more of them.
const OWN_CLIENT: &str = "hyper=off,hyper_util=off,reqwest=off,h2=off,rustls=off";
/// Logs that would come twice: `bus` logs what the NATS client logs, its tries to connect among it, and `export_counts` the
/// failures of exporters.
const LOGGED_ELSEWHERE: &str = "async_nats=off,opentelemetry=off,opentelemetry_sdk=off,opentelemetry_otlp=off";

/// The exporters of this process; flush them before it ends.
pub struct Telemetry {
    spans: Option<QueuedSpans>,
    logs: Option<SdkLoggerProvider>,
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
    #[error("cannot export {signal} (check OTEL_EXPORTER_OTLP_ENDPOINT): {reason}")]
    Exporter {
        /// `traces`, `logs` or `metrics`.
        signal: &'static str,
        /// What the exporter says.
        reason: String,
    },
    /// The sampler is not one.
    #[error("{0}")]
    Sampler(String),
}

/// Starts logs and, where an endpoint is set, the export of logs and spans. Call it once, early in `main` and not within the
/// async runtime. `instance` is the name of this instance of the service; none: the pod's name, or the process id.
///
/// # Errors
/// [`TelemetryError`] names the setting that is wrong.
pub fn start(service: &'static str, instance: Option<&str>, args: &LogArgs) -> Result<Telemetry, TelemetryError> {
    let instance = instance.map_or_else(|| default_instance(service), str::to_owned);
    let lines = |colours| match args.log_json {
        true => LineFormat::Json(service, instance.clone()),
        false => LineFormat::text(colours),
    };
    let to_stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // It would be told on standard error, and panic where that is full or gone.
        .log_internal_errors(false)
        // The fields of spans are written once for all layers: a line says by itself where it has colours.
        .with_ansi(false)
        .event_format(lines(std::io::stderr().is_terminal()))
        .with_filter(filter(args, "")?);
    let to_file = args.log_file.as_deref().map(open).transpose()?;
    let to_file = to_file.map(|file| {
        let layer = tracing_subscriber::fmt::layer().with_writer(file).log_internal_errors(false).with_ansi(false);
        layer.event_format(lines(false))
    });
    let to_file = to_file.map(|layer| Ok::<_, TelemetryError>(layer.with_filter(filter(args, "")?))).transpose()?;
    // The exporter's HTTP client uses the default cryptography of the process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let resource = resource(service, instance.clone());
    let (spans, tracer) =
        spans(&resource)?.map_or((None, None), |(spans, provider)| (Some(spans), Some(handler_spans(&provider))));
    if spans.is_none() {
        sampling::export(None);
    }
    #[cfg(feature = "metrics")]
    if is_wanted("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_METRICS_EXPORTER") {
        otlp_metrics::export(&resource)
            .map_err(|reason| TelemetryError::Exporter { signal: METRICS.signal, reason })?;
    }
    let logs = logs(&resource)?;
    let exported = match &logs {
        Some(provider) => Some(OpenTelemetryTracingBridge::new(provider).with_filter(filter(args, OWN_CLIENT)?)),
        None => None,
    };
    let layers = tracing_subscriber::registry().with(to_stderr).with(to_file).with(tracer).with(exported);
    let _ = layers.try_init();
    Ok(Telemetry { spans, logs })
}

/// Makes spans of those that handlers make with `tracing`: of our own none is made so.
fn handler_spans<S: Subscriber + for<'a> LookupSpan<'a>>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S> {
    let quiet = EnvFilter::new(format!("info,{OWN_CLIENT},sqlx=off,{LOGGED_ELSEWHERE}"));
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("handler"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_target(false)
        .with_filter(quiet)
}

/// The log filter. A directive of the user goes before the built-in ones for the same target.
fn filter(args: &LogArgs, also: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(format!("{LOGGED_ELSEWHERE},{},{also}", args.log))
        .map_err(|e| TelemetryError::Filter { filter: args.log.clone(), reason: e.to_string() })
}

/// Opens a log file that is put aside when it is large. It is written line by line, so that none is lost.
fn open(path: &Path) -> Result<Mutex<FileRotate<AppendCount>>, TelemetryError> {
    // `FileRotate` opens the file as well, and does not report a failure.
    let mut options = std::fs::File::options();
    options.read(true).create(true).append(true).mode(LOG_FILE_MODE);
    options.open(path).map_err(|e| TelemetryError::File { path: path.to_owned(), reason: e.to_string() })?;
    let limit = ContentLimit::BytesSurpassed(LOG_FILE_BYTES_MAX);
    let old = AppendCount::new(LOG_FILES_KEPT);
    Ok(Mutex::new(FileRotate::new(path, old, limit, Compression::None, Some(options))))
}

/// Starts logs in a child process of a worker, as JSON lines that the worker parses. Where the worker exports spans, `tell` is given
/// each span below an attempt, encoded for [`record_of_child`](super::record_of_child): a child exports nothing itself.
pub fn start_in_child(tell: Option<impl Fn(&[u8]) + Send + Sync + 'static>) {
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
    let lines = lines.log_internal_errors(false);
    let filter = EnvFilter::try_from_env("MILLPOND_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let tracer = tell.map(|tell| {
        // The worker has decided which attempts are traced, and what is of no attempt belongs to nothing.
        let sampler = Sampler::ParentBased(Box::new(Sampler::AlwaysOff));
        let told = ToldSpans::new(tell);
        let provider = SdkTracerProvider::builder().with_span_processor(told).with_sampler(sampler).build();
        let layer = handler_spans(&provider);
        set_global(provider);
        layer
    });
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).with(tracer).try_init();
}

/// Makes a provider that of the process, for handlers and libraries that take it from the API, and W3C trace contexts what they
/// send and read.
fn set_global(provider: SdkTracerProvider) {
    opentelemetry::global::set_tracer_provider(provider);
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
}

/// Whether a signal has an endpoint and is not switched off.
fn is_wanted(endpoint: &str, exporter: &str) -> bool {
    let somewhere = variable("OTEL_EXPORTER_OTLP_ENDPOINT").or_else(|| variable(endpoint)).is_some();
    let is_off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    somewhere && !is_off && variable(exporter).is_none_or(|value| value != "none")
}

fn spans(resource: &Resource) -> Result<Option<(QueuedSpans, SdkTracerProvider)>, TelemetryError> {
    if !is_wanted("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER") {
        return Ok(None);
    }
    let (name, ratio) = (variable("OTEL_TRACES_SAMPLER"), variable("OTEL_TRACES_SAMPLER_ARG"));
    let sampling = Sampling::new(name.as_deref(), ratio.as_deref()).map_err(TelemetryError::Sampler)?;
    let failed = |reason| TelemetryError::Exporter { signal: TRACES.signal, reason };
    let queued = QueuedSpans::start(resource).map_err(failed)?;
    let provider = SdkTracerProvider::builder()
        .with_span_processor(queued.clone())
        .with_sampler(sampling.clone().sampler())
        .with_resource(resource.clone())
        .build();
    set_global(provider.clone());
    export::export(queued.clone());
    sampling::export(Some(sampling));
    Ok(Some((queued, provider)))
}

fn logs(resource: &Resource) -> Result<Option<SdkLoggerProvider>, TelemetryError> {
    if !is_wanted("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "OTEL_LOGS_EXPORTER") {
        return Ok(None);
    }
    let queued = QueuedLogs::start(resource)
        .map_err(|e| TelemetryError::Exporter { signal: LOGS.signal, reason: e.to_string() })?;
    Ok(Some(SdkLoggerProvider::builder().with_log_processor(queued).with_resource(resource.clone()).build()))
}

fn default_instance(service: &str) -> String {
    variable("POD_NAME").unwrap_or_else(|| format!("{service}-{}", std::process::id()))
}

/// The resource that describes this process. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` go first.
fn resource(service: &'static str, instance: String) -> Resource {
    let mut ours = vec![
        KeyValue::new("service.name", service),
        KeyValue::new("service.namespace", "millpond"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", instance),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ];
    ours.push(KeyValue::new("host.name", crate::host()));
    for (variable_name, attribute) in [
        ("POD_NAME", "k8s.pod.name"),
        ("POD_UID", "k8s.pod.uid"),
        ("POD_NAMESPACE", "k8s.namespace.name"),
        ("NODE_NAME", "k8s.node.name"),
    ] {
        ours.extend(variable(variable_name).map(|value| KeyValue::new(attribute, value)));
    }
    let resource = Resource::builder_empty().with_attributes(ours);
    let resource = resource.with_detector(Box::new(TelemetryResourceDetector));
    let resource = resource.with_detector(Box::new(EnvResourceDetector::new()));
    match variable("OTEL_SERVICE_NAME") {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}

impl Telemetry {
    /// Sends what still waits, for three seconds at the most, and logs how much was lost. Call it before the process ends, not
    /// within the async runtime.
    pub fn flush(&self) {
        std::thread::scope(|scope| {
            if let Some(spans) = &self.spans {
                scope.spawn(|| spans.end(FLUSH_WITHIN));
            }
            if let Some(logs) = &self.logs {
                scope.spawn(|| logs.shutdown_with_timeout(FLUSH_WITHIN));
            }
        });
        for gate in [&TRACES, &LOGS] {
            let counted = gate.counts();
            let lost = counted.dropped + counted.waiting as u64;
            if lost > 0 {
                tracing::warn!(signal = gate.signal, lost, sent = counted.sent, "not all telemetry could be exported");
            }
        }
    }
}

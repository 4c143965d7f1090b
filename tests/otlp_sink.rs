//! What takes telemetry in the tests: OTLP over HTTP as a Collector takes it, or one that refuses, or never answers.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::Metric;
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::{PATIENCE, Process, free_port, until};

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Takes,
    /// As one that asks twice to come again first.
    IsBusyTwice,
    Refuses,
    Hangs,
}

/// A span that was exported.
#[derive(Debug, Clone)]
pub struct SeenSpan {
    pub name: String,
    pub trace: String,
    pub span: String,
    /// Empty when it is the first of its trace.
    pub parent: String,
    /// Trace and span.
    pub links: Vec<(String, String)>,
    /// Names of its events.
    pub events: Vec<String>,
    pub failed: bool,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
    pub fields: BTreeMap<String, String>,
    pub resource: BTreeMap<String, String>,
    /// The name of its scope, and the conventions that it follows.
    pub scope: (String, String),
}

/// A log record that was exported.
#[derive(Debug, Clone)]
pub struct SeenLog {
    pub message: String,
    /// The name of its event.
    pub event: String,
    pub level: String,
    pub trace: String,
    pub span: String,
    pub fields: BTreeMap<String, String>,
    pub resource: BTreeMap<String, String>,
}

#[derive(Default)]
struct Seen {
    spans: Mutex<Vec<SeenSpan>>,
    logs: Mutex<Vec<SeenLog>>,
    metrics: Mutex<Vec<Metric>>,
    /// The headers of each request that was taken, with its path.
    requests: Mutex<Vec<(String, HeaderMap)>>,
    asked: AtomicBool,
    turned_away: AtomicUsize,
}

/// Listens while it lives.
pub struct Sink {
    seen: Arc<Seen>,
    pub url: String,
    _serving: JoinSet<()>,
    _collector: Option<Process>,
}

impl Sink {
    pub async fn start(mode: Mode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Seen::default());
        let router = match mode {
            Mode::Takes | Mode::IsBusyTwice => {
                let takes = Router::new()
                    .route("/v1/traces", post(take_spans))
                    .route("/v1/logs", post(take_logs))
                    .route("/v1/metrics", post(take_metrics));
                if mode == Mode::Takes { takes } else { takes.layer(from_fn_with_state(seen.clone(), turn_away_two)) }
            }
            Mode::Refuses => Router::new().fallback(async || StatusCode::INTERNAL_SERVER_ERROR),
            Mode::Hangs => Router::new().fallback(async |State(seen): State<Arc<Seen>>| {
                seen.asked.store(true, Ordering::SeqCst);
                std::future::pending::<StatusCode>().await
            }),
        };
        let router = router.with_state(seen.clone());
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { seen, url, _serving: serving, _collector: None }
    }

    /// One that takes. Where `MILLPOND_TEST_OTELCOL` names the program of a real OpenTelemetry Collector, all comes by way of that.
    pub async fn behind_collector() -> Self {
        let sink = Self::start(Mode::Takes).await;
        let Some(program) = std::env::var_os("MILLPOND_TEST_OTELCOL") else { return sink };
        let listen = format!("127.0.0.1:{}", free_port());
        let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/elk/otelcol-passes-on.yaml");
        let mut command = Command::new(program);
        command.args(["--config", config]).env("OTELCOL_LISTEN", &listen).env("OTELCOL_HANDS_ON_TO", &sink.url);
        let collector = Process::start(&mut command);
        until("the Collector", PATIENCE, async || TcpStream::connect(&listen).await.ok()).await;
        Self { url: format!("http://{listen}"), _collector: Some(collector), ..sink }
    }

    /// What a process needs to export there.
    pub fn environment(&self) -> [(&str, &str); 1] {
        [("OTEL_EXPORTER_OTLP_ENDPOINT", &self.url)]
    }

    pub fn spans(&self) -> Vec<SeenSpan> {
        self.seen.spans.lock().unwrap().clone()
    }

    pub fn logs(&self) -> Vec<SeenLog> {
        self.seen.logs.lock().unwrap().clone()
    }

    /// The metrics of all requests, one after the other.
    pub fn metrics(&self) -> Vec<Metric> {
        self.seen.metrics.lock().unwrap().clone()
    }

    /// Paths and headers of the requests.
    pub fn requests(&self) -> Vec<(String, HeaderMap)> {
        self.seen.requests.lock().unwrap().clone()
    }

    /// Whether somebody waits for an answer that never comes.
    pub fn was_asked(&self) -> bool {
        self.seen.asked.load(Ordering::SeqCst)
    }
}

async fn turn_away_two(State(seen): State<Arc<Seen>>, request: Request, next: Next) -> Response {
    match seen.turned_away.fetch_add(1, Ordering::SeqCst) {
        0 => StatusCode::BAD_GATEWAY.into_response(),
        1 => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")]).into_response(),
        _ => next.run(request).await,
    }
}

/// Notes a request; its body, unpacked.
fn noted(seen: &Seen, path: &str, headers: HeaderMap, body: &Bytes) -> Vec<u8> {
    let mut unpacked = body.to_vec();
    if headers.get("content-encoding").is_some_and(|how| how == "gzip") {
        unpacked.clear();
        GzDecoder::new(&body[..]).read_to_end(&mut unpacked).unwrap();
    }
    seen.requests.lock().unwrap().push((path.to_owned(), headers));
    unpacked
}

async fn take_spans(State(seen): State<Arc<Seen>>, headers: HeaderMap, body: Bytes) {
    let body = noted(&seen, "/v1/traces", headers, &body);
    let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
    for of in request.resource_spans {
        let resource = fields(of.resource.unwrap_or_default().attributes);
        let scoped = of.scope_spans.into_iter().flat_map(|scoped| {
            let scope = (scoped.scope.unwrap_or_default().name, scoped.schema_url);
            scoped.spans.into_iter().map(move |span| (span, scope.clone()))
        });
        for (span, scope) in scoped {
            seen.spans.lock().unwrap().push(SeenSpan {
                name: span.name,
                trace: hex(&span.trace_id),
                span: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
                events: span.events.into_iter().map(|event| event.name).collect(),
                failed: span.status.is_some_and(|status| status.code == 2),
                took_ns: span.end_time_unix_nano - span.start_time_unix_nano,
                fields: fields(span.attributes),
                resource: resource.clone(),
                scope,
            });
        }
    }
}

async fn take_metrics(State(seen): State<Arc<Seen>>, headers: HeaderMap, body: Bytes) {
    let body = noted(&seen, "/v1/metrics", headers, &body);
    let request = ExportMetricsServiceRequest::decode(body.as_slice()).unwrap();
    let scopes = request.resource_metrics.into_iter().flat_map(|of| of.scope_metrics);
    seen.metrics.lock().unwrap().extend(scopes.flat_map(|scope| scope.metrics));
}

async fn take_logs(State(seen): State<Arc<Seen>>, headers: HeaderMap, body: Bytes) {
    let body = noted(&seen, "/v1/logs", headers, &body);
    let request = ExportLogsServiceRequest::decode(body.as_slice()).unwrap();
    for of in request.resource_logs {
        let resource = fields(of.resource.unwrap_or_default().attributes);
        for record in of.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
            seen.logs.lock().unwrap().push(SeenLog {
                message: record.body.map(text).unwrap_or_default(),
                event: record.event_name,
                level: record.severity_text,
                trace: hex(&record.trace_id),
                span: hex(&record.span_id),
                fields: fields(record.attributes),
                resource: resource.clone(),
            });
        }
    }
}

fn fields(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes.into_iter().map(|field| (field.key, field.value.map(text).unwrap_or_default())).collect()
}

fn text(value: AnyValue) -> String {
    match value.value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        other => format!("{other:?}"),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

//! The HTTP API: who may ask, what is served, and how errors look. `tasks` publishes one task, `jobs` many; `asked`
//! reads what was said; `doc` is the OpenAPI document, which lists what [`router`] serves because both come from the
//! same routes. Health, metrics and the document need no token.

mod asked;
mod doc;
mod jobs;
mod tasks;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use millpond::bus::Bus;
use millpond::bus::publish::PublishError;
use millpond::client::{Client, ClientError};
use millpond::limits::{HTTP_JOBS_MAX, HTTP_WAITERS_MAX};
use millpond::telemetry::{Metrics, gauge, took};
use millpond::token::Token;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// When the caller should come again, in seconds.
const RETRY_AFTER_S: &str = "1";

/// What every request may use.
pub(crate) struct App {
    pub(crate) client: Client,
    pub(crate) bus: Bus,
    pub(crate) token: Token,
    pub(crate) metrics: Metrics,
    /// A permit for each request that waits for the end of a task.
    pub(crate) waiters: Semaphore,
    /// A permit for each job whose lines are being read or whose results are being written.
    pub(crate) jobs: Arc<Semaphore>,
    /// Cancelled when the service is to end: whoever waits is told.
    pub(crate) shutdown: CancellationToken,
}

impl App {
    pub(crate) fn new(bus: Bus, token: Token, metrics: Metrics, shutdown: CancellationToken) -> Self {
        let (waiters, jobs) = (Semaphore::new(HTTP_WAITERS_MAX), Arc::new(Semaphore::new(HTTP_JOBS_MAX)));
        Self { client: Client::over(bus.clone()), bus, token, metrics, waiters, jobs, shutdown }
    }
}

/// What needs no token.
fn open() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(doc::openapi))
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(show_metrics))
}

/// What needs one.
fn guarded() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(tasks::publish)).routes(routes!(jobs::publish)).routes(routes!(jobs::show))
}

/// Everything that is served.
pub(crate) fn router(app: Arc<App>) -> Router {
    let guarded = guarded().layer(from_fn_with_state(app.clone(), with_token));
    let (routes, _) = open().merge(guarded).split_for_parts();
    routes
        .route_layer(from_fn(counted))
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this path has other methods; GET /openapi.json lists them")
        })
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "no such path; GET /openapi.json lists them"))
        .with_state(app)
}

/// Why a request was refused, as every caller gets it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Refusal {
    /// What is wrong, and what would be right.
    error: String,
    /// So many values from the start of the input are stored without a gap, and run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    stored: Option<u64>,
    /// The job that they belong to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    job: Option<String>,
    #[serde(skip)]
    #[schema(ignore)]
    status: StatusCode,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { error: error.into(), stored: None, job: None, status }
    }

    pub(crate) fn bad(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    pub(crate) fn busy(error: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, error)
    }

    /// What came of a job before it failed.
    pub(crate) fn of_job(self, stored: u64, job: Option<String>) -> Self {
        Self { stored: Some(stored), job, ..self }
    }
}

impl From<&ClientError> for Refusal {
    fn from(refused: &ClientError) -> Self {
        let status = match refused {
            ClientError::Subject(_)
            | ClientError::NoSuchTime { .. }
            | ClientError::BatchInBoundedQueue { .. }
            | ClientError::WaitsTooLong { .. }
            | ClientError::NotAlone
            | ClientError::Input { .. } => StatusCode::BAD_REQUEST,
            ClientError::JobExists { .. }
            | ClientError::AlreadyThere { .. }
            | ClientError::Cancelled { .. }
            | ClientError::OtherJob { .. }
            | ClientError::OtherInput { .. }
            | ClientError::TakenOver { .. } => StatusCode::CONFLICT,
            ClientError::Publish(PublishError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            ClientError::Publish(PublishError::QueueFull { .. }) => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, refused.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status;
        let answer = (status, Json(self));
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                ([(header::RETRY_AFTER, RETRY_AFTER_S)], answer).into_response()
            }
            StatusCode::UNAUTHORIZED => ([(header::WWW_AUTHENTICATE, "Bearer")], answer).into_response(),
            _ => answer.into_response(),
        }
    }
}

async fn with_token(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    if given.is_some_and(|credentials| app.token.is_in(credentials)) {
        next.run(request).await
    } else {
        let text = "send the header `Authorization: Bearer TOKEN` with the producer's token (MILLPOND_TOKEN)";
        Refusal::new(StatusCode::UNAUTHORIZED, text).into_response()
    }
}

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", tag = "service",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain", example = "ok\n")))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether tasks can be published now.
#[utoipa::path(get, path = "/readyz", tag = "service", responses(
    (status = 200, description = "They can", body = String, content_type = "text/plain", example = "ready\n"),
    (status = 503, description = "There is no connection to NATS", body = Refusal, example = json!({"error": "not connected to NATS"}))))]
async fn readyz(State(app): State<Arc<App>>) -> Result<&'static str, Refusal> {
    if app.bus.is_connected() {
        Ok("ready\n")
    } else {
        Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "not connected to NATS"))
    }
}

/// Metrics as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "service",
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain",
        example = "millpond_tasks_published_total{stored=\"yes\"} 12\n")))]
async fn show_metrics(State(app): State<Arc<App>>) -> String {
    let used = |max: usize, free: usize| gauge(max.saturating_sub(free));
    metrics::gauge!("millpond_http_waiters").set(used(HTTP_WAITERS_MAX, app.waiters.available_permits()));
    metrics::gauge!("millpond_http_jobs").set(used(HTTP_JOBS_MAX, app.jobs.available_permits()));
    metrics::gauge!("millpond_connected").set(f64::from(u8::from(app.bus.is_connected())));
    app.metrics.render()
}

/// Counts what was asked, by route; health and metrics too.
async fn counted(path: MatchedPath, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let response = next.run(request).await;
    let (path, status) = (path.as_str().to_owned(), response.status().as_u16().to_string());
    took("millpond_http_request_seconds", &[("path", &path)], started.elapsed());
    metrics::counter!("millpond_http_requests_total", "path" => path, "status" => status).increment(1);
    response
}

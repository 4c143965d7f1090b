//! The HTTP API: who may publish, and what is served. `tasks` publishes one task, `jobs` many, `payloads` stores what
//! is too large for a message, `schedules` changes what recurs; `task_headers` reads the headers that describe a task; `openapi` is
//! the document, which lists what [`router`] serves because both come from the same routes. Health, metrics and the document need no
//! token.

mod jobs;
mod openapi;
mod payloads;
mod schedules;
mod task_headers;
mod tasks;
mod upload;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use millpond::bus::publish::PublishError;
use millpond::bus::read::standstill::StandstillWatch;
use millpond::bus::{Bus, Role};
use millpond::client::{Client, MapError, SubmitError};
use millpond::telemetry::{Metrics, gauge, took};
use millpond::wire::streams::{STREAM_DUE, STREAM_TASKS};
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::guesses::Guesses;
use millpond_service::listen::Peer;
use millpond_service::status_routes::{Status, status_routes, with_fallbacks};
use millpond_service::token::{Token, bearer};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use jobs::JOBS_MAX;
use tasks::WAITERS_MAX;

/// When a caller who was refused for now may come again, in seconds.
const RETRY_AFTER_S: u64 = 1;

/// What every request may use.
pub(crate) struct App {
    pub(crate) client: Client,
    pub(crate) bus: Bus,
    standstill: StandstillWatch,
    pub(crate) token: Token,
    /// Wrong tokens of late.
    pub(crate) guesses: Guesses,
    pub(crate) metrics: Metrics,
    /// A permit for each request that waits for the end of a task.
    pub(crate) waiters: Semaphore,
    /// A permit for each job whose lines are being read or whose results are being written.
    pub(crate) jobs: Arc<Semaphore>,
    /// Cancelled when the service is to end: requests that wait are answered.
    pub(crate) shutdown: CancellationToken,
}

impl App {
    pub(crate) fn new(bus: Bus, token: Token, metrics: Metrics, shutdown: CancellationToken) -> Self {
        let (waiters, jobs) = (Semaphore::new(WAITERS_MAX), Arc::new(Semaphore::new(JOBS_MAX)));
        let client = Client::over(bus.clone());
        let standstill = StandstillWatch::new(&bus, Role::Producer, &[STREAM_TASKS, STREAM_DUE]);
        Self { client, bus, standstill, token, guesses: Guesses::default(), metrics, waiters, jobs, shutdown }
    }
}

impl Status for App {
    async fn complaint(&self) -> Option<String> {
        if !self.bus.is_connected() {
            return Some("not connected to NATS".to_owned());
        }
        self.standstill.complaint().await
    }

    async fn measure(&self) {
        let used = |max: usize, free: usize| gauge(max.saturating_sub(free));
        metrics::gauge!("millpond_http_waiters").set(used(WAITERS_MAX, self.waiters.available_permits()));
        metrics::gauge!("millpond_http_jobs").set(used(JOBS_MAX, self.jobs.available_permits()));
        metrics::gauge!("millpond_connected").set(f64::from(u8::from(self.bus.is_connected())));
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

/// The routes that need no token.
fn open() -> OpenApiRouter<Arc<App>> {
    status_routes().routes(routes!(openapi::openapi))
}

/// The routes that need the token.
fn with_token() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(tasks::publish))
        .routes(routes!(jobs::publish))
        .routes(routes!(jobs::show))
        .routes(routes!(payloads::put))
        .routes(routes!(schedules::put, schedules::delete))
        .routes(routes!(schedules::pause))
        .routes(routes!(schedules::resume))
}

/// Everything that is served.
pub(crate) fn router(app: Arc<App>) -> Router {
    let with_token = with_token().layer(from_fn_with_state(app.clone(), authorize));
    let (routes, _) = open().merge(with_token).split_for_parts();
    with_fallbacks(routes.route_layer(from_fn(counted)), "/openapi.json").with_state(app)
}

/// The answer for a task that was not submitted.
pub(crate) fn submit_error(error: &SubmitError) -> ErrorAnswer {
    let status = match error {
        SubmitError::Subject(_)
        | SubmitError::TaskId(_)
        | SubmitError::Header { .. }
        | SubmitError::StartTimeOutOfRange { .. }
        | SubmitError::BatchInBoundedQueue { .. }
        | SubmitError::StartsAfterPayload { .. }
        | SubmitError::UniqueKeyNotAlone => StatusCode::BAD_REQUEST,
        SubmitError::UniqueKeyTaken { .. } | SubmitError::IdTaken { .. } => StatusCode::CONFLICT,
        SubmitError::Publish(PublishError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
        SubmitError::Publish(PublishError::QueueFull { .. }) => return busy(error.to_string()),
        _ => return unavailable(error.to_string()),
    };
    ErrorAnswer::new(status, error.to_string())
}

/// The answer for a job that could not be begun, or did not come to its end.
pub(crate) fn map_error(error: &MapError) -> ErrorAnswer {
    let status = match error {
        MapError::Submit(error) => return submit_error(error),
        MapError::InvalidValue { .. } => StatusCode::BAD_REQUEST,
        MapError::HistoryUnavailable { .. } => return unavailable(error.to_string()),
        _ => StatusCode::CONFLICT,
    };
    ErrorAnswer::new(status, error.to_string())
}

/// 429, with the time after which the caller may come again.
fn busy(error: impl Into<String>) -> ErrorAnswer {
    ErrorAnswer::busy(RETRY_AFTER_S, error)
}

/// 503, with the time after which the caller may come again.
fn unavailable(error: impl Into<String>) -> ErrorAnswer {
    ErrorAnswer::unavailable(error).retry_after(RETRY_AFTER_S)
}

/// Lets a request through that brings the token.
async fn authorize(
    State(app): State<Arc<App>>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let text = "send the header `Authorization: Bearer TOKEN` with the producer's token (MILLPOND_TOKEN)";
    let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    match given.and_then(bearer) {
        Some(given) if app.token.is(given) => next.run(request).await,
        Some(wrong) => app.guesses.answer(peer, wrong, text).into_response(),
        None => ErrorAnswer::new(StatusCode::UNAUTHORIZED, text).into_response(),
    }
}

/// Counts requests and their time, by route; health and metrics too.
async fn counted(path: MatchedPath, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let response = next.run(request).await;
    let (path, status) = (path.as_str().to_owned(), response.status().as_u16().to_string());
    took("millpond_http_request_seconds", &[("path", &path)], started.elapsed());
    metrics::counter!("millpond_http_requests_total", "path" => path, "status" => status).increment(1);
    response
}

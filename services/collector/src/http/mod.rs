//! The HTTP API: what the console and the CLI use, and what is served. `guard` decides who may ask, `asked` reads what was
//! said, `refusal` is how errors look; `rows` describes what lists show, and `doc` is the OpenAPI document, which lists
//! what [`router`] serves because both come from the same routes.

mod api;
mod asked;
mod bounds;
mod cancel;
mod console;
mod doc;
mod export;
mod filters;
mod guard;
mod letters;
pub(crate) mod live;
mod metrics;
mod operate;
mod refusal;
mod rows;
mod schedules;
mod session;
mod why;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use millpond::bus::Bus;
use millpond::telemetry::Metrics;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) use guard::Tokens;
pub(crate) use session::Failures;

use crate::collect::Health;
use crate::overview::OverviewPoller;
use crate::queues::Queues;
use crate::reconcile::Problems;
use crate::replays::Replays;
use crate::store::Store;
use crate::workers::Workers;
use refusal::Refusal;

/// What every request may use.
pub(crate) struct App {
    pub(crate) store: Store,
    pub(crate) workers: Workers,
    pub(crate) bus: Bus,
    pub(crate) tokens: Tokens,
    /// Logins that failed of late.
    pub(crate) failures: Failures,
    /// A permit for each export that is under way.
    pub(crate) exports: Arc<Semaphore>,
    /// Whether browsers come by TLS.
    pub(crate) by_tls: bool,
    /// Where Kibana is, for the console's links.
    pub(crate) kibana_url: Option<String>,
    pub(crate) metrics: Metrics,
    pub(crate) health: Vec<Arc<Health>>,
    pub(crate) replays: Replays,
    pub(crate) queues: Queues,
    pub(crate) overview: OverviewPoller,
    /// A permit for each stream of events.
    pub(crate) watchers: Arc<Semaphore>,
    /// Cancelled when the service is to end: whoever watches is told.
    pub(crate) shutdown: CancellationToken,
    pub(crate) problems: Problems,
}

type Routes = OpenApiRouter<Arc<App>>;

/// What needs no token, and tells nothing of tasks.
fn open() -> Routes {
    OpenApiRouter::new().routes(routes!(healthz)).routes(routes!(readyz)).routes(routes!(show_metrics))
}

/// What needs no token, under /api/v1.
fn entrance() -> Routes {
    OpenApiRouter::new().routes(routes!(doc::openapi)).routes(routes!(session::login)).routes(routes!(session::logout))
}

/// Everything else: a GET is for viewers and operators, all others for operators (`guard`).
fn guarded() -> Routes {
    OpenApiRouter::new()
        .routes(routes!(session::show))
        .routes(routes!(api::tasks))
        .routes(routes!(api::task))
        .routes(routes!(api::jobs))
        .routes(routes!(api::job))
        .routes(routes!(api::job_results))
        .routes(routes!(api::workers))
        .routes(routes!(api::dead))
        .routes(routes!(api::dead_letter))
        .routes(routes!(export::tasks))
        .routes(routes!(export::dead))
        .routes(routes!(export::job_results))
        .routes(routes!(schedules::list))
        .routes(routes!(why::why))
        .routes(routes!(live::overview))
        .routes(routes!(live::problems))
        .routes(routes!(live::over_time))
        .routes(routes!(live::events))
        .routes(routes!(cancel::job))
        .routes(routes!(cancel::task))
        .routes(routes!(bounds::set))
        .routes(routes!(operate::drain))
        .routes(routes!(letters::retry))
        .routes(routes!(letters::purge))
        .routes(routes!(operate::queues))
        .routes(routes!(operate::pause))
        .routes(routes!(operate::resume))
        .routes(routes!(operate::purge))
}

fn under_api(routes: Routes) -> Routes {
    OpenApiRouter::new().nest("/api/v1", routes)
}

/// Everything that is served.
pub(crate) fn router(app: Arc<App>) -> Router {
    let guarded = guarded().layer(from_fn_with_state(app.clone(), guard::admit));
    let (routes, _) = open().merge(under_api(entrance().merge(guarded))).split_for_parts();
    let other_methods = "this path has other methods; GET /api/v1/openapi.json lists them";
    let other_paths = "no such path; GET /api/v1/openapi.json lists them";
    routes
        .merge(console::router())
        .method_not_allowed_fallback(async move || Refusal::new(StatusCode::METHOD_NOT_ALLOWED, other_methods))
        .fallback(async move || Refusal::new(StatusCode::NOT_FOUND, other_paths))
        .layer(map_response(console::with_headers))
        .with_state(app)
}

/// An error as every caller gets it.
pub(crate) fn error(status: StatusCode, text: &str) -> Response {
    Refusal::new(status, text).into_response()
}

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", tag = "service",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain", example = "ok\n")))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether what ends is stored, and can be read.
#[utoipa::path(get, path = "/readyz", tag = "service", responses(
    (status = 200, description = "It is", body = String, content_type = "text/plain", example = "ready\n"),
    (status = 503, description = "It is not", body = Refusal, example = json!({"error": "not connected to NATS"}))))]
async fn readyz(State(app): State<Arc<App>>) -> Result<&'static str, Refusal> {
    let not = |text: &str| Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, text));
    if !app.bus.is_connected() {
        return not("not connected to NATS");
    }
    if !app.store.is_usable().await {
        return not("the store cannot be read");
    }
    match app.health.iter().find_map(|health| health.complaint()) {
        Some(complaint) => not(&complaint),
        None => Ok("ready\n"),
    }
}

/// Metrics as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "service",
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain",
        example = "millpond_tasks{status=\"dead\"} 3\n")))]
async fn show_metrics(State(app): State<Arc<App>>) -> String {
    metrics::look(&app).await;
    app.metrics.render()
}

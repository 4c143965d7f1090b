//! The HTTP API: what the console and the command line use. `authorize` decides what a caller may do, `openapi` is the
//! document, which lists what [`router`] serves because both come from the same routes. Requests and answers are types of
//! `millpond_api`.

mod authorize;
mod caller;
mod cancel;
mod console_files;
mod dead_letters;
mod explain;
mod export;
mod gauges;
mod monitor;
mod on_ctl;
mod openapi;
mod operate;
mod read;
mod result;
mod session;

use std::fmt::Display;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::{from_fn_with_state, map_response};
use millpond::bus::Bus;
use millpond::telemetry::Metrics;
use millpond_api::overview::ProblemKind;
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::guesses::Guesses;
use millpond_service::status_routes::{Status, status_routes, with_fallbacks};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) use caller::Tokens;
pub(crate) use export::EXPORTS_MAX;
pub(crate) use monitor::WATCHERS_MAX;
pub(crate) use on_ctl::ClientRequests;

use crate::caught_up::caught_up;
use crate::collect::Health;
use crate::overview::OverviewPoller;
use crate::queues::Queues;
use crate::reconcile::Problems;
use crate::replays::Replays;
use crate::store::Store;
use crate::workers::Workers;

/// What every request may use.
pub(crate) struct App {
    pub(crate) store: Store,
    pub(crate) workers: Workers,
    pub(crate) bus: Bus,
    pub(crate) tokens: Tokens,
    /// Wrong tokens of late.
    pub(crate) guesses: Guesses,
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
    /// Cancelled when the service is to end: the streams of events end.
    pub(crate) shutdown: CancellationToken,
    pub(crate) problems: Problems,
}

impl App {
    /// Waits until the store has what the streams hold, unless NATS or the store is away.
    async fn caught_up(&self) {
        if self.bus.is_connected() && !self.health.iter().any(|health| health.store_fails()) {
            caught_up(&self.bus).await;
        }
    }

    /// The first problem of these kinds that is not mended, in a sentence.
    fn problem_of(&self, kinds: &[ProblemKind]) -> Option<String> {
        let rows = self.problems.rows().into_iter();
        rows.filter(|problem| !problem.mended)
            .find(|problem| kinds.contains(&problem.kind))
            .map(|problem| problem.sentence)
    }
}

impl Status for App {
    async fn complaint(&self) -> Option<String> {
        if !self.bus.is_connected() {
            return Some("not connected to NATS".to_owned());
        }
        if !self.store.is_usable().await {
            return Some("the store cannot be read".to_owned());
        }
        let missing = self.problem_of(&[ProblemKind::Missing, ProblemKind::Standstill]);
        missing.or_else(|| self.health.iter().find_map(|health| health.complaint()))
    }

    fn remark(&self) -> Option<String> {
        self.problem_of(&[ProblemKind::NoProducer])
    }

    async fn measure(&self) {
        gauges::measure(self).await;
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

type Routes = OpenApiRouter<Arc<App>>;

/// The routes under /api/v1 that need no token.
fn open() -> Routes {
    OpenApiRouter::new()
        .routes(routes!(openapi::openapi))
        .routes(routes!(session::login))
        .routes(routes!(session::logout))
}

/// All other routes under /api/v1: a GET is for viewers and operators, all others for operators (`authorize`).
fn authorized() -> Routes {
    OpenApiRouter::new()
        .routes(routes!(session::show))
        .routes(routes!(read::tasks))
        .routes(routes!(read::task))
        .routes(routes!(result::show))
        .routes(routes!(read::jobs))
        .routes(routes!(read::job))
        .routes(routes!(read::job_results))
        .routes(routes!(read::workers))
        .routes(routes!(read::dead))
        .routes(routes!(read::dead_letter))
        .routes(routes!(read::queues))
        .routes(routes!(read::schedules))
        .routes(routes!(export::tasks))
        .routes(routes!(export::dead))
        .routes(routes!(export::job_results))
        .routes(routes!(explain::explain))
        .routes(routes!(monitor::overview))
        .routes(routes!(monitor::problems))
        .routes(routes!(monitor::series))
        .routes(routes!(monitor::events))
        .routes(routes!(cancel::job))
        .routes(routes!(cancel::task))
        .routes(routes!(dead_letters::retry))
        .routes(routes!(dead_letters::purge))
        .routes(routes!(operate::pause))
        .routes(routes!(operate::resume))
        .routes(routes!(operate::purge))
        .routes(routes!(operate::set))
        .routes(routes!(operate::remove))
        .routes(routes!(operate::drain))
}

fn under_api(routes: Routes) -> Routes {
    OpenApiRouter::new().nest("/api/v1", routes)
}

/// Everything that is served.
pub(crate) fn router(app: Arc<App>) -> Router {
    let authorized = authorized().layer(from_fn_with_state(app.clone(), authorize::authorize));
    let (routes, _) = status_routes().merge(under_api(open().merge(authorized))).split_for_parts();
    with_fallbacks(routes.merge(console_files::router()), "/api/v1/openapi.json")
        .layer(map_response(console_files::with_headers))
        .with_state(app)
}

/// The answer when the store does not answer; the log has the reason.
fn store_error(fault: &dyn Display) -> ErrorAnswer {
    tracing::error!(error = %fault, "the store cannot be read");
    let text = "the store cannot be read; the collector's log has the reason";
    ErrorAnswer::new(StatusCode::INTERNAL_SERVER_ERROR, text)
}

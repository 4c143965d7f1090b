//! The HTTP API: what the console and the CLI read. All under /api/v1 needs the token; health and metrics do not.

mod api;
mod bounds;
mod cancel;
mod letters;
mod now;
mod operate;
mod schedules;
mod why;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use millpond::bus::Bus;
use serde_json::json;
use subtle::ConstantTimeEq;

use crate::collect::Health;
use crate::queues::Queues;
use crate::reconcile::Problems;
use crate::records::Workers;
use crate::replays::Replays;
use crate::store::Store;

/// What every request may use.
pub(crate) struct App {
    pub(crate) store: Store,
    pub(crate) workers: Workers,
    pub(crate) bus: Bus,
    pub(crate) token: Arc<str>,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) health: Vec<Arc<Health>>,
    pub(crate) replays: Replays,
    pub(crate) queues: Queues,
    pub(crate) problems: Problems,
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/tasks", get(api::tasks))
        .route("/task", get(api::task))
        .route("/jobs", get(api::jobs))
        .route("/jobs/{job}", get(api::job))
        .route("/jobs/{job}/results", get(api::job_results))
        .route("/jobs/{job}/cancel", post(cancel::job))
        .route("/task/cancel", post(cancel::task))
        .route("/workers", get(api::workers))
        .route("/workers/{worker}/drain", post(operate::drain))
        .route("/dead", get(api::dead))
        .route("/dead_letter", get(api::dead_letter))
        .route("/dead/retry", post(letters::retry))
        .route("/dead/purge", post(letters::purge))
        .route("/queues", get(now::queues))
        .route("/queues/{queue}/set", post(bounds::set))
        .route("/queues/{queue}/pause", post(operate::pause))
        .route("/queues/{queue}/resume", post(operate::resume))
        .route("/queues/{queue}/purge", post(operate::purge))
        .route("/problems", get(now::problems))
        .route("/schedules", get(schedules::list))
        .route("/why", get(why::why))
        .layer(from_fn_with_state(app.clone(), with_token));
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(show_metrics))
        .nest("/api/v1", api)
        .fallback(async || error(StatusCode::NOT_FOUND, "no such path; docs/protocol.md and the README list them"))
        .with_state(app)
}

/// An error as every caller gets it.
pub(crate) fn error(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
}

async fn with_token(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let given = given.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default();
    if bool::from(given.as_bytes().ct_eq(app.token.as_bytes())) {
        next.run(request).await
    } else {
        error(
            StatusCode::UNAUTHORIZED,
            "send the header `Authorization: Bearer TOKEN` with the collector's token (MILLPOND_TOKEN)",
        )
    }
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    if !app.bus.is_connected() {
        return error(StatusCode::SERVICE_UNAVAILABLE, "not connected to NATS");
    }
    if !app.store.is_usable().await {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the store cannot be read");
    }
    if let Some(complaint) = app.health.iter().find_map(|health| health.complaint()) {
        return error(StatusCode::SERVICE_UNAVAILABLE, complaint);
    }
    "ready\n".into_response()
}

async fn show_metrics(State(app): State<Arc<App>>) -> Response {
    if let Ok((retrying, dead)) = app.store.unfinished().await {
        for (status, count) in [("retrying", retrying), ("dead", dead)] {
            metrics::gauge!("millpond_tasks", "status" => status).set(u32::try_from(count).unwrap_or(u32::MAX));
        }
    }
    app.metrics.render().into_response()
}

//! What every service answers without a token, and nothing of tasks: `/healthz`, `/readyz` and `/metrics`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use millpond::telemetry::{Metrics, MetricsExport};
use millpond_api::error::ErrorBody;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::error_answer::ErrorAnswer;

/// A service that can be asked how it fares.
pub trait Status: Send + Sync + 'static {
    /// Why it is not ready; none when it is.
    fn complaint(&self) -> impl Future<Output = Option<String>> + Send;

    /// What is wrong that this service does not mend, while it is ready itself; none when nothing is.
    fn remark(&self) -> Option<String> {
        None
    }

    /// Sets the gauges that are measured when metrics are requested.
    fn measure(&self) -> impl Future<Output = ()> + Send;

    /// The metrics of this process.
    fn metrics(&self) -> &Metrics;
}

#[derive(OpenApi)]
#[openapi(paths(healthz, readyz, metrics), components(schemas(ErrorBody)))]
struct Paths;

/// The routes and their description.
#[must_use]
pub fn status_routes<S: Status>() -> OpenApiRouter<Arc<S>> {
    OpenApiRouter::with_openapi(Paths::openapi())
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz::<S>))
        .route("/metrics", get(metrics::<S>))
}

/// Sends the metrics of a service over OTLP, for ever, where they are wanted. At the end of the process what came since the last time
/// is not sent.
pub async fn send_metrics<S: Status>(service: Arc<S>) {
    let Some(export) = MetricsExport::of_process() else { return };
    loop {
        tokio::time::sleep(export.every).await;
        service.measure().await;
        let rendered = service.metrics().render();
        let _ = tokio::task::spawn_blocking(move || export.send(&rendered)).await;
    }
}

/// Answers other methods of known paths, and paths that are not served; `document` is the path of the OpenAPI document.
pub fn with_fallbacks<S: Clone + Send + Sync + 'static>(router: Router<S>, document: &'static str) -> Router<S> {
    let not_allowed = async move || {
        let text = format!("this path has other methods; GET {document} lists them");
        ErrorAnswer::new(StatusCode::METHOD_NOT_ALLOWED, text)
    };
    let not_found = async move || ErrorAnswer::not_found(format!("no such path; GET {document} lists them"));
    router.method_not_allowed_fallback(not_allowed).fallback(not_found)
}

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", tag = "service",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain", example = "ok\n")))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the service can do its work now.
///
/// The collector says on a second line what is late because no producer service runs: it is ready all the same.
#[utoipa::path(get, path = "/readyz", tag = "service", responses(
    (status = 200, description = "It can", body = String, content_type = "text/plain", example = "ready\n"),
    (status = 503, description = "It cannot", body = ErrorBody, example = json!({"error": "not connected to NATS"}))))]
async fn readyz<S: Status>(State(service): State<Arc<S>>) -> Result<String, ErrorAnswer> {
    match service.complaint().await {
        Some(complaint) => Err(ErrorAnswer::unavailable(complaint)),
        None => Ok(service.remark().map_or_else(|| "ready\n".to_owned(), |remark| format!("ready\n{remark}\n"))),
    }
}

/// Metrics as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "service",
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain",
        example = "millpond_connected 1\n")))]
async fn metrics<S: Status>(State(service): State<Arc<S>>) -> String {
    service.measure().await;
    service.metrics().render()
}

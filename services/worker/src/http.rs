//! Health and metrics of this worker over HTTP, for whoever scrapes or probes it; nothing here needs a token, and
//! nothing of tasks is told.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use millpond::bus::Bus;
use millpond::listen::{HttpTls, Listener};
use tokio::task::JoinSet;

use crate::work::Shop;

struct App {
    bus: Bus,
    shop: Arc<Shop>,
    metrics: PrometheusHandle,
}

/// Serves in the background; the address, when there is one to serve on.
///
/// # Errors
/// When the address is taken.
pub(crate) async fn start(
    listen: Option<SocketAddr>,
    tls: HttpTls,
    bus: &Bus,
    shop: &Arc<Shop>,
    background: &mut JoinSet<()>,
) -> anyhow::Result<Option<SocketAddr>> {
    let Some(listen) = listen else { return Ok(None) };
    let listener =
        Listener::bind(listen, tls).await.with_context(|| format!("cannot listen on {listen} (--listen)"))?;
    let address = axum::serve::Listener::local_addr(&listener)?;
    let app = Arc::new(App { bus: bus.clone(), shop: shop.clone(), metrics: millpond::telemetry::metrics() });
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(show_metrics))
        .with_state(app);
    background.spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "health and metrics are not served any more");
        }
    });
    Ok(Some(address))
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    let complaint = if app.shop.draining.is_cancelled() {
        "draining\n"
    } else if app.bus.is_connected() {
        return "ready\n".into_response();
    } else {
        "not connected to NATS\n"
    };
    (StatusCode::SERVICE_UNAVAILABLE, complaint).into_response()
}

async fn show_metrics(State(app): State<Arc<App>>) -> String {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    metrics::gauge!("millpond_slots").set(count(app.shop.lanes.size()));
    metrics::gauge!("millpond_messages_running").set(count(app.shop.lanes.running()));
    for (kind, ended) in app.shop.stats.kinds() {
        for (status, n) in [("done", ended.done), ("failed", ended.failed)] {
            metrics::counter!("millpond_attempts_total", "kind" => kind.clone(), "status" => status).absolute(n);
        }
    }
    for child in app.shop.supervisor.records() {
        let labels = [("child", child.name), ("kind", child.kind)];
        metrics::gauge!("millpond_child_cpu_ratio", &labels).set(child.cpu_percent / 100.0);
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        metrics::gauge!("millpond_child_resident_memory_bytes", &labels).set(child.rss_bytes as f64);
        metrics::gauge!("millpond_child_tasks", &labels).set(u32::try_from(child.done).unwrap_or(u32::MAX));
        metrics::counter!("millpond_child_restarts_total", &labels).absolute(child.restarts.into());
    }
    app.metrics.render()
}

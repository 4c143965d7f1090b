//! Health and metrics of this worker over HTTP, for a scraper or a probe. No request needs a token, and no answer has anything
//! of a task's contents.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use millpond::bus::consume::lease::Leases;
use millpond::bus::read::standstill::StandstillWatch;
use millpond::bus::{Bus, Role};
use millpond::telemetry::{Metrics, MetricsExport, gauge};
use millpond::wire::streams::{STREAM_DUE, STREAM_TASKS};
use millpond_service::listen::HttpSettings;
use millpond_service::server::Bound;
use millpond_service::status_routes::{Status, send_metrics, status_routes};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::WorkerContext;

/// What the health and the metrics of this worker are read from.
struct WorkerStatus {
    bus: Bus,
    standstill: StandstillWatch,
    context: Arc<WorkerContext>,
    leases: Leases,
    metrics: Metrics,
}

/// Whether somebody reads the metrics of this worker.
pub(crate) fn is_measured(listen: Option<SocketAddr>) -> bool {
    listen.is_some() || MetricsExport::of_process().is_some()
}

/// Serves, and sends metrics, in the background until it is aborted. Returns the address, when there is one to serve on.
///
/// # Errors
/// When the address is taken.
pub(crate) async fn start(
    listen: Option<SocketAddr>,
    settings: HttpSettings,
    bus: &Bus,
    context: &Arc<WorkerContext>,
    leases: &Leases,
    background: &mut JoinSet<()>,
) -> anyhow::Result<Option<SocketAddr>> {
    if !is_measured(listen) {
        return Ok(None);
    }
    let (context, leases) = (context.clone(), leases.clone());
    let standstill = StandstillWatch::new(bus, Role::Worker, &[STREAM_TASKS, STREAM_DUE]);
    let status = Arc::new(WorkerStatus { bus: bus.clone(), standstill, context, leases, metrics: Metrics::start() });
    background.spawn(send_metrics(status.clone()));
    let Some(listen) = listen else { return Ok(None) };
    let bound = Bound::new(listen, settings).await?;
    let address = bound.address;
    let mut server = bound.serve(status_routes().with_state(status).into(), CancellationToken::new());
    background.spawn(async move {
        let error = server.failed().await;
        tracing::error!(%error, "health and metrics are not served any more");
    });
    Ok(Some(address))
}

impl Status for WorkerStatus {
    async fn complaint(&self) -> Option<String> {
        if self.context.draining.is_cancelled() {
            return Some("draining".to_owned());
        }
        if !self.bus.is_connected() {
            return Some("not connected to NATS".to_owned());
        }
        self.standstill.complaint().await
    }

    async fn measure(&self) {
        let Self { bus, context, leases, .. } = self;
        for (pool, size, running) in context.pools.each() {
            let pool = || [metrics::Label::new("pool", pool.clone())].to_vec();
            metrics::gauge!("millpond_slots", pool()).set(gauge(size));
            metrics::gauge!("millpond_slots_used", pool()).set(gauge(running));
        }
        metrics::gauge!("millpond_leases_held").set(gauge(leases.held()));
        metrics::gauge!("millpond_leases_listening").set(gauge(leases.listening()));
        metrics::gauge!("millpond_acks_unanswered").set(gauge(leases.unanswered()));
        metrics::gauge!("millpond_connected").set(f64::from(u8::from(bus.is_connected())));
        metrics::gauge!("millpond_draining").set(f64::from(u8::from(context.draining.is_cancelled())));
        for (kind, ended) in context.stats.kinds() {
            for (status, n) in [("done", ended.done), ("failed", ended.failed)] {
                metrics::counter!("millpond_attempts_total", "kind" => kind.clone(), "status" => status).absolute(n);
            }
        }
        for (kind, retried, dead) in context.stats.consequences() {
            let kind = || [metrics::Label::new("kind", kind.to_owned())].to_vec();
            metrics::counter!("millpond_retries_total", kind()).absolute(retried);
            metrics::counter!("millpond_dead_letters_total", kind()).absolute(dead);
        }
        let mut children: BTreeMap<(String, &'static str), u64> = BTreeMap::new();
        for child in context.supervisor.records() {
            *children.entry((child.kind.clone(), child.state.name())).or_default() += 1;
            let labels = [("child", child.name), ("kind", child.kind)];
            metrics::gauge!("millpond_child_cpu_ratio", &labels).set(child.cpu_percent / 100.0);
            metrics::gauge!("millpond_child_resident_memory_bytes", &labels).set(gauge(child.rss_bytes));
            metrics::gauge!("millpond_child_tasks", &labels).set(gauge(child.done));
            metrics::counter!("millpond_child_restarts_total", &labels).absolute(child.restarts.into());
        }
        for ((kind, state), count) in children {
            metrics::gauge!("millpond_children", "kind" => kind, "state" => state).set(gauge(count));
        }
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

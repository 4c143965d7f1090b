//! The gauges that are measured when metrics are requested: the queues, the workers, the store. Counters and times are
//! counted where things happen. There are as many queues as workers serve; no label is a name that anybody may publish.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::{counter, gauge};
use millpond::telemetry::gauge as number;
use millpond_api::workers::WorkerState;

use super::App;

/// How long the server may take to answer about the queues; when it takes longer, they are left out.
const QUEUES_WITHIN: Duration = Duration::from_secs(2);

pub(super) async fn measure(app: &App) {
    if let Ok((retrying, dead)) = app.store.unfinished().await {
        for (status, count) in [("retrying", retrying), ("dead", dead)] {
            gauge!("millpond_tasks", "status" => status).set(number(count));
        }
    }
    if let Ok(bytes) = app.store.bytes().await {
        gauge!("millpond_store_bytes").set(number(bytes));
    }
    let lag_ms = app.health.iter().map(|health| health.lag_ms()).max().unwrap_or(0);
    gauge!("millpond_store_lag_seconds").set(number(lag_ms) / 1e3);
    let mut workers = BTreeMap::from([(WorkerState::Live.name(), 0_u64)]);
    let (mut slots, mut running) = (0, 0);
    for (worker, state) in app.workers.records() {
        *workers.entry(state.name()).or_default() += 1;
        if state == WorkerState::Live {
            slots += u64::from(worker.slots) + u64::from(worker.io_slots);
            running += u64::from(worker.running);
        }
    }
    for (state, count) in workers {
        gauge!("millpond_cluster_workers", "state" => state).set(number(count));
    }
    gauge!("millpond_cluster_slots").set(number(slots));
    gauge!("millpond_cluster_messages_running").set(number(running));
    if let Ok(Ok(queues)) = tokio::time::timeout(QUEUES_WITHIN, app.queues.statuses()).await {
        let now = millpond::now_ms();
        for row in queues.listed {
            let queue = || [metrics::Label::new("queue", row.state.queue.clone())].to_vec();
            let age_ms = row.oldest_ms.map_or(0, |oldest| now - oldest);
            gauge!("millpond_queue_messages_waiting", queue()).set(number(row.state.waiting));
            gauge!("millpond_queue_messages_held", queue()).set(number(row.state.held));
            gauge!("millpond_queue_messages_scheduled", queue()).set(number(row.state.scheduled));
            gauge!("millpond_queue_oldest_age_seconds", queue()).set(number(age_ms.max(0)) / 1e3);
            gauge!("millpond_queue_paused", queue()).set(f64::from(u8::from(row.state.paused)));
            gauge!("millpond_queue_workers", queue()).set(number(row.workers));
            counter!("millpond_queue_messages_arrived_total", queue()).absolute(row.arrived());
            counter!("millpond_queue_messages_delivered_total", queue())
                .absolute(row.state.places.iter().map(|place| place.deliveries).sum());
        }
    }
}

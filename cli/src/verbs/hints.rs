//! What a waiting verb prints on standard error: that no live worker takes its tasks, or that their queue is full.

use std::time::Duration;

use millpond::bus::publish::queue_limits::QueueFill;
use millpond::client::Client;
use millpond::worker_record::{WorkerRecord, built_in_hint};
use millpond_api::workers::{WorkerRow, WorkerState};

use super::worker::list::list;
use crate::api::Api;
use crate::cluster_env::{ClusterEnv, SIGNING_KEY};

/// How long a verb waits before it prints why.
const HINT_AFTER: Duration = Duration::from_secs(3);

/// Prints once, where the collector knows it, that no worker takes the tasks of this kind. Never ends.
pub(super) async fn no_worker(env: &ClusterEnv, queue: &str, kind: &str) {
    tokio::time::sleep(HINT_AFTER).await;
    if let Some(reason) = missing_worker(env, queue, kind).await {
        note!("millpond: still waiting: {reason}");
    }
    std::future::pending::<()>().await;
}

/// Prints once that a queue is full, when it is. Never ends.
pub(super) async fn queue_full(client: &Client, queue: &str) {
    loop {
        tokio::time::sleep(HINT_AFTER).await;
        if let Ok(Some(QueueFill { waiting, max_waiting })) = client.fill(queue).await
            && waiting >= max_waiting
        {
            note!(
                "millpond: queue {queue} is full: {waiting} tasks wait of at most {max_waiting}; waiting for capacity \
                 (`millpond queue ls` shows it)"
            );
            return std::future::pending().await;
        }
    }
}

/// Why no live worker takes tasks of a kind; none when one does, or when the collector does not answer.
pub(super) async fn missing_worker(env: &ClusterEnv, queue: &str, kind: &str) -> Option<String> {
    let workers = list(&Api::new(env).ok()?).await.ok()?;
    let serves = |row: &WorkerRow| row.state == WorkerState::Live && row.record.queues.iter().any(|q| q == queue);
    let serving: Vec<WorkerRecord> = workers.into_iter().filter(serves).map(|row| row.record).collect();
    let Some(first) = serving.first() else {
        return Some(format!(
            "no live worker serves queue {queue}; start one with `millpond worker run --queues {queue}`"
        ));
    };
    if serving.iter().all(|worker| worker.signed_only) && env.get(SIGNING_KEY).is_none() {
        return Some(format!(
            "the workers of queue {queue} run signed tasks only: set {SIGNING_KEY} as they do; \
             `millpond dead ls --reason unsigned` shows what they refused"
        ));
    }
    let knows = |worker: &WorkerRecord| worker.kinds.iter().any(|known| known == kind);
    let known = || first.kinds.join(", ");
    (!serving.iter().any(knows)).then(|| {
        format!("no live worker of queue {queue} knows kind {kind}; known kinds: {}{}", known(), built_in_hint(kind))
    })
}

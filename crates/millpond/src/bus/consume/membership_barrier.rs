//! The membership barrier: workers that were alive before the connection was lost, or before this server process was
//! there, and are not back yet. Until each has renewed its record or left, or has had the time to, "no worker
//! replied" to an ownership query is not believed (bus/consume/lease.rs): the holder may be on its way back.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::bus::Bus;
use crate::bus::read::buckets::{BucketChange, BucketWatch};
use crate::bus::wait_log::RECONNECT_MAX;
use crate::wire::streams::BUCKET_WORKERS;
use crate::worker_record::WORKER_LOST_AFTER;
use crate::worker_record::WorkerRecord;

/// How much longer than it takes to reconnect a worker may need until its record is renewed.
const BACK_MARGIN: Duration = Duration::from_millis(1500);
/// How long the barrier waits for workers that may come back: the longest reconnect of a living worker, and a margin.
const BARRIER_TIMEOUT: Duration = RECONNECT_MAX.saturating_add(BACK_MARGIN);
/// Pause before the bucket is read again when it cannot be read.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(200);

#[derive(Default)]
pub(super) struct MembershipBarrier {
    away: watch::Sender<Away>,
    /// The task that waits for the workers; it is aborted with this.
    waiting: Mutex<JoinSet<()>>,
}

/// The workers that are awaited.
#[derive(Default)]
struct Away {
    /// It is not known yet which workers were alive.
    unknown: bool,
    workers: HashMap<String, Awaited>,
}

struct Awaited {
    queues: Vec<String>,
    /// When the server stored its last record, Unix time in milliseconds.
    stored_ms: i64,
}

impl Away {
    fn is_awaited(&self, queue: &str) -> bool {
        self.unknown || self.workers.values().any(|worker| worker.queues.iter().any(|q| q == queue))
    }
}

impl MembershipBarrier {
    /// The connection is lost: from now on other workers may be away.
    pub(super) fn close(&self) {
        *self.waiting() = JoinSet::new();
        self.away.send_replace(Away { unknown: true, ..Away::default() });
    }

    /// Waits for the workers that were alive at `gap_ms` (Unix time in milliseconds), except the worker `own`.
    pub(super) fn begin(&self, bus: &Bus, own: &str, gap_ms: i64) {
        self.close();
        self.waiting().spawn(wait_for_workers(bus.clone(), own.to_owned(), gap_ms, self.away.clone()));
    }

    /// Whether workers are awaited.
    pub(super) fn is_open(&self) -> bool {
        let away = self.away.borrow();
        away.unknown || !away.workers.is_empty()
    }

    /// Whether a worker that serves the queue is awaited.
    pub(super) fn is_awaited(&self, queue: &str) -> bool {
        self.away.borrow().is_awaited(queue)
    }

    /// Returns when no worker that serves the queue is awaited.
    pub(super) async fn all_back(&self, queue: &str) {
        // The sender lives as long as this barrier.
        let _ = self.away.subscribe().wait_for(|away| !away.is_awaited(queue)).await;
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn wait_for_workers(bus: Bus, own: String, gap_ms: i64, away: watch::Sender<Away>) {
    let within = tokio::time::timeout(BARRIER_TIMEOUT, await_all(&bus, &own, gap_ms, &away)).await;
    if within.is_err() {
        let mut names: Vec<String> = away.borrow().workers.keys().cloned().collect();
        names.sort();
        tracing::info!(workers = names.join(" "), "these workers did not come back; other workers get what they held");
    }
    away.send_replace(Away::default());
}

async fn await_all(bus: &Bus, own: &str, gap_ms: i64, away: &watch::Sender<Away>) {
    let mut watch = BucketWatch::new(bus, BUCKET_WORKERS);
    let records = loop {
        match watch.current().await {
            Ok(records) => break records,
            Err(error) => tracing::debug!(%error, "cannot read yet which workers were alive"),
        }
        tokio::time::sleep(READ_AGAIN_AFTER).await;
    };
    let workers = alive_at(&records, own, gap_ms);
    tracing::debug!(?gap_ms, workers = ?workers.keys(), "these workers are awaited");
    away.send_replace(Away { unknown: false, workers });
    while !away.borrow().workers.is_empty() {
        let change = watch.next().await;
        away.send_if_modified(|away| {
            // A watch that is made anew reports again what was there.
            let is_new =
                away.workers.get(&change.key).is_some_and(|w| change.value.is_none() || change.stored_ms > w.stored_ms);
            is_new && away.workers.remove(&change.key).is_some()
        });
    }
}

/// The workers whose heartbeat was not lost when the gap began. The newest record of before tells when that was.
fn alive_at(records: &[BucketChange], own: &str, gap_ms: i64) -> HashMap<String, Awaited> {
    let lost_after = i64::try_from(WORKER_LOST_AFTER.as_millis()).unwrap_or(i64::MAX);
    let began_ms = records.iter().map(|r| r.stored_ms).filter(|ms| *ms <= gap_ms).max().unwrap_or(gap_ms);
    let mut alive = HashMap::new();
    for change in records.iter().filter(|r| r.key != own && began_ms - r.stored_ms <= lost_after) {
        if let Some(record) = change.record::<WorkerRecord>() {
            alive.insert(change.key.clone(), Awaited { queues: record.queues, stored_ms: change.stored_ms });
        }
    }
    alive
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn change(name: &str, stored_ms: i64, is_there: bool) -> BucketChange {
        let record = json!({
            "name": name, "nonce": "n", "host": "h", "pid": 1, "queues": ["default"], "kinds": [], "slots": 1, "running": 0,
            "held": 0, "draining": false, "done": 0, "failed": 0, "unknown_kinds": [], "started_ms": 0, "heartbeat_ms": 0,
        });
        BucketChange { key: name.to_owned(), value: is_there.then(|| record.to_string().into()), stored_ms }
    }

    #[test]
    fn workers_that_lived_when_the_gap_began_are_awaited() {
        let records = [
            change("own", 99_000, true),
            change("other", 98_000, true),
            change("back already", 160_000, true),
            change("left", 99_000, false),
            change("just lost", 90_999, true),
            change("just not", 91_000, true),
        ];
        // The server was away for a minute: what was lost is counted from when it went, not from when it came.
        let mut awaited: Vec<String> = alive_at(&records, "own", 159_000).into_keys().collect();
        awaited.sort();
        assert_eq!(awaited, ["back already", "just not", "other"]);
        assert!(alive_at(&[], "own", 159_000).is_empty());
    }

    #[test]
    fn only_workers_of_the_queue_are_awaited() {
        let awaited = Awaited { queues: vec!["a".to_owned()], stored_ms: 0 };
        let away = Away { unknown: false, workers: HashMap::from([("w".to_owned(), awaited)]) };
        assert!(away.is_awaited("a") && !away.is_awaited("b"));
        assert!(Away { unknown: true, ..Away::default() }.is_awaited("b"));
    }
}

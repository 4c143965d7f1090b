//! The workers as their records have them, in memory: each with its state and its last five minutes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use millpond::bus::Bus;
use millpond::bus::read::buckets::{BucketChange, BucketWatch};
use millpond::wire::streams::BUCKET_WORKERS;
use millpond::worker_record::{WORKER_HEARTBEAT_EVERY, WorkerRecord};
use millpond_api::workers::{WorkerRow, WorkerSample, WorkerState};

/// How long a lost worker stays listed.
const LOST_SHOWN_FOR: Duration = Duration::from_secs(600);
/// How often it is looked whether nothing was heard of a worker for too long.
const CHECK_SILENT_EVERY: Duration = Duration::from_secs(1);
/// Entries of a worker's history at the most, one for each heartbeat.
const HISTORY_ENTRIES_MAX: usize = 150;
const _: () = assert!(HISTORY_ENTRIES_MAX as u128 * WORKER_HEARTBEAT_EVERY.as_millis() == 300_000, "five minutes");

/// A worker's record, and those before it in short.
struct KnownWorker {
    record: WorkerRecord,
    history: VecDeque<WorkerSample>,
    /// The bucket was read after nothing was heard for too long, and has no newer record.
    is_silent: bool,
}

impl KnownWorker {
    /// Whether the worker is there; none when it was lost so long ago that it is not shown any more.
    fn state(&self, now_ms: i64) -> Option<WorkerState> {
        let age = u128::try_from(now_ms.saturating_sub(self.record.heartbeat_ms)).unwrap_or(0);
        match self.record.draining {
            _ if age >= LOST_SHOWN_FOR.as_millis() => None,
            _ if self.is_silent && self.record.is_lost(now_ms) => Some(WorkerState::Lost),
            true => Some(WorkerState::Draining),
            false => Some(WorkerState::Live),
        }
    }
}

/// The workers' records. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Workers {
    known: Arc<RwLock<BTreeMap<String, KnownWorker>>>,
    version: Arc<AtomicU64>,
}

impl Workers {
    /// All workers by name.
    pub(crate) fn rows(&self) -> Vec<WorkerRow> {
        let now = millpond::now_ms();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let row = |one: &KnownWorker| {
            let history = one.history.iter().cloned().collect();
            Some(WorkerRow { state: one.state(now)?, record: one.record.clone(), history })
        };
        known.values().filter_map(row).collect()
    }

    /// The records of all workers, with their states.
    pub(crate) fn records(&self) -> Vec<(WorkerRecord, WorkerState)> {
        let now = millpond::now_ms();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().filter_map(|one| Some((one.record.clone(), one.state(now)?))).collect()
    }

    /// Differs when a record has changed.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// Follows the bucket for ever. What is heard of it may lag by many seconds after the death of a node: before a worker counts
    /// as lost, all records are read anew.
    pub(crate) async fn follow(self, bus: Bus) {
        let mut watch = BucketWatch::new(&bus, BUCKET_WORKERS);
        let mut tick = tokio::time::interval(CHECK_SILENT_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = watch.next() => {
                    let record = change.record::<WorkerRecord>();
                    self.set(change.key, record);
                }
                _ = tick.tick() => if self.has_unheard() {
                    match watch.current().await {
                        Ok(all) => self.set_all(all),
                        Err(error) => tracing::debug!(%error, "cannot read the records of silent workers, will try again"),
                    }
                }
            }
        }
    }

    /// Whether nothing was heard of a worker for too long, and it is not known yet whether it is there.
    fn has_unheard(&self) -> bool {
        let now = millpond::now_ms();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().any(|one| !one.is_silent && one.record.is_lost(now))
    }

    /// Takes the whole bucket, as it was just read.
    fn set_all(&self, all: Vec<BucketChange>) {
        let names: BTreeSet<String> = all.iter().map(|change| change.key.clone()).collect();
        for change in all {
            let record = change.record::<WorkerRecord>();
            self.set(change.key, record);
        }
        let now = millpond::now_ms();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|name, _| names.contains(name));
        known.values_mut().for_each(|one| one.is_silent = one.record.is_lost(now));
    }

    fn set(&self, name: String, record: Option<WorkerRecord>) {
        let now = millpond::now_ms();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // Workers that were lost long ago are not shown any more.
        known.retain(|_, one| one.state(now).is_some());
        let Some(record) = record else {
            known.remove(&name);
            return;
        };
        let mut history = known.remove(&name).map(|one| one.history).unwrap_or_default();
        // After a loss of the connection all records come again.
        if history.back().is_none_or(|last| last.at_ms < record.heartbeat_ms) {
            history.push_back(WorkerSample {
                at_ms: record.heartbeat_ms,
                cpu_percent: record.cpu_percent + record.children.iter().map(|child| child.cpu_percent).sum::<f64>(),
                rss_bytes: record.rss_bytes + record.children.iter().map(|child| child.rss_bytes).sum::<u64>(),
                running: record.running,
            });
            if history.len() > HISTORY_ENTRIES_MAX {
                history.pop_front();
            }
            self.version.fetch_add(1, Ordering::Relaxed);
        }
        known.insert(name, KnownWorker { record, history, is_silent: false });
    }
}

#[cfg(test)]
mod tests {
    use millpond::worker_record::WORKER_LOST_AFTER;

    use super::*;

    fn record(heartbeat_ms: i64) -> WorkerRecord {
        let text = r#"{"name":"w","nonce":"n","host":"h","pid":1,"queues":["q"],"kinds":["k"],"slots":2,"running":1,"held":1,
            "draining":false,"done":0,"failed":0,"cpu_percent":1.5,"rss_bytes":10,"unknown_kinds":[],"started_ms":0,
            "heartbeat_ms":0,"children":[{"name":"w/k-0","kind":"k","pid":2,"state":"busy","done":0,"restarts":0,
            "cpu_percent":98.5,"rss_bytes":90,"started_ms":0}]}"#;
        WorkerRecord { heartbeat_ms, ..serde_json::from_str(text).unwrap() }
    }

    #[test]
    fn the_history_is_bounded_and_ends_with_the_worker() {
        let (workers, now) = (Workers::default(), millpond::now_ms());
        for beat in 0..2 * HISTORY_ENTRIES_MAX as i64 {
            // Each record comes twice.
            for _ in 0..2 {
                workers.set("w".into(), Some(record(now - 600 + beat)));
            }
        }
        let rows = workers.rows();
        let history = &rows[0].history;
        let last = WorkerSample { at_ms: now - 301, cpu_percent: 100.0, rss_bytes: 100, running: 1 };
        assert_eq!((history.len(), history.last()), (HISTORY_ENTRIES_MAX, Some(&last)));
        assert_eq!(rows[0].state, WorkerState::Live);
        workers.set("w".into(), None);
        workers.set("w".into(), Some(record(now)));
        assert_eq!(workers.rows()[0].history.len(), 1);
        // A worker that was lost long ago is forgotten with the next record of any.
        let long_ago = now - LOST_SHOWN_FOR.as_millis() as i64;
        workers.set("old".into(), Some(record(long_ago)));
        workers.set("w".into(), Some(record(now)));
        assert_eq!(workers.known.read().unwrap().len(), 1);
    }

    #[test]
    fn a_worker_is_lost_when_the_bucket_has_nothing_newer() {
        let (workers, now) = (Workers::default(), millpond::now_ms());
        let old = now - WORKER_LOST_AFTER.as_millis() as i64 - 1000;
        let change = |name: &str, heartbeat_ms: i64| BucketChange {
            key: name.into(),
            value: Some(serde_json::to_vec(&record(heartbeat_ms)).unwrap().into()),
            stored_ms: heartbeat_ms,
        };
        let state = |name: &str| workers.known.read().unwrap().get(name).and_then(|one| one.state(now));
        for name in ["heard", "lags", "gone", "left"] {
            workers.set(name.into(), Some(record(if name == "heard" { now } else { old })));
        }
        // What was heard alone says nothing.
        assert_eq!((state("gone"), workers.has_unheard()), (Some(WorkerState::Live), true));
        workers.set_all(vec![change("heard", now), change("lags", now), change("gone", old)]);
        let live = Some(WorkerState::Live);
        let states = ["heard", "lags", "gone", "left"].map(state);
        assert_eq!((states, workers.has_unheard()), ([live, live, Some(WorkerState::Lost), None], false));
        // It is back.
        workers.set("gone".into(), Some(record(now)));
        assert_eq!(state("gone"), live);
    }
}

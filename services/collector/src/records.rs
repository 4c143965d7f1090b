//! What is watched rather than collected: workers (kept in memory) and jobs (kept in the store).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use millpond::bus::Bus;
use millpond::bus::read::buckets::{BucketWatch, decode};
use millpond::job::{JobRecord, JobState};
use millpond::limits::{HEARTBEAT_EVERY, HEARTBEAT_LOST_AFTER};
use millpond::wire::streams::{BUCKET_JOBS, BUCKET_WORKERS};
use millpond::worker_record::WorkerRecord;
use serde::Serialize;
use serde_json::{Value, json};

use crate::store::Store;

/// How long a lost worker stays listed.
const LOST_SHOWN_FOR: Duration = Duration::from_secs(600);
/// How long a record that cannot be stored is tried again later.
const STORE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How long the history of a worker is kept, one entry for each heartbeat.
const HISTORY_ENTRIES_MAX: usize = 150;

const _: () = assert!(HISTORY_ENTRIES_MAX as u128 * HEARTBEAT_EVERY.as_millis() == 300_000, "five minutes");

/// Whether a worker is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerState {
    /// It takes tasks.
    Live,
    /// It takes nothing more.
    Draining,
    /// Its heartbeat has stopped.
    Lost,
}

impl WorkerState {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Draining => "draining",
            Self::Lost => "lost",
        }
    }
}

/// How a worker and its children fared at one heartbeat.
#[derive(Debug, Clone, Serialize)]
struct Beat {
    at_ms: i64,
    cpu_percent: f64,
    rss_bytes: u64,
    running: u32,
}

/// A worker's record, and those before it in short.
struct Known {
    record: WorkerRecord,
    history: VecDeque<Beat>,
}

/// The workers' records. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Workers {
    known: Arc<RwLock<BTreeMap<String, Known>>>,
    version: Arc<AtomicU64>,
}

impl Workers {
    /// All workers by name, with their state: live, draining or lost.
    pub(crate) fn rows(&self) -> Vec<Value> {
        let now = millpond::now_ms();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let listed = known.values().filter_map(|one| Some((one, state(&one.record, now)?)));
        listed
            .map(|(one, state)| {
                let mut row = json!(one.record);
                if let Some(row) = row.as_object_mut() {
                    row.insert("state".to_owned(), json!(state.name()));
                    row.insert("history".to_owned(), json!(one.history));
                }
                row
            })
            .collect()
    }

    /// The same as records.
    pub(crate) fn records(&self) -> Vec<(WorkerRecord, WorkerState)> {
        let now = millpond::now_ms();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().filter_map(|one| Some((one.record.clone(), state(&one.record, now)?))).collect()
    }

    /// Differs when a record has changed.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// Follows the bucket for ever.
    pub(crate) async fn follow(self, bus: Bus) {
        let mut watch = BucketWatch::new(&bus, BUCKET_WORKERS);
        loop {
            let change = watch.next().await;
            let record = change.value.as_deref().and_then(decode::<WorkerRecord>);
            self.note(change.key, record);
        }
    }

    fn note(&self, name: String, record: Option<WorkerRecord>) {
        let now = millpond::now_ms();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // Nobody is shown those any more.
        known.retain(|_, one| state(&one.record, now).is_some());
        let Some(record) = record else {
            known.remove(&name);
            return;
        };
        let mut history = known.remove(&name).map(|one| one.history).unwrap_or_default();
        // All are told again after a loss of the connection.
        if history.back().is_none_or(|last| last.at_ms < record.heartbeat_ms) {
            history.push_back(Beat {
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
        known.insert(name, Known { record, history });
    }
}

/// Whether it is there; none when it is gone for so long that it is not shown any more.
fn state(record: &WorkerRecord, now_ms: i64) -> Option<WorkerState> {
    let age = u128::try_from(now_ms.saturating_sub(record.heartbeat_ms)).unwrap_or(0);
    match record.draining {
        _ if age >= LOST_SHOWN_FOR.as_millis() => None,
        _ if age > HEARTBEAT_LOST_AFTER.as_millis() => Some(WorkerState::Lost),
        true => Some(WorkerState::Draining),
        false => Some(WorkerState::Live),
    }
}

/// The jobs whose producers still add tasks, as far as their records tell. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct OpenJobs {
    records: Arc<RwLock<BTreeMap<String, JobRecord>>>,
}

impl OpenJobs {
    /// Those whose producer has not been heard of for too long.
    pub(crate) fn stalled(&self) -> Vec<JobRecord> {
        let now = millpond::now_ms();
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let silent = |record: &&JobRecord| u128::try_from(now.saturating_sub(record.heartbeat_ms)).unwrap_or(0);
        records.values().filter(|record| silent(record) > HEARTBEAT_LOST_AFTER.as_millis()).cloned().collect()
    }

    fn note(&self, name: String, record: Option<&JobRecord>) {
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        match record.filter(|record| record.state == JobState::Open) {
            Some(record) => drop(records.insert(name, record.clone())),
            None => drop(records.remove(&name)),
        }
    }
}

/// Follows the jobs' bucket for ever, into the store.
pub(crate) async fn follow_jobs(bus: Bus, store: Store, open: OpenJobs) {
    let mut watch = BucketWatch::new(&bus, BUCKET_JOBS);
    loop {
        let change = watch.next().await;
        let record = change.value.as_deref().and_then(decode::<JobRecord>);
        open.note(change.key, record.as_ref());
        let Some(record) = record else { continue };
        while let Err(error) = store.put_job(&record, change.stored_ms).await {
            tracing::error!(%error, job = %record.job, "a job's record cannot be stored, will try again");
            tokio::time::sleep(STORE_AGAIN_AFTER).await;
        }
    }
}

#[cfg(test)]
mod tests {
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
            // Each is told twice.
            for _ in 0..2 {
                workers.note("w".into(), Some(record(now - 600 + beat)));
            }
        }
        let rows = workers.rows();
        let history = rows[0]["history"].as_array().unwrap();
        let last = json!({ "at_ms": now - 301, "cpu_percent": 100.0, "rss_bytes": 100, "running": 1 });
        assert_eq!((history.len(), history.last()), (HISTORY_ENTRIES_MAX, Some(&last)));
        assert_eq!(rows[0]["state"], "live");
        workers.note("w".into(), None);
        workers.note("w".into(), Some(record(now)));
        assert_eq!(workers.rows()[0]["history"].as_array().unwrap().len(), 1);
        // One that is gone for long is forgotten with the next news of any.
        let long_ago = now - LOST_SHOWN_FOR.as_millis() as i64;
        workers.note("old".into(), Some(record(long_ago)));
        workers.note("w".into(), Some(record(now)));
        assert_eq!(workers.known.read().unwrap().len(), 1);
    }
}

//! What is watched rather than collected: workers (kept in memory) and jobs (kept in the store).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use millpond::bus::Bus;
use millpond::bus::records::{BucketWatch, decode};
use millpond::bus::topology::{BUCKET_JOBS, BUCKET_WORKERS};
use millpond::job::JobRecord;
use millpond::limits::HEARTBEAT_LOST_AFTER;
use millpond::worker_record::WorkerRecord;
use serde_json::{Value, json};

use crate::store::Store;

/// How long a lost worker stays listed.
const LOST_SHOWN_FOR: Duration = Duration::from_secs(600);
/// How long a record that cannot be stored is tried again later.
const STORE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The workers' records. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Workers {
    records: Arc<RwLock<BTreeMap<String, WorkerRecord>>>,
    version: Arc<AtomicU64>,
}

impl Workers {
    /// All workers by name, with their state: live, draining or lost.
    pub(crate) fn rows(&self) -> Vec<Value> {
        let now = millpond::now_ms();
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let listed = records.values().filter_map(|record| Some((record, state_of(record, now)?)));
        listed
            .map(|(record, state)| {
                let mut row = json!(record);
                if let Some(row) = row.as_object_mut() {
                    row.insert("state".to_owned(), json!(state));
                }
                row
            })
            .collect()
    }

    /// Differs when a record has changed.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// The state of each, and how much it runs.
    pub(crate) fn states(&self) -> Vec<(&'static str, u64)> {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let now = millpond::now_ms();
        records.values().filter_map(|record| Some((state_of(record, now)?, record.running.into()))).collect()
    }

    /// Follows the bucket for ever.
    pub(crate) async fn follow(self, bus: Bus) {
        let mut watch = BucketWatch::new(&bus, BUCKET_WORKERS);
        loop {
            let change = watch.next().await;
            let record = change.value.as_deref().and_then(decode::<WorkerRecord>);
            let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
            match record {
                Some(record) => drop(records.insert(change.key, record)),
                None => drop(records.remove(&change.key)),
            }
            self.version.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Live, draining or lost; none for one that was lost long ago.
fn state_of(record: &WorkerRecord, now_ms: i64) -> Option<&'static str> {
    let age = u128::try_from(now_ms.saturating_sub(record.heartbeat_ms)).unwrap_or(0);
    match record.draining {
        _ if age >= LOST_SHOWN_FOR.as_millis() => None,
        _ if age > HEARTBEAT_LOST_AFTER.as_millis() => Some("lost"),
        true => Some("draining"),
        false => Some("live"),
    }
}

/// Follows the jobs' bucket for ever, into the store.
pub(crate) async fn follow_jobs(bus: Bus, store: Store) {
    let mut watch = BucketWatch::new(&bus, BUCKET_JOBS);
    loop {
        let change = watch.next().await;
        let Some(record) = change.value.as_deref().and_then(decode::<JobRecord>) else { continue };
        while let Err(error) = store.put_job(&record, change.stored_ms).await {
            tracing::error!(%error, job = %record.job, "a job's record cannot be stored, will try again");
            tokio::time::sleep(STORE_AGAIN_AFTER).await;
        }
    }
}

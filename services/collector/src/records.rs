//! What is watched rather than collected: workers (kept in memory) and jobs (kept in the store).

use std::collections::BTreeMap;
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
}

impl Workers {
    /// All workers by name, with their state: live, draining or lost.
    pub(crate) fn rows(&self) -> Vec<Value> {
        let now = millpond::now_ms();
        let age = |r: &WorkerRecord| u128::try_from(now.saturating_sub(r.heartbeat_ms)).unwrap_or(0);
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let listed = records.values().filter(|r| age(r) < LOST_SHOWN_FOR.as_millis());
        listed
            .map(|record| {
                let state = match record.draining {
                    _ if age(record) > HEARTBEAT_LOST_AFTER.as_millis() => "lost",
                    true => "draining",
                    false => "live",
                };
                let mut row = json!(record);
                if let Some(row) = row.as_object_mut() {
                    row.insert("state".to_owned(), json!(state));
                }
                row
            })
            .collect()
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
        }
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

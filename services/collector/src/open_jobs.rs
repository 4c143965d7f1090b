//! Jobs as their records have them: each is kept in the store, those that are open in memory too.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt;
use millpond::bus::Bus;
use millpond::bus::error::BusError;
use millpond::bus::read::buckets::BucketWatch;
use millpond::job::{JobRecord, JobState};
use millpond::wire::streams::BUCKET_JOBS;

use crate::store::Store;

/// Records that are stored together, at the most.
const RECORDS_MAX: usize = 500;
/// How long until a record that could not be stored is tried again.
const STORE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A record that is silent for longer was read often enough, in milliseconds.
const READ_UNTIL_MS: i64 = 60_000;

/// The jobs whose producers still add tasks, as far as their records tell. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct OpenJobs {
    records: Arc<RwLock<BTreeMap<String, JobRecord>>>,
}

impl OpenJobs {
    /// Those whose producer has not renewed their record for too long, by what the bucket has now: what is heard of it may lag by many
    /// seconds after the death of a node.
    ///
    /// # Errors
    /// [`BusError`] when the bucket cannot be read: then nobody knows.
    pub(crate) async fn stalled(&self, bus: &Bus) -> Result<Vec<JobRecord>, BusError> {
        let read_since_ms = millpond::now_ms() - READ_UNTIL_MS;
        for record in self.silent().into_iter().filter(|record| record.heartbeat_ms > read_since_ms) {
            let found = bus.job(&record.job).await?;
            self.set(record.job, found.as_ref().map(|found| &found.record));
        }
        Ok(self.silent())
    }

    fn silent(&self) -> Vec<JobRecord> {
        let now = millpond::now_ms();
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        records.values().filter(|record| record.is_stalled(now)).cloned().collect()
    }

    fn set(&self, name: String, record: Option<&JobRecord>) {
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        match record.filter(|record| record.state == JobState::Open) {
            Some(record) => drop(records.insert(name, record.clone())),
            None => drop(records.remove(&name)),
        }
    }
}

/// Follows the jobs' bucket for ever, into the store: what has come by the time of a commit shares it.
pub(crate) async fn follow(bus: Bus, store: Store, open: OpenJobs) {
    let mut watch = BucketWatch::new(&bus, BUCKET_JOBS);
    loop {
        let mut next = Some(watch.next().await);
        let mut records = Vec::new();
        while let Some(change) = next.take() {
            let record = change.record::<JobRecord>();
            open.set(change.key, record.as_ref());
            records.extend(record.map(|record| (record, change.stored_ms)));
            if records.len() < RECORDS_MAX {
                next = watch.next().now_or_never();
            }
        }
        if records.is_empty() {
            continue;
        }
        while let Err(error) = store.put_jobs(&records).await {
            tracing::error!(%error, jobs = records.len(), "records of jobs cannot be stored, will try again");
            tokio::time::sleep(STORE_AGAIN_AFTER).await;
        }
    }
}

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

/// A job whose producer still adds tasks, as far as its record tells.
struct OpenJob {
    record: JobRecord,
    /// The bucket was asked after nothing was heard for too long, and has no newer record.
    is_silent: bool,
}

/// The open jobs. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct OpenJobs {
    jobs: Arc<RwLock<BTreeMap<String, OpenJob>>>,
}

impl OpenJobs {
    /// Those whose producer has not renewed their record for too long, by what the bucket has now: what is heard of it may lag by many
    /// seconds after the death of a node.
    ///
    /// # Errors
    /// [`BusError`] when the bucket cannot be read: then nobody knows.
    pub(crate) async fn stalled(&self, bus: &Bus) -> Result<Vec<JobRecord>, BusError> {
        for record in self.unheard(false) {
            let found = bus.job(&record.job).await?;
            self.set(record.job, found.map(|found| found.record), true);
        }
        Ok(self.unheard(true))
    }

    /// Those of which nothing was heard for too long, and that the bucket was asked for, or not yet.
    fn unheard(&self, is_silent: bool) -> Vec<JobRecord> {
        let now = millpond::now_ms();
        let jobs = self.jobs.read().unwrap_or_else(PoisonError::into_inner);
        let unheard = jobs.values().filter(|job| job.is_silent == is_silent && job.record.is_stalled(now));
        unheard.map(|job| job.record.clone()).collect()
    }

    fn set(&self, name: String, record: Option<JobRecord>, is_read: bool) {
        let mut jobs = self.jobs.write().unwrap_or_else(PoisonError::into_inner);
        match record.filter(|record| record.state == JobState::Open) {
            Some(record) => {
                let is_silent = is_read && record.is_stalled(millpond::now_ms());
                drop(jobs.insert(name, OpenJob { record, is_silent }));
            }
            None => drop(jobs.remove(&name)),
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
            open.set(change.key, record.clone(), false);
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

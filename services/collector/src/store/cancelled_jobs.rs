//! Jobs that were cancelled. One record in RESULTS ends all of a job's tasks that have no result before it in the stream;
//! what comes of them later, a dead letter too, changes nothing any more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use millpond::job::epoch_of;
use millpond::outcome::CancelledJob;
use millpond::wire::subject::TaskSubject;
use millpond_api::tasks::TaskStatus;

use super::Store;
use super::error::Result;
use super::job_names::{job_key, known_epochs, list_job, name_and_epoch};
use super::sql::{Database, Row, Sql, Transaction};

/// The jobs that are cancelled, by name. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct CancelledJobs {
    known: Arc<RwLock<HashMap<String, CancelledJob>>>,
    /// Number of the last record that is known.
    last: Arc<AtomicI64>,
}

const NEWER: &str = "SELECT job, epoch, by, at_ms, n FROM job_cancels WHERE n > ? ORDER BY n";

impl CancelledJobs {
    fn newer(&self) -> Sql<'static> {
        Sql::new(NEWER).bind(self.last.load(Ordering::SeqCst))
    }

    /// Adds these records to those that are known.
    fn add(&self, rows: &[Row]) -> Result<()> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for row in rows {
            let (job, epoch): (String, u32) = (row.get("job")?, row.get("epoch")?);
            // A record that comes again must not hide that of a later epoch.
            if known.get(&job).is_none_or(|before| before.epoch <= epoch) {
                let cancelled = CancelledJob { job: job.clone(), epoch, by: row.get("by")?, at_ms: row.get("at_ms")? };
                known.insert(job, cancelled);
            }
            self.last.fetch_max(row.get("n")?, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Reads the records that are stored and not known yet.
    pub(super) async fn refresh(&self, db: &dyn Database) -> Result<()> {
        self.add(&db.read(self.newer()).await?)
    }

    /// The same in a transaction that writes: it sees every record before it.
    pub(super) async fn refresh_in(&self, transaction: &mut dyn Transaction) -> Result<()> {
        self.add(&transaction.rows(self.newer()).await?)
    }

    /// Whether a task is cancelled with its job; `fresh` are the records that this transaction adds.
    pub(super) fn cover(&self, fresh: &[CancelledJob], job: Option<&str>, id: &str, published_ms: i64) -> bool {
        let Some(job) = job else { return false };
        let covers = |cancelled: &CancelledJob| match epoch_of(job, id) {
            Some(epoch) => epoch <= cancelled.epoch,
            None => published_ms <= cancelled.at_ms,
        };
        if fresh.iter().any(|cancelled| cancelled.job == job && covers(cancelled)) {
            return true;
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        !known.is_empty() && known.get(job).is_some_and(covers)
    }

    /// Whether a job is cancelled, by the store's name of it.
    pub(super) fn contains(&self, key: &str) -> bool {
        let (job, epoch) = name_and_epoch(key);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(job).is_some_and(|cancelled| epoch <= cancelled.epoch.max(1))
    }
}

/// Stores the record, and cancels the tasks of the job that are known and have no result.
pub(super) async fn cancel_job(
    transaction: &mut dyn Transaction,
    cancelled: &CancelledJob,
    subject: &TaskSubject,
) -> Result<()> {
    if cancelled.epoch == 0 {
        // It has no record, and perhaps no task that has ended an attempt: this is all that is known of it.
        list_job(transaction, &cancelled.job, (&subject.queue, &subject.kind), cancelled.at_ms).await?;
    }
    let put = Sql::new(
        "INSERT INTO job_cancels (job, epoch, by, at_ms, n)
         VALUES (?, ?, ?, ?, (SELECT CASE WHEN coalesce(max(n), 0) < ? THEN ? ELSE max(n) + 1 END FROM job_cancels))
         ON CONFLICT (job) DO UPDATE SET epoch = excluded.epoch, by = excluded.by, at_ms = excluded.at_ms, n = excluded.n
         WHERE excluded.epoch >= job_cancels.epoch",
    );
    let put = put.bind(&cancelled.job).bind(cancelled.epoch).bind(&cancelled.by).bind(cancelled.at_ms);
    // Numbered by the clock, so that numbers still grow when all records before are deleted.
    transaction.run(put.bind(millpond::now_ms()).bind(millpond::now_ms())).await?;
    // Those that are known, because a record may name any number.
    for job in known_epochs(transaction, &cancelled.job, cancelled.epoch.max(1)).await? {
        let end = Sql::new("UPDATE tasks SET status = ? WHERE job = ? AND status < 3 AND (? > 0 OR published_ms <= ?)");
        let end = end.bind(TaskStatus::Cancelled).bind(job).bind(cancelled.epoch).bind(cancelled.at_ms);
        transaction.run(end).await?;
    }
    Ok(())
}

impl Store {
    /// Whether an epoch of a job is cancelled.
    pub(crate) fn is_cancelled(&self, job: &str, epoch: u32) -> bool {
        self.cancelled.contains(&job_key(job, epoch))
    }
}

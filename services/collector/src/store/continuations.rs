//! Continuations of jobs: jobs whose end starts a task, which of them have ended, and which of those tasks are stored.

use std::sync::atomic::{AtomicBool, Ordering};

use millpond::bus::operate::control::JobEnded;
use millpond::job::{JobRecord, JobState};
use tokio::sync::Notify;

use super::Store;
use super::error::{Result, saturated};
use super::sql::{Row, Sql, Transaction};

/// Stores that a closed job has a continuation; once, whatever its record says later. False when it has none.
pub(super) async fn store_continuation(transaction: &mut dyn Transaction, record: &JobRecord) -> Result<bool> {
    let (Some(continuation), Some(total), JobState::Closed) = (&record.continuation, record.total, record.state) else {
        return Ok(false);
    };
    let insert = Sql::new(
        "INSERT INTO job_continuations (job, epoch, queue, kind, total) VALUES (?, ?, ?, ?, ?) ON CONFLICT (job, epoch) DO NOTHING",
    );
    let insert = insert.bind(&record.job).bind(record.epoch).bind(&continuation.queue).bind(&continuation.kind);
    transaction.run(insert.bind(saturated(total))).await?;
    Ok(true)
}

/// Refused continuations that are listed at the most.
const REFUSED_LISTED_MAX: i64 = 100;

/// Why there is nothing more to do for a continuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ContinuationEnd {
    /// The server has stored its task.
    Stored,
    /// Its job was cancelled.
    Cancelled,
    /// It is refused whenever it is requested, for this reason.
    Refused(String),
}

/// A continuation that was refused for good.
#[derive(Debug, Clone)]
pub(crate) struct RefusedContinuation {
    pub(crate) job: String,
    pub(crate) queue: String,
    pub(crate) kind: String,
    pub(crate) reason: String,
    /// When, Unix time in milliseconds.
    pub(crate) at_ms: i64,
}

/// Wakes the publisher of continuations when there may be something to publish.
#[derive(Default)]
pub(super) struct ContinuationSignal {
    /// Whether a job with a continuation has not ended.
    ends_matter: AtomicBool,
    changed: Notify,
}

impl ContinuationSignal {
    /// A job with a continuation was stored.
    pub(super) fn job_written(&self) {
        self.ends_matter.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }

    /// Ends were stored. Most of the time there is no such job, and then nobody polls the store after each commit.
    pub(super) fn ends_written(&self) {
        if self.ends_matter.load(Ordering::SeqCst) {
            self.changed.notify_one();
        }
    }
}

impl Store {
    /// Jobs that have ended and whose continuation is not stored yet.
    pub(crate) async fn due_continuations(&self) -> Result<Vec<JobEnded>> {
        // In this order: what is stored meanwhile is either seen here, or wakes the caller again.
        self.continuations.ends_matter.store(false, Ordering::SeqCst);
        let open = self.db.read(Sql::new("SELECT job FROM job_continuations WHERE settled_ms IS NULL LIMIT 1")).await?;
        if open.is_empty() {
            return Ok(Vec::new());
        }
        self.continuations.ends_matter.store(true, Ordering::SeqCst);
        let rows = self.db.read(Sql::new(
            "SELECT job_continuations.job, job_continuations.epoch, job_continuations.queue, job_continuations.kind,
                job_continuations.total, done, dead, cancelled, purged, jobs.record FROM job_continuations
             JOIN job_counts ON job_counts.job =
                CASE WHEN job_continuations.epoch > 1 THEN job_continuations.job || '@' || job_continuations.epoch ELSE job_continuations.job END
             LEFT JOIN jobs ON jobs.job = job_counts.job
             WHERE settled_ms IS NULL AND (done + dead + cancelled + purged >= job_continuations.total OR EXISTS
                (SELECT 1 FROM job_cancels WHERE job_cancels.job = job_continuations.job AND job_cancels.epoch >= job_continuations.epoch))",
        ));
        rows.await?.iter().map(job_ended).collect()
    }

    /// Waits until [`Store::due_continuations`] may have more. One caller may wait.
    pub(crate) async fn continuations_changed(&self) {
        self.continuations.changed.notified().await;
    }

    /// There is nothing more to do for this job: its continuation is stored, or never will be.
    pub(crate) async fn continuation_settled(&self, job: &str, epoch: u32, end: &ContinuationEnd) -> Result<()> {
        let refused = match end {
            ContinuationEnd::Refused(reason) => Some(reason.as_str()),
            ContinuationEnd::Stored | ContinuationEnd::Cancelled => None,
        };
        let mut transaction = self.db.begin().await?;
        let settled = Sql::new(
            "UPDATE job_continuations SET settled_ms = ?, stored = ?, refused = ? WHERE job = ? AND epoch = ?",
        );
        let settled = settled.bind(millpond::now_ms()).bind(*end == ContinuationEnd::Stored).bind(refused);
        transaction.run(settled.bind(job).bind(epoch)).await?;
        transaction.commit().await?;
        self.versions.jobs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Why the continuation of a job was refused for good; none when it was not.
    pub(super) async fn continuation_refused(&self, job: &str, epoch: u32) -> Result<Option<String>> {
        let refused = Sql::new("SELECT refused FROM job_continuations WHERE job = ? AND epoch = ?");
        let rows = self.db.read(refused.bind(job).bind(epoch)).await?;
        rows.first().map_or(Ok(None), |row| row.get("refused"))
    }

    /// Continuations that were refused for good since then, the newest first, a bounded number.
    pub(crate) async fn refused_continuations(&self, since_ms: i64) -> Result<Vec<RefusedContinuation>> {
        let refused = Sql::new(
            "SELECT job, queue, kind, refused, settled_ms FROM job_continuations
             WHERE refused IS NOT NULL AND settled_ms >= ? ORDER BY settled_ms DESC LIMIT ?",
        );
        let rows = self.db.read(refused.bind(since_ms).bind(REFUSED_LISTED_MAX)).await?;
        let read = |row: &Row| {
            Ok(RefusedContinuation {
                job: row.get("job")?,
                queue: row.get("queue")?,
                kind: row.get("kind")?,
                reason: row.get("refused")?,
                at_ms: row.get("settled_ms")?,
            })
        };
        rows.iter().map(read).collect()
    }
}

fn job_ended(row: &Row) -> Result<JobEnded> {
    let (total, done, dead): (u64, u64, u64) = (row.get("total")?, row.get("done")?, row.get("dead")?);
    let cancelled = row.get("cancelled")?;
    let record: Option<JobRecord> = row.optional_json("record")?;
    Ok(JobEnded {
        signature: record.and_then(|record| record.continuation_signature),
        job: row.get("job")?,
        epoch: row.get("epoch")?,
        queue: row.get("queue")?,
        kind: row.get("kind")?,
        total,
        done,
        dead,
        cancelled,
        // A task that ends after all is counted as how it ended.
        purged: row.get::<u64>("purged")?.min(total.saturating_sub(done + dead + cancelled)),
    })
}

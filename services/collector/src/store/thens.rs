//! Jobs whose end is to start a task: which have ended, and which of those tasks are stored.

use std::sync::atomic::{AtomicBool, Ordering};

use millpond::bus::operate::control::JobEnded;
use millpond::job::{JobRecord, JobState};
use tokio::sync::Notify;

use super::Store;
use super::sql::{Sql, Transaction};

/// Notes a closed job that has a task to come; once, whatever its record says later. False when it is none.
pub(super) async fn note(transaction: &mut dyn Transaction, record: &JobRecord) -> anyhow::Result<bool> {
    let (Some(then), Some(total), JobState::Closed) = (&record.then, record.total, record.state) else {
        return Ok(false);
    };
    let note = Sql::new(
        "INSERT INTO job_thens (job, epoch, queue, kind, total) VALUES (?, ?, ?, ?, ?) ON CONFLICT (job, epoch) DO NOTHING",
    );
    let note = note.bind(&record.job).bind(record.epoch).bind(&then.queue).bind(&then.kind);
    transaction.run(note.bind(i64::try_from(total)?)).await?;
    Ok(true)
}

/// Whether ends matter to a job that is to start a task, and the call when they may.
#[derive(Default)]
pub(super) struct Watch {
    ends_matter: AtomicBool,
    changed: Notify,
}

impl Watch {
    /// A job of that kind was written.
    pub(super) fn job_written(&self) {
        self.ends_matter.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }

    /// Ends were written. Most collectors have no such job most of the time, and should not look after each commit.
    pub(super) fn ends_written(&self) {
        if self.ends_matter.load(Ordering::SeqCst) {
            self.changed.notify_one();
        }
    }
}

impl Store {
    /// Jobs that have ended and whose task is not stored yet.
    pub(crate) async fn thens(&self) -> anyhow::Result<Vec<JobEnded>> {
        // In this order: what is written meanwhile is seen here, or calls again.
        self.watch.ends_matter.store(false, Ordering::SeqCst);
        let open = self.db.read(Sql::new("SELECT job FROM job_thens WHERE settled_ms IS NULL LIMIT 1")).await?;
        if open.is_empty() {
            return Ok(Vec::new());
        }
        self.watch.ends_matter.store(true, Ordering::SeqCst);
        let rows = self.db.read(Sql::new(
            "SELECT job_thens.job, job_thens.epoch, job_thens.queue, job_thens.kind, total, done, dead, cancelled,
                purged FROM job_thens
             JOIN job_counts ON job_counts.job =
                CASE WHEN job_thens.epoch > 1 THEN job_thens.job || '@' || job_thens.epoch ELSE job_thens.job END
             WHERE settled_ms IS NULL AND (done + dead + cancelled + purged >= total OR EXISTS
                (SELECT 1 FROM job_cancels WHERE job_cancels.job = job_thens.job AND job_cancels.epoch >= job_thens.epoch))",
        ));
        let rows = rows.await?;
        let ended = rows.iter().map(|row| {
            let (total, done, dead, cancelled) =
                (row.count("total"), row.count("done"), row.count("dead"), row.count("cancelled"));
            JobEnded {
                job: row.string("job"),
                epoch: u32::try_from(row.count("epoch")).unwrap_or(u32::MAX),
                queue: row.string("queue"),
                kind: row.string("kind"),
                total,
                done,
                dead,
                cancelled,
                purged: row.count("purged").min(total.saturating_sub(done + dead + cancelled)),
            }
        });
        Ok(ended.collect())
    }

    /// When it is time to look again. One may wait.
    pub(crate) async fn thens_changed(&self) {
        self.watch.changed.notified().await;
    }

    /// There is nothing more to do for this job: its task is `stored`, or never will be.
    pub(crate) async fn then_settled(&self, job: &str, epoch: u32, stored: bool) -> anyhow::Result<()> {
        let mut transaction = self.db.begin().await?;
        let settled = Sql::new("UPDATE job_thens SET settled_ms = ?, stored = ? WHERE job = ? AND epoch = ?");
        transaction.run(settled.bind(millpond::now_ms()).bind(stored).bind(job).bind(epoch)).await?;
        transaction.commit().await?;
        Ok(())
    }
}

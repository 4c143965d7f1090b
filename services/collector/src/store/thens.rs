//! Jobs whose end is to start a task: which have ended, and which of those tasks are stored.

use std::sync::atomic::{AtomicBool, Ordering};

use millpond::bus::ctl::JobEnded;
use millpond::job::{JobRecord, JobState};
use sqlx::{Row, SqliteConnection};
use tokio::sync::Notify;

use super::Store;

/// Notes a closed job that has a task to come; once, whatever its record says later. False when it is none.
pub(super) async fn note(connection: &mut SqliteConnection, record: &JobRecord) -> anyhow::Result<bool> {
    let (Some(then), Some(total), JobState::Closed) = (&record.then, record.total, record.state) else {
        return Ok(false);
    };
    sqlx::query("INSERT INTO job_thens (job, epoch, queue, kind, total) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING")
        .bind(&record.job)
        .bind(i64::from(record.epoch))
        .bind(&then.queue)
        .bind(&then.kind)
        .bind(i64::try_from(total)?)
        .execute(connection)
        .await?;
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
        let open: Option<i64> = sqlx::query_scalar("SELECT 1 FROM job_thens WHERE settled_ms IS NULL LIMIT 1")
            .fetch_optional(&self.readers)
            .await?;
        if open.is_none() {
            return Ok(Vec::new());
        }
        self.watch.ends_matter.store(true, Ordering::SeqCst);
        let rows = sqlx::query(
            "SELECT job_thens.job, job_thens.epoch, job_thens.queue, job_thens.kind, total, done, dead, cancelled, purged FROM job_thens
             JOIN job_counts ON job_counts.job = iif(job_thens.epoch > 1, job_thens.job || '@' || job_thens.epoch, job_thens.job)
             WHERE settled_ms IS NULL AND (done + dead + cancelled + purged >= total OR EXISTS
                (SELECT 1 FROM job_cancels WHERE job_cancels.job = job_thens.job AND job_cancels.epoch >= job_thens.epoch))",
        )
        .fetch_all(&self.readers)
        .await?;
        let ended = rows.iter().map(|row| {
            let count = |name: &str| anyhow::Ok(u64::try_from(row.try_get::<i64, _>(name)?)?);
            let (total, done, dead, cancelled) = (count("total")?, count("done")?, count("dead")?, count("cancelled")?);
            Ok(JobEnded {
                job: row.try_get("job")?,
                epoch: u32::try_from(row.try_get::<i64, _>("epoch")?)?,
                queue: row.try_get("queue")?,
                kind: row.try_get("kind")?,
                total,
                done,
                dead,
                cancelled,
                purged: count("purged")?.min(total.saturating_sub(done + dead + cancelled)),
            })
        });
        ended.collect()
    }

    /// When it is time to look again. One may wait.
    pub(crate) async fn thens_changed(&self) {
        self.watch.changed.notified().await;
    }

    /// There is nothing more to do for this job: its task is `stored`, or never will be.
    pub(crate) async fn then_settled(&self, job: &str, epoch: u32, stored: bool) -> anyhow::Result<()> {
        let mut writer = self.writer.lock().await;
        sqlx::query("UPDATE job_thens SET settled_ms = ?, stored = ? WHERE job = ? AND epoch = ?")
            .bind(millpond::now_ms())
            .bind(stored)
            .bind(job)
            .bind(i64::from(epoch))
            .execute(&mut *writer)
            .await?;
        Ok(())
    }
}

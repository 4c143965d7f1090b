//! Jobs whose end is to start a task: which have ended, and which of those tasks are stored.

use millpond::bus::ctl::JobEnded;
use millpond::job::{JobRecord, JobState};
use sqlx::{Row, SqliteConnection};

use super::Store;

/// Notes a closed job that has a task to come; once, whatever its record says later.
pub(super) async fn note(connection: &mut SqliteConnection, record: &JobRecord) -> anyhow::Result<()> {
    let (Some(then), Some(total), JobState::Closed) = (&record.then, record.total, record.state) else { return Ok(()) };
    sqlx::query("INSERT INTO job_thens (job, epoch, queue, kind, total) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING")
        .bind(&record.job)
        .bind(i64::from(record.epoch))
        .bind(&then.queue)
        .bind(&then.kind)
        .bind(i64::try_from(total)?)
        .execute(connection)
        .await?;
    Ok(())
}

impl Store {
    /// Jobs that have ended and whose task is not stored yet.
    pub(crate) async fn thens(&self) -> anyhow::Result<Vec<JobEnded>> {
        let rows = sqlx::query(
            "SELECT job_thens.job, epoch, job_thens.queue, job_thens.kind, total, done, dead, cancelled FROM job_thens
             JOIN job_counts ON job_counts.job = iif(epoch > 1, job_thens.job || '@' || epoch, job_thens.job)
             WHERE settled_ms IS NULL AND done + dead + cancelled >= total",
        )
        .fetch_all(&self.readers)
        .await?;
        let ended = rows.iter().map(|row| {
            let count = |name: &str| anyhow::Ok(u64::try_from(row.try_get::<i64, _>(name)?)?);
            Ok(JobEnded {
                job: row.try_get("job")?,
                epoch: u32::try_from(row.try_get::<i64, _>("epoch")?)?,
                queue: row.try_get("queue")?,
                kind: row.try_get("kind")?,
                total: count("total")?,
                done: count("done")?,
                dead: count("dead")?,
                cancelled: count("cancelled")?,
            })
        });
        ended.collect()
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

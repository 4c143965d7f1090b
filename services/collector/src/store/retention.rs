//! Retention: deletes what has ended and is older than configured, and the oldest where the store has grown too large; in
//! small transactions, so that merging goes on between them. Dead letters that wait are kept for longer, and are never
//! deleted for size.

use std::time::Duration;

use millpond_api::tasks::TaskStatus;

use super::Store;
use super::error::Result;
use super::series::{FINE_RETAINED_MS, STEP_MS};
use super::sql::{Row, Sql, Transaction};

/// Tasks that one transaction deletes.
const DELETED_ROWS_MAX: u32 = 500;
/// How often retention is enforced.
const ENFORCE_EVERY: Duration = Duration::from_secs(60);
/// The pause between two transactions, in which others write.
const PAUSE: Duration = Duration::from_millis(20);
/// A store that is too large shrinks to this share of its limit, in percent.
const SHRINK_TO_PERCENT: u64 = 95;

/// What the store keeps, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retention {
    /// Tasks and jobs that have ended.
    pub(crate) ended: Duration,
    /// Dead letters that wait for a person, and tasks that never ended.
    pub(crate) dead: Duration,
    /// Size of the store, in bytes; none: no limit.
    pub(crate) bytes_max: Option<u64>,
}

fn ago_ms(age: Duration) -> i64 {
    millpond::now_ms().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

impl Store {
    /// Enforces retention for ever.
    pub(crate) async fn enforce_retention(self, retention: Retention) {
        let mut tick = tokio::time::interval(ENFORCE_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match self.delete_expired(&retention).await {
                Ok(0) => {}
                Ok(tasks) => {
                    tracing::info!(tasks, "tasks that ended long ago were deleted (--keep, --keep-dead, --store-max)");
                }
                Err(error) => tracing::warn!(%error, "what is expired cannot be deleted, will try again"),
            }
        }
    }

    /// Deletes what the store keeps no longer; how many tasks that were.
    pub(crate) async fn delete_expired(&self, retention: &Retention) -> Result<u64> {
        let mut deleted = 0;
        let ages = [("status >= 3", retention.ended), ("status < 3", retention.dead)];
        for (which, age) in ages {
            loop {
                let old = format!(
                    "SELECT n, queue, id, kind, items FROM tasks WHERE published_ms < ? AND stored_ms < ? AND {which}
                     ORDER BY published_ms LIMIT ?"
                );
                let at = ago_ms(age);
                let gone = self.delete_some(Sql::new(old).bind(at).bind(at).bind(DELETED_ROWS_MAX)).await?;
                deleted += gone;
                if gone == 0 {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        deleted += self.delete_for_size(retention.bytes_max).await?;
        self.delete_jobs(ago_ms(retention.ended)).await?;
        while deleted > 0 && self.db.vacuum().await? {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(deleted)
    }

    async fn delete_for_size(&self, bytes_max: Option<u64>) -> Result<u64> {
        let Some(bytes_max) = bytes_max else { return Ok(0) };
        let (bytes, mut deleted) = (self.db.bytes().await?, 0);
        if bytes <= bytes_max {
            return Ok(0);
        }
        // Tasks are about as large as each other: so many of them as bytes are too many.
        let span = self.db.read(Sql::new("SELECT coalesce(max(n) - min(n) + 1, 0) AS span FROM tasks")).await?;
        let span: u64 = span.first().map_or(Ok(0), |row| row.get("span"))?;
        let excess = bytes - bytes_max / 100 * SHRINK_TO_PERCENT;
        let too_many = u64::try_from(u128::from(span) * u128::from(excess) / u128::from(bytes)).unwrap_or(0) + 1;
        while deleted < too_many {
            let oldest =
                Sql::new("SELECT n, queue, id, kind, items FROM tasks WHERE status >= ? ORDER BY published_ms LIMIT ?");
            let gone = self.delete_some(oldest.bind(TaskStatus::Done).bind(DELETED_ROWS_MAX)).await?;
            deleted += gone;
            if gone == 0 {
                tracing::warn!(bytes, bytes_max, "the store is larger than --store-max, and nothing in it has ended");
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(deleted)
    }

    /// Deletes the tasks that a statement finds, with their attempts, dead letters and items; how many it found.
    async fn delete_some(&self, which: Sql<'_>) -> Result<u64> {
        let mut transaction = self.db.begin().await?;
        let rows = transaction.rows(which).await?;
        if rows.is_empty() {
            transaction.commit().await?;
            return Ok(0);
        }
        let numbers: Vec<i64> = rows.iter().map(|row| row.get("n")).collect::<Result<_>>()?;
        let these = vec!["?"; numbers.len()].join(",");
        let bound = |sql: String| numbers.iter().fold(Sql::new(sql), |sql, n| sql.bind(*n));
        for table in ["attempts", "dead_letters", "replays"] {
            let gone = format!(
                "DELETE FROM {table} WHERE (queue, id, kind) IN (SELECT queue, id, kind FROM tasks WHERE n IN ({these}))"
            );
            transaction.run(bound(gone)).await?;
        }
        for row in &rows {
            if row.get::<Option<i64>>("items")?.is_some() {
                delete_items(&mut *transaction, row).await?;
            }
        }
        transaction.run(bound(format!("DELETE FROM tasks WHERE n IN ({these})"))).await?;
        transaction.commit().await?;
        Ok(rows.len() as u64)
    }

    /// Deletes jobs that have no task left, messages that nobody could read, and steps of the series.
    async fn delete_jobs(&self, before_ms: i64) -> Result<()> {
        let mut transaction = self.db.begin().await?;
        let empty = Sql::new(
            "SELECT n, job FROM job_counts WHERE created_ms < ?
                AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.job = job_counts.job)
                AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.job = job_counts.job AND jobs.heartbeat_ms >= ?)
             ORDER BY created_ms LIMIT ?",
        );
        for row in transaction.rows(empty.bind(before_ms).bind(before_ms).bind(DELETED_ROWS_MAX)).await? {
            for table in ["jobs", "job_counts"] {
                let gone = Sql::new(format!("DELETE FROM {table} WHERE job = ?"));
                transaction.run(gone.bind(row.get::<&str>("job")?)).await?;
            }
        }
        for gone in [
            Sql::new("DELETE FROM unreadable WHERE stored_ms < ?").bind(before_ms),
            Sql::new("DELETE FROM job_cancels WHERE at_ms < ?").bind(before_ms),
            Sql::new("DELETE FROM series WHERE step_ms = ? AND at_ms < ?")
                .bind(STEP_MS)
                .bind(millpond::now_ms() - FINE_RETAINED_MS),
            Sql::new("DELETE FROM series WHERE at_ms < ?").bind(before_ms),
        ] {
            transaction.run(gone).await?;
        }
        transaction.commit().await
    }
}

/// Deletes the items of a batch, and the attempts of its parts: their ids start with its own.
async fn delete_items(transaction: &mut dyn Transaction, batch: &Row) -> Result<()> {
    let (queue, kind, id): (&str, &str, &str) = (batch.get("queue")?, batch.get("kind")?, batch.get("id")?);
    // From `<id>/` to before `<id>0`.
    let (from, to) = (format!("{id}/"), format!("{id}0"));
    for table in ["attempts", "dead_letters", "replays"] {
        let gone = Sql::new(format!("DELETE FROM {table} WHERE queue = ? AND id >= ? AND id < ? AND kind = ?"));
        transaction.run(gone.bind(queue).bind(&from).bind(&to).bind(kind)).await?;
    }
    let gone = Sql::new("DELETE FROM tasks WHERE queue = ? AND root = ? AND kind = ?");
    transaction.run(gone.bind(queue).bind(id).bind(kind)).await?;
    Ok(())
}

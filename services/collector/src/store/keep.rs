//! Forgetting: what has ended and is older than asked for, and the oldest where the store has grown too large; in small
//! transactions, so that merging goes on between them. Dead letters that wait are kept for longer, and never go for size.

use std::time::Duration;

use super::series::{FINE_KEPT_MS, STEP_MS};
use super::sql::{Row, Sql, Transaction};
use super::{DONE, Store};

/// Tasks that one transaction forgets.
const FORGET_ROWS: u32 = 500;
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Rest between two transactions, in which others write.
const REST: Duration = Duration::from_millis(20);
/// What is forgotten for size goes down to this share of the limit, in percent.
const SHRINK_TO_PERCENT: u64 = 95;

/// How long what is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    /// Tasks and jobs that have ended.
    pub(crate) ended: Duration,
    /// Dead letters that wait for a person, and tasks that never ended.
    pub(crate) dead: Duration,
    /// Bytes of the store; none: as many as there are.
    pub(crate) bytes_max: Option<u64>,
}

fn ago_ms(age: Duration) -> i64 {
    millpond::now_ms().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

impl Store {
    /// Forgets for ever.
    pub(crate) async fn keep_for_ever(self, keep: Keep) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            match self.forget(&keep).await {
                Ok(0) => {}
                Ok(tasks) => {
                    tracing::info!(tasks, "forgot tasks that ended long ago (--keep, --keep-dead, --store-max)")
                }
                Err(error) => {
                    tracing::warn!(error = %format!("{error:#}"), "what is old cannot be forgotten, will try again")
                }
            }
        }
    }

    /// Forgets what is to go now; how many tasks that were.
    pub(crate) async fn forget(&self, keep: &Keep) -> anyhow::Result<u64> {
        let mut forgotten = 0;
        let ages = [("status >= 3", keep.ended), ("status < 3", keep.dead)];
        for (which, age) in ages {
            loop {
                let old = format!(
                    "SELECT n, queue, id, items FROM tasks WHERE published_ms < ? AND stored_ms < ? AND {which}
                     ORDER BY published_ms LIMIT ?"
                );
                let at = ago_ms(age);
                let gone = self.forget_some(Sql::new(old).bind(at).bind(at).bind(FORGET_ROWS)).await?;
                forgotten += gone;
                if gone == 0 {
                    break;
                }
                tokio::time::sleep(REST).await;
            }
        }
        forgotten += self.forget_for_size(keep.bytes_max).await?;
        self.forget_jobs(ago_ms(keep.ended)).await?;
        while forgotten > 0 && self.db.vacuum().await? {
            tokio::time::sleep(REST).await;
        }
        Ok(forgotten)
    }

    async fn forget_for_size(&self, bytes_max: Option<u64>) -> anyhow::Result<u64> {
        let Some(bytes_max) = bytes_max else { return Ok(0) };
        let (bytes, mut forgotten) = (self.db.bytes().await?, 0);
        if bytes <= bytes_max {
            return Ok(0);
        }
        // Tasks are about as large as each other: so many of them as bytes are too many.
        let span = self.db.read(Sql::new("SELECT max(n) - min(n) + 1 AS span FROM tasks")).await?;
        let span = span.first().map_or(0, |row| row.count("span"));
        let excess = bytes - bytes_max / 100 * SHRINK_TO_PERCENT;
        let too_many = u64::try_from(u128::from(span) * u128::from(excess) / u128::from(bytes)).unwrap_or(0) + 1;
        while forgotten < too_many {
            let oldest =
                Sql::new("SELECT n, queue, id, items FROM tasks WHERE status >= ? ORDER BY published_ms LIMIT ?");
            let gone = self.forget_some(oldest.bind(DONE).bind(FORGET_ROWS)).await?;
            forgotten += gone;
            if gone == 0 {
                tracing::warn!(bytes, bytes_max, "the store is larger than --store-max, and nothing in it has ended");
                break;
            }
            tokio::time::sleep(REST).await;
        }
        Ok(forgotten)
    }

    /// Forgets the tasks that a statement finds, with their attempts, letters and items; how many it found.
    async fn forget_some(&self, which: Sql<'_>) -> anyhow::Result<u64> {
        let mut transaction = self.db.begin().await?;
        let rows = transaction.rows(which).await?;
        if rows.is_empty() {
            transaction.commit().await?;
            return Ok(0);
        }
        for table in ["attempts", "dead", "replays"] {
            let gone = format!(
                "DELETE FROM {table} WHERE (queue, id) IN (SELECT queue, id FROM tasks WHERE n IN ({}))",
                marks(&rows)
            );
            transaction.run(numbers(Sql::new(gone), &rows)).await?;
        }
        for batch in rows.iter().filter(|row| row.int("items").is_some()) {
            forget_items(&mut *transaction, batch).await?;
        }
        let gone = format!("DELETE FROM tasks WHERE n IN ({})", marks(&rows));
        transaction.run(numbers(Sql::new(gone), &rows)).await?;
        transaction.commit().await?;
        Ok(rows.len() as u64)
    }

    /// Jobs of which nothing is left, what nobody could read, and steps of the series.
    async fn forget_jobs(&self, before_ms: i64) -> anyhow::Result<()> {
        let mut transaction = self.db.begin().await?;
        let empty = Sql::new(
            "SELECT n, job FROM job_counts WHERE created_ms < ?
                AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.job = job_counts.job)
                AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.job = job_counts.job AND jobs.heartbeat_ms >= ?)
             ORDER BY created_ms LIMIT ?",
        );
        for row in transaction.rows(empty.bind(before_ms).bind(before_ms).bind(FORGET_ROWS)).await? {
            for table in ["jobs", "job_counts"] {
                let gone = Sql::new(format!("DELETE FROM {table} WHERE job = ?"));
                transaction.run(gone.bind(row.string("job"))).await?;
            }
        }
        for gone in [
            Sql::new("DELETE FROM unreadable WHERE stored_ms < ?").bind(before_ms),
            Sql::new("DELETE FROM job_cancels WHERE at_ms < ?").bind(before_ms),
            Sql::new("DELETE FROM series WHERE step_ms = ? AND at_ms < ?")
                .bind(STEP_MS)
                .bind(millpond::now_ms() - FINE_KEPT_MS),
            Sql::new("DELETE FROM series WHERE at_ms < ?").bind(before_ms),
        ] {
            transaction.run(gone).await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

fn marks(rows: &[Row]) -> String {
    vec!["?"; rows.len()].join(",")
}

fn numbers<'a>(sql: Sql<'a>, rows: &[Row]) -> Sql<'a> {
    rows.iter().fold(sql, |sql, row| sql.bind(row.int("n").unwrap_or(0)))
}

/// The items of a batch, and the attempts of its parts: their ids start with its own.
async fn forget_items(transaction: &mut dyn Transaction, batch: &Row) -> sqlx::Result<()> {
    let (queue, id) = (batch.string("queue"), batch.string("id"));
    // From `<id>/` to before `<id>0`.
    let (from, to) = (format!("{id}/"), format!("{id}0"));
    for table in ["attempts", "dead", "replays"] {
        let gone = Sql::new(format!("DELETE FROM {table} WHERE queue = ? AND id >= ? AND id < ?"));
        transaction.run(gone.bind(&queue).bind(&from).bind(&to)).await?;
    }
    transaction.run(Sql::new("DELETE FROM tasks WHERE queue = ? AND root = ?").bind(&queue).bind(&id)).await?;
    Ok(())
}

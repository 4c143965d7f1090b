//! What the reconciler asks of the store: tasks that have not ended, jobs that a purge may have robbed; and how it ends
//! what a purge has removed. SQL that SQLite and Postgres both understand.

use millpond::bus::queues::PurgeRecord;
use millpond::job::{JobRecord, JobState};
use millpond::outcome::{Failure, Items};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row, SqliteConnection};

use super::batch::id_of_item;
use super::shown::has_bit;
use super::{CANCELLED, PARTIAL, RETRYING, Store};

/// Type of the failure that says that a purge removed a task.
pub(crate) const PURGED: &str = "purged";
/// Stands for the worker of an attempt that never was.
const NOBODY: &str = "-";

/// A task, or a batch, that has not ended, as far as is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unended {
    pub(crate) n: i64,
    pub(crate) queue: String,
    pub(crate) id: String,
    pub(crate) kind: String,
    /// The batch that it is an item of.
    pub(crate) root: Option<String>,
    pub(crate) status: i64,
    pub(crate) attempt: i64,
    pub(crate) done: i64,
    pub(crate) published_ms: i64,
    /// When it was last told of, or run again.
    pub(crate) changed_ms: i64,
    stored_ms: i64,
}

impl Unended {
    /// A batch, some items of which have ended.
    pub(crate) fn is_partial(&self) -> bool {
        self.status == PARTIAL
    }
}

/// A job with a record, and how far it is.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) n: i64,
    /// Its name in the store.
    pub(crate) key: String,
    pub(crate) record: JobRecord,
    pub(crate) ended: u64,
    /// Of those, removed by purges that were found before.
    pub(crate) purged: u64,
    pub(crate) retrying: u64,
}

impl Standing {
    /// Tasks without an end of a job that is published whole; none when all have one, or more are to come.
    pub(crate) fn missing(&self) -> Option<u64> {
        let total = self.record.total.filter(|_| self.record.state == JobState::Closed)?;
        total.checked_sub(self.ended).filter(|missing| *missing > 0)
    }

    /// Whether it may still miss something.
    pub(crate) fn may_miss(&self) -> bool {
        self.record.state == JobState::Open || self.missing().is_some()
    }
}

impl Store {
    /// Tasks that are to be tried again, or (`partial`) batches with items of which nothing was told yet, that were last
    /// told of before `before_ms`; the oldest first, behind row `after`.
    pub(crate) async fn unended(
        &self,
        partial: bool,
        after: i64,
        before_ms: i64,
        limit: u32,
    ) -> anyhow::Result<Vec<Unended>> {
        let rows = sqlx::query(
            "SELECT n, queue, id, kind, root, status, attempt, done, published_ms, stored_ms,
                (SELECT max(at_ms) FROM replays WHERE replays.queue = tasks.queue AND replays.id = tasks.id) AS again_ms
             FROM tasks WHERE status = ? AND status < 3 AND n > ? AND stored_ms < ?
                AND coalesce(items, 1) > done + (SELECT count(*) FROM tasks AS item
                    WHERE item.queue = tasks.queue AND item.root = tasks.id AND item.status <> 3)
             ORDER BY n LIMIT ?",
        )
        .bind(if partial { PARTIAL } else { RETRYING })
        .bind(after)
        .bind(before_ms)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(unended).collect()
    }

    /// Jobs of a queue that were made before a purge and have records, the oldest first, behind row `after`; the number of
    /// the last row, where there may be more.
    pub(crate) async fn jobs_before(
        &self,
        queue: &str,
        at_ms: i64,
        after: i64,
        limit: u32,
    ) -> anyhow::Result<(Vec<Standing>, Option<i64>)> {
        let rows = sqlx::query(
            "SELECT job_counts.n, job_counts.job, record, done, dead, cancelled, purged, retrying
             FROM job_counts JOIN jobs ON jobs.job = job_counts.job
             WHERE queue = ? AND jobs.created_ms <= ? AND job_counts.n > ? ORDER BY job_counts.n LIMIT ?",
        )
        .bind(queue)
        .bind(at_ms)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        let jobs: Vec<Standing> = rows.iter().map(standing).collect::<anyhow::Result<_>>()?;
        let next = jobs.last().map(|job| job.n).filter(|_| rows.len() == limit as usize);
        Ok((jobs, next))
    }

    /// How far one of them is; none when it is gone, or cancelled.
    pub(crate) async fn standing(&self, key: &str) -> anyhow::Result<Option<Standing>> {
        if self.cancelled.has(key) {
            return Ok(None);
        }
        let row = sqlx::query(
            "SELECT job_counts.n, job_counts.job, record, done, dead, cancelled, purged, retrying
             FROM job_counts JOIN jobs ON jobs.job = job_counts.job WHERE job_counts.job = ?",
        )
        .bind(key)
        .fetch_optional(&self.readers)
        .await?;
        let found = row.as_ref().map(standing).transpose()?;
        Ok(found.filter(|job| job.record.state != JobState::Cancelled))
    }

    /// Ends these as cancelled, each with an attempt that names the purge that removed it; how many tasks that were.
    pub(crate) async fn end_purged(&self, all: &[(Unended, PurgeRecord)]) -> anyhow::Result<u64> {
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin().await?;
        let mut ended = 0;
        for (task, purge) in all {
            ended += end_one(&mut transaction, task, purge).await?;
        }
        transaction.commit().await?;
        self.watch.ends_written();
        Ok(ended)
    }

    /// So many tasks of a job were removed by purges, and will have no end of their own.
    pub(crate) async fn set_purged(&self, key: &str, purged: u64) -> anyhow::Result<()> {
        let mut writer = self.writer.lock().await;
        sqlx::query("UPDATE job_counts SET purged = ? WHERE job = ?")
            .bind(i64::try_from(purged)?)
            .bind(key)
            .execute(&mut *writer)
            .await?;
        drop(writer);
        self.watch.ends_written();
        Ok(())
    }
}

/// Ends one; of a batch the items of which nothing was told yet, as rows of their own.
async fn end_one(connection: &mut SqliteConnection, task: &Unended, purge: &PurgeRecord) -> anyhow::Result<u64> {
    let now = millpond::now_ms();
    let changed = sqlx::query(
        "UPDATE tasks SET status = ?, ended_ms = ?, stored_ms = ?
         WHERE queue = ? AND id = ? AND status = ? AND attempt = ? AND done = ? AND stored_ms = ?",
    )
    .bind(if task.is_partial() { PARTIAL } else { CANCELLED })
    .bind(now)
    .bind(now)
    .bind(&task.queue)
    .bind(&task.id)
    .bind(task.status)
    .bind(task.attempt)
    .bind(task.done)
    .bind(task.stored_ms)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    if changed == 0 {
        return Ok(0);
    }
    let ids = if task.is_partial() { end_items(connection, task, now).await? } else { vec![task.id.clone()] };
    for id in &ids {
        note(connection, &task.queue, id, purge, now).await?;
    }
    Ok(ids.len() as u64)
}

/// Rows for the items of a batch that have none and no result; their ids.
async fn end_items(connection: &mut SqliteConnection, batch: &Unended, now: i64) -> anyhow::Result<Vec<String>> {
    let row = sqlx::query("SELECT items, bitmap, job, idx FROM tasks WHERE queue = ? AND id = ?")
        .bind(&batch.queue)
        .bind(&batch.id)
        .fetch_one(&mut *connection)
        .await?;
    let of = u32::try_from(row.try_get::<i64, _>("items")?)?;
    let bitmap: Vec<u8> = row.try_get("bitmap")?;
    let (job, first): (Option<String>, Option<i64>) = (row.try_get("job")?, row.try_get("idx")?);
    let mut ended = Vec::new();
    for item in (0..of).filter(|item| !has_bit(&bitmap, *item as usize)) {
        let id = id_of_item(&batch.id, Items::whole(of), item);
        let made = sqlx::query(
            "INSERT INTO tasks (queue, id, kind, job, idx, root, done, status, attempt, worker, published_ms,
                ended_ms, stored_ms) VALUES (?,?,?,?,?,?,0,?,?,?,?,?,?) ON CONFLICT (queue, id) DO NOTHING",
        )
        .bind(&batch.queue)
        .bind(&id)
        .bind(&batch.kind)
        .bind(&job)
        .bind(first.map(|first| first + i64::from(item)))
        .bind(&batch.id)
        .bind(CANCELLED)
        .bind(batch.attempt)
        .bind(NOBODY)
        .bind(batch.published_ms)
        .bind(now)
        .bind(now)
        .execute(&mut *connection)
        .await?;
        if made.rows_affected() > 0 {
            ended.push(id);
        }
    }
    Ok(ended)
}

/// An attempt that never was, which says why.
async fn note(
    connection: &mut SqliteConnection,
    queue: &str,
    id: &str,
    purge: &PurgeRecord,
    now: i64,
) -> anyhow::Result<()> {
    let at = jiff::Timestamp::from_millisecond(purge.at_ms).map(|at| at.to_string()).unwrap_or_default();
    let failure = Failure::fatal(PURGED, format!("removed by a purge of queue {queue} by {} at {at}", purge.by));
    sqlx::query(
        "INSERT INTO attempts (queue, id, attempt, worker, started_ms, ended_ms, status, failure)
         VALUES (?, ?, (SELECT coalesce(max(attempt), 0) + 1 FROM attempts WHERE queue = ? AND id = ?), ?, ?, ?,
            'cancelled', ?) ON CONFLICT DO NOTHING",
    )
    .bind(queue)
    .bind(id)
    .bind(queue)
    .bind(id)
    .bind(NOBODY)
    .bind(now)
    .bind(now)
    .bind(serde_json::to_string(&failure)?)
    .execute(connection)
    .await?;
    Ok(())
}

fn unended(row: &SqliteRow) -> anyhow::Result<Unended> {
    let (stored_ms, again_ms): (i64, Option<i64>) = (row.try_get("stored_ms")?, row.try_get("again_ms")?);
    Ok(Unended {
        n: row.try_get("n")?,
        queue: row.try_get("queue")?,
        id: row.try_get("id")?,
        kind: row.try_get("kind")?,
        root: row.try_get("root")?,
        status: row.try_get("status")?,
        attempt: row.try_get("attempt")?,
        done: row.try_get("done")?,
        published_ms: row.try_get("published_ms")?,
        changed_ms: stored_ms.max(again_ms.unwrap_or(0)),
        stored_ms,
    })
}

fn standing(row: &SqliteRow) -> anyhow::Result<Standing> {
    let count = |name: &str| anyhow::Ok(u64::try_from(row.try_get::<i64, _>(name)?)?);
    let purged = count("purged")?;
    Ok(Standing {
        n: row.try_get("n")?,
        key: row.try_get("job")?,
        record: serde_json::from_str(row.try_get("record")?)?,
        ended: count("done")? + count("dead")? + count("cancelled")? + purged,
        purged,
        retrying: count("retrying")?,
    })
}

//! Tasks and jobs that have not ended, for the reconciler: how it finds them, and how it ends what a purge has removed.

use millpond::bus::operate::queues::PurgeRecord;
use millpond::job::{JobRecord, JobState};
use millpond::outcome::{Failure, Items};
use millpond_api::tasks::TaskStatus;

use super::error::{Result, saturated, to_json};
use super::items::{has_bit, item_id};
use super::sql::{Row, Sql, Transaction};
use super::{NO_WORKER, Store};

/// Type of the failure that says that a purge removed a task.
pub(crate) const PURGED: &str = "purged";

/// A task, or a batch, that has not ended, as far as is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnendedTask {
    pub(crate) n: i64,
    pub(crate) queue: String,
    pub(crate) id: String,
    pub(crate) kind: String,
    /// The batch that it is an item of.
    pub(crate) root: Option<String>,
    pub(crate) status: TaskStatus,
    pub(crate) attempt: i64,
    pub(crate) done: i64,
    pub(crate) published_ms: i64,
    /// When something was last stored of it, or it was run again.
    pub(crate) changed_ms: i64,
    stored_ms: i64,
}

impl UnendedTask {
    fn of(row: &Row) -> Result<Self> {
        let stored_ms: i64 = row.get("stored_ms")?;
        Ok(Self {
            n: row.get("n")?,
            queue: row.get("queue")?,
            id: row.get("id")?,
            kind: row.get("kind")?,
            root: row.get("root")?,
            status: row.get("status")?,
            attempt: row.get("attempt")?,
            done: row.get("done")?,
            published_ms: row.get("published_ms")?,
            changed_ms: stored_ms.max(row.get::<Option<i64>>("replayed_ms")?.unwrap_or(0)),
            stored_ms,
        })
    }

    /// A batch, some items of which have ended.
    pub(crate) fn is_partial(&self) -> bool {
        self.status == TaskStatus::Partial
    }
}

/// A job that has a record, and how far it is.
#[derive(Debug, Clone)]
pub(crate) struct OpenJob {
    pub(crate) n: i64,
    /// Its name in the store.
    pub(crate) key: String,
    pub(crate) record: JobRecord,
    pub(crate) ended: u64,
    /// Of those, removed by purges that were found before.
    pub(crate) purged: u64,
    pub(crate) retrying: u64,
}

impl OpenJob {
    fn of(row: &Row) -> Result<Self> {
        let purged = row.get("purged")?;
        Ok(Self {
            n: row.get("n")?,
            key: row.get("job")?,
            record: row.json("record")?,
            ended: row.get::<u64>("done")? + row.get::<u64>("dead")? + row.get::<u64>("cancelled")? + purged,
            purged,
            retrying: row.get("retrying")?,
        })
    }

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
    /// Tasks that are to be tried again, or (`partial`) batches with items of which nothing is stored, and that were last
    /// stored before `before_ms`; the oldest first, behind row `after`.
    pub(crate) async fn unended(
        &self,
        partial: bool,
        after: i64,
        before_ms: i64,
        limit: u32,
    ) -> Result<Vec<UnendedTask>> {
        let unended = Sql::new(
            "SELECT n, queue, id, kind, root, status, attempt, done, published_ms, stored_ms,
                (SELECT max(at_ms) FROM replays WHERE replays.queue = tasks.queue AND replays.id = tasks.id
                    AND replays.kind = tasks.kind) AS replayed_ms
             FROM tasks WHERE status = ? AND status <> 3 AND n > ? AND stored_ms < ?
                AND coalesce(items, 1) > done + (SELECT count(*) FROM tasks AS item
                    WHERE item.queue = tasks.queue AND item.root = tasks.id AND item.kind = tasks.kind
                        AND item.status <> 3)
             ORDER BY n LIMIT ?",
        );
        let unended = unended
            .bind(if partial { TaskStatus::Partial } else { TaskStatus::Retrying })
            .bind(after)
            .bind(before_ms)
            .bind(limit);
        self.db.read(unended).await?.iter().map(UnendedTask::of).collect()
    }

    /// Jobs of a queue that were made before a purge and have records, the oldest first, behind row `after`; the number of
    /// the last row, where there may be more.
    pub(crate) async fn jobs_before(
        &self,
        queue: &str,
        at_ms: i64,
        after: i64,
        limit: u32,
    ) -> Result<(Vec<OpenJob>, Option<i64>)> {
        let jobs = Sql::new(
            "SELECT job_counts.n, job_counts.job, record, done, dead, cancelled, purged, retrying
             FROM job_counts JOIN jobs ON jobs.job = job_counts.job
             WHERE queue = ? AND jobs.created_ms <= ? AND job_counts.n > ? ORDER BY job_counts.n LIMIT ?",
        );
        let rows = self.db.read(jobs.bind(queue).bind(at_ms).bind(after).bind(limit)).await?;
        let jobs: Vec<OpenJob> = rows.iter().map(OpenJob::of).collect::<Result<_>>()?;
        let next = jobs.last().map(|job| job.n).filter(|_| rows.len() == limit as usize);
        Ok((jobs, next))
    }

    /// How far one of them is; none when it is gone, or cancelled.
    pub(crate) async fn job_progress(&self, key: &str) -> Result<Option<OpenJob>> {
        if self.cancelled.contains(key) {
            return Ok(None);
        }
        let job = Sql::new(
            "SELECT job_counts.n, job_counts.job, record, done, dead, cancelled, purged, retrying
             FROM job_counts JOIN jobs ON jobs.job = job_counts.job WHERE job_counts.job = ?",
        );
        let found = self.db.read(job.bind(key)).await?.first().map(OpenJob::of).transpose()?;
        Ok(found.filter(|job| job.record.state != JobState::Cancelled))
    }

    /// Cancels these tasks, each with an attempt that names the purge that removed it; how many tasks that were.
    pub(crate) async fn end_purged(&self, all: &[(UnendedTask, PurgeRecord)]) -> Result<u64> {
        let mut transaction = self.db.begin().await?;
        let mut ended = 0;
        for (task, purge) in all {
            ended += cancel_purged(&mut *transaction, task, purge).await?;
        }
        transaction.commit().await?;
        self.versions.all();
        self.continuations.ends_written();
        Ok(ended)
    }

    /// Stores how many tasks of a job were removed by purges, and will have no end of their own.
    pub(crate) async fn set_purged(&self, key: &str, purged: u64) -> Result<()> {
        let mut transaction = self.db.begin().await?;
        let set = Sql::new("UPDATE job_counts SET purged = ? WHERE job = ?");
        transaction.run(set.bind(saturated(purged)).bind(key)).await?;
        transaction.commit().await?;
        self.versions.all();
        self.continuations.ends_written();
        Ok(())
    }
}

/// Cancels one task; of a batch, the items that have neither a result nor a row, which get rows of their own.
async fn cancel_purged(transaction: &mut dyn Transaction, task: &UnendedTask, purge: &PurgeRecord) -> Result<u64> {
    let now = millpond::now_ms();
    let end = Sql::new(
        "UPDATE tasks SET status = ?, ended_ms = ?, stored_ms = ?
         WHERE queue = ? AND kind = ? AND id = ? AND status = ? AND attempt = ? AND done = ? AND stored_ms = ?",
    );
    let end = end.bind(if task.is_partial() { TaskStatus::Partial } else { TaskStatus::Cancelled }).bind(now).bind(now);
    let end = end.bind(&task.queue).bind(&task.kind).bind(&task.id).bind(task.status).bind(task.attempt);
    if transaction.run(end.bind(task.done).bind(task.stored_ms)).await? == 0 {
        return Ok(0);
    }
    let ids = if task.is_partial() { cancel_items(transaction, task, now).await? } else { vec![task.id.clone()] };
    for id in &ids {
        add_attempt(transaction, task, id, purge, now).await?;
    }
    Ok(ids.len() as u64)
}

/// Rows for the items of a batch that have none and no result; their ids.
async fn cancel_items(transaction: &mut dyn Transaction, batch: &UnendedTask, now: i64) -> Result<Vec<String>> {
    let known = Sql::new("SELECT items, bitmap, job, idx FROM tasks WHERE queue = ? AND kind = ? AND id = ?");
    let rows = transaction.rows(known.bind(&batch.queue).bind(&batch.kind).bind(&batch.id)).await?;
    let Some(row) = rows.first() else { return Ok(Vec::new()) };
    let (of, first, bitmap) = (row.get("items")?, row.get::<Option<i64>>("idx")?, row.get("bitmap")?);
    let mut ended = Vec::new();
    for item in (0..of).filter(|item| !has_bit(bitmap, *item)) {
        let id = item_id(&batch.id, Items::whole(of), item);
        let make = Sql::new(
            "INSERT INTO tasks (queue, id, kind, job, idx, root, done, status, attempt, worker, published_ms,
                ended_ms, stored_ms) VALUES (?,?,?,?,?,?,0,?,?,?,?,?,?) ON CONFLICT (id, queue, kind) DO NOTHING",
        );
        let make = make.bind(&batch.queue).bind(&id).bind(&batch.kind).bind(row.get::<Option<&str>>("job")?);
        let make = make.bind(first.map(|first| first + i64::from(item))).bind(&batch.id).bind(TaskStatus::Cancelled);
        let make = make.bind(batch.attempt).bind(NO_WORKER).bind(batch.published_ms).bind(now).bind(now);
        if transaction.run(make).await? > 0 {
            ended.push(id);
        }
    }
    Ok(ended)
}

/// Adds an attempt that never ran: it says why the task was cancelled.
async fn add_attempt(
    transaction: &mut dyn Transaction,
    UnendedTask { queue, kind, .. }: &UnendedTask,
    id: &str,
    purge: &PurgeRecord,
    now: i64,
) -> Result<()> {
    let at = jiff::Timestamp::from_millisecond(purge.at_ms).map(|at| at.to_string()).unwrap_or_default();
    let failure = Failure::fatal(PURGED, format!("removed by a purge of queue {queue} by {} at {at}", purge.by));
    let add = Sql::new(
        "INSERT INTO attempts (queue, id, kind, attempt, worker, started_ms, ended_ms, status, failure)
         VALUES (?, ?, ?, (SELECT coalesce(max(attempt), 0) + 1 FROM attempts WHERE queue = ? AND id = ? AND kind = ?),
            ?, ?, ?, 'cancelled', ?) ON CONFLICT (queue, id, kind, attempt, worker, started_ms) DO NOTHING",
    );
    let add = add.bind(queue).bind(id).bind(kind).bind(queue).bind(id).bind(kind);
    let add = add.bind(NO_WORKER).bind(now).bind(now);
    transaction.run(add.bind(to_json("failure", &failure)?)).await?;
    Ok(())
}

//! What the reconciler asks of the store: tasks that have not ended, jobs that a purge may have robbed; and how it ends
//! what a purge has removed.

use millpond::bus::operate::queues::PurgeRecord;
use millpond::job::{JobRecord, JobState};
use millpond::outcome::{Failure, Items};

use super::batch::id_of_item;
use super::shown::has_bit;
use super::sql::{Row, Sql, Transaction};
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
        let unended = Sql::new(
            "SELECT n, queue, id, kind, root, status, attempt, done, published_ms, stored_ms,
                (SELECT max(at_ms) FROM replays WHERE replays.queue = tasks.queue AND replays.id = tasks.id) AS again_ms
             FROM tasks WHERE status = ? AND status <> 3 AND n > ? AND stored_ms < ?
                AND coalesce(items, 1) > done + (SELECT count(*) FROM tasks AS item
                    WHERE item.queue = tasks.queue AND item.root = tasks.id AND item.status <> 3)
             ORDER BY n LIMIT ?",
        );
        let unended = unended.bind(if partial { PARTIAL } else { RETRYING }).bind(after).bind(before_ms).bind(limit);
        Ok(self.db.read(unended).await?.iter().map(unended_of).collect())
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
        let jobs = Sql::new(
            "SELECT job_counts.n, job_counts.job, record, done, dead, cancelled, purged, retrying
             FROM job_counts JOIN jobs ON jobs.job = job_counts.job
             WHERE queue = ? AND jobs.created_ms <= ? AND job_counts.n > ? ORDER BY job_counts.n LIMIT ?",
        );
        let rows = self.db.read(jobs.bind(queue).bind(at_ms).bind(after).bind(limit)).await?;
        let jobs: Vec<Standing> = rows.iter().map(standing).collect::<anyhow::Result<_>>()?;
        let next = jobs.last().map(|job| job.n).filter(|_| rows.len() == limit as usize);
        Ok((jobs, next))
    }

    /// How far one of them is; none when it is gone, or cancelled.
    pub(crate) async fn standing(&self, key: &str) -> anyhow::Result<Option<Standing>> {
        if self.cancelled.has(key) {
            return Ok(None);
        }
        let job = Sql::new(
            "SELECT job_counts.n, job_counts.job, record, done, dead, cancelled, purged, retrying
             FROM job_counts JOIN jobs ON jobs.job = job_counts.job WHERE job_counts.job = ?",
        );
        let found = self.db.read(job.bind(key)).await?.first().map(standing).transpose()?;
        Ok(found.filter(|job| job.record.state != JobState::Cancelled))
    }

    /// Ends these as cancelled, each with an attempt that names the purge that removed it; how many tasks that were.
    pub(crate) async fn end_purged(&self, all: &[(Unended, PurgeRecord)]) -> anyhow::Result<u64> {
        let mut transaction = self.db.begin().await?;
        let mut ended = 0;
        for (task, purge) in all {
            ended += end_one(&mut *transaction, task, purge).await?;
        }
        transaction.commit().await?;
        self.versions.all();
        self.watch.ends_written();
        Ok(ended)
    }

    /// So many tasks of a job were removed by purges, and will have no end of their own.
    pub(crate) async fn set_purged(&self, key: &str, purged: u64) -> anyhow::Result<()> {
        let mut transaction = self.db.begin().await?;
        let set = Sql::new("UPDATE job_counts SET purged = ? WHERE job = ?");
        transaction.run(set.bind(i64::try_from(purged)?).bind(key)).await?;
        transaction.commit().await?;
        self.versions.all();
        self.watch.ends_written();
        Ok(())
    }
}

/// Ends one; of a batch the items of which nothing was told yet, as rows of their own.
async fn end_one(transaction: &mut dyn Transaction, task: &Unended, purge: &PurgeRecord) -> anyhow::Result<u64> {
    let now = millpond::now_ms();
    let end = Sql::new(
        "UPDATE tasks SET status = ?, ended_ms = ?, stored_ms = ?
         WHERE queue = ? AND id = ? AND status = ? AND attempt = ? AND done = ? AND stored_ms = ?",
    );
    let end = end.bind(if task.is_partial() { PARTIAL } else { CANCELLED }).bind(now).bind(now);
    let end = end.bind(&task.queue).bind(&task.id).bind(task.status).bind(task.attempt);
    if transaction.run(end.bind(task.done).bind(task.stored_ms)).await? == 0 {
        return Ok(0);
    }
    let ids = if task.is_partial() { end_items(transaction, task, now).await? } else { vec![task.id.clone()] };
    for id in &ids {
        note(transaction, &task.queue, id, purge, now).await?;
    }
    Ok(ids.len() as u64)
}

/// Rows for the items of a batch that have none and no result; their ids.
async fn end_items(transaction: &mut dyn Transaction, batch: &Unended, now: i64) -> anyhow::Result<Vec<String>> {
    let known = Sql::new("SELECT items, bitmap, job, idx FROM tasks WHERE queue = ? AND id = ?");
    let rows = transaction.rows(known.bind(&batch.queue).bind(&batch.id)).await?;
    let Some(row) = rows.first() else { return Ok(Vec::new()) };
    let (of, first) = (u32::try_from(row.count("items"))?, row.int("idx"));
    let mut ended = Vec::new();
    for item in (0..of).filter(|item| !has_bit(row.blob("bitmap"), *item as usize)) {
        let id = id_of_item(&batch.id, Items::whole(of), item);
        let make = Sql::new(
            "INSERT INTO tasks (queue, id, kind, job, idx, root, done, status, attempt, worker, published_ms,
                ended_ms, stored_ms) VALUES (?,?,?,?,?,?,0,?,?,?,?,?,?) ON CONFLICT (queue, id) DO NOTHING",
        );
        let make = make.bind(&batch.queue).bind(&id).bind(&batch.kind).bind(row.text("job"));
        let make = make.bind(first.map(|first| first + i64::from(item))).bind(&batch.id).bind(CANCELLED);
        let make = make.bind(batch.attempt).bind(NOBODY).bind(batch.published_ms).bind(now).bind(now);
        if transaction.run(make).await? > 0 {
            ended.push(id);
        }
    }
    Ok(ended)
}

/// An attempt that never was, which says why.
async fn note(
    transaction: &mut dyn Transaction,
    queue: &str,
    id: &str,
    purge: &PurgeRecord,
    now: i64,
) -> anyhow::Result<()> {
    let at = jiff::Timestamp::from_millisecond(purge.at_ms).map(|at| at.to_string()).unwrap_or_default();
    let failure = Failure::fatal(PURGED, format!("removed by a purge of queue {queue} by {} at {at}", purge.by));
    let told = Sql::new(
        "INSERT INTO attempts (queue, id, attempt, worker, started_ms, ended_ms, status, failure)
         VALUES (?, ?, (SELECT coalesce(max(attempt), 0) + 1 FROM attempts WHERE queue = ? AND id = ?), ?, ?, ?,
            'cancelled', ?) ON CONFLICT (queue, id, attempt, worker, started_ms) DO NOTHING",
    );
    let told = told.bind(queue).bind(id).bind(queue).bind(id).bind(NOBODY).bind(now).bind(now);
    transaction.run(told.bind(serde_json::to_string(&failure)?)).await?;
    Ok(())
}

fn unended_of(row: &Row) -> Unended {
    let int = |name: &str| row.int(name).unwrap_or(0);
    let stored_ms = int("stored_ms");
    Unended {
        n: int("n"),
        queue: row.string("queue"),
        id: row.string("id"),
        kind: row.string("kind"),
        root: row.text("root").map(str::to_owned),
        status: int("status"),
        attempt: int("attempt"),
        done: int("done"),
        published_ms: int("published_ms"),
        changed_ms: stored_ms.max(int("again_ms")),
        stored_ms,
    }
}

fn standing(row: &Row) -> anyhow::Result<Standing> {
    let purged = row.count("purged");
    Ok(Standing {
        n: row.int("n").unwrap_or(0),
        key: row.string("job"),
        record: serde_json::from_str(row.text("record").unwrap_or_default())?,
        ended: row.count("done") + row.count("dead") + row.count("cancelled") + purged,
        purged,
        retrying: row.count("retrying"),
    })
}

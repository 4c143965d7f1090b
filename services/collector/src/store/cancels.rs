//! Jobs that were cancelled. One record in RESULTS ends all of a job's tasks that have no result before it in the stream;
//! what comes of them later, a dead letter too, changes nothing any more.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use millpond::job::epoch_of;
use millpond::outcome::CancelledJob;
use serde_json::{Value, json};

use super::shown::Shown;
use super::sql::{Database, Row, Sql, Transaction};
use super::{CANCELLED, Store};

/// The job under which the store keeps a task: epochs after the first have a name of their own, `<job>@<epoch>`.
pub(super) fn stored_job<'a>(job: &'a str, id: &str) -> Cow<'a, str> {
    job_key(job, epoch_of(job, id).unwrap_or(1))
}

/// The store's name of an epoch of a job.
pub(super) fn job_key(job: &str, epoch: u32) -> Cow<'_, str> {
    if epoch > 1 { Cow::Owned(format!("{job}@{epoch}")) } else { Cow::Borrowed(job) }
}

/// Name and epoch of a job as the store names it.
fn name_and_epoch(key: &str) -> (&str, u32) {
    let named = key.rsplit_once('@').and_then(|(job, epoch)| Some((job, epoch.parse().ok()?)));
    named.unwrap_or((key, 1))
}

/// The jobs that are cancelled, by name. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct JobCancels {
    known: Arc<RwLock<HashMap<String, CancelledJob>>>,
    /// Number of the last record that is known.
    last: Arc<AtomicI64>,
}

const NEWER: &str = "SELECT job, epoch, by, at_ms, n FROM job_cancels WHERE n > ? ORDER BY n";

impl JobCancels {
    fn newer(&self) -> Sql<'static> {
        Sql::new(NEWER).bind(self.last.load(Ordering::SeqCst))
    }

    fn take(&self, rows: &[Row]) {
        self.add(rows.iter().map(|row| CancelledJob {
            job: row.string("job"),
            epoch: u32::try_from(row.count("epoch")).unwrap_or(u32::MAX),
            by: row.string("by"),
            at_ms: row.int("at_ms").unwrap_or(0),
        }));
        if let Some(last) = rows.last().and_then(|row| row.int("n")) {
            self.last.fetch_max(last, Ordering::SeqCst);
        }
    }

    /// Reads what is stored and not known yet.
    pub(super) async fn refresh(&self, db: &dyn Database) -> sqlx::Result<()> {
        self.take(&db.read(self.newer()).await?);
        Ok(())
    }

    /// The same in a transaction that writes: nothing is missed then.
    pub(super) async fn refresh_in(&self, transaction: &mut dyn Transaction) -> sqlx::Result<()> {
        self.take(&transaction.rows(self.newer()).await?);
        Ok(())
    }

    fn add(&self, cancelled: impl IntoIterator<Item = CancelledJob>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for one in cancelled {
            // One that comes again must not hide a later one.
            if known.get(&one.job).is_none_or(|before| before.epoch <= one.epoch) {
                known.insert(one.job.clone(), one);
            }
        }
    }

    /// Whether a task is cancelled with its job; `fresh` are the records of this transaction.
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

    /// Whether a job is, by the store's name of it.
    pub(super) fn has(&self, key: &str) -> bool {
        let (job, epoch) = name_and_epoch(key);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(job).is_some_and(|cancelled| epoch <= cancelled.epoch.max(1))
    }
}

/// Stores the record and ends what is known of the job and has no result.
pub(super) async fn cancel_job(transaction: &mut dyn Transaction, cancelled: &CancelledJob) -> sqlx::Result<()> {
    let keep = Sql::new(
        "INSERT INTO job_cancels (job, epoch, by, at_ms, n)
         VALUES (?, ?, ?, ?, (SELECT CASE WHEN coalesce(max(n), 0) < ? THEN ? ELSE max(n) + 1 END FROM job_cancels))
         ON CONFLICT (job) DO UPDATE SET epoch = excluded.epoch, by = excluded.by, at_ms = excluded.at_ms, n = excluded.n
         WHERE excluded.epoch >= job_cancels.epoch",
    );
    let keep = keep.bind(&cancelled.job).bind(cancelled.epoch).bind(&cancelled.by).bind(cancelled.at_ms);
    // By the clock, so that numbers go on when those before are forgotten.
    let keep = keep.bind(millpond::now_ms()).bind(millpond::now_ms());
    transaction.run(keep).await?;
    for epoch in 1..=cancelled.epoch.max(1) {
        let end = Sql::new("UPDATE tasks SET status = ? WHERE job = ? AND status < 3 AND (? > 0 OR published_ms <= ?)");
        let end = end.bind(CANCELLED).bind(job_key(&cancelled.job, epoch)).bind(cancelled.epoch).bind(cancelled.at_ms);
        transaction.run(end).await?;
    }
    Ok(())
}

impl Store {
    /// Whether an epoch of a job is cancelled.
    pub(crate) fn is_cancelled(&self, job: &str, epoch: u32) -> bool {
        self.cancelled.has(&job_key(job, epoch))
    }

    /// The newest epoch of a job, as the store names it; a name with an epoch stands for itself.
    pub(super) async fn newest_epoch(&self, job: &str) -> sqlx::Result<String> {
        if job.contains('@') {
            return Ok(job.to_owned());
        }
        // From `<job>@` to before `<job>A`: all epochs after the first.
        let newest = Sql::new("SELECT job FROM job_counts WHERE job >= ? AND job < ? ORDER BY n DESC LIMIT 1");
        let newest = self.db.read(newest.bind(format!("{job}@")).bind(format!("{job}A"))).await?;
        Ok(newest.first().map_or_else(|| job.to_owned(), |row| row.string("job")))
    }

    /// A task of a cancelled job that never had a row: `<job>.<epoch>/<index>`.
    pub(super) async fn cancelled_with_its_job(&self, id: &str) -> anyhow::Result<Option<Shown>> {
        let named = id.rsplit_once('/').and_then(|(root, index)| {
            let (job, _) = root.rsplit_once('.')?;
            Some((job, epoch_of(job, id)?, index.parse::<u64>().ok()?))
        });
        let Some((job, epoch, index)) = named else { return Ok(None) };
        let key = job_key(job, epoch);
        if !self.cancelled.has(&key) {
            return Ok(None);
        }
        let Some(found) = self.job(&key).await? else { return Ok(None) };
        let field = |name: &str| found.text(name).map(str::to_owned);
        let mut task = Shown::new(json!({
            "queue": field("queue"), "id": id, "kind": field("kind"), "job": key, "index": index,
            "status": "cancelled", "attempt": 0,
        }));
        task.set("attempts", json!([]));
        task.set("dead", Value::Null);
        Ok(Some(task))
    }
}

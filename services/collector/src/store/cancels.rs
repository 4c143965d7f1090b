//! Jobs that were cancelled. One record in RESULTS ends all of a job's tasks that have no result before it in the stream;
//! what comes of them later, a dead letter too, changes nothing any more.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use millpond::job::epoch_of;
use millpond::outcome::CancelledJob;
use serde_json::{Value, json};
use sqlx::SqliteConnection;

use super::shown::Shown;
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
}

impl JobCancels {
    /// Those that are stored.
    pub(super) async fn load(connection: &mut SqliteConnection) -> sqlx::Result<Self> {
        let rows: Vec<(String, u32, String, i64)> =
            sqlx::query_as("SELECT job, epoch, by, at_ms FROM job_cancels").fetch_all(connection).await?;
        let known = rows.into_iter().map(|(job, epoch, by, at_ms)| {
            let cancelled = CancelledJob { job, epoch, by, at_ms };
            (cancelled.job.clone(), cancelled)
        });
        Ok(Self { known: Arc::new(RwLock::new(known.collect())) })
    }

    /// After the commit.
    pub(super) fn add(&self, cancelled: impl IntoIterator<Item = CancelledJob>) {
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
pub(super) async fn cancel_job(connection: &mut SqliteConnection, cancelled: &CancelledJob) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO job_cancels (job, epoch, by, at_ms) VALUES (?,?,?,?)
         ON CONFLICT (job) DO UPDATE SET epoch = excluded.epoch, by = excluded.by, at_ms = excluded.at_ms
         WHERE excluded.epoch >= job_cancels.epoch",
    )
    .bind(&cancelled.job)
    .bind(cancelled.epoch)
    .bind(&cancelled.by)
    .bind(cancelled.at_ms)
    .execute(&mut *connection)
    .await?;
    for epoch in 1..=cancelled.epoch.max(1) {
        sqlx::query("UPDATE tasks SET status = ? WHERE job = ? AND status < 3 AND (? > 0 OR published_ms <= ?)")
            .bind(CANCELLED)
            .bind(job_key(&cancelled.job, epoch).as_ref())
            .bind(cancelled.epoch)
            .bind(cancelled.at_ms)
            .execute(&mut *connection)
            .await?;
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
        let newest: Option<String> =
            sqlx::query_scalar("SELECT job FROM job_counts WHERE job >= ? AND job < ? ORDER BY n DESC LIMIT 1")
                .bind(format!("{job}@"))
                .bind(format!("{job}A"))
                .fetch_optional(&self.readers)
                .await?;
        Ok(newest.unwrap_or_else(|| job.to_owned()))
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

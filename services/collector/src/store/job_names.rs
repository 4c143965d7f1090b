//! The names under which the store keeps jobs: each epoch after the first has a name of its own, `<job>@<epoch>`.

use std::borrow::Cow;

use millpond::job::epoch_of;

use super::Store;
use super::error::Result;
use super::sql::{Sql, Transaction};

/// The store's name of the job that a task of this id belongs to.
pub(super) fn stored_job<'a>(job: &'a str, id: &str) -> Cow<'a, str> {
    job_key(job, epoch_of(job, id).unwrap_or(1))
}

/// The store's name of an epoch of a job.
pub(super) fn job_key(job: &str, epoch: u32) -> Cow<'_, str> {
    if epoch > 1 { Cow::Owned(format!("{job}@{epoch}")) } else { Cow::Borrowed(job) }
}

/// Name and epoch of a job as the store names it.
pub(super) fn name_and_epoch(key: &str) -> (&str, u32) {
    let named = key.rsplit_once('@').and_then(|(job, epoch)| Some((job, epoch.parse().ok()?)));
    named.unwrap_or((key, 1))
}

/// From `<job>@` to before `<job>A`: the names of all epochs after the first.
fn later_epochs(job: &str) -> (String, String) {
    (format!("{job}@"), format!("{job}A"))
}

/// Has a job listed by the store's name of it, unless it is: lists of jobs are read from `job_counts`.
pub(super) async fn list_job(
    transaction: &mut dyn Transaction,
    name: &str,
    (queue, kind): (&str, &str),
    created_ms: i64,
) -> Result<()> {
    let listed = Sql::new(
        "INSERT INTO job_counts (job, queue, kind, created_ms) VALUES (?, ?, ?, ?) ON CONFLICT (job) DO NOTHING",
    );
    transaction.run(listed.bind(name).bind(queue).bind(kind).bind(created_ms)).await?;
    Ok(())
}

/// The store's names of a job's epochs that are known, up to this one.
pub(super) async fn known_epochs(transaction: &mut dyn Transaction, job: &str, last: u32) -> Result<Vec<String>> {
    let (from, to) = later_epochs(job);
    let all =
        Sql::new("SELECT job FROM job_counts WHERE job = ? OR (job >= ? AND job < ?)").bind(job).bind(from).bind(to);
    let names = transaction.rows(all).await?.iter().map(|row| row.get("job")).collect::<Result<Vec<String>>>()?;
    Ok(names.into_iter().filter(|name| name_and_epoch(name).1 <= last).collect())
}

impl Store {
    /// The newest epoch of a job, as the store names it; a name with an epoch stands for itself.
    pub(super) async fn newest_epoch(&self, job: &str) -> Result<String> {
        if job.contains('@') {
            return Ok(job.to_owned());
        }
        let newest = Sql::new("SELECT job FROM job_counts WHERE job >= ? AND job < ? ORDER BY n DESC LIMIT 1");
        let (from, to) = later_epochs(job);
        let newest = self.db.read(newest.bind(from).bind(to)).await?;
        newest.first().map_or_else(|| Ok(job.to_owned()), |row| row.get("job"))
    }

    /// The same where a list may name a job.
    pub(super) async fn newest_epoch_of(&self, job: Option<&str>) -> Result<Option<String>> {
        match job {
            Some(job) => Ok(Some(self.newest_epoch(job).await?)),
            None => Ok(None),
        }
    }
}

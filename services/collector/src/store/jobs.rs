//! Jobs as the API shows them: their state and how far they are.

use millpond::job::{JOB_STALLED_AFTER, JobRecord, JobState};
use millpond_api::jobs::{JobQuery, JobRow, JobStatus};

use super::Store;
use super::error::Result;
use super::list::{ListCursor, Page, paged};
use super::sql::{Row, Sql};

const COLUMNS: &str = "SELECT job_counts.n, job_counts.job, queue, kind, job_counts.created_ms, done, retrying,
    dead, cancelled, purged, record FROM job_counts LEFT JOIN jobs ON jobs.job = job_counts.job";

impl Store {
    /// Jobs with their progress, the newest first, and sessions: jobs without a record, known from their tasks.
    pub(crate) async fn jobs(&self, query: &JobQuery, page: Page) -> Result<(Vec<JobRow>, Option<ListCursor>)> {
        // Which jobs they are is read from an index alone; only those of the page are read whole.
        let mut sql = Sql::new(format!("{COLUMNS} WHERE job_counts.n IN (SELECT n FROM job_counts WHERE 1 = 1"));
        if let Some(name) = &query.name {
            sql.push(" AND job >= ?", name);
            // All that start with it: no text that UTF-8 can have comes after.
            sql.push(" AND job < ?", format!("{name}\u{10ffff}"));
        }
        if let Some(state) = query.state {
            push_state(&mut sql, state);
        }
        if let Some(after) = page.after {
            sql.push(" AND n < ?", after.n);
        }
        sql.push(" ORDER BY n DESC LIMIT ?) ORDER BY job_counts.n DESC", i64::from(page.limit) + 1);
        paged(&self.db.read(sql).await?, page.limit, |row| self.job_row(row))
    }

    /// One job with its progress; none when nothing is known of it.
    pub(crate) async fn job(&self, job: &str) -> Result<Option<JobRow>> {
        let job = self.newest_epoch(job).await?;
        let found = self.db.read(Sql::new(format!("{COLUMNS} WHERE job_counts.job = ?")).bind(job)).await?;
        let Some(row) = found.first() else { return Ok(None) };
        let mut row = self.job_row(row)?;
        if let (Some(epoch), true) = (row.epoch, row.continuation.is_some()) {
            let name = row.job.split('@').next().unwrap_or(&row.job);
            row.continuation_refused = self.continuation_refused(name, epoch).await?;
        }
        Ok(Some(row))
    }

    fn job_row(&self, row: &Row) -> Result<JobRow> {
        let record: Option<JobRecord> = row.optional_json("record")?;
        let mut job = JobRow {
            job: row.get("job")?,
            state: JobStatus::Session,
            queue: row.get("queue")?,
            kind: row.get("kind")?,
            total: None,
            published: None,
            done: row.get("done")?,
            retrying: row.get("retrying")?,
            dead: row.get("dead")?,
            cancelled: row.get("cancelled")?,
            purged: row.get("purged")?,
            created_ms: row.get("created_ms")?,
            heartbeat_ms: None,
            epoch: None,
            continuation: None,
            continuation_refused: None,
            ended: None,
        };
        let total = record.as_ref().and_then(|record| record.total);
        let is_cancelled = self.cancelled.contains(&job.job)
            || record.as_ref().is_some_and(|record| record.state == JobState::Cancelled);
        if is_cancelled {
            // Most of its tasks have no row: all that were published and have no result are cancelled.
            let published = record.as_ref().map_or(0, |record| record.total.unwrap_or(record.published));
            let cancelled = job.cancelled.max(published.saturating_sub(job.done));
            (job.retrying, job.dead, job.cancelled) = (0, 0, cancelled);
        }
        // A purged task that ends after all is counted as how it ended.
        let ended = job.done + job.dead + job.cancelled;
        job.purged = match total.filter(|_| !is_cancelled) {
            Some(total) => job.purged.min(total.saturating_sub(ended)),
            None => 0,
        };
        job.state = match &record {
            _ if is_cancelled => JobStatus::Cancelled,
            Some(record) => state_of(record, ended + job.purged),
            None => JobStatus::Session,
        };
        let Some(record) = record else { return Ok(job) };
        Ok(JobRow {
            queue: record.queue,
            kind: record.kind,
            total,
            // A record is up to two seconds old, and the last one of a producer that was killed stays as it is.
            published: Some(record.published.max(ended + job.purged + job.retrying)),
            created_ms: record.created_ms,
            heartbeat_ms: Some(record.heartbeat_ms),
            epoch: Some(record.epoch),
            continuation: record.continuation,
            ..job
        })
    }
}

fn state_of(record: &JobRecord, ended: u64) -> JobStatus {
    match (record.state, record.total) {
        (JobState::Closed, Some(total)) if ended >= total => JobStatus::Finished,
        (JobState::Closed, _) => JobStatus::Closed,
        (JobState::Open, _) if record.heartbeat_ms < lost_before_ms() => JobStatus::Stalled,
        (JobState::Open, _) => JobStatus::Open,
        (JobState::Cancelled, _) => JobStatus::Cancelled,
    }
}

/// The owner of an open job is lost when its last heartbeat was before this.
fn lost_before_ms() -> i64 {
    millpond::now_ms().saturating_sub(i64::try_from(JOB_STALLED_AFTER.as_millis()).unwrap_or(i64::MAX))
}

/// Adds the condition on a job's state, as [`state_of`] has it. The table knows all but whether its owner is lost.
fn push_state(sql: &mut Sql<'_>, state: JobStatus) {
    let silent = match state {
        JobStatus::Open => ">=",
        JobStatus::Stalled => "<",
        _ => return sql.push(" AND state = ?", state.name()),
    };
    let owner = format!("SELECT 1 FROM jobs WHERE jobs.job = job_counts.job AND heartbeat_ms {silent} ?");
    sql.push(&format!(" AND state = 'open' AND EXISTS ({owner})"), lost_before_ms());
}

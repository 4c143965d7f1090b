//! Jobs as the API shows them: their progress, and the ends of their tasks in order.

use millpond::job::{JobRecord, JobState};
use millpond::limits::{BATCH_ITEMS_MAX, HEARTBEAT_LOST_AFTER};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::cancels::job_key;
use super::read::{Page, Rows, paged};
use super::shown::{Shown, has_bit, refs, status_name};
use super::sql::{Row, Sql};
use super::{DONE, Store};

/// Results of one page, in bytes, at the most; the row that goes beyond it is still shown.
const PAGE_BYTES_MAX: i64 = 8 * 1024 * 1024;
/// Stands for the index of a task that has no place in its job: those come last.
const NO_INDEX: i64 = i64::MAX;

const JOB_COLUMNS: &str = "SELECT job_counts.n, job_counts.job, queue, kind, job_counts.created_ms, done, retrying,
    dead, cancelled, purged, record FROM job_counts LEFT JOIN jobs ON jobs.job = job_counts.job";

/// Which jobs.
#[derive(Debug, Default, Clone)]
pub(crate) struct JobFilter {
    /// The start of its name.
    pub(crate) name: Option<String>,
    /// How it stands, as [`state_of`] names it.
    pub(crate) state: Option<String>,
}

/// Where a row stands in the order of its job: by index, then by age. Two tasks may claim one index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    index: i64,
    n: i64,
    item: i64,
}

impl Place {
    const START: Self = Self { index: i64::MIN, n: 0, item: 0 };

    /// Reads a cursor; none when it is not one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(str::parse::<i64>);
        let place = Self { index: numbers.next()?.ok()?, n: numbers.next()?.ok()?, item: numbers.next()?.ok()? };
        numbers.next().is_none().then_some(place)
    }

    /// Behind all that claim this index.
    pub(crate) fn behind(index: i64) -> Self {
        Self { index, n: i64::MAX, item: i64::MAX }
    }

    /// The index after it; none when only those without an index are left.
    pub(crate) fn next_index(self) -> Option<u64> {
        u64::try_from(self.index.saturating_add(1)).ok().filter(|_| self.index < NO_INDEX)
    }

    /// As a cursor.
    pub(crate) fn cursor(self) -> String {
        format!("{}.{}.{}", self.index, self.n, self.item)
    }
}

/// Some rows in their order, and where to go on when there may be more.
pub(crate) type Ends = (Vec<Shown>, Option<Place>);

impl Store {
    /// Jobs with their progress, the newest first, and sessions: jobs without a record, known from their tasks.
    pub(crate) async fn jobs(&self, filter: &JobFilter, page: Page) -> anyhow::Result<Rows> {
        // Which they are is read from an index alone; only those of the page are looked at.
        let mut sql = Sql::new(format!("{JOB_COLUMNS} WHERE job_counts.n IN (SELECT n FROM job_counts WHERE 1 = 1"));
        if let Some(name) = &filter.name {
            sql.push(" AND job >= ?", name);
            // All that start with it: no text that UTF-8 can have comes after.
            sql.push(" AND job < ?", format!("{name}\u{10ffff}"));
        }
        if let Some(state) = &filter.state {
            of_state(&mut sql, state);
        }
        if let Some(after) = page.after {
            sql.push(" AND n < ?", after.n);
        }
        sql.push(" ORDER BY n DESC LIMIT ?) ORDER BY job_counts.n DESC", i64::from(page.limit) + 1);
        let rows = self.db.read(sql).await?;
        Ok(paged(&rows, page.limit, |row| self.shown_job(row)))
    }

    /// One job with its progress; none when nothing is known of it.
    pub(crate) async fn job(&self, job: &str) -> anyhow::Result<Option<Shown>> {
        let job = self.newest_epoch(job).await?;
        let found = self.db.read(Sql::new(format!("{JOB_COLUMNS} WHERE job_counts.job = ?")).bind(job)).await?;
        Ok(found.first().map(|row| self.shown_job(row)))
    }

    /// The ends of a job's tasks by index, batches item by item; then of those without an index, by age. Items that
    /// have not ended are left out, so a page may be short.
    /// The newest epoch is meant where `epoch` is 0.
    pub(crate) async fn job_results(
        &self,
        job: &str,
        epoch: u32,
        limit: u32,
        after: Option<Place>,
    ) -> anyhow::Result<Ends> {
        let (limit, after) = (limit as usize, after.unwrap_or(Place::START));
        let job = &if epoch == 0 { self.newest_epoch(job).await? } else { job_key(job, epoch).into_owned() };
        let (mut rows, mut horizon) = (Vec::new(), None);
        if after.index < NO_INDEX {
            (rows, horizon) = self.placed(job, limit, after).await?;
        }
        let mut ends = self.ends_of(&rows, after, horizon).await?;
        let mut more = horizon.map(|index| Place { index: index - 1, n: i64::MAX, item: i64::MAX });
        if more.is_none() && ends.len() <= limit {
            let (rows, left) = self.unplaced(job, limit - ends.len(), after).await?;
            ends.extend(self.ends_of(&rows, after, None).await?);
            // The next page starts behind the last batch or task that was read.
            let last = rows.last().and_then(|row| row.int("n"));
            more = last.filter(|_| left).map(|n| Place { index: NO_INDEX, n, item: i64::MAX });
        }
        if ends.len() > limit {
            ends.truncate(limit);
            more = ends.last().map(|(place, _)| *place);
        }
        Ok((ends.into_iter().map(|(_, end)| end).collect(), more))
    }

    /// Tasks and batches with an index, enough of them for a page; and the first index that was not read, if any.
    async fn placed(&self, job: &str, limit: usize, after: Place) -> sqlx::Result<(Vec<Row>, Option<i64>)> {
        let placed = Sql::new(
            "SELECT n, queue, id, idx, items, bitmap, status, result, ref, octet_length(result) AS bytes FROM tasks
             WHERE job = ? AND root IS NULL AND idx >= ? AND idx + coalesce(items, 1) > ? ORDER BY idx, n",
        );
        let placed = placed.bind(job).bind(after.index.saturating_sub(i64::from(BATCH_ITEMS_MAX))).bind(after.index);
        let (mut rows, mut items, mut bytes, mut last, mut horizon) = (Vec::new(), 0, 0, i64::MIN, None);
        let mut more = |row: Row| {
            let index = row.int("idx").unwrap_or(0);
            let behind = index + row.int("items").unwrap_or(1);
            // What starts before the page's first row, or where another row starts, overlaps: it must be read too.
            if (items > limit || bytes > PAGE_BYTES_MAX) && index > last && index > after.index.saturating_add(1) {
                horizon = Some(index);
                return false;
            }
            items += usize::try_from(behind - index.max(after.index)).unwrap_or(0);
            bytes += row.int("bytes").unwrap_or(0);
            last = index;
            rows.push(row);
            true
        };
        self.db.read_while(placed, &mut more).await?;
        Ok((rows, horizon))
    }

    /// Tasks and batches without an index, by age; and whether there are more.
    async fn unplaced(&self, job: &str, limit: usize, after: Place) -> sqlx::Result<(Vec<Row>, bool)> {
        let unplaced = Sql::new(
            "SELECT n, queue, id, idx, items, bitmap, status, result, ref, octet_length(result) AS bytes FROM tasks
             WHERE job = ? AND root IS NULL AND idx IS NULL AND n >= ? ORDER BY n",
        );
        let unplaced = unplaced.bind(job).bind(if after.index == NO_INDEX { after.n } else { 0 });
        let (mut rows, mut items, mut bytes, mut left) = (Vec::new(), 0, 0, false);
        let mut more = |row: Row| {
            if items > limit || bytes > PAGE_BYTES_MAX {
                left = true;
                return false;
            }
            items += usize::try_from(row.int("items").unwrap_or(1)).unwrap_or(0);
            bytes += row.int("bytes").unwrap_or(0);
            rows.push(row);
            true
        };
        self.db.read_while(unplaced, &mut more).await?;
        Ok((rows, left))
    }

    /// The ends of these tasks and batches behind `after` and before the index `horizon`, in their order.
    async fn ends_of(&self, rows: &[Row], after: Place, horizon: Option<i64>) -> anyhow::Result<Vec<(Place, Shown)>> {
        let mut ends = Vec::new();
        for row in rows {
            let all = if row.int("items").is_some() { self.items(row).await? } else { self.task_end(row).await? };
            ends.extend(all.into_iter().filter(|(at, _)| *at > after && horizon.is_none_or(|h| at.index < h)));
        }
        ends.sort_by_key(|(at, _)| *at);
        Ok(ends)
    }

    async fn task_end(&self, row: &Row) -> anyhow::Result<Vec<(Place, Shown)>> {
        let index = row.int("idx");
        let (queue, id) = (row.string("queue"), row.string("id"));
        let status = row.int("status").unwrap_or(0);
        let mut shown = end(index, &id, &queue, status);
        if status != DONE || !shown.set_kept(row) {
            self.add_failure(&mut shown, &queue, &id).await?;
        }
        Ok(vec![(place(row, index, 0), shown)])
    }

    /// The end of each item of a batch that has ended one way or another.
    async fn items(&self, row: &Row) -> anyhow::Result<Vec<(Place, Shown)>> {
        let first = row.int("idx");
        let (queue, id) = (row.string("queue"), row.string("id"));
        let results: Vec<&RawValue> = serde_json::from_str(row.text("result").unwrap_or("[]"))?;
        let bitmap = row.blob("bitmap");
        let refs = refs(row);
        let mut ends = Vec::new();
        for (item, result) in results.iter().enumerate().filter(|(item, _)| has_bit(bitmap, *item)) {
            let number = i64::try_from(item)?;
            let index = first.map(|first| first + number);
            let mut shown = end(index, &format!("{id}/{item}"), &queue, DONE);
            match refs.get(&number.to_string()) {
                Some(at) => shown.set("ref", at.clone()),
                None => shown.set_result(result.get()),
            }
            ends.push((place(row, index, number), shown));
        }
        if row.int("status") == Some(DONE) {
            return Ok(ends);
        }
        let others = Sql::new("SELECT id, status FROM tasks WHERE queue = ? AND root = ? AND status <> ?");
        for other in self.db.read(others.bind(&queue).bind(&id).bind(DONE)).await? {
            let (item_id, status) = (other.string("id"), other.int("status").unwrap_or(0));
            let Some(number) = item_id.rsplit('/').next().and_then(|i| i.parse::<i64>().ok()) else { continue };
            let index = first.map(|first| first + number);
            let mut shown = end(index, &item_id, &queue, status);
            self.add_failure(&mut shown, &queue, &item_id).await?;
            ends.push((place(row, index, number), shown));
        }
        Ok(ends)
    }

    async fn add_failure(&self, shown: &mut Shown, queue: &str, id: &str) -> anyhow::Result<()> {
        let failed = Sql::new(
            "SELECT failure FROM attempts WHERE queue = ? AND id = ? AND failure IS NOT NULL ORDER BY attempt DESC LIMIT 1",
        );
        let found = self.db.read(failed.bind(queue).bind(id)).await?;
        let found = found.first().and_then(|row| row.text("failure"));
        if let Some(failure) = found.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
            shown.set("failure", failure);
        }
        Ok(())
    }
}

fn end(index: Option<i64>, id: &str, queue: &str, status: i64) -> Shown {
    Shown::new(json!({ "index": index, "id": id, "queue": queue, "status": status_name(status) }))
}

fn place(row: &Row, index: Option<i64>, item: i64) -> Place {
    Place { index: index.unwrap_or(NO_INDEX), n: row.int("n").unwrap_or(0), item }
}

impl Store {
    fn shown_job(&self, row: &Row) -> Shown {
        let record = row.text("record").and_then(|text| serde_json::from_str::<JobRecord>(text).ok());
        let count = |name: &str| row.count(name);
        let job = row.string("job");
        let is_cancelled =
            self.cancelled.has(&job) || record.as_ref().is_some_and(|record| record.state == JobState::Cancelled);
        let (done, mut retrying, mut dead, mut cancelled) =
            (count("done"), count("retrying"), count("dead"), count("cancelled"));
        if is_cancelled {
            // Most of them have no row: all that were published and have no result.
            let published = record.as_ref().map_or(0, |record| record.total.unwrap_or(record.published));
            (retrying, dead, cancelled) = (0, 0, cancelled.max(published.saturating_sub(done)));
        }
        // One that ends after all is counted as what it is.
        let purged = match record.as_ref().and_then(|record| record.total).filter(|_| !is_cancelled) {
            Some(total) => count("purged").min(total.saturating_sub(done + dead + cancelled)),
            None => 0,
        };
        let state = match &record {
            _ if is_cancelled => "cancelled",
            Some(record) => state_of(record, done + dead + cancelled + purged),
            None => "session",
        };
        let mut job = Shown::new(json!({
            "job": job, "state": state, "done": done, "retrying": retrying, "dead": dead, "cancelled": cancelled,
            "purged": purged,
            "queue": row.text("queue"), "kind": row.text("kind"), "created_ms": count("created_ms"),
            "total": Value::Null,
        }));
        if let Some(record) = record {
            job.set("queue", json!(record.queue));
            job.set("kind", json!(record.kind));
            job.set("then", json!(record.then));
            job.set("epoch", json!(record.epoch));
            job.set("total", json!(record.total));
            job.set("published", json!(record.published));
            job.set("created_ms", json!(record.created_ms));
            job.set("heartbeat_ms", json!(record.heartbeat_ms));
        }
        job
    }
}

fn state_of(record: &JobRecord, ended: u64) -> &'static str {
    let age_ms = millpond::now_ms().saturating_sub(record.heartbeat_ms);
    let stalled = u128::try_from(age_ms).unwrap_or(0) > HEARTBEAT_LOST_AFTER.as_millis();
    match (record.state, record.total) {
        (JobState::Closed, Some(total)) if ended >= total => "finished",
        (JobState::Closed, _) => "closed",
        (JobState::Open, _) if stalled => "stalled",
        (JobState::Open, _) => "open",
        (JobState::Cancelled, _) => "cancelled",
    }
}

/// The condition on a job's state: what [`state_of`] says. The table knows all but whether its owner is silent.
fn of_state<'a>(sql: &mut Sql<'a>, state: &'a str) {
    let silent = match state {
        "open" => ">=",
        "stalled" => "<",
        _ => return sql.push(" AND state = ?", state),
    };
    let lost = millpond::now_ms().saturating_sub(i64::try_from(HEARTBEAT_LOST_AFTER.as_millis()).unwrap_or(i64::MAX));
    let owner = format!("SELECT 1 FROM jobs WHERE jobs.job = job_counts.job AND heartbeat_ms {silent} ?");
    sql.push(&format!(" AND state = 'open' AND EXISTS ({owner})"), lost);
}

//! How the tasks of a job ended, page by page in the order of the job.

use millpond::limits::BATCH_ITEMS_MAX;
use millpond::outcome::Failure;
use millpond_api::jobs::JobResult;
use millpond_api::tasks::TaskStatus;
use serde_json::value::RawValue;

use super::Store;
use super::error::Result;
use super::items::{has_bit, item_of_id};
use super::job_names::job_key;
use super::rows::{bytes_items, shown_result, stored_results};
use super::sql::{Row, Sql};

/// Results of one page, in bytes, at the most; the row that goes beyond it is still shown.
const PAGE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Stands for the index of a task that has no place in its job: those come last.
const NO_INDEX: i64 = i64::MAX;

const COLUMNS: &str = "SELECT n, queue, kind, id, idx, items, bitmap, status, result, ref, base64,
    CAST(coalesce(octet_length(result), 0) AS BIGINT) AS bytes FROM tasks WHERE job = ? AND root IS NULL";

/// Where a row stands in the order of its job: by index, then by age. Two tasks may claim one index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ResultCursor {
    index: i64,
    n: i64,
    item: i64,
}

impl ResultCursor {
    const START: Self = Self { index: i64::MIN, n: 0, item: 0 };

    fn of(row: &Row, index: Option<i64>, item: u32) -> Result<Self> {
        Ok(Self { index: index.unwrap_or(NO_INDEX), n: row.get("n")?, item: item.into() })
    }

    /// Reads a cursor; none when the text is not one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(str::parse::<i64>);
        let cursor = Self { index: numbers.next()?.ok()?, n: numbers.next()?.ok()?, item: numbers.next()?.ok()? };
        numbers.next().is_none().then_some(cursor)
    }

    /// Behind all that claim this index.
    pub(crate) fn behind(index: i64) -> Self {
        Self { index, n: i64::MAX, item: i64::MAX }
    }

    /// The index after it; none when only tasks without an index are left.
    pub(crate) fn next_index(self) -> Option<u64> {
        u64::try_from(self.index.saturating_add(1)).ok().filter(|_| self.index < NO_INDEX)
    }

    /// As text that [`ResultCursor::parse`] reads.
    pub(crate) fn text(self) -> String {
        format!("{}.{}.{}", self.index, self.n, self.item)
    }
}

/// Counts what a page holds while its rows are read.
#[derive(Default)]
struct PageFill {
    rows: Vec<Row>,
    items: usize,
    bytes: u64,
}

impl PageFill {
    fn is_full(&self, limit: usize) -> bool {
        self.items > limit || self.bytes > PAGE_BYTES_MAX
    }

    /// Adds a row, of which `items` items are on this page.
    fn push(&mut self, row: Row, items: i64) -> Result<()> {
        self.items += usize::try_from(items).unwrap_or(0);
        self.bytes += row.get::<u64>("bytes")?;
        self.rows.push(row);
        Ok(())
    }
}

impl Store {
    /// The ends of a job's tasks by index, batches item by item; then of those without an index, by age. Items that
    /// have not ended are left out, so a page may be short. An epoch of 0 means the newest.
    pub(crate) async fn job_results(
        &self,
        job: &str,
        epoch: u32,
        limit: u32,
        after: Option<ResultCursor>,
    ) -> Result<(Vec<JobResult>, Option<ResultCursor>)> {
        let (limit, after) = (limit as usize, after.unwrap_or(ResultCursor::START));
        let job = &if epoch == 0 { self.newest_epoch(job).await? } else { job_key(job, epoch).into_owned() };
        let (mut rows, mut horizon) = (Vec::new(), None);
        if after.index < NO_INDEX {
            (rows, horizon) = self.rows_with_index(job, limit, after).await?;
        }
        let mut ends = self.ends_of(&rows, after, horizon).await?;
        let mut next = horizon.map(|index| ResultCursor::behind(index - 1));
        if next.is_none() && ends.len() <= limit {
            let (rows, left) = self.rows_without_index(job, limit - ends.len(), after).await?;
            ends.extend(self.ends_of(&rows, after, None).await?);
            // The next page starts behind the last batch or task that was read.
            if let Some(last) = rows.last().filter(|_| left) {
                next = Some(ResultCursor { n: last.get("n")?, ..ResultCursor::behind(NO_INDEX) });
            }
        }
        if ends.len() > limit {
            ends.truncate(limit);
            next = ends.last().map(|(at, _)| *at);
        }
        Ok((ends.into_iter().map(|(_, end)| end).collect(), next))
    }

    /// Tasks and batches with an index, enough of them for a page; and the first index that was not read, if any.
    async fn rows_with_index(&self, job: &str, limit: usize, after: ResultCursor) -> Result<(Vec<Row>, Option<i64>)> {
        let sql = Sql::new(format!("{COLUMNS} AND idx >= ? AND idx + coalesce(items, 1) > ? ORDER BY idx, n"));
        let sql = sql.bind(job).bind(after.index.saturating_sub(i64::from(BATCH_ITEMS_MAX))).bind(after.index);
        let (mut page, mut last, mut horizon) = (PageFill::default(), i64::MIN, None);
        let mut add = |row: Row| {
            let index: i64 = row.get("idx")?;
            let behind = index + row.get::<Option<i64>>("items")?.unwrap_or(1);
            // What starts before the page's first row, or where another row starts, overlaps: it must be read too.
            if page.is_full(limit) && index > last && index > after.index.saturating_add(1) {
                horizon = Some(index);
                return Ok(false);
            }
            last = index;
            page.push(row, behind - index.max(after.index))?;
            Ok(true)
        };
        self.db.read_while(sql, &mut add).await?;
        Ok((page.rows, horizon))
    }

    /// Tasks and batches without an index, by age; and whether there are more.
    async fn rows_without_index(&self, job: &str, limit: usize, after: ResultCursor) -> Result<(Vec<Row>, bool)> {
        let sql = Sql::new(format!("{COLUMNS} AND idx IS NULL AND n >= ? ORDER BY n"));
        let sql = sql.bind(job).bind(if after.index == NO_INDEX { after.n } else { 0 });
        let (mut page, mut left) = (PageFill::default(), false);
        let mut add = |row: Row| {
            left = page.is_full(limit);
            if !left {
                let items = row.get::<Option<i64>>("items")?.unwrap_or(1);
                page.push(row, items)?;
            }
            Ok(!left)
        };
        self.db.read_while(sql, &mut add).await?;
        Ok((page.rows, left))
    }

    /// The ends of these tasks and batches behind `after` and before the index `horizon`, in their order.
    async fn ends_of(
        &self,
        rows: &[Row],
        after: ResultCursor,
        horizon: Option<i64>,
    ) -> Result<Vec<(ResultCursor, JobResult)>> {
        let mut ends = Vec::new();
        for row in rows {
            let all = match row.get::<Option<i64>>("items")? {
                Some(_) => self.batch_ends(row).await?,
                None => vec![self.task_end(row).await?],
            };
            ends.extend(all.into_iter().filter(|(at, _)| *at > after && horizon.is_none_or(|h| at.index < h)));
        }
        ends.sort_by_key(|(at, _)| *at);
        Ok(ends)
    }

    async fn task_end(&self, row: &Row) -> Result<(ResultCursor, JobResult)> {
        let mut end = job_result(row, row.get("idx")?, row.get("id")?, row.get("status")?)?;
        if end.status == TaskStatus::Done {
            end.stored_result = row.optional_json("ref")?;
            if let Some(result) = row.optional_json("result")? {
                (end.result, end.result_text) = shown_result(result);
                end.result_is_bytes = row.get::<Option<&str>>("base64")?.is_some();
            }
        } else {
            end.failure = self.last_failure(&end).await?;
        }
        Ok((ResultCursor::of(row, end.index, 0)?, end))
    }

    /// The end of each item of a batch that has ended one way or another.
    async fn batch_ends(&self, batch: &Row) -> Result<Vec<(ResultCursor, JobResult)>> {
        let (queue, kind, id): (&str, &str, &str) = (batch.get("queue")?, batch.get("kind")?, batch.get("id")?);
        let first: Option<i64> = batch.get("idx")?;
        let index = |item: u32| first.map(|first| first + i64::from(item));
        let (results, bitmap): (Vec<&RawValue>, &[u8]) = (batch.json("result")?, batch.get("bitmap")?);
        let (mut stored, as_bytes) = (stored_results(batch)?, bytes_items(batch)?);
        let mut ends = Vec::new();
        for (item, result) in (0..).zip(results).filter(|(item, _)| has_bit(bitmap, *item)) {
            let mut end = job_result(batch, index(item), format!("{id}/{item}"), TaskStatus::Done)?;
            end.stored_result = stored.remove(&item);
            if end.stored_result.is_none() {
                (end.result, end.result_text) = shown_result(result);
                end.result_is_bytes = as_bytes.contains(&item);
            }
            ends.push((ResultCursor::of(batch, end.index, item)?, end));
        }
        if batch.get::<TaskStatus>("status")? == TaskStatus::Done {
            return Ok(ends);
        }
        let others = Sql::new("SELECT id, status FROM tasks WHERE queue = ? AND root = ? AND kind = ? AND status <> ?");
        for other in self.db.read(others.bind(queue).bind(id).bind(kind).bind(TaskStatus::Done)).await? {
            let item_id: String = other.get("id")?;
            let Some(item) = item_of_id(&item_id) else { continue };
            let mut end = job_result(batch, index(item), item_id, other.get("status")?)?;
            end.failure = self.last_failure(&end).await?;
            ends.push((ResultCursor::of(batch, end.index, item)?, end));
        }
        Ok(ends)
    }

    async fn last_failure(&self, end: &JobResult) -> Result<Option<Failure>> {
        let failed = Sql::new(
            "SELECT failure FROM attempts WHERE queue = ? AND id = ? AND kind = ? AND failure IS NOT NULL
             ORDER BY attempt DESC LIMIT 1",
        );
        self.db
            .read(failed.bind(&end.queue).bind(&end.id).bind(&end.kind))
            .await?
            .first()
            .map(|row| row.json("failure"))
            .transpose()
    }
}

/// An end without its result or failure, of this task, or of an item of this batch.
fn job_result(of: &Row, index: Option<i64>, id: String, status: TaskStatus) -> Result<JobResult> {
    Ok(JobResult {
        index,
        id,
        queue: of.get("queue")?,
        kind: of.get("kind")?,
        status,
        digest: None,
        result: None,
        result_text: None,
        result_is_bytes: false,
        stored_result: None,
        failure: None,
    })
}

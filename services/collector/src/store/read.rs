//! What the API asks of the store. Rows are JSON as the API gives them; lists come in pages.

use millpond::limits::BATCH_ITEMS_MAX;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite};

use super::cancels::stored_job;
use super::shown::{Shown, column, dead_letter, item_of, listed_task, text, whole_task};
use super::{STATUS_NAMES, Store};

/// Which rows of a list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    /// Rows at the most.
    pub(crate) limit: u32,
    /// After the row with this number; none for the first page.
    pub(crate) after: Option<i64>,
}

/// Rows and where the next page starts.
pub(crate) type Rows = (Vec<Shown>, Option<i64>);

/// Which tasks.
#[derive(Debug, Default, Clone)]
pub(crate) struct TaskFilter {
    pub(crate) job: Option<String>,
    pub(crate) queue: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) status: Option<String>,
    pub(crate) worker: Option<String>,
    pub(crate) error: Option<String>,
    /// At this time or later.
    pub(crate) since_ms: Option<i64>,
    /// Before this time.
    pub(crate) until_ms: Option<i64>,
}

const TASK_COLUMNS: &str =
    "SELECT n, queue, id, kind, job, idx, root, items, done, bitmap, status, attempt, result, ref, worker,
    published_ms, started_ms, ended_ms, stored_ms, trace, next FROM tasks WHERE 1 = 1";

const DEAD_COLUMNS: &str = "SELECT tasks.n, dead.queue, dead.id, tasks.kind, tasks.job, tasks.idx, dead.attempt,
    dead.reason, dead.evidence, dead.headers, dead.payload, dead.buried_ms
    FROM dead JOIN tasks ON tasks.queue = dead.queue AND tasks.id = dead.id WHERE tasks.status = 2
    AND dead.purged_ms IS NULL";

/// The page's rows, and the number after which the next one starts when there is more.
pub(super) fn paged(rows: &[SqliteRow], limit: u32, shown: impl Fn(&SqliteRow) -> Shown) -> Rows {
    let page = rows.get(..limit as usize);
    let next = page.and_then(<[SqliteRow]>::last).and_then(|row| column(row, "n"));
    (page.unwrap_or(rows).iter().map(shown).collect(), next.filter(|_| rows.len() > limit as usize))
}

impl Store {
    /// Tasks, the newest first.
    pub(crate) async fn tasks(&self, filter: &TaskFilter, page: Page) -> anyhow::Result<Rows> {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(TASK_COLUMNS);
        let filter = self.of_newest_epoch(filter).await?;
        let status = filter.status.as_ref().map(|s| STATUS_NAMES.iter().position(|n| n == s));
        for (condition, value) in [
            (" AND job = ", &filter.job),
            (" AND queue = ", &filter.queue),
            (" AND kind = ", &filter.kind),
            (" AND worker = ", &filter.worker),
        ] {
            if let Some(value) = value {
                query.push(condition).push_bind(value);
            }
        }
        if let Some(status) = status {
            query.push(" AND status = ").push_bind(status.and_then(|s| i64::try_from(s).ok()).unwrap_or(-1));
        }
        if let Some(error) = &filter.error {
            query.push(
                " AND EXISTS (SELECT 1 FROM attempts WHERE attempts.queue = tasks.queue AND attempts.id = tasks.id",
            );
            for (part, field) in
                [(" AND (instr(lower(failure ->> ", "type"), (" OR instr(lower(failure ->> ", "message")]
            {
                query.push(part).push_bind(field).push("), lower(").push_bind(error).push(")) > 0");
            }
            query.push("))");
        }
        if let Some(since) = filter.since_ms {
            query.push(" AND published_ms >= ").push_bind(since);
        }
        if let Some(until) = filter.until_ms {
            query.push(" AND published_ms < ").push_bind(until);
        }
        if let Some(after) = page.after {
            query.push(" AND n < ").push_bind(after);
        }
        query.push(" ORDER BY n DESC LIMIT ").push_bind(i64::from(page.limit) + 1);
        let rows = query.build().fetch_all(&self.readers).await?;
        Ok(paged(&rows, page.limit, listed_task))
    }

    async fn of_newest_epoch(&self, filter: &TaskFilter) -> sqlx::Result<TaskFilter> {
        let mut filter = filter.clone();
        if let Some(job) = &filter.job {
            filter.job = Some(self.newest_epoch(job).await?);
        }
        Ok(filter)
    }

    /// The tasks with this id: none, one, or one of each queue that has it. An item of a batch is found too.
    pub(crate) async fn task(&self, id: &str, queue: Option<&str>) -> anyhow::Result<Vec<Shown>> {
        let mut found: Vec<Shown> = self.task_rows(id, queue).await?.iter().map(whole_task).collect();
        if found.is_empty()
            && let Some((root, item)) = id.rsplit_once('/')
            && let Ok(item) = item.parse::<u32>()
        {
            found.extend(self.task_rows(root, queue).await?.iter().filter_map(|batch| item_of(batch, id, item)));
        }
        if found.is_empty()
            && let Some(place) = self.place_in_job(id, queue).await?
        {
            return Box::pin(self.task(&place, queue)).await;
        }
        if found.is_empty() {
            return Ok(Box::pin(self.cancelled_with_its_job(id)).await?.into_iter().collect());
        }
        for task in &mut found {
            self.add_evidence(task).await?;
        }
        Ok(found)
    }

    /// The id under which the store knows the item `<job>.<epoch>/<index>` of a job, where it came in a batch.
    async fn place_in_job(&self, id: &str, queue: Option<&str>) -> sqlx::Result<Option<String>> {
        let Some((root, index)) = id.rsplit_once('/') else { return Ok(None) };
        let (Some((job, _)), Ok(index)) = (root.rsplit_once('.'), index.parse::<i64>()) else { return Ok(None) };
        let job = stored_job(job, id);
        let batch: Option<(String, i64)> = sqlx::query_as(
            "SELECT id, idx FROM tasks WHERE job = ? AND root IS NULL AND items IS NOT NULL AND idx <= ?
             AND idx > ? AND idx + items > ? AND queue = coalesce(?, queue) ORDER BY idx DESC LIMIT 1",
        )
        .bind(job.as_ref())
        .bind(index)
        .bind(index - i64::from(BATCH_ITEMS_MAX))
        .bind(index)
        .bind(queue)
        .fetch_optional(&self.readers)
        .await?;
        Ok(batch
            .filter(|(batch, _)| batch.starts_with(&format!("{root}/")))
            .map(|(id, first)| format!("{id}/{}", index - first)))
    }

    async fn task_rows(&self, id: &str, queue: Option<&str>) -> sqlx::Result<Vec<SqliteRow>> {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(TASK_COLUMNS);
        query.push(" AND id = ").push_bind(id);
        if let Some(queue) = queue {
            query.push(" AND queue = ").push_bind(queue);
        }
        query.build().fetch_all(&self.readers).await
    }

    async fn add_evidence(&self, task: &mut Shown) -> anyhow::Result<()> {
        let field = |name: &str| task.text(name).unwrap_or_default().to_owned();
        let (queue, id, root) = (field("queue"), field("id"), field("root"));
        // The attempts of its batch are its own too.
        let rows = sqlx::query(
            "SELECT attempt, worker, started_ms, ended_ms, status, failure, trace, id FROM attempts
             WHERE queue = ? AND id IN (?, ?) ORDER BY attempt, started_ms, id = ? DESC",
        )
        .bind(&queue)
        .bind(&id)
        .bind(&root)
        .bind(&id)
        .fetch_all(&self.readers)
        .await?;
        let mut attempts: Vec<Value> = Vec::new();
        for row in &rows {
            let of_batch = text(row, "id").as_deref() != Some(id.as_str());
            let attempt = column::<i64>(row, "attempt");
            // What the item's own row tells better.
            if of_batch && attempts.iter().any(|a| a.get("attempt").and_then(Value::as_i64) == attempt) {
                continue;
            }
            let failure = text(row, "failure").and_then(|f| serde_json::from_str::<Value>(&f).ok());
            let status = if of_batch { Some("done".to_owned()) } else { text(row, "status") };
            attempts.push(json!({
                "attempt": attempt, "worker": text(row, "worker"), "started_ms": column::<i64>(row, "started_ms"),
                "ended_ms": column::<i64>(row, "ended_ms"), "status": status,
                "failure": failure, "trace": text(row, "trace"),
            }));
        }
        let dead = self.dead_letter(&id, Some(&queue)).await?.pop();
        task.set("attempts", json!(attempts));
        task.set("dead", serde_json::to_value(dead)?);
        Ok(())
    }

    /// Dead letters that wait, the newest first.
    pub(crate) async fn dead(&self, filter: &TaskFilter, reason: Option<&str>, page: Page) -> anyhow::Result<Rows> {
        let filter = self.of_newest_epoch(filter).await?;
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(DEAD_COLUMNS);
        for (condition, value) in [
            (" AND tasks.job = ", filter.job.as_deref()),
            (" AND dead.queue = ", filter.queue.as_deref()),
            (" AND tasks.kind = ", filter.kind.as_deref()),
            (" AND dead.reason = ", reason),
            (" AND json_extract(dead.evidence, '$.worker') = ", filter.worker.as_deref()),
        ] {
            if let Some(value) = value {
                query.push(condition).push_bind(value.to_owned());
            }
        }
        if let Some(after) = page.after {
            query.push(" AND tasks.n < ").push_bind(after);
        }
        query.push(" ORDER BY tasks.n DESC LIMIT ").push_bind(i64::from(page.limit) + 1);
        let rows = query.build().fetch_all(&self.readers).await?;
        Ok(paged(&rows, page.limit, |row| dead_letter(row, false)))
    }

    /// The dead letters with this id, with their evidence: none, one, or one of each queue that has it.
    pub(crate) async fn dead_letter(&self, id: &str, queue: Option<&str>) -> anyhow::Result<Vec<Shown>> {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(DEAD_COLUMNS);
        query.push(" AND dead.id = ").push_bind(id.to_owned());
        if let Some(queue) = queue {
            query.push(" AND dead.queue = ").push_bind(queue.to_owned());
        }
        let rows = query.build().fetch_all(&self.readers).await?;
        Ok(rows.iter().map(|row| dead_letter(row, true)).collect())
    }

    /// Tasks by status, for the metrics.
    pub(crate) async fn unfinished(&self) -> anyhow::Result<(i64, i64)> {
        let row = sqlx::query(
            "SELECT coalesce(sum(status = 1), 0) AS retrying, coalesce(sum(status = 2), 0) AS dead
             FROM tasks WHERE status IN (1, 2) AND status < 3",
        )
        .fetch_one(&self.readers)
        .await?;
        Ok((column(&row, "retrying").unwrap_or(0), column(&row, "dead").unwrap_or(0)))
    }
}

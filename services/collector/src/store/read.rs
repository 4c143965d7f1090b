//! What the API asks of the store. Rows are JSON as the API gives them; lists come in pages.

use data_encoding::BASE64;
use millpond::job::{JobRecord, JobState};
use millpond::limits::{BATCH_ITEMS_MAX, HEARTBEAT_LOST_AFTER};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};

use super::{DEAD, DONE, STATUS_NAMES, Store};

/// Results up to this many bytes are shown in lists.
const RESULT_BYTES_LISTED: usize = 4096;

/// Which rows of a list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    /// Rows at the most.
    pub(crate) limit: u32,
    /// After the row with this number; none for the first page.
    pub(crate) after: Option<i64>,
}

/// Rows and where the next page starts.
pub(crate) type Rows = (Vec<Value>, Option<i64>);

/// Which tasks.
#[derive(Debug, Default, Clone)]
pub(crate) struct TaskFilter {
    pub(crate) job: Option<String>,
    pub(crate) queue: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) status: Option<String>,
    pub(crate) worker: Option<String>,
}

const TASK_COLUMNS: &str = "SELECT n, queue, id, kind, job, idx, root, items, done, status, attempt, result, worker,
    published_ms, started_ms, ended_ms, stored_ms, trace FROM tasks WHERE 1 = 1";

const DEAD_COLUMNS: &str = "SELECT tasks.n, dead.queue, dead.id, tasks.kind, tasks.job, tasks.idx, dead.attempt,
    dead.reason, dead.evidence, dead.headers, dead.payload, dead.buried_ms
    FROM dead JOIN tasks ON tasks.queue = dead.queue AND tasks.id = dead.id WHERE tasks.status = 2";

fn number<T: for<'r> sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>>(row: &SqliteRow, column: &str) -> Option<T> {
    row.try_get::<Option<T>, _>(column).ok().flatten()
}

fn text(row: &SqliteRow, column: &str) -> Option<String> {
    number::<String>(row, column)
}

fn status_name(status: i64) -> &'static str {
    usize::try_from(status).ok().and_then(|s| STATUS_NAMES.get(s)).copied().unwrap_or("unknown")
}

fn task_json(row: &SqliteRow, whole_result: bool) -> Value {
    let mut task = json!({
        "queue": text(row, "queue"), "id": text(row, "id"), "kind": text(row, "kind"), "job": text(row, "job"),
        "index": number::<i64>(row, "idx"), "root": text(row, "root"), "items": number::<i64>(row, "items"),
        "done": number::<i64>(row, "done"), "status": status_name(number(row, "status").unwrap_or(-1)),
        "attempt": number::<i64>(row, "attempt"), "worker": text(row, "worker"),
        "published_ms": number::<i64>(row, "published_ms"), "started_ms": number::<i64>(row, "started_ms"),
        "ended_ms": number::<i64>(row, "ended_ms"), "stored_ms": number::<i64>(row, "stored_ms"),
        "trace": text(row, "trace"),
    });
    if let (Some(object), Some(result)) = (task.as_object_mut(), text(row, "result")) {
        if whole_result || result.len() <= RESULT_BYTES_LISTED {
            object.insert("result".to_owned(), serde_json::from_str(&result).unwrap_or(Value::Null));
        } else {
            object.insert("result_bytes".to_owned(), json!(result.len()));
        }
    }
    task
}

/// The page's rows, and the number after which the next one starts when there is more.
fn paged(rows: &[SqliteRow], limit: u32, json: impl Fn(&SqliteRow) -> Value) -> Rows {
    let page = rows.get(..limit as usize);
    let next = page.and_then(<[SqliteRow]>::last).and_then(|row| number(row, "n"));
    (page.unwrap_or(rows).iter().map(json).collect(), next.filter(|_| rows.len() > limit as usize))
}

impl Store {
    /// Tasks, the newest first.
    pub(crate) async fn tasks(&self, filter: &TaskFilter, page: Page) -> anyhow::Result<Rows> {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(TASK_COLUMNS);
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
        if let Some(after) = page.after {
            query.push(" AND n < ").push_bind(after);
        }
        query.push(" ORDER BY n DESC LIMIT ").push_bind(i64::from(page.limit) + 1);
        let rows = query.build().fetch_all(&self.readers).await?;
        Ok(paged(&rows, page.limit, |row| task_json(row, false)))
    }

    /// The tasks with this id: none, one, or one of each queue that has it. An item of a batch is found too.
    pub(crate) async fn task(&self, id: &str, queue: Option<&str>) -> anyhow::Result<Vec<Value>> {
        let mut found = self.task_rows(id, queue).await?;
        if found.is_empty()
            && let Some((root, item)) = id.rsplit_once('/')
            && let Ok(item) = item.parse::<u32>()
        {
            for batch in self.task_rows(root, queue).await? {
                found.extend(item_of(&batch, id, item));
            }
        }
        for task in &mut found {
            self.add_evidence(task).await?;
        }
        Ok(found)
    }

    async fn task_rows(&self, id: &str, queue: Option<&str>) -> anyhow::Result<Vec<Value>> {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(TASK_COLUMNS);
        query.push(" AND id = ").push_bind(id);
        if let Some(queue) = queue {
            query.push(" AND queue = ").push_bind(queue);
        }
        let rows = query.build().fetch_all(&self.readers).await?;
        Ok(rows.iter().map(|row| task_json(row, true)).collect())
    }

    async fn add_evidence(&self, task: &mut Value) -> anyhow::Result<()> {
        let field = |name: &str| task.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
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
            let attempt = number::<i64>(row, "attempt");
            // What the item's own row tells better.
            if of_batch && attempts.iter().any(|a| a.get("attempt").and_then(Value::as_i64) == attempt) {
                continue;
            }
            let failure = text(row, "failure").and_then(|f| serde_json::from_str::<Value>(&f).ok());
            let status = if of_batch { Some("done".to_owned()) } else { text(row, "status") };
            attempts.push(json!({
                "attempt": attempt, "worker": text(row, "worker"), "started_ms": number::<i64>(row, "started_ms"),
                "ended_ms": number::<i64>(row, "ended_ms"), "status": status,
                "failure": failure, "trace": text(row, "trace"),
            }));
        }
        let dead = self.dead_letter(&id, Some(&queue)).await?.pop();
        if let Some(task) = task.as_object_mut() {
            task.insert("attempts".to_owned(), json!(attempts));
            task.insert("dead".to_owned(), json!(dead));
        }
        Ok(())
    }

    /// Dead letters that wait, the newest first.
    pub(crate) async fn dead(&self, filter: &TaskFilter, reason: Option<&str>, page: Page) -> anyhow::Result<Rows> {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(DEAD_COLUMNS);
        for (condition, value) in [
            (" AND tasks.job = ", filter.job.as_deref()),
            (" AND dead.queue = ", filter.queue.as_deref()),
            (" AND tasks.kind = ", filter.kind.as_deref()),
            (" AND dead.reason = ", reason),
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
        Ok(paged(&rows, page.limit, |row| dead_json(row, false)))
    }

    /// The dead letters with this id, with their evidence: none, one, or one of each queue that has it.
    pub(crate) async fn dead_letter(&self, id: &str, queue: Option<&str>) -> anyhow::Result<Vec<Value>> {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(DEAD_COLUMNS);
        query.push(" AND dead.id = ").push_bind(id.to_owned());
        if let Some(queue) = queue {
            query.push(" AND dead.queue = ").push_bind(queue.to_owned());
        }
        let rows = query.build().fetch_all(&self.readers).await?;
        Ok(rows.iter().map(|row| dead_json(row, true)).collect())
    }

    /// Jobs with their progress, the newest first; those without a record (sessions) come last.
    pub(crate) async fn jobs(&self, page: Page) -> anyhow::Result<Rows> {
        let names: Vec<SqliteRow> =
            sqlx::query("SELECT rowid AS n, job FROM jobs WHERE rowid < ? ORDER BY rowid DESC LIMIT ?")
                .bind(page.after.unwrap_or(i64::MAX))
                .bind(i64::from(page.limit) + 1)
                .fetch_all(&self.readers)
                .await?;
        let (names, next) = paged(&names, page.limit, |row| json!(text(row, "job")));
        let mut rows = Vec::new();
        for name in names.iter().filter_map(Value::as_str) {
            rows.extend(self.job(name).await?);
        }
        Ok((rows, next))
    }

    /// One job with its progress; none when nothing is known of it.
    pub(crate) async fn job(&self, job: &str) -> anyhow::Result<Option<Value>> {
        let record: Option<String> =
            sqlx::query_scalar("SELECT record FROM jobs WHERE job = ?").bind(job).fetch_optional(&self.readers).await?;
        let record: Option<JobRecord> = record.and_then(|text| serde_json::from_str(&text).ok());
        // A batch counts what its items have; an item's own row counts until it has a result too.
        let counts = sqlx::query(
            "SELECT coalesce(sum(CASE WHEN root IS NULL THEN done ELSE 0 END), 0) AS done,
                coalesce(sum(status = 1), 0) AS retrying, coalesce(sum(status = 2), 0) AS dead,
                coalesce(sum(status = 4), 0) AS cancelled, count(*) AS known,
                min(queue) AS queue, min(kind) AS kind, min(published_ms) AS created_ms
             FROM tasks WHERE job = ?",
        )
        .bind(job)
        .fetch_one(&self.readers)
        .await?;
        let count = |name: &str| number::<i64>(&counts, name).unwrap_or(0);
        if record.is_none() && count("known") == 0 {
            return Ok(None);
        }
        let ended = u64::try_from(count("done") + count("dead") + count("cancelled")).unwrap_or(0);
        let state = record.as_ref().map_or("session", |record| state_of(record, ended));
        let mut row = json!({
            "job": job, "state": state, "done": count("done"), "retrying": count("retrying"), "dead": count("dead"),
            "cancelled": count("cancelled"), "queue": text(&counts, "queue"), "kind": text(&counts, "kind"),
            "created_ms": number::<i64>(&counts, "created_ms"), "total": Value::Null,
        });
        if let (Some(row), Some(record)) = (row.as_object_mut(), record) {
            let known = [
                ("queue", json!(record.queue)),
                ("kind", json!(record.kind)),
                ("epoch", json!(record.epoch)),
                ("total", json!(record.total)),
                ("published", json!(record.published)),
                ("created_ms", json!(record.created_ms)),
                ("heartbeat_ms", json!(record.heartbeat_ms)),
            ];
            row.extend(known.map(|(name, value)| (name.to_owned(), value)));
        }
        Ok(Some(row))
    }

    /// The ends of a job's tasks by index, batches item by item. `after` is the last index of the page before.
    pub(crate) async fn job_results(&self, job: &str, page: Page) -> anyhow::Result<Rows> {
        let from = page.after.map_or(0, |after| after + 1);
        let rows = sqlx::query(
            "SELECT queue, id, idx, items, status, result, attempt FROM tasks
             WHERE job = ? AND root IS NULL AND idx >= ? ORDER BY idx LIMIT ?",
        )
        .bind(job)
        .bind(from - i64::from(BATCH_ITEMS_MAX))
        .bind(i64::from(page.limit) + i64::from(BATCH_ITEMS_MAX) + 1)
        .fetch_all(&self.readers)
        .await?;
        let mut results = Vec::new();
        for row in &rows {
            let first = number::<i64>(row, "idx").unwrap_or(0);
            if first + number::<i64>(row, "items").unwrap_or(1) <= from {
                continue;
            }
            let ends = self.ends(row, first).await?;
            results.extend(ends.into_iter().filter(|(index, _)| *index >= from));
            if results.len() > page.limit as usize {
                break;
            }
        }
        let more = results.len() > page.limit as usize;
        results.truncate(page.limit as usize);
        let next = results.last().map(|(index, _)| *index).filter(|_| more);
        Ok((results.into_iter().map(|(_, end)| end).collect(), next))
    }

    /// The end of a task, or of each item of a batch that has ended one way or another.
    async fn ends(&self, row: &SqliteRow, first: i64) -> anyhow::Result<Vec<(i64, Value)>> {
        let (queue, id) = (text(row, "queue").unwrap_or_default(), text(row, "id").unwrap_or_default());
        let end = |index: i64, id: &str, status: i64, result: Option<&RawValue>, failure: Option<Value>| {
            let mut end = Map::from_iter([
                ("index".to_owned(), json!(index)),
                ("id".to_owned(), json!(id)),
                ("queue".to_owned(), json!(queue)),
                ("status".to_owned(), json!(status_name(status))),
            ]);
            end.extend(result.map(|r| ("result".to_owned(), json!(r))));
            end.extend(failure.map(|f| ("failure".to_owned(), f)));
            (index, Value::Object(end))
        };
        let result = text(row, "result");
        let status = number::<i64>(row, "status").unwrap_or(0);
        if number::<i64>(row, "items").is_none() {
            let failure = if status == DONE { None } else { self.last_failure(&queue, &id).await? };
            let result = result.as_deref().and_then(|r| serde_json::from_str(r).ok());
            return Ok(vec![end(first, &id, status, result, failure)]);
        }
        let results: Vec<Option<&RawValue>> =
            result.as_deref().map(serde_json::from_str).transpose()?.unwrap_or_default();
        let bitmap: Vec<u8> = sqlx::query_scalar("SELECT bitmap FROM tasks WHERE queue = ? AND id = ?")
            .bind(&queue)
            .bind(&id)
            .fetch_one(&self.readers)
            .await?;
        let mut ends = Vec::new();
        for (item, result) in results.iter().enumerate() {
            let index = first + i64::try_from(item)?;
            let item_id = format!("{id}/{item}");
            if bitmap.get(item / 8).is_some_and(|byte| byte & (1 << (item % 8)) != 0) {
                // A result that is null reads as none.
                ends.push(end(index, &item_id, DONE, Some(result.unwrap_or(RawValue::NULL)), None));
            } else if let Some(status) = self.item_status(&queue, &item_id).await? {
                let failure = self.last_failure(&queue, &item_id).await?;
                ends.push(end(index, &item_id, status, None, failure));
            }
        }
        Ok(ends)
    }

    async fn item_status(&self, queue: &str, id: &str) -> sqlx::Result<Option<i64>> {
        let found = sqlx::query_scalar("SELECT status FROM tasks WHERE queue = ? AND id = ?").bind(queue).bind(id);
        found.fetch_optional(&self.readers).await
    }

    async fn last_failure(&self, queue: &str, id: &str) -> anyhow::Result<Option<Value>> {
        let found: Option<String> = sqlx::query_scalar(
            "SELECT failure FROM attempts WHERE queue = ? AND id = ? AND failure IS NOT NULL
             ORDER BY attempt DESC LIMIT 1",
        )
        .bind(queue)
        .bind(id)
        .fetch_optional(&self.readers)
        .await?;
        Ok(found.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Tasks by status, for the metrics.
    pub(crate) async fn unfinished(&self) -> anyhow::Result<(i64, i64)> {
        let row = sqlx::query(
            "SELECT coalesce(sum(status = 1), 0) AS retrying, coalesce(sum(status = 2), 0) AS dead
             FROM tasks WHERE status IN (1, 2) AND status < 3",
        )
        .fetch_one(&self.readers)
        .await?;
        debug_assert_eq!(STATUS_NAMES.get(2), Some(&status_name(DEAD)));
        Ok((number(&row, "retrying").unwrap_or(0), number(&row, "dead").unwrap_or(0)))
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
    }
}

/// One item of a batch that has no row of its own.
fn item_of(batch: &Value, id: &str, item: u32) -> Option<Value> {
    let result = batch.get("result")?.as_array()?.get(item as usize)?.clone();
    let mut task = batch.clone();
    let row = task.as_object_mut()?;
    let index = batch.get("index").and_then(Value::as_i64).map(|i| i + i64::from(item));
    let root = batch.get("id")?.clone();
    // An item that failed has a row of its own: one that has none and no result has not ended an attempt.
    let status = if result.is_null() && batch.get("status")? != "done" { "partial" } else { "done" };
    row.extend([
        ("id".to_owned(), json!(id)),
        ("root".to_owned(), root),
        ("items".to_owned(), Value::Null),
        ("index".to_owned(), json!(index)),
        ("result".to_owned(), result),
        ("status".to_owned(), json!(status)),
        ("done".to_owned(), json!(u8::from(status == "done"))),
    ]);
    Some(task)
}

fn dead_json(row: &SqliteRow, whole: bool) -> Value {
    let evidence = text(row, "evidence").and_then(|e| serde_json::from_str::<Value>(&e).ok()).unwrap_or(Value::Null);
    let mut dead = json!({
        "queue": text(row, "queue"), "id": text(row, "id"), "kind": text(row, "kind"), "job": text(row, "job"),
        "index": number::<i64>(row, "idx"), "attempt": number::<i64>(row, "attempt"), "reason": text(row, "reason"),
        "failure": evidence.get("failure"), "worker": evidence.get("worker"), "trace": evidence.get("trace"),
        "buried_ms": number::<i64>(row, "buried_ms"),
    });
    if let Some(object) = dead.as_object_mut().filter(|_| whole) {
        let payload: Vec<u8> = number(row, "payload").unwrap_or_default();
        object.insert("failures".to_owned(), evidence.get("failures").cloned().unwrap_or_else(|| json!([])));
        object.insert("evidence".to_owned(), evidence);
        let headers = text(row, "headers").and_then(|h| serde_json::from_str::<Value>(&h).ok());
        object.insert("headers".to_owned(), json!(headers));
        match serde_json::from_slice::<Value>(&payload) {
            Ok(json) => object.insert("payload".to_owned(), json),
            Err(_) => object.insert("payload_base64".to_owned(), json!(BASE64.encode(&payload))),
        };
    }
    dead
}

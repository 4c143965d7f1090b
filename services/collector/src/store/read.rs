//! What the API asks of the store. Rows are JSON as the API gives them; lists come in pages.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use millpond::limits::BATCH_ITEMS_MAX;
use serde_json::{Value, json};

use super::cancels::stored_job;
use super::letters::{DEAD_COLUMNS, DEAD_WAITING};
use super::shown::{Shown, dead_letter, item_of, listed_task, whole_task};
use super::sql::{Row, Sql};
use super::{DONE, STATUS_NAMES, Store};

/// Where a page ended: the row's number, and its time where the list is ordered by time, as that of tasks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) n: i64,
    pub(crate) at_ms: Option<i64>,
}

impl FromStr for Cursor {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        match text.split_once('.') {
            None => Ok(Self { n: text.parse()?, at_ms: None }),
            Some((at, n)) => Ok(Self { n: n.parse()?, at_ms: Some(at.parse()?) }),
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at_ms {
            None => write!(f, "{}", self.n),
            Some(at) => write!(f, "{at}.{}", self.n),
        }
    }
}

/// Which rows of a list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    /// Rows at the most.
    pub(crate) limit: u32,
    /// After the row with this cursor; none for the first page.
    pub(crate) after: Option<Cursor>,
}

/// Rows and where the next page starts.
pub(crate) type Rows = (Vec<Shown>, Option<Cursor>);

/// Which tasks.
#[derive(Debug, Default, Clone)]
pub(crate) struct TaskFilter {
    pub(crate) job: Option<String>,
    pub(crate) queue: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) status: Option<String>,
    pub(crate) worker: Option<String>,
    /// Text in the type or message of its last failure, whatever the case.
    pub(crate) error: Option<String>,
    /// Published (a dead letter: buried) at this time or later, Unix milliseconds.
    pub(crate) since_ms: Option<i64>,
    /// Published (a dead letter: buried) before this time, Unix milliseconds.
    pub(crate) until_ms: Option<i64>,
}

const TASK_COLUMNS: &str =
    "SELECT n, queue, id, kind, job, idx, root, items, done, bitmap, status, attempt, result, ref, worker,
    published_ms, started_ms, ended_ms, stored_ms, trace, next FROM tasks WHERE 1 = 1";

/// The page's rows, and where the next one starts when there is more.
pub(super) fn paged(rows: &[Row], limit: u32, shown: impl Fn(&Row) -> Shown) -> Rows {
    let page = rows.get(..limit as usize);
    let last = page.and_then(<[Row]>::last).filter(|_| rows.len() > limit as usize);
    let next = last.map(|row| Cursor { n: row.int("n").unwrap_or(0), at_ms: None });
    (page.unwrap_or(rows).iter().map(shown).collect(), next)
}

impl Store {
    /// Tasks, those published last first: each index of theirs is in this order, so that no list is sorted.
    pub(crate) async fn tasks(&self, filter: &TaskFilter, page: Page) -> anyhow::Result<Rows> {
        let mut sql = Sql::new(TASK_COLUMNS);
        let job = self.job_of(filter).await?;
        for (condition, value) in [
            (" AND job = ?", &job),
            (" AND queue = ?", &filter.queue),
            (" AND kind = ?", &filter.kind),
            (" AND worker = ?", &filter.worker),
        ] {
            if let Some(value) = value {
                sql.push(condition, value);
            }
        }
        match filter.status.as_ref().map(|s| STATUS_NAMES.iter().position(|n| n == s)) {
            None => {}
            // The index leaves out what is done: most tasks are.
            Some(Some(status)) if i64::try_from(status) == Ok(DONE) => sql.push_text(" AND status = 3"),
            Some(status) => {
                let status = status.and_then(|s| i64::try_from(s).ok()).unwrap_or(-1);
                sql.push(" AND status <> 3 AND status = ?", status);
            }
        }
        if let Some(text) = &filter.error {
            self.db.error_contains(&mut sql, text);
        }
        for (condition, at) in [(" AND published_ms >= ?", filter.since_ms), (" AND published_ms < ?", filter.until_ms)]
        {
            if let Some(at) = at {
                sql.push(condition, at);
            }
        }
        if let Some(after) = page.after {
            sql.push(" AND (published_ms, n) < (?", after.at_ms.unwrap_or(i64::MIN));
            sql.push(", ?)", after.n);
        }
        sql.push(" ORDER BY published_ms DESC, n DESC LIMIT ?", i64::from(page.limit) + 1);
        let rows = self.db.read(sql).await?;
        let (shown, next) = paged(&rows, page.limit, listed_task);
        let last = rows.get(shown.len().saturating_sub(1)).and_then(|row| row.int("published_ms"));
        Ok((shown, next.map(|next| Cursor { at_ms: last, ..next })))
    }

    /// The job that is asked for, as the store names it.
    pub(super) async fn job_of(&self, filter: &TaskFilter) -> sqlx::Result<Option<String>> {
        match &filter.job {
            Some(job) => Ok(Some(self.newest_epoch(job).await?)),
            None => Ok(None),
        }
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
        let mut sql = Sql::new(
            "SELECT id, idx FROM tasks WHERE job = ? AND root IS NULL AND items IS NOT NULL AND idx <= ?
             AND idx > ? AND idx + items > ?",
        );
        sql = sql.bind(stored_job(job, id)).bind(index).bind(index - i64::from(BATCH_ITEMS_MAX)).bind(index);
        if let Some(queue) = queue {
            sql.push(" AND queue = ?", queue);
        }
        sql.push_text(" ORDER BY idx DESC LIMIT 1");
        let rows = self.db.read(sql).await?;
        let batch = rows.first().map(|row| (row.string("id"), row.int("idx").unwrap_or(0)));
        Ok(batch
            .filter(|(batch, _)| batch.starts_with(&format!("{root}/")))
            .map(|(id, first)| format!("{id}/{}", index - first)))
    }

    async fn task_rows(&self, id: &str, queue: Option<&str>) -> sqlx::Result<Vec<Row>> {
        let mut sql = Sql::new(TASK_COLUMNS);
        sql.push(" AND id = ?", id);
        if let Some(queue) = queue {
            sql.push(" AND queue = ?", queue);
        }
        self.db.read(sql).await
    }

    async fn add_evidence(&self, task: &mut Shown) -> anyhow::Result<()> {
        let field = |name: &str| task.text(name).unwrap_or_default().to_owned();
        let (queue, id, root) = (field("queue"), field("id"), field("root"));
        // The attempts of its batch are its own too.
        let attempts = Sql::new(
            "SELECT attempt, worker, started_ms, ended_ms, status, failure, trace, id FROM attempts
             WHERE queue = ? AND id IN (?, ?) ORDER BY attempt, started_ms, CASE WHEN id = ? THEN 0 ELSE 1 END",
        );
        let rows = self.db.read(attempts.bind(&queue).bind(&id).bind(&root).bind(&id)).await?;
        let mut attempts: Vec<Value> = Vec::new();
        for row in &rows {
            let of_batch = row.text("id") != Some(id.as_str());
            let attempt = row.int("attempt");
            // What the item's own row tells better.
            if of_batch && attempts.iter().any(|a| a.get("attempt").and_then(Value::as_i64) == attempt) {
                continue;
            }
            let failure = row.text("failure").and_then(|f| serde_json::from_str::<Value>(f).ok());
            let child = failure.as_ref().and_then(|failure| failure.get("child")?.get("name").cloned());
            attempts.push(json!({
                "attempt": attempt, "worker": row.text("worker"), "started_ms": row.int("started_ms"),
                "ended_ms": row.int("ended_ms"), "status": if of_batch { Some("done") } else { row.text("status") },
                "child": child, "failure": failure, "trace": row.text("trace"),
            }));
        }
        let dead = self.dead_letter(&id, Some(&queue)).await?.pop();
        task.set("attempts", json!(attempts));
        task.set("replays", json!(self.replays(&queue, &id).await?));
        task.set("replay_of", self.replay_of(&queue, &id).await?);
        task.set("dead", serde_json::to_value(dead)?);
        Ok(())
    }

    /// Dead letters that wait, the newest first.
    pub(crate) async fn dead(&self, filter: &TaskFilter, reason: Option<&str>, page: Page) -> anyhow::Result<Rows> {
        let rows = self.letter_rows(DEAD_COLUMNS, filter, reason, page).await?;
        Ok(paged(&rows, page.limit, |row| dead_letter(row, false)))
    }

    /// The dead letters with this id, with their evidence: none, one, or one of each queue that has it.
    pub(crate) async fn dead_letter(&self, id: &str, queue: Option<&str>) -> anyhow::Result<Vec<Shown>> {
        let mut sql = Sql::new(format!("{DEAD_COLUMNS}{DEAD_WAITING}"));
        sql.push(" AND dead.id = ?", id);
        if let Some(queue) = queue {
            sql.push(" AND dead.queue = ?", queue);
        }
        Ok(self.db.read(sql).await?.iter().map(|row| dead_letter(row, true)).collect())
    }

    /// Tasks that are retrying, and dead letters that wait.
    pub(crate) async fn unfinished(&self) -> anyhow::Result<(u64, u64)> {
        let retrying = "SELECT count(*) AS retrying FROM tasks WHERE status <> 3 AND status = 1";
        let rows = self.db.read(Sql::new(retrying)).await?;
        let dead = self.count_letters(&TaskFilter::default(), None).await?;
        Ok((rows.first().map_or(0, |row| row.count("retrying")), dead))
    }
}

//! Tasks as the API shows them: lists, and one task with its attempts, dead letter and replays.

use millpond::job::epoch_of;
use millpond::limits::BATCH_ITEMS_MAX;
use millpond::outcome::Failure;
use millpond_api::tasks::{Attempt, AttemptStatus, TaskDetails, TaskHistory, TaskQuery, TaskRow, TaskStatus};

use super::error::Result;
use super::job_names::{job_key, stored_job};
use super::list::{ListCursor, Page, paged};
use super::rows::{item_of, listed_task, whole_task};
use super::sql::{Row, Sql};
use super::{NO_WORKER, Store};

const COLUMNS: &str =
    "SELECT n, queue, id, kind, job, idx, root, items, done, bitmap, status, attempt, result, ref, base64, worker,
    published_ms, started_ms, ended_ms, stored_ms, trace, continuation, digest FROM tasks WHERE 1 = 1";

impl Store {
    /// Tasks, those published last first: each of their indexes is in this order, so that no list is sorted.
    pub(crate) async fn tasks(&self, query: &TaskQuery, page: Page) -> Result<(Vec<TaskRow>, Option<ListCursor>)> {
        let mut sql = Sql::new(COLUMNS);
        let job = self.newest_epoch_of(query.job.as_deref()).await?;
        for (condition, value) in [
            (" AND job = ?", &job),
            (" AND queue = ?", &query.queue),
            (" AND kind = ?", &query.kind),
            (" AND worker = ?", &query.worker),
        ] {
            if let Some(value) = value {
                sql.push(condition, value);
            }
        }
        match query.status {
            None => {}
            // The index of statuses leaves out what is done, because most tasks are.
            Some(TaskStatus::Done) => sql.push_text(" AND status = 3"),
            Some(status) => sql.push(" AND status <> 3 AND status = ?", status),
        }
        if let Some(text) = query.error.as_ref().filter(|text| !text.is_empty()) {
            self.db.error_contains(&mut sql, text);
        }
        for (condition, at) in [(" AND published_ms >= ?", query.since), (" AND published_ms < ?", query.until)] {
            if let Some(at) = at {
                sql.push(condition, at);
            }
        }
        if let Some(after) = page.after {
            sql.push(" AND (published_ms, n) < (?", after.at_ms.unwrap_or(i64::MIN));
            sql.push(", ?)", after.n);
        }
        sql.push(" ORDER BY published_ms DESC, n DESC LIMIT ?", i64::from(page.limit) + 1);
        let (tasks, next) = paged(&self.db.read(sql).await?, page.limit, listed_task)?;
        let at_ms = tasks.last().map(|last| last.published_ms);
        Ok((tasks, next.map(|next| ListCursor { at_ms, ..next })))
    }

    /// The tasks with this id: none, one, or one of each queue and kind that has it. An item of a batch is found too.
    pub(crate) async fn task(&self, id: &str, queue: Option<&str>, kind: Option<&str>) -> Result<Vec<TaskDetails>> {
        let mut found =
            self.rows_of(id, queue, kind).await?.iter().map(whole_task).collect::<Result<Vec<TaskRow>>>()?;
        if found.is_empty()
            && let Some((root, item)) = id.rsplit_once('/')
            && let Ok(item) = item.parse::<u32>()
        {
            for batch in self.rows_of(root, queue, kind).await? {
                found.extend(item_of(&batch, id, item)?);
            }
        }
        if found.is_empty()
            && let Some(item) = self.item_at_index(id, queue, kind).await?
        {
            return Box::pin(self.task(&item, queue, kind)).await;
        }
        if found.is_empty() {
            return Ok(self.cancelled_with_its_job(id).await?.into_iter().collect());
        }
        let mut tasks = Vec::with_capacity(found.len());
        for row in found {
            tasks.push(TaskDetails { history: self.history(&row).await?, row });
        }
        Ok(tasks)
    }

    async fn rows_of(&self, id: &str, queue: Option<&str>, kind: Option<&str>) -> Result<Vec<Row>> {
        let mut sql = Sql::new(COLUMNS);
        sql.push(" AND id = ?", id);
        push_place(&mut sql, queue, kind);
        sql.push_text(" ORDER BY queue, kind");
        self.db.read(sql).await
    }

    /// The id under which the store knows the item `<job>.<epoch>/<index>` of a job, where it came in a batch.
    async fn item_at_index(&self, id: &str, queue: Option<&str>, kind: Option<&str>) -> Result<Option<String>> {
        let Some((root, index)) = id.rsplit_once('/') else { return Ok(None) };
        let (Some((job, _)), Ok(index)) = (root.rsplit_once('.'), index.parse::<i64>()) else { return Ok(None) };
        let mut sql = Sql::new(
            "SELECT id, idx FROM tasks WHERE job = ? AND root IS NULL AND items IS NOT NULL AND idx <= ?
             AND idx > ? AND idx + items > ?",
        );
        sql = sql
            .bind(stored_job(job, id))
            .bind(index)
            .bind(index.saturating_sub(i64::from(BATCH_ITEMS_MAX)))
            .bind(index);
        push_place(&mut sql, queue, kind);
        sql.push_text(" ORDER BY idx DESC LIMIT 1");
        let rows = self.db.read(sql).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (batch, first): (&str, i64) = (row.get("id")?, row.get("idx")?);
        let is_of_root = batch.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
        Ok(is_of_root.then(|| format!("{batch}/{}", index - first)))
    }

    /// A task of a cancelled job that never had a row: `<job>.<epoch>/<index>`.
    async fn cancelled_with_its_job(&self, id: &str) -> Result<Option<TaskDetails>> {
        let named = id.rsplit_once('/').and_then(|(root, index)| {
            let (job, _) = root.rsplit_once('.')?;
            Some((job, epoch_of(job, id)?, index.parse::<i64>().ok()?))
        });
        let Some((job, epoch, index)) = named else { return Ok(None) };
        if !self.is_cancelled(job, epoch) {
            return Ok(None);
        }
        let Some(found) = self.job(&job_key(job, epoch)).await? else { return Ok(None) };
        let row = TaskRow {
            queue: found.queue,
            id: id.to_owned(),
            kind: found.kind,
            job: Some(found.job),
            index: Some(index),
            original_id: None,
            items: None,
            done: 0,
            status: TaskStatus::Cancelled,
            attempt: 0,
            worker: NO_WORKER.to_owned(),
            published_ms: found.created_ms,
            started_ms: None,
            ended_ms: None,
            stored_ms: found.created_ms,
            trace: None,
            continuation: None,
            digest: None,
            result: None,
            result_text: None,
            result_is_bytes: false,
            result_bytes: None,
            stored_result: None,
            stored_results: None,
            bytes_items: None,
        };
        Ok(Some(TaskDetails { row, history: TaskHistory::default() }))
    }

    async fn history(&self, task: &TaskRow) -> Result<TaskHistory> {
        Ok(TaskHistory {
            attempts: self.attempts(task).await?,
            dead: self.dead_letter(&task.id, Some(&task.queue), Some(&task.kind)).await?.pop(),
            replays: self.replays(task).await?,
            replay_of: self.replay_of(task).await?,
        })
    }

    async fn attempts(&self, task: &TaskRow) -> Result<Vec<Attempt>> {
        // An item took part in the attempts of its batch.
        let (id, batch) = (task.id.as_str(), task.original_id.as_deref().unwrap_or_default());
        let sql = Sql::new(
            "SELECT attempt, worker, started_ms, ended_ms, status, failure, trace, id FROM attempts
             WHERE queue = ? AND id IN (?, ?) AND kind = ? ORDER BY attempt, started_ms, CASE WHEN id = ? THEN 0 ELSE 1 END",
        );
        let mut attempts: Vec<Attempt> = Vec::new();
        for row in self.db.read(sql.bind(&task.queue).bind(id).bind(batch).bind(&task.kind).bind(id)).await? {
            let (attempt, is_of_batch) = (row.get("attempt")?, row.get::<&str>("id")? != id);
            // The item's own row of this attempt says more than that of the batch.
            if is_of_batch && attempts.iter().any(|own| own.attempt == attempt) {
                continue;
            }
            let failure: Option<Failure> = row.optional_json("failure")?;
            attempts.push(Attempt {
                attempt,
                worker: row.get("worker")?,
                started_ms: row.get("started_ms")?,
                ended_ms: row.get("ended_ms")?,
                status: Some(if is_of_batch { AttemptStatus::Done } else { row.get("status")? }),
                child: failure.as_ref().and_then(|failure| Some(failure.child.as_ref()?.name.clone())),
                failure,
                trace: row.get("trace")?,
            });
        }
        Ok(attempts)
    }

    /// Tasks that are retrying, and dead letters that wait.
    pub(crate) async fn unfinished(&self) -> Result<(u64, u64)> {
        let retrying = "SELECT count(*) AS retrying FROM tasks WHERE status <> 3 AND status = 1";
        let rows = self.db.read(Sql::new(retrying)).await?;
        let dead = self.count_dead_letters(&Default::default()).await?;
        Ok((rows.first().map_or(Ok(0), |row| row.get("retrying"))?, dead))
    }
}

/// Adds the queue and kind of a task, where they are given.
pub(super) fn push_place<'a>(sql: &mut Sql<'a>, queue: Option<&'a str>, kind: Option<&'a str>) {
    for (condition, value) in [(" AND tasks.queue = ?", queue), (" AND tasks.kind = ?", kind)] {
        if let Some(value) = value {
            sql.push(condition, value);
        }
    }
}

//! How what ended becomes rows. Idempotent, and the same whatever the order: any message may come twice, a dead letter
//! before or after the outcome that names it, an item before its batch. First of {result, cancelled} wins; either
//! replaces a dead letter; a late one changes nothing.

use std::collections::HashSet;

use millpond::bus::results::{Ended, EndedBody, EndedMessage};
use millpond::bus::subject::TaskSubject;
use millpond::dead_letter::Evidence;
use millpond::outcome::{End, FailedAttempt, Items, NotDone, Outcome, id_of};
use serde_json::value::RawValue;
use sqlx::{Connection, QueryBuilder, Row, Sqlite, SqliteConnection, Transaction};

use super::{CANCELLED, DEAD, DONE, PARTIAL, RETRYING, Store};

/// Rows of one statement: well below SQLite's 32 766 parameters.
const ROWS_MAX: usize = 1000;

/// A row of `tasks` that is not a batch.
struct TaskRow<'a> {
    subject: &'a TaskSubject,
    id: String,
    index: Option<u64>,
    root: Option<&'a str>,
    status: i64,
    attempt: u32,
    result: Option<&'a str>,
    worker: &'a str,
    published_ms: i64,
    started_ms: Option<i64>,
    ended_ms: Option<i64>,
    stored_ms: i64,
    trace: Option<&'a str>,
}

/// A row of `attempts`.
struct AttemptRow<'a> {
    queue: &'a str,
    id: String,
    attempt: u32,
    worker: &'a str,
    started_ms: i64,
    ended_ms: i64,
    status: &'static str,
    failure: Option<String>,
    trace: Option<&'a str>,
}

/// What one pull adds, before it is written.
#[derive(Default)]
struct Rows<'a> {
    tasks: Vec<TaskRow<'a>>,
    attempts: Vec<AttemptRow<'a>>,
}

/// One outcome and where it came from.
#[derive(Clone, Copy)]
struct Ending<'a> {
    subject: &'a TaskSubject,
    worker: &'a str,
    outcome: &'a Outcome,
    stored_ms: i64,
}

impl Store {
    /// Merges what one pull brought, in one transaction.
    pub(crate) async fn merge(&self, from: Ended, messages: &[EndedMessage]) -> anyhow::Result<()> {
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin().await?;
        let mut rows = Rows::default();
        for message in messages {
            match &message.body {
                Ok(EndedBody::Pack(subject, pack)) => {
                    for outcome in &pack.outcomes {
                        let ending = Ending { subject, worker: &pack.worker, outcome, stored_ms: message.stored_ms };
                        rows.attempt(&ending);
                        match outcome.items {
                            None => rows.task(&ending),
                            // Read and written at once: later rows of this pull must see it.
                            Some(items) => merge_items(&mut transaction, &mut rows, &ending, items).await?,
                        }
                    }
                }
                Ok(EndedBody::Dead(subject, evidence)) => {
                    rows.flush(&mut transaction).await?;
                    merge_dead(&mut transaction, &mut rows, subject, evidence, message).await?;
                }
                Err(reason) => keep_unreadable(&mut transaction, from, message, reason).await?,
            }
            if rows.tasks.len() >= ROWS_MAX || rows.attempts.len() >= ROWS_MAX {
                rows.flush(&mut transaction).await?;
            }
        }
        rows.flush(&mut transaction).await?;
        millpond::failpoint::hit("collector.merged");
        transaction.commit().await?;
        Ok(())
    }
}

fn status_of(end: End) -> Option<i64> {
    match end {
        End::Retry => Some(RETRYING),
        End::Dead => Some(DEAD),
        End::Cancelled => Some(CANCELLED),
        End::Rest => None,
    }
}

impl<'a> Rows<'a> {
    /// The attempt of the message, and those of its items that failed, and those before it.
    fn attempt(&mut self, ending: &Ending<'a>) {
        let outcome = ending.outcome;
        let mut row = |id: String, status, failure: Option<String>| {
            self.attempts.push(AttemptRow {
                queue: &ending.subject.queue,
                id,
                attempt: outcome.attempt,
                worker: ending.worker,
                started_ms: outcome.started_ms,
                ended_ms: outcome.ended_ms,
                status,
                failure,
                trace: outcome.trace.as_deref(),
            });
        };
        let failed = |n: &NotDone| n.failure.as_ref().and_then(|f| serde_json::to_string(f).ok());
        let whole = |n: &NotDone| match n.end {
            End::Retry | End::Dead => "failed",
            End::Cancelled => "cancelled",
            End::Rest => "handed back",
        };
        match (outcome.items, outcome.not_done.first()) {
            (_, None) => row(outcome.id.clone(), "done", None),
            (None, Some(not_done)) => row(outcome.id.clone(), whole(not_done), failed(not_done)),
            (Some(items), Some(first)) => {
                let of_item = |n: &NotDone| id_of_item(outcome.root(), items, n.item);
                let all = outcome.not_done.len() == outcome.results.len();
                if items.len > 1 || items.of == 1 {
                    row(outcome.id.clone(), if all { whole(first) } else { "partly done" }, None);
                }
                for not_done in outcome.not_done.iter().filter(|n| n.failure.is_some()) {
                    row(of_item(not_done), whole(not_done), failed(not_done));
                }
            }
        }
        self.failures(&ending.subject.queue, &outcome.id, &outcome.failures);
    }

    /// Attempts that later ones carried along.
    fn failures(&mut self, queue: &'a str, id: &str, failures: &'a [FailedAttempt]) {
        for failed in failures {
            self.attempts.push(AttemptRow {
                queue,
                id: id.to_owned(),
                attempt: failed.attempt,
                worker: &failed.worker,
                started_ms: failed.started_ms,
                ended_ms: failed.ended_ms,
                status: "failed",
                failure: serde_json::to_string(&failed.failure).ok(),
                trace: None,
            });
        }
    }

    /// A task published alone.
    fn task(&mut self, ending: &Ending<'a>) {
        let outcome = ending.outcome;
        let (status, result) = match outcome.not_done.first() {
            None => (DONE, outcome.results.first().map(|r| r.get())),
            Some(not_done) => match status_of(not_done.end) {
                Some(status) => (status, None),
                None => return,
            },
        };
        self.push(ending, outcome.id.clone(), outcome.index, None, status, result);
    }

    fn push(
        &mut self,
        ending: &Ending<'a>,
        id: String,
        index: Option<u64>,
        root: Option<&'a str>,
        status: i64,
        result: Option<&'a str>,
    ) {
        self.tasks.push(TaskRow {
            subject: ending.subject,
            id,
            index,
            root,
            status,
            attempt: ending.outcome.attempt,
            result,
            worker: ending.worker,
            published_ms: ending.outcome.published_ms,
            started_ms: Some(ending.outcome.started_ms),
            ended_ms: Some(ending.outcome.ended_ms),
            stored_ms: ending.stored_ms,
            trace: ending.outcome.trace.as_deref(),
        });
    }

    async fn flush(&mut self, transaction: &mut Transaction<'_, Sqlite>) -> sqlx::Result<()> {
        for rows in self.tasks.chunks(ROWS_MAX) {
            upsert_tasks(transaction, rows).await?;
        }
        for rows in self.attempts.chunks(ROWS_MAX) {
            insert_attempts(transaction, rows).await?;
        }
        self.tasks.clear();
        self.attempts.clear();
        Ok(())
    }
}

/// The id of an item: of a batch of one too, where [`id_of`] means the batch itself.
fn id_of_item(root: &str, items: Items, item: u32) -> String {
    match id_of(root, Some(Items { of: items.of, from: item, len: 1 })) {
        id if id == root => format!("{root}/{item}"),
        id => id,
    }
}

async fn upsert_tasks(connection: &mut SqliteConnection, rows: &[TaskRow<'_>]) -> sqlx::Result<()> {
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
        "INSERT INTO tasks (queue, id, kind, job, idx, root, done, status, attempt, result, worker, published_ms,
         started_ms, ended_ms, stored_ms, trace) ",
    );
    query.push_values(rows, |mut row, task| {
        row.push_bind(&task.subject.queue)
            .push_bind(&task.id)
            .push_bind(&task.subject.kind)
            .push_bind(task.subject.job.as_deref())
            .push_bind(task.index.and_then(|i| i64::try_from(i).ok()))
            .push_bind(task.root)
            .push_bind(i64::from(task.status == DONE))
            .push_bind(task.status)
            .push_bind(i64::from(task.attempt))
            .push_bind(task.result)
            .push_bind(task.worker)
            .push_bind(task.published_ms)
            .push_bind(task.started_ms)
            .push_bind(task.ended_ms)
            .push_bind(task.stored_ms)
            .push_bind(task.trace);
    });
    // The order of the statuses is the rule: retrying < dead < {done, cancelled}, and those two never change.
    query.push(
        " ON CONFLICT (queue, id) DO UPDATE SET
            kind = excluded.kind, job = coalesce(tasks.job, excluded.job), idx = coalesce(tasks.idx, excluded.idx),
            done = excluded.done, status = excluded.status, attempt = excluded.attempt, result = excluded.result,
            worker = excluded.worker, started_ms = excluded.started_ms, ended_ms = excluded.ended_ms,
            stored_ms = excluded.stored_ms, trace = coalesce(excluded.trace, tasks.trace)
          WHERE tasks.status < 3 AND tasks.items IS NULL AND (excluded.status > tasks.status
            OR (excluded.status = tasks.status AND excluded.attempt > tasks.attempt))",
    );
    query.build().execute(connection).await?;
    Ok(())
}

async fn insert_attempts(connection: &mut SqliteConnection, rows: &[AttemptRow<'_>]) -> sqlx::Result<()> {
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
        "INSERT INTO attempts (queue, id, attempt, worker, started_ms, ended_ms, status, failure, trace) ",
    );
    query.push_values(rows, |mut row, attempt| {
        row.push_bind(attempt.queue)
            .push_bind(&attempt.id)
            .push_bind(i64::from(attempt.attempt))
            .push_bind(attempt.worker)
            .push_bind(attempt.started_ms)
            .push_bind(attempt.ended_ms)
            .push_bind(attempt.status)
            .push_bind(attempt.failure.as_deref())
            .push_bind(attempt.trace);
    });
    // One that was carried along has no trace of its own: it must not hide the one that has.
    query.push(" ON CONFLICT DO UPDATE SET trace = coalesce(attempts.trace, excluded.trace)");
    query.build().execute(connection).await?;
    Ok(())
}

/// The row of a root batch.
#[derive(Default)]
struct Batch {
    bitmap: Vec<u8>,
    results: Vec<Box<RawValue>>,
}

impl Batch {
    fn has(&self, item: u32) -> bool {
        self.bitmap.get(item as usize / 8).is_some_and(|byte| byte & (1 << (item % 8)) != 0)
    }

    fn set(&mut self, item: u32, result: &RawValue) {
        if let (Some(byte), Some(place)) = (self.bitmap.get_mut(item as usize / 8), self.results.get_mut(item as usize))
        {
            *byte |= 1 << (item % 8);
            *place = result.to_owned();
        }
    }

    fn done(&self) -> u32 {
        self.bitmap.iter().map(|byte| byte.count_ones()).sum()
    }
}

async fn read_batch(connection: &mut SqliteConnection, queue: &str, root: &str, of: u32) -> anyhow::Result<Batch> {
    let found = sqlx::query("SELECT bitmap, result FROM tasks WHERE queue = ? AND id = ? AND items IS NOT NULL")
        .bind(queue)
        .bind(root)
        .fetch_optional(connection)
        .await?;
    let mut batch = match found {
        Some(row) => {
            Batch { bitmap: row.try_get("bitmap")?, results: serde_json::from_str(row.try_get::<&str, _>("result")?)? }
        }
        None => Batch::default(),
    };
    batch.bitmap.resize((of as usize).div_ceil(8), 0);
    batch.results.resize_with(of as usize, || RawValue::NULL.to_owned());
    Ok(batch)
}

/// Merges an outcome of some items into the row of their batch, and those that did not succeed into rows of their own.
async fn merge_items<'a>(
    transaction: &mut Transaction<'_, Sqlite>,
    rows: &mut Rows<'a>,
    ending: &Ending<'a>,
    items: Items,
) -> anyhow::Result<()> {
    // Rows of items that wait to be written must be seen by the look at what was cancelled.
    rows.flush(transaction).await?;
    let (queue, root) = (ending.subject.queue.as_str(), ending.outcome.root());
    let mut batch = read_batch(transaction, queue, root, items.of).await?;
    let cancelled = items_with(transaction, queue, root, CANCELLED).await?;
    let mut finished: Vec<String> = Vec::new();
    for (item, end) in ending.outcome.ends() {
        let id = id_of_item(root, items, item);
        match end {
            Ok(result) if !batch.has(item) && !cancelled.contains(&id) => {
                batch.set(item, result);
                finished.push(id);
            }
            Err(not_done) if !batch.has(item) => {
                if let Some(status) = status_of(not_done.end) {
                    let index = ending.outcome.index.map(|i| i + u64::from(item - items.from));
                    rows.push(ending, id, index, Some(root), status, None);
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
    write_batch(transaction, ending, items, &batch).await?;
    finish_items(transaction, ending, &finished, &batch).await?;
    rows.flush(transaction).await?;
    Ok(())
}

async fn items_with(
    connection: &mut SqliteConnection,
    queue: &str,
    root: &str,
    status: i64,
) -> sqlx::Result<HashSet<String>> {
    sqlx::query_scalar("SELECT id FROM tasks WHERE queue = ? AND root = ? AND status = ?")
        .bind(queue)
        .bind(root)
        .bind(status)
        .fetch_all(connection)
        .await
        .map(|ids| ids.into_iter().collect())
}

async fn write_batch(
    connection: &mut SqliteConnection,
    ending: &Ending<'_>,
    items: Items,
    batch: &Batch,
) -> anyhow::Result<()> {
    let outcome = ending.outcome;
    let done = batch.done();
    let status = if done == items.of { DONE } else { PARTIAL };
    let first_index = outcome.index.and_then(|i| i64::try_from(i).ok()).map(|i| i - i64::from(items.from));
    sqlx::query(
        "INSERT INTO tasks (queue, id, kind, job, idx, items, done, bitmap, status, attempt, result, worker,
            published_ms, started_ms, ended_ms, stored_ms, trace) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)
         ON CONFLICT (queue, id) DO UPDATE SET
            items = excluded.items, done = excluded.done, bitmap = excluded.bitmap, status = excluded.status,
            attempt = max(tasks.attempt, excluded.attempt), result = excluded.result,
            worker = excluded.worker, started_ms = min(tasks.started_ms, excluded.started_ms),
            ended_ms = excluded.ended_ms, stored_ms = excluded.stored_ms, trace = coalesce(tasks.trace, excluded.trace)
         WHERE tasks.done < excluded.done OR tasks.items IS NULL",
    )
    .bind(&ending.subject.queue)
    .bind(outcome.root())
    .bind(&ending.subject.kind)
    .bind(ending.subject.job.as_deref())
    .bind(first_index)
    .bind(i64::from(items.of))
    .bind(i64::from(done))
    .bind(batch.bitmap.as_slice())
    .bind(status)
    .bind(i64::from(outcome.attempt))
    .bind(serde_json::to_string(&batch.results)?)
    .bind(ending.worker)
    .bind(outcome.published_ms)
    .bind(outcome.started_ms)
    .bind(outcome.ended_ms)
    .bind(ending.stored_ms)
    .bind(outcome.trace.as_deref())
    .execute(connection)
    .await?;
    Ok(())
}

/// Items that had a row of their own, because they did not succeed at first, and now have a result.
async fn finish_items(
    connection: &mut SqliteConnection,
    ending: &Ending<'_>,
    finished: &[String],
    batch: &Batch,
) -> sqlx::Result<()> {
    if finished.is_empty() {
        return Ok(());
    }
    let root = ending.outcome.root();
    let rows: Vec<String> = sqlx::query_scalar("SELECT id FROM tasks WHERE queue = ? AND root = ? AND status < 3")
        .bind(&ending.subject.queue)
        .bind(root)
        .fetch_all(&mut *connection)
        .await?;
    let finished: HashSet<&String> = finished.iter().collect();
    for id in rows.iter().filter(|id| finished.contains(id)) {
        let item = id.rsplit('/').next().and_then(|i| i.parse::<usize>().ok());
        let result = item.and_then(|i| batch.results.get(i)).map(|r| r.get());
        sqlx::query(
            "UPDATE tasks SET status = ?, done = 1, result = ?, attempt = max(attempt, ?), worker = ?, started_ms = ?,
             ended_ms = ?, stored_ms = ? WHERE queue = ? AND id = ? AND status < 3",
        )
        .bind(DONE)
        .bind(result)
        .bind(i64::from(ending.outcome.attempt))
        .bind(ending.worker)
        .bind(ending.outcome.started_ms)
        .bind(ending.outcome.ended_ms)
        .bind(ending.stored_ms)
        .bind(&ending.subject.queue)
        .bind(id)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// A dead letter: its evidence is kept, and its task becomes dead unless it has ended otherwise.
async fn merge_dead<'a>(
    transaction: &mut Transaction<'_, Sqlite>,
    rows: &mut Rows<'a>,
    subject: &'a TaskSubject,
    evidence: &'a Evidence,
    message: &'a EndedMessage,
) -> anyhow::Result<()> {
    let item = evidence.items.filter(|i| i.len == 1);
    let batch = evidence.root.as_deref().unwrap_or(&evidence.id);
    let id = item.map_or_else(|| evidence.id.clone(), |i| id_of_item(batch, i, i.from));
    sqlx::query(
        "INSERT INTO dead (queue, id, attempt, reason, evidence, headers, payload, buried_ms) VALUES (?,?,?,?,?,?,?,?)
         ON CONFLICT (queue, id) DO UPDATE SET attempt = excluded.attempt, reason = excluded.reason,
            evidence = excluded.evidence, headers = excluded.headers, payload = excluded.payload,
            buried_ms = excluded.buried_ms
         WHERE excluded.attempt > dead.attempt",
    )
    .bind(&subject.queue)
    .bind(&id)
    .bind(i64::from(evidence.attempt))
    .bind(&evidence.reason)
    .bind(serde_json::to_string(evidence)?)
    .bind(serde_json::to_string(&message.headers)?)
    .bind(message.payload.as_ref())
    .bind(evidence.buried_ms)
    .execute(&mut **transaction)
    .await?;
    rows.failures(&subject.queue, &id, &evidence.failures);
    if let Some(items) = item
        && read_batch(transaction, &subject.queue, batch, items.of).await?.has(items.from)
    {
        return Ok(());
    }
    rows.tasks.push(TaskRow {
        subject,
        id: id.clone(),
        index: evidence.index,
        root: item.map(|_| batch),
        status: DEAD,
        attempt: evidence.attempt,
        result: None,
        worker: &evidence.worker,
        published_ms: evidence.published_ms,
        started_ms: evidence.started_ms,
        ended_ms: Some(evidence.buried_ms),
        stored_ms: message.stored_ms,
        trace: evidence.trace.as_deref(),
    });
    rows.flush(transaction).await?;
    // DEAD subjects name no job; the evidence does.
    sqlx::query("UPDATE tasks SET job = ? WHERE queue = ? AND id = ? AND job IS NULL")
        .bind(evidence.job.as_deref())
        .bind(&subject.queue)
        .bind(&evidence.id)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

async fn keep_unreadable(
    connection: &mut SqliteConnection,
    from: Ended,
    message: &EndedMessage,
    reason: &str,
) -> anyhow::Result<()> {
    tracing::warn!(stream = from.stream(), seq = message.seq, reason, "a message cannot be read; it is kept as it is");
    metrics::counter!("millpond_messages_unreadable_total", "stream" => from.stream()).increment(1);
    sqlx::query(
        "INSERT INTO unreadable (stream, seq, stored_ms, reason, headers, payload) VALUES (?,?,?,?,?,?)
         ON CONFLICT DO NOTHING",
    )
    .bind(from.stream())
    .bind(i64::try_from(message.seq)?)
    .bind(message.stored_ms)
    .bind(reason)
    .bind(serde_json::to_string(&message.headers)?)
    .bind(message.payload.as_ref())
    .execute(connection)
    .await?;
    Ok(())
}

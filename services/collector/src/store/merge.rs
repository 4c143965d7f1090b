//! How what ended becomes rows. Idempotent, and the same whatever the order: any message may come twice, a dead letter
//! before or after the outcome that names it, an item before its batch. First of {result, cancelled} wins; either
//! replaces a dead letter; a late one changes nothing.

use millpond::bus::read::outcomes::{OutcomeBody, OutcomeMessage, OutcomeStream};
use millpond::dead_letter::Evidence;
use millpond::limits::BATCH_ITEMS_MAX;
use millpond::outcome::{CancelledJob, FailedAttempt, Failure, ItemResult, NotDone, NotDoneState, Outcome};
use millpond::wire::subject::TaskSubject;

use super::batch::{id_of_item, merge_items, read_batch};
use super::cancels::{JobCancels, cancel_job, stored_job};
use super::series::Counts;
use super::sql::{Insert, Sql, Transaction, Type};
use super::{CANCELLED, DEAD, DONE, RETRYING, Store};

/// Rows that are gathered before they are written.
const ROWS_MAX: usize = 4096;

/// A row of `tasks` that is not a batch.
struct TaskRow<'a> {
    subject: &'a TaskSubject,
    id: String,
    index: Option<u64>,
    root: Option<&'a str>,
    status: i64,
    attempt: u32,
    result: Option<&'a str>,
    /// Where the result lies instead, JSON.
    stored: Option<String>,
    worker: &'a str,
    published_ms: i64,
    started_ms: Option<i64>,
    ended_ms: Option<i64>,
    stored_ms: i64,
    trace: Option<&'a str>,
    next: Option<&'a str>,
    /// `type: message` of its last failure.
    error: Option<String>,
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
pub(super) struct Rows<'a> {
    tasks: Vec<TaskRow<'a>>,
    attempts: Vec<AttemptRow<'a>>,
    /// Jobs that are cancelled: by what was stored before, and by this pull.
    cancelled: JobCancels,
    freshly_cancelled: Vec<CancelledJob>,
    /// What ended, for the series.
    counts: Counts,
}

/// How a task or an item has ended.
#[derive(Clone, Copy)]
pub(super) struct How<'a> {
    pub(super) status: i64,
    /// Its result, where it has one.
    pub(super) kept: Option<ItemResult<'a>>,
    /// Why it has none.
    pub(super) failure: Option<&'a Failure>,
}

/// One outcome and where it came from.
#[derive(Clone, Copy)]
pub(super) struct Ending<'a> {
    pub(super) subject: &'a TaskSubject,
    pub(super) worker: &'a str,
    pub(super) outcome: &'a Outcome,
    pub(super) stored_ms: i64,
}

impl Store {
    /// Merges what one pull brought, in one transaction.
    pub(crate) async fn merge(&self, from: OutcomeStream, messages: &[OutcomeMessage]) -> anyhow::Result<()> {
        let mut transaction = self.db.begin().await?;
        self.cancelled.refresh_in(&mut *transaction).await?;
        let mut rows = Rows { cancelled: self.cancelled.clone(), ..Rows::default() };
        for message in messages {
            match &message.body {
                Ok(OutcomeBody::Results(subject, pack)) => {
                    for outcome in &pack.outcomes {
                        if let Err(reason) = fits(outcome) {
                            keep_unreadable(&mut *transaction, from, message, &reason).await?;
                            continue;
                        }
                        let ending = Ending { subject, worker: &pack.worker, outcome, stored_ms: message.stored_ms };
                        rows.attempt(&ending);
                        if !message.again {
                            rows.counts.add(&ending);
                        }
                        match outcome.items {
                            None => rows.task(&ending),
                            // Read and written at once: later rows of this pull must see it.
                            Some(items) => merge_items(&mut *transaction, &mut rows, &ending, items).await?,
                        }
                    }
                    if let Some(cancelled) = &pack.cancelled {
                        rows.flush(&mut *transaction).await?;
                        cancel_job(&mut *transaction, cancelled).await?;
                        rows.freshly_cancelled.push(cancelled.clone());
                    }
                }
                Ok(OutcomeBody::Dead(subject, evidence)) => {
                    rows.flush(&mut *transaction).await?;
                    merge_dead(&mut *transaction, &mut rows, subject, evidence, message).await?;
                }
                Err(reason) => keep_unreadable(&mut *transaction, from, message, reason).await?,
            }
            if rows.tasks.len() >= ROWS_MAX || rows.attempts.len() >= ROWS_MAX {
                rows.flush(&mut *transaction).await?;
            }
        }
        rows.flush(&mut *transaction).await?;
        let died = rows.counts.died();
        rows.counts.write(&mut *transaction).await?;
        millpond::failpoint::hit("collector.merged");
        transaction.commit().await?;
        rows.counts.tell();
        if !rows.freshly_cancelled.is_empty() {
            self.cancelled.refresh(&*self.db).await?;
        }
        self.versions.merged(died);
        self.watch.ends_written();
        Ok(())
    }
}

/// Whether an outcome keeps its promises: one that does not must neither end this process nor stay for ever.
fn fits(outcome: &Outcome) -> Result<(), String> {
    let len = match outcome.items {
        None => 1,
        Some(items) => {
            let inside = items.from.checked_add(items.len).is_some_and(|end| end <= items.of);
            if items.len == 0 || items.of > BATCH_ITEMS_MAX || !inside {
                return Err(format!("outcome of {}: {items:?} is not a part of a batch", outcome.id));
            }
            items.len
        }
    };
    if outcome.results.len() == len as usize {
        Ok(())
    } else {
        Err(format!("outcome of {}: {} results for {len} items", outcome.id, outcome.results.len()))
    }
}

pub(super) fn status_of(end: NotDoneState) -> Option<i64> {
    match end {
        NotDoneState::Retry => Some(RETRYING),
        NotDoneState::Dead => Some(DEAD),
        NotDoneState::Cancelled => Some(CANCELLED),
        NotDoneState::Remainder => None,
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
            NotDoneState::Retry | NotDoneState::Dead => "failed",
            NotDoneState::Cancelled => "cancelled",
            NotDoneState::Remainder => "handed back",
        };
        match (outcome.items, outcome.not_done.first()) {
            (_, None) => row(outcome.id.clone(), "done", None),
            (None, Some(not_done)) => row(outcome.id.clone(), whole(not_done), failed(not_done)),
            (Some(items), Some(first)) => {
                let of_item = |n: &NotDone| id_of_item(outcome.original_id(), items, n.item);
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
        let (status, kept, failure) = match outcome.ends().next() {
            Some((_, Ok(kept))) => (DONE, Some(kept), None),
            Some((_, Err(not_done))) => match status_of(not_done.end) {
                Some(status) => (status, None, not_done.failure.as_ref()),
                None => return,
            },
            None => return,
        };
        self.push(ending, outcome.id.clone(), outcome.index, None, How { status, kept, failure });
    }

    pub(super) fn push(
        &mut self,
        ending: &Ending<'a>,
        id: String,
        index: Option<u64>,
        root: Option<&'a str>,
        how: How<'a>,
    ) {
        let How { status, kept, failure } = how;
        // What is done at last tells of the failures before it.
        let error = failure.or_else(|| ending.outcome.failures.last().map(|failed| &failed.failure));
        let (result, stored) = match kept {
            None => (None, None),
            Some(ItemResult::Inline(result)) => (Some(result.get()), None),
            Some(ItemResult::Stored(at)) => (None, Some(at.to_json())),
        };
        self.add(TaskRow {
            subject: ending.subject,
            id,
            index,
            root,
            status,
            attempt: ending.outcome.attempt,
            result,
            stored,
            worker: ending.worker,
            published_ms: ending.outcome.published_ms,
            started_ms: Some(ending.outcome.started_ms),
            ended_ms: Some(ending.outcome.ended_ms),
            stored_ms: ending.stored_ms,
            trace: ending.outcome.trace.as_deref(),
            next: ending.outcome.then.as_deref(),
            error: error.map(said),
        });
    }

    /// A task that is cancelled with its job stays so, whatever came of it.
    fn add(&mut self, row: TaskRow<'a>) {
        let row = match self.is_cancelled(row.subject.job.as_deref(), &row.id, row.published_ms) {
            true => TaskRow { status: CANCELLED, result: None, stored: None, ..row },
            false => row,
        };
        self.tasks.push(row);
    }

    /// Whether a task of this id is cancelled with its job.
    pub(super) fn is_cancelled(&self, job: Option<&str>, id: &str, published_ms: i64) -> bool {
        self.cancelled.cover(&self.freshly_cancelled, job, id, published_ms)
    }

    pub(super) async fn flush(&mut self, transaction: &mut dyn Transaction) -> sqlx::Result<()> {
        if !self.tasks.is_empty() {
            upsert_tasks(transaction, &self.tasks).await?;
            self.tasks.clear();
        }
        if !self.attempts.is_empty() {
            insert_attempts(transaction, &self.attempts).await?;
            self.attempts.clear();
        }
        Ok(())
    }
}

/// A failure as it is searched for.
fn said(failure: &Failure) -> String {
    format!("{}: {}", failure.kind, failure.message)
}

async fn upsert_tasks(transaction: &mut dyn Transaction, tasks: &[TaskRow<'_>]) -> sqlx::Result<()> {
    use Type::{Int, Text};
    let rows = tasks.iter().map(|task| {
        vec![
            (&task.subject.queue).into(),
            (&task.id).into(),
            (&task.subject.kind).into(),
            task.subject.job.as_deref().map(|job| stored_job(job, &task.id)).into(),
            task.index.and_then(|i| i64::try_from(i).ok()).into(),
            task.root.into(),
            i64::from(task.status == DONE).into(),
            task.status.into(),
            task.attempt.into(),
            task.result.into(),
            task.stored.as_deref().into(),
            task.worker.into(),
            task.published_ms.into(),
            task.started_ms.into(),
            task.ended_ms.into(),
            task.stored_ms.into(),
            task.trace.into(),
            task.next.into(),
            task.error.as_deref().into(),
        ]
    });
    let insert = Insert {
        table: "tasks",
        columns: &[
            ("queue", Text),
            ("id", Text),
            ("kind", Text),
            ("job", Text),
            ("idx", Int),
            ("root", Text),
            ("done", Int),
            ("status", Int),
            ("attempt", Int),
            ("result", Text),
            ("ref", Text),
            ("worker", Text),
            ("published_ms", Int),
            ("started_ms", Int),
            ("ended_ms", Int),
            ("stored_ms", Int),
            ("trace", Text),
            ("next", Text),
            ("error", Text),
        ],
        key: &[0, 1],
        rows: rows.collect(),
        // Done and cancelled never change. Of the others the later attempt counts (a replay is one), and of one attempt the
        // dead letter.
        then: "ON CONFLICT (queue, id) DO UPDATE SET
            kind = excluded.kind, job = coalesce(tasks.job, excluded.job), idx = coalesce(tasks.idx, excluded.idx),
            done = excluded.done, status = excluded.status, attempt = excluded.attempt, result = excluded.result,
            ref = excluded.ref,
            worker = excluded.worker, started_ms = excluded.started_ms, ended_ms = excluded.ended_ms,
            stored_ms = excluded.stored_ms, trace = coalesce(excluded.trace, tasks.trace),
            next = excluded.next, error = coalesce(excluded.error, tasks.error)
          WHERE tasks.status < 3 AND tasks.items IS NULL AND (excluded.status >= 3 OR excluded.attempt > tasks.attempt
            OR (excluded.attempt = tasks.attempt AND excluded.status > tasks.status))",
    };
    transaction.insert(insert).await?;
    Ok(())
}

async fn insert_attempts(transaction: &mut dyn Transaction, attempts: &[AttemptRow<'_>]) -> sqlx::Result<()> {
    use Type::{Int, Text};
    let rows = attempts.iter().map(|attempt| {
        vec![
            attempt.queue.into(),
            (&attempt.id).into(),
            attempt.attempt.into(),
            attempt.worker.into(),
            attempt.started_ms.into(),
            attempt.ended_ms.into(),
            attempt.status.into(),
            attempt.failure.as_deref().into(),
            attempt.trace.into(),
        ]
    });
    let insert = Insert {
        table: "attempts",
        columns: &[
            ("queue", Text),
            ("id", Text),
            ("attempt", Int),
            ("worker", Text),
            ("started_ms", Int),
            ("ended_ms", Int),
            ("status", Text),
            ("failure", Text),
            ("trace", Text),
        ],
        key: &[0, 1, 2, 3, 4],
        rows: rows.collect(),
        // One that was carried along has no trace of its own: it must not hide the one that has.
        then: "ON CONFLICT (queue, id, attempt, worker, started_ms) DO UPDATE SET
            trace = coalesce(attempts.trace, excluded.trace)",
    };
    transaction.insert(insert).await?;
    Ok(())
}

/// A dead letter: its evidence is kept, and its task becomes dead unless it has ended otherwise.
async fn merge_dead<'a>(
    transaction: &mut dyn Transaction,
    rows: &mut Rows<'a>,
    subject: &'a TaskSubject,
    evidence: &'a Evidence,
    message: &'a OutcomeMessage,
) -> anyhow::Result<()> {
    let item = evidence.items.filter(|i| i.len == 1);
    let batch = evidence.original_id.as_deref().unwrap_or(&evidence.id);
    let id = item.map_or_else(|| evidence.id.clone(), |i| id_of_item(batch, i, i.from));
    let keep = Sql::new(
        "INSERT INTO dead (queue, id, attempt, reason, evidence, headers, payload, buried_ms)
         VALUES (?,?,?,?,?,?,?,?)
         ON CONFLICT (queue, id) DO UPDATE SET attempt = excluded.attempt, reason = excluded.reason,
            evidence = excluded.evidence, headers = excluded.headers, payload = excluded.payload,
            buried_ms = excluded.buried_ms, purged_ms = NULL
         WHERE excluded.attempt > dead.attempt",
    );
    let keep = keep.bind(&subject.queue).bind(&id).bind(evidence.attempt).bind(&evidence.reason);
    let keep = keep.bind(serde_json::to_string(evidence)?).bind(serde_json::to_string(&message.headers)?);
    transaction.run(keep.bind(message.payload.as_ref()).bind(evidence.dead_ms)).await?;
    rows.failures(&subject.queue, &id, &evidence.failures);
    if let Some(items) = item
        && read_batch(transaction, &subject.queue, batch, items.of).await?.is_some_and(|b| b.has(items.from))
    {
        return Ok(());
    }
    let is_cancelled = rows.is_cancelled(evidence.job.as_deref(), &id, evidence.published_ms);
    rows.add(TaskRow {
        subject,
        id: id.clone(),
        index: evidence.index,
        root: item.map(|_| batch),
        status: if is_cancelled { CANCELLED } else { DEAD },
        attempt: evidence.attempt,
        result: None,
        stored: None,
        worker: &evidence.worker,
        published_ms: evidence.published_ms,
        started_ms: evidence.started_ms,
        ended_ms: Some(evidence.dead_ms),
        stored_ms: message.stored_ms,
        trace: evidence.trace.as_deref(),
        next: None,
        error: Some(said(&evidence.failure)),
    });
    rows.flush(transaction).await?;
    // DEAD subjects name no job; the evidence does.
    let named = Sql::new("UPDATE tasks SET job = ? WHERE queue = ? AND id = ? AND job IS NULL");
    let named = named.bind(evidence.job.as_deref().map(|job| stored_job(job, &id)));
    transaction.run(named.bind(&subject.queue).bind(&evidence.id)).await?;
    Ok(())
}

async fn keep_unreadable(
    transaction: &mut dyn Transaction,
    from: OutcomeStream,
    message: &OutcomeMessage,
    reason: &str,
) -> anyhow::Result<()> {
    let keep = Sql::new(
        "INSERT INTO unreadable (stream, seq, stored_ms, reason, headers, payload) VALUES (?,?,?,?,?,?)
         ON CONFLICT (stream, seq, stored_ms) DO NOTHING",
    );
    let keep = keep.bind(from.stream()).bind(i64::try_from(message.seq)?).bind(message.stored_ms).bind(reason);
    let kept =
        transaction.run(keep.bind(serde_json::to_string(&message.headers)?).bind(message.payload.as_ref())).await?;
    // Said once, however often it comes.
    if kept > 0 {
        tracing::warn!(
            stream = from.stream(),
            seq = message.seq,
            reason,
            "a message cannot be read; it is kept as it is"
        );
        metrics::counter!("millpond_messages_unreadable_total", "stream" => from.stream()).increment(1);
    }
    Ok(())
}

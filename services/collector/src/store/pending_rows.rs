//! Rows of `tasks` and `attempts` that a merge gathers, so that few statements write many of them. A row that lies here is
//! not in the database yet: code that reads one of these tables in a merge flushes first.

use std::borrow::Cow;

use millpond::outcome::{CancelledJob, FailedAttempt, Failure, ItemResult, NotDone, NotDoneState, Outcome};
use millpond::wire::subject::TaskSubject;
use millpond_api::tasks::{AttemptStatus, TaskStatus};

use super::cancelled_jobs::CancelledJobs;
use super::error::{Result, to_json};
use super::items::item_id;
use super::job_names::stored_job;
use super::sql::{Insert, Transaction, Type};

/// What the column `base64` has of a task whose result is bytes.
pub(super) const OF_ONE: &str = "[0]";
/// Rows of one table that are gathered before they are written.
const ROWS_MAX: usize = 4096;

/// One outcome, and what the message that brought it says about it.
#[derive(Clone, Copy)]
pub(super) struct ReceivedOutcome<'a> {
    pub(super) subject: &'a TaskSubject,
    pub(super) worker: &'a str,
    pub(super) outcome: &'a Outcome,
    pub(super) stored_ms: i64,
}

/// How a task or an item has ended.
#[derive(Clone, Copy)]
pub(super) struct ItemEnd<'a> {
    pub(super) status: TaskStatus,
    /// Its result, where it has one.
    pub(super) result: Option<ItemResult<'a>>,
    /// Why it has none.
    pub(super) failure: Option<&'a Failure>,
}

/// A row of `tasks` that is not a batch.
pub(super) struct PendingTask<'a> {
    pub(super) subject: &'a TaskSubject,
    pub(super) id: String,
    pub(super) index: Option<u64>,
    /// The digest of the arguments that its publisher gave.
    pub(super) digest: Option<Cow<'a, str>>,
    /// The batch that it is an item of.
    pub(super) root: Option<&'a str>,
    pub(super) status: TaskStatus,
    pub(super) attempt: u32,
    pub(super) result: Option<&'a str>,
    /// The result is bytes that are no JSON.
    pub(super) is_bytes: bool,
    /// Where the result lies in the store of payloads, JSON.
    pub(super) reference: Option<String>,
    pub(super) worker: &'a str,
    pub(super) published_ms: i64,
    pub(super) started_ms: Option<i64>,
    pub(super) ended_ms: Option<i64>,
    pub(super) stored_ms: i64,
    pub(super) trace: Option<&'a str>,
    /// The next step of its chain.
    pub(super) continuation: Option<&'a str>,
    /// Its last failure, as [`searchable`] text.
    pub(super) error: Option<String>,
}

/// A row of `attempts`.
struct PendingAttempt<'a> {
    subject: &'a TaskSubject,
    id: String,
    attempt: u32,
    worker: &'a str,
    started_ms: i64,
    ended_ms: i64,
    status: AttemptStatus,
    failure: Option<String>,
    trace: Option<&'a str>,
}

/// What one merge has gathered.
pub(super) struct PendingRows<'a> {
    tasks: Vec<PendingTask<'a>>,
    attempts: Vec<PendingAttempt<'a>>,
    /// Jobs that were cancelled before this merge.
    cancelled_before: CancelledJobs,
    /// Jobs that messages of this merge have cancelled.
    pub(super) cancelled_now: Vec<CancelledJob>,
}

/// The status of an item that ended without a result; none when another message goes on with it, or has its end: a dead task
/// is one whose dead letter is stored, so that whoever counts dead tasks finds as many dead letters. It was published before.
pub(super) fn status_of(end: NotDoneState) -> Option<TaskStatus> {
    match end {
        NotDoneState::Retry => Some(TaskStatus::Retrying),
        NotDoneState::Cancelled => Some(TaskStatus::Cancelled),
        NotDoneState::Dead | NotDoneState::Remainder => None,
    }
}

/// A failure as the text that searches read.
pub(super) fn searchable(failure: &Failure) -> String {
    format!("{}: {}", failure.kind, failure.message)
}

impl<'a> PendingRows<'a> {
    pub(super) fn new(cancelled_before: CancelledJobs) -> Self {
        Self { tasks: Vec::new(), attempts: Vec::new(), cancelled_before, cancelled_now: Vec::new() }
    }

    /// Adds the attempt of a message, those of its items that failed, and the earlier ones that it carries along.
    pub(super) fn add_attempts(&mut self, received: &ReceivedOutcome<'a>) -> Result<()> {
        let outcome = received.outcome;
        let mut add = |id: String, status, failure: Option<&Failure>| -> Result<()> {
            self.attempts.push(PendingAttempt {
                subject: received.subject,
                id,
                attempt: outcome.attempt,
                worker: received.worker,
                started_ms: outcome.started_ms,
                ended_ms: outcome.ended_ms,
                status,
                failure: failure.map(|failure| to_json("failure", failure)).transpose()?,
                trace: outcome.trace.as_deref(),
            });
            Ok(())
        };
        let ended = |n: &NotDone| match n.end {
            NotDoneState::Retry | NotDoneState::Dead => AttemptStatus::Failed,
            NotDoneState::Cancelled => AttemptStatus::Cancelled,
            NotDoneState::Remainder => AttemptStatus::Released,
        };
        match (outcome.items, outcome.not_done.first()) {
            (_, None) => add(outcome.id.clone(), AttemptStatus::Done, None)?,
            (None, Some(not_done)) => add(outcome.id.clone(), ended(not_done), not_done.failure.as_ref())?,
            (Some(items), Some(first)) => {
                let all = outcome.not_done.len() == outcome.results.len();
                if items.len > 1 || items.of == 1 {
                    add(outcome.id.clone(), if all { ended(first) } else { AttemptStatus::PartlyDone }, None)?;
                }
                for not_done in outcome.not_done.iter().filter(|n| n.failure.is_some()) {
                    let id = item_id(outcome.original_id(), items, not_done.item);
                    add(id, ended(not_done), not_done.failure.as_ref())?;
                }
            }
        }
        self.add_failures(received.subject, &outcome.id, &outcome.failures)
    }

    /// Adds attempts that failed earlier and that a later message carries along.
    pub(super) fn add_failures(
        &mut self,
        subject: &'a TaskSubject,
        id: &str,
        failures: &'a [FailedAttempt],
    ) -> Result<()> {
        for failed in failures {
            self.attempts.push(PendingAttempt {
                subject,
                id: id.to_owned(),
                attempt: failed.attempt,
                worker: &failed.worker,
                started_ms: failed.started_ms,
                ended_ms: failed.ended_ms,
                status: AttemptStatus::Failed,
                failure: Some(to_json("failure", &failed.failure)?),
                trace: None,
            });
        }
        Ok(())
    }

    /// Adds a task that was published alone.
    pub(super) fn add_task(&mut self, received: &ReceivedOutcome<'a>) {
        let outcome = received.outcome;
        let end = match outcome.ends().next() {
            Some((_, Ok(kept))) => ItemEnd { status: TaskStatus::Done, result: Some(kept), failure: None },
            Some((_, Err(not_done))) => match status_of(not_done.end) {
                Some(status) => ItemEnd { status, result: None, failure: not_done.failure.as_ref() },
                None => return,
            },
            None => return,
        };
        self.add_end(received, outcome.id.clone(), outcome.index, None, end);
    }

    /// Adds a task, or an item of the batch `root`, as this outcome has ended it.
    pub(super) fn add_end(
        &mut self,
        received: &ReceivedOutcome<'a>,
        id: String,
        index: Option<u64>,
        root: Option<&'a str>,
        end: ItemEnd<'a>,
    ) {
        // A task that is done at last is still found by the failure before it.
        let failure = end.failure.or_else(|| received.outcome.failures.last().map(|failed| &failed.failure));
        let (result, reference) = match end.result {
            None => (None, None),
            Some(ItemResult::Inline(result) | ItemResult::Bytes(result)) => (Some(result.get()), None),
            Some(ItemResult::Stored(at)) => (None, Some(at.to_json())),
        };
        self.add_row(PendingTask {
            subject: received.subject,
            id,
            index,
            digest: received.outcome.digest.as_deref().map(Cow::Borrowed),
            root,
            status: end.status,
            attempt: received.outcome.attempt,
            result,
            is_bytes: matches!(end.result, Some(ItemResult::Bytes(_))),
            reference,
            worker: received.worker,
            published_ms: received.outcome.published_ms,
            started_ms: Some(received.outcome.started_ms),
            ended_ms: Some(received.outcome.ended_ms),
            stored_ms: received.stored_ms,
            trace: received.outcome.trace.as_deref(),
            continuation: received.outcome.continuation.as_deref(),
            error: failure.map(searchable),
        });
    }

    /// Adds a row. A task that is cancelled with its job stays cancelled, however it ended later.
    pub(super) fn add_row(&mut self, row: PendingTask<'a>) {
        let row = match self.is_cancelled(row.subject.job.as_deref(), &row.id, row.published_ms) {
            true => {
                PendingTask { status: TaskStatus::Cancelled, result: None, is_bytes: false, reference: None, ..row }
            }
            false => row,
        };
        self.tasks.push(row);
    }

    /// Whether a task of this id is cancelled with its job.
    pub(super) fn is_cancelled(&self, job: Option<&str>, id: &str, published_ms: i64) -> bool {
        self.cancelled_before.cover(&self.cancelled_now, job, id, published_ms)
    }

    /// Writes all rows when there are many.
    pub(super) async fn flush_many(&mut self, transaction: &mut dyn Transaction) -> Result<()> {
        if self.tasks.len() < ROWS_MAX && self.attempts.len() < ROWS_MAX {
            Ok(())
        } else {
            self.flush(transaction).await
        }
    }

    /// Writes all rows.
    pub(super) async fn flush(&mut self, transaction: &mut dyn Transaction) -> Result<()> {
        if !self.tasks.is_empty() {
            transaction.insert(upsert_tasks(&self.tasks)).await?;
            self.tasks.clear();
        }
        if !self.attempts.is_empty() {
            transaction.insert(upsert_attempts(&self.attempts)).await?;
            self.attempts.clear();
        }
        Ok(())
    }
}

fn upsert_tasks<'a>(tasks: &'a [PendingTask<'_>]) -> Insert<'a> {
    const COLUMNS: &[(&str, Type)] = &[
        ("queue", Type::Text),
        ("id", Type::Text),
        ("kind", Type::Text),
        ("job", Type::Text),
        ("idx", Type::Int),
        ("root", Type::Text),
        ("done", Type::Int),
        ("status", Type::Int),
        ("attempt", Type::Int),
        ("result", Type::Text),
        ("ref", Type::Text),
        ("base64", Type::Text),
        ("worker", Type::Text),
        ("published_ms", Type::Int),
        ("started_ms", Type::Int),
        ("ended_ms", Type::Int),
        ("stored_ms", Type::Int),
        ("trace", Type::Text),
        ("continuation", Type::Text),
        ("error", Type::Text),
        ("digest", Type::Text),
    ];
    let row = |task: &'a PendingTask<'_>| {
        vec![
            (&task.subject.queue).into(),
            (&task.id).into(),
            (&task.subject.kind).into(),
            task.subject.job.as_deref().map(|job| stored_job(job, &task.id)).into(),
            task.index.and_then(|i| i64::try_from(i).ok()).into(),
            task.root.into(),
            i64::from(task.status == TaskStatus::Done).into(),
            task.status.into(),
            task.attempt.into(),
            task.result.into(),
            task.reference.as_deref().into(),
            task.is_bytes.then_some(OF_ONE).into(),
            task.worker.into(),
            task.published_ms.into(),
            task.started_ms.into(),
            task.ended_ms.into(),
            task.stored_ms.into(),
            task.trace.into(),
            task.continuation.into(),
            task.error.as_deref().into(),
            task.digest.as_deref().into(),
        ]
    };
    Insert {
        table: "tasks",
        columns: COLUMNS,
        key: &[0, 1, 2],
        rows: tasks.iter().map(row).collect(),
        // Done and cancelled never change. Of the others the later attempt counts (a replay is one), and of one attempt the
        // dead letter.
        on_conflict: "ON CONFLICT (id, queue, kind) DO UPDATE SET
            job = coalesce(tasks.job, excluded.job), idx = coalesce(tasks.idx, excluded.idx),
            done = excluded.done, status = excluded.status, attempt = excluded.attempt, result = excluded.result,
            ref = excluded.ref, base64 = excluded.base64,
            worker = excluded.worker, started_ms = excluded.started_ms, ended_ms = excluded.ended_ms,
            stored_ms = excluded.stored_ms, trace = coalesce(excluded.trace, tasks.trace),
            continuation = excluded.continuation, error = coalesce(excluded.error, tasks.error),
            digest = coalesce(tasks.digest, excluded.digest)
          WHERE tasks.status < 3 AND tasks.items IS NULL AND (excluded.status >= 3 OR excluded.attempt > tasks.attempt
            OR (excluded.attempt = tasks.attempt AND excluded.status > tasks.status))",
    }
}

fn upsert_attempts<'a>(attempts: &'a [PendingAttempt<'_>]) -> Insert<'a> {
    const COLUMNS: &[(&str, Type)] = &[
        ("queue", Type::Text),
        ("id", Type::Text),
        ("kind", Type::Text),
        ("attempt", Type::Int),
        ("worker", Type::Text),
        ("started_ms", Type::Int),
        ("ended_ms", Type::Int),
        ("status", Type::Text),
        ("failure", Type::Text),
        ("trace", Type::Text),
    ];
    let row = |attempt: &'a PendingAttempt<'_>| {
        vec![
            (&attempt.subject.queue).into(),
            (&attempt.id).into(),
            (&attempt.subject.kind).into(),
            attempt.attempt.into(),
            attempt.worker.into(),
            attempt.started_ms.into(),
            attempt.ended_ms.into(),
            attempt.status.name().into(),
            attempt.failure.as_deref().into(),
            attempt.trace.into(),
        ]
    };
    Insert {
        table: "attempts",
        columns: COLUMNS,
        key: &[0, 1, 2, 3, 4, 5],
        rows: attempts.iter().map(row).collect(),
        // An attempt that was carried along has no trace: it must not hide the trace that its own message brought.
        on_conflict: "ON CONFLICT (queue, id, kind, attempt, worker, started_ms) DO UPDATE SET
            trace = coalesce(attempts.trace, excluded.trace)",
    }
}

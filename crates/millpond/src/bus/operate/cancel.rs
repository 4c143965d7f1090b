//! Cancelling: first the tombstone, which workers watch and which survives all of them, then the outcome on RESULTS,
//! then what waits is removed. In the collector's role; docs/protocol.md has the order and its reasons.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::time::Duration;

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::publish::{PublishError, RetryDeadline};
use crate::bus::read::buckets::{encode, open};
use crate::bus::read::later::InLater;
use crate::bus::topology::stream_state;
use crate::job::{JobRecord, JobState};
use crate::outcome::{CancelledJob, NotDone, NotDoneState, Outcome, ResultBatch};
use crate::task::{Arrival, Origin, Task};
use crate::wire::bounds::{self, Bounded};
use crate::wire::headers::HEADER_MSG_ID;
use crate::wire::streams::{BUCKET_CANCELS, STREAM_DUE, STREAM_LATER, STREAM_TASKS};
use crate::wire::subject;
use crate::wire::subject::TaskSubject;

/// How long the server may take to store that something was cancelled.
const CANCEL_STORE_WITHIN: Duration = Duration::from_secs(5);

/// The value of a tombstone: its key is `job.<job>`, or `<queue>.<kind>.<key of the id>`, without the kind where it is none.
///
/// ```
/// use millpond::bus::operate::cancel::Tombstone;
/// let job: Tombstone = serde_json::from_str(r#"{"job":"j1","epoch":1,"by":"operator"}"#).unwrap();
/// assert!(matches!(job, Tombstone::Job { epoch: 1, .. }));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Tombstone {
    /// All tasks of a job: those that this epoch or an earlier one published, and those of no epoch that were stored
    /// before this.
    Job {
        /// Its name.
        job: String,
        /// 0 for a job without a record.
        epoch: u32,
        /// Who cancelled it.
        by: String,
    },
    /// One task, an item of a batch, or a whole batch.
    Task {
        /// Its queue.
        queue: String,
        /// Its kind; none: of whatever kind, for a task that was not there yet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
        /// Its id.
        id: String,
        /// Who cancelled it.
        by: String,
    },
}

impl Bounded for Tombstone {}

impl Tombstone {
    fn key(&self) -> String {
        match self {
            Self::Job { job, .. } => format!("job.{job}"),
            Self::Task { queue, kind: Some(kind), id, .. } => format!("{queue}.{kind}.{}", subject::key(id)),
            Self::Task { queue, kind: None, id, .. } => format!("{queue}.{}", subject::key(id)),
        }
    }
}

/// Why something could not be cancelled; it is safe to try again.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// The server did not do its part.
    #[error(transparent)]
    Topology(#[from] BusError),
    /// The outcome could not be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// A job that is cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCancellation {
    /// Its name.
    pub job: String,
    /// The epochs up to this one.
    pub epoch: u32,
    /// Messages that waited and were removed.
    pub removed: u64,
}

impl Bounded for JobCancellation {
    fn check(&self) -> Result<(), String> {
        bounds::count("removed", self.removed)
    }
}

impl Bus {
    /// Marks something as cancelled: workers end it when they have it or get it.
    ///
    /// # Errors
    /// [`BusError`] when the bucket cannot be written.
    pub async fn put_tombstone(&self, tombstone: &Tombstone) -> Result<(), BusError> {
        let store = open(self, BUCKET_CANCELS).await?;
        let put = store.put(tombstone.key(), encode(tombstone)).await;
        put.map_err(|e| BusError::new(BUCKET_CANCELS, &e))?;
        Ok(())
    }

    /// Cancels a task, or, without a kind, the tasks of that id in all kinds of the queue. What waits for its time is removed and
    /// its outcome published at once: true. A task that waits for a worker or runs is ended by its worker, which publishes the
    /// outcome: false.
    ///
    /// # Errors
    /// [`CancelError`]; try again.
    pub async fn cancel_task(&self, queue: &str, kind: Option<&str>, id: &str, by: &str) -> Result<bool, CancelError> {
        let tombstone = Tombstone::Task {
            queue: queue.to_owned(),
            kind: kind.map(str::to_owned),
            id: id.to_owned(),
            by: by.to_owned(),
        };
        self.put_tombstone(&tombstone).await?;
        let was_in_later = self.cancel_in_later(queue, kind, id, by).await?;
        let (mut removed, kind) = (None, kind.unwrap_or("*"));
        // One by one: each that is removed uncovers the next.
        while let Some(found) = self.last_of_due(&format!("sched.{queue}.{kind}.*.{}", subject::key(id))).await? {
            // A replica may lag behind the purge.
            if removed == Some(found.seq) {
                break;
            }
            let Some(subject) = TaskSubject::parse_sched(&found.subject) else { break };
            let arrival = Arrival { origin: Origin::Due, epoch: "", seq: found.seq, stored_ms: crate::now_ms() };
            let task = Task::parse(&subject.due(), &found.headers, Bytes::new(), arrival);
            let batch = ResultBatch { v: 1, worker: by.to_owned(), outcomes: vec![never_ran(&task)], cancelled: None };
            let message_id = subject.message_id(&format!("c{}", found.seq), id);
            self.publish_cancelled(&subject, &batch, &message_id).await?;
            self.purge_due(&found.subject, found.seq).await?;
            removed = Some(found.seq);
        }
        Ok(was_in_later || removed.is_some())
    }

    /// Removes what a producer service has not moved to DUE; what it has moved is found there afterwards.
    async fn cancel_in_later(&self, queue: &str, kind: Option<&str>, id: &str, by: &str) -> Result<bool, CancelError> {
        let (waiting, _) = self.in_later(&format!("later.{queue}.>")).await?;
        let is_meant = |task: &Task| task.original_id == id && kind.is_none_or(|kind| kind == task.subject.kind);
        let mut any = false;
        for InLater { seq, task, .. } in waiting.into_iter().filter(|waiting| is_meant(&waiting.task)) {
            let batch = ResultBatch { v: 1, worker: by.to_owned(), outcomes: vec![never_ran(&task)], cancelled: None };
            let message_id = task.subject.message_id(&format!("c-{seq}"), id);
            self.publish_cancelled(&task.subject, &batch, &message_id).await?;
            self.remove_message(STREAM_LATER, seq).await?;
            any = true;
        }
        if any {
            // What a producer has in hand is found in DUE now, or not moved any more. Should this die before, the tombstone ends it.
            self.interrupt_moves().await?;
        }
        Ok(any)
    }

    /// Cancels a job: what waits is removed, workers end what they hold of it, and one record on RESULTS stands for
    /// all its tasks. `subject` is the queue and kind of a job that has no record.
    ///
    /// # Errors
    /// [`CancelError`]; try again.
    pub async fn cancel_job(&self, job: &str, subject: &TaskSubject, by: &str) -> Result<JobCancellation, CancelError> {
        // First of all: what is stored later belongs to the next epoch, or is ended when a worker admits it.
        let later_up_to = stream_state(self, STREAM_LATER).await?.last_seq;
        let tasks_up_to = stream_state(self, STREAM_TASKS).await?.last_seq;
        let mut due_up_to = stream_state(self, STREAM_DUE).await?.last_seq;
        let epoch = self.job(job).await?.map_or(0, |entry| entry.record.epoch);
        self.put_tombstone(&Tombstone::Job { job: job.to_owned(), epoch, by: by.to_owned() }).await?;
        crate::failpoint::hit("cancel.marked");
        let record = self.close_cancelled(job, epoch).await?;
        let subject = match record {
            Some(record) => TaskSubject { queue: record.queue, kind: record.kind, job: None, unique: None },
            None => subject.clone(),
        };
        let subject = TaskSubject { job: Some(job.to_owned()), ..subject };
        let cancelled = CancelledJob { job: job.to_owned(), epoch, by: by.to_owned(), at_ms: crate::now_ms() };
        let batch = ResultBatch { v: 1, worker: by.to_owned(), outcomes: Vec::new(), cancelled: Some(cancelled) };
        self.publish_cancelled(&subject, &batch, &format!("job/{job}/c{epoch}")).await?;
        crate::failpoint::hit("cancel.told");
        let mut removed = self.purge_later(&format!("later.*.*.j-{job}"), later_up_to).await?;
        if later_up_to > 0 {
            // What was moved to DUE meanwhile is meant, too. Also where nothing was removed: who did that may have died then.
            self.interrupt_moves().await?;
            due_up_to = stream_state(self, STREAM_DUE).await?.last_seq;
        }
        removed += self.purge_tasks(&format!("tasks.*.*.j-{job}"), tasks_up_to).await?;
        removed += self.purge_due(&format!("sched.*.*.{job}.*"), due_up_to).await?;
        removed += self.purge_due(&format!("due.*.*.j-{job}"), due_up_to).await?;
        Ok(JobCancellation { job: job.to_owned(), epoch, removed })
    }

    /// Notifies the producer, which reads the record with each heartbeat.
    async fn close_cancelled(&self, job: &str, epoch: u32) -> Result<Option<JobRecord>, BusError> {
        loop {
            let Some(entry) = self.job(job).await? else { return Ok(None) };
            // A later epoch is none of this cancellation's business.
            if entry.record.epoch != epoch || entry.record.state == JobState::Cancelled {
                return Ok(Some(entry.record));
            }
            let record = JobRecord { state: JobState::Cancelled, ..entry.record };
            if self.write_job(&record, entry.revision).await?.is_some() {
                return Ok(Some(record));
            }
        }
    }

    async fn publish_cancelled(
        &self,
        subject: &TaskSubject,
        batch: &ResultBatch,
        message_id: &str,
    ) -> Result<(), PublishError> {
        let headers = vec![(HEADER_MSG_ID.to_owned(), message_id.to_owned())];
        let deadline = RetryDeadline::Within(CANCEL_STORE_WITHIN);
        self.store(&subject.results(), &headers, encode(batch), deadline).await.map(drop)
    }
}

/// The outcome of a task that was cancelled before it ran.
fn never_ran(task: &Task) -> Outcome {
    let (id, now) = (task.id(), crate::now_ms());
    let first = task.items.map_or(0, |i| i.from);
    let items = first..first.saturating_add(task.items_len());
    let cancelled = |item| NotDone { item, end: NotDoneState::Cancelled, failure: None, due_ms: None };
    Outcome {
        original_id: (id != task.original_id).then(|| task.original_id.clone()),
        id,
        items: task.items,
        index: task.index,
        digest: None,
        attempt: task.attempt,
        published_ms: task.published_ms,
        started_ms: now,
        ended_ms: now,
        busy_us: 0,
        trace: None,
        span: None,
        results: items.clone().map(|_| RawValue::NULL.to_owned()).collect(),
        bytes: Vec::new(),
        not_done: items.map(cancelled).collect(),
        refs: Vec::new(),
        continuation: None,
        failures: task.failures.clone(),
    }
}

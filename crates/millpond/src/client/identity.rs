//! What the id of a task stands for: whether what the server or a collector has of it is this task, when a publish is acknowledged as
//! a duplicate, and when somebody wants to know before (docs/protocol.md, "An id is unique in its queue and kind").

use std::time::Duration;

use super::errors::SubmitError;
use super::history::HistoryRow;
use super::{Client, NewTask};
use crate::bus::operate::restore::SavedTask;
use crate::bus::publish::{RetryDeadline, Stored};
use crate::payload;
use crate::payload::PayloadRef;
use crate::task::{Arrival, Origin, Task};
use crate::wire::streams::{STREAM_DUE, STREAM_LATER, STREAM_TASKS};
use crate::wire::subject::TaskSubject;

/// How often a collector is requested for a task that was taken out of its stream a moment ago. Its outcome was stored before that, so
/// what is waited for is one commit of a collector: it gathers for 50 ms, and the next outcomes are merged when those are. Ten polls,
/// a second, are ten of these commits. Where none of them has it (no collector runs, its store is slow) the id is taken for the same
/// task, as an id is whose end nobody tells.
const STORED_POLLS: usize = 10;
/// How long between two of these requests: twice what a collector gathers for.
pub(super) const STORED_POLL_DELAY: Duration = Duration::from_millis(100);
/// The states of a task at a collector that nothing comes after by itself.
const ENDED: [&str; 3] = ["done", "dead", "cancelled"];

impl NewTask {
    /// The digest of its arguments.
    fn digest(&self) -> String {
        self.stored.as_ref().map_or_else(|| payload::digest(&self.payload), |stored| stored.at.digest())
    }

    /// Refuses it where the message that waits in its place has other arguments.
    fn check_waiting(&self, id: &str, waiting: &Task) -> Result<(), SubmitError> {
        let digest = waiting.payload_ref.as_ref().map_or_else(|| payload::digest(&waiting.payload), PayloadRef::digest);
        if digest == self.digest() { Ok(()) } else { Err(self.id_taken(id, "it waits or runs")) }
    }

    /// Refuses it where this is another task.
    fn check_stored(&self, id: &str, stored: &HistoryRow) -> Result<(), SubmitError> {
        match &stored.digest {
            Some(digest) if *digest != self.digest() => Err(self.id_taken(id, &format!("it is {}", stored.status))),
            _ => Ok(()),
        }
    }

    fn id_taken(&self, id: &str, holder: &str) -> SubmitError {
        let (queue, kind) = (self.queue.clone(), self.kind.clone());
        SubmitError::IdTaken { queue, kind, id: id.to_owned(), holder: holder.to_owned() }
    }
}

impl Client {
    /// Whether what the server has under the message id of this task is this task: of its queue, kind and id. With other arguments
    /// it is refused. What is not there any more was of its queue, kind and id, because the message id says them.
    pub(super) async fn is_held(
        &self,
        task: &NewTask,
        subject: &TaskSubject,
        id: &str,
        stored: Stored,
    ) -> Result<bool, SubmitError> {
        let stream = match task.at_ms {
            None => STREAM_TASKS,
            Some(_) if self.bus.may_schedule() => STREAM_DUE,
            Some(_) => STREAM_LATER,
        };
        let Some(held) = self.bus.task_at(stream, stored.seq).await else {
            // It was moved, or has ended.
            let waits = stream == STREAM_LATER && self.waits(task, subject, id).await?;
            return if waits { Ok(true) } else { self.check_ended(task, id).await.map(|()| true) };
        };
        if (&held.subject.queue, &held.subject.kind, held.original_id.as_str()) != (&subject.queue, &subject.kind, id) {
            return Ok(false);
        }
        task.check_waiting(id, &held).map(|()| true)
    }

    /// Whether what waits for its time where this task would is this task, or a retry of it; false when nothing waits there any more.
    /// Another one is not replaced.
    pub(super) async fn waits(&self, task: &NewTask, subject: &TaskSubject, id: &str) -> Result<bool, SubmitError> {
        let Some(found) = self.bus.last_of_due(&subject.sched(id)).await? else { return Ok(false) };
        let arrival = Arrival { origin: Origin::Due, epoch: "", seq: found.seq, stored_ms: 0 };
        let waiting = Task::parse(&subject.due(), &found.headers, found.payload, arrival);
        if waiting.original_id != id {
            return Err(task.id_taken(id, "another one waits for its time in this one's place"));
        }
        task.check_waiting(id, &waiting).map(|()| true)
    }

    /// Whether a task of a unique key that was to wait for its time is in DUE, before its time or after it, or has run since as far as a
    /// collector can tell. DUE is only read: what asks TASKS would be stored there.
    pub(super) async fn is_in_due(&self, task: &NewTask, subject: &TaskSubject, id: &str) -> Result<bool, SubmitError> {
        for place in [subject.sched(id), subject.due()] {
            let Some(found) = self.bus.last_of_due(&place).await? else { continue };
            let arrival = Arrival { origin: Origin::Due, epoch: "", seq: found.seq, stored_ms: 0 };
            let waiting = Task::parse(&subject.due(), &found.headers, found.payload, arrival);
            if waiting.original_id == id {
                return task.check_waiting(id, &waiting).map(|()| true);
            }
        }
        match self.stored_task(task, id).await {
            Ok(Some(row)) => task.check_stored(id, &row).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Checks that the id of a task does not stand for one with other arguments that has ended, or ended an attempt, as far as a
    /// collector can tell: the server knows an id for 30 s only.
    ///
    /// # Errors
    /// [`SubmitError::IdTaken`].
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn check_arguments(&self, task: &NewTask, id: &str) -> Result<(), SubmitError> {
        self.stored_task(task, id).await.ok().flatten().map_or(Ok(()), |row| task.check_stored(id, &row))
    }

    /// The same for a task that was taken out of its stream a moment ago: what it ended with is on its way to the collector.
    async fn check_ended(&self, task: &NewTask, id: &str) -> Result<(), SubmitError> {
        for _ in 0..STORED_POLLS {
            match self.stored_task(task, id).await {
                Ok(Some(row)) => return task.check_stored(id, &row),
                Ok(None) => tokio::time::sleep(STORED_POLL_DELAY).await,
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Publishes a task again that lay in a TASKS of before, under its id; false when a collector has its end already.
    ///
    /// # Errors
    /// [`SubmitError`].
    ///
    /// # Cancel safety
    /// Not safe: it may or may not be stored.
    pub async fn publish_again(&self, saved: &SavedTask, deadline: RetryDeadline) -> Result<bool, SubmitError> {
        let TaskSubject { queue, kind, .. } = saved.task().subject;
        let task = NewTask { queue, kind, ..NewTask::default() };
        let stored = self.stored_task(&task, &saved.task().id()).await.ok().flatten();
        if stored.is_some_and(|row| ENDED.contains(&row.status.as_str())) {
            return Ok(false);
        }
        self.capacity.wait().await;
        self.bus.store_again(saved, deadline).await?;
        Ok(true)
    }
}

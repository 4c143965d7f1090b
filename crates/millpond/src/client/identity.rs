//! What the id of a task stands for: whether what the server or a collector has of it is this task, when a publish is acknowledged as
//! a duplicate, and when somebody wants to know before (docs/protocol.md, "An id is unique in its queue and kind").

use std::time::Duration;

use super::errors::SubmitError;
use super::history::HistoryRow;
use super::{Client, NewTask};
use crate::bus::publish::Stored;
use crate::payload;
use crate::payload::PayloadRef;
use crate::task::{Arrival, Origin, Task};
use crate::wire::subject::TaskSubject;

/// How often a collector is asked for a task that was taken out of its stream a moment ago.
const STORED_LOOKS: usize = 10;
/// How long between two of these questions.
const STORED_LOOK_DELAY: Duration = Duration::from_millis(100);

impl NewTask {
    /// The digest of its arguments.
    fn digest(&self) -> String {
        self.stored.as_ref().map_or_else(|| payload::digest(&self.payload), |stored| stored.at.digest())
    }

    /// Refuses it where a message that lies there has other arguments.
    fn check_lying(&self, id: &str, lying: &Task) -> Result<(), SubmitError> {
        let digest = lying.payload_ref.as_ref().map_or_else(|| payload::digest(&lying.payload), PayloadRef::digest);
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
        let origin = if task.at_ms.is_some() { Origin::Due } else { Origin::Tasks };
        let Some(held) = self.bus.task_at(origin, stored.seq).await else {
            return self.check_ended(task, id).await.map(|()| true);
        };
        if (&held.subject.queue, &held.subject.kind, held.original_id.as_str()) != (&subject.queue, &subject.kind, id) {
            return Ok(false);
        }
        task.check_lying(id, &held).map(|()| true)
    }

    /// Whether what waits for its time where this task would is this task, or a retry of it; false when nothing waits there any more.
    /// Another one is not replaced.
    pub(super) async fn waits(&self, task: &NewTask, subject: &TaskSubject, id: &str) -> Result<bool, SubmitError> {
        let Some(found) = self.bus.last_of_due(&subject.sched(id)).await? else {
            // It was delivered a moment ago, or this replica does not know it yet.
            tokio::time::sleep(STORED_LOOK_DELAY).await;
            return Ok(false);
        };
        let arrival = Arrival { origin: Origin::Due, epoch: "", seq: found.seq, stored_ms: 0 };
        let lying = Task::parse(&subject.due(), &found.headers, found.payload, arrival);
        if lying.original_id != id {
            return Err(task.id_taken(id, "another one waits for its time in this one's place"));
        }
        task.check_lying(id, &lying).map(|()| true)
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
        for _ in 0..STORED_LOOKS {
            match self.stored_task(task, id).await {
                Ok(Some(row)) => return task.check_stored(id, &row),
                Ok(None) => tokio::time::sleep(STORED_LOOK_DELAY).await,
                Err(_) => break,
            }
        }
        Ok(())
    }
}

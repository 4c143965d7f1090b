//! Waiting for the end of one task: of its job where it has one; of a task with a unique key, which belongs to none, and
//! of the later steps of a chain among all results of their queue and kind.

use super::payloads::Ended;
use super::submit::final_end;
use super::{Client, ClientError, NewTask, NoResult, Submitted, TaskEnd};
use crate::bus::publish::RetryDeadline;
use crate::bus::read::job_results::LiveResults;
use crate::chain::{next_id, resolve};
use crate::wire::subject::{TaskSubject, key, results_of_job};

/// Hears how a task ends that is published after this was made.
pub struct Waiter {
    client: Client,
    id: String,
    queue: String,
    first: LiveResults,
    /// The later steps of a chain, and their queues.
    later: Vec<(LiveResults, String)>,
}

impl Client {
    /// Listens for the end of a task that is about to be published: what ends before somebody listens would not be
    /// heard. Gives it an id, and a job of its own that follows from it, where it has none.
    ///
    /// # Errors
    /// [`ClientError`] when results cannot be read, or a name does not fit.
    pub async fn waiter(&self, task: &mut NewTask) -> Result<Waiter, ClientError> {
        let id = task.id.get_or_insert_with(crate::random_token).clone();
        if task.unique.is_none() {
            // The same for a resend: who asks again hears of the same job.
            task.job.get_or_insert_with(|| format!("s-{}", key(&format!("{}/{id}", task.queue))));
        }
        let subject = TaskSubject { unique: None, ..task.subject()? };
        let filter = task.job.as_deref().map_or_else(|| subject.results(), results_of_job);
        let first = LiveResults::start_on(&self.bus, filter).await?;
        let mut later = Vec::with_capacity(task.then.len());
        for step in resolve(&task.queue, &task.then) {
            later.push((LiveResults::start_on(&self.bus, step.results()).await?, step.queue));
        }
        Ok(Waiter { client: self.clone(), id, queue: subject.queue, first, later })
    }

    /// Publishes a task under a job of its own, and waits for its end, however long that takes; of a chain for the end of
    /// its last step, or of the one that ended it. The end comes with the id of that step. `stored` is called once the
    /// server has the task.
    ///
    /// # Errors
    /// [`ClientError`] when it cannot be published.
    pub async fn submit_and_wait(
        &self,
        mut task: NewTask,
        deadline: RetryDeadline,
        stored: impl FnOnce(&Submitted),
    ) -> Result<(Submitted, TaskEnd), ClientError> {
        let waiter = self.waiter(&mut task).await?;
        let submitted = self.submit(&task, deadline).await?;
        stored(&submitted);
        let (id, end) = waiter.end(&submitted).await;
        Ok((Submitted { id, ..submitted }, end))
    }
}

impl Waiter {
    /// The end of what was submitted, however long that takes, and the id of the step that it is of.
    pub async fn end(self, submitted: &Submitted) -> (String, TaskEnd) {
        let Self { client, mut id, queue, mut first, mut later } = self;
        if submitted.duplicate {
            // Published before: it may have ended before anybody listened.
            first.read_from_oldest();
            later.iter_mut().for_each(|(reader, _)| reader.read_from_oldest());
        }
        let mut end = client.resolve(end_of(&mut first, &queue, &id).await).await;
        for (mut reader, queue) in later {
            if end.is_err() {
                break;
            }
            id = next_id(&id);
            end = client.resolve(end_of(&mut reader, &queue, &id).await).await;
        }
        (id, end)
    }
}

async fn end_of(reader: &mut LiveResults, queue: &str, id: &str) -> Ended {
    loop {
        let (subject, pack) = reader.next().await;
        if pack.cancelled.as_ref().is_some_and(|c| subject.job.as_ref() == Some(&c.job) && c.covers(id)) {
            return Ended::Here(Err(NoResult::Cancelled));
        }
        let ours = pack.outcomes.iter().filter(|outcome| subject.queue == queue && outcome.id == id);
        if let Some(end) = ours.flat_map(|outcome| outcome.ends()).find_map(|(_, end)| final_end(end)) {
            return end;
        }
    }
}

//! Waiting for the end of one task: among the results of its job where it has one; among all results of the queue and kind for
//! a task with a unique key, which belongs to no job, and for the later steps of a chain. What RESULTS does not tell, because the
//! task was published before, a collector does.

use super::errors::SubmitError;
use super::payloads::{KnownEnd, final_end};
use super::{Client, NewTask, NoResult, Submitted, TaskEnd};
use crate::bus::publish::RetryDeadline;
use crate::bus::read::job_results::LiveResults;
use crate::chain::{next_id, resolve};
use crate::wire::subject::{TaskSubject, key, results_of_job};

/// Listens for the end of a task that is published after this was made.
pub struct Waiter {
    client: Client,
    id: String,
    subject: TaskSubject,
    first: LiveResults,
    /// The readers of the later steps of a chain, and their queues and kinds.
    later: Vec<(LiveResults, TaskSubject)>,
}

impl Client {
    /// Listens for the end of a task that is about to be published: an end that is published before would be missed. Gives the
    /// task an id, and a job of its own that follows from it, where it has none.
    ///
    /// # Errors
    /// [`SubmitError`] when results cannot be read, or a name does not fit.
    pub async fn waiter(&self, task: &mut NewTask) -> Result<Waiter, SubmitError> {
        let id = task.id.get_or_insert_with(crate::random_token).clone();
        if task.unique.is_none() {
            // A resend of the same id gets the same job.
            task.job.get_or_insert_with(|| format!("s-{}", key(&format!("{}/{}/{id}", task.queue, task.kind))));
        }
        let subject = TaskSubject { unique: None, ..task.subject()? };
        let filter = task.job.as_deref().map_or_else(|| subject.results(), results_of_job);
        let first = LiveResults::start_on(&self.bus, filter).await?;
        let mut later = Vec::with_capacity(task.continuation.len());
        for step in resolve(&task.queue, &task.continuation) {
            later.push((LiveResults::start_on(&self.bus, step.results()).await?, step));
        }
        Ok(Waiter { client: self.clone(), id, subject, first, later })
    }

    /// Publishes a task under a job of its own, and waits for its end, however long that takes; of a chain, for the end of its
    /// last step, or of the one that ended the chain. The id that comes with the end is that step's. `on_stored` is called once
    /// the server has the task.
    ///
    /// # Errors
    /// [`SubmitError`] when it cannot be published.
    pub async fn submit_and_wait(
        &self,
        mut task: NewTask,
        deadline: RetryDeadline,
        on_stored: impl FnOnce(&Submitted),
    ) -> Result<(Submitted, TaskEnd), SubmitError> {
        let waiter = self.waiter(&mut task).await?;
        let submitted = self.submit(&task, deadline).await?;
        on_stored(&submitted);
        let (id, end) = waiter.end(&submitted).await;
        Ok((Submitted { id, ..submitted }, end))
    }
}

impl Waiter {
    /// The end of the submitted task, however long that takes, and the id of the step that it belongs to.
    pub async fn end(self, submitted: &Submitted) -> (String, TaskEnd) {
        let Self { client, mut id, mut subject, mut first, mut later } = self;
        if submitted.duplicate {
            // It was published before: it may have ended before this waiter listened.
            first.read_from_oldest();
            later.iter_mut().for_each(|(results, _)| results.read_from_oldest());
        }
        let repeated = submitted.duplicate;
        let mut end = end_of(&client, &mut first, (&subject, &id), repeated).await;
        for (mut results, step) in later {
            if end.is_err() {
                break;
            }
            id = next_id(&subject, &id);
            subject = step;
            end = end_of(&client, &mut results, (&subject, &id), repeated).await;
        }
        (id, end)
    }
}

/// The end of the task of a queue, kind and id: among these results, or as a collector has it.
async fn end_of(client: &Client, results: &mut LiveResults, (of, id): (&TaskSubject, &str), repeated: bool) -> TaskEnd {
    let end = tokio::select! {
        end = heard(results, of, id) => end,
        end = client.stored_end(&of.queue, &of.kind, id, repeated) => end,
    };
    client.fetch(end).await
}

async fn heard(results: &mut LiveResults, of: &TaskSubject, id: &str) -> KnownEnd {
    loop {
        let (subject, batch) = results.next().await;
        if batch.cancelled.as_ref().is_some_and(|c| subject.job.as_ref() == Some(&c.job) && c.covers(id)) {
            return KnownEnd::Inline(Err(NoResult::Cancelled));
        }
        let is_of = (&subject.queue, &subject.kind) == (&of.queue, &of.kind);
        let of_task = batch.outcomes.iter().filter(|outcome| is_of && outcome.id == id);
        if let Some(end) = of_task.flat_map(|outcome| outcome.ends()).find_map(|(_, end)| final_end(end)) {
            return end;
        }
    }
}

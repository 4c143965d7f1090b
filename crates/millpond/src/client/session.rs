//! A session: submits tasks one at a time under one job of its own and waits for each end. The wait needs no set-up per task.

use std::collections::{HashMap, HashSet};

use super::errors::SubmitError;
use super::payloads::{KnownEnd, final_end};
use super::{Client, NewTask, NoResult, Submitted, TaskEnd};
use crate::bus::error::BusError;
use crate::bus::publish::RetryDeadline;
use crate::bus::read::job_results::LiveResults;

/// Ends of abandoned waits that a session remembers.
const UNCLAIMED_MAX: usize = 1000;

/// Queue, kind and id of a task.
type AwaitedTask = (String, String, String);

/// Submits tasks one at a time and waits for each. Make it once, use it often.
pub struct TaskSession {
    client: Client,
    job: String,
    results: LiveResults,
    /// Ends that arrived while another task was awaited, or whose wait was dropped.
    unclaimed: HashMap<AwaitedTask, KnownEnd>,
    /// Awaited tasks that were published before this session published them.
    repeated: HashSet<AwaitedTask>,
}

impl Client {
    /// Starts a session; its tasks belong to the job `s-<random>`, or to `job`.
    ///
    /// # Errors
    /// [`BusError`] when results cannot be read.
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn session(&self, job: Option<String>) -> Result<TaskSession, BusError> {
        let job = job.unwrap_or_else(|| format!("s-{}", crate::random_token()));
        // The reader comes first: an end that is published before it listens would be missed.
        let results = LiveResults::start(&self.bus, &job).await?;
        Ok(TaskSession { client: self.clone(), job, results, unclaimed: HashMap::new(), repeated: HashSet::new() })
    }
}

impl TaskSession {
    /// Publishes a task and waits for its end, however long that takes. `on_stored` is called once the server has the task.
    ///
    /// # Errors
    /// [`SubmitError`] when it cannot be published.
    ///
    /// # Cancel safety
    /// When this is dropped, the task may be stored or not; its end is kept for [`TaskSession::end`].
    pub async fn run(
        &mut self,
        task: NewTask,
        deadline: RetryDeadline,
        on_stored: impl FnOnce(&Submitted),
    ) -> Result<(Submitted, TaskEnd), SubmitError> {
        let submitted = self.submit(&task, deadline).await?;
        on_stored(&submitted);
        let end = self.end(&task.queue, &task.kind, &submitted.id).await;
        Ok((submitted, end))
    }

    /// The job that its tasks belong to.
    #[must_use]
    pub fn job(&self) -> &str {
        &self.job
    }

    /// Publishes a task of this session; [`TaskSession::end`] waits for its end.
    ///
    /// # Errors
    /// [`SubmitError`] when it cannot be published.
    ///
    /// # Cancel safety
    /// Safe: the task is stored as a whole or not at all. Who must know submits it again with the same id.
    pub async fn submit(&mut self, task: &NewTask, deadline: RetryDeadline) -> Result<Submitted, SubmitError> {
        let task = NewTask { job: Some(self.job.clone()), ..task.clone() };
        let submitted = self.client.publish_checked(&task, deadline).await?;
        if submitted.duplicate {
            // It was published before, perhaps under this job: it may have ended before this session listened.
            self.results.read_from_oldest();
            if self.repeated.len() > UNCLAIMED_MAX {
                self.repeated.clear();
            }
            self.repeated.insert((task.queue.clone(), task.kind.clone(), submitted.id.clone()));
        }
        Ok(submitted)
    }

    /// The end of a task of this session, however long that takes.
    ///
    /// # Cancel safety
    /// Safe: an end that arrives meanwhile is kept for the next call.
    pub async fn end(&mut self, queue: &str, kind: &str, id: &str) -> TaskEnd {
        let awaited = (queue.to_owned(), kind.to_owned(), id.to_owned());
        let client = self.client.clone();
        let repeated = self.repeated.contains(&awaited);
        let end = tokio::select! {
            end = self.heard(&awaited) => end,
            // Boxed: most ends are heard.
            end = Box::pin(client.stored_end(queue, kind, id, repeated)) => end,
        };
        self.repeated.remove(&awaited);
        Box::pin(client.fetch(end)).await
    }

    async fn heard(&mut self, awaited: &AwaitedTask) -> KnownEnd {
        loop {
            if let Some(end) = self.unclaimed.remove(awaited) {
                return end;
            }
            let (subject, batch) = self.results.next().await;
            if batch.cancelled.as_ref().is_some_and(|c| c.covers(&awaited.2)) {
                return KnownEnd::Inline(Err(NoResult::Cancelled));
            }
            if self.unclaimed.len() > UNCLAIMED_MAX {
                self.unclaimed.clear();
            }
            for outcome in &batch.outcomes {
                if let Some(end) = outcome.ends().find_map(|(_, end)| final_end(end)) {
                    let task = (subject.queue.clone(), subject.kind.clone(), outcome.id.clone());
                    self.unclaimed.insert(task, end);
                }
            }
        }
    }
}

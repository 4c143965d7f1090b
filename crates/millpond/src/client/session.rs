//! A session: lone tasks whose ends are awaited, under one job of its own, so that waiting costs nothing to set up.

use std::collections::HashMap;

use super::payloads::Ended;
use super::submit::final_end;
use super::{Client, ClientError, NewTask, NoResult, Submitted, TaskEnd};
use crate::bus::publish::RetryDeadline;
use crate::bus::read::job_results::LiveResults;

/// Submits tasks one at a time and waits for each. Make it once, use it often.
pub struct Session {
    client: Client,
    job: String,
    reader: LiveResults,
    /// Ends that came before anybody asked for them: of tasks whose wait was dropped.
    early: HashMap<(String, String), Ended>,
}

/// Ends of abandoned waits that a session keeps.
const EARLY_MAX: usize = 1000;

impl Client {
    /// Starts a session; what it submits belongs to the job `s-<random>`, or to `job`.
    ///
    /// # Errors
    /// [`ClientError`] when results cannot be read.
    pub async fn session(&self, job: Option<String>) -> Result<Session, ClientError> {
        let job = job.unwrap_or_else(|| format!("s-{}", crate::random_token()));
        // First the reader: what ends before we listen would not be heard.
        let reader = LiveResults::start(&self.bus, &job).await?;
        Ok(Session { client: self.clone(), job, reader, early: HashMap::new() })
    }
}

impl Session {
    /// Publishes a task and waits for its end, however long that takes. `stored` is called once the server has it.
    ///
    /// # Errors
    /// [`ClientError`] when it cannot be published.
    pub async fn run(
        &mut self,
        task: NewTask,
        deadline: RetryDeadline,
        stored: impl FnOnce(&Submitted),
    ) -> Result<(Submitted, TaskEnd), ClientError> {
        let submitted = self.submit(&task, deadline).await?;
        stored(&submitted);
        let end = self.end(&task.queue, &submitted.id).await;
        Ok((submitted, end))
    }

    /// The job that its tasks belong to.
    #[must_use]
    pub fn job(&self) -> &str {
        &self.job
    }

    /// Publishes a task of this session; its end is heard by [`Session::end`].
    ///
    /// # Errors
    /// [`ClientError`] when it cannot be published.
    pub async fn submit(&mut self, task: &NewTask, deadline: RetryDeadline) -> Result<Submitted, ClientError> {
        let task = NewTask { job: Some(self.job.clone()), ..task.clone() };
        let submitted = self.client.submit(&task, deadline).await?;
        if submitted.duplicate {
            // Published before, under this job perhaps: it may have ended before anybody listened.
            self.reader.read_from_oldest();
        }
        Ok(submitted)
    }

    /// The end of a task of this session, however long that takes.
    ///
    /// # Cancel safety
    /// Safe: an end that comes meanwhile is kept for the next call.
    pub async fn end(&mut self, queue: &str, id: &str) -> TaskEnd {
        let ours = (queue.to_owned(), id.to_owned());
        loop {
            if let Some(ended) = self.early.remove(&ours) {
                return Box::pin(self.client.resolve(ended)).await;
            }
            let (subject, pack) = self.reader.next().await;
            if pack.cancelled.as_ref().is_some_and(|c| c.covers(&ours.1)) {
                return Err(NoResult::Cancelled);
            }
            if self.early.len() > EARLY_MAX {
                self.early.clear();
            }
            for outcome in &pack.outcomes {
                if let Some(end) = outcome.ends().find_map(|(_, end)| final_end(end)) {
                    self.early.insert((subject.queue.clone(), outcome.id.clone()), end);
                }
            }
        }
    }
}

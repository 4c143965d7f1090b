//! A session: lone tasks whose ends are awaited, under one job of its own, so that waiting costs nothing to set up.

use std::collections::HashMap;

use super::submit::final_end;
use super::{Client, ClientError, NewTask, Submitted, TaskEnd};
use crate::bus::publish::Patience;
use crate::bus::results::LiveReader;

/// Submits tasks one at a time and waits for each. Make it once, use it often.
pub struct Session {
    client: Client,
    job: String,
    reader: LiveReader,
    /// Ends that came before anybody asked for them: of tasks whose wait was dropped.
    early: HashMap<(String, String), TaskEnd>,
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
        let reader = LiveReader::start(&self.bus, &job).await?;
        Ok(Session { client: self.clone(), job, reader, early: HashMap::new() })
    }
}

impl Session {
    /// Its job.
    #[must_use]
    pub fn job(&self) -> &str {
        &self.job
    }

    /// Publishes a task and waits for its end, however long that takes. `stored` is called once the server has it.
    ///
    /// # Errors
    /// [`ClientError`] when it cannot be published.
    pub async fn run(
        &mut self,
        task: NewTask,
        patience: Patience,
        stored: impl FnOnce(&Submitted),
    ) -> Result<(Submitted, TaskEnd), ClientError> {
        let task = NewTask { job: Some(self.job.clone()), ..task };
        let submitted = self.client.submit(&task, patience).await?;
        stored(&submitted);
        let end = self.wait(&task.queue, &submitted.id).await;
        Ok((submitted, end))
    }

    /// Waits for the end of a task of this job, however long that takes.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wait(&mut self, queue: &str, id: &str) -> TaskEnd {
        let ours = (queue.to_owned(), id.to_owned());
        loop {
            if let Some(end) = self.early.remove(&ours) {
                return end;
            }
            let (subject, pack) = self.reader.next().await;
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

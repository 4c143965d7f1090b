//! Waiting for the end of one task that a session cannot wait for: the last step of a chain, or a task with a unique key,
//! which belongs to no job. It hears all results of their queues and kinds.

use super::submit::final_end;
use super::{Client, ClientError, NewTask, Submitted, TaskEnd};
use crate::bus::publish::Patience;
use crate::bus::results::LiveReader;
use crate::bus::subject::{TaskSubject, results_of_job};
use crate::chain::{next_id, resolve};

impl Client {
    /// Publishes a task and waits for its end; of a chain for the end of the last step, or of the one that ended it. The end
    /// comes with the id of that step.
    ///
    /// # Errors
    /// [`ClientError`] when it cannot be published.
    pub(super) async fn submit_and_follow(
        &self,
        task: NewTask,
        patience: Patience,
        stored: impl FnOnce(&Submitted),
    ) -> Result<(Submitted, TaskEnd), ClientError> {
        let job = match &task.unique {
            Some(_) => None,
            None => Some(task.job.clone().unwrap_or_else(|| format!("s-{}", crate::random_token()))),
        };
        let id = task.id.clone().unwrap_or_else(crate::random_token);
        let task = NewTask { id: Some(id.clone()), job, ..task };
        // First the readers: what ends before we listen would not be heard.
        let first = TaskSubject { unique: None, ..task.subject()? };
        let filter = task.job.as_deref().map_or_else(|| first.results(), results_of_job);
        let mut reader = LiveReader::start_on(&self.bus, filter).await?;
        let mut later = Vec::with_capacity(task.then.len());
        for step in resolve(&task.queue, &task.then) {
            later.push((LiveReader::start_on(&self.bus, step.results()).await?, step.queue));
        }
        let submitted = self.submit(&task, patience).await?;
        stored(&submitted);
        let (mut id, mut end) = (id, end_of(&mut reader, &first.queue, &submitted.id).await);
        for (mut reader, queue) in later {
            if end.is_err() {
                break;
            }
            id = next_id(&id);
            end = end_of(&mut reader, &queue, &id).await;
        }
        Ok((Submitted { id, ..submitted }, end))
    }
}

async fn end_of(reader: &mut LiveReader, queue: &str, id: &str) -> TaskEnd {
    loop {
        let (subject, pack) = reader.next().await;
        let ours = pack.outcomes.iter().filter(|outcome| subject.queue == queue && outcome.id == id);
        if let Some(end) = ours.flat_map(|outcome| outcome.ends()).find_map(|(_, end)| final_end(end)) {
            return end;
        }
    }
}

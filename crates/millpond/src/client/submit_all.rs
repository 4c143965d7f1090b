//! Many tasks one by one, each with an id, a kind or a time of its own, and each acknowledged. For one kind over one input there
//! is `map`, which also makes batches.

use futures_util::{Stream, StreamExt};

use super::errors::SubmitError;
use super::{Client, NewTask, TaskHandle};
use crate::bus::publish::RetryDeadline;
use crate::limits::PUBLISH_WINDOW;

impl Client {
    /// Submits each task of a stream, as [`submit`](Client::submit) does. The answers come in the order of the tasks, one each; a
    /// task that is refused does not end the stream. A few hundred tasks are under way at once at the most: while the server, or
    /// whoever takes the answers, is slower than the input, the input is not read on.
    ///
    /// ```no_run
    /// # async fn example(client: millpond::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use futures_util::{StreamExt, stream};
    /// use millpond::NewTask;
    ///
    /// let tasks = (1..=1000).map(|n| NewTask::json("default", "square", &n)).collect::<Result<Vec<_>, _>>()?;
    /// let mut stored = std::pin::pin!(client.submit_all(stream::iter(tasks), Duration::from_secs(30)));
    /// while let Some(task) = stored.next().await {
    ///     println!("{} is stored", task?.id);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Each answer is a [`SubmitError`] of its own task.
    ///
    /// # Cancel safety
    /// When the stream is dropped, of the tasks under way some may be stored and others not; what was answered is stored.
    pub fn submit_all(
        &self,
        tasks: impl Stream<Item = NewTask> + Send,
        deadline: impl Into<RetryDeadline>,
    ) -> impl Stream<Item = Result<TaskHandle, SubmitError>> + Send {
        let (client, deadline) = (self.clone(), deadline.into());
        let submit = move |task: NewTask| {
            let client = client.clone();
            async move { client.submit(&task, deadline).await }
        };
        tasks.map(submit).buffered(PUBLISH_WINDOW)
    }
}

//! `publish_all`: the publishing half of `map`: a whole input as one job, stored and not awaited. Its results are read only for
//! their durations, so that batches form as in a `map`.

use bytes::Bytes;
use futures_util::Stream;

use super::errors::MapError;
use super::{Client, MapSpec};

/// A job whose tasks are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedJob {
    /// Its name; task `i` is known as `<job>.<epoch>/<i>`.
    pub job: String,
    /// Part of its tasks' ids.
    pub epoch: u32,
    /// How many tasks it has.
    pub tasks: u64,
    /// The job was closed before: nothing was published.
    pub duplicate: bool,
}

/// Why not all of the input was stored.
#[derive(Debug, thiserror::Error)]
#[error("{error}; the first {stored} of the input are stored")]
pub struct PublishAllError {
    /// The job; none when it could not be begun.
    pub job: Option<String>,
    /// How many values from the start of the input are stored without a gap.
    pub stored: u64,
    /// What happened.
    #[source]
    pub error: MapError,
}

impl Client {
    /// Publishes an input of JSON values as one job and waits until the server has stored all of it. A job that is to go on and
    /// is closed already is left as it is.
    ///
    /// # Errors
    /// [`PublishAllError`] tells how far it came.
    ///
    /// # Cancel safety
    /// When this is dropped, what was stored runs on; the same call with the same job and input goes on behind it.
    pub async fn publish_all(
        &self,
        spec: MapSpec,
        input: impl Stream<Item = Result<Bytes, String>> + Send + 'static,
    ) -> Result<PublishedJob, PublishAllError> {
        let started = self.start_run(spec, true, Box::pin(input)).await;
        let mut run = started.map_err(|error| PublishAllError { job: None, stored: 0, error })?;
        let record = run.record();
        let job = Some(record.job.clone());
        let failed = |stored: u64, error: MapError| PublishAllError { job: job.clone(), stored, error };
        if let Some(tasks) = record.total {
            return Ok(PublishedJob { job: record.job, epoch: record.epoch, tasks, duplicate: true });
        }
        while let Some(item) = run.next().await {
            if let Err(error) = item {
                return Err(failed(run.stored(), error));
            }
        }
        if run.was_cancelled() {
            return Err(failed(run.stored(), MapError::Cancelled { job: record.job }));
        }
        Ok(PublishedJob { job: record.job, epoch: record.epoch, tasks: run.read(), duplicate: false })
    }
}

//! How a `map` begins: with a new job, or with one that was begun before and goes on. A job that goes on publishes nothing
//! before it is known what is stored: what waits in TASKS and DUE, what RESULTS holds and, where some of that has expired, what
//! the collector has. docs/protocol.md has the order and its reasons.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, Stream};

use super::Client;
use super::batch_sizer::BatchSize;
use super::errors::MapError;
use super::history::{CatchUp, HistoryRequest};
use super::index_ranges::IndexRanges;
use super::job_record_writer::JobRecordWriter;
use super::map::MapRun;
use super::map_publisher::{InputValues, MapPublisher};
use super::spec::{IfJobExists, MapItem, MapSpec};
use crate::bus::error::BusError;
use crate::bus::publish::RetryDeadline;
use crate::bus::read::job_results::LiveResults;
use crate::bus::read::jobs::{JobEntry, LookedThrough};
use crate::bus::topology::stream_state;
use crate::job::{JobContinuation, JobRecord, JobState};
use crate::limits::BATCH_ITEMS_MAX;
use crate::signature::Signer;
use crate::wire::streams::STREAM_RESULTS;
use crate::wire::subject::{TaskSubject, check_token};

/// A job whose producer lived a moment ago is looked for until nothing new was stored for this long: what its killed producer
/// had sent may still be on its way.
const RESUME_QUIET: Duration = Duration::from_millis(250);

/// How long the server may take to answer when a job begins: a cluster may elect a leader.
const BEGIN_WITHIN: Duration = Duration::from_secs(60);
/// How long until the server is asked again that did not answer.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// A job's record as it was just written.
struct BegunJob {
    entry: JobEntry,
    /// The record before; none for a new job or epoch.
    before: Option<JobRecord>,
}

impl Client {
    /// Runs a kind over an input of JSON values; nothing happens before the first [`MapRun::next`].
    ///
    /// # Errors
    /// [`MapError`] when the job cannot be made, or a name does not fit.
    ///
    /// # Cancel safety
    /// When this is dropped, the job may have been begun or not; the same call goes on with it.
    pub async fn map(
        &self,
        spec: MapSpec,
        input: impl Stream<Item = Result<Bytes, String>> + Send + 'static,
    ) -> Result<MapRun, MapError> {
        self.start_run(spec, false, Box::pin(input)).await
    }

    /// The same as a stream: the counterpart of `Pool.imap`. It reads the input no faster than its results are taken.
    ///
    /// ```no_run
    /// # async fn primes(client: millpond::client::Client) -> Result<(), millpond::client::MapError> {
    /// use futures_util::{StreamExt, stream};
    /// use millpond::client::MapSpec;
    ///
    /// let spec = MapSpec { queue: "default".into(), kind: "is_prime".into(), ordered: true, ..MapSpec::default() };
    /// let numbers = stream::iter((1..=10_000).map(|n| Ok(n.to_string().into())));
    /// let mut results = std::pin::pin!(client.imap(spec, numbers).await?);
    /// while let Some(item) = results.next().await {
    ///     let item = item?;
    ///     println!("{}: {:?}", item.index, item.end);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`MapError`] when the job cannot be made, or a name does not fit.
    ///
    /// # Cancel safety
    /// When this is dropped, the job may have been begun or not; the same call goes on with it. A stream that is dropped leaves
    /// what was published to run on.
    pub async fn imap(
        &self,
        spec: MapSpec,
        input: impl Stream<Item = Result<Bytes, String>> + Send + 'static,
    ) -> Result<impl Stream<Item = Result<MapItem, MapError>> + Send, MapError> {
        let run = self.map(spec, input).await?;
        Ok(stream::unfold(run, async |mut run| Some((run.next().await?, run))))
    }

    /// A run of a new job, or of one that was begun before; with `publish_only` it hands nothing out.
    pub(super) async fn start_run(
        &self,
        spec: MapSpec,
        publish_only: bool,
        input: InputValues,
    ) -> Result<MapRun, MapError> {
        let spec = checked(spec)?;
        self.check_batch(&spec.queue, spec.batch, RetryDeadline::Unlimited).await?;
        let job = spec.job.clone().unwrap_or_else(crate::random_token);
        // Before the first task is published it must be known whether there is capacity for it: that can be asked meanwhile.
        let (results, began) = (|| stream_state(&self.bus, STREAM_RESULTS), Instant::now());
        let results_end = async { asked(began, results).await.map(|state| state.last_seq) };
        let (results_end, ()) = tokio::join!(results_end, self.learn_capacity(&spec.queue));
        let results_end = results_end?;
        let BegunJob { entry, before } = self.write_record(&job, &spec, results_end).await?;
        let (record, ordered) = (entry.record.clone(), spec.ordered);
        let writer = JobRecordWriter::start(&self.bus, entry, before.is_none());
        let Some(before) = before else {
            let results = LiveResults::start_from(&self.bus, &job, record.results_after + 1).await?;
            // Of a job that nobody reads the durations are of use, and nothing else.
            let results = if publish_only { results.that_may_miss() } else { results };
            let publisher = MapPublisher::new(self, spec, writer, input, None);
            return Ok(MapRun::new(self, ordered, publish_only, publisher, results, CatchUp::Done));
        };
        let stored = self.find_stored(&record, &before).await?;
        // The reader starts after that: a task that was not found any more has ended, and RESULTS tells it.
        let mut results = LiveResults::start_from(&self.bus, &job, record.results_after + 1).await?;
        results.catch_up().await;
        let mut publisher = MapPublisher::new(self, spec, writer, input, Some(stored));
        publisher.skip_published(&record).await?;
        // Checked last: what expires from now on was in RESULTS when the reader started.
        let is_complete = stream_state(&self.bus, STREAM_RESULTS).await?.first_seq <= record.results_after + 1;
        let catch_up = if is_complete {
            CatchUp::Backlog
        } else {
            let from = if publish_only { record.published } else { 0 };
            CatchUp::History { request: HistoryRequest { job, epoch: record.epoch, from }, answer: None }
        };
        Ok(MapRun::new(self, ordered, publish_only, publisher, results, catch_up))
    }

    /// Writes the record: of a new job or epoch, or of a job that goes on with this process as its producer. A request without an
    /// answer is made again; a write of which the answer was lost is known by its producer.
    async fn write_record(&self, job: &str, spec: &MapSpec, results_after: u64) -> Result<BegunJob, MapError> {
        let (producer, began) = (crate::random_token(), Instant::now());
        let mut written = None;
        // A name that was drawn at random a moment ago is nobody's.
        let mut must_read = spec.job.is_some();
        loop {
            let found = if must_read { asked(began, || self.bus.job(job)).await? } else { None };
            must_read = true;
            if let Some(entry) = found.as_ref().filter(|found| found.record.producer == producer)
                && let Some(before) = written.take()
            {
                return Ok(BegunJob { entry: entry.clone(), before });
            }
            let (revision, found) = found.map_or((0, None), |entry| (entry.revision, Some(entry.record)));
            let goes_on =
                |before: &JobRecord| before.state != JobState::Cancelled && spec.if_exists != IfJobExists::StartAnew;
            let next_epoch = found.as_ref().map_or(1, |before| before.epoch + 1);
            let before = found.filter(goes_on);
            let record = match &before {
                None => new_record(self.bus.signer(), job, spec, next_epoch, results_after),
                Some(_) if spec.if_exists == IfJobExists::Refuse => {
                    return Err(MapError::JobExists { job: job.to_owned() });
                }
                Some(JobRecord { job, kind, queue, .. }) if *queue != spec.queue || *kind != spec.kind => {
                    let (job, kind, queue) = (job.clone(), kind.clone(), queue.clone());
                    return Err(MapError::OtherKindOrQueue { job, kind, queue });
                }
                Some(before) => JobRecord { heartbeat_ms: crate::now_ms(), ..before.clone() },
            };
            let record = JobRecord { producer: producer.clone(), ..record };
            match self.bus.write_job(&record, revision).await {
                Ok(Some(revision)) => {
                    let stored_ms = record.heartbeat_ms;
                    return Ok(BegunJob { entry: JobEntry { record, revision, stored_ms }, before });
                }
                // Another process has written it since. It is read again.
                Ok(None) => {}
                Err(error) => wait_after(error, began).await?,
            }
            // It may be stored all the same.
            written = Some(before);
        }
    }

    /// The indexes beyond the job's watermark that lie in TASKS or DUE.
    async fn find_stored(&self, record: &JobRecord, before: &JobRecord) -> Result<IndexRanges, BusError> {
        let mut stored = IndexRanges::default();
        let mut looked = LookedThrough::default();
        let mut find = async |stored: &mut IndexRanges| {
            looked = self.bus.look_for_tasks(record, looked, |from, to| stored.add(from, to)).await?;
            stored.forget_below(record.published);
            Ok::<u64, BusError>(stored.len())
        };
        let mut count = find(&mut stored).await?;
        if before.state == JobState::Open && !before.is_stalled(crate::now_ms()) {
            loop {
                tokio::time::sleep(RESUME_QUIET).await;
                let now = find(&mut stored).await?;
                if now == count {
                    break;
                }
                count = now;
            }
        }
        Ok(stored)
    }
}

/// Asks the server again while it does not answer, for a while.
async fn asked<T, F: Future<Output = Result<T, BusError>>>(
    began: Instant,
    mut request: impl FnMut() -> F,
) -> Result<T, BusError> {
    loop {
        match request().await {
            Err(error) => wait_after(error, began).await?,
            answer => return answer,
        }
    }
}

/// Waits before a request is made again that had no answer; the error of one that is not.
async fn wait_after(error: BusError, began: Instant) -> Result<(), BusError> {
    if !error.is_passing() || began.elapsed() >= BEGIN_WITHIN {
        return Err(error);
    }
    tokio::time::sleep(ASK_AGAIN_AFTER).await;
    Ok(())
}

/// The spec with its names checked and its batches within the limit.
fn checked(mut spec: MapSpec) -> Result<MapSpec, MapError> {
    if let Some(job) = &spec.job {
        check_token("job", job)?;
    }
    TaskSubject::new(&spec.queue, &spec.kind, None)?;
    if let Some(step) = &spec.continuation {
        TaskSubject::new(step.queue.as_ref().unwrap_or(&spec.queue), &step.kind, None)?;
    }
    if let BatchSize::Fixed(items) = &mut spec.batch {
        *items = (*items).clamp(1, BATCH_ITEMS_MAX);
    }
    Ok(spec)
}

fn new_record(signer: Option<&Signer>, job: &str, spec: &MapSpec, epoch: u32, results_after: u64) -> JobRecord {
    let now_ms = crate::now_ms();
    let continuation = spec.continuation.as_ref().map(|step| JobContinuation {
        queue: step.queue.as_ref().unwrap_or(&spec.queue).clone(),
        kind: step.kind.clone(),
    });
    let signed = continuation.as_ref().zip(signer);
    let signed = signed.and_then(|(next, signer)| signer.sign_continuation((job, epoch), &next.queue, &next.kind));
    JobRecord {
        job: job.to_owned(),
        queue: spec.queue.clone(),
        kind: spec.kind.clone(),
        epoch,
        state: JobState::Open,
        total: None,
        continuation,
        continuation_signature: signed,
        published: 0,
        fingerprint: None,
        results_after,
        producer: crate::random_token(),
        created_ms: now_ms,
        heartbeat_ms: now_ms,
    }
}

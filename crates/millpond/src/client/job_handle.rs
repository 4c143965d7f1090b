//! A job by its name: how its tasks ended, one by one as it goes; how far it is; its end; its cancellation.

use std::time::Duration;

use tokio::time::Instant;

use super::errors::{JobWaitError, MapError, RequestError};
use super::history::{CatchUp, HistoryRequest, HistoryRow};
use super::index_ranges::IndexRanges;
use super::payloads::{KnownEnd, final_ends};
use super::requests::{JobProgress, Named};
use super::spec::MapItem;
use super::{Client, NoResult};
use crate::bus::error::BusError;
use crate::bus::operate::cancel::JobCancellation;
use crate::bus::operate::control::{CTL_CANCEL, CTL_STATUS};
use crate::bus::read::job_results::LiveResults;
use crate::bus::topology::stream_state;
use crate::job::{JobRecord, JobState};
use crate::outcome::ResultBatch;
use crate::wire::streams::STREAM_RESULTS;
use crate::wire::subject::check_token;

/// The first delay between two requests how far a job is; it doubles.
const POLL_MIN: Duration = Duration::from_millis(50);
/// The longest such delay.
const POLL_MAX: Duration = Duration::from_secs(2);
/// How often the record of a job is read whose number of tasks is not known yet, or that somebody may have cancelled.
const RECORD_EVERY: Duration = Duration::from_secs(1);

/// A job of as many tasks is read from the stream alone: a subscription would keep in memory what is not taken.
const LARGE_JOB: u64 = 512;

/// A job by its name. Cheap to clone; nothing is held at the server.
#[derive(Clone)]
pub struct JobHandle {
    client: Client,
    name: String,
}

impl Client {
    /// A job that [`map`](Client::map), `publish_all` or a producer service has begun, or will begin. Nothing is looked up yet.
    #[must_use]
    pub fn job(&self, name: impl Into<String>) -> JobHandle {
        JobHandle { client: self.clone(), name: name.into() }
    }
}

impl JobHandle {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How far it is. The answer comes from a collector.
    ///
    /// # Errors
    /// [`RequestError::Refused`] while there is no job of this name.
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn status(&self) -> Result<JobProgress, RequestError> {
        self.client.request(CTL_STATUS, &self.named()).await
    }

    /// Waits until all of it has ended, or it was cancelled, and returns the counts. A job that nobody has begun yet is waited
    /// for, too; one whose producer has gone before the end of its input ends only when another goes on with it; and one that
    /// was made by publishing to subjects that name it has ended when nothing of it waits or runs.
    ///
    /// # Errors
    /// [`JobWaitError::NotDone`] after `timeout`, while it goes on; [`JobWaitError::Request`] when no collector tells how far it
    /// is then.
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn wait(&self, timeout: Duration) -> Result<JobProgress, JobWaitError> {
        let (deadline, mut delay) = (Instant::now() + timeout, POLL_MIN);
        // What the last answer said, where it was none.
        let mut untold = None;
        loop {
            match tokio::time::timeout_at(deadline, self.status()).await {
                Ok(Ok(progress)) if progress.has_ended() => return Ok(progress),
                Ok(answer) => untold = answer.err(),
                Err(_) => {}
            }
            if Instant::now() + delay >= deadline {
                tokio::time::sleep_until(deadline).await;
                let not_done = JobWaitError::NotDone { job: self.name.clone(), waited: timeout };
                return Err(untold.map_or(not_done, JobWaitError::Request));
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(POLL_MAX);
        }
    }

    /// Cancels it: what waits is removed, what runs is ended by its worker, and no more of it is published.
    ///
    /// # Errors
    /// [`RequestError::Refused`] when it has ended, or there is none; else it is safe to try again.
    ///
    /// # Cancel safety
    /// When this is dropped, the job may be cancelled or not; cancelling it again changes nothing.
    pub async fn cancel(&self) -> Result<JobCancellation, RequestError> {
        self.client.request(CTL_CANCEL, &self.named()).await
    }

    /// How its tasks ended: first those that have, then each as it ends, in no order; [`JobResults::next`] hands them out.
    ///
    /// # Errors
    /// [`MapError::NoSuchJob`] when nobody has begun it; [`MapError::Submit`] when the server does not answer.
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn results(&self) -> Result<JobResults, MapError> {
        check_token("job", &self.name)?;
        let bus = &self.client.bus;
        let none = || MapError::NoSuchJob { job: self.name.clone() };
        let record = bus.job(&self.name).await?.ok_or_else(none)?.record;
        let mut results = LiveResults::start_from(bus, &self.name, record.results_after + 1).await?;
        // What expires from now on is read here, and what has expired a collector has stored.
        results.catch_up().await;
        let catch_up = if stream_state(bus, STREAM_RESULTS).await?.first_seq <= record.results_after + 1 {
            CatchUp::Backlog
        } else {
            let request = HistoryRequest { job: self.name.clone(), epoch: record.epoch, from: 0 };
            CatchUp::History { request, answer: None }
        };
        let mut results = JobResults {
            client: self.client.clone(),
            results,
            catch_up,
            read_record_at: Instant::now() + RECORD_EVERY,
            record,
            seen: IndexRanges::default(),
            ended: Vec::new(),
            fetching: None,
        };
        results.read_large_job();
        Ok(results)
    }

    fn named(&self) -> Named {
        Named::Job { job: self.name.clone() }
    }
}

/// The ends of a job's tasks, each once.
pub struct JobResults {
    client: Client,
    results: LiveResults,
    catch_up: CatchUp,
    record: JobRecord,
    read_record_at: Instant,
    /// The indexes of what was handed out, or is about to be.
    seen: IndexRanges,
    /// What ended and was not handed out yet.
    ended: Vec<(u64, KnownEnd)>,
    /// What is handed out next, while its large result is fetched.
    fetching: Option<(u64, KnownEnd)>,
}

impl JobResults {
    /// The next task of the job that ended; none when all have. After a cancellation, what has not ended by then is cancelled,
    /// and is handed out when how much there is of it is known.
    ///
    /// # Errors
    /// [`MapError::HistoryUnavailable`] when a collector alone has the oldest results, and none answers; call it again.
    ///
    /// # Cancel safety
    /// Safe: nothing that was received is lost.
    pub async fn next(&mut self) -> Option<Result<MapItem, MapError>> {
        loop {
            if self.fetching.is_none() {
                self.fetching = self.ended.pop();
            }
            if let Some((index, end)) = self.fetching.clone() {
                let end = self.client.fetch(end).await;
                self.fetching = None;
                return Some(Ok(MapItem { index, end }));
            }
            if self.is_all() {
                self.results.close();
                return None;
            }
            if let Err(error) = self.step().await {
                return Some(Err(error));
            }
        }
    }

    /// Whether each task was handed out.
    fn is_all(&self) -> bool {
        self.record.total.is_some_and(|total| self.seen.len() >= total)
    }

    fn read_large_job(&mut self) {
        if self.record.total.unwrap_or(self.record.published) >= LARGE_JOB {
            self.results.read_stream_alone();
        }
    }

    async fn step(&mut self) -> Result<(), MapError> {
        self.catch_up.note_backlog(self.results.has_backlog());
        if self.record.state == JobState::Cancelled && matches!(self.catch_up, CatchUp::Done) {
            let total = *self.record.total.get_or_insert(self.record.published);
            (0..total).for_each(|index| self.note(index, KnownEnd::Inline(Err(NoResult::Cancelled))));
            return Ok(());
        }
        tokio::select! {
            read = self.results.step() => read.iter().for_each(|(_, batch)| self.note_results(batch)),
            rows = self.catch_up.next_rows(&self.client.bus) => {
                rows?.into_iter().filter_map(HistoryRow::end).for_each(|(index, end)| self.note(index, end));
            }
            () = tokio::time::sleep_until(self.read_record_at) => {
                self.read_record_at = Instant::now() + RECORD_EVERY;
                let read = self.client.bus.job(&self.record.job).await?;
                // Under a later epoch the name is another job.
                if let Some(entry) = read.filter(|entry| entry.record.epoch == self.record.epoch) {
                    self.record = entry.record;
                    self.read_large_job();
                }
            }
            failure = self.client.bus.failed() => return Err(BusError::from(failure).into()),
        }
        Ok(())
    }

    fn note_results(&mut self, batch: &ResultBatch) {
        let of_job = batch.outcomes.iter().filter(|outcome| self.record.owns(outcome.original_id()));
        let ends: Vec<_> = of_job.flat_map(final_ends).collect();
        ends.into_iter().for_each(|(index, end)| self.note(index, end));
    }

    /// Notes the end of a task; a second end of the same task changes nothing.
    fn note(&mut self, index: u64, end: KnownEnd) {
        if !self.seen.contains(index) {
            self.seen.add(index, index + 1);
            self.ended.push((index, end));
        }
    }
}

//! `map`: a job of many tasks of one kind, published in a window and read back as they end, in bounded memory.
//! At most [`MAP_WINDOW_ITEMS`] items and [`MAP_WINDOW_BYTES`] of results lie between the oldest item that was not
//! handed out and the newest that was published; the input waits meanwhile.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use serde_json::value::RawValue;
use tokio::task::JoinSet;

use super::sizer::{Batch, Sizer};
use super::submit::final_ends;
use super::{Client, ClientError, NewTask, TaskEnd};
use crate::batch;
use crate::bus::Bus;
use crate::bus::publish::Patience;
use crate::bus::results::JobReader;
use crate::bus::subject::{TaskSubject, check_token};
use crate::chain::Step;
use crate::failpoint;
use crate::job::{JobRecord, JobState, JobThen};
use crate::limits::{
    BATCH_AUTO_BYTES_MAX, BATCH_ITEMS_MAX, HEARTBEAT_EVERY, MAP_WINDOW_BYTES, MAP_WINDOW_ITEMS, PUBLISH_WINDOW,
    PUBLISH_WINDOW_BYTES, TASK_BYTES_MAX,
};
use crate::outcome::Pack;

/// Room that the headers of a batch take of [`TASK_BYTES_MAX`], in bytes.
const HEADER_BYTES_RESERVED: usize = 4096;

/// What to run over the input.
#[derive(Debug, Clone)]
pub struct MapSpec {
    /// Who runs it.
    pub queue: String,
    /// Which handler runs it.
    pub kind: String,
    /// Name of the job, new; drawn at random when none.
    pub job: Option<String>,
    /// How many tasks share a message.
    pub batch: Batch,
    /// Results in the order of the input; else as they come.
    pub ordered: bool,
    /// Timeout of one attempt; none means the worker's.
    pub timeout: Option<Duration>,
    /// Attempts before a task is buried; none means the default.
    pub attempts_max: Option<u32>,
    /// What runs once all of it has ended, with the counts as its argument; without a queue of its own in `queue`.
    pub then: Option<Step>,
}

/// One item of the input that ended.
#[derive(Debug)]
pub struct MapItem {
    /// Place in the input, from 0.
    pub index: u64,
    /// How it ended.
    pub end: TaskEnd,
}

type Input = Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>;

/// A `map` under way; [`MapRun::next`] drives it.
pub struct MapRun {
    client: Client,
    spec: MapSpec,
    /// Results are read for their durations only.
    publish_only: bool,
    record: Arc<Mutex<JobRecord>>,
    reader: JobReader,
    input: Option<Input>,
    /// The batch that is being filled.
    filling: Vec<Bytes>,
    filling_bytes: usize,
    sizer: Sizer,
    publishing: FuturesUnordered<BoxFuture<'static, Result<Published, ClientError>>>,
    publishing_bytes: usize,
    /// Acknowledged ranges beyond the watermark: first index -> one past the last.
    acknowledged: BTreeMap<u64, u64>,
    next_index: u64,
    /// All items below it were handed out.
    floor: u64,
    /// Items at or above the floor that ended: held back (ordered), or handed out already (none).
    ended: BTreeMap<u64, Option<TaskEnd>>,
    fresh: Vec<MapItem>,
    held_bytes: usize,
    handed_out: u64,
    /// Renews the job's record; ends when this is dropped.
    heartbeat: JoinSet<()>,
    closing: Closing,
}

/// Items that the server has stored.
struct Published {
    from: u64,
    to: u64,
    bytes: usize,
}

/// The last write of the job's record. Kept here while it is under way, so that a dropped `next` does not drop it.
enum Closing {
    NotYet,
    Writing(BoxFuture<'static, Result<(), ClientError>>),
    Written,
}

impl Closing {
    async fn written(&mut self) -> Result<(), ClientError> {
        match self {
            Self::Writing(write) => write.await,
            Self::NotYet | Self::Written => std::future::pending().await,
        }
    }
}

impl Client {
    /// Runs a kind over an input of JSON values; nothing happens before the first [`MapRun::next`].
    ///
    /// # Errors
    /// [`ClientError`] when the job cannot be made, or a name does not fit.
    pub async fn map(
        &self,
        spec: MapSpec,
        input: impl Stream<Item = Result<Bytes, String>> + Send + 'static,
    ) -> Result<MapRun, ClientError> {
        self.start_run(spec, None, false, input).await
    }

    /// A run of a new job, or of one that is open and goes on (`before`); with `publish_only` it hands out nothing.
    pub(super) async fn start_run(
        &self,
        spec: MapSpec,
        before: Option<JobRecord>,
        publish_only: bool,
        input: impl Stream<Item = Result<Bytes, String>> + Send + 'static,
    ) -> Result<MapRun, ClientError> {
        let job = spec.job.clone().unwrap_or_else(crate::random_token);
        check_token("job", &job)?;
        TaskSubject::new(&spec.queue, &spec.kind, None)?;
        if let Some(then) = &spec.then {
            TaskSubject::new(then.queue.as_ref().unwrap_or(&spec.queue), &then.kind, None)?;
        }
        let batch = match spec.batch {
            Batch::Fixed(items) => Batch::Fixed(items.clamp(1, BATCH_ITEMS_MAX)),
            Batch::Auto => Batch::Auto,
        };
        let spec = MapSpec { batch, ..spec };
        let now = crate::now_ms();
        let reader = JobReader::start(&self.bus, &job).await?;
        let record = match before {
            Some(record) => record,
            None => {
                let record = JobRecord {
                    job,
                    queue: spec.queue.clone(),
                    kind: spec.kind.clone(),
                    epoch: 1,
                    state: JobState::Open,
                    total: None,
                    then: spec.then.as_ref().map(|then| JobThen {
                        queue: then.queue.as_ref().unwrap_or(&spec.queue).clone(),
                        kind: then.kind.clone(),
                    }),
                    published: 0,
                    created_ms: now,
                    heartbeat_ms: now,
                };
                self.bus.create_job(&record).await?;
                record
            }
        };
        let first = record.published;
        let skipped = usize::try_from(first).unwrap_or(usize::MAX);
        let record = Arc::new(Mutex::new(record));
        let mut heartbeat = JoinSet::new();
        heartbeat.spawn(beat(self.bus.clone(), record.clone()));
        Ok(MapRun {
            client: self.clone(),
            sizer: Sizer::new(spec.batch, self.pace(&spec.queue, &spec.kind)),
            spec,
            publish_only,
            record,
            reader,
            input: Some(Box::pin(input.skip(skipped))),
            filling: Vec::new(),
            filling_bytes: 0,
            publishing: FuturesUnordered::new(),
            publishing_bytes: 0,
            acknowledged: BTreeMap::new(),
            next_index: first,
            floor: first,
            ended: BTreeMap::new(),
            fresh: Vec::new(),
            held_bytes: 0,
            handed_out: first,
            heartbeat,
            closing: Closing::NotYet,
        })
    }
}

async fn beat(bus: Bus, record: Arc<Mutex<JobRecord>>) {
    loop {
        tokio::time::sleep(HEARTBEAT_EVERY).await;
        let now = {
            let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
            record.heartbeat_ms = crate::now_ms();
            record.clone()
        };
        if let Err(error) = bus.put_job(&now).await {
            tracing::debug!(%error, "job record not written, will try again");
        }
    }
}

impl MapRun {
    /// The job's name.
    #[must_use]
    pub fn job(&self) -> String {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).job.clone()
    }

    /// Items read from the input so far.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.next_index
    }

    /// Items from the start of the input that the server has stored, without a gap.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).published
    }

    /// Items in all, once the input has ended.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        (self.input.is_none() && self.filling.is_empty()).then_some(self.next_index)
    }

    /// The next item that ended; none when all have.
    ///
    /// # Errors
    /// [`ClientError`]; what was published by then still runs.
    ///
    /// # Cancel safety
    /// Safe: nothing that was read or received is lost.
    pub async fn next(&mut self) -> Option<Result<MapItem, ClientError>> {
        loop {
            if let Some(item) = self.ready() {
                return Some(Ok(item));
            }
            // Before the look at whether all is published: the input may have nothing at all.
            if let Err(error) = self.read_what_is_there() {
                return Some(Err(error));
            }
            if self.is_published() && matches!(self.closing, Closing::NotYet) {
                self.closing = Closing::Writing(self.close());
            }
            let all_out = self.publish_only || self.handed_out == self.next_index;
            if all_out && matches!(self.closing, Closing::Written) {
                return None;
            }
            let may_read = self.may_read();
            let probes_over = self.sizer.wait_until(Instant::now());
            tokio::select! {
                (_, pack) = self.reader.next() => self.note_pack(&pack),
                Some(published) = self.publishing.next(), if !self.publishing.is_empty() => match published {
                    Ok(published) => self.note_published(&published),
                    Err(error) => return Some(Err(error)),
                },
                written = self.closing.written() => {
                    self.closing = Closing::Written;
                    if let Err(error) = written {
                        return Some(Err(error));
                    }
                }
                value = next_value(&mut self.input), if may_read => {
                    if let Err(error) = self.take(value) {
                        return Some(Err(error));
                    }
                }
                () = sleep_until(probes_over), if probes_over.is_some() => {}
            }
        }
    }

    /// Takes what the input has at hand. What it has not must not hold up what was read: when nothing is under way,
    /// that leaves at once; else it waits for company until an ack comes, at the most.
    fn read_what_is_there(&mut self) -> Result<(), ClientError> {
        while self.may_read() {
            match next_value(&mut self.input).now_or_never() {
                Some(value) => self.take(value)?,
                None => break,
            }
        }
        if self.publishing.is_empty() && self.spec.batch == Batch::Auto {
            self.publish_filling();
        }
        Ok(())
    }

    fn is_published(&self) -> bool {
        self.input.is_none() && self.filling.is_empty() && self.publishing.is_empty()
    }

    fn may_read(&mut self) -> bool {
        self.input.is_some()
            && (self.publish_only || self.next_index - self.floor < MAP_WINDOW_ITEMS)
            && self.held_bytes < MAP_WINDOW_BYTES
            && self.publishing.len() < PUBLISH_WINDOW
            && self.publishing_bytes < PUBLISH_WINDOW_BYTES
            && self.sizer.wait_until(Instant::now()).is_none()
    }

    fn take(&mut self, value: Option<Result<Bytes, String>>) -> Result<(), ClientError> {
        let Some(value) = value else {
            self.input = None;
            self.publish_filling();
            return Ok(());
        };
        let index = self.next_index;
        let refused = |reason: String| ClientError::Input { index, reason };
        let value = value.map_err(refused)?;
        let limit = TASK_BYTES_MAX - HEADER_BYTES_RESERVED;
        if value.len() > limit {
            return Err(refused(format!("has {} bytes, at most {limit} fit a task", value.len())));
        }
        if self.filling_bytes + value.len() + 2 > self.batch_bytes_max() {
            self.publish_filling();
        }
        self.next_index += 1;
        self.filling_bytes += value.len() + 1;
        self.filling.push(value);
        if self.filling.len() >= self.sizer.size() as usize {
            self.publish_filling();
        }
        Ok(())
    }

    fn batch_bytes_max(&self) -> usize {
        match self.spec.batch {
            Batch::Auto => BATCH_AUTO_BYTES_MAX,
            Batch::Fixed(_) => TASK_BYTES_MAX - HEADER_BYTES_RESERVED,
        }
    }

    fn publish_filling(&mut self) {
        let values = std::mem::take(&mut self.filling);
        self.filling_bytes = 0;
        let Ok(count) = u32::try_from(values.len()) else { return };
        let from = self.next_index - u64::from(count);
        let batch = match self.spec.batch {
            Batch::Auto => count > 1,
            Batch::Fixed(items) => items > 1,
        };
        let batch = batch.then_some(count);
        let payload = match (values.first(), batch) {
            (None, _) => return,
            (Some(one), None) => one.clone(),
            (Some(_), Some(_)) => Bytes::from(batch::join(values.iter().map(|v| &**v))),
        };
        let (id, job) = {
            let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            (record.task_id(from, batch), record.job.clone())
        };
        let task = NewTask {
            queue: self.spec.queue.clone(),
            kind: self.spec.kind.clone(),
            payload,
            id: Some(id),
            job: Some(job),
            index: Some(from),
            batch,
            timeout: self.spec.timeout,
            attempts_max: self.spec.attempts_max,
            ..Default::default()
        };
        self.sizer.published(Instant::now());
        let (client, published) =
            (self.client.clone(), Published { from, to: self.next_index, bytes: task.payload.len() });
        self.publishing_bytes += published.bytes;
        self.publishing.push(Box::pin(async move {
            client.submit(&task, Patience::Endless).await?;
            Ok(published)
        }));
    }

    /// Moves the watermark: tasks acknowledged without a gap.
    fn note_published(&mut self, published: &Published) {
        failpoint::hit("publish.noted");
        self.publishing_bytes -= published.bytes.min(self.publishing_bytes);
        self.acknowledged.insert(published.from, published.to);
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(to) = self.acknowledged.remove(&record.published) {
            record.published = to;
        }
    }

    fn close(&mut self) -> BoxFuture<'static, Result<(), ClientError>> {
        self.heartbeat.abort_all();
        let record = {
            let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            record.state = JobState::Closed;
            record.total = Some(self.next_index);
            record.heartbeat_ms = crate::now_ms();
            record.clone()
        };
        let bus = self.client.bus.clone();
        Box::pin(async move { Ok(bus.put_job(&record).await?) })
    }

    fn note_pack(&mut self, pack: &Pack) {
        for outcome in &pack.outcomes {
            self.sizer.note(outcome.items_run(), Duration::from_micros(outcome.busy_us));
            if !self.publish_only {
                final_ends(outcome).for_each(|(index, end)| self.note(index, end));
            }
        }
    }

    /// Takes an end; one that came before changes nothing.
    fn note(&mut self, index: u64, end: TaskEnd) {
        if index < self.floor || index >= self.next_index || self.ended.contains_key(&index) {
            return;
        }
        if self.spec.ordered {
            self.held_bytes += bytes_of(&end);
            self.ended.insert(index, Some(end));
        } else {
            self.ended.insert(index, None);
            self.fresh.push(MapItem { index, end });
            while self.ended.remove(&self.floor).is_some() {
                self.floor += 1;
            }
        }
    }

    fn ready(&mut self) -> Option<MapItem> {
        let item = if self.spec.ordered {
            let end = self.ended.remove(&self.floor)??;
            self.held_bytes -= bytes_of(&end).min(self.held_bytes);
            self.floor += 1;
            MapItem { index: self.floor - 1, end }
        } else {
            self.fresh.pop()?
        };
        self.handed_out += 1;
        Some(item)
    }
}

impl Drop for MapRun {
    fn drop(&mut self) {
        self.client.learn(&self.spec.queue, &self.spec.kind, self.sizer.pace());
    }
}

fn bytes_of(end: &TaskEnd) -> usize {
    end.as_deref().map_or(0, |value: &RawValue| value.get().len())
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn next_value(input: &mut Option<Input>) -> Option<Result<Bytes, String>> {
    match input {
        Some(input) => input.next().await,
        None => std::future::pending().await,
    }
}

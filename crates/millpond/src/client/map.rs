//! `map`: a job of many tasks of one kind, published in a window and read back as they end, in bounded memory.
//! At most [`MAP_WINDOW_ITEMS`] items and [`MAP_WINDOW_BYTES`] of results lie between the oldest item that was not
//! handed out and the newest that was published; the input waits meanwhile. How a job that was begun before goes on is
//! in `resume`, its record in `keeper`.

use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream, StreamExt};
use sha2::Sha256;
use tokio::task::JoinSet;

use super::keeper::{Keeper, Lost, add_value};
use super::payloads::Ended;
use super::resume::{CatchUp, Row};
use super::sizer::{Batch, Sizer};
use super::spec::{MapItem, MapSpec};
use super::submit::final_ends;
use super::window::Window;
use super::{Client, ClientError, NewTask, NoResult};
use crate::bus::publish::RetryDeadline;
use crate::bus::read::job_results::JobResults;
use crate::limits::{
    BACKLOG_SILENCE, BATCH_AUTO_BYTES_MAX, CLAIM_CHECK_BYTES, MAP_VALUE_BYTES_MAX, MAP_WINDOW_BYTES, MAP_WINDOW_ITEMS,
    PUBLISH_WINDOW, PUBLISH_WINDOW_BYTES,
};
use crate::outcome::ResultBatch;
use crate::{batch, failpoint};

pub(super) type Input = Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>;

/// A `map` under way; [`MapRun::next`] drives it.
pub struct MapRun {
    pub(super) client: Client,
    pub(super) spec: MapSpec,
    /// Results are read for their durations only.
    pub(super) publish_only: bool,
    pub(super) keeper: Keeper,
    pub(super) reader: JobResults,
    pub(super) input: Option<Input>,
    /// What is left to do before anything is published, for a job that was begun before.
    pub(super) catch_up: CatchUp,
    /// Of the input as far as it was read.
    pub(super) fingerprint: Sha256,
    /// The batch that is being filled.
    filling: Vec<Bytes>,
    filling_bytes: usize,
    sizer: Sizer,
    /// Tasks of their own: what they hold of the client must not wait for whoever calls [`MapRun::next`].
    publishing: JoinSet<Result<Published, ClientError>>,
    publishing_bytes: usize,
    /// The next item of the input.
    pub(super) next_index: u64,
    window: Window,
    /// The next item to be handed out, while its result is fetched.
    fetching: Option<BoxFuture<'static, MapItem>>,
    /// The job was cancelled: what has no end by now has none.
    cancelled: bool,
    closing: Closing,
}

/// Items that the server has stored.
struct Published {
    from: u64,
    to: u64,
    bytes: usize,
    fingerprint: Sha256,
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
        self.start_run(spec, false, Box::pin(input)).await
    }

    /// The same as a stream: the counterpart of `Pool.imap`. It reads the input no faster than its results are taken.
    ///
    /// ```no_run
    /// # async fn primes(client: millpond::client::Client) -> Result<(), millpond::client::ClientError> {
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
    /// [`ClientError`] when the job cannot be made, or a name does not fit.
    pub async fn imap(
        &self,
        spec: MapSpec,
        input: impl Stream<Item = Result<Bytes, String>> + Send + 'static,
    ) -> Result<impl Stream<Item = Result<MapItem, ClientError>> + Send, ClientError> {
        let run = self.map(spec, input).await?;
        Ok(stream::unfold(run, async |mut run| Some((run.next().await?, run))))
    }
}

impl MapRun {
    pub(super) fn new(client: &Client, spec: MapSpec, publish_only: bool, keeper: Keeper, reader: JobResults) -> Self {
        let window = Window::new(spec.ordered);
        Self {
            client: client.clone(),
            sizer: Sizer::new(spec.batch, client.pace(&spec.queue, &spec.kind)),
            spec,
            publish_only,
            keeper,
            reader,
            input: None,
            catch_up: CatchUp::Done,
            fingerprint: Sha256::default(),
            filling: Vec::new(),
            filling_bytes: 0,
            publishing: JoinSet::new(),
            publishing_bytes: 0,
            next_index: 0,
            window,
            fetching: None,
            cancelled: false,
            closing: Closing::NotYet,
        }
    }

    /// The job's name.
    #[must_use]
    pub fn job(&self) -> String {
        self.keeper.with(|record| record.job.clone())
    }

    /// The id of the task at an index; one that was published in a batch is known by it too.
    #[must_use]
    pub fn task_id(&self, index: u64) -> String {
        self.keeper.with(|record| record.task_id(index, None))
    }

    /// Items read from the input so far.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.next_index
    }

    /// Items from the start of the input that the server has stored, without a gap.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.keeper.with(|record| record.published)
    }

    /// Items in all, once the input has ended.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        (self.input.is_none() && self.filling.is_empty()).then_some(self.next_index)
    }

    /// Whether the job was cancelled.
    #[must_use]
    pub fn was_cancelled(&self) -> bool {
        self.cancelled
    }

    /// The next item that ended; none when all have. After a cancellation what has no result ends as cancelled.
    ///
    /// # Errors
    /// [`ClientError`]; what was published by then still runs.
    ///
    /// # Cancel safety
    /// Safe: nothing that was read or received is lost.
    pub async fn next(&mut self) -> Option<Result<MapItem, ClientError>> {
        loop {
            if self.fetching.is_none() {
                match self.ready() {
                    Some((index, Ended::Here(end))) => return Some(Ok(MapItem { index, end })),
                    Some((index, ended)) => {
                        let client = self.client.clone();
                        let fetch = async move { MapItem { index, end: client.resolve(ended).await } };
                        self.fetching = Some(Box::pin(fetch));
                    }
                    None => {}
                }
            }
            self.catch_up.note_backlog(self.reader.backlog());
            // First, because it may find the end of the input: when nothing is under way, nothing else would wake this.
            if let Err(error) = self.read_what_is_there() {
                return Some(Err(error));
            }
            if self.is_published() && matches!(self.closing, Closing::NotYet) {
                self.closing = Closing::Writing(Box::pin(self.keeper.close(self.next_index)));
            }
            // An item that ended before it was read again may have been handed out already.
            let all_out = self.publish_only || self.window.floor() >= self.next_index && self.fetching.is_none();
            if all_out && matches!(self.closing, Closing::Written) {
                return None;
            }
            match self.step().await {
                Ok(None) => {}
                Ok(Some(item)) => return Some(Ok(item)),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Does what comes next; an item whose result was fetched.
    async fn step(&mut self) -> Result<Option<MapItem>, ClientError> {
        let may_read = self.may_read();
        let probes_over = self.sizer.wait_until(Instant::now());
        let silent_at = self.reader.heard() + BACKLOG_SILENCE;
        tokio::select! {
            (_, pack) = self.reader.next() => self.note_pack(&pack),
            item = fetched(&mut self.fetching), if self.fetching.is_some() => {
                self.fetching = None;
                return Ok(Some(item));
            }
            rows = self.catch_up.rows(&self.client.bus) => self.note_rows(rows?),
            Some(Ok(published)) = self.publishing.join_next(), if !self.publishing.is_empty() => {
                self.note_published(published?);
            }
            written = self.closing.written() => {
                self.closing = Closing::Written;
                written?;
            }
            lost = self.keeper.lost(), if !self.cancelled && self.input.is_some() => self.stop(lost)?,
            value = next_value(&mut self.input), if may_read => self.take(value)?,
            () = sleep_until(probes_over), if probes_over.is_some() => {}
            // Nothing came: what was left to read may have been purged.
            () = sleep_until(Some(silent_at)), if self.catch_up.reads_backlog() => self.reader.count_anew(),
        }
        Ok(None)
    }

    /// Nothing more is published. After a cancellation the ends that came before it are still on their way.
    fn stop(&mut self, lost: Lost) -> Result<(), ClientError> {
        if lost == Lost::TakenOver {
            return Err(ClientError::TakenOver { job: self.job() });
        }
        self.publish_no_more();
        Ok(())
    }

    fn publish_no_more(&mut self) {
        self.input = None;
        self.next_index -= self.filling.len() as u64;
        self.filling.clear();
        // What of it is stored all the same ends at the door.
        self.publishing = JoinSet::new();
        self.publishing_bytes = 0;
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
            && self.catch_up.is_done()
            && (self.publish_only || self.next_index.saturating_sub(self.window.floor()) < MAP_WINDOW_ITEMS)
            && self.window.held_bytes() < MAP_WINDOW_BYTES
            && self.publishing.len() < PUBLISH_WINDOW
            && self.publishing_bytes < PUBLISH_WINDOW_BYTES
            && self.sizer.wait_until(Instant::now()).is_none()
    }

    fn take(&mut self, value: Option<Result<Bytes, String>>) -> Result<(), ClientError> {
        let Some(value) = value else { return self.end_input() };
        let index = self.next_index;
        let refused = |reason: String| ClientError::Input { index, reason };
        let value = value.map_err(refused)?;
        if value.len() > MAP_VALUE_BYTES_MAX {
            let bytes = value.len();
            return Err(refused(format!("has {bytes} bytes, at most {MAP_VALUE_BYTES_MAX} may be one value of a map")));
        }
        if self.keeper.with(|record| record.total.is_some_and(|total| index >= total)) {
            return Err(self.other_input(index, "it has more items than before"));
        }
        let is_stored = self.catch_up.has(index);
        if is_stored || self.filling_bytes + value.len() + 2 > self.batch_bytes_max() {
            self.publish_filling();
        }
        add_value(&mut self.fingerprint, &value);
        self.next_index += 1;
        if is_stored {
            self.keeper.note_stored(index, index + 1, self.fingerprint.clone());
            return Ok(());
        }
        self.filling_bytes += value.len() + 1;
        self.filling.push(value);
        // In a bounded queue, whose limit counts messages, each task is one.
        let alone = self.filling.len() == 1 && self.spec.batch == Batch::Auto;
        if self.filling.len() >= self.sizer.size() as usize
            || alone && self.client.admission.is_bounded(&self.spec.queue)
        {
            self.publish_filling();
        }
        Ok(())
    }

    /// The input has ended.
    fn end_input(&mut self) -> Result<(), ClientError> {
        self.input = None;
        self.publish_filling();
        if let Some(index) = self.catch_up.beyond(self.next_index) {
            let why = format!("it ends here, and item {index} is stored");
            return Err(self.other_input(self.next_index, &why));
        }
        let total = self.keeper.with(|record| record.total);
        match total.filter(|total| self.next_index < *total) {
            Some(total) => Err(self.other_input(self.next_index, &format!("it had {total} items before"))),
            None => Ok(()),
        }
    }

    pub(super) fn other_input(&self, index: u64, why: &str) -> ClientError {
        ClientError::OtherInput { job: self.job(), index, why: why.to_owned() }
    }

    fn batch_bytes_max(&self) -> usize {
        match self.spec.batch {
            Batch::Auto => BATCH_AUTO_BYTES_MAX,
            Batch::Fixed(_) => CLAIM_CHECK_BYTES,
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
        // What goes to the store goes alone.
        let batch =
            batch.then_some(count).filter(|_| count > 1 || values.iter().all(|v| v.len() + 2 <= CLAIM_CHECK_BYTES));
        let payload = match (values.first(), batch) {
            (None, _) => return,
            (Some(one), None) => one.clone(),
            (Some(_), Some(_)) => Bytes::from(batch::join(values.iter().map(|v| &**v))),
        };
        let (id, job) = self.keeper.with(|record| (record.task_id(from, batch), record.job.clone()));
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
        let client = self.client.clone();
        let published =
            Published { from, to: self.next_index, bytes: task.payload.len(), fingerprint: self.fingerprint.clone() };
        self.publishing_bytes += published.bytes;
        self.publishing.spawn(async move {
            client.publish(&task, RetryDeadline::Unlimited).await?;
            Ok(published)
        });
    }

    fn note_published(&mut self, published: Published) {
        failpoint::hit("publish.noted");
        self.publishing_bytes -= published.bytes.min(self.publishing_bytes);
        self.keeper.note_stored(published.from, published.to, published.fingerprint);
    }

    fn note_pack(&mut self, pack: &ResultBatch) {
        let (mut run, mut ends) = (Vec::new(), Vec::new());
        self.keeper.with(|record| {
            for outcome in pack.outcomes.iter().filter(|outcome| record.owns(outcome.original_id())) {
                run.push((outcome.items_run(), Duration::from_micros(outcome.busy_us)));
                ends.extend(final_ends(outcome));
            }
            self.cancelled |= pack.cancelled.as_ref().is_some_and(|c| c.job == record.job && c.epoch >= record.epoch);
        });
        run.into_iter().for_each(|(items, busy)| self.sizer.note(items, busy));
        ends.into_iter().for_each(|(index, end)| self.note(index, end));
        if self.cancelled {
            self.publish_no_more();
        }
    }

    /// What the collector has kept of a job that goes on.
    fn note_rows(&mut self, rows: Vec<Row>) {
        for row in rows {
            if let Some((index, end)) = row.end() {
                self.note(index, end);
            }
        }
    }

    /// Takes an end; one that came before changes nothing.
    fn note(&mut self, index: u64, end: Ended) {
        if index >= self.next_index && !self.catch_up.note(index) {
            return;
        }
        if !self.publish_only {
            self.window.note(index, end);
        }
    }

    fn ready(&mut self) -> Option<(u64, Ended)> {
        if self.cancelled && self.window.floor() < self.next_index && self.window.lacks_floor() {
            self.note(self.window.floor(), Ended::Here(Err(NoResult::Cancelled)));
        }
        self.window.ready()
    }
}

impl Drop for MapRun {
    fn drop(&mut self) {
        self.client.learn(&self.spec.queue, &self.spec.kind, self.sizer.pace());
    }
}

async fn fetched(fetching: &mut Option<BoxFuture<'static, MapItem>>) -> MapItem {
    match fetching {
        Some(fetch) => fetch.await,
        None => std::future::pending().await,
    }
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

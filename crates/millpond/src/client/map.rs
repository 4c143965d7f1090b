//! `map`: a job of many tasks of one kind, published in a window and read back as they end, in bounded memory. Between the
//! oldest item that was not handed out and the newest that was published lie at most [`WINDOW_ITEMS`] items and
//! [`WINDOW_BYTES`] of results; beyond that the input waits. `map_start` begins a run, `map_publisher` is its publishing half.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::errors::MapError;
use super::history::{CatchUp, HistoryRow};
use super::map_publisher::MapPublisher;
use super::payloads::{KnownEnd, final_ends};
use super::result_window::ResultWindow;
use super::spec::MapItem;
use super::{Client, NoResult};
use crate::bus::error::BusError;
use crate::bus::read::job_results::LiveResults;
use crate::outcome::ResultBatch;

/// Items between the oldest that was not handed out and the newest that was published.
const WINDOW_ITEMS: u64 = 65_536;
/// Bytes of results that wait for their turn.
const WINDOW_BYTES: usize = 16 * 1024 * 1024;
/// The same while results are heard by a subscription, which keeps in memory what is not taken. A job of more items reads the
/// stream by a consumer; one of less has none.
const LIVE_ITEMS: u64 = 1024;

/// A `map` under way; [`MapRun::next`] drives it.
pub struct MapRun {
    client: Client,
    publisher: MapPublisher,
    /// Hand nothing out: results are read for their durations only.
    publish_only: bool,
    results: LiveResults,
    /// What a resumed job reads before it publishes.
    catch_up: CatchUp,
    window: ResultWindow,
    /// The next item to hand out, while its large result is fetched.
    fetching: Option<BoxFuture<'static, MapItem>>,
    /// The job was cancelled: items that have not ended by now end as cancelled.
    cancelled: bool,
    closing: Closing,
}

/// The last write of the job's record. It is kept here, so that a dropped [`MapRun::next`] does not drop it.
enum Closing {
    NotYet,
    Writing(BoxFuture<'static, Result<(), BusError>>),
    Written,
}

impl MapRun {
    pub(super) fn new(
        client: &Client,
        ordered: bool,
        publish_only: bool,
        publisher: MapPublisher,
        results: LiveResults,
        catch_up: CatchUp,
    ) -> Self {
        Self {
            client: client.clone(),
            publisher,
            publish_only,
            results,
            catch_up,
            window: ResultWindow::new(ordered),
            fetching: None,
            cancelled: false,
            closing: Closing::NotYet,
        }
    }

    /// The job's name.
    #[must_use]
    pub fn job(&self) -> String {
        self.publisher.record.with(|record| record.job.clone())
    }

    /// The id of the task at an index. A task that was published in a batch is known by it as well.
    #[must_use]
    pub fn task_id(&self, index: u64) -> String {
        self.publisher.record.with(|record| record.task_id(index, None))
    }

    /// The index of the oldest item that was not handed out: the one that is waited for.
    #[must_use]
    pub fn awaited(&self) -> u64 {
        self.window.floor()
    }

    /// Items read from the input so far.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.publisher.next_index()
    }

    /// Items from the start of the input that the server has stored, without a gap.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.publisher.record.with(|record| record.published)
    }

    /// Items in all, once the input has ended.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        self.publisher.is_read().then(|| self.publisher.next_index())
    }

    /// Whether the job was cancelled.
    #[must_use]
    pub fn was_cancelled(&self) -> bool {
        self.cancelled || self.publisher.record.is_cancelled()
    }

    /// Whether nats-server has no room for a reader of the results now: the map waits until it has.
    #[must_use]
    pub fn waits_for_reader(&self) -> bool {
        self.results.waits_for_reader()
    }

    pub(super) fn record(&self) -> crate::job::JobRecord {
        self.publisher.record.record()
    }

    /// The next item that ended; none when all have. After a cancellation, items without a result end as cancelled.
    ///
    /// # Errors
    /// [`MapError`]; what was published before still runs. [`MapError::InvalidValue`] comes when all that stands before the
    /// value is stored, with [`super::MapSpec::finish_broken_input`] when it has ended and was handed out, and is the last; the job
    /// stays open, so that it can go on with a better input.
    ///
    /// # Cancel safety
    /// Safe: nothing that was read or received is lost.
    pub async fn next(&mut self) -> Option<Result<MapItem, MapError>> {
        loop {
            if let Some(item) = self.take_ended() {
                return Some(Ok(item));
            }
            self.catch_up.note_backlog(self.results.has_backlog());
            self.read_large_job();
            // Before anything is awaited: this may find the end of the input, and then nothing else would wake `step`.
            if let Err(error) = self.read_ready_input() {
                return Some(Err(error));
            }
            if self.publisher.broken().is_some() {
                if self.publisher.is_done() && (self.is_handed_out() || !self.publisher.finishes_broken_input()) {
                    self.closing = Closing::Written;
                    return self.publisher.broken().take().map(Err);
                }
            } else if self.publisher.is_done() && matches!(self.closing, Closing::NotYet) {
                let total = self.publisher.next_index();
                self.closing = Closing::Writing(Box::pin(self.publisher.record.close(total)));
            }
            if self.is_handed_out() && matches!(self.closing, Closing::Written) {
                // Not only when this is dropped: a reader costs the server something, and the connection may be closed before.
                self.results.close();
                return None;
            }
            match self.step().await {
                Ok(None) => {}
                Ok(Some(item)) => return Some(Ok(item)),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Takes the next item whose end is here. When its result lies in the store, the fetch is started instead.
    fn take_ended(&mut self) -> Option<MapItem> {
        if self.fetching.is_some() {
            return None;
        }
        let floor = self.window.floor();
        if self.cancelled && floor < self.publisher.next_index() && self.window.waits_for_floor() {
            self.note_end(floor, KnownEnd::Inline(Err(NoResult::Cancelled)));
        }
        match self.window.take()? {
            (index, KnownEnd::Inline(end)) => Some(MapItem { index, end }),
            (index, stored) => {
                let client = self.client.clone();
                self.fetching = Some(Box::pin(async move { MapItem { index, end: client.fetch(stored).await } }));
                None
            }
        }
    }

    /// Whether every item was handed out. `>=`, because a resumed job may hand out an item before it is read from the
    /// input again.
    fn is_handed_out(&self) -> bool {
        self.publish_only || (self.window.floor() >= self.publisher.next_index() && self.fetching.is_none())
    }

    /// Waits for one event and handles it; returns an item whose result was fetched.
    async fn step(&mut self) -> Result<Option<MapItem>, MapError> {
        let may_read = self.may_read();
        tokio::select! {
            read = self.results.step() => read.iter().for_each(|(_, batch)| self.note_results(batch)),
            rows = self.catch_up.next_rows(&self.client.bus) => self.note_history(rows?),
            item = fetched(&mut self.fetching) => {
                self.fetching = None;
                return Ok(Some(item));
            }
            published = self.publisher.step(may_read) => published?,
            written = self.closing.written() => {
                self.closing = Closing::Written;
                written?;
            }
            failure = self.client.bus.failed() => return Err(BusError::from(failure).into()),
        }
        Ok(None)
    }

    /// Takes the values that the input has ready. The next value may be long in coming, and those already read must not
    /// wait for it: they are published now if no message is in flight, otherwise by the time the next ack arrives.
    fn read_ready_input(&mut self) -> Result<(), MapError> {
        while self.may_read() {
            match self.publisher.ready_value() {
                Some(value) => self.publisher.take(value)?,
                None => break,
            }
        }
        self.publisher.publish_if_idle();
        Ok(())
    }

    /// Goes over to a reader of the stream before there are so many items that the subscription could keep too much.
    fn read_large_job(&mut self) {
        if !self.publish_only && self.publisher.next_index() >= LIVE_ITEMS / 2 {
            self.results.read_stream_alone();
        }
    }

    fn may_read(&mut self) -> bool {
        let items = self.publisher.next_index().saturating_sub(self.window.floor());
        matches!(self.catch_up, CatchUp::Done)
            && (self.publish_only || items < if self.results.is_live() { LIVE_ITEMS } else { WINDOW_ITEMS })
            && self.window.held_bytes() < WINDOW_BYTES
            && self.publisher.may_read()
    }

    fn note_results(&mut self, batch: &ResultBatch) {
        let (mut durations, mut ends) = (Vec::new(), Vec::new());
        self.publisher.record.with(|record| {
            for outcome in batch.outcomes.iter().filter(|outcome| record.owns(outcome.original_id())) {
                durations.push((outcome.items_run(), Duration::from_micros(outcome.busy_us)));
                ends.extend(final_ends(outcome));
            }
            self.cancelled |= batch.cancelled.as_ref().is_some_and(|c| c.job == record.job && c.epoch >= record.epoch);
        });
        durations.into_iter().for_each(|(items, busy)| self.publisher.note_duration(items, busy));
        ends.into_iter().for_each(|(index, end)| self.note_end(index, end));
        if self.cancelled {
            self.publisher.stop();
        }
    }

    fn note_history(&mut self, rows: Vec<HistoryRow>) {
        rows.into_iter().filter_map(HistoryRow::end).for_each(|(index, end)| self.note_end(index, end));
    }

    /// Notes the end of an item; a second end of the same item changes nothing.
    fn note_end(&mut self, index: u64, end: KnownEnd) {
        // Not read from the input yet: its end counts only if it was stored before the job was resumed.
        if index >= self.publisher.next_index() && !self.publisher.note_already_stored(index) {
            return;
        }
        if !self.publish_only {
            self.window.add(index, end);
        }
    }
}

impl Closing {
    async fn written(&mut self) -> Result<(), BusError> {
        match self {
            Self::Writing(write) => write.await,
            Self::NotYet | Self::Written => std::future::pending().await,
        }
    }
}

async fn fetched(fetching: &mut Option<BoxFuture<'static, MapItem>>) -> MapItem {
    match fetching {
        Some(fetch) => fetch.await,
        None => std::future::pending().await,
    }
}

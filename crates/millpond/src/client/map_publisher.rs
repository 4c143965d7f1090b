//! The publishing half of a `map`: reads the input, fills batches, and publishes them with many messages under way at once.

use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::{Stream, StreamExt};
use sha2::Sha256;
use tokio::task::JoinSet;

use super::batch_sizer::{BATCH_AUTO_BYTES_MAX, BatchSize, BatchSizer};
use super::errors::{MapError, SubmitError};
use super::index_ranges::IndexRanges;
use super::job_record_writer::{JobRecordWriter, OwnershipLost, add_to_fingerprint, fingerprint_hex};
use super::publish_lane::{LaneEnd, LaneTask, PublishLane};
use super::spec::MapSpec;
use super::{Client, NewTask};
use crate::bus::publish::RetryDeadline;
use crate::job::JobRecord;
use crate::limits::{CLAIM_CHECK_BYTES, PUBLISH_WINDOW};
use crate::{batch, failpoint};

/// Largest value of the input, in bytes: it is in memory once.
const VALUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How long the acks of a job that was cancelled are waited for, so that its record tells how many tasks it had.
const CANCELLED_ACKS_WAIT: Duration = Duration::from_secs(5);
/// Bytes of arguments that were published and wait for their ack.
const UNACKED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The input of a `map`: JSON values, or the reason why the next one cannot be read.
pub(super) type InputValues = Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>;

/// Publishes the input of one job.
pub(super) struct MapPublisher {
    client: Client,
    spec: MapSpec,
    pub(super) record: JobRecordWriter,
    /// None once the input has ended, or nothing more is to be published.
    input: Option<InputValues>,
    /// Why the input ended before its end; what stands before that is published and ends as always.
    broken: Option<MapError>,
    /// Of the input as far as it was read.
    fingerprint: Sha256,
    /// The index of the next value of the input.
    next_index: u64,
    /// What the server has stored beyond `next_index`, of a job that goes on; it is not published again.
    already_stored: Option<IndexRanges>,
    /// The values of the next message.
    filling: Vec<Bytes>,
    filling_bytes: usize,
    sizer: BatchSizer,
    /// Publishes that wait for their ack. They run as tasks of their own: what they hold of the client must be given back also
    /// while nobody calls [`super::MapRun::next`].
    unacked: JoinSet<Result<PublishedRange, SubmitError>>,
    /// The same for those that need none.
    lane: PublishLane<PublishedRange>,
    unacked_bytes: usize,
    /// The job was cancelled: what is not acknowledged by then is not waited for.
    stop_at: Option<Instant>,
}

/// Items that the server has stored.
struct PublishedRange {
    from: u64,
    to: u64,
    bytes: usize,
    /// Of the input up to `to`.
    fingerprint: Sha256,
}

impl MapPublisher {
    /// The publisher of a job; with `already_stored`, of one that goes on: see [`MapPublisher::skip_published`].
    pub(super) fn new(
        client: &Client,
        spec: MapSpec,
        record: JobRecordWriter,
        input: InputValues,
        already_stored: Option<IndexRanges>,
    ) -> Self {
        Self {
            client: client.clone(),
            sizer: BatchSizer::new(spec.batch, client.mean_duration(&spec.queue, &spec.kind)),
            spec,
            record,
            input: Some(input),
            broken: None,
            fingerprint: Sha256::default(),
            next_index: 0,
            already_stored,
            filling: Vec::new(),
            filling_bytes: 0,
            unacked: JoinSet::new(),
            lane: PublishLane::new(client),
            unacked_bytes: 0,
            stop_at: None,
        }
    }

    /// Reads the part of the input that `record` says is published, and checks that it is the same as before.
    pub(super) async fn skip_published(&mut self, record: &JobRecord) -> Result<(), MapError> {
        let mut fingerprint = Sha256::default();
        for index in 0..record.published {
            let value = next_value(&mut self.input).await.transpose();
            let Some(value) = value.map_err(|reason| MapError::InvalidValue { index, reason })? else {
                let reason = format!("it ends here, {} were published before", record.published);
                return Err(self.other_input(index, reason));
            };
            add_to_fingerprint(&mut fingerprint, &value);
        }
        if record.fingerprint.as_ref().is_some_and(|before| *before != fingerprint_hex(&fingerprint)) {
            return Err(self.other_input(record.published, "an item before this differs".to_owned()));
        }
        self.record.set_fingerprint(fingerprint.clone());
        self.fingerprint = fingerprint;
        self.next_index = record.published;
        Ok(())
    }

    /// The number of items read so far; none of them is beyond it.
    pub(super) fn next_index(&self) -> u64 {
        self.next_index
    }

    /// Whether the input has ended and all of it is in messages.
    pub(super) fn is_read(&self) -> bool {
        self.input.is_none() && self.filling.is_empty()
    }

    /// Whether all of the input is stored.
    pub(super) fn is_done(&self) -> bool {
        self.is_read() && self.unacked() == 0
    }

    /// Messages that wait for their ack.
    fn unacked(&self) -> usize {
        self.unacked.len() + self.lane.len()
    }

    /// Why the input could not be read to its end; none when it could.
    pub(super) fn broken(&mut self) -> &mut Option<MapError> {
        &mut self.broken
    }

    /// Whether what stands before the break of an input is awaited.
    pub(super) fn finishes_broken_input(&self) -> bool {
        self.spec.finish_broken_input
    }

    /// Whether one more value may be read: there is capacity for it, and the size of the next batch is known.
    pub(super) fn may_read(&mut self) -> bool {
        self.input.is_some()
            && self.unacked() < PUBLISH_WINDOW
            && self.unacked_bytes < UNACKED_BYTES_MAX
            && self.sizer.wait_until(Instant::now()).is_none()
    }

    /// Waits for the next ack or, when `may_read`, for the next value of the input, and handles it. Returns as well when the
    /// size of the next batch is known.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken before it can be handled.
    pub(super) async fn step(&mut self, may_read: bool) -> Result<(), MapError> {
        let size_known_at = self.sizer.wait_until(Instant::now());
        tokio::select! {
            Some(Ok(published)) = self.unacked.join_next() => match published {
                // Nothing more is to be stored; what is missing is one task less.
                Err(_) if self.stop_at.is_some() => {}
                published => self.note_ack(published?),
            },
            end = self.lane.next_end(), if self.lane.len() > 0 => {
                self.note_end(end);
                // What else has come: under load an ack costs no turn of its own.
                while let Some(end) = self.lane.ready_end() {
                    self.note_end(end);
                }
            }
            () = sleep_until(self.stop_at), if self.unacked() > 0 => {
                self.unacked = JoinSet::new();
                self.lane.give_up();
            }
            value = next_value(&mut self.input), if may_read => self.take(value)?,
            lost = self.record.lost(), if self.input.is_some() => match lost {
                // Ends that came before the cancellation are still on their way.
                OwnershipLost::Cancelled => self.stop(),
                OwnershipLost::TakenOver => {
                    return Err(MapError::TakenOver { job: self.record.with(|record| record.job.clone()) });
                }
            },
            () = sleep_until(size_known_at) => {}
        }
        Ok(())
    }

    /// The next value, if the input has it at hand.
    pub(super) fn ready_value(&mut self) -> Option<Option<Result<Bytes, String>>> {
        next_value(&mut self.input).now_or_never()
    }

    /// Takes a value that was read; none is the end of the input.
    pub(super) fn take(&mut self, value: Option<Result<Bytes, String>>) -> Result<(), MapError> {
        let Some(value) = value else { return self.end_input() };
        let index = self.next_index;
        let fits = |value: Bytes| match value.len() {
            bytes if bytes > VALUE_BYTES_MAX => {
                Err(format!("has {bytes} bytes, at most {VALUE_BYTES_MAX} may be one value of a map"))
            }
            _ => Ok(value),
        };
        let value = match value.and_then(fits) {
            Ok(value) => value,
            Err(reason) => {
                self.input = None;
                self.broken = Some(MapError::InvalidValue { index, reason });
                self.publish_filling();
                return Ok(());
            }
        };
        if self.record.with(|record| record.total.is_some_and(|total| index >= total)) {
            return Err(self.other_input(index, "it has more items than before".to_owned()));
        }
        let is_stored = self.already_stored.as_ref().is_some_and(|stored| stored.contains(index));
        if is_stored || self.filling_bytes + value.len() + 2 > self.batch_bytes_max() {
            self.publish_filling();
        }
        add_to_fingerprint(&mut self.fingerprint, &value);
        self.next_index += 1;
        if is_stored {
            self.record.note_stored(index, index + 1, self.fingerprint.clone());
            return Ok(());
        }
        self.filling_bytes += value.len() + 1;
        self.filling.push(value);
        if self.filling.len() >= self.sizer.size() as usize || self.must_go_alone() {
            self.publish_filling();
        }
        Ok(())
    }

    /// The limit of a bounded queue counts messages: there, each task is one.
    fn must_go_alone(&self) -> bool {
        self.filling.len() == 1
            && self.spec.batch == BatchSize::Auto
            && self.client.admission.is_bounded(&self.spec.queue)
    }

    fn end_input(&mut self) -> Result<(), MapError> {
        self.input = None;
        self.publish_filling();
        let last_stored = self.already_stored.as_ref().and_then(IndexRanges::last);
        if let Some(index) = last_stored.filter(|last| *last >= self.next_index) {
            return Err(self.other_input(self.next_index, format!("it ends here, and item {index} is stored")));
        }
        let total = self.record.with(|record| record.total);
        match total.filter(|total| self.next_index < *total) {
            Some(total) => Err(self.other_input(self.next_index, format!("it had {total} items before"))),
            None => Ok(()),
        }
    }

    fn other_input(&self, index: u64, reason: String) -> MapError {
        MapError::OtherInput { job: self.record.with(|record| record.job.clone()), index, reason }
    }

    fn batch_bytes_max(&self) -> usize {
        match self.spec.batch {
            BatchSize::Auto => BATCH_AUTO_BYTES_MAX,
            BatchSize::Fixed(_) => CLAIM_CHECK_BYTES,
        }
    }

    /// Publishes the values read so far without waiting for more: when nothing is under way, nothing else would send them.
    pub(super) fn publish_if_idle(&mut self) {
        if self.unacked() == 0 && self.spec.batch == BatchSize::Auto {
            self.publish_filling();
        }
    }

    fn publish_filling(&mut self) {
        let values = std::mem::take(&mut self.filling);
        self.filling_bytes = 0;
        let Ok(count) = u32::try_from(values.len()) else { return };
        let from = self.next_index - u64::from(count);
        let is_batch = match self.spec.batch {
            BatchSize::Auto => count > 1,
            BatchSize::Fixed(items) => items > 1,
        };
        // A value that goes to the store of payloads goes alone, and a batch cannot be stored there.
        let fits = count > 1 || values.iter().all(|value| value.len() + 2 <= CLAIM_CHECK_BYTES);
        let batch = (is_batch && fits).then_some(count);
        let payload = match (values.first(), batch) {
            (None, _) => return,
            (Some(one), None) => one.clone(),
            (Some(_), Some(_)) => Bytes::from(batch::join(values.iter().map(|value| &**value))),
        };
        let (id, job) = self.record.with(|record| (record.task_id(from, batch), record.job.clone()));
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
        self.sizer.note_published(Instant::now());
        let (to, bytes, fingerprint) = (self.next_index, task.payload.len(), self.fingerprint.clone());
        self.unacked_bytes += bytes;
        let of = PublishedRange { from, to, bytes, fingerprint };
        if let Err(apart) = self.lane.publish(Box::new(LaneTask { task, of })) {
            self.publish_apart(apart);
        }
    }

    fn publish_apart(&mut self, apart: Box<LaneTask<PublishedRange>>) {
        let client = self.client.clone();
        self.unacked.spawn(async move {
            client.publish(&apart.task, RetryDeadline::Unlimited).await?;
            Ok(apart.of)
        });
    }

    fn note_end(&mut self, end: LaneEnd<PublishedRange>) {
        match end {
            LaneEnd::Stored(range) => self.note_ack(range),
            LaneEnd::NotAcknowledged(apart) => self.publish_apart(apart),
        }
    }

    fn note_ack(&mut self, published: PublishedRange) {
        failpoint::hit("publish.noted");
        self.unacked_bytes -= published.bytes.min(self.unacked_bytes);
        self.record.note_stored(published.from, published.to, published.fingerprint);
    }

    /// Notes an item that ended before it was read from the input; false when that cannot be.
    pub(super) fn note_already_stored(&mut self, index: u64) -> bool {
        let stored = self.already_stored.as_mut();
        stored.is_some_and(|stored| {
            stored.add(index, index.saturating_add(1));
            true
        })
    }

    /// Notes the durations of `items` items that one message brought back.
    pub(super) fn note_duration(&mut self, items: usize, busy: Duration) {
        self.sizer.note(items, busy);
    }

    /// Publishes nothing more, after a cancellation. A message that is on its way is stored all the same, counts, and ends at the
    /// worker's admission.
    pub(super) fn stop(&mut self) {
        self.input = None;
        self.next_index -= self.filling.len() as u64;
        self.filling.clear();
        self.stop_at.get_or_insert_with(|| Instant::now() + CANCELLED_ACKS_WAIT);
    }
}

impl Drop for MapPublisher {
    /// The next job of this kind begins with the durations seen in this one.
    fn drop(&mut self) {
        self.client.note_mean_duration(&self.spec.queue, &self.spec.kind, self.sizer.mean_duration());
    }
}

async fn next_value(input: &mut Option<InputValues>) -> Option<Result<Bytes, String>> {
    match input {
        Some(input) => input.next().await,
        None => std::future::pending().await,
    }
}

/// Sleeps until then; for ever when that is none.
pub(super) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

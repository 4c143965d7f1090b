//! The one loop that moves what ended into the store: pull, merge, commit, acknowledge. Nothing is acknowledged before its
//! commit.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use millpond::bus::Bus;
use millpond::bus::read::outcomes::{OutcomeMessage, OutcomeReader, OutcomeStream};
use millpond::failpoint;
use millpond::limits::{COLLECT_BATCH_MAX, COLLECT_BYTES_MAX};
use millpond::telemetry::took;
use tokio_util::sync::CancellationToken;

use crate::commit_span;
use crate::store::Store;

/// How long messages are gathered before a commit.
const COLLECT_GATHER: Duration = Duration::from_millis(50);
/// How long to wait before a merge that failed is tried again.
const MERGE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A merge that goes on failing is logged once in so many times.
const LOG_EVERY_TIMES: u32 = 60;
/// How often it is checked that the pull still brings what waits at the server.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How often the streams are purged of what is stored for long enough.
const PURGE_EVERY: Duration = Duration::from_secs(30);

/// Collects from one stream. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Collector {
    bus: Bus,
    store: Store,
    from: OutcomeStream,
    /// How long the stream keeps what is stored.
    keep: Duration,
    health: Arc<Health>,
}

/// How one collector fares, for `/readyz` and the overview.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Whether the server answered the last check of the durable, or has sent messages since.
    pulling: AtomicBool,
    /// Why the last merge failed, since when, Unix milliseconds.
    store_fails: Mutex<Option<(String, i64)>>,
    /// How old the newest message was when it was committed, in milliseconds, and when that was.
    lag: Mutex<Option<(i64, Instant)>>,
}

impl Health {
    /// Whether the last merge failed.
    pub(crate) fn store_fails(&self) -> bool {
        self.failing().is_some()
    }

    /// What is wrong, for a person; none when all is well.
    pub(crate) fn complaint(&self) -> Option<String> {
        if let Some((why, _)) = &*self.failing() {
            return Some(format!("the store cannot be written, nothing is acknowledged and all is tried again: {why}"));
        }
        let pulls = self.pulling.load(Ordering::Relaxed);
        (!pulls).then(|| "the collector's consumers do not answer; has `setup` run?".to_owned())
    }

    /// How far the store is behind its stream, in milliseconds; 0 when nothing came of late.
    pub(crate) fn lag_ms(&self) -> i64 {
        if let Some((_, since)) = &*self.failing() {
            return millpond::now_ms() - since;
        }
        let lag = *self.lag.lock().unwrap_or_else(PoisonError::into_inner);
        lag.filter(|(_, at)| at.elapsed() < CHECK_EVERY).map_or(0, |(lag, _)| lag.max(0))
    }

    fn failing(&self) -> MutexGuard<'_, Option<(String, i64)>> {
        self.store_fails.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A merge has failed; true when that is to be logged.
    fn failed(&self, why: String, times: u32) -> bool {
        let mut fails = self.failing();
        let since = fails.as_ref().map_or_else(millpond::now_ms, |(_, since)| *since);
        *fails = Some((why, since));
        times.is_multiple_of(LOG_EVERY_TIMES)
    }

    fn committed(&self, messages: &[OutcomeMessage]) {
        *self.failing() = None;
        if let Some(newest) = messages.iter().map(|message| message.stored_ms).max() {
            let lag = millpond::now_ms() - newest;
            *self.lag.lock().unwrap_or_else(PoisonError::into_inner) = Some((lag, Instant::now()));
        }
    }
}

/// What the last check of a pull has seen.
#[derive(Default)]
struct PullCheck {
    /// No message has come since.
    is_idle: bool,
    /// All up to here was acknowledged, when more was delivered.
    floor: Option<u64>,
}

fn bytes(messages: &[OutcomeMessage]) -> usize {
    messages.iter().map(|message| message.payload.len()).sum()
}

impl Collector {
    pub(crate) fn new(bus: &Bus, store: &Store, from: OutcomeStream, keep: Duration) -> Self {
        Self { bus: bus.clone(), store: store.clone(), from, keep, health: Arc::default() }
    }

    /// How it fares, from now on.
    pub(crate) fn health(&self) -> Arc<Health> {
        self.health.clone()
    }

    /// Collects until `shutdown`; what was pulled by then is stored and acknowledged.
    pub(crate) async fn collect(self, shutdown: CancellationToken) {
        let mut reader = OutcomeReader::new(self.bus.clone(), self.from);
        let mut check = tokio::time::interval(CHECK_EVERY);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut connection = self.bus.connection();
        let (mut pull, mut more_waits) = (PullCheck::default(), false);
        // Before anything is pulled: a message that nobody can read may have ended the process before this one.
        self.take_out_poison(&reader, &shutdown).await;
        loop {
            let (mut messages, mut receipts) = (Vec::new(), Vec::new());
            // What comes within the next moment shares a commit, which is synced to disk.
            let gather = if more_waits { Duration::ZERO } else { COLLECT_GATHER };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                // It may have been such a message that cost the connection.
                Ok(()) = connection.changed() => {
                    if connection.borrow_and_update().up {
                        reader.restart();
                        self.take_out_poison(&reader, &shutdown).await;
                    }
                    continue;
                }
                (first, receipt) = reader.next(), if !more_waits => {
                    messages.push(first);
                    receipts.push(receipt);
                }
                () = std::future::ready(()), if more_waits => {}
                _ = check.tick() => {
                    if self.check_pull(&mut reader, &mut pull).await {
                        self.take_out_poison(&reader, &shutdown).await;
                    }
                    continue;
                }
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(gather) => {
                    let (more, theirs) = reader.rest(COLLECT_BATCH_MAX - messages.len()).await;
                    messages.extend(more);
                    receipts.extend(theirs);
                    more_waits = messages.len() >= COLLECT_BATCH_MAX || bytes(&messages) >= COLLECT_BYTES_MAX / 2;
                }
            }
            if messages.is_empty() {
                continue;
            }
            pull.is_idle = false;
            self.health.pulling.store(true, Ordering::Relaxed);
            let started = SystemTime::now();
            if !self.merge_all(&messages, &shutdown).await {
                return;
            }
            commit_span::record_commit(self.from, &messages, started);
            failpoint::hit("collector.committed");
            let count = messages.len() as u64;
            for receipt in receipts {
                reader.ack(receipt).await;
            }
            failpoint::hit("collector.acked");
            metrics::counter!("millpond_messages_collected_total", "stream" => self.from.stream()).increment(count);
        }
    }

    /// Requests the state of the durable. When messages wait there and none came since the last check, the pull is dead without
    /// knowing it, and is made anew. True when what was delivered is as little acknowledged as at the last check: something of it
    /// may be unreadable.
    async fn check_pull(&self, reader: &mut OutcomeReader, check: &mut PullCheck) -> bool {
        let state = reader.state().await;
        self.health.pulling.store(state.is_ok(), Ordering::Relaxed);
        let Ok(state) = state else {
            *check = PullCheck::default();
            return false;
        };
        let was_idle = std::mem::replace(&mut check.is_idle, true);
        if was_idle && state.pending > 0 {
            tracing::warn!(stream = self.from.stream(), pending = state.pending, "nothing comes, making the pull anew");
            reader.restart();
            check.is_idle = false;
        }
        let floor = (state.ack_pending > 0).then_some(state.ack_floor);
        std::mem::replace(&mut check.floor, floor) == floor && floor.is_some()
    }

    /// Stores what was delivered and cannot be read by the NATS client, and removes it from the stream.
    async fn take_out_poison(&self, reader: &OutcomeReader, shutdown: &CancellationToken) {
        let stream = self.from.stream();
        let found = match reader.poison().await {
            Ok(found) if found.is_empty() => return,
            Ok(found) => found,
            Err(error) => return tracing::debug!(stream, %error, "cannot look for messages that cannot be read"),
        };
        metrics::counter!("millpond_poison_messages_total").increment(found.len() as u64);
        if !self.merge_all(&found, shutdown).await {
            return;
        }
        for message in &found {
            tracing::warn!(stream, seq = message.seq, "its header block cannot be read; it is stored and removed");
            if let Err(error) = reader.remove(message).await {
                tracing::warn!(stream, seq = message.seq, %error, "it cannot be removed, will try again");
            }
        }
    }

    /// Merges the messages into the store, and tries again while the store fails; false when stopped meanwhile (the server
    /// delivers them again).
    async fn merge_all(&self, messages: &[OutcomeMessage], shutdown: &CancellationToken) -> bool {
        for times in 0.. {
            let started = Instant::now();
            match self.store.merge(self.from, messages).await {
                Ok(()) => {
                    took("millpond_store_commit_seconds", &[("stream", self.from.stream())], started.elapsed());
                    if times > 0 {
                        tracing::info!(stream = self.from.stream(), "the store can be written again");
                    }
                    self.health.committed(messages);
                    return true;
                }
                Err(error) => {
                    metrics::counter!("millpond_store_errors_total").increment(1);
                    let error = error.to_string();
                    if self.health.failed(error.clone(), times) {
                        tracing::error!(
                            error,
                            "the store cannot be written (is its disk full?); nothing is acknowledged, trying again"
                        );
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(MERGE_AGAIN_AFTER) => {}
            }
        }
        false
    }

    /// Removes from the stream, for ever, what has been stored for as long as late readers are promised.
    pub(crate) async fn purge_stream(self) {
        let reader = OutcomeReader::new(self.bus.clone(), self.from);
        let mut floors: VecDeque<(Instant, u64)> = VecDeque::new();
        loop {
            tokio::time::sleep(PURGE_EVERY.min(self.keep)).await;
            let Ok(state) = reader.state().await else { continue };
            metrics::gauge!("millpond_messages_behind", "stream" => self.from.stream())
                .set(u32::try_from(state.pending + state.ack_pending).unwrap_or(u32::MAX));
            floors.push_back((Instant::now(), state.ack_floor));
            let mut through = None;
            while let Some((at, floor)) = floors.front().copied()
                && at.elapsed() >= self.keep
            {
                through = Some(floor);
                floors.pop_front();
            }
            if let Some(floor) = through.filter(|floor| *floor > 0)
                && let Err(error) = reader.purge_through(floor).await
            {
                tracing::warn!(%error, "what is stored cannot be purged from its stream, will try again");
            }
        }
    }
}

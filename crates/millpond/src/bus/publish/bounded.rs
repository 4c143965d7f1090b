//! Admission to a bounded queue: a publisher counts what waits, then publishes on the condition that nothing newer was
//! stored since; otherwise the server refuses the message. docs/protocol.md ("Bounded queues") says why this never
//! admits one too many. An unbounded queue costs one read of its settings a second.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use rand::RngExt;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::publish::queue_limits::QueueFill;
use crate::bus::publish::stored_already::TakesNoRollup;
use crate::bus::publish::{PublishError, RetryDeadline, STREAM_FULL_WAIT, StoreFailure, Stored};
use crate::wire::headers::{HEADER_EXPECTED_SEQUENCE, HEADER_EXPECTED_SUBJECT, HEADER_MSG_ID, Headers};
use crate::wire::subject::TaskSubject;

/// How long a publisher uses a queue's limit of waiting tasks before it reads the limit again.
const QUEUE_LIMIT_KNOWN_FOR: Duration = Duration::from_secs(1);
/// First wait of a publisher for capacity in a bounded queue; it doubles.
const QUEUE_FULL_WAIT_MIN: Duration = Duration::from_millis(10);
/// Longest such wait.
const QUEUE_FULL_WAIT_MAX: Duration = Duration::from_millis(100);

/// Queues that a client remembers.
const QUEUES_MAX: usize = 1000;

/// What a client knows of the queues that it publishes to.
pub struct QueueAdmission {
    bus: Bus,
    queues: Mutex<LruCache<String, Arc<Queue>>>,
}

struct Queue {
    name: String,
    /// When its limit was read, and the limit.
    limit: Mutex<Option<(Instant, Option<u64>)>>,
    /// One reads it at a time; when that failed last, while it fails.
    reading: AsyncMutex<Option<Instant>>,
    claim: AsyncMutex<CapacityClaim>,
}

/// The claim on which admission rests: of the messages up to `last`, at most `at_most` are there, now and ever after.
/// (Sequences are not used twice, so those up to `last` only become fewer.)
#[derive(Debug, Default, PartialEq, Eq)]
struct CapacityClaim {
    last: u64,
    at_most: u64,
    /// The connection's count of losses: another server process may have lost what was not on disk, and use
    /// sequences again.
    connection_changes: u64,
}

impl CapacityClaim {
    /// The newest message of the queue is `newest`: there cannot be more new ones than sequences.
    fn learn(&mut self, newest: u64) {
        self.at_most = match newest {
            0 => 0,
            newest => self.at_most.saturating_add(newest.saturating_sub(self.last)),
        };
        self.last = newest;
    }

    /// A message was stored when `last` was the newest.
    fn stored(&mut self, seq: u64) {
        (self.last, self.at_most) = (seq, self.at_most.saturating_add(1));
    }
}

/// A message that a publisher submits to a bounded queue.
struct Submission<'a> {
    subject: &'a str,
    headers: async_nats::HeaderMap,
    payload: Bytes,
    /// It may be stored already: by an earlier publish of the same id, or by one whose ack did not come.
    maybe_stored: bool,
    pause: Duration,
}

impl QueueAdmission {
    /// Reads limits and publishes through this connection.
    #[must_use]
    pub fn new(bus: &Bus) -> Self {
        let queues = LruCache::new(NonZeroUsize::new(QUEUES_MAX).unwrap_or(NonZeroUsize::MIN));
        Self { bus: bus.clone(), queues: Mutex::new(queues) }
    }

    fn queue(&self, name: &str) -> Arc<Queue> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(name) {
            return queue.clone();
        }
        let (limit, reading, claim) = Default::default();
        let queue = Arc::new(Queue { name: name.to_owned(), limit, reading, claim });
        queues.put(name.to_owned(), queue.clone());
        queue
    }

    /// Whether a queue is bounded, as far as is known without a request.
    #[must_use]
    pub fn is_bounded(&self, queue: &str) -> bool {
        self.queue(queue).known().is_some_and(|(_, limit)| limit.is_some())
    }

    /// Whether a queue is not bounded, as was read a moment ago.
    pub(crate) fn is_known_unbounded(&self, queue: &str) -> bool {
        self.queue(queue).fresh() == Some(None)
    }

    /// How many tasks may wait in a queue; none: any number.
    ///
    /// # Errors
    /// [`PublishError::NoAnswer`] when the server does not answer, and did not before.
    pub async fn max_waiting(&self, queue: &str, deadline: RetryDeadline) -> Result<Option<u64>, PublishError> {
        let (queue, started) = (self.queue(queue), Instant::now());
        loop {
            match queue.max_waiting(&self.bus).await {
                Ok(limit) => return Ok(limit),
                Err(failed) => {
                    let subject = format!("tasks.{}.>", queue.name);
                    self.bus.wait_after(failed, &subject, deadline, started).await?;
                }
            }
        }
    }

    /// How full a queue is; none when it is not bounded.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn fill(&self, queue: &str) -> Result<Option<QueueFill>, BusError> {
        let Ok(Some(max_waiting)) = self.queue(queue).max_waiting(&self.bus).await else { return Ok(None) };
        let waiting = self.bus.count_waiting(queue, u64::MAX).await?;
        Ok(Some(QueueFill { waiting, max_waiting }))
    }

    /// Stores a task in TASKS, when its queue has capacity.
    ///
    /// # Errors
    /// [`PublishError`], as [`Bus::store`]; [`PublishError::QueueFull`] when there was no capacity in time.
    ///
    /// # Cancel safety
    /// Not safe: a dropped publish may or may not be stored.
    pub async fn store(
        &self,
        queue: &str,
        subject: &str,
        headers: &Headers,
        payload: Bytes,
        deadline: RetryDeadline,
    ) -> Result<Stored, PublishError> {
        let started = Instant::now();
        if self.max_waiting(queue, deadline).await?.is_none() {
            return self.bus.store(subject, headers, payload, deadline).await;
        }
        let queue = self.queue(queue);
        let mut submission = Submission {
            subject,
            headers: self.bus.signed(subject, headers, &payload),
            payload: payload.clone(),
            maybe_stored: true,
            pause: QUEUE_FULL_WAIT_MIN,
        };
        // One publish of a client is tried at a time, in order: the others would only make the server refuse each other.
        let mut claim = queue.turn(deadline).await?;
        loop {
            let tried = match queue.max_waiting(&self.bus).await {
                Ok(None) => {
                    // The limit is gone: those behind need not wait for this one.
                    drop(claim);
                    return self.bus.store(subject, headers, payload, deadline).await;
                }
                Ok(Some(max)) => submission.try_store(&self.bus, &queue.name, &mut claim, max).await,
                Err(failed) => Err(failed),
            };
            match tried {
                Ok(stored) => return Ok(stored),
                Err(failed) => self.bus.wait_after(failed, subject, deadline, started).await?,
            }
        }
    }
}

impl Queue {
    fn known(&self) -> Option<(Instant, Option<u64>)> {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its limit, as read a moment ago.
    fn fresh(&self) -> Option<Option<u64>> {
        self.known().filter(|(at, _)| at.elapsed() < QUEUE_LIMIT_KNOWN_FOR).map(|(_, limit)| limit)
    }

    /// Its limit: as read a moment ago, else as the server has it, else as read before.
    async fn max_waiting(&self, bus: &Bus) -> Result<Option<u64>, StoreFailure> {
        if let Some(limit) = self.fresh() {
            return Ok(limit);
        }
        let mut failed = self.reading.lock().await;
        if let Some(limit) = self.fresh() {
            return Ok(limit);
        }
        if failed.is_some_and(|at| at.elapsed() < STREAM_FULL_WAIT) {
            // Another publisher has asked a moment ago: thousands may wait here.
            return Err(StoreFailure::Again(STREAM_FULL_WAIT));
        }
        match (bus.queue_settings(&self.name).await, self.known()) {
            (Some(settings), _) => {
                // None can wait where none may: `set` refuses it, and a queue that is shut for ever helps nobody.
                let limit = settings.max_waiting.map(|max| max.max(1));
                *self.limit.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), limit));
                *failed = None;
                Ok(limit)
            }
            (None, Some((_, limit))) => Ok(limit),
            (None, None) => {
                if failed.replace(Instant::now()).is_none() {
                    tracing::warn!(queue = %self.name, "nats-server does not answer with the queue's limit, will try again");
                }
                Err(StoreFailure::Again(STREAM_FULL_WAIT))
            }
        }
    }

    fn full(&self) -> PublishError {
        let max_waiting = self.known().and_then(|(_, limit)| limit).unwrap_or(0);
        PublishError::QueueFull { queue: self.name.clone(), max_waiting }
    }

    async fn turn(&self, deadline: RetryDeadline) -> Result<MutexGuard<'_, CapacityClaim>, PublishError> {
        match deadline {
            RetryDeadline::Unlimited => Ok(self.claim.lock().await),
            RetryDeadline::Within(limit) => {
                tokio::time::timeout(limit, self.claim.lock()).await.map_err(|_| self.full())
            }
        }
    }
}

impl Submission<'_> {
    /// Tries until it is stored, or the queue is full.
    async fn try_store(
        &mut self,
        bus: &Bus,
        queue: &str,
        claim: &mut CapacityClaim,
        max: u64,
    ) -> Result<Stored, StoreFailure> {
        let connection_changes = bus.connection.borrow().changes;
        if connection_changes != claim.connection_changes {
            *claim = CapacityClaim { connection_changes, ..CapacityClaim::default() };
        }
        loop {
            if claim.at_most >= max {
                // What is counted now was there, or came, after `last`: it bounds those up to `last` from above.
                let counted = bus.count_waiting(queue, max).await;
                claim.at_most = counted.map_err(|_| StoreFailure::Again(STREAM_FULL_WAIT))?;
            }
            if claim.at_most >= max {
                return self.wait(bus, queue, max).await;
            }
            let mut headers = self.headers.clone();
            headers.insert(HEADER_EXPECTED_SEQUENCE, claim.last.to_string());
            headers.insert(HEADER_EXPECTED_SUBJECT, format!("tasks.{queue}.>"));
            match bus.try_store(self.subject, headers, self.payload.clone()).await {
                Ok(stored) if stored.duplicate => return Ok(stored),
                Ok(stored) => {
                    claim.stored(stored.seq);
                    return Ok(stored);
                }
                // The server refused the very sequence that it had given: to try again at once does not help.
                Err(StoreFailure::NotLast(newest)) if newest == claim.last => {
                    return Err(StoreFailure::Again(STREAM_FULL_WAIT));
                }
                Err(StoreFailure::NotLast(newest)) => claim.learn(newest),
                Err(failed) => {
                    self.maybe_stored = true;
                    return Err(failed);
                }
            }
        }
    }

    /// The queue is full; perhaps because this very message is in it.
    async fn wait(&mut self, bus: &Bus, queue: &str, max_waiting: u64) -> Result<Stored, StoreFailure> {
        let id = self.headers.get(HEADER_MSG_ID).filter(|_| self.maybe_stored);
        if let (Some(id), Ok(subject)) = (id, TaskSubject::parse(self.subject)) {
            if let Some(stored) = bus.stored_in(TakesNoRollup::Tasks, &subject, id.as_str()).await? {
                return Ok(stored);
            }
            self.maybe_stored = false;
        }
        let full = PublishError::QueueFull { queue: queue.to_owned(), max_waiting };
        let pause = self.pause.mul_f64(rand::rng().random_range(0.5..1.0));
        self.pause = (self.pause * 2).min(QUEUE_FULL_WAIT_MAX);
        Err(StoreFailure::Full(pause, full))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the server does: sequences are not used twice, and a publish passes when the newest is the expected one.
    #[derive(Default)]
    struct ModelServer {
        used: u64,
        there: Vec<u64>,
    }

    impl ModelServer {
        fn newest(&self) -> u64 {
            self.there.last().copied().unwrap_or(0)
        }

        fn store(&mut self) -> u64 {
            self.used += 1;
            self.there.push(self.used);
            self.used
        }
    }

    proptest! {
        /// Each step of each publisher is one trip to the server; anything may happen between two of them.
        #[test]
        fn no_order_of_steps_lets_in_one_too_many(
            max in 1_u64..5,
            steps in proptest::collection::vec((0_usize..6, 0_usize..8), 1..400),
        ) {
            let mut server = ModelServer::default();
            let mut admission = [const { CapacityClaim { last: 0, at_most: 0, connection_changes: 0 } }; 3];
            for (who, what) in steps {
                match (admission.get_mut(who), what) {
                    // A publisher looks, or publishes.
                    (Some(claim), _) if claim.at_most >= max => claim.at_most = server.there.len() as u64,
                    (Some(claim), _) if claim.last == server.newest() => claim.stored(server.store()),
                    (Some(claim), _) => claim.learn(server.newest()),
                    // Another queue of the stream gets one.
                    (None, 7) => server.used += 1,
                    // A worker is done with one.
                    (None, _) if !server.there.is_empty() => {
                        server.there.remove(what % server.there.len());
                    }
                    (None, _) => {}
                }
                prop_assert!(server.there.len() as u64 <= max);
            }
        }
    }

    #[test]
    fn a_claim_is_about_the_past() {
        let mut claim = CapacityClaim::default();
        claim.learn(5);
        assert_eq!((claim.last, claim.at_most), (5, 5), "no more than there are sequences");
        claim.at_most = 2;
        claim.learn(3);
        assert_eq!((claim.last, claim.at_most), (3, 2), "the newest is gone, nothing came");
        claim.stored(9);
        assert_eq!((claim.last, claim.at_most), (9, 3));
        claim.learn(0);
        assert_eq!((claim.last, claim.at_most), (0, 0));
    }
}

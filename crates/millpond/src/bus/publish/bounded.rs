//! The door of a bounded queue: a publisher counts what waits, then publishes on the condition that nothing newer has
//! come since; the server refuses it otherwise. docs/protocol.md ("Bounded queues") says why this never lets in one
//! too many. An unbounded queue costs one look at its settings a second.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use rand::RngExt;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};

use crate::bus::Bus;
use crate::bus::publish::STREAM_FULL_WAIT;
use crate::bus::publish::queue_limits::QueueFill;
use crate::bus::publish::{PublishError, RetryDeadline, StoreFailure, Stored};
use crate::bus::topology::TopologyError;
use crate::wire::headers::{HEADER_EXPECTED_ID, HEADER_EXPECTED_SEQUENCE, HEADER_EXPECTED_SUBJECT, Headers};

/// Longest wait of a publisher for capacity in a bounded queue.
const QUEUE_FULL_WAIT_MAX: Duration = Duration::from_millis(100);
/// First wait of a publisher for capacity in a bounded queue; it doubles.
const QUEUE_FULL_WAIT_MIN: Duration = Duration::from_millis(10);
/// How long a publisher goes by the limit of a queue that it has read, before it reads it again.
const QUEUE_LIMIT_KNOWN_FOR: Duration = Duration::from_secs(1);
/// Queues that a client remembers.
const QUEUES_MAX: usize = 1000;

/// What a client knows of the queues that it publishes to.
pub struct QueueAdmission {
    bus: Bus,
    queues: Mutex<LruCache<String, Arc<Queue>>>,
}

struct Queue {
    name: String,
    /// When its limit was asked for, and what it was.
    limit: Mutex<Option<(Instant, Option<u64>)>>,
    asking: AsyncMutex<()>,
    door: AsyncMutex<Door>,
}

/// The claim that carries everything: of the messages up to `last`, at most `at_most` are there, now and ever after.
/// (Sequences are not used twice, so those up to `last` only become fewer.)
#[derive(Debug, Default, PartialEq, Eq)]
struct Door {
    last: u64,
    at_most: u64,
    /// The connection's count of losses: another server process may have lost what was not on disk, and use
    /// sequences again.
    generation: u64,
}

impl Door {
    /// The newest message of the queue is `newest`: there cannot be more new ones than sequences.
    fn learn(&mut self, newest: u64) {
        self.at_most = match newest {
            0 => 0,
            newest => self.at_most.saturating_add(newest.saturating_sub(self.last)),
        };
        self.last = newest;
    }

    /// A message was let in when `last` was the newest.
    fn enter(&mut self, seq: u64) {
        (self.last, self.at_most) = (seq, self.at_most.saturating_add(1));
    }
}

/// A message on its way in.
struct Entry<'a> {
    subject: &'a str,
    headers: async_nats::HeaderMap,
    payload: Bytes,
    /// It may be stored already: by an earlier publish of the same id, or one whose ack did not come.
    doubt: bool,
    pause: Duration,
}

impl QueueAdmission {
    /// Asks and publishes through this connection.
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
        let (limit, asking, door) = Default::default();
        let queue = Arc::new(Queue { name: name.to_owned(), limit, asking, door });
        queues.put(name.to_owned(), queue.clone());
        queue
    }

    /// Whether a queue is bounded, as far as is known without asking.
    #[must_use]
    pub fn is_bounded(&self, queue: &str) -> bool {
        self.queue(queue).known().is_some_and(|(_, limit)| limit.is_some())
    }

    /// How many tasks may wait in a queue; none: any number.
    ///
    /// # Errors
    /// [`PublishError::NoAnswer`] when the server does not say, and did not before.
    pub async fn max_waiting(&self, queue: &str, deadline: RetryDeadline) -> Result<Option<u64>, PublishError> {
        let (queue, started) = (self.queue(queue), Instant::now());
        loop {
            match queue.max_waiting(&self.bus).await {
                Ok(limit) => return Ok(limit),
                Err(failed) => {
                    let subject = format!("tasks.{}.>", queue.name);
                    tokio::time::sleep(failed.pause(&subject, deadline, started)?).await;
                }
            }
        }
    }

    /// How full a queue is; none when it is not bounded.
    ///
    /// # Errors
    /// [`TopologyError`] when the server does not answer.
    pub async fn fill(&self, queue: &str) -> Result<Option<QueueFill>, TopologyError> {
        let Ok(Some(max_waiting)) = self.queue(queue).max_waiting(&self.bus).await else { return Ok(None) };
        let waiting = self.bus.count_waiting(queue, u64::MAX).await?;
        Ok(Some(QueueFill { waiting, max_waiting }))
    }

    /// Stores a task in TASKS, when there is room in its queue.
    ///
    /// # Errors
    /// [`PublishError`], as [`Bus::store`]; [`PublishError::QueueFull`] when there was no room in time.
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
        let mut entry = Entry {
            subject,
            headers: self.bus.signed(subject, headers, &payload),
            payload: payload.clone(),
            doubt: true,
            pause: QUEUE_FULL_WAIT_MIN,
        };
        // Of one client's publishes one knocks at a time, in their order: the others would only refuse each other.
        let mut door = queue.turn(deadline).await?;
        loop {
            let tried = match queue.max_waiting(&self.bus).await {
                Ok(None) => {
                    // The limit is gone: those behind need not wait for this one.
                    drop(door);
                    return self.bus.store(subject, headers, payload, deadline).await;
                }
                Ok(Some(max)) => entry.knock(&self.bus, &queue.name, &mut door, max).await,
                Err(failed) => Err(failed),
            };
            match tried {
                Ok(stored) => return Ok(stored),
                Err(failed) => tokio::time::sleep(failed.pause(subject, deadline, started)?).await,
            }
        }
    }
}

impl Queue {
    fn known(&self) -> Option<(Instant, Option<u64>)> {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its limit: as known a moment ago, else as the server says, else as known before.
    async fn max_waiting(&self, bus: &Bus) -> Result<Option<u64>, StoreFailure> {
        let fresh = || self.known().filter(|(at, _)| at.elapsed() < QUEUE_LIMIT_KNOWN_FOR);
        if let Some((_, limit)) = fresh() {
            return Ok(limit);
        }
        let _one_asks = self.asking.lock().await;
        if let Some((_, limit)) = fresh() {
            return Ok(limit);
        }
        match (bus.queue_settings(&self.name).await, self.known()) {
            (Some(settings), _) => {
                // None can wait where none may: `set` refuses it, and a queue that is shut for ever helps nobody.
                let limit = settings.max_waiting.map(|max| max.max(1));
                *self.limit.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), limit));
                Ok(limit)
            }
            (None, Some((_, limit))) => Ok(limit),
            (None, None) => {
                tracing::warn!(queue = %self.name, "nats-server does not tell the queue's limit, asking again");
                Err(StoreFailure::Again(STREAM_FULL_WAIT))
            }
        }
    }

    fn full(&self) -> PublishError {
        let max_waiting = self.known().and_then(|(_, limit)| limit).unwrap_or(0);
        PublishError::QueueFull { queue: self.name.clone(), max_waiting }
    }

    async fn turn(&self, deadline: RetryDeadline) -> Result<MutexGuard<'_, Door>, PublishError> {
        match deadline {
            RetryDeadline::Unlimited => Ok(self.door.lock().await),
            RetryDeadline::Within(limit) => {
                tokio::time::timeout(limit, self.door.lock()).await.map_err(|_| self.full())
            }
        }
    }
}

impl Entry<'_> {
    /// Tries until it is in, or the queue is full.
    async fn knock(&mut self, bus: &Bus, queue: &str, door: &mut Door, max: u64) -> Result<Stored, StoreFailure> {
        let generation = bus.connection.borrow().epoch;
        if generation != door.generation {
            *door = Door { generation, ..Door::default() };
        }
        loop {
            if door.at_most >= max {
                // What is counted now was there, or came, after `last`: it bounds those up to `last` from above.
                let counted = bus.count_waiting(queue, max).await;
                door.at_most = counted.map_err(|_| StoreFailure::Again(STREAM_FULL_WAIT))?;
            }
            if door.at_most >= max {
                return self.wait(bus, queue, max).await;
            }
            let mut headers = self.headers.clone();
            headers.insert(HEADER_EXPECTED_SEQUENCE, door.last.to_string());
            headers.insert(HEADER_EXPECTED_SUBJECT, format!("tasks.{queue}.>"));
            match bus.try_store(self.subject, headers, self.payload.clone()).await {
                Ok(stored) if stored.duplicate => return Ok(stored),
                Ok(stored) => {
                    door.enter(stored.seq);
                    return Ok(stored);
                }
                // Said what it was told: whatever that means, asking at once again does not help.
                Err(StoreFailure::NotLast(newest)) if newest == door.last => {
                    return Err(StoreFailure::Again(STREAM_FULL_WAIT));
                }
                Err(StoreFailure::NotLast(newest)) => door.learn(newest),
                Err(failed) => {
                    self.doubt = true;
                    return Err(failed);
                }
            }
        }
    }

    /// The queue is full; perhaps because this very message is in it.
    async fn wait(&mut self, bus: &Bus, queue: &str, max_waiting: u64) -> Result<Stored, StoreFailure> {
        if self.doubt {
            let mut headers = self.headers.clone();
            headers.insert(HEADER_EXPECTED_ID, crate::random_token());
            match bus.try_store(self.subject, headers, self.payload.clone()).await {
                Ok(stored) => return Ok(stored),
                Err(StoreFailure::NotStored) => self.doubt = false,
                Err(failed) => return Err(failed),
            }
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
    struct Server {
        used: u64,
        there: Vec<u64>,
    }

    impl Server {
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
            let mut server = Server::default();
            let mut admission = [const { Door { last: 0, at_most: 0, generation: 0 } }; 3];
            for (who, what) in steps {
                match (admission.get_mut(who), what) {
                    // A publisher looks, or publishes.
                    (Some(door), _) if door.at_most >= max => door.at_most = server.there.len() as u64,
                    (Some(door), _) if door.last == server.newest() => door.enter(server.store()),
                    (Some(door), _) => door.learn(server.newest()),
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
    fn a_door_is_a_claim_about_the_past() {
        let mut door = Door::default();
        door.learn(5);
        assert_eq!((door.last, door.at_most), (5, 5), "no more than there are sequences");
        door.at_most = 2;
        door.learn(3);
        assert_eq!((door.last, door.at_most), (3, 2), "the newest is gone, nothing came");
        door.enter(9);
        assert_eq!((door.last, door.at_most), (9, 3));
        door.learn(0);
        assert_eq!((door.last, door.at_most), (0, 0));
    }
}

//! What one worker process holds, and what it must know to hold it: leases, acks without an answer, attempts that were
//! settled lately, and the connection generation. `lease` ends leases, `renewal` extends them, `pull` adds them.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::{Notify, watch};

use super::membership_barrier::MembershipBarrier;
use super::ownership::{OwnershipListeners, OwnershipQuery, OwnershipReply};
use super::queue_records::ConsumerRecords;
use super::server_record::ServerRecord;
use super::start_records::StartRecords;
use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::topology::stream_state;
use crate::outcome::Items;
use crate::task::{Origin, Task};
use crate::wire::streams::{STREAM_DUE, STREAM_TASKS};
use crate::worker_record::WORKER_LOST_AFTER;

/// How long the server may take to answer an ack. The renewal sends it again meanwhile, and afterwards.
pub(super) const ACK_ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A gap between two ticks that counts as a pause of this process: a renewal may be late.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(1500);
/// To a server process younger than this, other workers may be on their way back: their heartbeats are not lost yet.
const SERVER_NEW_FOR: Duration = WORKER_LOST_AFTER;
/// Settled attempts that a worker remembers.
const SETTLED_ATTEMPTS_MAX: usize = 16 * 1024;

/// The leases of one worker process, and what is known of its connection.
pub(in crate::bus) struct LeaseTable {
    pub(super) bus: Bus,
    worker: String,
    pub(super) nonce: String,
    pub(super) starts: StartRecords,
    /// Epochs of TASKS and DUE.
    epochs: ByOrigin<RwLock<Arc<str>>>,
    clock: Instant,
    /// When the renewal last ran, in milliseconds of `clock`. If that is long ago, this process was paused.
    renewed_ms: AtomicU64,
    /// Workers that may still hold tasks and are not back since the connection was lost.
    pub(super) barrier: MembershipBarrier,
    /// The connection generation. It grows with every loss, return and pause; a lease of an older generation may have
    /// run out, and must not start.
    generation: AtomicU64,
    /// Whether the server record of this connection was read; nothing is pulled before.
    pub(super) server_known: watch::Sender<bool>,
    /// Messages up to these sequences may have been delivered before by a server that has forgotten it.
    maybe_delivered: ByOrigin<AtomicU64>,
    /// The same of consumers that were deleted and made again.
    pub(super) consumers: ConsumerRecords,
    state: Mutex<LeaseState>,
    /// The keys of the hashes of settled attempts.
    hashers: [RandomState; 2],
    /// Where the server answers acks, under the number of the lease.
    pub(super) acks_inbox: String,
    /// Notified when no ack is unanswered any more.
    pub(super) all_answered: Notify,
    pub(super) listeners: OwnershipListeners,
}

/// A value for TASKS and one for DUE.
struct ByOrigin<T> {
    tasks: T,
    due: T,
}

impl<T> ByOrigin<T> {
    fn get(&self, origin: Origin) -> &T {
        match origin {
            Origin::Tasks => &self.tasks,
            Origin::Due => &self.due,
        }
    }
}

/// A keyed hash of queue, kind, id and attempt.
pub(super) type SettledAttempt = (u64, u64);

pub(super) struct LeaseState {
    next: u64,
    pub(super) held: HashMap<u64, HeldLease>,
    settled: LruCache<SettledAttempt, ()>,
    /// By the number of their lease.
    pub(super) unanswered: HashMap<u64, UnansweredAck>,
}

/// What is known of one held message.
pub(super) struct HeldLease {
    pub(super) queue: String,
    kind: String,
    pub(super) original_id: String,
    pub(super) items: Option<Items>,
    attempt: SettledAttempt,
    pub(super) reply: String,
    pub(super) since: Instant,
    /// The generation in which the message was pulled.
    pub(super) generation: u64,
}

/// An ack that the server has not answered yet. The renewal sends it again for a while.
pub(super) struct UnansweredAck {
    pub(super) queue: String,
    pub(super) original_id: String,
    attempt: SettledAttempt,
    pub(super) reply: String,
    pub(super) sent: Instant,
}

impl LeaseTable {
    pub(super) async fn open(bus: &Bus, worker: &str, nonce: &str) -> Result<Self, BusError> {
        let settled = NonZeroUsize::new(SETTLED_ATTEMPTS_MAX).unwrap_or(NonZeroUsize::MIN);
        Ok(Self {
            bus: bus.clone(),
            worker: worker.to_owned(),
            nonce: nonce.to_owned(),
            starts: StartRecords::open(bus).await?,
            epochs: ByOrigin {
                tasks: RwLock::new(stream_state(bus, STREAM_TASKS).await?.epoch.into()),
                due: RwLock::new(stream_state(bus, STREAM_DUE).await?.epoch.into()),
            },
            clock: Instant::now(),
            renewed_ms: AtomicU64::new(0),
            barrier: MembershipBarrier::default(),
            generation: AtomicU64::new(0),
            server_known: watch::Sender::new(false),
            maybe_delivered: ByOrigin { tasks: AtomicU64::new(u64::MAX), due: AtomicU64::new(u64::MAX) },
            consumers: ConsumerRecords::default(),
            state: Mutex::new(LeaseState {
                next: 0,
                held: HashMap::new(),
                settled: LruCache::new(settled),
                unanswered: HashMap::new(),
            }),
            hashers: [RandomState::new(), RandomState::new()],
            acks_inbox: bus.client.new_inbox(),
            all_answered: Notify::new(),
            listeners: OwnershipListeners::default(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn worker(&self) -> &str {
        &self.worker
    }

    pub(super) fn epoch(&self, origin: Origin) -> Arc<str> {
        self.epochs.get(origin).read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the epochs again: somebody may have deleted a stream, and `setup` made it anew. Its sequences repeat then.
    pub(super) async fn learn_epochs(&self) -> Result<(), BusError> {
        for (origin, name) in [(Origin::Tasks, STREAM_TASKS), (Origin::Due, STREAM_DUE)] {
            let epoch = stream_state(&self.bus, name).await?.epoch;
            if *epoch != *self.epoch(origin) {
                tracing::warn!(stream = name, "the stream was made anew; what was held of it is gone");
                *self.epochs.get(origin).write().unwrap_or_else(PoisonError::into_inner) = epoch.into();
                self.begin_generation();
            }
        }
        Ok(())
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The connection was lost, is back, or this process was paused: leases of before must not start any more.
    pub(super) fn begin_generation(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        #[cfg(feature = "metrics")]
        metrics::counter!("millpond_renewals_failed_total").increment(self.state().held.len() as u64);
    }

    /// Whether pulls may be sent: connected, not just woken from a pause, and the server record is read.
    pub(super) fn may_pull(&self) -> bool {
        *self.server_known.borrow() && self.is_connected() && !self.was_paused()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.bus.connection().borrow().up
    }

    fn clock_ms(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the renewal is so late that this process must have been paused, and leases may have run out.
    pub(super) fn was_paused(&self) -> bool {
        let late_ms = self.clock_ms().saturating_sub(self.renewed_ms.load(Ordering::SeqCst));
        u128::from(late_ms) > PAUSE_MIN.as_millis()
    }

    /// Notes that the renewal runs now.
    pub(super) fn note_renewal(&self) {
        self.renewed_ms.store(self.clock_ms(), Ordering::SeqCst);
    }

    /// The connection may be with another server now: everything may have been delivered before, until its record is read.
    pub(super) fn forget_server(&self) {
        self.server_known.send_replace(false);
        self.maybe_delivered.tasks.store(u64::MAX, Ordering::SeqCst);
        self.maybe_delivered.due.store(u64::MAX, Ordering::SeqCst);
    }

    pub(super) fn learn_server(&self, record: ServerRecord) {
        self.maybe_delivered.tasks.store(record.tasks, Ordering::SeqCst);
        self.maybe_delivered.due.store(record.due, Ordering::SeqCst);
        // Other workers are on their way back to a server that has just started, also when this worker itself is new.
        let is_new = u128::from(crate::now_ms().abs_diff(record.seen_ms)) < SERVER_NEW_FOR.as_millis();
        if is_new && !self.barrier.is_open() {
            self.barrier.begin(&self.bus, &self.worker, record.seen_ms);
        }
        self.server_known.send_replace(true);
    }

    /// Whether a message may have been delivered before, by a server that has forgotten it or a consumer that was deleted.
    pub(super) fn maybe_delivered_before(&self, queue: &str, origin: Origin, seq: u64) -> bool {
        seq <= self.maybe_delivered.get(origin).load(Ordering::SeqCst) || self.consumers.covers(queue, origin, seq)
    }

    /// Listens for ownership queries about a task. What is published after this returns reaches this worker too.
    pub(super) async fn listen(self: &Arc<Self>, queue: &str, original_id: &str) {
        let weak = Arc::downgrade(self);
        let reply = move |query: &OwnershipQuery| Some(weak.upgrade()?.reply_to_other(query));
        self.listeners.listen(&self.bus, &self.worker, (queue, original_id), reply).await;
    }

    /// What this worker replies to the query of another one, and the kinds that it holds.
    pub(super) fn reply_to_other(&self, query: &OwnershipQuery) -> (OwnershipReply, String) {
        (self.reply_to(query, None), self.kinds_held(query))
    }

    /// What this worker replies to an ownership query; `except` is the querying lease when this worker asks itself.
    pub(super) fn reply_to(&self, query: &OwnershipQuery, except: Option<u64>) -> OwnershipReply {
        let state = self.state();
        let holds = state.held.iter().any(|(number, held)| {
            Some(*number) != except
                && held.queue == query.queue
                && query.kind.as_ref().is_none_or(|kind| *kind == held.kind)
                && held.original_id == query.original_id
                && match (held.items, query.items) {
                    (Some(a), Some(b)) => a.overlaps(&b),
                    _ => true,
                }
        });
        if holds {
            return OwnershipReply::Held;
        }
        // Only a person asks without a kind, and looks for what is held.
        let Some(kind) = query.kind.clone() else { return OwnershipReply::Unknown };
        let attempt = self.attempt(&query.queue, &kind, &query.id, query.attempt);
        // Thousands may have been settled since: an ack without an answer is known for as long as it is sent again.
        let is_unanswered = || state.unanswered.values().any(|ack| ack.attempt == attempt);
        if state.settled.contains(&attempt) || is_unanswered() {
            OwnershipReply::Settled
        } else {
            OwnershipReply::Unknown
        }
    }

    /// The kinds of the tasks of a query's queue and id that this worker holds, with commas.
    fn kinds_held(&self, query: &OwnershipQuery) -> String {
        let state = self.state();
        let of_id = |held: &&HeldLease| held.queue == query.queue && held.original_id == query.original_id;
        let kinds: BTreeSet<&str> = state.held.values().filter(of_id).map(|held| held.kind.as_str()).collect();
        let is_asked = |kind: &&str| query.kind.as_ref().is_none_or(|asked| asked == kind);
        kinds.into_iter().filter(is_asked).collect::<Vec<_>>().join(",")
    }

    /// Adds a message that was pulled in `generation`; the number of its lease.
    pub(super) fn add(&self, task: &Task, attempt: SettledAttempt, reply: String, generation: u64) -> u64 {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        let held = HeldLease {
            queue: task.subject.queue.clone(),
            kind: task.subject.kind.clone(),
            original_id: task.original_id.clone(),
            items: task.items,
            attempt,
            reply,
            since: Instant::now(),
            generation,
        };
        state.held.insert(number, held);
        number
    }

    /// Whether this attempt was settled here lately.
    pub(super) fn is_settled(&self, attempt: SettledAttempt) -> bool {
        self.state().settled.contains(&attempt)
    }

    /// Remembers that this attempt is settled.
    pub(super) fn mark_settled(&self, attempt: SettledAttempt) {
        self.state().settled.put(attempt, ());
    }

    /// From now on the leases are no longer held, and their acks are awaited; where these go, in order.
    pub(super) fn await_acks<'a>(&self, leases: impl Iterator<Item = &'a u64>) -> Vec<(u64, String)> {
        let (mut state, sent) = (self.state(), Instant::now());
        let mut acks = Vec::new();
        for number in leases {
            let Some(held) = state.held.remove(number) else { continue };
            let HeldLease { queue, original_id, attempt, reply, .. } = held;
            acks.push((*number, reply.clone()));
            state.unanswered.insert(*number, UnansweredAck { queue, original_id, attempt, reply, sent });
        }
        acks
    }

    /// Sends an ack, or sends it again.
    pub(super) async fn send_ack(&self, number: u64, reply: String) {
        let answer_to = [&self.acks_inbox, ".", &number.to_string()].concat();
        let _ = self.bus.client.publish_with_reply(reply, answer_to, Bytes::new()).await;
    }

    pub(super) fn attempt_of(&self, task: &Task) -> SettledAttempt {
        self.attempt(&task.subject.queue, &task.subject.kind, &task.id(), task.attempt)
    }

    fn attempt(&self, queue: &str, kind: &str, id: &str, attempt: u32) -> SettledAttempt {
        let [one, other] = self.hashers.each_ref().map(|hasher| hasher.hash_one((queue, kind, id, attempt)));
        (one, other)
    }
}

//! Leases: the right to run one attempt, kept alive while this process lives and reaches the server, and ended once.
//! [`Leases`] extends what is held, notices pauses and reconnects, and remembers what was settled; [`Lease`] is one
//! held message: `admit` (the door), `start`, then exactly one of the methods that take `self`.
//! The order of effects is docs/protocol.md's; the messages come from bus/consume/pull.rs; bus/consume/renewal.rs extends them.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::bus::Bus;
use crate::bus::consume::membership_barrier::MembershipBarrier;
use crate::bus::consume::ownership::{OwnershipListeners, OwnershipQuery, OwnershipReply, query_others};
use crate::bus::consume::renewal;
use crate::bus::consume::server_record::ServerRecord;
use crate::bus::consume::start_records::{StartEntry, StartRecords};
use crate::bus::topology::{TopologyError, stream_state};
use crate::failpoint;
use crate::limits::LEASE_SETTLED_KEEP;
use crate::outcome::Items;
use crate::task::{Origin, Task};
use crate::wire::headers::HEADER_ATTEMPT;
use crate::wire::streams::{STREAM_DUE, STREAM_TASKS};
use crate::worker_record::WORKER_LOST_AFTER;

/// Starts whose worker died before a task counts as one that kills workers: the next delivery dead-letters (or splits) it.
const STARTS_MAX: usize = 3;
/// Settled ids that a worker remembers.
const SETTLED_IDS_MAX: usize = 16 * 1024;
/// A gap between two ticks that counts as a pause of this process: a renewal may be late.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(1500);
/// To a server process younger than this, other workers may be on their way back: as long as their heartbeats are not lost.
const SERVER_NEW_FOR: Duration = WORKER_LOST_AFTER;
/// How long a confirmed ack waits for its answer before it is left to the next extension.
const ACK_ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Everything that one worker process holds. Cheap to clone.
#[derive(Clone)]
pub struct Leases {
    pub(in crate::bus) shared: Arc<LeaseTable>,
}

pub(in crate::bus) struct LeaseTable {
    pub(in crate::bus) bus: Bus,
    worker: String,
    nonce: String,
    pub(in crate::bus) starts: StartRecords,
    pub(in crate::bus) epoch_tasks: String,
    pub(in crate::bus) epoch_due: String,
    clock: Instant,
    /// When the keeper last looked, in milliseconds of `clock`: far behind means that this process was paused.
    looked_ms: AtomicU64,
    /// Who is not back yet, after the connection came back or was made to a server that had just started.
    pub(in crate::bus) roll_call: MembershipBarrier,
    /// Grows with every loss, return and pause: what was delivered in an older generation lets go before its start.
    pub(in crate::bus) generation: AtomicU64,
    /// Whether the server record of this connection is read; without it nothing is pulled.
    pub(in crate::bus) known: watch::Sender<bool>,
    /// Messages up to these sequences may have been delivered before by a server that forgot it.
    old_tasks: AtomicU64,
    old_due: AtomicU64,
    state: Mutex<State>,
    pub(in crate::bus) listeners: OwnershipListeners,
}

pub(in crate::bus) struct State {
    next: u64,
    pub(in crate::bus) held: HashMap<u64, Held>,
    settled: LruCache<(String, String, u32), ()>,
    pub(in crate::bus) unanswered: Vec<Unanswered>,
}

pub(in crate::bus) struct Held {
    pub(in crate::bus) queue: String,
    pub(in crate::bus) original_id: String,
    items: Option<Items>,
    pub(in crate::bus) reply: String,
    since: Instant,
    generation: u64,
}

/// An ack that the server did not answer: sent again with each extension, for a while.
pub(in crate::bus) struct Unanswered {
    pub(in crate::bus) queue: String,
    pub(in crate::bus) original_id: String,
    pub(in crate::bus) reply: String,
    pub(in crate::bus) until: Instant,
}

/// One held message. Dropped without an end, it is simply no longer extended: the server gives it to somebody else.
pub struct Lease {
    shared: Arc<LeaseTable>,
    number: u64,
    origin: Origin,
    seq: u64,
    stored_ms: i64,
    deliveries: i64,
    wrote_start: bool,
    /// What is to be done. Boxed: a lease moves through every stage of a worker.
    pub task: Box<Task>,
}

/// What the door says.
#[derive(Debug)]
pub enum Admission {
    /// Run it.
    Start,
    /// Somebody else holds it and lives: no ack, no NAK, no extension.
    OwnedElsewhere,
    /// It was settled, or a later attempt of it waits: acknowledge it.
    Acknowledge,
    /// It was started as often as allowed and each start ended in a death.
    StartsExhausted(Vec<StartEntry>),
}

impl Leases {
    /// StartRecords to keep leases for a worker; the keeper runs in `tasks` until they are aborted.
    ///
    /// # Errors
    /// [`TopologyError`]; most likely setup has not run yet.
    pub async fn start(bus: &Bus, worker: &str, nonce: &str, tasks: &mut JoinSet<()>) -> Result<Self, TopologyError> {
        let shared = Arc::new(LeaseTable {
            bus: bus.clone(),
            worker: worker.to_owned(),
            nonce: nonce.to_owned(),
            starts: StartRecords::open(bus).await?,
            epoch_tasks: stream_state(bus, STREAM_TASKS).await?.epoch,
            epoch_due: stream_state(bus, STREAM_DUE).await?.epoch,
            clock: Instant::now(),
            looked_ms: AtomicU64::new(0),
            roll_call: MembershipBarrier::default(),
            generation: AtomicU64::new(0),
            known: watch::Sender::new(false),
            old_tasks: AtomicU64::new(u64::MAX),
            old_due: AtomicU64::new(u64::MAX),
            state: Mutex::new(State {
                next: 0,
                held: HashMap::new(),
                settled: LruCache::new(NonZeroUsize::new(SETTLED_IDS_MAX).unwrap_or(NonZeroUsize::MIN)),
                unanswered: Vec::new(),
            }),
            listeners: OwnershipListeners::default(),
        });
        shared.learn(bus.server_record().await?);
        tasks.spawn(renewal::keep(shared.clone()));
        tasks.spawn(renewal::sweep(shared.clone()));
        Ok(Self { shared })
    }

    /// Returns when this worker extends what it holds, listens for it, and knows the server it is connected to.
    pub async fn ready(&self) {
        let _ = self.shared.known.subscribe().wait_for(|known| *known).await;
    }

    /// Leases held now, running or not.
    #[must_use]
    pub fn held(&self) -> usize {
        self.shared.state().held.len()
    }

    /// Roots that this worker answers `lease.who` for.
    #[must_use]
    pub fn listening(&self) -> usize {
        self.shared.listeners.len()
    }

    /// Acks without an answer so far.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.shared.state().unanswered.len()
    }
}

impl LeaseTable {
    pub(in crate::bus) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::bus) fn worker(&self) -> &str {
        &self.worker
    }

    pub(in crate::bus) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Whether pulls may be sent: connected, not just woken, and it is known what this server may have forgotten.
    pub(in crate::bus) fn may_pull(&self) -> bool {
        *self.known.borrow() && self.connection_up() && !self.was_paused()
    }

    fn connection_up(&self) -> bool {
        self.bus.connection.borrow().up
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(in crate::bus) fn was_paused(&self) -> bool {
        let now = self.now_ms();
        u128::from(now.saturating_sub(self.looked_ms.load(Ordering::SeqCst))) > PAUSE_MIN.as_millis()
    }

    pub(in crate::bus) fn look(&self) {
        self.looked_ms.store(self.now_ms(), Ordering::SeqCst);
    }

    pub(in crate::bus) fn forget_server(&self) {
        self.known.send_replace(false);
        self.old_tasks.store(u64::MAX, Ordering::SeqCst);
        self.old_due.store(u64::MAX, Ordering::SeqCst);
    }

    pub(in crate::bus) fn learn(&self, record: ServerRecord) {
        self.old_tasks.store(record.tasks, Ordering::SeqCst);
        self.old_due.store(record.due, Ordering::SeqCst);
        // To a server that has just started others are on their way back, also when this worker itself is new.
        let is_new = u128::from(crate::now_ms().abs_diff(record.seen_ms)) < SERVER_NEW_FOR.as_millis();
        if is_new && !self.roll_call.is_open() {
            self.roll_call.begin(&self.bus, &self.worker, record.seen_ms);
        }
        self.known.send_replace(true);
    }

    /// What this worker says about a message; `except` is the asker's own hold when it asks itself.
    pub(in crate::bus) fn answer_for(&self, question: &OwnershipQuery, except: Option<u64>) -> OwnershipReply {
        let state = self.state();
        let holds = state.held.iter().any(|(number, held)| {
            Some(*number) != except
                && held.queue == question.queue
                && held.original_id == question.original_id
                && match (held.items, question.items) {
                    (Some(a), Some(b)) => a.overlaps(&b),
                    _ => true,
                }
        });
        if holds {
            return OwnershipReply::Held;
        }
        let key = (question.queue.clone(), question.id.clone(), question.attempt);
        if state.settled.contains(&key) { OwnershipReply::Settled } else { OwnershipReply::Silence }
    }

    /// Takes a delivered message into the hold. `pulled_in` is the generation of the pull that brought it.
    pub(in crate::bus) fn hold(self: &Arc<Self>, task: Task, place: Delivery, pulled_in: u64) -> Lease {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        let held = Held {
            queue: task.subject.queue.clone(),
            original_id: task.original_id.clone(),
            items: task.items,
            reply: place.reply,
            since: Instant::now(),
            generation: pulled_in,
        };
        state.held.insert(number, held);
        drop(state);
        let Delivery { origin, seq, stored_ms, deliveries, .. } = place;
        Lease {
            shared: self.clone(),
            number,
            origin,
            seq,
            stored_ms,
            deliveries,
            wrote_start: false,
            task: Box::new(task),
        }
    }
}

/// Where a delivered message lies, and where its acks go.
pub(in crate::bus) struct Delivery {
    pub(in crate::bus) origin: Origin,
    pub(in crate::bus) seq: u64,
    pub(in crate::bus) stored_ms: i64,
    pub(in crate::bus) deliveries: i64,
    pub(in crate::bus) reply: String,
}

impl Lease {
    /// Whether the lease may have run out under us: paused or cut off since the delivery. It is never NAKed then.
    #[must_use]
    pub fn was_cut_off(&self) -> bool {
        let generation = self.shared.state().held.get(&self.number).map(|h| h.generation);
        generation != Some(self.shared.generation()) || self.shared.was_paused() || !self.shared.connection_up()
    }

    /// Whether this attempt of it was settled here a moment ago.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let key = self.key();
        self.shared.state().settled.contains(&key)
    }

    /// When it was delivered.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.shared.state().held.get(&self.number).map_or_else(Instant::now, |h| h.since)
    }

    /// Whether it was delivered for the first time, as far as the server knows.
    #[must_use]
    pub fn is_first_delivery(&self) -> bool {
        self.deliveries == 1
    }

    /// Holds only these items of it from now on: the others are about to be published again.
    pub fn shrink(&self, items: Items) {
        if let Some(held) = self.shared.state().held.get_mut(&self.number) {
            held.items = Some(items);
        }
    }

    /// Its sequence in TASKS or DUE.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// When the server stored this message (not its original id), Unix time in milliseconds.
    #[must_use]
    pub fn stored_ms(&self) -> i64 {
        self.stored_ms
    }

    /// Whether it came from DUE.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.origin == Origin::Due
    }

    fn key(&self) -> (String, String, u32) {
        (self.task.subject.queue.clone(), self.task.id(), self.task.attempt)
    }

    /// Whether others must be asked before it may start: it may be a copy of what somebody holds.
    #[must_use]
    pub fn needs_ownership_query(&self) -> bool {
        let old = match self.origin {
            Origin::Tasks => &self.shared.old_tasks,
            Origin::Due => &self.shared.old_due,
        };
        self.deliveries > 1 || self.task.republished || self.seq <= old.load(Ordering::SeqCst)
    }

    fn start_key(&self) -> String {
        match self.origin {
            Origin::Tasks => format!("{STREAM_TASKS}.{}.{}", self.shared.epoch_tasks, self.seq),
            Origin::Due => format!("{STREAM_DUE}.{}.{}", self.shared.epoch_due, self.seq),
        }
    }

    fn started_by(&self) -> String {
        format!("{}-{}", self.shared.nonce, self.number)
    }

    /// The door: whether this delivery may run, when it is not settled ([`Lease::is_settled`]). A first delivery of a first copy costs nothing here.
    ///
    /// # Errors
    /// [`TopologyError`] when the server does not answer; let go of the lease then.
    pub async fn admit(&mut self) -> Result<Admission, TopologyError> {
        if !self.needs_ownership_query() {
            return Ok(Admission::Start);
        }
        failpoint::hit("admit.before_ask");
        let question = OwnershipQuery {
            queue: self.task.subject.queue.clone(),
            original_id: self.task.original_id.clone(),
            id: self.task.id(),
            items: self.task.items,
            attempt: self.task.attempt,
        };
        // Who asks listens first, so that of two who query_others at once each hears of the other.
        self.shared.listeners.listen(&self.shared, &question.queue, &question.original_id).await;
        let mut answer = self.shared.answer_for(&question, Some(self.number));
        if answer == OwnershipReply::Silence {
            answer = query_others(&self.shared.bus, &question).await;
        }
        // After a restart of the server whoever holds it may be back later than this worker.
        if answer == OwnershipReply::Silence && self.shared.roll_call.is_awaited(&question.queue) {
            tracing::debug!(task_id = %self.task.id(), "nobody holds it yet; others may be on their way back");
            self.shared.roll_call.all_back(&question.queue).await;
            answer = query_others(&self.shared.bus, &question).await;
        }
        failpoint::hit("admit.asked");
        match answer {
            OwnershipReply::Held => return Ok(Admission::OwnedElsewhere),
            OwnershipReply::Settled => return Ok(Admission::Acknowledge),
            OwnershipReply::Silence => {}
        }
        let entry = StartEntry { by: self.started_by(), worker: self.shared.worker.clone(), at_ms: crate::now_ms() };
        let before = self.shared.starts.add(&self.start_key(), &entry, STARTS_MAX).await?;
        if before.len() >= STARTS_MAX {
            return Ok(Admission::StartsExhausted(before));
        }
        self.wrote_start = true;
        failpoint::hit("admit.recorded");
        let later = !self.task.is_batch() && self.later_attempt_waits().await?;
        Ok(if later { Admission::Acknowledge } else { Admission::Start })
    }

    async fn later_attempt_waits(&self) -> Result<bool, TopologyError> {
        let subject = self.task.subject.sched(&self.task.id());
        let subject = format!("$JS.API.DIRECT.GET.{STREAM_DUE}.{subject}");
        let asked = self.shared.bus.client.request(subject, Bytes::new()).await;
        let message = asked.map_err(|e| TopologyError::new("a look at waiting retries", &e))?;
        if message.status.is_some_and(|s| s != async_nats::StatusCode::OK) {
            return Ok(false);
        }
        let attempt =
            message.headers.as_ref().and_then(|h| h.get(HEADER_ATTEMPT)).and_then(|v| v.as_str().parse().ok());
        Ok(attempt.is_some_and(|a: u32| a > self.task.attempt))
    }

    /// Whether it may start now. False: it was paused or cut off since its delivery; [`Lease::abandon`] of it.
    #[must_use]
    pub fn start(&self) -> bool {
        !self.was_cut_off()
    }

    /// Remembers that this attempt is settled: its outcome is stored. A copy that comes again is acknowledged.
    pub fn mark_settled(&self) {
        let key = self.key();
        self.shared.state().settled.put(key, ());
    }

    /// Ends it: acknowledged, and the server's answer awaited; then its start record goes.
    pub async fn complete(self) {
        let answered = self.ack().await;
        failpoint::hit("settle.acked");
        // Boxed, because most leases need neither.
        if self.wrote_start || self.deliveries > 1 {
            Box::pin(self.remove_start()).await;
        }
        if !answered {
            Box::pin(self.keep_unanswered()).await;
        }
    }

    async fn remove_start(&self) {
        let key = self.start_key();
        let removed = if self.was_cut_off() {
            self.shared.starts.take_back(&key, &self.started_by()).await
        } else {
            self.shared.starts.remove(&key).await
        };
        if let Err(error) = removed {
            tracing::debug!(%error, "start record stays until it is swept");
        }
    }

    async fn ack(&self) -> bool {
        let Some(reply) = self.shared.state().held.get(&self.number).map(|h| h.reply.clone()) else { return true };
        let request = async_nats::Request::new().timeout(Some(ACK_ANSWER_WAIT));
        // Boxed: the client's future is large, and each task moves all of its own.
        Box::pin(self.shared.bus.client.send_request(reply, request)).await.is_ok()
    }

    async fn keep_unanswered(&self) {
        let (queue, original_id) = (&self.task.subject.queue, &self.task.original_id);
        {
            let mut state = self.shared.state();
            let Some(reply) = state.held.get(&self.number).map(|h| h.reply.clone()) else { return };
            let until = Instant::now() + LEASE_SETTLED_KEEP;
            state.unanswered.push(Unanswered { queue: queue.clone(), original_id: original_id.clone(), reply, until });
        }
        self.shared.listeners.listen(&self.shared, queue, original_id).await;
    }

    /// Gives it back unstarted, to be delivered again after `delay`. A lease that was cut off is only let go of.
    pub async fn release(self, delay: Duration) {
        self.take_back_start().await;
        let reply = self.shared.state().held.get(&self.number).map(|h| h.reply.clone());
        if let Some(reply) = reply
            && !self.was_cut_off()
        {
            let nak =
                if delay.is_zero() { "-NAK".to_owned() } else { format!("-NAK {{\"delay\": {}}}", delay.as_nanos()) };
            let _ = self.shared.bus.client.publish(reply, Bytes::from(nak)).await;
        }
    }

    /// Lets the lease run out: what was cut off before its start takes back its own start entry and says nothing.
    pub async fn abandon(self) {
        self.take_back_start().await;
    }

    async fn take_back_start(&self) {
        if self.wrote_start
            && let Err(error) = self.shared.starts.take_back(&self.start_key(), &self.started_by()).await
        {
            tracing::debug!(%error, "a start that never was stays counted");
        }
    }

    /// Somebody else holds it: forget it without a word.
    pub fn leave_to_owner(self) {}
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.state().held.remove(&self.number);
    }
}

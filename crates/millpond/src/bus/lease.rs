//! Leases: the right to run one attempt, kept alive while this process lives and reaches the server, and ended once.
//! [`Leases`] extends what is held, notices pauses and reconnects, and remembers what was settled; [`Lease`] is one
//! held message: `admit` (the door), `start`, then exactly one of the methods that take `self`.
//! The order of effects is docs/protocol.md's; the messages come from bus/pull.rs; bus/keep.rs extends them.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::records::{ServerRecord, StartEntry, Starts};
use super::roll_call::RollCall;
use super::topology::{STREAM_DUE, STREAM_TASKS, TopologyError, stream_state};
use super::who::{Answer, Listeners, Question, ask};
use super::{Bus, keep};
use crate::failpoint;
use crate::limits::{HEARTBEAT_LOST_AFTER, LEASE_SETTLED_KEEP, PAUSE_MIN, SETTLED_IDS_MAX, STARTS_MAX};
use crate::outcome::Items;
use crate::task::{HEADER_ATTEMPT, Origin, Task};

/// How long a confirmed ack waits for its answer before it is left to the next extension.
const ACK_ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Everything that one worker process holds. Cheap to clone.
#[derive(Clone)]
pub struct Leases {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) bus: Bus,
    worker: String,
    nonce: String,
    pub(super) starts: Starts,
    pub(super) epoch_tasks: String,
    pub(super) epoch_due: String,
    clock: Instant,
    /// When the keeper last looked, in milliseconds of `clock`: far behind means that this process was paused.
    looked_ms: AtomicU64,
    /// Who is not back yet, after the connection came back or was made to a server that had just started.
    pub(super) roll_call: RollCall,
    /// Grows with every loss, return and pause: what was delivered in an older era lets go before its start.
    pub(super) era: AtomicU64,
    /// Whether the server record of this connection is read; without it nothing is pulled.
    pub(super) known: watch::Sender<bool>,
    /// Messages up to these sequences may have been delivered before by a server that forgot it.
    old_tasks: AtomicU64,
    old_due: AtomicU64,
    state: Mutex<State>,
    pub(super) listeners: Listeners,
}

pub(super) struct State {
    next: u64,
    pub(super) held: HashMap<u64, Held>,
    settled: LruCache<(String, String, u32), ()>,
    pub(super) unanswered: Vec<Unanswered>,
}

pub(super) struct Held {
    pub(super) queue: String,
    pub(super) root: String,
    items: Option<Items>,
    pub(super) reply: String,
    since: Instant,
    era: u64,
}

/// An ack that the server did not answer: sent again with each extension, for a while.
pub(super) struct Unanswered {
    pub(super) queue: String,
    pub(super) root: String,
    pub(super) reply: String,
    pub(super) until: Instant,
}

/// One held message. Dropped without an end, it is simply no longer extended: the server gives it to somebody else.
pub struct Lease {
    shared: Arc<Shared>,
    number: u64,
    origin: Origin,
    seq: u64,
    stored_ms: i64,
    deliveries: i64,
    wrote_start: bool,
    /// What is to be done.
    pub task: Task,
}

/// What the door says.
#[derive(Debug)]
pub enum Admission {
    /// Run it.
    Start,
    /// Somebody else holds it and lives: no ack, no NAK, no extension.
    LeaveAlone,
    /// It was settled, or a later attempt of it waits: acknowledge it.
    Stop,
    /// It was started as often as allowed and each start ended in a death.
    Killer(Vec<StartEntry>),
}

impl Leases {
    /// Starts to keep leases for a worker; the keeper runs in `tasks` until they are aborted.
    ///
    /// # Errors
    /// [`TopologyError`]; most likely setup has not run yet.
    pub async fn start(bus: &Bus, worker: &str, nonce: &str, tasks: &mut JoinSet<()>) -> Result<Self, TopologyError> {
        let shared = Arc::new(Shared {
            bus: bus.clone(),
            worker: worker.to_owned(),
            nonce: nonce.to_owned(),
            starts: Starts::open(bus).await?,
            epoch_tasks: stream_state(bus, STREAM_TASKS).await?.epoch,
            epoch_due: stream_state(bus, STREAM_DUE).await?.epoch,
            clock: Instant::now(),
            looked_ms: AtomicU64::new(0),
            roll_call: RollCall::default(),
            era: AtomicU64::new(0),
            known: watch::Sender::new(false),
            old_tasks: AtomicU64::new(u64::MAX),
            old_due: AtomicU64::new(u64::MAX),
            state: Mutex::new(State {
                next: 0,
                held: HashMap::new(),
                settled: LruCache::new(NonZeroUsize::new(SETTLED_IDS_MAX).unwrap_or(NonZeroUsize::MIN)),
                unanswered: Vec::new(),
            }),
            listeners: Listeners::default(),
        });
        shared.learn(bus.server_record().await?);
        tasks.spawn(keep::keep(shared.clone()));
        tasks.spawn(keep::sweep(shared.clone()));
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

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn worker(&self) -> &str {
        &self.worker
    }

    pub(super) fn era(&self) -> u64 {
        self.era.load(Ordering::SeqCst)
    }

    /// Whether pulls may be sent: connected, not just woken, and it is known what this server may have forgotten.
    pub(super) fn may_pull(&self) -> bool {
        *self.known.borrow() && self.connection_up() && !self.was_paused()
    }

    fn connection_up(&self) -> bool {
        self.bus.connection.borrow().up
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn was_paused(&self) -> bool {
        let now = self.now_ms();
        u128::from(now.saturating_sub(self.looked_ms.load(Ordering::SeqCst))) > PAUSE_MIN.as_millis()
    }

    pub(super) fn look(&self) {
        self.looked_ms.store(self.now_ms(), Ordering::SeqCst);
    }

    pub(super) fn forget_server(&self) {
        self.known.send_replace(false);
        self.old_tasks.store(u64::MAX, Ordering::SeqCst);
        self.old_due.store(u64::MAX, Ordering::SeqCst);
    }

    pub(super) fn learn(&self, record: ServerRecord) {
        self.old_tasks.store(record.tasks, Ordering::SeqCst);
        self.old_due.store(record.due, Ordering::SeqCst);
        // To a server that has just started others are on their way back, also when this worker itself is new.
        let is_new = u128::from(crate::now_ms().abs_diff(record.seen_ms)) < HEARTBEAT_LOST_AFTER.as_millis();
        if is_new && !self.roll_call.is_open() {
            self.roll_call.begin(&self.bus, &self.worker, record.seen_ms);
        }
        self.known.send_replace(true);
    }

    /// What this worker says about a message; `except` is the asker's own hold when it asks itself.
    pub(super) fn answer_for(&self, question: &Question, except: Option<u64>) -> Answer {
        let state = self.state();
        let holds = state.held.iter().any(|(number, held)| {
            Some(*number) != except
                && held.queue == question.queue
                && held.root == question.root
                && match (held.items, question.items) {
                    (Some(a), Some(b)) => a.overlaps(&b),
                    _ => true,
                }
        });
        if holds {
            return Answer::Held;
        }
        let key = (question.queue.clone(), question.id.clone(), question.attempt);
        if state.settled.contains(&key) { Answer::Settled } else { Answer::Silence }
    }

    /// Takes a delivered message into the hold. `asked_in` is the era of the pull that brought it.
    pub(super) fn hold(self: &Arc<Self>, task: Task, place: Place, asked_in: u64) -> Lease {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        let held = Held {
            queue: task.subject.queue.clone(),
            root: task.root.clone(),
            items: task.items,
            reply: place.reply,
            since: Instant::now(),
            era: asked_in,
        };
        state.held.insert(number, held);
        drop(state);
        let Place { origin, seq, stored_ms, deliveries, .. } = place;
        Lease { shared: self.clone(), number, origin, seq, stored_ms, deliveries, wrote_start: false, task }
    }
}

/// Where a delivered message lies, and where its acks go.
pub(super) struct Place {
    pub(super) origin: Origin,
    pub(super) seq: u64,
    pub(super) stored_ms: i64,
    pub(super) deliveries: i64,
    pub(super) reply: String,
}

impl Lease {
    /// Whether the lease may have run out under us: paused or cut off since the delivery. It is never NAKed then.
    #[must_use]
    pub fn was_cut_off(&self) -> bool {
        let era = self.shared.state().held.get(&self.number).map(|h| h.era);
        era != Some(self.shared.era()) || self.shared.was_paused() || !self.shared.connection_up()
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

    /// When the server stored this message (not its root), Unix time in milliseconds.
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
    pub fn must_ask(&self) -> bool {
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
        if !self.must_ask() {
            return Ok(Admission::Start);
        }
        failpoint::hit("door.before_ask");
        let question = Question {
            queue: self.task.subject.queue.clone(),
            root: self.task.root.clone(),
            id: self.task.id(),
            items: self.task.items,
            attempt: self.task.attempt,
        };
        // Who asks listens first, so that of two who ask at once each hears of the other.
        self.shared.listeners.listen(&self.shared, &question.queue, &question.root).await;
        let mut answer = self.shared.answer_for(&question, Some(self.number));
        if answer == Answer::Silence {
            answer = ask(&self.shared.bus, &question).await;
        }
        // After a restart of the server whoever holds it may be back later than this worker.
        if answer == Answer::Silence && self.shared.roll_call.is_awaited(&question.queue) {
            tracing::debug!(task_id = %self.task.id(), "nobody holds it yet; others may be on their way back");
            self.shared.roll_call.all_back(&question.queue).await;
            answer = ask(&self.shared.bus, &question).await;
        }
        failpoint::hit("door.asked");
        match answer {
            Answer::Held => return Ok(Admission::LeaveAlone),
            Answer::Settled => return Ok(Admission::Stop),
            Answer::Silence => {}
        }
        let entry = StartEntry { by: self.started_by(), worker: self.shared.worker.clone(), at_ms: crate::now_ms() };
        let before = self.shared.starts.add(&self.start_key(), &entry, STARTS_MAX).await?;
        if before.len() >= STARTS_MAX {
            return Ok(Admission::Killer(before));
        }
        self.wrote_start = true;
        failpoint::hit("door.recorded");
        let later = !self.task.is_batch() && self.later_attempt_waits().await?;
        Ok(if later { Admission::Stop } else { Admission::Start })
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

    /// Whether it may start now. False: it was paused or cut off since its delivery; [`Lease::let_go`] of it.
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
        self.shared.bus.client.send_request(reply, request).await.is_ok()
    }

    async fn keep_unanswered(&self) {
        let (queue, root) = (&self.task.subject.queue, &self.task.root);
        {
            let mut state = self.shared.state();
            let Some(reply) = state.held.get(&self.number).map(|h| h.reply.clone()) else { return };
            let until = Instant::now() + LEASE_SETTLED_KEEP;
            state.unanswered.push(Unanswered { queue: queue.clone(), root: root.clone(), reply, until });
        }
        self.shared.listeners.listen(&self.shared, queue, root).await;
    }

    /// Gives it back unstarted, to be delivered again after `delay`. A lease that was cut off is only let go of.
    pub async fn hand_back(self, delay: Duration) {
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
    pub async fn let_go(self) {
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
    pub fn leave_alone(self) {}
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.state().held.remove(&self.number);
    }
}

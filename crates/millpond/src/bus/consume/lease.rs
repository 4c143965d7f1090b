//! Leases: the right to run one attempt, kept alive while this process lives and reaches the server, and ended once.
//! [`Lease`] is one held message: `admit` checks whether it may run, `start` whether it may still begin, and then exactly
//! one of the methods that take `self` ends it. The order of effects is that of docs/protocol.md. Messages come from
//! bus/consume/pull.rs, bus/consume/renewal.rs extends them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::lease_table::{ACK_ANSWER_WITHIN, LeaseTable, SettledAttempt};
use super::ownership::{OwnershipQuery, OwnershipReply, query_all_others, query_others, reply_to_all};
use super::renewal;
use super::start_records::StartEntry;
use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::subscription::Subscription;
use crate::failpoint;
use crate::limits::STARTS_MAX;
use crate::outcome::Items;
use crate::task::{Origin, Task};
use crate::wire::headers::HEADER_ATTEMPT;
use crate::wire::streams::{STREAM_DUE, STREAM_TASKS};
use crate::wire::subject;

/// Everything that one worker process holds. Cheap to clone.
#[derive(Clone)]
pub struct Leases {
    pub(super) table: Arc<LeaseTable>,
}

/// One held message. If it is dropped without an end, it is no longer extended, and the server gives it to another worker.
pub struct Lease {
    table: Arc<LeaseTable>,
    number: u64,
    origin: Origin,
    seq: u64,
    stored_ms: i64,
    deliveries: i64,
    /// No worker holds it that was asked: whoever had it may have died of it.
    is_orphan: bool,
    /// How often its worker has died so far, where that is twice or more.
    suspicion: Option<Suspicion>,
    wrote_start: bool,
    attempt: SettledAttempt,
    /// The work. Boxed: a lease moves through every stage of a worker.
    pub task: Box<Task>,
}

/// Where a delivered message lies, and where its acks go.
pub(super) struct Delivery {
    pub(super) origin: Origin,
    pub(super) seq: u64,
    pub(super) stored_ms: i64,
    pub(super) deliveries: i64,
    pub(super) reply: String,
}

/// Whether a delivered message may run.
#[derive(Debug)]
pub enum Admission {
    /// It may start.
    Start,
    /// Another live worker holds it: no ack, no NAK, no extension.
    OwnedElsewhere,
    /// It was settled, or a later attempt of it waits: acknowledge it.
    Acknowledge,
    /// It was started as often as allowed, and each start ended in a death.
    StartsExhausted(Vec<StartEntry>),
    /// It may be started once only, and was: its worker is gone.
    WorkerLost(Vec<StartEntry>),
}

/// How suspicious a task is of killing its workers: the more have died with it the more, and then the later it was started,
/// because whatever kills at its start was the last to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Suspicion {
    /// Starts that ended in a death and were recorded.
    pub deaths: usize,
    /// The last of them, Unix time in milliseconds.
    pub last_ms: i64,
    /// The number of that start in its worker.
    pub number: u64,
}

impl Suspicion {
    /// Of a task with these starts, and those before of the batch that it was taken out of; none where there were none.
    fn of(starts_before: usize, starts: &[StartEntry]) -> Option<Self> {
        let deaths = starts_before + starts.len();
        let last = starts.last();
        let number = last.and_then(|last| last.by.rsplit_once('-')?.1.parse().ok()).unwrap_or(0);
        (deaths > 0).then(|| Self { deaths, last_ms: last.map_or(0, |last| last.at_ms), number })
    }
}

impl Leases {
    /// Starts to keep leases for a worker; the renewal runs in `tasks` until they are aborted.
    ///
    /// # Errors
    /// [`BusError`]; most likely setup has not run yet.
    pub async fn start(bus: &Bus, worker: &str, nonce: &str, tasks: &mut JoinSet<()>) -> Result<Self, BusError> {
        let table = Arc::new(LeaseTable::open(bus, worker, nonce).await?);
        table.consumers.read(bus).await?;
        table.learn_server(bus.server_record().await?);
        let answers = bus.listen(format!("{}.*", table.acks_inbox)).await?;
        tasks.spawn(read_answers(table.clone(), answers));
        let queries = bus.listen(subject::LEASES_NEW).await?;
        let of_table = table.clone();
        tasks.spawn(reply_to_all(bus.clone(), worker.to_owned(), queries, move |query| of_table.reply_to_other(query)));
        tasks.spawn(renewal::renew(table.clone()));
        tasks.spawn(renewal::sweep(table.clone()));
        tasks.spawn(renewal::follow_consumers(table.clone()));
        Ok(Self { table })
    }

    /// Returns when this worker extends what it holds, listens for ownership queries about it, and knows the server that
    /// it is connected to.
    pub async fn ready(&self) {
        let _ = self.table.server_known.subscribe().wait_for(|known| *known).await;
    }

    /// Leases held now, running or not.
    #[must_use]
    pub fn held(&self) -> usize {
        self.table.state().held.len()
    }

    /// Original ids that this worker answers ownership queries for.
    #[must_use]
    pub fn listening(&self) -> usize {
        self.table.listeners.len()
    }

    /// Acks that the server has not answered in time.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        let state = self.table.state();
        state.unanswered.values().filter(|ack| ack.sent.elapsed() > ACK_ANSWER_WITHIN).count()
    }

    /// Returns when the server has answered all acks, or has had the time to.
    pub async fn answered(&self) {
        let all = async {
            while !self.table.state().unanswered.is_empty() {
                self.table.all_answered.notified().await;
            }
        };
        let _ = tokio::time::timeout(ACK_ANSWER_WITHIN, all).await;
    }

    /// Takes a delivered message into the table. `generation` is that of the pull that brought it.
    pub(super) fn hold(&self, task: Task, delivery: Delivery, generation: u64) -> Lease {
        let Delivery { origin, seq, stored_ms, deliveries, reply } = delivery;
        let attempt = self.table.attempt_of(&task);
        let number = self.table.add(&task, attempt, reply, generation);
        #[cfg(feature = "metrics")]
        if deliveries > 1 {
            metrics::counter!("millpond_redeliveries_total", "queue" => task.subject.queue.clone()).increment(1);
        }
        let (table, task) = (self.table.clone(), Box::new(task));
        Lease {
            table,
            number,
            origin,
            seq,
            stored_ms,
            deliveries,
            is_orphan: false,
            suspicion: None,
            wrote_start: false,
            attempt,
            task,
        }
    }
}

impl Lease {
    /// Whether the lease may have run out: this worker was paused or cut off since the delivery. It is never NAKed then.
    #[must_use]
    pub fn was_cut_off(&self) -> bool {
        let generation = self.table.state().held.get(&self.number).map(|h| h.generation);
        generation != Some(self.table.generation()) || self.table.was_paused() || !self.table.is_connected()
    }

    /// Whether this attempt was settled by this worker a moment ago.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.table.is_settled(self.attempt)
    }

    /// When it was delivered.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.table.state().held.get(&self.number).map_or_else(Instant::now, |h| h.since)
    }

    /// Whether it was delivered for the first time, as far as the server knows.
    #[must_use]
    pub fn is_first_delivery(&self) -> bool {
        self.deliveries == 1
    }

    /// Holds only these items from now on: the others are about to be published again.
    pub fn shrink(&self, items: Items) {
        if let Some(held) = self.table.state().held.get_mut(&self.number) {
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

    /// Whether other workers must be asked before it may start: it may be a copy of what one of them holds.
    #[must_use]
    pub fn needs_ownership_query(&self) -> bool {
        self.deliveries > 1
            || self.task.republished
            || self.table.maybe_delivered_before(&self.task.subject.queue, self.origin, self.seq)
    }

    fn start_key(&self) -> String {
        let stream = if self.is_due() { STREAM_DUE } else { STREAM_TASKS };
        format!("{stream}.{}.{}", self.table.epoch(self.origin), self.seq)
    }

    fn started_by(&self) -> String {
        format!("{}-{}", self.table.nonce, self.number)
    }

    /// Whether this delivery may run, when it is not settled ([`Lease::is_settled`]). A first delivery of a first copy
    /// costs nothing here.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer; abandon the lease then.
    pub async fn admit(&mut self) -> Result<Admission, BusError> {
        if !self.needs_ownership_query() {
            return Ok(Admission::Start);
        }
        failpoint::hit("admit.before_ask");
        let query = OwnershipQuery {
            queue: self.task.subject.queue.clone(),
            kind: Some(self.task.subject.kind.clone()),
            original_id: self.task.original_id.clone(),
            id: self.task.id(),
            items: self.task.items,
            attempt: self.task.attempt,
        };
        // This worker listens before it asks, so that of two workers that ask at once each hears of the other.
        self.table.listen(&query.queue, &query.original_id).await;
        let mut reply = self.table.reply_to(&query, Some(self.number));
        if reply == OwnershipReply::Unknown {
            reply = query_others(&self.table.bus, &query).await;
        }
        // After a restart of the server the worker that holds it may be back later than this one.
        if reply == OwnershipReply::Unknown && self.table.barrier.is_awaited(&query.queue) {
            tracing::debug!(task_id = %self.task.id(), "no worker holds it yet; others may be on their way back");
            self.table.barrier.all_back(&query.queue).await;
            reply = query_others(&self.table.bus, &query).await;
        }
        // In a cluster a new leader of the consumer counts from when the message was stored: it may give it out again at once, and who
        // has it listens for it from its first extension on.
        if reply == OwnershipReply::Unknown && self.deliveries > 1 && self.table.bus.is_clustered() {
            reply = query_all_others(&self.table.bus, &query).await;
        }
        failpoint::hit("admit.asked");
        match reply {
            OwnershipReply::Held => return Ok(Admission::OwnedElsewhere),
            OwnershipReply::Settled => return Ok(Admission::Acknowledge),
            OwnershipReply::Unknown => {}
        }
        self.is_orphan = true;
        let before = self.table.starts.entries(&self.start_key()).await?;
        if !before.is_empty() && self.runs_once() {
            return Ok(Admission::WorkerLost(before));
        }
        if before.len() >= self.starts_max() {
            return Ok(Admission::StartsExhausted(before));
        }
        self.suspicion = Suspicion::of(self.task.starts_before, &before);
        Ok(Admission::Start)
    }

    /// How many starts of this message may be recorded: those of the batch that it was taken out of count, too.
    fn starts_max(&self) -> usize {
        STARTS_MAX.saturating_sub(self.task.starts_before)
    }

    /// How suspicious it is of killing its workers; none before two have died with it.
    #[must_use]
    pub fn suspicion(&self) -> Option<Suspicion> {
        self.suspicion
    }

    /// Whether its publisher wants it to be started once at the most.
    fn runs_once(&self) -> bool {
        self.task.attempt == 1 && self.task.attempts_max == Some(1)
    }

    /// Whether its start must be recorded.
    #[must_use]
    pub fn must_record_start(&self) -> bool {
        self.is_orphan || self.runs_once()
    }

    /// Counts the start, right before the handler gets the task, where it must be ([`Lease::must_record_start`]). Until then the
    /// handler became ready: a worker that died meanwhile has not run the task.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer; abandon the lease then.
    pub async fn record_start(&mut self) -> Result<Admission, BusError> {
        let entry =
            StartEntry { by: self.started_by(), worker: self.table.worker().to_owned(), at_ms: crate::now_ms() };
        let before = self.table.starts.add(&self.start_key(), &entry, self.starts_max()).await?;
        if before.len() >= self.starts_max() {
            return Ok(Admission::StartsExhausted(before));
        }
        self.wrote_start = true;
        failpoint::hit("admit.recorded");
        if !self.is_orphan {
            return Ok(Admission::Start);
        }
        let later = !self.task.is_batch() && self.later_attempt_waits().await?;
        Ok(if later { Admission::Acknowledge } else { Admission::Start })
    }

    async fn later_attempt_waits(&self) -> Result<bool, BusError> {
        let subject = self.task.subject.sched(&self.task.id());
        let subject = format!("$JS.API.DIRECT.GET.{STREAM_DUE}.{subject}");
        let reply = self.table.bus.client.request(subject, Bytes::new()).await;
        let message = reply.map_err(|e| BusError::new("the read of a waiting retry", &e))?;
        if message.status.is_some_and(|s| s != async_nats::StatusCode::OK) {
            return Ok(false);
        }
        let attempt =
            message.headers.as_ref().and_then(|h| h.get(HEADER_ATTEMPT)).and_then(|v| v.as_str().parse().ok());
        Ok(attempt.is_some_and(|a: u32| a > self.task.attempt))
    }

    /// Whether it may start now. If not, this worker was paused or cut off since the delivery: [`Lease::abandon`] it.
    #[must_use]
    pub fn start(&self) -> bool {
        !self.was_cut_off()
    }

    /// Remembers that this attempt is settled: its outcome is stored. A copy that comes again is acknowledged.
    pub fn mark_settled(&self) {
        self.table.mark_settled(self.attempt);
    }

    /// Whether nothing is left to do for it once its outcome is stored but its ack: no start of it is recorded.
    #[must_use]
    pub fn is_ended_by_ack(&self) -> bool {
        !self.wrote_start && self.deliveries == 1
    }

    /// Ends leases together that are ended by their acks ([`Lease::is_ended_by_ack`]). The server's answers are awaited elsewhere
    /// ([`Leases::answered`]).
    pub async fn complete_all(leases: Vec<Self>) {
        if let Some(first) = leases.first() {
            let table = first.table.clone();
            acknowledge(&table, leases).await;
        }
    }

    /// Ends it: acknowledges. Where a start of it may be recorded, that is removed behind the server's answer.
    pub async fn complete(self) {
        if self.is_ended_by_ack() {
            return Self::complete_all(vec![self]).await;
        }
        let answered = self.ack().await;
        failpoint::hit("settle.acked");
        self.remove_start().await;
        if answered {
            failpoint::hit("settle.complete");
        } else {
            self.table.await_acks([&self.number].into_iter());
            self.table.listen(&self.task.subject.queue, &self.task.original_id).await;
        }
    }

    async fn remove_start(&self) {
        let key = self.start_key();
        let removed = if self.was_cut_off() {
            self.table.starts.take_back(&key, &self.started_by()).await
        } else {
            self.table.starts.remove(&key).await
        };
        if let Err(error) = removed {
            tracing::debug!(%error, "start record stays until it is swept");
        }
    }

    async fn ack(&self) -> bool {
        let Some(reply) = self.table.state().held.get(&self.number).map(|h| h.reply.clone()) else { return true };
        let request = async_nats::Request::new().timeout(Some(ACK_ANSWER_WITHIN));
        self.table.bus.client.send_request(reply, request).await.is_ok()
    }

    /// Gives it back unstarted (NAK), to be delivered again after `delay`. A lease that was cut off is only abandoned.
    pub async fn release(self, delay: Duration) {
        self.take_back_start().await;
        let reply = self.table.state().held.get(&self.number).map(|h| h.reply.clone());
        if let Some(reply) = reply
            && !self.was_cut_off()
        {
            let nak =
                if delay.is_zero() { "-NAK".to_owned() } else { format!("-NAK {{\"delay\": {}}}", delay.as_nanos()) };
            let _ = self.table.bus.client.publish(reply, Bytes::from(nak)).await;
        }
    }

    /// Lets the lease run out: takes back its own start entry, and sends nothing to the server.
    pub async fn abandon(self) {
        self.take_back_start().await;
    }

    async fn take_back_start(&self) {
        if self.wrote_start
            && let Err(error) = self.table.starts.take_back(&self.start_key(), &self.started_by()).await
        {
            tracing::debug!(%error, "a start that did not happen stays counted");
        }
    }

    /// Another worker holds it: forgets it, and sends nothing to the server.
    pub fn leave_to_owner(self) {}
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.table.state().held.remove(&self.number);
    }
}

/// Sends the acks of these leases; the renewal sends those again that stay without an answer.
async fn acknowledge(table: &LeaseTable, leases: Vec<Lease>) {
    for (number, reply) in table.await_acks(leases.iter().map(|lease| &lease.number)) {
        table.send_ack(number, reply).await;
    }
}

/// Reads the server's answers to acks, until the connection is closed for good.
async fn read_answers(table: Arc<LeaseTable>, mut answers: Subscription) {
    while let Some(answer) = answers.next().await {
        let Some(Ok(number)) = answer.subject.rsplit('.').next().map(str::parse) else { continue };
        failpoint::hit("settle.acked");
        let mut state = table.state();
        state.unanswered.remove(&number);
        if state.unanswered.is_empty() {
            table.all_answered.notify_one();
        }
        drop(state);
        failpoint::hit("settle.complete");
    }
}

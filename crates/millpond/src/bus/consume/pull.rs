//! The worker's pulls: as many tasks as the worker has capacity for, over one inbox per connection generation. A pull is
//! sent again after an error, when it has expired, and by a watchdog.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use tokio::task::JoinSet;

use crate::bus::consume::lease::{Delivery, Lease, Leases};
use crate::bus::consume::queue_order::QueueOrder;
use crate::bus::error::BusError;
use crate::bus::topology::make_queue;
use crate::bus::{Bus, from_nats};
use crate::limits::PULL_BYTES_MAX;
use crate::task::{Arrival, Origin, Task};
use crate::wire::header_block::UnreadableMessage;
use crate::wire::streams::{STREAM_DUE, STREAM_TASKS, durable};

/// A pull request that the server has not ended this long after its expiry is given up and made anew.
pub const PULL_WATCHDOG: Duration = Duration::from_secs(2);
/// How long nothing is pulled from a consumer that was found missing.
const PULL_MISSING_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How long one pull request waits at the server.
pub const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// The same, at the most, for a queue that brings nothing, where a worker has many: each request has its cost.
const SILENT_PULL_EXPIRES: Duration = Duration::from_secs(30);
/// A worker of more queues than this has many.
const MANY_QUEUES: usize = 16;
/// How often requests are looked through for one that the server has not ended in time.
const OVERDUE_EVERY: Duration = Duration::from_millis(500);
/// Queues whose consumers are made at once.
const MADE_AT_ONCE: usize = 32;

/// Pulls tasks of some queues.
pub struct Puller {
    bus: Bus,
    leases: Leases,
    /// Reads where a message lies. It is moved into each and out again: a clone has its cost.
    context: Option<jetstream::Context>,
    /// DUE of each queue, then TASKS of each, both in the order of the queues.
    sources: Vec<QueueConsumer>,
    /// The place of each queue in their order.
    places: HashMap<String, usize>,
    /// With several queues: how much is requested from each.
    order: Option<QueueOrder>,
    inbox: String,
    /// One inbox per generation: what an older inbox still brings may have been delivered before a pause or a loss of
    /// the connection, and is not read.
    messages: async_nats::Subscriber,
    generation: u64,
    /// Pulls that wait at the server, the oldest first.
    requests: BTreeMap<u64, Request>,
    next_request: u64,
    overdue_at: Instant,
    /// A consumer was found missing: make the queues again then.
    remake: Option<Instant>,
    /// The queues are being made again.
    remaking: JoinSet<()>,
}

struct QueueConsumer {
    queue: String,
    origin: Origin,
    /// When the last task came from it.
    heard: Option<Instant>,
    /// Tasks that are requested and were not delivered yet.
    outstanding: usize,
    /// Its requests, the oldest first.
    requests: VecDeque<u64>,
    /// How long the next one waits.
    expires: Duration,
    /// When its consumer was last found missing.
    missing: Option<Instant>,
}

struct Request {
    source: usize,
    batch: usize,
    left: usize,
    sent: Instant,
    forget_at: Instant,
}

impl Puller {
    /// Makes the queues' consumers, for which it waits where the server has as many as it may, and listens on the inbox; nothing is pulled before the first [`Puller::request`].
    ///
    /// # Errors
    /// [`BusError`]; most likely setup has not run yet.
    pub async fn start(bus: &Bus, leases: &Leases, queues: &[String]) -> Result<Self, BusError> {
        let mut is_logged = false;
        while let Err(error) = make_queues(bus, queues).await {
            if !error.is_consumers_limit() {
                return Err(error);
            }
            if !std::mem::replace(&mut is_logged, true) {
                tracing::warn!(%error, "nats-server has no room for the consumers of this worker's queues; waiting for some");
            }
            tokio::time::sleep(PULL_WATCHDOG).await;
        }
        let (inbox, messages) = listen(bus).await?;
        let source = |origin, queue: &String| QueueConsumer {
            queue: queue.clone(),
            origin,
            heard: None,
            outstanding: 0,
            requests: VecDeque::new(),
            expires: PULL_EXPIRES,
            missing: None,
        };
        let sources = [Origin::Due, Origin::Tasks]
            .into_iter()
            .flat_map(|origin| queues.iter().map(move |queue| source(origin, queue)))
            .collect();
        Ok(Self {
            bus: bus.clone(),
            leases: leases.clone(),
            context: None,
            sources,
            places: queues.iter().cloned().zip(0..).collect(),
            order: (queues.len() > 1).then(|| QueueOrder::new(queues.len())),
            inbox,
            messages,
            generation: leases.table.generation(),
            requests: BTreeMap::new(),
            next_request: 0,
            overdue_at: Instant::now(),
            remake: None,
            remaking: JoinSet::new(),
        })
    }

    /// Keeps pulls for `capacity` tasks at the server, those of DUE ahead of those of TASKS; with several queues by the
    /// rules of `bus/consume/queue_order.rs`. Cheap when nothing is missing.
    ///
    /// # Cancel safety
    /// Safe: a pull that was counted and not sent is forgotten by the watchdog.
    pub async fn request(&mut self, capacity: usize) {
        if capacity == 0 || !self.leases.table.may_pull() {
            return;
        }
        let generation = self.leases.table.generation();
        if generation != self.generation {
            let Ok((inbox, messages)) = listen(&self.bus).await else { return };
            self.requests.clear();
            for source in &mut self.sources {
                source.outstanding = 0;
                source.requests.clear();
            }
            (self.inbox, self.messages, self.generation) = (inbox, messages, generation);
        }
        self.remake_queues();
        let now = Instant::now();
        self.forget_overdue(now);
        let targets = self.targets(capacity, now);
        let share = match &self.order {
            // Nothing waits anywhere, as far as is known.
            Some(_) if targets.is_none() => capacity.div_ceil(self.places.len().max(1)),
            _ => capacity,
        };
        for source in 0..self.sources.len() {
            let share = targets.as_ref().map_or(share, |t| t.get(source % t.len().max(1)).copied().unwrap_or(0));
            let outstanding = self.outstanding(source);
            let want = share.saturating_sub(outstanding);
            // In steps of half the share, so that a large capacity does not cost a request for every task.
            if want > 0 && !self.is_missing(source, now) && (outstanding == 0 || want >= share.div_ceil(2)) {
                self.send(source, want).await;
            }
        }
    }

    fn outstanding(&self, source: usize) -> usize {
        self.sources.get(source).map_or(0, |source| source.outstanding)
    }

    fn forget_overdue(&mut self, now: Instant) {
        if now < self.overdue_at {
            return;
        }
        self.overdue_at = now + OVERDUE_EVERY;
        let overdue: Vec<u64> = self.requests.iter().filter(|(_, r)| r.forget_at <= now).map(|(n, _)| *n).collect();
        for number in overdue {
            self.forget(number);
        }
    }

    /// Forgets a request, which brings nothing more.
    fn forget(&mut self, number: u64) -> Option<Request> {
        let request = self.requests.remove(&number)?;
        if let Some(source) = self.sources.get_mut(request.source) {
            source.outstanding = source.outstanding.saturating_sub(request.left);
            source.requests.retain(|other| *other != number);
        }
        Some(request)
    }

    /// How much is to be requested from each queue; none for a worker of one queue, which gives it all its capacity, and where
    /// all have the same share, because nothing waits.
    fn targets(&mut self, capacity: usize, now: Instant) -> Option<Vec<usize>> {
        let (queues, order) = (self.places.len(), self.order.as_mut()?);
        for (queue, stream) in order.backlogged() {
            let Some(source) = self.sources.get(stream * queues + queue) else { continue };
            let Some(oldest) = source.requests.front().and_then(|number| self.requests.get(number)) else { continue };
            let since = source.heard.map_or(oldest.sent, |heard| heard.max(oldest.sent));
            order.unanswered(queue, stream, since, now);
        }
        if order.is_idle() {
            return None;
        }
        let outstanding = |source: usize| self.sources.get(source).map_or(0, |source| source.outstanding);
        let requested: Vec<usize> = (0..queues).map(|q| outstanding(q).min(outstanding(q + queues))).collect();
        Some(order.targets(capacity, &requested, now))
    }

    async fn send(&mut self, place: usize, batch: usize) {
        let number = self.next_request;
        let Some(source) = self.sources.get_mut(place) else { return };
        self.next_request += 1;
        source.outstanding += batch;
        source.requests.push_back(number);
        let (sent, mut expires) = (Instant::now(), source.expires);
        if expires > PULL_EXPIRES {
            // So that the requests of many queues do not end all at once.
            expires = expires.mul_f64(rand::random_range(0.7..1.0));
        }
        let forget_at = sent + expires + PULL_WATCHDOG;
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", stream_of(source.origin), durable(&source.queue));
        self.requests.insert(number, Request { source: place, batch, left: batch, sent, forget_at });
        let expires = u64::try_from(expires.as_nanos()).unwrap_or(u64::MAX);
        let body = json!({ "batch": batch, "expires": expires, "max_bytes": PULL_BYTES_MAX }).to_string();
        let reply = format!("{}.{number}", self.inbox);
        let _ = self.bus.client.publish_with_reply(subject, reply, Bytes::from(body)).await;
    }

    /// Whether the consumer was found missing a moment ago: a pull would be answered at once, again and again.
    fn is_missing(&self, source: usize, now: Instant) -> bool {
        let missing = self.sources.get(source).and_then(|source| source.missing);
        missing.is_some_and(|at| now.duration_since(at) < PULL_MISSING_AGAIN_AFTER)
    }

    /// Has the queues made again beside the pulls, when it is time: it takes some seconds.
    fn remake_queues(&mut self) {
        while self.remaking.try_join_next().is_some() {}
        if self.remake.is_none_or(|at| at > Instant::now()) || !self.remaking.is_empty() {
            return;
        }
        self.remake = None;
        let queues: Vec<String> = self.places.keys().cloned().collect();
        let (bus, table) = (self.bus.clone(), self.leases.table.clone());
        self.remaking.spawn(async move {
            // Before anything is delivered of a stream that was made anew.
            if let Err(error) = table.learn_epochs().await {
                return tracing::warn!(%error, "a queue's consumer is missing, and so is its stream");
            }
            if let Err(error) = make_queues(&bus, &queues).await {
                tracing::warn!(%error, "a queue's consumer is missing and cannot be made, will try again");
            }
        });
    }

    /// The next delivered task; none when a pull has ended: time to [`Puller::request`] again.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Option<Lease> {
        let Some(message) = self.messages.next().await else {
            // The connection is closed for good: this program is about to end.
            return std::future::pending().await;
        };
        self.take(message)
    }

    /// Releases a task that got no slot in time, so that another worker may have it; it comes again after `delay`.
    pub async fn release(&mut self, lease: Lease, delay: Duration) {
        if let Some((order, place)) = self.order.as_mut().zip(self.places.get(&lease.task.subject.queue)) {
            order.released(*place, usize::from(!lease.is_due()));
        }
        lease.release(delay).await;
    }

    /// Stops pulling; the tasks that were delivered already, for the drain.
    pub async fn stop(mut self) -> Vec<Lease> {
        let _ = self.messages.unsubscribe().await;
        self.bus.flush().await;
        let mut rest = Vec::new();
        while let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(50), self.messages.next()).await {
            rest.extend(self.take(message));
        }
        rest
    }

    fn take(&mut self, message: async_nats::Message) -> Option<Lease> {
        // A status of the server comes to the inbox itself; a task keeps the subject that it was published to, also one whose
        // publisher wrote a status into it.
        if let Some(status) = message.status.filter(|_| message.subject.starts_with(&self.inbox)) {
            let number: u64 = message.subject.rsplit('.').next()?.parse().ok()?;
            self.end_request(number, status, message.description.as_deref());
            return None;
        }
        let (lease, more) = self.hold(message)?;
        let Some(&place) = self.places.get(&lease.task.subject.queue) else { return Some(lease) };
        let (queues, stream) = (self.places.len(), usize::from(!lease.is_due()));
        if let Some(order) = &mut self.order {
            order.delivered(place, stream, more);
        }
        let Some(source) = self.sources.get_mut(stream * queues + place) else { return Some(lease) };
        (source.heard, source.expires) = (Some(Instant::now()), PULL_EXPIRES);
        let oldest = source.requests.front().copied();
        if let Some((number, request)) = oldest.and_then(|n| Some((n, self.requests.get_mut(&n)?))) {
            request.left = request.left.saturating_sub(1);
            source.outstanding = source.outstanding.saturating_sub(1);
            if request.left == 0 {
                self.forget(number);
            }
        }
        Some(lease)
    }

    fn end_request(&mut self, number: u64, status: async_nats::StatusCode, description: Option<&str>) {
        if status == async_nats::StatusCode::IDLE_HEARTBEAT {
            return;
        }
        let request = self.forget(number);
        if let Some(request) = &request
            && request.left == request.batch
            && self.places.len() > MANY_QUEUES
            && let Some(source) = self.sources.get_mut(request.source)
        {
            source.expires = (source.expires * 2).min(SILENT_PULL_EXPIRES);
        }
        let missing = status == async_nats::StatusCode::NO_RESPONDERS
            || description.is_some_and(|s| s.contains("Consumer Deleted"));
        if !missing {
            return;
        }
        if let Some(source) = request.and_then(|request| self.sources.get_mut(request.source)) {
            source.missing = Some(Instant::now());
        }
        if self.remake.is_none() && self.remaking.is_empty() {
            self.remake = Some(Instant::now() + PULL_WATCHDOG);
        }
    }

    /// The lease, and whether more wait where it came from.
    fn hold(&mut self, message: async_nats::Message) -> Option<(Lease, bool)> {
        let reply = message.reply.as_ref()?.to_string();
        let context = self.context.take().unwrap_or_else(|| self.bus.js.clone());
        let message = jetstream::Message { message, context };
        let (origin, seq, deliveries, stored_ms, more) = {
            let info = message.info().ok()?;
            let origin = origin_of(info.stream, &message.subject)?;
            let stored = info.published.unix_timestamp_nanos() / 1_000_000;
            (origin, info.stream_sequence, info.delivered, i64::try_from(stored).unwrap_or(0), info.pending > 0)
        };
        let jetstream::Message { message, context } = message;
        self.context = Some(context);
        let epoch = &*self.leases.table.epoch(origin);
        let headers = from_nats(message.headers.as_ref());
        let arrival = Arrival { origin, epoch, seq, stored_ms };
        let mut task = Task::parse(&message.subject, &headers, message.payload.clone(), arrival);
        if let Some(signer) = &self.bus.signer
            && let Err(distrust) = signer.verify(&message.subject, &headers, &message.payload)
        {
            task.distrust(distrust, arrival);
        }
        if message.status.is_some() {
            task.refuse("bad_header", UnreadableMessage::Status.to_string());
        }
        Some((self.leases.hold(task, Delivery { origin, seq, stored_ms, deliveries, reply }, self.generation), more))
    }
}

async fn listen(bus: &Bus) -> Result<(String, async_nats::Subscriber), BusError> {
    let inbox = bus.client.new_inbox();
    let subscribed = bus.client.subscribe(format!("{inbox}.*")).await;
    Ok((inbox, subscribed.map_err(|e| BusError::new("the inbox for tasks", &e))?))
}

/// Makes the consumers of these queues, some at a time: a worker may have many.
async fn make_queues(bus: &Bus, queues: &[String]) -> Result<(), BusError> {
    let made = queues.iter().cloned().map(|queue| {
        let bus = bus.clone();
        async move { make_queue(&bus, &queue).await }
    });
    let made: Vec<_> = made.collect();
    stream::iter(made).buffer_unordered(MADE_AT_ONCE).try_collect().await
}

/// Where a task was delivered from; none where it is none: a message of another stream, or one that was not published to this
/// stream's subjects.
fn origin_of(stream: &str, subject: &str) -> Option<Origin> {
    [(STREAM_TASKS, "tasks.", Origin::Tasks), (STREAM_DUE, "due.", Origin::Due)]
        .into_iter()
        .find_map(|(name, subjects, origin)| (stream == name && subject.starts_with(subjects)).then_some(origin))
}

fn stream_of(origin: Origin) -> &'static str {
    match origin {
        Origin::Due => STREAM_DUE,
        Origin::Tasks => STREAM_TASKS,
    }
}

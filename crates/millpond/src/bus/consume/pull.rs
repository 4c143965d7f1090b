//! The worker's pulls: as many tasks as the worker has capacity for, over one inbox per connection generation. A pull is
//! sent again after an error, when it has expired, and by a watchdog.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;

use crate::bus::consume::lease::{Delivery, Lease, Leases};
use crate::bus::consume::queue_order::QueueOrder;
use crate::bus::error::BusError;
use crate::bus::topology::make_queue;
use crate::bus::{Bus, from_nats};
use crate::limits::PULL_BYTES_MAX;
use crate::task::{Arrival, Origin, Task};
use crate::wire::streams::{STREAM_DUE, STREAM_TASKS, durable};

/// A pull request that the server has not ended this long after its expiry is given up and made anew.
pub const PULL_WATCHDOG: Duration = Duration::from_secs(2);
/// How long one pull request waits at the server.
pub const PULL_EXPIRES: Duration = Duration::from_secs(5);

/// Pulls tasks of some queues.
pub struct Puller {
    bus: Bus,
    leases: Leases,
    /// DUE of each queue, then TASKS of each, both in the order of the queues.
    sources: Vec<Source>,
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
    /// A consumer was found missing: make the queues again before the next pull.
    remake: Option<Instant>,
}

struct Source {
    queue: String,
    origin: Origin,
    /// When the last task came from it.
    heard: Option<Instant>,
}

struct Request {
    source: usize,
    left: usize,
    sent: Instant,
    forget_at: Instant,
}

impl Puller {
    /// Makes the queues' consumers and listens on the inbox; nothing is pulled before the first [`Puller::request`].
    ///
    /// # Errors
    /// [`BusError`]; most likely setup has not run yet.
    pub async fn start(bus: &Bus, leases: &Leases, queues: &[String]) -> Result<Self, BusError> {
        for queue in queues {
            make_queue(bus, queue).await?;
        }
        let (inbox, messages) = listen(bus).await?;
        let sources = [Origin::Due, Origin::Tasks]
            .into_iter()
            .flat_map(|origin| queues.iter().map(move |queue| Source { queue: queue.clone(), origin, heard: None }))
            .collect();
        Ok(Self {
            bus: bus.clone(),
            leases: leases.clone(),
            sources,
            order: (queues.len() > 1).then(|| QueueOrder::new(queues.len())),
            inbox,
            messages,
            generation: leases.table.generation(),
            requests: BTreeMap::new(),
            next_request: 0,
            remake: None,
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
            (self.inbox, self.messages, self.generation) = (inbox, messages, generation);
        }
        self.remake_queues().await;
        let now = Instant::now();
        self.requests.retain(|_, r| r.forget_at > now);
        let targets = self.targets(capacity, now);
        for source in 0..self.sources.len() {
            let share =
                targets.as_ref().map_or(Some(capacity), |t| t.get(source % t.len().max(1)).copied()).unwrap_or(0);
            let outstanding = self.outstanding(source);
            let want = share.saturating_sub(outstanding);
            // In steps of half the share, so that a large capacity does not cost a request for every task.
            if want > 0 && (outstanding == 0 || want >= share.div_ceil(2)) {
                self.send(source, want).await;
            }
        }
    }

    fn outstanding(&self, source: usize) -> usize {
        self.requests.values().filter(|r| r.source == source).map(|r| r.left).sum()
    }

    /// How much is to be requested from each queue; none for a worker of one queue, which gives it all its capacity.
    fn targets(&mut self, capacity: usize, now: Instant) -> Option<Vec<usize>> {
        let queues = self.sources.len() / 2;
        let requested: Vec<usize> = match &self.order {
            None => return None,
            Some(_) => (0..queues).map(|q| self.outstanding(q).min(self.outstanding(q + queues))).collect(),
        };
        let order = self.order.as_mut()?;
        for request in self.requests.values() {
            let heard = self.sources.get(request.source).and_then(|s| s.heard);
            let since = heard.map_or(request.sent, |heard| heard.max(request.sent));
            order.unanswered(request.source % queues, request.source / queues, since, now);
        }
        Some(order.targets(capacity, &requested))
    }

    async fn send(&mut self, source: usize, batch: usize) {
        let Some(Source { queue, origin, .. }) = self.sources.get(source) else { return };
        let number = self.next_request;
        self.next_request += 1;
        let sent = Instant::now();
        let forget_at = sent + PULL_EXPIRES + PULL_WATCHDOG;
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", stream(*origin), durable(queue));
        self.requests.insert(number, Request { source, left: batch, sent, forget_at });
        let expires = u64::try_from(PULL_EXPIRES.as_nanos()).unwrap_or(u64::MAX);
        let body = json!({ "batch": batch, "expires": expires, "max_bytes": PULL_BYTES_MAX }).to_string();
        let reply = format!("{}.{number}", self.inbox);
        let _ = self.bus.client.publish_with_reply(subject, reply, Bytes::from(body)).await;
    }

    async fn remake_queues(&mut self) {
        if self.remake.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.remake = None;
        let queues: Vec<String> = self.sources.iter().map(|s| s.queue.clone()).collect();
        for queue in queues {
            if let Err(error) = make_queue(&self.bus, &queue).await {
                tracing::warn!(%error, "a queue's consumer is missing and cannot be made, will try again");
                self.remake = Some(Instant::now() + PULL_WATCHDOG);
            }
        }
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
        if let Some(status) = message.status {
            // A status comes to the inbox itself; a task keeps the subject that it was published to.
            let number: u64 = message.subject.rsplit('.').next()?.parse().ok()?;
            self.end_request(number, status, message.description.as_deref());
            return None;
        }
        let (lease, more) = self.hold(message)?;
        let origin = if lease.is_due() { Origin::Due } else { Origin::Tasks };
        let queue = &lease.task.subject.queue;
        let source = self.sources.iter().position(|s| s.origin == origin && s.queue == *queue);
        if let (Some(order), Some(source)) = (&mut self.order, source) {
            let queues = self.sources.len() / 2;
            order.delivered(source % queues, source / queues, more);
            if let Some(source) = self.sources.get_mut(source) {
                source.heard = Some(Instant::now());
            }
        }
        let request = self.requests.iter_mut().find(|(_, r)| Some(r.source) == source);
        if let Some((&number, request)) = request {
            request.left = request.left.saturating_sub(1);
            if request.left == 0 {
                self.requests.remove(&number);
            }
        }
        Some(lease)
    }

    fn end_request(&mut self, number: u64, status: async_nats::StatusCode, description: Option<&str>) {
        if status == async_nats::StatusCode::IDLE_HEARTBEAT {
            return;
        }
        self.requests.remove(&number);
        let missing = status == async_nats::StatusCode::NO_RESPONDERS
            || description.is_some_and(|s| s.contains("Consumer Deleted"));
        if missing && self.remake.is_none() {
            self.remake = Some(Instant::now() + PULL_WATCHDOG);
        }
    }

    /// The lease, and whether more wait where it came from.
    fn hold(&self, message: async_nats::Message) -> Option<(Lease, bool)> {
        let reply = message.reply.as_ref()?.to_string();
        let message = jetstream::Message { message, context: self.bus.js.clone() };
        let (origin, seq, deliveries, stored_ms, more) = {
            let info = message.info().ok()?;
            let origin = if info.stream == STREAM_DUE { Origin::Due } else { Origin::Tasks };
            let stored = info.published.unix_timestamp_nanos() / 1_000_000;
            (origin, info.stream_sequence, info.delivered, i64::try_from(stored).unwrap_or(0), info.pending > 0)
        };
        let epoch = self.leases.table.epoch(origin);
        let headers = from_nats(message.headers.as_ref());
        let arrival = Arrival { origin, epoch, seq, stored_ms };
        let mut task = Task::parse(&message.subject, &headers, message.payload.clone(), arrival);
        if let Some(signer) = &self.bus.signer
            && let Err(distrust) = signer.verify(&message.subject, &headers, &message.payload)
        {
            task.distrust(distrust, arrival);
        }
        Some((self.leases.hold(task, Delivery { origin, seq, stored_ms, deliveries, reply }, self.generation), more))
    }
}

async fn listen(bus: &Bus) -> Result<(String, async_nats::Subscriber), BusError> {
    let inbox = bus.client.new_inbox();
    let subscribed = bus.client.subscribe(format!("{inbox}.*")).await;
    Ok((inbox, subscribed.map_err(|e| BusError::new("the inbox for tasks", &e))?))
}

fn stream(origin: Origin) -> &'static str {
    match origin {
        Origin::Due => STREAM_DUE,
        Origin::Tasks => STREAM_TASKS,
    }
}

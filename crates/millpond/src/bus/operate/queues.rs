//! Queues as an operator sees them: how much waits, pause and resume, purge. In the collector's role.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind};
use async_nats::jetstream::{ErrorCode, consumer};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use crate::bus::Bus;
use crate::bus::consume::queue_records::PauseRecord;
use crate::bus::error::BusError;
use crate::bus::read::{buckets, unix_ms};
use crate::bus::topology::stream_state;
use crate::limits::LEASE_SETTLED_KEEP;
use crate::wire::bounds::{self, Bounded};
use crate::wire::streams::{BUCKET_PURGES, BUCKET_QUEUES, STREAM_DUE, STREAM_LATER, STREAM_TASKS, durable};
use crate::wire::subject::check_token;

/// How long a pause without an end lasts: the server wants a time.
const PAUSE_FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// Subjects of waiting retries that are counted at the most.
const SCHEDULED_COUNTED_MAX: usize = 100_000;
/// Queues without a worker so far that are listed, at the most: a program that publishes can make up names.
const UNSERVED_LISTED_MAX: usize = 100;

/// The queues of a cluster.
#[derive(Debug, Clone, Default)]
pub struct AllQueues {
    /// By name: all that have a consumer, and of those that no worker has served yet the [`UNSERVED_LISTED_MAX`] in which most waits;
    /// ahead of them those whose names are not allowed.
    pub listed: Vec<QueueState>,
    /// The others.
    pub unlisted: UnlistedQueues,
}

/// Queues that are counted and not listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct UnlistedQueues {
    /// How many there are.
    pub queues: u64,
    /// Messages that wait in them.
    pub waiting: u64,
}

/// What waits in a queue without consumers, in TASKS and in DUE.
type Unserved = HashMap<String, [u64; 2]>;

/// How a queue stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct QueueState {
    /// Its name.
    pub queue: String,
    /// Messages that no worker has taken yet.
    pub waiting: u64,
    /// Messages that workers hold.
    pub held: u64,
    /// Messages that wait for their time: retries and delayed tasks; counted up to 100 000 in all queues together.
    pub scheduled: u64,
    /// Nothing is handed out.
    pub paused: bool,
    /// The server hands out again by itself after this long, in milliseconds; none when it is not paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_for_ms: Option<u64>,
    /// Tasks that may wait in it, those that workers hold included; none: any number (`bounds`).
    pub max_waiting: Option<u64>,
    /// How many of its two consumers are there.
    #[serde(skip)]
    pub consumers: u8,
    /// When its consumers were made or did something last, as the server knows it, Unix time in milliseconds; now while a
    /// worker waits for its tasks.
    #[serde(skip)]
    pub used_ms: i64,
    /// How it stands in TASKS and in DUE.
    #[serde(skip)]
    pub places: [QueueInStream; 2],
}

/// How a queue stands in one stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueInStream {
    /// Messages that no worker has taken yet.
    pub waiting: u64,
    /// Messages that were given out and not settled.
    pub held: u64,
    /// The last sequence that was given out.
    pub delivered: u64,
    /// How often something was given out.
    pub deliveries: u64,
    /// All up to this sequence is settled.
    pub ack_floor: u64,
    /// Messages that are held and were given out more than once.
    pub redelivered: u64,
}

/// Why a queue is not paused, or its pause not ended.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// No worker has served it yet, and so it is not there.
    #[error("there is no queue {queue}: its workers make it, and none has served it yet")]
    NoSuchQueue {
        /// Its name.
        queue: String,
    },
    /// The server did not do its part.
    #[error(transparent)]
    Topology(#[from] BusError),
}

impl PauseError {
    fn new(queue: &str, error: &ConsumerError) -> Self {
        match error.kind() {
            ConsumerErrorKind::JetStream(reason) if reason.error_code() == ErrorCode::CONSUMER_NOT_FOUND => {
                Self::NoSuchQueue { queue: queue.to_owned() }
            }
            _ => Self::Topology(BusError::new(&format!("the pause of queue {queue}"), error)),
        }
    }
}

/// What a purge removed, for good: those tasks have no end in the store, they are covered by this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PurgeRecord {
    /// The queue.
    pub queue: String,
    /// The kind; none for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What runs is ended too, as cancelled.
    pub running: bool,
    /// All of LATER up to this sequence.
    #[serde(default)]
    pub later_up_to: u64,
    /// All of TASKS up to this sequence.
    pub tasks_up_to: u64,
    /// All of DUE up to this sequence.
    pub due_up_to: u64,
    /// Messages that were removed; none while it is under way.
    pub count: Option<u64>,
    /// Who purged it.
    pub by: String,
    /// When, Unix time in milliseconds.
    pub at_ms: i64,
}

impl Bounded for PurgeRecord {
    fn check(&self) -> Result<(), String> {
        bounds::count("count", self.count.unwrap_or(0))?;
        bounds::time("at_ms", self.at_ms)
    }
}

/// When a consumer was made or did something last, Unix time in milliseconds; now while somebody pulls.
fn used_ms(info: &consumer::Info) -> i64 {
    if info.num_waiting > 0 {
        return crate::now_ms();
    }
    let active = [info.delivered.last_active, info.ack_floor.last_active];
    active.into_iter().flatten().chain([info.created]).map(unix_ms).max().unwrap_or(0)
}

impl QueueState {
    fn add(&mut self, at: usize, more: QueueInStream) {
        self.waiting += more.waiting;
        self.held += more.held;
        if let Some(place) = self.places.get_mut(at) {
            *place = QueueInStream { waiting: place.waiting + more.waiting, ..more };
        }
    }
}

/// Those that are listed, and the sums of the others.
fn listed(unserved: Unserved) -> (Vec<(String, [u64; 2])>, UnlistedQueues) {
    let mut all: Vec<(String, [u64; 2])> = unserved.into_iter().collect();
    let sum = |waiting: &[u64; 2]| waiting.iter().sum::<u64>();
    // What lies in queues whose names are not allowed becomes dead letters, and must be found for that.
    all.sort_by_cached_key(|(queue, waiting)| {
        (check_token("queue", queue).is_ok(), Reverse(sum(waiting)), queue.clone())
    });
    let others = all.split_off(all.len().min(UNSERVED_LISTED_MAX));
    let waiting = others.iter().map(|(_, waiting)| sum(waiting)).sum();
    (all, UnlistedQueues { queues: others.len() as u64, waiting })
}

impl Bus {
    /// Removes a queue: its consumers, and its record. What is published to it afterwards waits until a worker makes it anew.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn remove_queue(&self, queue: &str) -> Result<(), BusError> {
        self.remove_queue_consumers(queue).await?;
        let store = buckets::open(self, BUCKET_QUEUES).await?;
        let removed = store.purge_with_ttl(queue, LEASE_SETTLED_KEEP).await;
        removed.map_err(|e| BusError::new(BUCKET_QUEUES, &e))
    }

    /// Removes the consumers of a queue. The next worker that serves it makes them anew; what is set for the queue stays.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn remove_queue_consumers(&self, queue: &str) -> Result<(), BusError> {
        for name in [STREAM_TASKS, STREAM_DUE] {
            let stream = self.js.get_stream(name).await.map_err(|e| BusError::new(name, &e))?;
            let removed = stream.delete_consumer(&durable(queue)).await;
            match removed.map_err(|e| BusError::new(&format!("the removal of queue {queue}"), &e)) {
                Ok(_) | Err(BusError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        // Nothing is held: those that are made next are the first ones again, and nobody waits for other workers.
        self.forget_consumer(queue).await
    }

    /// All queues that have a consumer, and those where something waits for a first worker, as far as they are listed.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn queues(&self) -> Result<AllQueues, BusError> {
        let mut queues = self.standing().await?;
        for (stream, filter) in [(STREAM_LATER, "later.>"), (STREAM_DUE, "sched.>")] {
            let found = self.js.get_stream(stream).await.map_err(|e| BusError::new(stream, &e))?;
            let subjects = found.info_with_subjects(filter).await.map_err(|e| BusError::new(stream, &e))?;
            let mut subjects = subjects.take(SCHEDULED_COUNTED_MAX);
            while let Some(Ok((subject, count))) = subjects.next().await {
                let queue = subject.split('.').nth(1).unwrap_or_default();
                // They are sorted by their names.
                if let Ok(place) = queues.listed.binary_search_by(|state| state.queue.as_str().cmp(queue))
                    && let Some(state) = queues.listed.get_mut(place)
                {
                    state.scheduled += count as u64;
                }
            }
        }
        Ok(queues)
    }

    /// The same without what waits for its time: a few requests, however much waits.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn standing(&self) -> Result<AllQueues, BusError> {
        let mut queues: BTreeMap<String, QueueState> = BTreeMap::new();
        let mut unserved = Unserved::new();
        for (at, name) in [STREAM_TASKS, STREAM_DUE].into_iter().enumerate() {
            let stream = self.js.get_stream(name).await.map_err(|e| BusError::new(name, &e))?;
            let mut consumers = stream.consumers();
            let mut served = 0;
            while let Some(info) = consumers.next().await {
                let info = info.map_err(|e| BusError::new(name, &e))?;
                let Some(queue) = info.name.strip_prefix("q-") else { continue };
                let state = queues.entry(queue.to_owned()).or_default();
                let place = QueueInStream {
                    waiting: info.num_pending,
                    held: info.num_ack_pending as u64,
                    delivered: info.delivered.stream_sequence,
                    deliveries: info.delivered.consumer_sequence,
                    ack_floor: info.ack_floor.stream_sequence,
                    redelivered: info.num_redelivered as u64,
                };
                served += place.waiting + place.held;
                state.add(at, place);
                state.consumers += 1;
                state.paused |= info.paused;
                state.used_ms = state.used_ms.max(used_ms(&info));
                let left = info.pause_remaining.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
                state.paused_for_ms = state.paused_for_ms.max(left.filter(|_| info.paused));
            }
            if stream.cached_info().state.messages > served {
                self.add_unserved(&mut unserved, at, name).await?;
            }
        }
        unserved.retain(|queue, _| !queues.contains_key(queue));
        let (listed, unlisted) = listed(unserved);
        for (queue, waiting) in listed {
            let state = queues.entry(queue).or_default();
            for (at, waiting) in waiting.into_iter().enumerate() {
                state.add(at, QueueInStream { waiting, ..QueueInStream::default() });
            }
        }
        for (queue, state) in &mut queues {
            queue.clone_into(&mut state.queue);
        }
        Ok(AllQueues { listed: queues.into_values().collect(), unlisted })
    }

    /// What waits in each queue of a stream, of 100 000 subjects at the most.
    async fn add_unserved(&self, unserved: &mut Unserved, at: usize, stream: &str) -> Result<(), BusError> {
        let filter = if stream == STREAM_DUE { "due.>" } else { "tasks.>" };
        for (subject, waiting) in self.subjects(stream, filter, 0).await?.state.subjects.unwrap_or_default() {
            let Some(queue) = subject.split('.').nth(1) else { continue };
            if let Some(of_stream) = unserved.entry(queue.to_owned()).or_default().get_mut(at) {
                *of_stream += waiting;
            }
        }
        Ok(())
    }

    /// Hands out nothing of a queue until `resume`, or for this long. What workers hold goes on.
    ///
    /// # Errors
    /// [`PauseError`] when there is no such queue, or the server does not answer.
    pub async fn pause_queue(&self, queue: &str, how_long: Option<Duration>) -> Result<(), PauseError> {
        let until = std::time::SystemTime::now() + how_long.unwrap_or(PAUSE_FOR_EVER).min(PAUSE_FOR_EVER);
        let until_ms = until.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let pause = PauseRecord { until_ms: i64::try_from(until_ms).unwrap_or(i64::MAX) };
        // First: a consumer that is made again meanwhile is paused too.
        self.put_pause(queue, Some(pause)).await?;
        let paused = self.pause_consumers(queue, until).await;
        if matches!(paused, Err(PauseError::NoSuchQueue { .. })) {
            self.put_pause(queue, None).await?;
        }
        paused
    }

    async fn pause_consumers(&self, queue: &str, until: std::time::SystemTime) -> Result<(), PauseError> {
        for name in [STREAM_TASKS, STREAM_DUE] {
            let stream = self.js.get_stream(name).await.map_err(|e| BusError::new(name, &e))?;
            let paused = stream.pause_consumer(&durable(queue), until.into()).await;
            paused.map_err(|e| PauseError::new(queue, &e))?;
        }
        Ok(())
    }

    /// Ends a pause.
    ///
    /// # Errors
    /// [`PauseError`] when there is no such queue, or the server does not answer.
    pub async fn resume_queue(&self, queue: &str) -> Result<(), PauseError> {
        self.put_pause(queue, None).await?;
        for name in [STREAM_TASKS, STREAM_DUE] {
            let stream = self.js.get_stream(name).await.map_err(|e| BusError::new(name, &e))?;
            stream.resume_consumer(&durable(queue)).await.map_err(|e| PauseError::new(queue, &e))?;
        }
        Ok(())
    }

    /// Removes what waits in a queue, of one kind or of all; with `running` the workers end what they hold of it, as
    /// cancelled. First the record is written that covers it, then the streams are purged up to where they were then.
    ///
    /// # Errors
    /// [`BusError`] when the record cannot be written or the server does not answer.
    pub async fn purge_queue(
        &self,
        queue: &str,
        kind: Option<&str>,
        running: bool,
        by: &str,
    ) -> Result<PurgeRecord, BusError> {
        let mut record = PurgeRecord {
            queue: queue.to_owned(),
            kind: kind.map(str::to_owned),
            running,
            later_up_to: stream_state(self, STREAM_LATER).await?.last_seq,
            tasks_up_to: stream_state(self, STREAM_TASKS).await?.last_seq,
            due_up_to: stream_state(self, STREAM_DUE).await?.last_seq,
            count: None,
            by: by.to_owned(),
            at_ms: crate::now_ms(),
        };
        let key = format!("{queue}.{}-{}", record.at_ms, crate::random_token());
        let store = buckets::open(self, BUCKET_PURGES).await?;
        let put = async |record: &PurgeRecord| {
            let text = Bytes::from(serde_json::to_vec(record).unwrap_or_default());
            store.put(&key, text).await.map_err(|e| BusError::new(BUCKET_PURGES, &e))
        };
        put(&record).await?;
        let tails: &[&str] = if kind.is_some() { &["", ".>"] } else { &[".>"] };
        let tail = |tail: &str| kind.map_or_else(|| format!("{queue}{tail}"), |kind| format!("{queue}.{kind}{tail}"));
        let mut count = 0;
        for tail in tails.iter().map(|end| tail(end)) {
            count += self.purge_later(&format!("later.{tail}"), record.later_up_to).await?;
        }
        if record.later_up_to > 0 {
            // What was moved to DUE meanwhile is meant, too. Also where nothing was removed: who did that may have died then.
            self.interrupt_moves().await?;
            record.due_up_to = stream_state(self, STREAM_DUE).await?.last_seq;
            put(&record).await?;
        }
        for tail in tails.iter().map(|end| tail(end)) {
            count += self.purge_tasks(&format!("tasks.{tail}"), record.tasks_up_to).await?;
            for prefix in ["sched", "due"] {
                count += self.purge_due(&format!("{prefix}.{tail}"), record.due_up_to).await?;
            }
        }
        record.count = Some(count);
        put(&record).await?;
        Ok(record)
    }

    /// Removes what LATER holds on a subject up to a sequence; how many that were. Interrupt the moves then.
    pub(in crate::bus) async fn purge_later(&self, subject: &str, up_to: u64) -> Result<u64, BusError> {
        self.purge(STREAM_LATER, subject, up_to).await
    }

    /// Removes what TASKS holds on a subject up to a sequence; how many that were.
    pub(in crate::bus) async fn purge_tasks(&self, subject: &str, up_to: u64) -> Result<u64, BusError> {
        self.purge(STREAM_TASKS, subject, up_to).await
    }

    /// The same of DUE.
    pub(in crate::bus) async fn purge_due(&self, subject: &str, up_to: u64) -> Result<u64, BusError> {
        self.purge(STREAM_DUE, subject, up_to).await
    }

    async fn purge(&self, name: &str, subject: &str, up_to: u64) -> Result<u64, BusError> {
        let stream = self.js.get_stream(name).await.map_err(|e| BusError::new(name, &e))?;
        let purged = stream.purge().filter(subject.to_owned()).sequence(up_to + 1).await;
        Ok(purged.map_err(|e| BusError::new(name, &e))?.purged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_counted_and_hide_nothing() {
        let mut unserved: Unserved = (0..1000).map(|n| (format!("q{n:04}"), [1, 0])).collect();
        unserved.insert("reports".to_owned(), [2, 3]);
        unserved.insert("not allowed!".to_owned(), [0, 1]);
        let (first, others) = listed(unserved);
        let names: Vec<&str> = first.iter().map(|(queue, _)| queue.as_str()).collect();
        assert_eq!((names.len(), &names[..3]), (UNSERVED_LISTED_MAX, &["not allowed!", "reports", "q0000"][..]));
        assert_eq!(others, UnlistedQueues { queues: 902, waiting: 902 });
        let (all, none) = listed([("only".to_owned(), [7, 0])].into());
        assert_eq!((all.len(), none), (1, UnlistedQueues::default()));
    }
}

//! Reading RESULTS and DEAD: the collector by its durable, a waiting client by a consumer of its own.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use futures_util::{FutureExt, StreamExt};

use super::subject::{parse_dead, parse_results, results_of_job};
use super::topology::{DURABLE_COLLECTOR, STREAM_DEAD, STREAM_RESULTS, TopologyError};
use super::{Bus, from_nats};
use crate::bus::subject::TaskSubject;
use crate::dead_letter::{Evidence, HEADER_DEAD};
use crate::limits::{COLLECT_BATCH_MAX, COLLECT_BYTES_MAX};
use crate::outcome::Pack;
use crate::task::Headers;

/// The collector's two durables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Packs of outcomes.
    Results,
    /// Dead letters.
    Dead,
}

impl Ended {
    /// Name of its stream.
    #[must_use]
    pub fn stream(self) -> &'static str {
        match self {
            Self::Results => STREAM_RESULTS,
            Self::Dead => STREAM_DEAD,
        }
    }
}

/// One message of RESULTS or DEAD.
#[derive(Debug)]
pub struct EndedMessage {
    /// Sequence in its stream.
    pub seq: u64,
    /// When the server stored it, Unix time in milliseconds.
    pub stored_ms: i64,
    /// What it says, or why it cannot be read (it is kept all the same).
    pub body: Result<EndedBody, String>,
    /// The bytes as they came.
    pub payload: bytes::Bytes,
    /// The headers as they came.
    pub headers: Headers,
    /// It was delivered before: what it says may be stored already.
    pub again: bool,
}

/// What an [`EndedMessage`] says.
#[derive(Debug)]
pub enum EndedBody {
    /// A pack of outcomes of one subject.
    Pack(TaskSubject, Pack),
    /// A dead letter; the task's own bytes are the message's payload.
    Dead(TaskSubject, Box<Evidence>),
}

/// The right to acknowledge one message, once its effect is stored. Without it the message comes again.
pub struct Receipt(jetstream::message::Acker);

impl std::fmt::Debug for Receipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Receipt")
    }
}

/// Pulls from one durable of the collector, for ever: it makes its pull anew after any error.
pub struct EndedReader {
    bus: Bus,
    from: Ended,
    pull: Option<pull::Stream>,
}

/// State of a durable of the collector.
#[derive(Debug, Clone, Copy)]
pub struct EndedState {
    /// All up to this sequence is acknowledged.
    pub ack_floor: u64,
    /// Messages not delivered yet.
    pub pending: u64,
    /// Messages delivered and not acknowledged yet.
    pub ack_pending: u64,
}

/// How long a reader waits before it makes a failed pull anew.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(250);

impl EndedReader {
    /// A reader; it connects its pull at the first [`EndedReader::next`].
    #[must_use]
    pub fn new(bus: Bus, from: Ended) -> Self {
        Self { bus, from, pull: None }
    }

    /// What has come, in the order of the stream: at least one message, at most [`COLLECT_BATCH_MAX`], and no more after
    /// [`COLLECT_BYTES_MAX`] bytes.
    ///
    /// # Cancel safety
    /// Safe: what was received and not returned is delivered again.
    pub async fn next(&mut self) -> (Vec<EndedMessage>, Vec<Receipt>) {
        loop {
            let Some(pull) = &mut self.pull else {
                match start_pull(&self.bus, self.from).await {
                    Ok(pull) => self.pull = Some(pull),
                    Err(error) => {
                        tracing::warn!(stream = self.from.stream(), %error, "cannot pull, will try again");
                        tokio::time::sleep(READ_AGAIN_AFTER).await;
                    }
                }
                continue;
            };
            let (mut messages, mut receipts, mut bytes) = (Vec::new(), Vec::new(), 0);
            let mut next = pull.next().await;
            let ended = loop {
                match next {
                    None => break true,
                    Some(Err(error)) => {
                        tracing::debug!(stream = self.from.stream(), %error, "pull ended, making it anew");
                        break true;
                    }
                    Some(Ok(message)) => {
                        bytes += message.payload.len();
                        if let Some((message, receipt)) = read(self.from, message) {
                            messages.push(message);
                            receipts.push(receipt);
                        }
                    }
                }
                if messages.len() >= COLLECT_BATCH_MAX || bytes >= COLLECT_BYTES_MAX {
                    break false;
                }
                match pull.next().now_or_never() {
                    Some(ready) => next = ready,
                    None => break false,
                }
            };
            if ended {
                self.pull = None;
            }
            if messages.is_empty() {
                tokio::time::sleep(READ_AGAIN_AFTER).await;
            } else {
                return (messages, receipts);
            }
        }
    }

    /// Drops the pull; the next [`EndedReader::next`] makes it anew. For a watchdog that sees messages wait at the
    /// server and none come. What was received and not returned comes again.
    pub fn restart(&mut self) {
        self.pull = None;
    }

    /// Gives a receipt back: the server forgets the message for this durable. A lost ack only means that it comes again.
    pub async fn ack(&self, receipt: Receipt) {
        if let Err(error) = receipt.0.ack().await {
            tracing::debug!(%error, "ack not sent, the message will come again");
        }
    }

    /// Asks the server where the durable stands.
    ///
    /// # Errors
    /// [`TopologyError`] when the server does not answer.
    pub async fn state(&self) -> Result<EndedState, TopologyError> {
        let consumer = consumer(&self.bus, self.from.stream()).await?;
        let info = consumer.cached_info();
        Ok(EndedState {
            ack_floor: info.ack_floor.stream_sequence,
            pending: info.num_pending,
            ack_pending: info.num_ack_pending as u64,
        })
    }

    /// Removes everything up to and including `seq` from the stream.
    ///
    /// # Errors
    /// [`TopologyError`] when the server does not answer.
    pub async fn purge_through(&self, seq: u64) -> Result<(), TopologyError> {
        let name = self.from.stream();
        let stream = self.bus.js.get_stream(name).await.map_err(|e| TopologyError::new(name, &e))?;
        stream.purge().sequence(seq + 1).await.map_err(|e| TopologyError::new(name, &e))?;
        Ok(())
    }
}

async fn consumer(bus: &Bus, stream: &str) -> Result<PullConsumer, TopologyError> {
    let found = bus.js.get_consumer_from_stream(DURABLE_COLLECTOR, stream).await;
    found
        .map_err(|e| TopologyError::new(&format!("use of the collector's consumer on {stream} (has `setup` run?)"), &e))
}

async fn start_pull(bus: &Bus, from: Ended) -> Result<pull::Stream, TopologyError> {
    let consumer = consumer(bus, from.stream()).await?;
    let stream = consumer
        .stream()
        .max_messages_per_batch(COLLECT_BATCH_MAX)
        .max_bytes_per_batch(COLLECT_BYTES_MAX)
        .expires(Duration::from_secs(10))
        .heartbeat(Duration::from_secs(2))
        .messages()
        .await;
    stream.map_err(|e| TopologyError::new(from.stream(), &e))
}

fn read(from: Ended, message: jetstream::Message) -> Option<(EndedMessage, Receipt)> {
    let (seq, stored_ms, again) = {
        let info = message.info().ok()?;
        (info.stream_sequence, unix_ms(info.published), info.delivered > 1)
    };
    let headers = from_nats(message.headers.as_ref());
    let (message, acker) = message.split();
    let body = match from {
        Ended::Results => read_pack(&message.subject, &message.payload),
        Ended::Dead => read_dead(&message.subject, &headers),
    };
    Some((EndedMessage { seq, stored_ms, body, payload: message.payload, headers, again }, Receipt(acker)))
}

fn read_pack(subject: &str, payload: &[u8]) -> Result<EndedBody, String> {
    let subject = parse_results(subject).map_err(|e| e.to_string())?;
    let pack = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
    Ok(EndedBody::Pack(subject, pack))
}

fn read_dead(subject: &str, headers: &Headers) -> Result<EndedBody, String> {
    let subject = parse_dead(subject).map_err(|e| e.to_string())?;
    let header = headers.iter().find(|(n, _)| n == HEADER_DEAD);
    let (_, text) = header.ok_or_else(|| format!("header {HEADER_DEAD} is missing"))?;
    let evidence: Evidence = serde_json::from_str(text).map_err(|e| e.to_string())?;
    Ok(EndedBody::Dead(subject, Box::new(evidence)))
}

/// Unix time in milliseconds of a server timestamp.
pub(super) fn unix_ms(at: async_nats::datetime::DateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// The outcomes of one job as they come, each at least once: a client that waits dedupes by index.
/// It reads the stream, so that neither a reconnect nor a slow reader loses one.
pub struct JobReader {
    bus: Bus,
    filter: String,
    /// The next sequence to read; none before the first message: from now on.
    next_seq: Option<u64>,
    /// Messages that were there when the reader was made, or made anew, and are not read yet.
    backlog: u64,
    heard: Instant,
    pull: Option<pull::Stream>,
}

impl JobReader {
    /// Starts to read from this sequence of RESULTS; returns once the server has the consumer.
    ///
    /// # Errors
    /// [`TopologyError`] when the server does not answer or refuses.
    pub async fn start_from(bus: &Bus, job: &str, seq: u64) -> Result<Self, TopologyError> {
        let mut reader = Self {
            bus: bus.clone(),
            filter: results_of_job(job),
            next_seq: Some(seq),
            backlog: 0,
            heard: Instant::now(),
            pull: None,
        };
        reader.open().await?;
        Ok(reader)
    }

    /// Messages that were there when reading began and are not read yet.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.backlog
    }

    /// When something was last read, or reading began: whoever has heard nothing for long asks anew what is left.
    #[must_use]
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// Counts anew what is left, from where it was read to: what was purged never comes.
    pub fn count_anew(&mut self) {
        (self.pull, self.heard) = (None, Instant::now());
    }

    async fn open(&mut self) -> Result<(), TopologyError> {
        let what = format!("a reader of {}", self.filter);
        let config = pull::Config {
            deliver_policy: self
                .next_seq
                .map_or(DeliverPolicy::New, |start_sequence| DeliverPolicy::ByStartSequence { start_sequence }),
            ack_policy: AckPolicy::None,
            // A name of its own puts name and filter into the subject that the role's permissions look at.
            name: Some(format!("r-{}", crate::random_token())),
            filter_subject: self.filter.clone(),
            inactive_threshold: Duration::from_secs(60),
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        let created = self.bus.js.create_consumer_on_stream(config, STREAM_RESULTS).await;
        let consumer: PullConsumer = created.map_err(|e| TopologyError::new(&what, &e))?;
        let backlog = consumer.cached_info().num_pending;
        let stream = consumer
            .stream()
            .max_messages_per_batch(COLLECT_BATCH_MAX)
            .max_bytes_per_batch(COLLECT_BYTES_MAX)
            .expires(Duration::from_secs(10))
            .heartbeat(Duration::from_secs(2))
            .messages()
            .await;
        self.pull = Some(stream.map_err(|e| TopologyError::new(&what, &e))?);
        (self.backlog, self.heard) = (backlog, Instant::now());
        Ok(())
    }

    /// The next pack, with its subject.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when it is dropped.
    pub async fn next(&mut self) -> (TaskSubject, Pack) {
        loop {
            let Some(pull) = &mut self.pull else {
                if let Err(error) = self.open().await {
                    tracing::debug!(%error, "cannot read results yet, will try again");
                    tokio::time::sleep(READ_AGAIN_AFTER).await;
                }
                continue;
            };
            let Some(Ok(message)) = pull.next().await else {
                self.pull = None;
                continue;
            };
            if let Ok(info) = message.info() {
                self.next_seq = Some(info.stream_sequence + 1);
            }
            (self.backlog, self.heard) = (self.backlog.saturating_sub(1), Instant::now());
            match read_pack(&message.subject, &message.payload) {
                Ok(EndedBody::Pack(subject, pack)) => return (subject, pack),
                Ok(EndedBody::Dead(..)) => {}
                Err(error) => tracing::warn!(%error, subject = %message.subject, "a result pack cannot be read"),
            }
        }
    }
}

/// The outcomes of one job as they are published, by a plain subscription: the fastest way to hear of them. After a
/// reconnect, or when this client was too slow, it reads the stream as well, from where it began: nothing is missed,
/// some come twice.
pub struct LiveReader {
    bus: Bus,
    filter: String,
    /// RESULTS had this much when it began.
    from_seq: u64,
    messages: async_nats::Subscriber,
    connection: tokio::sync::watch::Receiver<super::Connection>,
    dropped: u64,
    catch_up: Option<JobReader>,
}

impl LiveReader {
    /// Starts to listen; what is published after this returns is heard.
    ///
    /// # Errors
    /// [`TopologyError`] when the server does not answer.
    pub async fn start(bus: &Bus, job: &str) -> Result<Self, TopologyError> {
        Self::start_on(bus, results_of_job(job)).await
    }

    /// Starts to listen to results of other subjects, `results.…`.
    ///
    /// # Errors
    /// [`TopologyError`] when the server does not answer.
    pub async fn start_on(bus: &Bus, filter: String) -> Result<Self, TopologyError> {
        let mut connection = bus.connection();
        connection.mark_unchanged();
        let dropped = bus.dropped_messages();
        let subscribed = bus.client.subscribe(filter.clone()).await;
        let messages = subscribed.map_err(|e| TopologyError::new(&filter, &e))?;
        // Its answer comes after the subscription is in place.
        let from_seq = super::topology::stream_state(bus, STREAM_RESULTS).await?.last_seq + 1;
        Ok(Self { bus: bus.clone(), filter, from_seq, messages, connection, dropped, catch_up: None })
    }

    /// The next pack, with its subject.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when it is dropped.
    pub async fn next(&mut self) -> (TaskSubject, Pack) {
        loop {
            let dropped = self.bus.dropped_messages();
            if dropped != self.dropped {
                self.dropped = dropped;
                self.read_again();
            }
            tokio::select! {
                Some(message) = self.messages.next() => match read_pack(&message.subject, &message.payload) {
                    Ok(EndedBody::Pack(subject, pack)) => return (subject, pack),
                    Ok(EndedBody::Dead(..)) => {}
                    Err(error) => tracing::warn!(%error, subject = %message.subject, "a result pack cannot be read"),
                },
                changed = self.connection.changed() => {
                    if changed.is_ok() && self.connection.borrow_and_update().up {
                        self.read_again();
                    }
                }
                pack = caught_up(&mut self.catch_up) => return pack,
            }
        }
    }

    /// Reads what RESULTS still holds as well: for a task that may have ended before this began to listen.
    pub fn read_from_oldest(&mut self) {
        self.from_seq = 1;
        self.read_again();
    }

    fn read_again(&mut self) {
        let (bus, filter) = (self.bus.clone(), self.filter.clone());
        self.catch_up = Some(JobReader {
            bus,
            filter,
            next_seq: Some(self.from_seq),
            backlog: 0,
            heard: Instant::now(),
            pull: None,
        });
    }
}

async fn caught_up(reader: &mut Option<JobReader>) -> (TaskSubject, Pack) {
    match reader {
        Some(reader) => reader.next().await,
        None => std::future::pending().await,
    }
}

//! Reading RESULTS and DEAD: the collector by its durable, a waiting client by a consumer of its own.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{PullConsumer, pull};
use data_encoding::BASE64;
use futures_util::StreamExt;

use crate::bus::error::BusError;
use crate::bus::read::raw::RawMessage;
use crate::bus::read::{PULL_EXPIRES_AFTER, unix_ms};
use crate::bus::topology::make_collector_durable;
use crate::bus::{Bus, from_nats};
use crate::dead_letter::Evidence;
use crate::limits::{COLLECT_BATCH_MAX, COLLECT_BYTES_MAX};
use crate::outcome::ResultBatch;
use crate::wire::decode::decode;
use crate::wire::header_block::UnreadableMessage;
use crate::wire::headers::{HEADER_DEAD, HEADER_RAW_HEADERS, Headers};
use crate::wire::streams::{DURABLE_COLLECTOR, STREAM_DEAD, STREAM_RESULTS};
use crate::wire::subject::{TaskSubject, parse_dead, parse_results};

/// The collector's two durables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeStream {
    /// Result batches.
    Results,
    /// Dead letters.
    Dead,
}

impl OutcomeStream {
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
pub struct OutcomeMessage {
    /// Sequence in its stream.
    pub seq: u64,
    /// When the server stored it, Unix time in milliseconds.
    pub stored_ms: i64,
    /// Its content, or why that cannot be read (the message is kept all the same).
    pub body: Result<OutcomeBody, String>,
    /// The bytes as they came.
    pub payload: bytes::Bytes,
    /// The headers as they came.
    pub headers: Headers,
    /// It was delivered before: its content may be stored already.
    pub again: bool,
}

/// The content of an [`OutcomeMessage`].
#[derive(Debug)]
pub enum OutcomeBody {
    /// A batch of outcomes of one subject, and what is wrong with those that were taken out because they cannot be read.
    Results(TaskSubject, ResultBatch, Vec<String>),
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
pub struct OutcomeReader {
    bus: Bus,
    from: OutcomeStream,
    consumer: Option<PullConsumer>,
    /// A request for one message.
    pull: Option<pull::Batch>,
    /// The last try to pull has failed, and that is logged.
    is_failing: bool,
}

/// State of a durable of the collector.
#[derive(Debug, Clone, Copy)]
pub struct OutcomeReaderState {
    /// All up to this sequence is acknowledged.
    pub ack_floor: u64,
    /// Messages not delivered yet.
    pub pending: u64,
    /// Messages delivered and not acknowledged yet.
    pub ack_pending: u64,
}

/// How long each message of those that wait may take to come, or the word that there are no more.
const REST_ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long a reader waits before it makes a failed pull anew.
pub(super) const READ_AGAIN_AFTER: Duration = Duration::from_millis(250);

impl OutcomeReader {
    /// A reader; it connects its pull at the first [`OutcomeReader::next`].
    #[must_use]
    pub fn new(bus: Bus, from: OutcomeStream) -> Self {
        Self { bus, from, consumer: None, pull: None, is_failing: false }
    }

    /// The next message, however long it takes to come. Only this one wakes the collector: what comes next waits at the server for
    /// [`OutcomeReader::rest`].
    ///
    /// # Cancel safety
    /// Safe: what was received and not returned is delivered again.
    pub async fn next(&mut self) -> (OutcomeMessage, Receipt) {
        loop {
            let Some(pull) = &mut self.pull else {
                match self.start_pull().await {
                    Ok(pull) => {
                        self.pull = Some(pull);
                        if std::mem::take(&mut self.is_failing) {
                            tracing::info!(stream = self.from.stream(), "pulls again");
                        }
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut self.is_failing, true) {
                            tracing::warn!(stream = self.from.stream(), %error, "cannot pull, will try again");
                        }
                        tokio::time::sleep(READ_AGAIN_AFTER).await;
                    }
                }
                continue;
            };
            let received = pull.next().await;
            self.pull = None;
            match received {
                // It has expired.
                None => {}
                Some(Err(error)) => {
                    tracing::debug!(stream = self.from.stream(), %error, "pull ended, making it anew");
                    self.consumer = None;
                    tokio::time::sleep(READ_AGAIN_AFTER).await;
                }
                Some(Ok(message)) => {
                    if let Some(message) = read(self.from, message) {
                        return message;
                    }
                }
            }
        }
    }

    async fn start_pull(&mut self) -> Result<pull::Batch, BusError> {
        let consumer = match self.consumer.take() {
            Some(consumer) => consumer,
            None => collector_durable(&self.bus, self.from).await?,
        };
        let pull = consumer.batch().max_messages(1).expires(PULL_EXPIRES_AFTER).messages().await;
        let pull = pull.map_err(|e| BusError::new(self.from.stream(), &e))?;
        self.consumer = Some(consumer);
        Ok(pull)
    }

    /// What waits at the server now, in the order of the stream: at most so many messages, of [`COLLECT_BYTES_MAX`] bytes together. It
    /// may be nothing, also when the server does not answer.
    ///
    /// # Cancel safety
    /// Safe: what was received and not returned is delivered again.
    pub async fn rest(&mut self, messages_max: usize) -> (Vec<OutcomeMessage>, Vec<Receipt>) {
        let (mut messages, mut receipts) = (Vec::new(), Vec::new());
        let Some(consumer) = &self.consumer else { return (messages, receipts) };
        let fetching = consumer.fetch().max_messages(messages_max).max_bytes(COLLECT_BYTES_MAX).messages();
        let Ok(mut waiting) = fetching.await else { return (messages, receipts) };
        while let Ok(Some(Ok(message))) = tokio::time::timeout(REST_ANSWER_WITHIN, waiting.next()).await {
            if let Some((message, receipt)) = read(self.from, message) {
                messages.push(message);
                receipts.push(receipt);
            }
        }
        (messages, receipts)
    }

    /// Drops the pull; the next [`OutcomeReader::next`] makes it anew. After a loss of the connection, and for a watchdog that sees
    /// messages wait at the server and none come. What was received and not returned comes again.
    pub fn restart(&mut self) {
        (self.consumer, self.pull) = (None, None);
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
    /// [`BusError`] when the server does not answer.
    pub async fn state(&self) -> Result<OutcomeReaderState, BusError> {
        let consumer = consumer(&self.bus, self.from.stream()).await?;
        let info = consumer.cached_info();
        Ok(OutcomeReaderState {
            ack_floor: info.ack_floor.stream_sequence,
            pending: info.num_pending,
            ack_pending: info.num_ack_pending as u64,
        })
    }

    /// What was delivered, is not acknowledged, and cannot be read by the NATS client: it would come again for ever. It is read
    /// raw; the content counts where only the headers are broken. Give each to [`OutcomeReader::remove`] once it is stored.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn poison(&self) -> Result<Vec<OutcomeMessage>, BusError> {
        let consumer = consumer(&self.bus, self.from.stream()).await?;
        let info = consumer.cached_info();
        let (mut at, mut found, mut bytes) = (info.ack_floor.stream_sequence, Vec::new(), 0);
        while info.num_ack_pending > 0 && found.len() < COLLECT_BATCH_MAX && bytes < COLLECT_BYTES_MAX {
            let Some(message) = self.bus.next_raw_message(self.from.stream(), at + 1, ">").await? else { break };
            if message.seq > info.delivered.stream_sequence {
                break;
            }
            at = message.seq;
            if let Err(why) = message.headers() {
                bytes += message.payload.len();
                found.push(read_raw(self.from, message, why));
            }
        }
        Ok(found)
    }

    /// Removes a message of [`OutcomeReader::poison`] from the stream.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn remove(&self, message: &OutcomeMessage) -> Result<(), BusError> {
        self.bus.remove_message(self.from.stream(), message.seq).await
    }

    /// Removes everything up to and including `seq` from the stream.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn purge_through(&self, seq: u64) -> Result<(), BusError> {
        let name = self.from.stream();
        let stream = self.bus.js.get_stream(name).await.map_err(|e| BusError::new(name, &e))?;
        stream.purge().sequence(seq + 1).await.map_err(|e| BusError::new(name, &e))?;
        Ok(())
    }
}

async fn consumer(bus: &Bus, stream: &str) -> Result<PullConsumer, BusError> {
    let found = bus.js.get_consumer_from_stream(DURABLE_COLLECTOR, stream).await;
    found.map_err(|e| BusError::new(&format!("use of the collector's consumer on {stream}"), &e))
}

async fn collector_durable(bus: &Bus, from: OutcomeStream) -> Result<PullConsumer, BusError> {
    match consumer(bus, from.stream()).await {
        Err(BusError::Missing { .. }) => {
            make_collector_durable(bus, from.stream()).await?;
            tracing::warn!(stream = from.stream(), "the collector's consumer was deleted; it is made again");
            consumer(bus, from.stream()).await
        }
        found => found,
    }
}

fn read(from: OutcomeStream, message: jetstream::Message) -> Option<(OutcomeMessage, Receipt)> {
    let (seq, stored_ms, again) = {
        let info = message.info().ok()?;
        (info.stream_sequence, unix_ms(info.published), info.delivered > 1)
    };
    let headers = from_nats(message.headers.as_ref());
    let (message, acker) = message.split();
    let body = match from {
        OutcomeStream::Results => read_results(&message.subject, &message.payload),
        OutcomeStream::Dead => read_dead(&message.subject, &headers),
    };
    Some((OutcomeMessage { seq, stored_ms, body, payload: message.payload, headers, again }, Receipt(acker)))
}

fn read_raw(from: OutcomeStream, message: RawMessage, why: UnreadableMessage) -> OutcomeMessage {
    let body = match from {
        // Nothing of it stands in headers.
        OutcomeStream::Results => read_results(&message.subject, &message.payload),
        OutcomeStream::Dead => Err(why.to_string()),
    };
    let RawMessage { seq, stored_ms, payload, header_block, .. } = message;
    let headers = vec![(HEADER_RAW_HEADERS.to_owned(), BASE64.encode(&header_block))];
    OutcomeMessage { seq, stored_ms, body, payload, headers, again: false }
}

pub(crate) fn read_results(subject: &str, payload: &[u8]) -> Result<OutcomeBody, String> {
    let subject = parse_results(subject).map_err(|e| e.to_string())?;
    let mut batch: ResultBatch = decode(payload).map_err(|e| e.to_string())?;
    let bad = batch.take_bad();
    Ok(OutcomeBody::Results(subject, batch, bad))
}

pub(crate) fn read_dead(subject: &str, headers: &Headers) -> Result<OutcomeBody, String> {
    let subject = parse_dead(subject).map_err(|e| e.to_string())?;
    let header = headers.iter().find(|(n, _)| n == HEADER_DEAD);
    let (_, text) = header.ok_or_else(|| format!("header {HEADER_DEAD} is missing"))?;
    let evidence: Evidence = decode(text.as_bytes()).map_err(|e| format!("header {HEADER_DEAD}: {e}"))?;
    Ok(OutcomeBody::Dead(subject, Box::new(evidence)))
}

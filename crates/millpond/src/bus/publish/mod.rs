//! Storing messages: every publish waits for the server's ack, and is sent again with the same id until it is stored
//! or refused for good. To pipeline, run several at once; to stop at a full stream, see [`StreamCapacity`].

pub(crate) mod acks;
pub mod bounded;
pub mod payloads;
pub mod queue_limits;
pub mod schedules;
pub(crate) mod stored_already;
pub(crate) mod unique;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::client::RequestErrorKind;
use async_nats::jetstream::ErrorCode;
use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tokio::task::JoinSet;

use crate::bus::topology::stream_state;
use crate::bus::{Bus, to_nats};
use crate::wire::headers::Headers;
use crate::wire::number::WireMismatch;
use crate::wire::server_errors::is_passing;
use crate::wire::streams::STREAM_TASKS;

use acks::{AckTo, NoAck};

/// Our clients stop at this share of the TASKS limit, in percent, so that other publishers have capacity.
const STREAM_FILL_PERCENT_MAX: u64 = 90;
/// How long a publisher waits when the stream is full.
pub(crate) const STREAM_FULL_WAIT: Duration = Duration::from_millis(200);

/// Where the server stored a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Sequence in its stream.
    pub seq: u64,
    /// The server had this id already: success for one's own resend.
    pub duplicate: bool,
}

/// Why a message was not stored. Waiting does not help, unless the variant says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No stream takes the subject.
    #[error(
        "no stream takes subject {subject}; a task's subject is tasks.<queue>.<kind>, and `setup` must have run once"
    )]
    NoStream {
        /// The subject.
        subject: String,
    },
    /// The message is larger than the stream or the server allows.
    #[error("message of {bytes} bytes for {subject} is too large: {reason}")]
    TooLarge {
        /// The subject.
        subject: String,
        /// Payload bytes.
        bytes: usize,
        /// The words of the server.
        reason: String,
    },
    /// The server will not take it.
    #[error("nats-server refused a message for {subject}: {reason}")]
    Refused {
        /// The subject.
        subject: String,
        /// The words of the server.
        reason: String,
    },
    /// It was to be stored only behind another message of its subject, and that is not the newest (any more). It is not
    /// stored, unless it was before: the server answers that in the same way.
    #[error("a message for {subject} is not stored: another one is the newest there")]
    NotLast {
        /// The subject.
        subject: String,
    },
    /// No answer until the caller's deadline; it may or may not be stored: send again with the same id.
    #[error("no answer from nats-server for a message for {subject} within {}; is it up, with most of its nodes, and may this user publish there?", humantime::format_duration(*.waited))]
    NoAnswer {
        /// The subject.
        subject: String,
        /// How long.
        waited: Duration,
    },
    /// The server has answered until the caller's deadline that it cannot store it now, or the stream has no leader; an earlier try may
    /// be stored: send again with the same id.
    #[error("a message for {subject} is not stored within {}, and may be later: {reason}", humantime::format_duration(*.waited))]
    NotYet {
        /// The subject.
        subject: String,
        /// How long.
        waited: Duration,
        /// The words of the server, or what the stream lacks.
        reason: String,
    },
    /// The streams are of another wire number: nothing is stored any more.
    #[error(transparent)]
    Wire(#[from] WireMismatch),
    /// As many tasks wait in the queue as it may hold, until the caller's deadline; nothing was stored.
    #[error(
        "queue {queue} is full: {max_waiting} tasks may wait in it; come again when workers have done some, or raise its limit (`millpond queue set {queue} --max-waiting N`)"
    )]
    QueueFull {
        /// The queue.
        queue: String,
        /// Its limit, in tasks.
        max_waiting: u64,
    },
}

impl PublishError {
    /// Whether the server refuses this message whenever it is sent: another one has to take its place.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::Refused { .. } | Self::NotLast { .. })
    }
}

/// How long a publisher goes on while the server does not answer, or a bounded queue is full. A full stream is waited
/// for without an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDeadline {
    /// For what must not be lost: until the process ends. Even "no stream" is waited out: a server may be starting.
    Unlimited,
    /// For a person who waits.
    Within(Duration),
}

impl From<Duration> for RetryDeadline {
    fn from(within: Duration) -> Self {
        Self::Within(within)
    }
}

pub(in crate::bus) enum StoreFailure {
    /// Nothing was answered: try again after this pause.
    Again(Duration),
    /// The server says that it cannot store it now: try again after a pause.
    Busy(String),
    /// The queue is full, and this message is not in it: try again after this pause.
    Full(Duration, PublishError),
    NoStream,
    /// The newest message of those that the publish names is not the expected one, but this (0: there is none).
    NotLast(u64),
    /// The server stores nothing that replaces others there: what [`Bus::stored_in`] is answered about a new message.
    NoRollup(String),
    Final(PublishError),
}

/// How long until a publish is sent again that may be stored or not.
const UNKNOWN_AGAIN_AFTER: Duration = Duration::from_millis(20);
/// A "no stream" that lasts this long is looked into.
const NO_STREAM_FOR: Duration = Duration::from_secs(1);

/// How long the servers are waited for to say which streams there are.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// What ends the time without a leader.
const LEADER_COMES_BACK: &str = "because one is being elected (it takes some seconds), or because too few nodes are up";

/// The server's answer to which streams take a subject.
#[derive(serde::Deserialize)]
struct StreamNames {
    streams: Option<Vec<String>>,
    error: Option<serde::de::IgnoredAny>,
}

impl Bus {
    /// Stores one message; give it a `Nats-Msg-Id` so that a resend is harmless.
    ///
    /// # Errors
    /// [`PublishError`]; with [`RetryDeadline::Unlimited`] only what is refused for good.
    ///
    /// # Cancel safety
    /// Not safe: a dropped publish may or may not be stored.
    pub async fn store(
        &self,
        subject: &str,
        headers: &Headers,
        payload: Bytes,
        deadline: RetryDeadline,
    ) -> Result<Stored, PublishError> {
        let started = Instant::now();
        let headers = self.signed(subject, headers, &payload);
        loop {
            match self.try_store(subject, headers.clone(), payload.clone()).await {
                Ok(stored) => return Ok(stored),
                Err(failed) => self.wait_after(failed, subject, deadline, started).await?,
            }
        }
    }

    /// Waits before the next try of a publish that began at `started`, or says why there is none.
    pub(in crate::bus) async fn wait_after(
        &self,
        failed: StoreFailure,
        subject: &str,
        deadline: RetryDeadline,
        started: Instant,
    ) -> Result<(), PublishError> {
        let pause = match failed.pause(subject, deadline, started) {
            // Nobody takes the subject: there is no such stream, or nobody leads it.
            Err(error @ PublishError::NoStream { .. }) => match self.stream_without_leader(subject).await {
                None => return Err(error),
                Some(reason) => StoreFailure::Busy(reason).pause(subject, deadline, started)?,
            },
            pause => pause?,
        };
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Why nobody takes a subject, where a stream for it is there; none when there is none.
    pub(in crate::bus) async fn stream_without_leader(&self, subject: &str) -> Option<String> {
        let request = Bytes::from(serde_json::json!({ "subject": subject }).to_string());
        // The servers know of streams whoever leads them, unless nobody leads the servers.
        let answer = self.client.request("$JS.API.STREAM.NAMES", request);
        match tokio::time::timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(answer)) => match serde_json::from_slice(&answer.payload) {
                Ok(StreamNames { streams, error: None }) => {
                    streams?.first().map(|name| format!("stream {name} has no leader, {LEADER_COMES_BACK}"))
                }
                _ => Some(format!("the servers have no leader, {LEADER_COMES_BACK}")),
            },
            // There is no JetStream, so there is no stream.
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => None,
            _ => Some(format!("nobody takes it, and no server says why: they may have no leader, {LEADER_COMES_BACK}")),
        }
    }

    /// The headers with their signature, where there is a key and it is a task, or a dead letter.
    pub(in crate::bus) fn signed(&self, subject: &str, headers: &Headers, payload: &[u8]) -> async_nats::HeaderMap {
        match self.signer.as_ref().filter(|_| is_signed(subject)) {
            Some(signer) => {
                let mut signed = headers.clone();
                signer.sign(subject, &mut signed, payload);
                to_nats(&signed)
            }
            None => to_nats(headers),
        }
    }

    /// Publishes a message without waiting; false when that cannot be now, and nothing was published. Its ack goes to who waits.
    pub(crate) fn publish_now(&self, subject: &str, headers: &Headers, payload: Bytes, to: AckTo) -> bool {
        self.wire.mismatch().is_none() && {
            let headers = self.signed(subject, headers, &payload);
            self.acks.publish_now(subject, headers, payload, to)
        }
    }

    pub(in crate::bus) async fn try_store(
        &self,
        subject: &str,
        headers: async_nats::HeaderMap,
        payload: Bytes,
    ) -> Result<Stored, StoreFailure> {
        if let Some(mismatch) = self.wire.mismatch() {
            return Err(StoreFailure::Final(mismatch.clone().into()));
        }
        let (bytes, (sender, ack)) = (payload.len(), oneshot::channel());
        self.acks.publish(subject, headers, payload, AckTo::One(sender)).await;
        ack.await.unwrap_or(Err(NoAck::Unknown)).map_err(|no_ack| judge(no_ack, subject, bytes))
    }
}

impl StoreFailure {
    /// How long to wait before the next try, until the caller's deadline.
    pub(in crate::bus) fn pause(
        self,
        subject: &str,
        deadline: RetryDeadline,
        started: Instant,
    ) -> Result<Duration, PublishError> {
        let over = match deadline {
            RetryDeadline::Unlimited => false,
            RetryDeadline::Within(limit) => started.elapsed() >= limit,
        };
        let subject = subject.to_owned();
        match self {
            Self::Final(error) => Err(error),
            Self::NoRollup(reason) => Err(PublishError::Refused { subject, reason }),
            Self::Full(_, error) if over => Err(error),
            Self::NoStream if deadline != RetryDeadline::Unlimited && started.elapsed() >= NO_STREAM_FOR => {
                Err(PublishError::NoStream { subject })
            }
            Self::NotLast(_) => Err(PublishError::NotLast { subject }),
            Self::Busy(reason) if over => Err(PublishError::NotYet { subject, waited: started.elapsed(), reason }),
            _ if over => Err(PublishError::NoAnswer { subject, waited: started.elapsed() }),
            Self::Again(pause) | Self::Full(pause, _) => Ok(pause),
            Self::Busy(_) | Self::NoStream => Ok(STREAM_FULL_WAIT),
        }
    }
}

/// Whether a message on this subject is run: all of these are signed, also retries and schedules. So is a dead letter, whose task
/// may be tried by hand (`handler try --task`).
fn is_signed(subject: &str) -> bool {
    ["tasks.", "later.", "sched.", "due.", "dead."].iter().any(|prefix| subject.starts_with(prefix))
}

fn judge(no_ack: NoAck, subject: &str, bytes: usize) -> StoreFailure {
    let subject = subject.to_owned();
    let error = match no_ack {
        NoAck::NoStream => return StoreFailure::NoStream,
        NoAck::Unknown => return StoreFailure::Again(UNKNOWN_AGAIN_AFTER),
        NoAck::TooLarge(reason) => return StoreFailure::Final(PublishError::TooLarge { subject, bytes, reason }),
        NoAck::Refused(error) => error,
    };
    let (code, status, reason) = (error.error_code(), error.code() as u64, error.to_string());
    match code {
        code if is_passing(code.0, status) => StoreFailure::Busy(reason),
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            StoreFailure::Final(PublishError::TooLarge { subject, bytes, reason })
        }
        ErrorCode::STREAM_ROLLUP_FAILED => StoreFailure::NoRollup(reason),
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE => match newest(&reason) {
            Some(newest) => StoreFailure::NotLast(newest),
            None => StoreFailure::Final(PublishError::Refused { subject, reason }),
        },
        _ => StoreFailure::Final(PublishError::Refused { subject, reason }),
    }
}

/// The sequence in `wrong last sequence: 12 (code …`; the server gives it nowhere else.
fn newest(reason: &str) -> Option<u64> {
    reason.split("sequence: ").nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Keeps our own clients below [`STREAM_FILL_PERCENT_MAX`] of TASKS, so that others have capacity. It requests the state at most
/// five times a second, and only when called.
pub struct StreamCapacity {
    bus: Bus,
    seen: Mutex<Option<(Instant, bool)>>,
    reading: AsyncMutex<()>,
    /// Reads it beside the publishes.
    refreshing: Mutex<JoinSet<()>>,
}

impl StreamCapacity {
    /// Watches TASKS through this connection.
    #[must_use]
    pub fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone(), seen: Mutex::new(None), reading: AsyncMutex::new(()), refreshing: Mutex::default() }
    }

    fn last_seen(&self) -> Option<(Instant, bool)> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self) -> Option<bool> {
        self.last_seen().filter(|(at, _)| at.elapsed() < STREAM_FULL_WAIT).map(|(_, full)| full)
    }

    /// Whether there was capacity when it was read last. If that is a while ago, it is read anew meanwhile: the server itself refuses
    /// what it cannot store, so a publish need not wait for it.
    pub(crate) fn was_free(self: &Arc<Self>) -> bool {
        match self.last_seen() {
            Some((at, false)) => {
                if at.elapsed() >= STREAM_FULL_WAIT {
                    self.refresh();
                }
                true
            }
            _ => false,
        }
    }

    fn refresh(self: &Arc<Self>) {
        let mut refreshing = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        while refreshing.try_join_next().is_some() {}
        if refreshing.is_empty() {
            let capacity = self.clone();
            refreshing.spawn(async move {
                capacity.is_full().await;
            });
        }
    }

    /// Reads whether there is capacity, unless it was read before.
    pub(crate) async fn learn(self: &Arc<Self>) {
        if !self.was_free() {
            self.is_full().await;
        }
    }

    /// Returns at once while there is capacity, else when there is again.
    pub async fn wait(self: &Arc<Self>) {
        while !self.was_free() && self.is_full().await {
            tokio::time::sleep(STREAM_FULL_WAIT).await;
        }
    }

    async fn is_full(&self) -> bool {
        if let Some(full) = self.fresh() {
            return full;
        }
        let _one_at_a_time = self.reading.lock().await;
        if let Some(full) = self.fresh() {
            return full;
        }
        let above = |held: u64, max: Option<u64>| {
            max.is_some_and(|max| held.saturating_mul(100) >= max.saturating_mul(STREAM_FILL_PERCENT_MAX))
        };
        // Without an answer the publish itself finds out.
        let full = stream_state(&self.bus, STREAM_TASKS)
            .await
            .is_ok_and(|s| above(s.messages, s.messages_max) || above(s.bytes, s.bytes_max));
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), full));
        full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_sequence_is_read_from_the_words() {
        assert_eq!(newest("wrong last sequence: 0 (code 400, error code 10071)"), Some(0));
        assert_eq!(newest("wrong last sequence: 12"), Some(12));
        assert_eq!(newest("wrong last sequence (code 400, error code 10071)"), None);
    }
}

//! The acks of a connection's publishes: all come to one inbox, each under the number of its publish. A publish costs no subscription,
//! no timer and no task of its own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::client::PublishErrorKind;
use async_nats::jetstream;
use async_nats::{HeaderMap, Message, StatusCode, SubscribeError};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::Stored;
use crate::bus::Connection;

/// How long a publish waits for its ack. It is sent again with the same id then.
const ACK_WITHIN: Duration = Duration::from_secs(5);
/// How often publishes are looked through for one whose ack has not come in time.
const OVERDUE_EVERY: Duration = Duration::from_secs(1);

/// Acks that are read together, at the most.
const READ_AT_ONCE_MAX: usize = 256;

/// The server's answer to one publish, or why there is none.
pub(crate) type Ack = Result<Stored, NoAck>;

/// Why a publish has no ack.
#[derive(Debug)]
pub(crate) enum NoAck {
    /// No stream takes the subject.
    NoStream,
    /// The server has refused it.
    Refused(jetstream::Error),
    /// The message is larger than the server takes, in its own words.
    TooLarge(String),
    /// It may be stored or not: the connection was lost, or no answer has come in time.
    Unknown,
}

/// Who waits for an ack.
pub(crate) enum AckTo {
    /// One publish.
    One(oneshot::Sender<Ack>),
    /// Somebody with many, who knows this one by its tag.
    Many(mpsc::Sender<(u64, Ack)>, u64),
}

impl AckTo {
    fn send(self, ack: Ack) {
        match self {
            Self::One(sender) => drop(sender.send(ack)),
            // It has room for all that are under way, or nobody waits any more.
            Self::Many(sender, tag) => drop(sender.try_send((tag, ack))),
        }
    }
}

/// What was published and has no ack yet.
pub(in crate::bus) struct PublishAcks {
    client: async_nats::Client,
    connection: watch::Receiver<Connection>,
    inbox: String,
    next: AtomicU64,
    unacked: Arc<Unacked>,
    #[cfg(feature = "metrics")]
    latencies: latency::Latencies,
    _reader: JoinSet<()>,
}

#[derive(Default)]
struct Unacked(Mutex<HashMap<u64, Publish>>);

/// A publish that waits for its ack.
struct Publish {
    sent: Instant,
    /// How often the connection had changed by then.
    connection_changes: u64,
    #[cfg(feature = "metrics")]
    latency: metrics::Histogram,
    to: AckTo,
}

impl Publish {
    fn end(self, ack: Ack) {
        #[cfg(feature = "metrics")]
        self.latency.record(self.sent.elapsed().as_secs_f64());
        self.to.send(ack);
    }
}

impl Unacked {
    fn publishes(&self) -> MutexGuard<'_, HashMap<u64, Publish>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These acks have come.
    fn note(&self, messages: Vec<Message>) {
        let ended: Vec<(Publish, Message)> = {
            let mut publishes = self.publishes();
            let number = |message: &Message| message.subject.rsplit('.').next()?.parse::<u64>().ok();
            let of = |message: Message| Some((publishes.remove(&number(&message)?)?, message));
            messages.into_iter().filter_map(of).collect()
        };
        ended.into_iter().for_each(|(publish, message)| publish.end(ack_of(&message)));
    }

    /// Those that this is true of have no ack, and are not waited for any more.
    fn give_up(&self, mut is_lost: impl FnMut(&Publish) -> bool) {
        let lost: Vec<Publish> =
            self.publishes().extract_if(|_, publish| is_lost(publish)).map(|(_, publish)| publish).collect();
        lost.into_iter().for_each(|publish| publish.end(Err(NoAck::Unknown)));
    }
}

impl PublishAcks {
    /// Listens for acks for as long as this lives.
    pub(in crate::bus) async fn start(
        client: &async_nats::Client,
        connection: watch::Receiver<Connection>,
    ) -> Result<Self, SubscribeError> {
        let inbox = client.new_inbox();
        let messages = client.subscribe(format!("{inbox}.*")).await?;
        let (unacked, mut reader) = (Arc::<Unacked>::default(), JoinSet::new());
        reader.spawn(read(unacked.clone(), messages, connection.clone()));
        let next = AtomicU64::new(0);
        Ok(Self {
            client: client.clone(),
            connection,
            inbox,
            next,
            unacked,
            #[cfg(feature = "metrics")]
            latencies: latency::Latencies::default(),
            _reader: reader,
        })
    }

    /// Publishes a message; its ack, or why there is none, goes to who waits.
    ///
    /// # Cancel safety
    /// Not safe: a dropped publish may or may not be stored. The ack is sent to who waits all the same.
    pub(in crate::bus) async fn publish(&self, subject: &str, headers: HeaderMap, payload: Bytes, to: AckTo) {
        let number = self.register(subject, to);
        self.send(number, subject, headers, payload).await;
    }

    /// The same without waiting; false when the client can take no message now, and nothing was published.
    pub(in crate::bus) fn publish_now(&self, subject: &str, headers: HeaderMap, payload: Bytes, to: AckTo) -> bool {
        let number = self.register(subject, to);
        let sent = tokio::task::coop::unconstrained(self.send(number, subject, headers, payload)).now_or_never();
        sent.is_some() || self.unacked.publishes().remove(&number).is_none()
    }

    fn register(&self, subject: &str, to: AckTo) -> u64 {
        #[cfg(not(feature = "metrics"))]
        let _ = subject;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let publish = Publish {
            sent: Instant::now(),
            connection_changes: self.connection.borrow().changes,
            #[cfg(feature = "metrics")]
            latency: self.latencies.of(subject),
            to,
        };
        self.unacked.publishes().insert(number, publish);
        number
    }

    async fn send(&self, number: u64, subject: &str, headers: HeaderMap, payload: Bytes) {
        let reply = [&self.inbox, ".", &number.to_string()].concat();
        let sent = self.client.publish_with_reply_and_headers(subject.to_owned(), reply, headers, payload).await;
        if let Err(error) = sent
            && let Some(publish) = self.unacked.publishes().remove(&number)
        {
            publish.end(Err(match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => NoAck::TooLarge(error.to_string()),
                _ => NoAck::Unknown,
            }));
        }
    }
}

/// How long publishes take, by stream. The metrics of a stream are looked up once.
#[cfg(feature = "metrics")]
mod latency {
    use std::sync::OnceLock;

    /// The first token of a subject, and its stream; every other is of DUE.
    const STREAMS: [(&str, &str); 5] =
        [("tasks", "TASKS"), ("results", "RESULTS"), ("dead", "DEAD"), ("later", "LATER"), ("", "DUE")];

    #[derive(Default)]
    pub(super) struct Latencies([OnceLock<metrics::Histogram>; STREAMS.len()]);

    impl Latencies {
        pub(super) fn of(&self, subject: &str) -> metrics::Histogram {
            let first = subject.split('.').next().unwrap_or_default();
            let known = self.0.iter().zip(STREAMS).find(|(_, (token, _))| *token == first || token.is_empty());
            known.map_or_else(metrics::Histogram::noop, |(histogram, (_, stream))| {
                histogram.get_or_init(|| metrics::histogram!("millpond_publish_seconds", "stream" => stream)).clone()
            })
        }
    }
}

/// Reads acks until the connection is closed for good.
async fn read(
    unacked: Arc<Unacked>,
    mut messages: async_nats::Subscriber,
    mut connection: watch::Receiver<Connection>,
) {
    let mut tick = tokio::time::interval(OVERDUE_EVERY);
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(first) = message else { break };
                // What else has arrived: under load an ack costs no wake-up of its own.
                let more = std::iter::from_fn(|| messages.next().now_or_never().flatten()).take(READ_AT_ONCE_MAX - 1);
                unacked.note(std::iter::once(first).chain(more).collect());
            }
            changed = connection.changed() => {
                let now = *connection.borrow_and_update();
                // The acks of what was sent before a loss never come.
                if changed.is_ok() && now.up {
                    unacked.give_up(|publish| publish.connection_changes < now.changes);
                }
                if changed.is_err() {
                    break;
                }
            }
            _ = tick.tick() => unacked.give_up(|publish| publish.sent.elapsed() > ACK_WITHIN),
        }
    }
    unacked.give_up(|_| true);
}

fn ack_of(message: &Message) -> Ack {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(NoAck::NoStream);
    }
    match serde_json::from_slice(&message.payload) {
        Ok(Answer { error: Some(error), .. }) => Err(NoAck::Refused(error)),
        Ok(Answer { seq: Some(seq), duplicate, .. }) => Ok(Stored { seq, duplicate }),
        Ok(Answer { .. }) => Err(NoAck::Unknown),
        Err(error) => {
            tracing::warn!(%error, "an answer of nats-server to a publish cannot be read");
            Err(NoAck::Unknown)
        }
    }
}

/// What the server answers to a publish.
#[derive(serde::Deserialize)]
struct Answer {
    seq: Option<u64>,
    #[serde(default)]
    duplicate: bool,
    error: Option<jetstream::Error>,
}

//! The results of one job for a client that waits: `JobResults` reads the stream, `LiveResults` listens as they are
//! published and reads the stream as well when something may have been missed.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use futures_util::StreamExt;

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::read::outcomes::{OutcomeBody, READ_AGAIN_AFTER, read_results};
use crate::bus::topology::stream_state;
use crate::limits::{COLLECT_BATCH_MAX, COLLECT_BYTES_MAX};
use crate::outcome::ResultBatch;
use crate::wire::streams::STREAM_RESULTS;
use crate::wire::subject::{TaskSubject, results_of_job};

/// The outcomes of one job as they come, each at least once: a client that waits dedupes by index.
/// It reads the stream, so that neither a reconnect nor a slow reader loses one.
pub struct JobResults {
    bus: Bus,
    filter: String,
    /// The next sequence to read; none before the first message: from now on.
    next_seq: Option<u64>,
    /// Messages that were there when the reader was made, or made anew, and are not read yet.
    backlog: u64,
    heard: Instant,
    pull: Option<pull::Stream>,
}

impl JobResults {
    /// Starts to read from this sequence of RESULTS; returns once the server has the consumer.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer or refuses.
    pub async fn start_from(bus: &Bus, job: &str, seq: u64) -> Result<Self, BusError> {
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

    /// When something was last read, or reading began: a client that has heard nothing for long counts again what is left.
    #[must_use]
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// Counts anew what is left, from where it was read to: what was purged never comes.
    pub fn count_anew(&mut self) {
        (self.pull, self.heard) = (None, Instant::now());
    }

    async fn open(&mut self) -> Result<(), BusError> {
        let what = format!("a reader of {}", self.filter);
        let config = pull::Config {
            deliver_policy: self
                .next_seq
                .map_or(DeliverPolicy::New, |start_sequence| DeliverPolicy::ByStartSequence { start_sequence }),
            ack_policy: AckPolicy::None,
            // A name of its own puts name and filter into the subject that the permissions of the role are about.
            name: Some(format!("r-{}", crate::random_token())),
            filter_subject: self.filter.clone(),
            inactive_threshold: Duration::from_secs(60),
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        let created = self.bus.js.create_consumer_on_stream(config, STREAM_RESULTS).await;
        let consumer: PullConsumer = created.map_err(|e| BusError::new(&what, &e))?;
        let backlog = consumer.cached_info().num_pending;
        let stream = consumer
            .stream()
            .max_messages_per_batch(COLLECT_BATCH_MAX)
            .max_bytes_per_batch(COLLECT_BYTES_MAX)
            .expires(Duration::from_secs(10))
            .heartbeat(Duration::from_secs(2))
            .messages()
            .await;
        self.pull = Some(stream.map_err(|e| BusError::new(&what, &e))?);
        (self.backlog, self.heard) = (backlog, Instant::now());
        Ok(())
    }

    /// The next result batch, with its subject.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when it is dropped.
    pub async fn next(&mut self) -> (TaskSubject, ResultBatch) {
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
            match read_results(&message.subject, &message.payload) {
                Ok(OutcomeBody::Results(subject, batch, _)) => return (subject, batch),
                Ok(OutcomeBody::Dead(..)) => {}
                Err(error) => tracing::warn!(%error, subject = %message.subject, "a result batch cannot be read"),
            }
        }
    }
}

/// The outcomes of one job as they are published, by a plain subscription: the fastest way to hear of them. After a
/// reconnect, or when this client was too slow, it reads the stream as well, from where it began: nothing is missed,
/// some come twice.
pub struct LiveResults {
    bus: Bus,
    filter: String,
    /// RESULTS had this much when it began.
    from_seq: u64,
    messages: async_nats::Subscriber,
    connection: tokio::sync::watch::Receiver<crate::bus::Connection>,
    dropped: u64,
    catch_up: Option<JobResults>,
}

impl LiveResults {
    /// Starts to listen; what is published after this returns is heard.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn start(bus: &Bus, job: &str) -> Result<Self, BusError> {
        Self::start_on(bus, results_of_job(job)).await
    }

    /// Starts to listen to results of other subjects, `results.…`.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn start_on(bus: &Bus, filter: String) -> Result<Self, BusError> {
        let mut connection = bus.connection();
        connection.mark_unchanged();
        let dropped = bus.dropped_messages();
        let subscribed = bus.client.subscribe(filter.clone()).await;
        let messages = subscribed.map_err(|e| BusError::new(&filter, &e))?;
        // Its answer comes after the subscription is in place.
        let from_seq = stream_state(bus, STREAM_RESULTS).await?.last_seq + 1;
        Ok(Self { bus: bus.clone(), filter, from_seq, messages, connection, dropped, catch_up: None })
    }

    /// The next result batch, with its subject.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when it is dropped.
    pub async fn next(&mut self) -> (TaskSubject, ResultBatch) {
        loop {
            let dropped = self.bus.dropped_messages();
            if dropped != self.dropped {
                self.dropped = dropped;
                self.read_again();
            }
            tokio::select! {
                Some(message) = self.messages.next() => match read_results(&message.subject, &message.payload) {
                    Ok(OutcomeBody::Results(subject, batch, _)) => return (subject, batch),
                    Ok(OutcomeBody::Dead(..)) => {}
                    Err(error) => tracing::warn!(%error, subject = %message.subject, "a result batch cannot be read"),
                },
                changed = self.connection.changed() => {
                    if changed.is_ok() && self.connection.borrow_and_update().up {
                        self.read_again();
                    }
                }
                batch = caught_up(&mut self.catch_up) => return batch,
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
        self.catch_up = Some(JobResults {
            bus,
            filter,
            next_seq: Some(self.from_seq),
            backlog: 0,
            heard: Instant::now(),
            pull: None,
        });
    }
}

async fn caught_up(reader: &mut Option<JobResults>) -> (TaskSubject, ResultBatch) {
    match reader {
        Some(reader) => reader.next().await,
        None => std::future::pending().await,
    }
}

//! The results of one job, or of other subjects of RESULTS, for a client that waits. They are heard as they are published, by a
//! plain subscription that costs the server nothing that it keeps. What may have been missed, and all of a large job, is read
//! from the stream by a consumer; of these one connection has [`READERS_MAX`] and [`CATCH_UPS_MAX`] at the most, each removed as
//! soon as it is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::datetime::from_nanos;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

use crate::bus::error::BusError;
use crate::bus::read::outcomes::{OutcomeBody, READ_AGAIN_AFTER, read_results};
use crate::bus::read::pull_outcomes;
use crate::bus::topology::stream_state;
use crate::bus::{Bus, Subscription};
use crate::outcome::ResultBatch;
use crate::wire::streams::STREAM_RESULTS;
use crate::wire::subject::{TaskSubject, results_of_job};

/// Consumers on RESULTS that read large jobs over one connection at once, at the most: the server has a limit for all programs
/// together.
pub(in crate::bus) const READERS_MAX: usize = 48;
/// Those that look for what was missed, at the most. They are soon done, and must not wait for the end of a large job.
pub(in crate::bus) const CATCH_UPS_MAX: usize = 16;
/// Longest time between two tries to make a consumer that the server refuses.
const OPEN_AGAIN_MAX: Duration = Duration::from_secs(2);
/// The server removes a consumer that nobody has pulled from for this long: its program was killed.
const READER_INACTIVE: Duration = Duration::from_secs(60);
/// A reader that has read all that was there is done when it brings nothing for this long: what was published while the
/// connection was down may be stored a little after it is back.
const READ_SILENCE: Duration = Duration::from_secs(2);
/// Who has heard nothing for this long looks into the stream once, and then after twice the time, and so on.
const LOOK_AFTER_MIN: Duration = Duration::from_secs(5);
/// The longest such time.
const LOOK_AFTER_MAX: Duration = Duration::from_secs(300);

/// Where in RESULTS a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadFrom {
    /// At this sequence.
    Seq(u64),
    /// At the first message that was stored at this time or later, Unix time in milliseconds by the server's clock.
    TimeMs(i64),
}

/// Reads the stream by a consumer of its own, over any loss of the connection.
struct StoredResults {
    bus: Bus,
    filter: String,
    next: ReadFrom,
    /// Messages that were there when the consumer was made and are not read yet; none before it was made.
    backlog: Option<u64>,
    /// When something was last read, or the consumer made.
    heard: Instant,
    consumer: Option<OpenConsumer>,
    /// The permit that is waited for, and then the consumer that is being made: a dropped [`LiveResults::step`] loses neither.
    acquiring: Option<BoxFuture<'static, Option<OwnedSemaphorePermit>>>,
    opening: Option<BoxFuture<'static, OpenConsumer>>,
    /// The permit of the next consumer, or a better one for the consumer that is being made.
    permit: Option<OwnedSemaphorePermit>,
    /// It goes on for a while when it has read all that was there.
    lingers: bool,
    /// The server has refused the consumer, which is requested again and again.
    is_refused: Arc<AtomicBool>,
}

struct OpenConsumer {
    place: ConsumerPlace,
    /// Messages that were there when it was made.
    backlog: u64,
    /// Messages that it has delivered here. The server counts them too.
    delivered: u64,
    pull: pull::Stream,
}

/// The name of a consumer that this connection has at the server, or requests. With this the consumer is removed, and only then
/// another one may take its permit.
struct ConsumerPlace {
    client: async_nats::Client,
    name: String,
    /// One of the connection's [`READERS_MAX`] or [`CATCH_UPS_MAX`]; none while the consumer is removed.
    permit: Option<OwnedSemaphorePermit>,
}

impl ConsumerPlace {
    fn new(client: &async_nats::Client, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { client: client.clone(), name: format!("r-{}", crate::random_token()), permit }
    }
}

impl Drop for ConsumerPlace {
    fn drop(&mut self) {
        let subject = format!("$JS.API.CONSUMER.DELETE.{STREAM_RESULTS}.{}", self.name);
        let (client, permit) = (self.client.clone(), self.permit.take());
        let mut removal = Box::pin(async move {
            // Where the request does not arrive, the server removes the consumer later.
            let _ = client.request(subject, Bytes::new()).await;
            drop(permit);
        });
        // The request is on its way before this returns: the program may end here.
        let is_done = tokio::task::unconstrained(removal.as_mut()).now_or_never().is_some();
        if !is_done && let Ok(runtime) = Handle::try_current() {
            runtime.spawn(removal);
        }
    }
}

/// What a reader of the stream has come to.
enum Progress {
    Batch(Box<(TaskSubject, ResultBatch)>),
    /// The consumer was made: how much is to be read is known.
    Begun,
    /// Nothing came for a while.
    Silent,
}

impl StoredResults {
    fn new(bus: &Bus, filter: &str, next: ReadFrom, lingers: bool) -> Self {
        Self {
            bus: bus.clone(),
            filter: filter.to_owned(),
            next,
            backlog: None,
            heard: Instant::now(),
            consumer: None,
            acquiring: None,
            opening: None,
            permit: None,
            lingers,
            is_refused: Arc::default(),
        }
    }

    /// Makes the consumer, however long that takes.
    ///
    /// # Cancel safety
    /// Safe: it goes on with the next call.
    async fn open(&mut self) {
        let opening = loop {
            match (&mut self.opening, self.permit.take()) {
                (Some(opening), permit) => {
                    self.permit = permit;
                    break opening;
                }
                (None, Some(permit)) => {
                    let (bus, filter, is_refused) = (self.bus.clone(), self.filter.clone(), self.is_refused.clone());
                    self.opening = Some(Box::pin(open(bus, filter, self.next, permit, is_refused)));
                }
                (None, None) => {
                    let catch_ups = self.bus.catch_ups.clone();
                    // The semaphore is never closed.
                    let acquire = || Box::pin(async { catch_ups.acquire_owned().await.ok() }) as BoxFuture<'static, _>;
                    self.permit = self.acquiring.get_or_insert_with(acquire).await;
                    self.acquiring = None;
                }
            }
        };
        let mut consumer = opening.await;
        if let Some(permit) = self.permit.take() {
            consumer.place.permit = Some(permit);
        }
        (self.opening, self.backlog, self.heard) = (None, Some(consumer.backlog), Instant::now());
        self.is_refused.store(false, Ordering::Relaxed);
        self.consumer = Some(consumer);
    }

    /// Has the next message read by another consumer, under the same permit.
    fn reopen(&mut self) {
        if let Some(mut consumer) = self.consumer.take() {
            self.permit = consumer.place.permit.take();
        }
    }

    /// # Cancel safety
    /// Safe: nothing is lost when it is dropped.
    async fn next(&mut self) -> Progress {
        loop {
            let Some(OpenConsumer { pull, delivered, .. }) = &mut self.consumer else {
                self.open().await;
                return Progress::Begun;
            };
            let silent_at = tokio::time::Instant::from_std(self.heard + READ_SILENCE);
            let message = match tokio::time::timeout_at(silent_at, pull.next()).await {
                Err(_) => {
                    self.heard = Instant::now();
                    return Progress::Silent;
                }
                Ok(Some(Ok(message))) => message,
                Ok(_) => {
                    self.reopen();
                    continue;
                }
            };
            if let Ok(info) = message.info() {
                *delivered += 1;
                if info.consumer_sequence != *delivered {
                    tracing::debug!(filter = %self.filter, "results were delivered that did not arrive; reading them again");
                    self.reopen();
                    continue;
                }
                self.next = ReadFrom::Seq(info.stream_sequence + 1);
            }
            (self.backlog, self.heard) = (self.backlog.map(|left| left.saturating_sub(1)), Instant::now());
            match read_results(&message.subject, &message.payload) {
                Ok(OutcomeBody::Results(subject, batch, _)) => return Progress::Batch(Box::new((subject, batch))),
                Ok(OutcomeBody::Dead(..)) => {}
                Err(error) => tracing::warn!(%error, subject = %message.subject, "a result batch cannot be read"),
            }
        }
    }
}

/// Makes a consumer, however long that takes: a limit of the server is waited for.
async fn open(
    bus: Bus,
    filter: String,
    next: ReadFrom,
    permit: OwnedSemaphorePermit,
    is_refused: Arc<AtomicBool>,
) -> OpenConsumer {
    let mut permit = Some(permit);
    let mut refused: u32 = 0;
    loop {
        // A new name each time: an earlier try may have made its consumer, and that one may have delivered messages.
        let mut place = ConsumerPlace::new(&bus.client, permit.take());
        match make_consumer(&bus, &place.name, &filter, next).await {
            Ok((backlog, pull)) => return OpenConsumer { place, backlog, delivered: 0, pull },
            Err(error) if !error.is_passing() && !is_refused.swap(true, Ordering::Relaxed) => {
                tracing::warn!(%error, "results are read as soon as nats-server allows one more reader; waiting");
            }
            Err(error) => tracing::debug!(%error, "cannot read results yet, will try again"),
        }
        permit = place.permit.take();
        drop(place);
        refused = refused.saturating_add(1);
        let wait = READ_AGAIN_AFTER.saturating_mul(refused).min(OPEN_AGAIN_MAX);
        tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
    }
}

/// How much a new consumer has to read, and its pull.
async fn make_consumer(bus: &Bus, name: &str, filter: &str, next: ReadFrom) -> Result<(u64, pull::Stream), BusError> {
    let what = format!("a reader of {filter}");
    let config = pull::Config {
        deliver_policy: deliver_from(next),
        ack_policy: AckPolicy::None,
        // A name of its own puts name and filter into the subject that the permissions of the role are about.
        name: Some(name.to_owned()),
        filter_subject: filter.to_owned(),
        inactive_threshold: READER_INACTIVE,
        memory_storage: true,
        num_replicas: 1,
        ..Default::default()
    };
    let created = bus.js.create_consumer_on_stream(config, STREAM_RESULTS).await;
    let consumer: PullConsumer = created.map_err(|e| BusError::new(&what, &e))?;
    let backlog = consumer.cached_info().num_pending;
    Ok((backlog, pull_outcomes(&consumer, &what).await?))
}

fn deliver_from(next: ReadFrom) -> DeliverPolicy {
    match next {
        ReadFrom::Seq(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
        // A time that the client cannot write reads everything.
        ReadFrom::TimeMs(ms) => from_nanos(i128::from(ms) * 1_000_000)
            .map_or(DeliverPolicy::All, |start_time| DeliverPolicy::ByStartTime { start_time }),
    }
}

/// The outcomes of one job as they come, each at least once: a client that waits dedupes by index or id. Heard by a plain
/// subscription, the fastest way; after a reconnect, when this client was too slow, or after a silence, the stream is read as
/// well, from where this began: nothing is missed, some come twice. Where the stream alone is read, its consumer is made anew at
/// each of these, from the first message that has not come: what the old one delivered may have been lost on its way.
pub struct LiveResults {
    bus: Bus,
    filter: String,
    /// Nothing of interest in RESULTS lies before this.
    from: ReadFrom,
    /// None once the stream alone is read.
    messages: Option<Subscription>,
    connection: tokio::sync::watch::Receiver<crate::bus::Connection>,
    dropped: u64,
    stored: Option<StoredResults>,
    /// What is missed does not matter: the stream is never read.
    may_miss: bool,
    look_at: Instant,
    look_after: Duration,
}

impl LiveResults {
    /// Starts to listen to the results of a job; what is published after this returns is heard.
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
        let mut results = Self::listen(bus, filter, ReadFrom::Seq(1)).await?;
        // Its answer comes after the subscription is in place.
        results.from = ReadFrom::Seq(stream_state(bus, STREAM_RESULTS).await?.last_seq + 1);
        Ok(results)
    }

    /// Starts to listen to results of other subjects, and reads what RESULTS has of them since a time, in Unix milliseconds by
    /// the server's clock; none reads all of it.
    ///
    /// # Errors
    /// [`BusError`] when the connection is closed.
    pub async fn start_since(bus: &Bus, filter: String, since_ms: Option<i64>) -> Result<Self, BusError> {
        let from = since_ms.map_or(ReadFrom::Seq(1), ReadFrom::TimeMs);
        let mut results = Self::listen(bus, filter, from).await?;
        results.look(true);
        Ok(results)
    }

    /// Starts to listen to the results of a job, of which RESULTS has nothing before this sequence. What this connection
    /// publishes from now on is heard.
    ///
    /// # Errors
    /// [`BusError`] when the connection is closed.
    pub async fn start_from(bus: &Bus, job: &str, from_seq: u64) -> Result<Self, BusError> {
        Self::listen(bus, results_of_job(job), ReadFrom::Seq(from_seq)).await
    }

    async fn listen(bus: &Bus, filter: String, from: ReadFrom) -> Result<Self, BusError> {
        let mut connection = bus.connection();
        connection.mark_unchanged();
        let dropped = bus.dropped_messages();
        let messages = Some(bus.listen(filter.clone()).await?);
        Ok(Self {
            bus: bus.clone(),
            filter,
            from,
            messages,
            connection,
            dropped,
            stored: None,
            may_miss: false,
            look_at: Instant::now() + LOOK_AFTER_MIN,
            look_after: LOOK_AFTER_MIN,
        })
    }

    /// The same for who can do without what is missed: nothing is ever read from the stream, and so there is no consumer.
    #[must_use]
    pub fn that_may_miss(self) -> Self {
        Self { may_miss: true, ..self }
    }

    /// Reads what RESULTS holds as well; returns once the server has the consumer: what expires from now on is read.
    pub async fn catch_up(&mut self) {
        let mut stored = StoredResults::new(&self.bus, &self.filter, self.from, true);
        stored.open().await;
        self.stored = Some(stored);
    }

    /// Whether some of what RESULTS held when catching up began is not read yet.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.backlog != Some(0))
    }

    /// Whether the server has refused a reader, for which this waits.
    #[must_use]
    pub fn waits_for_reader(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.is_refused.load(Ordering::Relaxed))
    }

    /// Whether results are heard by the subscription, which keeps in memory what is not taken.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.messages.is_some()
    }

    /// Reads the stream alone from now on, at its reader's pace: for a large job. While this connection has as many readers as
    /// it may, it goes on listening.
    pub fn read_stream_alone(&mut self) {
        if self.messages.is_none() {
            return;
        }
        let Ok(permit) = self.bus.readers.clone().try_acquire_owned() else { return };
        let new = || StoredResults::new(&self.bus, &self.filter, self.from, true);
        let stored = self.stored.get_or_insert_with(new);
        match &mut stored.consumer {
            Some(consumer) => consumer.place.permit = Some(permit),
            None => (stored.acquiring, stored.permit) = (None, Some(permit)),
        }
        self.messages = None;
    }

    /// Hears and reads nothing more.
    pub fn close(&mut self) {
        (self.messages, self.stored, self.may_miss) = (None, None, true);
    }

    /// The next result batch, with its subject.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when it is dropped.
    pub async fn next(&mut self) -> (TaskSubject, ResultBatch) {
        loop {
            if let Some(batch) = self.step().await {
                return batch;
            }
        }
    }

    /// The next result batch; none when it is known how large the backlog is, or that it has been read.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when it is dropped.
    pub async fn step(&mut self) -> Option<(TaskSubject, ResultBatch)> {
        loop {
            let dropped = self.bus.dropped_messages();
            if dropped != self.dropped {
                self.dropped = dropped;
                self.look(true);
            }
            let looks = !self.may_miss;
            tokio::select! {
                message = heard(&mut self.messages) => match read_results(&message.subject, &message.payload) {
                    Ok(OutcomeBody::Results(subject, batch, _)) => {
                        self.note_heard();
                        return Some((subject, batch));
                    }
                    Ok(OutcomeBody::Dead(..)) => {}
                    Err(error) => tracing::warn!(%error, subject = %message.subject, "a result batch cannot be read"),
                },
                // Once the connection has died nothing changes any more: who waits here must let others notice that.
                Ok(()) = self.connection.changed() => {
                    if self.connection.borrow_and_update().up {
                        self.look(true);
                    }
                }
                progress = read(&mut self.stored) => return self.note(progress),
                () = tokio::time::sleep_until(self.look_at.into()), if looks => {
                    self.look(false);
                    self.look_after = (self.look_after * 2).min(LOOK_AFTER_MAX);
                    self.look_at = Instant::now() + self.look_after;
                }
            }
        }
    }

    fn note_heard(&mut self) {
        self.look_after = LOOK_AFTER_MIN;
        self.look_at = Instant::now() + LOOK_AFTER_MIN;
    }

    fn note(&mut self, progress: Progress) -> Option<(TaskSubject, ResultBatch)> {
        let is_silent = matches!(progress, Progress::Silent);
        if let Some(stored) = &mut self.stored {
            let is_read = stored.backlog == Some(0);
            if is_read && self.messages.is_some() && (is_silent || !stored.lingers) {
                self.from = stored.next;
                self.stored = None;
            } else if is_silent && !is_read {
                // What was purged meanwhile never comes: what is left is counted anew.
                stored.reopen();
            }
        }
        match progress {
            Progress::Batch(batch) => {
                self.note_heard();
                Some(*batch)
            }
            Progress::Begun | Progress::Silent => None,
        }
    }

    /// Reads what RESULTS still holds as well: for a task that may have ended before this began to listen.
    pub fn read_from_oldest(&mut self) {
        (self.from, self.stored) = (ReadFrom::Seq(1), None);
        self.look(true);
    }

    /// Looks into the stream for what was missed; with `lingers` also for what is stored a little later. What the consumer of a
    /// reader that is at it has delivered may be lost as well: that reader has another one.
    fn look(&mut self, lingers: bool) {
        match &mut self.stored {
            Some(stored) => {
                stored.reopen();
                (stored.heard, stored.lingers) = (Instant::now(), stored.lingers || lingers);
            }
            None if self.may_miss => {}
            None => self.stored = Some(StoredResults::new(&self.bus, &self.filter, self.from, lingers)),
        }
    }
}

/// The next message of the subscription; none comes without one, or when the connection is closed for good.
async fn heard(messages: &mut Option<Subscription>) -> async_nats::Message {
    if let Some(messages) = messages
        && let Some(message) = messages.next().await
    {
        return message;
    }
    std::future::pending().await
}

async fn read(stored: &mut Option<StoredResults>) -> Progress {
    match stored {
        Some(stored) => stored.next().await,
        None => std::future::pending().await,
    }
}

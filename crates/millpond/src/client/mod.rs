//! What a producer program uses: submit a task, wait for its end, map many in order, call a handler. One connection in the client role.
//! No HTTP, no command line.

mod call;
mod keeper;
mod map;
mod payloads;
mod publish_all;
mod ranges;
mod resume;
mod schedules;
mod session;
mod sizer;
mod spec;
mod submit;
mod wait;
mod window;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::task::JoinSet;

pub use call::CallError;
pub use map::MapRun;
pub use publish_all::{PublishAllError, PublishedAll};
pub use resume::{History, HistoryRows};
pub use schedules::{cron_in, shown, zone_of};
pub use session::Session;
pub use sizer::Batch;
pub use spec::{Begin, MapItem, MapSpec};
pub use submit::{NewTask, Submitted};
pub use wait::Waiter;

use crate::bus::publish::bounded::QueueAdmission;
use crate::bus::publish::payloads::PutError;
use crate::bus::publish::queue_limits::QueueFill;
use crate::bus::publish::{PublishError, RetryDeadline, StreamCapacity};
use crate::bus::shared_state::{SharedError, SharedState};
use crate::bus::topology::TopologyError;
use crate::bus::{Access, Bus, ConnectError, Role};
use crate::limits::PAYLOAD_KEEP;
use crate::outcome::Failure;
use crate::schedule::ScheduleError;
use crate::signature::Signer;
use crate::wire::subject::SubjectError;
use sizer::Pace;

/// Queues and kinds whose durations a client remembers.
const PACES_MAX: usize = 1000;

/// How long the good-byes of pipes may take when the client is closed.
const GOOD_BYES_WITHIN: Duration = Duration::from_millis(500);

/// Why something could not be submitted or awaited.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A queue, kind or job that is not a token.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// The server would not store it.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The streams or buckets are missing, or may not be used.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A schedule that cannot be.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// There is no schedule of this name.
    #[error("there is no schedule {0}; `millpond schedule ls` lists them")]
    NoSchedule(String),
    /// A task with a unique key, and another of that key waits or runs. Later it may be taken.
    #[error("a task with the unique key {key} waits or runs already")]
    AlreadyThere {
        /// The key.
        key: String,
    },
    /// A unique key where there can be none.
    #[error("a task with a unique key is alone: it cannot be a batch or belong to a job")]
    NotAlone,
    /// A task that is to wait for a time that does not exist.
    #[error("{at_ms} ms is no time that a task can wait for; it must lie between the years -9999 and 9999")]
    NoSuchTime {
        /// Unix time in milliseconds.
        at_ms: i64,
    },
    /// There is a job of this name, and it was not to go on.
    #[error("there is a job {job} already; choose another name")]
    JobExists {
        /// Its name.
        job: String,
    },
    /// The job of this name runs another kind, or in another queue.
    #[error("job {job} runs kind {kind} in queue {queue}; choose another name, or start it anew (--again)")]
    OtherJob {
        /// Its name.
        job: String,
        /// Its kind.
        kind: String,
        /// Its queue.
        queue: String,
    },
    /// What a job goes on with is not what it was begun with.
    #[error(
        "the input is not the one that job {job} was begun with, at item {index}: {why}; bring the same input, choose another name, or start it anew (--again)"
    )]
    OtherInput {
        /// The job.
        job: String,
        /// Place in the input, from 0.
        index: u64,
        /// What differs.
        why: String,
    },
    /// The job was cancelled while it was published.
    #[error("job {job} was cancelled")]
    Cancelled {
        /// Its name.
        job: String,
    },
    /// Another process goes on with the job.
    #[error("job {job} was taken over by another process, which goes on with it")]
    TakenOver {
        /// Its name.
        job: String,
    },
    /// A job goes on whose oldest results are in the collector's store only.
    #[error(
        "the first results of job {job} are old and only a collector has them; it does not answer: {reason}; is one running?"
    )]
    History {
        /// Its name.
        job: String,
        /// What was heard.
        reason: String,
    },
    /// Several tasks in one message, where the server counts messages.
    #[error(
        "queue {queue} is bounded to {max_waiting} waiting tasks, and its limit counts messages: batches of {batch} cannot go there; publish one task per message (no --batch, no Millpond-Batch), or choose another queue"
    )]
    BatchInBoundedQueue {
        /// The queue.
        queue: String,
        /// Its limit, in tasks.
        max_waiting: u64,
        /// Tasks in the message.
        batch: u32,
    },
    /// A payload could not be put into the store.
    #[error(transparent)]
    Payload(#[from] PutError),
    /// A task that is to wait for longer than its payload is kept.
    #[error(
        "it would start {} after its payload is gone: large arguments are kept for {}, so let it start earlier",
        humantime::format_duration(Duration::from_millis(at_ms.saturating_sub(*until_ms).unsigned_abs())),
        humantime::format_duration(PAYLOAD_KEEP)
    )]
    WaitsTooLong {
        /// When it is to start, Unix time in milliseconds.
        at_ms: i64,
        /// When it must have started, Unix time in milliseconds.
        until_ms: i64,
    },
    /// An argument of a `map` that cannot be one.
    #[error("item {index} of the input: {reason}")]
    Input {
        /// From 0.
        index: u64,
        /// What is wrong and what would be right.
        reason: String,
    },
}

/// How a task ended that has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoResult {
    /// It failed for good; a dead letter has the evidence.
    Dead(Failure),
    /// It was cancelled.
    Cancelled,
    /// It is done, and its large result cannot be had from the store any more; why.
    Lost(String),
}

/// How a task ended: a JSON value, or why there is none.
pub type TaskEnd = Result<Box<serde_json::value::RawValue>, NoResult>;

/// A client. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    bus: Bus,
    room: Arc<StreamCapacity>,
    admission: Arc<QueueAdmission>,
    /// How long the tasks of a queue and kind took lately.
    paces: Arc<Mutex<LruCache<(String, String), Pace>>>,
    /// What talks for its pipes.
    conversations: Arc<Mutex<JoinSet<()>>>,
}

impl Client {
    /// Connects; tries for as long as `access` says (a [`Duration`](std::time::Duration) alone will do).
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub async fn connect(url: &str, name: &str, access: impl Into<Access>) -> Result<Self, ClientError> {
        Ok(Self::over(Bus::connect(url, Role::Client, name, access).await?))
    }

    /// The same client; with keys, it signs what it publishes.
    #[must_use]
    pub fn with_signer(self, signer: Option<Signer>) -> Self {
        let bus = self.bus.with_signer(signer);
        // What publishes for it must sign as well.
        Self { admission: Arc::new(QueueAdmission::new(&bus)), room: Arc::new(StreamCapacity::new(&bus)), bus, ..self }
    }

    /// A client over a connection in a role that may publish tasks.
    #[must_use]
    pub fn over(bus: Bus) -> Self {
        let room = Arc::new(StreamCapacity::new(&bus));
        let kinds = NonZeroUsize::new(PACES_MAX).unwrap_or(NonZeroUsize::MIN);
        let paces = Arc::new(Mutex::new(LruCache::new(kinds)));
        let admission = Arc::new(QueueAdmission::new(&bus));
        Self { bus, room, admission, paces, conversations: Arc::default() }
    }

    fn pace(&self, queue: &str, kind: &str) -> Pace {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        paces.get(&(queue.to_owned(), kind.to_owned())).copied().unwrap_or_default()
    }

    fn learn(&self, queue: &str, kind: &str, pace: Pace) {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        paces.put((queue.to_owned(), kind.to_owned()), pace);
    }

    /// How full a queue is; none when it is not bounded.
    ///
    /// # Errors
    /// [`ClientError::Topology`] when the server does not answer.
    pub async fn fill(&self, queue: &str) -> Result<Option<QueueFill>, ClientError> {
        Ok(self.admission.fill(queue).await?)
    }

    /// Several tasks in a message would count as one: a bounded queue takes none.
    async fn check_batch(&self, queue: &str, batch: Batch, deadline: RetryDeadline) -> Result<(), ClientError> {
        let Batch::Fixed(batch @ 2..) = batch else { return Ok(()) };
        match self.admission.max_waiting(queue, deadline).await? {
            Some(max_waiting) => Err(ClientError::BatchInBoundedQueue { queue: queue.to_owned(), max_waiting, batch }),
            None => Ok(()),
        }
    }

    /// The keys that programs share.
    ///
    /// # Errors
    /// [`SharedError`]; most likely setup has not run yet.
    pub async fn shared(&self) -> Result<SharedState, SharedError> {
        SharedState::open(&self.bus).await
    }

    /// Sends what is buffered and closes the connection. Drop its pipes before, so that their workers learn it at once.
    pub async fn close(&self) {
        let mut conversations = std::mem::take(&mut *self.conversations.lock().unwrap_or_else(PoisonError::into_inner));
        let good_byes = async { while conversations.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(GOOD_BYES_WITHIN, good_byes).await;
        self.bus.close().await;
    }
}

//! What a producer program uses: submit a task, wait for its end, map many in order, call a handler, over one connection in the
//! client role. No HTTP, no command line.

mod batch_sizer;
mod call;
mod connect;
mod errors;
mod handle;
mod history;
mod identity;
mod index_ranges;
mod job_handle;
mod job_record_writer;
mod map;
mod map_publisher;
mod map_start;
mod new_task;
mod payloads;
mod publish_all;
mod publish_lane;
mod publish_span;
mod requests;
mod result_window;
mod schedules;
mod session;
mod spec;
mod submit;
mod submit_all;

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::task::JoinSet;

pub use batch_sizer::BatchSize;
pub use call::CallError;
pub use errors::{FromEnvError, JobWaitError, MapError, RequestError, ScheduleChangeError, SubmitError, WaitError};
pub use handle::TaskHandle;
pub use history::{HistoryPage, HistoryRequest, ResultsRequest};
pub use job_handle::{JobHandle, JobResults};
pub use map::MapRun;
pub use publish_all::{PublishAllError, PublishedJob};
pub use requests::{CancelledTask, JobProgress, Named, TaskStanding, TaskState};
pub use schedules::{cron_in, zone_of};
pub use session::TaskSession;
pub use spec::{IfJobExists, MapItem, MapSpec, json_values};
pub use submit::{NewTask, Submitted};

#[doc(inline)]
pub use crate::bus::call::pipe::Pipe;
#[doc(inline)]
pub use crate::bus::error::BusError;
#[doc(inline)]
pub use crate::bus::operate::cancel::JobCancellation;
#[doc(inline)]
pub use crate::bus::publish::queue_limits::QueueFill;
#[doc(inline)]
pub use crate::bus::publish::{PublishError, RetryDeadline};
#[doc(inline)]
pub use crate::bus::shared_state::{SharedError, SharedState};
#[doc(inline)]
pub use crate::bus::{Bus, ConnectError};

use crate::bus::publish::StreamCapacity;
use crate::bus::publish::bounded::QueueAdmission;
use crate::outcome::Failure;
use crate::signature::Signer;
use batch_sizer::MeanDuration;

/// Pairs of queue and kind whose durations a client remembers.
const MEAN_DURATIONS_MAX: usize = 1000;

/// How long the last messages of pipes may take when the client is closed.
const PIPES_CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Why a task that ended has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoResult {
    /// The task failed for good; a dead letter has the evidence.
    #[error("it failed for good: {}: {}", .0.kind, .0.message)]
    Dead(Failure),
    /// The task was cancelled.
    #[error("it was cancelled")]
    Cancelled,
    /// The task is done, and its large result can no longer be fetched from the store; the reason.
    #[error("it is done, but its result cannot be had: {0}")]
    Lost(String),
}

/// The result of a task: JSON as its handler wrote it, byte for byte.
#[derive(Debug, Clone)]
pub struct TaskResult {
    /// The value.
    pub value: Box<RawValue>,
    /// The handler wrote bytes that are no JSON: the value is `{"base64":"…"}`.
    pub is_bytes: bool,
}

impl TaskResult {
    /// The value as any type that serde reads from it.
    ///
    /// # Errors
    /// What does not fit, and where.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.value.get())
    }
}

impl Deref for TaskResult {
    type Target = RawValue;

    fn deref(&self) -> &RawValue {
        &self.value
    }
}

/// How a task ended: its result, or why there is none.
pub type TaskEnd = Result<TaskResult, NoResult>;

/// A client. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    bus: Bus,
    capacity: Arc<StreamCapacity>,
    admission: Arc<QueueAdmission>,
    /// How long the tasks of a queue and kind took lately.
    mean_durations: Arc<Mutex<LruCache<(String, String), MeanDuration>>>,
    /// The tasks that send and receive for the open pipes.
    pipe_drivers: Arc<Mutex<JoinSet<()>>>,
}

impl Client {
    /// The same client; with keys, it signs what it publishes.
    #[must_use]
    pub fn with_signer(self, signer: Option<Signer>) -> Self {
        let bus = self.bus.with_signer(signer);
        // Admission and capacity hold the connection as well: they must sign, too.
        Self {
            admission: Arc::new(QueueAdmission::new(&bus)),
            capacity: Arc::new(StreamCapacity::new(&bus)),
            bus,
            ..self
        }
    }

    /// A client over a connection in a role that may publish tasks.
    #[must_use]
    pub fn over(bus: Bus) -> Self {
        let capacity = Arc::new(StreamCapacity::new(&bus));
        let kinds = NonZeroUsize::new(MEAN_DURATIONS_MAX).unwrap_or(NonZeroUsize::MIN);
        let mean_durations = Arc::new(Mutex::new(LruCache::new(kinds)));
        let admission = Arc::new(QueueAdmission::new(&bus));
        Self { bus, capacity, admission, mean_durations, pipe_drivers: Arc::default() }
    }

    fn mean_duration(&self, queue: &str, kind: &str) -> MeanDuration {
        let mut means = self.mean_durations.lock().unwrap_or_else(PoisonError::into_inner);
        means.get(&(queue.to_owned(), kind.to_owned())).copied().unwrap_or_default()
    }

    fn note_mean_duration(&self, queue: &str, kind: &str, mean: MeanDuration) {
        let mut means = self.mean_durations.lock().unwrap_or_else(PoisonError::into_inner);
        means.put((queue.to_owned(), kind.to_owned()), mean);
    }

    /// How full a queue is; none when it is not bounded.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn fill(&self, queue: &str) -> Result<Option<QueueFill>, BusError> {
        self.admission.fill(queue).await
    }

    /// A bounded queue takes no batches: several tasks in a message would count as one.
    async fn check_batch(&self, queue: &str, batch: BatchSize, deadline: RetryDeadline) -> Result<(), SubmitError> {
        let BatchSize::Fixed(batch @ 2..) = batch else { return Ok(()) };
        match self.admission.max_waiting(queue, deadline).await? {
            Some(max_waiting) => Err(SubmitError::BatchInBoundedQueue { queue: queue.to_owned(), max_waiting, batch }),
            None => Ok(()),
        }
    }

    /// The keys that programs share.
    ///
    /// # Errors
    /// [`SharedError`]; most likely setup has not run yet.
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn shared(&self) -> Result<SharedState, SharedError> {
        SharedState::open(&self.bus).await
    }

    /// Sends what is buffered and closes the connection. Drop its pipes before, so that their workers are notified at once.
    ///
    /// # Cancel safety
    /// When this is dropped, what is buffered may be lost, and the connection stays open until the last clone goes.
    pub async fn close(&self) {
        let mut drivers = std::mem::take(&mut *self.pipe_drivers.lock().unwrap_or_else(PoisonError::into_inner));
        let last_messages = async { while drivers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(PIPES_CLOSE_TIMEOUT, last_messages).await;
        self.bus.close().await;
    }
}

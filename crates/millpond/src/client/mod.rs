//! What a producer program uses: submit a task, wait for its end, map many in order. One connection in the client role.
//! No HTTP, no command line.

mod map;
mod publish_all;
mod session;
mod sizer;
mod submit;
mod wait;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;

pub use map::{MapItem, MapRun, MapSpec};
pub use publish_all::{PublishAllError, PublishedAll};
pub use session::Session;
pub use sizer::Batch;
pub use submit::{NewTask, Submitted};

use crate::bus::publish::{PublishError, Room};
use crate::bus::shared::{Shared, SharedError};
use crate::bus::subject::SubjectError;
use crate::bus::topology::TopologyError;
use crate::bus::{Bus, ConnectError, Role};
use crate::outcome::Failure;
use crate::signature::Signer;
use sizer::Pace;

/// Queues and kinds whose durations a client remembers.
const PACES_MAX: usize = 1000;

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
}

/// How a task ended: a JSON value, or why there is none.
pub type TaskEnd = Result<Box<serde_json::value::RawValue>, NoResult>;

/// A client. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    bus: Bus,
    room: Arc<Room>,
    /// How long the tasks of a queue and kind took lately.
    paces: Arc<Mutex<LruCache<(String, String), Pace>>>,
}

impl Client {
    /// Connects; tries until `timeout` is over.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub async fn connect(url: &str, name: &str, timeout: Duration) -> Result<Self, ClientError> {
        Ok(Self::over(Bus::connect(url, Role::Client, name, timeout).await?))
    }

    /// The same client; with keys, it signs what it publishes.
    #[must_use]
    pub fn with_signer(self, signer: Option<Signer>) -> Self {
        Self { bus: self.bus.with_signer(signer), ..self }
    }

    /// A client over a connection in a role that may publish tasks.
    #[must_use]
    pub fn over(bus: Bus) -> Self {
        let room = Arc::new(Room::new(&bus));
        let kinds = NonZeroUsize::new(PACES_MAX).unwrap_or(NonZeroUsize::MIN);
        Self { bus, room, paces: Arc::new(Mutex::new(LruCache::new(kinds))) }
    }

    fn pace(&self, queue: &str, kind: &str) -> Pace {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        paces.get(&(queue.to_owned(), kind.to_owned())).copied().unwrap_or_default()
    }

    fn learn(&self, queue: &str, kind: &str, pace: Pace) {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        paces.put((queue.to_owned(), kind.to_owned()), pace);
    }

    /// The keys that programs share.
    ///
    /// # Errors
    /// [`SharedError`]; most likely setup has not run yet.
    pub async fn shared(&self) -> Result<Shared, SharedError> {
        Shared::open(&self.bus).await
    }

    /// Sends what is buffered and closes the connection.
    pub async fn close(&self) {
        self.bus.close().await;
    }
}

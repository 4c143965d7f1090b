//! What a producer program uses: submit a task, wait for its end, map many in order. One connection in the client role.
//! No HTTP, no command line.

mod map;
mod submit;

use std::time::Duration;

pub use map::{MapItem, MapRun, MapSpec};
pub use submit::{NewTask, Submitted};

use crate::bus::publish::{PublishError, Room};
use crate::bus::subject::SubjectError;
use crate::bus::topology::TopologyError;
use crate::bus::{Bus, ConnectError, Role};
use crate::outcome::Failure;

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
    room: std::sync::Arc<Room>,
}

impl Client {
    /// Connects; tries until `timeout` is over.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub async fn connect(url: &str, name: &str, timeout: Duration) -> Result<Self, ClientError> {
        Ok(Self::over(Bus::connect(url, Role::Client, name, timeout).await?))
    }

    /// A client over a connection in a role that may publish tasks.
    #[must_use]
    pub fn over(bus: Bus) -> Self {
        let room = std::sync::Arc::new(Room::new(&bus));
        Self { bus, room }
    }

    /// Sends what is buffered and closes the connection.
    pub async fn close(&self) {
        self.bus.close().await;
    }
}

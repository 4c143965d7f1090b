//! Pipes: messages both ways between a caller and one worker, in order, with backpressure, none lost while both live. A
//! [`Pipe`] is a side's handle; `pipe_driver` sends and receives for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::pipe_driver::PipeDriver;
use super::pipe_state::{Outgoing, PeerEnd, PipeState};
use crate::bus::call::service::IncomingCall;
use crate::bus::error::BusError;
use crate::bus::{Bus, Subscription};
use crate::limits::{PIPE_LOST_AFTER, PIPE_MESSAGE_BYTES_MAX, PIPE_WINDOW};
use crate::outcome::Failure;
use crate::wire::headers::{HEADER_PIPE, HEADER_PIPE_CAPACITY};
use crate::wire::subject;

/// Why a pipe does not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PipeError {
    /// The worker's side ended with a failure.
    #[error("{}: {}", .0.kind, .0.message)]
    Failed(Failure),
    /// The other side is gone: it left, was killed or cut off, or this side was.
    #[error(
        "the other side of the conversation is gone: it left, or was not heard for {}; what it had not answered may be lost",
        humantime::format_duration(PIPE_LOST_AFTER)
    )]
    Lost,
    /// Nothing can be sent any more: this side was closed, or the other has ended the conversation in good order.
    #[error("the conversation has ended")]
    Closed,
    /// A message that is too long.
    #[error(
        "a message of {bytes} bytes is too long for a conversation, at most {PIPE_MESSAGE_BYTES_MAX}: send it in parts"
    )]
    TooLong {
        /// Its bytes.
        bytes: usize,
    },
    /// A message that cannot be decoded into the expected type.
    #[error("message {start:?} does not fit: {reason}")]
    Unreadable {
        /// How it begins.
        start: String,
        /// What the parser says.
        reason: String,
    },
}

/// So that a handler can write `pipe.recv().await?`.
impl From<PipeError> for Failure {
    fn from(error: PipeError) -> Self {
        let kind = match &error {
            PipeError::Failed(failure) => return failure.clone(),
            PipeError::Lost | PipeError::Closed => "gone",
            PipeError::TooLong { .. } => "result_too_large",
            PipeError::Unreadable { .. } => "bad_arguments",
        };
        Self::fatal(kind, error.to_string())
    }
}

/// Dropped with the last handle of a side: then the driver notifies the other side.
struct LastHandle {
    _left: DropGuard,
    /// Where the driver runs, so that it is not ended before.
    _driven: Option<Arc<Mutex<JoinSet<()>>>>,
}

/// Sends messages to the other side.
#[derive(Clone)]
pub struct PipeSender {
    out: mpsc::Sender<Outgoing>,
    shared: Arc<PipeState>,
    _held: Arc<LastHandle>,
}

/// Receives messages of the other side.
pub struct PipeReceiver {
    incoming: mpsc::Receiver<Bytes>,
    shared: Arc<PipeState>,
    _held: Arc<LastHandle>,
}

/// One side of a conversation. A message is any bytes, 1 MiB at the most. When it is dropped, the other side learns it.
pub struct Pipe {
    sender: PipeSender,
    receiver: PipeReceiver,
}

impl Pipe {
    /// The next message of the other side; none when it has closed its side and all was taken.
    ///
    /// # Errors
    /// [`PipeError::Failed`] and [`PipeError::Lost`], once all that came before was taken.
    ///
    /// # Cancel safety
    /// Safe: no message is lost.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, PipeError> {
        self.receiver.recv().await
    }

    /// The same, decoded from JSON.
    ///
    /// # Errors
    /// As [`Pipe::recv`], and [`PipeError::Unreadable`].
    ///
    /// # Cancel safety
    /// Safe: no message is lost.
    pub async fn recv_json<T: DeserializeOwned>(&mut self) -> Result<Option<T>, PipeError> {
        let Some(message) = self.recv().await? else { return Ok(None) };
        serde_json::from_slice(&message).map(Some).map_err(|e| {
            let start = String::from_utf8_lossy(message.get(..80).unwrap_or(&message)).into_owned();
            PipeError::Unreadable { start, reason: e.to_string() }
        })
    }

    /// Sends a message; waits while the other side has [`PIPE_WINDOW`] messages to take.
    ///
    /// # Errors
    /// [`PipeError`] when nothing can be sent any more.
    ///
    /// # Cancel safety
    /// Safe: the message was sent or was not.
    pub async fn send(&self, message: impl Into<Bytes>) -> Result<(), PipeError> {
        self.sender.send(message).await
    }

    /// The same, as JSON.
    ///
    /// # Errors
    /// As [`Pipe::send`], and [`PipeError::Unreadable`] for a value that cannot be JSON.
    ///
    /// # Cancel safety
    /// Safe: the message was sent or was not.
    pub async fn send_json<T: Serialize + Sync>(&self, value: &T) -> Result<(), PipeError> {
        let unreadable = |e: serde_json::Error| PipeError::Unreadable { start: String::new(), reason: e.to_string() };
        self.sender.send(serde_json::to_vec(value).map_err(unreadable)?).await
    }

    /// Sends the end of this direction. The other side may go on: read to its end.
    ///
    /// # Errors
    /// [`PipeError`] when the conversation has ended already.
    ///
    /// # Cancel safety
    /// Safe: the end of this side is said once, by this call or the next.
    pub async fn close(&self) -> Result<(), PipeError> {
        self.sender.close().await
    }

    /// Both directions by themselves. Dropping the sender closes this side; dropping both leaves the pipe.
    #[must_use]
    pub fn split(self) -> (PipeSender, PipeReceiver) {
        (self.sender, self.receiver)
    }

    /// Another handle that sends.
    #[must_use]
    pub fn sender(&self) -> PipeSender {
        self.sender.clone()
    }
}

impl PipeReceiver {
    /// As [`Pipe::recv`].
    ///
    /// # Errors
    /// As [`Pipe::recv`].
    ///
    /// # Cancel safety
    /// Safe: no message is lost.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, PipeError> {
        if let Some(message) = self.incoming.recv().await {
            self.shared.taken.fetch_add(1, Ordering::Release);
            self.shared.took.notify_one();
            return Ok(Some(message));
        }
        match self.shared.peer.get() {
            Some(PeerEnd::Done) => Ok(None),
            Some(PeerEnd::Failed(failure)) => Err(PipeError::Failed(failure.clone())),
            Some(PeerEnd::Lost) | None => Err(PipeError::Lost),
        }
    }
}

impl PipeSender {
    /// As [`Pipe::send`].
    ///
    /// # Errors
    /// As [`Pipe::send`].
    ///
    /// # Cancel safety
    /// Safe: the message was sent or was not.
    pub async fn send(&self, message: impl Into<Bytes>) -> Result<(), PipeError> {
        let message = message.into();
        if message.len() > PIPE_MESSAGE_BYTES_MAX {
            return Err(PipeError::TooLong { bytes: message.len() });
        }
        self.pass_on(Outgoing::Message(message)).await
    }

    /// As [`Pipe::close`].
    ///
    /// # Errors
    /// As [`Pipe::close`].
    pub async fn close(&self) -> Result<(), PipeError> {
        self.end(Ok(())).await
    }

    /// Sends how this side ended. The end of the worker's side ends the pipe.
    ///
    /// # Errors
    /// As [`Pipe::close`].
    pub async fn end(&self, how: Result<(), Failure>) -> Result<(), PipeError> {
        self.pass_on(Outgoing::End(how)).await
    }

    async fn pass_on(&self, what: Outgoing) -> Result<(), PipeError> {
        // The channel has one place: the sender that has it sees whether the end was sent before.
        if let Ok(place) = self.out.reserve().await
            && !self.shared.over.is_cancelled()
            && !self.shared.closed.load(Ordering::Acquire)
        {
            if matches!(what, Outgoing::End(_)) {
                self.shared.closed.store(true, Ordering::Release);
            }
            place.send(what);
            return Ok(());
        }
        Err(match self.shared.peer.get() {
            Some(PeerEnd::Failed(failure)) => PipeError::Failed(failure.clone()),
            Some(PeerEnd::Lost) => PipeError::Lost,
            Some(PeerEnd::Done) | None => PipeError::Closed,
        })
    }

    /// Cancelled when the pipe is over.
    #[must_use]
    pub fn over(&self) -> CancellationToken {
        self.shared.over.clone()
    }
}

/// Opens the worker's side of the pipe that a call requests, and notifies the caller.
///
/// # Errors
/// [`BusError`] when the connection is closed.
pub async fn accept(called: &IncomingCall, id: &str, capacity: u64) -> Result<(Pipe, PipeDriver), BusError> {
    let bus = called.bus();
    // The subscription goes first: the server takes them in this order, and nothing of the caller is lost.
    let frames = listen(bus, subject::pipe_in(id)).await?;
    called.accept(id).await;
    Ok(side(bus, frames, subject::pipe_out(id), true, capacity, None))
}

/// Listens for the worker's side of a pipe that is about to be requested.
pub(crate) async fn listen(bus: &Bus, subject: String) -> Result<Subscription, BusError> {
    bus.listen(subject).await
}

/// A side's handle and its driver. The caller runs the driver in `driven`.
pub(crate) fn side(
    bus: &Bus,
    frames: Subscription,
    to: String,
    worker: bool,
    capacity: u64,
    driven: Option<Arc<Mutex<JoinSet<()>>>>,
) -> (Pipe, PipeDriver) {
    let (out, outgoing) = mpsc::channel(1);
    let (sender, incoming) = mpsc::channel(usize::try_from(PIPE_WINDOW).unwrap_or(1));
    let (over, left) = (CancellationToken::new(), CancellationToken::new());
    let (taken, took, peer, closed) = (AtomicU64::new(0), Notify::new(), OnceLock::new(), AtomicBool::new(false));
    let shared = Arc::new(PipeState { taken, took, peer, closed, over });
    let held = Arc::new(LastHandle { _left: left.clone().drop_guard(), _driven: driven });
    let driver = PipeDriver::new(bus, to, worker, capacity, frames, (outgoing, sender), (shared.clone(), left));
    let sender = PipeSender { out, shared: shared.clone(), _held: held.clone() };
    let receiver = PipeReceiver { incoming, shared, _held: held };
    (Pipe { sender, receiver }, driver)
}

/// The headers that request a pipe under this id.
pub(crate) fn request_headers(id: &str) -> [(String, String); 2] {
    [(HEADER_PIPE.to_owned(), id.to_owned()), (HEADER_PIPE_CAPACITY.to_owned(), PIPE_WINDOW.to_string())]
}

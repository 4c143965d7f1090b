//! Conversations: messages both ways between a caller and one worker, in order, with backpressure, none lost while both
//! live. A [`Pipe`] is a side's handle; `talk` says and hears for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use async_nats::Subscriber;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::bus::Bus;
use crate::bus::call::pipe_driver::PipeDriver;
use crate::bus::call::service::IncomingCall;
use crate::bus::topology::TopologyError;
use crate::limits::{PIPE_LOST_AFTER, PIPE_MESSAGE_BYTES_MAX, PIPE_WINDOW};
use crate::outcome::Failure;
use crate::wire::headers::{HEADER_PIPE, HEADER_PIPE_CAPACITY};
use crate::wire::subject;

/// Why a conversation does not go on.
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
    /// A message that is not what was expected.
    #[error("message {start:?} does not fit: {reason}")]
    Unreadable {
        /// How it begins.
        start: String,
        /// What the parser says.
        reason: String,
    },
}

/// A handler may say `pipe.recv().await?`.
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

/// How the other side ended.
#[derive(Debug, Clone)]
pub(in crate::bus) enum PeerEnd {
    Done,
    Failed(Failure),
    Lost,
}

/// What a side wants said.
pub(in crate::bus) enum Outgoing {
    Message(Bytes),
    End(Result<(), Failure>),
}

/// What handles and driver share.
pub(in crate::bus) struct PipeState {
    /// Messages that were taken by who reads, and the news of it.
    pub(in crate::bus) taken: AtomicU64,
    pub(in crate::bus) took: Notify,
    /// How the other side ended; nothing more is heard of it then.
    pub(in crate::bus) peer: OnceLock<PeerEnd>,
    /// This side has said its end.
    closed: AtomicBool,
    /// Cancelled when the conversation is over: before who reads or writes can learn it otherwise.
    pub(in crate::bus) over: CancellationToken,
}

/// Dropped with the last handle of a side: then the driver says good-bye.
struct Held {
    _left: DropGuard,
    /// Where the driver runs, so that it is not ended before.
    _driven: Option<Arc<Mutex<JoinSet<()>>>>,
}

/// Says things to the other side.
#[derive(Clone)]
pub struct PipeSender {
    out: mpsc::Sender<Outgoing>,
    shared: Arc<PipeState>,
    _held: Arc<Held>,
}

/// Hears what the other side says.
pub struct PipeReceiver {
    incoming: mpsc::Receiver<Bytes>,
    shared: Arc<PipeState>,
    _held: Arc<Held>,
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

    /// Says something; waits while the other side has more than [`PIPE_WINDOW`] messages to take.
    ///
    /// # Errors
    /// [`PipeError`] when it cannot be said any more.
    ///
    /// # Cancel safety
    /// Safe: it was said or was not.
    pub async fn send(&self, message: impl Into<Bytes>) -> Result<(), PipeError> {
        self.sender.send(message).await
    }

    /// The same, as JSON.
    ///
    /// # Errors
    /// As [`Pipe::send`], and [`PipeError::Unreadable`] for a value that cannot be JSON.
    ///
    /// # Cancel safety
    /// Safe: it was said or was not.
    pub async fn send_json<T: Serialize + Sync>(&self, value: &T) -> Result<(), PipeError> {
        let unreadable = |e: serde_json::Error| PipeError::Unreadable { start: String::new(), reason: e.to_string() };
        self.sender.send(serde_json::to_vec(value).map_err(unreadable)?).await
    }

    /// Says that nothing more comes from here. The other side may go on: read to its end.
    ///
    /// # Errors
    /// [`PipeError`] when the conversation has ended already.
    pub async fn close(&self) -> Result<(), PipeError> {
        self.sender.close().await
    }

    /// Both directions by themselves. Who drops the sender closes this side; who drops both has left.
    #[must_use]
    pub fn split(self) -> (PipeSender, PipeReceiver) {
        (self.sender, self.receiver)
    }

    /// Another handle that says things.
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
    /// Safe: it was said or was not.
    pub async fn send(&self, message: impl Into<Bytes>) -> Result<(), PipeError> {
        let message = message.into();
        if message.len() > PIPE_MESSAGE_BYTES_MAX {
            return Err(PipeError::TooLong { bytes: message.len() });
        }
        self.say(Outgoing::Message(message)).await
    }

    /// As [`Pipe::close`].
    ///
    /// # Errors
    /// As [`Pipe::close`].
    pub async fn close(&self) -> Result<(), PipeError> {
        self.end(Ok(())).await
    }

    /// Says how this side ended. After a worker's the conversation is over.
    ///
    /// # Errors
    /// As [`Pipe::close`].
    pub async fn end(&self, how: Result<(), Failure>) -> Result<(), PipeError> {
        self.say(Outgoing::End(how)).await
    }

    async fn say(&self, what: Outgoing) -> Result<(), PipeError> {
        // There is one place: whoever has it sees what was said before.
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

    /// Cancelled when nothing is said or heard any more.
    #[must_use]
    pub fn over(&self) -> CancellationToken {
        self.shared.over.clone()
    }
}

/// Opens the worker's side of the conversation that a call asks for, and tells the caller.
///
/// # Errors
/// [`TopologyError`] when the connection is closed.
pub async fn accept(called: &IncomingCall, id: &str, room: u64) -> Result<(Pipe, PipeDriver), TopologyError> {
    let bus = called.bus();
    // First the ear, then the word: the server takes them in this order.
    let frames = listen(bus, subject::pipe_in(id)).await?;
    called.accept(id).await;
    Ok(side(bus, frames, subject::pipe_out(id), true, room, None))
}

/// Listens for the worker's side of a conversation that is about to be asked for.
pub(crate) async fn listen(bus: &Bus, subject: String) -> Result<Subscriber, TopologyError> {
    bus.client.subscribe(subject.clone()).await.map_err(|e| TopologyError::new(&subject, &e))
}

/// A side's handle and its driver; `driven`: where the caller will run that.
pub(crate) fn side(
    bus: &Bus,
    frames: Subscriber,
    to: String,
    worker: bool,
    room: u64,
    driven: Option<Arc<Mutex<JoinSet<()>>>>,
) -> (Pipe, PipeDriver) {
    let (out, outgoing) = mpsc::channel(1);
    let (sender, incoming) = mpsc::channel(usize::try_from(PIPE_WINDOW).unwrap_or(1));
    let (over, left) = (CancellationToken::new(), CancellationToken::new());
    let (taken, took, peer, closed) = (AtomicU64::new(0), Notify::new(), OnceLock::new(), AtomicBool::new(false));
    let shared = Arc::new(PipeState { taken, took, peer, closed, over });
    let held = Arc::new(Held { _left: left.clone().drop_guard(), _driven: driven });
    let driver = PipeDriver::new(bus, to, worker, room, frames, (outgoing, sender), (shared.clone(), left));
    let sender = PipeSender { out, shared: shared.clone(), _held: held.clone() };
    let receiver = PipeReceiver { incoming, shared, _held: held };
    (Pipe { sender, receiver }, driver)
}

/// The headers that ask for a conversation under this id.
pub(crate) fn asking(id: &str) -> [(String, String); 2] {
    [(HEADER_PIPE.to_owned(), id.to_owned()), (HEADER_PIPE_CAPACITY.to_owned(), PIPE_WINDOW.to_string())]
}

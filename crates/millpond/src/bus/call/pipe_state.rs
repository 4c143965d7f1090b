//! What a side's handles (`pipe`) and its driver (`pipe_driver`) share.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::outcome::Failure;

/// How the other side of a pipe ended.
#[derive(Debug, Clone)]
pub(super) enum PeerEnd {
    Done,
    Failed(Failure),
    Lost,
}

/// What a handle passes to its driver.
pub(super) enum Outgoing {
    Message(Bytes),
    End(Result<(), Failure>),
}

/// What the handles of a side and their driver share.
pub(super) struct PipeState {
    /// Messages that the reader has taken.
    pub(super) taken: AtomicU64,
    /// Notified each time the reader takes one.
    pub(super) took: Notify,
    /// How the other side ended; nothing more is received then.
    pub(super) peer: OnceLock<PeerEnd>,
    /// This side has sent its end.
    pub(super) closed: AtomicBool,
    /// Cancelled when the pipe is over, before a reader or writer can learn it in another way.
    pub(super) over: CancellationToken,
}

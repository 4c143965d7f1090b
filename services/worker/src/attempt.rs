//! What one attempt is between two stages: admitted, prepared, finished; or turned away before it ran. Its slot, its
//! child and its fetched arguments are released when the value that holds them is dropped, on every path.

use std::time::Duration;

use bytes::Bytes;
use millpond::batch::{self, BatchError};
use millpond::bus::consume::lease::Lease;
use millpond::outcome::Items;
use millpond::task::Task;
use millpond::telemetry::Scope;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::call::Call;
use crate::call_end::CallEnd;
use crate::cancellations::CancelledPart;
use crate::handlers::{Handler, ReadyHandler};
use crate::prepare::payloads::FetchedPayload;
use crate::report::spans::AttemptSpans;
use crate::run_loop::pools::Slot;
use crate::supervisor::Timeouts;

/// The argument of each item that a message covers, in order. A batch is taken apart once, by whoever admits it.
#[derive(Debug)]
pub(crate) enum Arguments {
    /// The message is not an array: a task published alone, or one item of a batch.
    One(Bytes),
    /// The message is an array.
    Each(Vec<Bytes>),
}

impl Arguments {
    /// # Errors
    /// [`BatchError`] when the payload of a batch is not an array of as many values as it should have.
    pub(crate) fn of(task: &Task) -> Result<Self, BatchError> {
        if !task.is_batch() {
            return Ok(Self::One(task.payload.clone()));
        }
        let values = batch::split(&task.payload, task.items_len())?;
        Ok(Self::Each(values.iter().map(|value| task.payload.slice_ref(value.get().as_bytes())).collect()))
    }

    pub(crate) fn as_slice(&self) -> &[Bytes] {
        match self {
            Self::One(argument) => std::slice::from_ref(argument),
            Self::Each(arguments) => arguments,
        }
    }
}

/// A task that may run here.
pub(crate) struct Admitted {
    pub(crate) lease: Lease,
    pub(crate) slot: Slot,
    pub(crate) handler: Handler,
    pub(crate) arguments: Result<Arguments, BatchError>,
    /// Changes with each cancellation since the task was checked.
    pub(crate) cancellations: watch::Receiver<()>,
}

/// A task that has all it needs to start.
pub(crate) struct Prepared {
    pub(crate) lease: Lease,
    pub(crate) slot: Slot,
    pub(crate) handler: ReadyHandler,
    pub(crate) arguments: Arguments,
    pub(crate) calls: Vec<Call>,
    /// Arguments that were not in the message; kept while the handler runs.
    pub(crate) fetched: Option<FetchedPayload>,
    pub(crate) cancellations: watch::Receiver<()>,
    pub(crate) timeouts: Timeouts,
    /// Ends the attempt early.
    pub(crate) stop: CancellationToken,
    pub(crate) spans: AttemptSpans,
}

/// An attempt that has ended, with what came of it.
pub(crate) struct Finished {
    pub(crate) lease: Lease,
    pub(crate) arguments: Arguments,
    /// One for each covered item, in order.
    pub(crate) ends: Vec<CallEnd>,
    /// Items that were published again while the attempt ran; others are to run them.
    pub(crate) republished: Option<Items>,
    pub(crate) time: AttemptTime,
    pub(crate) spans: AttemptSpans,
    pub(crate) scope: Scope,
    /// Large results keep the slot until they are stored, so that few are in memory at once.
    pub(crate) slot: Option<Slot>,
}

/// When an attempt ran.
pub(crate) struct AttemptTime {
    /// Unix time in milliseconds.
    pub(crate) started_ms: i64,
    /// Unix time in milliseconds.
    pub(crate) ended_ms: i64,
    /// How long the handler ran.
    pub(crate) busy: Duration,
}

/// A lease that does not run, and what is to become of it.
pub(crate) struct TurnedAway {
    pub(crate) lease: Lease,
    /// None for a batch that cannot be taken apart.
    pub(crate) arguments: Option<Arguments>,
    pub(crate) disposition: Disposition,
}

/// How a lease ends whose task does not run.
pub(crate) enum Disposition {
    /// The task can never run: the reason, and one line for a person.
    DeadLetter(&'static str, String),
    /// The task was cancelled, or these items of it were.
    Cancel(CancelledPart),
    /// A batch is suspected of having killed its workers, with so many recorded starts: its items are tried one by one.
    Split(usize),
    /// The task is settled already, or a later attempt of it waits.
    Acknowledge,
    /// Another worker holds the task and lives.
    LeaveToOwner,
    /// The lease may have run out unnoticed: nothing is said of it.
    Abandon,
    /// The task may run later, here or elsewhere.
    Release(Duration),
}

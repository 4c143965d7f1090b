//! What is exchanged with the actor of a warm child: the calls that the child is to run, and what became of them.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::call::Call;
use crate::call_end::CallEnd;
use crate::run::work_cursor::WorkCursor;
use crate::supervisor::stop_times::Timeouts;

/// The calls of a message that a child is to run.
pub(crate) struct Assignment {
    pub(crate) calls: Arc<Vec<Call>>,
    pub(crate) cursor: Arc<WorkCursor>,
    /// The first call without an end.
    pub(crate) from: usize,
    /// Calls before this one are claimed.
    pub(crate) claimed: usize,
    pub(crate) timeouts: Timeouts,
    pub(crate) stop: CancellationToken,
    pub(crate) report: oneshot::Sender<AssignmentReport>,
}

/// What became of an assignment.
#[derive(Debug)]
pub(crate) struct AssignmentReport {
    /// The ends of the calls from `from` on, without gaps.
    pub(crate) ends: Vec<CallEnd>,
    /// Calls before this one are claimed; those without an end did not run.
    pub(crate) claimed: usize,
    /// Whether the child takes another assignment.
    pub(crate) alive: bool,
    /// Whether the child has ever answered a task.
    pub(crate) answered: bool,
}

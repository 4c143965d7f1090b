//! The exit codes of every verb, in one list (README.md shows the same one), and the code that an error ends with.

use millpond::bus::ConnectError;
use millpond::bus::publish::PublishError;
use millpond::client::{MapError, SubmitError};

/// A task or call failed, a job did not end well, or a verb could not do what it was asked for.
pub const TASK_FAILED: u8 = 1;
/// `why`: the task was cancelled.
pub const CANCELLED: u8 = 3;
/// `why`: nothing is known of the task.
pub const UNKNOWN: u8 = 4;
/// `job wait`: no producer adds to the job or closes it, and nothing of it changes.
pub const STALLED: u8 = 5;
/// `why`: the task runs.
pub const RUNNING: u8 = 10;
/// `why`: the task waits for its time.
pub const SCHEDULED: u8 = 11;
/// `why`: the task waits for a free slot.
pub const WAITING: u8 = 12;
/// `why`: no live worker takes the task.
pub const NO_WORKER: u8 = 13;
/// `why`: the task's queue is paused.
pub const PAUSED: u8 = 14;
/// NATS or the collector cannot be reached; no worker takes a call.
pub const UNREACHABLE: u8 = 69;
/// Any other error.
pub const ERROR: u8 = 70;
/// The queue is full; a later try may succeed.
pub const QUEUE_FULL: u8 = 75;
/// Most failed commands that `xargs` counts in its exit code, as GNU parallel does; one more stands for more than these.
pub const XARGS_FAILED_MAX: u8 = 100;
/// Ctrl-C ended it, as shells report that.
pub const INTERRUPTED: u8 = 130;

/// The exit code of a verb that ended with this error.
pub(crate) fn of(error: &anyhow::Error) -> u8 {
    let unreachable = error.chain().any(|cause| {
        cause.is::<ConnectError>()
            || cause.downcast_ref().is_some_and(|e: &reqwest::Error| e.is_connect() || e.is_timeout())
    });
    let is_full = |e: &SubmitError| matches!(e, SubmitError::Publish(PublishError::QueueFull { .. }));
    let full = error.chain().any(|cause| match cause.downcast_ref() {
        Some(MapError::Submit(error)) => is_full(error),
        _ => cause.downcast_ref().is_some_and(is_full),
    });
    match () {
        () if is_broken_pipe(error) => 0,
        () if full => QUEUE_FULL,
        () if unreachable => UNREACHABLE,
        () => ERROR,
    }
}

/// Whether the reader of our output has closed it, as `| head` does.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(broken))
}

/// The exit code of another process as ours; `or` when a signal ended it.
pub(crate) fn of_process(status: std::process::ExitStatus, or: u8) -> std::process::ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(or).into()
}

//! The exit codes of every verb, in one list (README.md shows the same one), and the code that an error ends with.

use std::error::Error;
use std::fmt;

use millpond::bus::consume::name_claim::NameError;
use millpond::bus::error::BusError;
use millpond::bus::publish::PublishError;
use millpond::bus::publish::payloads::{GetError, PutError};
use millpond::bus::shared_state::SharedError;
use millpond::bus::{ConnectError, ConnectionFailure};
use millpond::client::{CallError, MapError, ScheduleChangeError, SubmitError};
use millpond::config::{FileError, SigningError};
use millpond::schedule::ScheduleError;
use millpond::task::TaskIdError;
use millpond::wire::subject::SubjectError;

use crate::addresses::AddressError;
use crate::api::CollectorError;
use crate::cluster_env::{ConnectionDiedError, NoClusterError};
use crate::output::StandardOutputError;

/// A task or call failed, a job did not end well, or a verb could not do what it was asked for.
pub const TASK_FAILED: u8 = 1;
/// The command line is wrong, or a value that it names.
pub const USAGE: u8 = 2;
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
/// Ctrl-C or SIGTERM ended it, as shells report the former.
pub const INTERRUPTED: u8 = 130;

/// Something that was typed does not fit, or a file that was named cannot be used.
#[derive(Debug)]
pub(crate) struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for UsageError {}

/// The error of what was typed wrongly.
pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
    UsageError(text.into()).into()
}

/// The exit code of a verb that ended with this error.
pub(crate) fn of(error: &anyhow::Error) -> u8 {
    if is_broken_pipe(error) {
        return 0;
    }
    error.chain().find_map(of_cause).unwrap_or(ERROR)
}

/// Whether the reader of standard output has closed it, as `| head` does. Only standard output counts: a connection or
/// standard error that breaks is another matter.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let cause: Option<&std::io::Error> = cause.downcast_ref();
        cause.is_some_and(|error| {
            error.kind() == std::io::ErrorKind::BrokenPipe
                && error.get_ref().is_some_and(|inner| inner.is::<StandardOutputError>())
        })
    })
}

/// The code of one of the causes of an error; none when another cause, or nothing, tells it.
fn of_cause(cause: &(dyn Error + 'static)) -> Option<u8> {
    if cause.is::<UsageError>()
        || cause.is::<AddressError>()
        || cause.is::<clap::Error>()
        || cause.is::<SubjectError>()
        || cause.is::<TaskIdError>()
        || cause.is::<ScheduleError>()
        || cause.is::<FileError>()
        || cause.is::<SigningError>()
        || matches!(cause.downcast_ref(), Some(ConnectError::Credentials { .. }))
    {
        return Some(USAGE);
    }
    // A service that could not start, or cannot go on: as the services' own programs end.
    if matches!(cause.downcast_ref(), Some(NameError::Taken { .. })) || cause.is::<ConnectionFailure>() {
        return Some(TASK_FAILED);
    }
    if cause.is::<NoClusterError>() || cause.is::<ConnectError>() || cause.is::<ConnectionDiedError>() {
        return Some(UNREACHABLE);
    }
    let http = |error: &reqwest::Error| match () {
        () if error.is_builder() => Some(USAGE),
        () if error.is_decode() => None,
        () => Some(UNREACHABLE),
    };
    None.or_else(|| cause.downcast_ref().and_then(of_submit))
        .or_else(|| cause.downcast_ref().and_then(of_map))
        .or_else(|| cause.downcast_ref().and_then(of_publish))
        .or_else(|| cause.downcast_ref().and_then(of_bus))
        .or_else(|| cause.downcast_ref().and_then(of_name))
        .or_else(|| cause.downcast_ref().and_then(of_schedule))
        .or_else(|| cause.downcast_ref().and_then(of_shared))
        .or_else(|| cause.downcast_ref().and_then(of_call))
        .or_else(|| cause.downcast_ref().and_then(of_put))
        .or_else(|| cause.downcast_ref().and_then(of_get))
        .or_else(|| cause.downcast_ref().and_then(http))
        .or_else(|| cause.downcast_ref().and_then(of_api))
}

fn of_submit(error: &SubmitError) -> Option<u8> {
    match error {
        SubmitError::Subject(_)
        | SubmitError::TaskId(_)
        | SubmitError::Header { .. }
        | SubmitError::UniqueKeyNotAlone
        | SubmitError::StartTimeOutOfRange { .. }
        | SubmitError::StartsAfterPayload { .. } => Some(USAGE),
        SubmitError::Publish(error) => of_publish(error),
        SubmitError::Topology(error) => of_bus(error),
        SubmitError::Payload(error) => of_put(error),
        SubmitError::UniqueKeyTaken { .. } | SubmitError::IdTaken { .. } => Some(TASK_FAILED),
        SubmitError::BatchInBoundedQueue { .. } => None,
    }
}

fn of_map(error: &MapError) -> Option<u8> {
    match error {
        MapError::Submit(error) => of_submit(error),
        MapError::InvalidValue { .. } => Some(USAGE),
        _ => None,
    }
}

fn of_publish(error: &PublishError) -> Option<u8> {
    match error {
        PublishError::QueueFull { .. } => Some(QUEUE_FULL),
        PublishError::NoAnswer { .. } | PublishError::NotYet { .. } => Some(UNREACHABLE),
        _ => None,
    }
}

fn of_bus(error: &BusError) -> Option<u8> {
    error.is_passing().then_some(UNREACHABLE)
}

fn of_name(error: &NameError) -> Option<u8> {
    match error {
        NameError::Taken { .. } => None,
        NameError::Bus(error) => of_bus(error),
    }
}

fn of_schedule(error: &ScheduleChangeError) -> Option<u8> {
    match error {
        ScheduleChangeError::Subject(_) | ScheduleChangeError::Invalid(_) => Some(USAGE),
        ScheduleChangeError::Publish(error) => of_publish(error),
        ScheduleChangeError::Topology(error) => of_bus(error),
        ScheduleChangeError::NoProducer | ScheduleChangeError::NotChanged { .. } => Some(UNREACHABLE),
        ScheduleChangeError::NotFound { .. }
        | ScheduleChangeError::Unreadable { .. }
        | ScheduleChangeError::NotSigned { .. }
        | ScheduleChangeError::RefusedByProducer { .. }
        | ScheduleChangeError::Refused(_) => None,
    }
}

fn of_shared(error: &SharedError) -> Option<u8> {
    match error {
        SharedError::Key(_) | SharedError::TooLarge { .. } => Some(USAGE),
        SharedError::Bus(error) => of_bus(error),
        SharedError::Conflict { .. } => Some(TASK_FAILED),
    }
}

fn of_call(error: &CallError) -> Option<u8> {
    match error {
        CallError::Subject(_) | CallError::TooLarge { .. } | CallError::BadTimeout { .. } => Some(USAGE),
        CallError::Topology(error) => of_bus(error),
        CallError::Broken { .. } | CallError::NoWorker { .. } | CallError::NoAnswer { .. } => Some(UNREACHABLE),
        CallError::Failed { .. } => Some(TASK_FAILED),
    }
}

fn of_put(error: &PutError) -> Option<u8> {
    match error {
        PutError::Read(_) => Some(USAGE),
        PutError::Store(error) => of_publish(error),
    }
}

fn of_get(error: &GetError) -> Option<u8> {
    matches!(error, GetError::NoAnswer { .. }).then_some(UNREACHABLE)
}

/// What the collector refuses because it does not fit was typed wrongly.
fn of_api(error: &CollectorError) -> Option<u8> {
    match error.status.as_u16() {
        400 | 413 | 414 | 415 | 422 => Some(USAGE),
        502..=504 => Some(UNREACHABLE),
        _ => None,
    }
}

/// The exit code of another process as ours; `or` when a signal ended it.
pub(crate) fn of_process(status: std::process::ExitStatus, or: u8) -> std::process::ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(or).into()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn only_a_closed_standard_output_ends_a_verb_well() {
        let of_output = StandardOutputError::wrap(io::ErrorKind::BrokenPipe.into());
        assert_eq!(of(&anyhow::Error::from(of_output).context("x")), 0);
        assert_eq!(of(&StandardOutputError::wrap(io::ErrorKind::StorageFull.into()).into()), ERROR);
        assert_eq!(of(&io::Error::from(io::ErrorKind::BrokenPipe).into()), ERROR);
    }

    #[test]
    fn errors_within_errors_tell_the_code() {
        let wrong = || SubjectError::Token { what: "kind", token: "a b".into() };
        assert_eq!(of(&MapError::Submit(SubmitError::Subject(wrong())).into()), USAGE);
        assert_eq!(of(&anyhow::Error::from(wrong()).context("x")), USAGE);
        assert_eq!(of(&usage("x").context("y")), USAGE);
        let full = PublishError::QueueFull { queue: "q".into(), max_waiting: 1 };
        assert_eq!(of(&SubmitError::Publish(full).into()), QUEUE_FULL);
        let silent = BusError::NoAnswer { what: "x".into(), reason: "y".into() };
        assert_eq!(of(&SharedError::Bus(silent).into()), UNREACHABLE);
        assert_eq!(of(&anyhow::anyhow!("x")), ERROR);
    }
}

//! Why something could not be submitted, mapped or scheduled: one error per kind of call, to branch on. Each tells what is
//! passing (the same call may succeed later) from what is permanent.

use std::time::Duration;

use super::{NoResult, TaskResult};
use crate::bus::ConnectError;
use crate::bus::error::BusError;
use crate::bus::publish::PublishError;
use crate::bus::publish::payloads::PutError;
use crate::config::{FileError, SigningError};
use crate::limits::PAYLOAD_RETENTION;
use crate::schedule::{RecordError, Refusal, ScheduleError};
use crate::task::TaskIdError;
use crate::wire::subject::SubjectError;

/// Why a task was not submitted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// A queue, kind, job or unique key that is not a token.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// An id that a message cannot carry unchanged.
    #[error(transparent)]
    TaskId(#[from] TaskIdError),
    /// What the task says of itself (a field of [`NewTask`](super::NewTask)) is more than a task may say: a worker would make a
    /// dead letter of it, with this reason.
    #[error("{reason}")]
    Header {
        /// The header, what is wrong, and the limit.
        reason: String,
    },
    /// The server did not store the task.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The streams or buckets are missing, or may not be used.
    #[error(transparent)]
    Topology(#[from] BusError),
    /// The arguments could not be put into the store of payloads.
    #[error(transparent)]
    Payload(#[from] PutError),
    /// Another task with the same unique key waits or runs.
    #[error("a task with the unique key {key} waits or runs already")]
    UniqueKeyTaken {
        /// The key.
        key: String,
    },
    /// The id stands for another task of this queue and kind, with other arguments; nothing was stored.
    #[error(
        "id {id:?} stands for another task of kind {kind} in queue {queue}, with other arguments: {holder}; choose another id"
    )]
    IdTaken {
        /// The queue.
        queue: String,
        /// The kind.
        kind: String,
        /// The id.
        id: String,
        /// How that task stands.
        holder: String,
    },
    /// A unique key on a batch or on a task of a job.
    #[error("a task with a unique key is alone: it cannot be a batch or belong to a job")]
    UniqueKeyNotAlone,
    /// A start time that does not exist.
    #[error("{at_ms} ms is no time that a task can wait for; it must lie between the years -9999 and 9999")]
    StartTimeOutOfRange {
        /// Unix time in milliseconds.
        at_ms: i64,
    },
    /// A start time after the end of the task's payload.
    #[error(
        "the task would start {} after its payload is gone: large arguments are kept for {}, so let it start earlier",
        humantime::format_duration(Duration::from_millis(at_ms.saturating_sub(*until_ms).unsigned_abs())),
        humantime::format_duration(PAYLOAD_RETENTION)
    )]
    StartsAfterPayload {
        /// When it is to start, Unix time in milliseconds.
        at_ms: i64,
        /// When it must have started, Unix time in milliseconds.
        until_ms: i64,
    },
    /// A batch for a queue whose limit counts messages.
    #[error(
        "queue {queue} is bounded to {max_waiting} waiting tasks, and its limit counts messages: batches of {batch} cannot go there; publish one task per message (no --batch, no Millpond-Batch), or choose another queue"
    )]
    BatchInBoundedQueue {
        /// The queue.
        queue: String,
        /// Its limit, in tasks.
        max_waiting: u64,
        /// Tasks in the message.
        batch: u32,
    },
}

impl SubmitError {
    /// Whether the same call may succeed later, with nothing changed.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Publish(error) => {
                matches!(
                    error,
                    PublishError::NoAnswer { .. } | PublishError::NotYet { .. } | PublishError::QueueFull { .. }
                )
            }
            Self::UniqueKeyTaken { .. } => true,
            _ => false,
        }
    }

    /// Whether the same call is refused whenever it is made. What is neither passing nor permanent ends when somebody mends it.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Publish(error) => error.is_permanent(),
            Self::Subject(_)
            | Self::TaskId(_)
            | Self::Header { .. }
            | Self::IdTaken { .. }
            | Self::UniqueKeyNotAlone
            | Self::StartTimeOutOfRange { .. }
            | Self::StartsAfterPayload { .. } => true,
            _ => false,
        }
    }
}

/// Why a job could not be begun, or did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A task of it was not submitted.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// There is a job of this name, and it was not to go on.
    #[error("there is a job {job} already; choose another name")]
    JobExists {
        /// Its name.
        job: String,
    },
    /// The job of this name runs another kind, or in another queue.
    #[error("job {job} runs kind {kind} in queue {queue}; choose another name, or start it anew (--again)")]
    OtherKindOrQueue {
        /// Its name.
        job: String,
        /// Its kind.
        kind: String,
        /// Its queue.
        queue: String,
    },
    /// The input is not the one that the job was begun with.
    #[error(
        "the input is not the one that job {job} was begun with, at item {index}: {reason}; bring the same input, choose another name, or start it anew (--again)"
    )]
    OtherInput {
        /// The job.
        job: String,
        /// Place in the input, from 0.
        index: u64,
        /// What differs.
        reason: String,
    },
    /// A value of the input that cannot be the argument of a task.
    #[error("item {index} of the input: {reason}")]
    InvalidValue {
        /// Place in the input, from 0.
        index: u64,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// Nobody has begun a job of this name.
    #[error("there is no job {job}; `millpond job ls` lists them")]
    NoSuchJob {
        /// Its name.
        job: String,
    },
    /// The job was cancelled while it was published.
    #[error("job {job} was cancelled")]
    Cancelled {
        /// Its name.
        job: String,
    },
    /// Another process goes on with the job.
    #[error("job {job} was taken over by another process, which goes on with it")]
    TakenOver {
        /// Its name.
        job: String,
    },
    /// Only a collector still has the oldest results of a job that goes on, and none answered.
    #[error(
        "the first results of job {job} are old and only a collector has them; it does not answer: {reason}; is one running?"
    )]
    HistoryUnavailable {
        /// Its name.
        job: String,
        /// What came back.
        reason: String,
    },
}

impl MapError {
    /// Whether the same call may succeed later, with nothing changed.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Submit(error) => error.is_passing(),
            Self::HistoryUnavailable { .. } => true,
            _ => false,
        }
    }
}

impl From<SubjectError> for MapError {
    fn from(error: SubjectError) -> Self {
        Self::Submit(error.into())
    }
}

impl From<BusError> for MapError {
    fn from(error: BusError) -> Self {
        Self::Submit(error.into())
    }
}

/// Why a schedule was not added, paused, resumed or removed.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleChangeError {
    /// A name that is not a token.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// A schedule that cannot be.
    #[error(transparent)]
    Invalid(#[from] ScheduleError),
    /// There is no schedule of this name.
    #[error("there is no schedule {name}; `millpond schedule ls` lists them")]
    NotFound {
        /// The name.
        name: String,
    },
    /// What lies under the name cannot be read.
    #[error("schedule {name} cannot be read: {why}; `millpond schedule rm {name}` removes it")]
    Unreadable {
        /// The name.
        name: String,
        /// Why.
        why: RecordError,
    },
    /// The server would store it, and never fire it.
    #[error(transparent)]
    Refused(Refusal),
    /// There are keys, and nobody who has one has made the schedule.
    #[error(
        "nobody who has a signing key has made schedule {name}: add it anew with MILLPOND_SIGNING_KEY, or remove it"
    )]
    NotSigned {
        /// The name.
        name: String,
    },
    /// No producer service is connected.
    #[error(
        "no producer service answers, which makes and changes schedules; is one running? (`millpond producer run`)"
    )]
    NoProducer,
    /// A producer service refuses it, and does so whenever it is requested.
    #[error("{reason}")]
    RefusedByProducer {
        /// The reason, for a person.
        reason: String,
    },
    /// A producer service did not do it; the same request may succeed later.
    #[error("a producer service did not change the schedule: {reason}")]
    NotChanged {
        /// The reason, for a person.
        reason: String,
    },
    /// The server did not store the change.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The server does not answer, or setup has not run.
    #[error(transparent)]
    Topology(#[from] BusError),
}

impl ScheduleChangeError {
    /// Whether the same call may succeed later, with nothing changed.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Publish(error) => !error.is_permanent(),
            Self::Topology(_) | Self::NoProducer | Self::NotChanged { .. } => true,
            _ => false,
        }
    }
}

/// Why a task that was waited for has no result to return.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// It has not ended in this time, and goes on: wait again, or cancel it.
    #[error("the task has not ended within {}; it goes on", humantime::format_duration(*.waited))]
    NotDone {
        /// How long it was waited for.
        waited: Duration,
    },
    /// It has ended without a result.
    #[error("the task has no result: {0}")]
    NoResult(NoResult),
    /// It has a result, which is of another type than the one that was waited for.
    #[error("the result of the task does not fit: {reason}")]
    OtherType {
        /// The result as the handler wrote it.
        result: TaskResult,
        /// What does not fit, and where.
        reason: String,
    },
    /// Results cannot be read.
    #[error(transparent)]
    Topology(#[from] BusError),
}

/// Why a collector did not do what it was requested, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No collector is connected.
    #[error("no collector answers; is one running?")]
    NoCollector,
    /// It is refused, and so it is whenever it is requested: it is unknown, or has ended.
    #[error("{reason}")]
    Refused {
        /// The reason, for a person.
        reason: String,
    },
    /// It failed; the same request may succeed later.
    #[error("a collector did not do it: {reason}")]
    Failed {
        /// The reason, for a person.
        reason: String,
    },
}

impl RequestError {
    /// Whether the same request may succeed later, with nothing changed.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }
}

/// Why a job that was waited for is not at its end.
#[derive(Debug, thiserror::Error)]
pub enum JobWaitError {
    /// It has not ended in this time, and goes on: wait again, or cancel it.
    #[error("job {job} has not ended within {}; it goes on", humantime::format_duration(*.waited))]
    NotDone {
        /// Its name.
        job: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A collector does not tell how far it is.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// Why the settings of the environment led to no connection.
#[derive(Debug, thiserror::Error)]
pub enum FromEnvError {
    /// Nothing says where NATS is.
    #[error("MILLPOND_NATS_URL is not set: start `millpond up` first, or set it")]
    NotSet,
    /// The time for which it is tried is none.
    #[error("MILLPOND_CONNECT_TIMEOUT: {reason}")]
    Timeout {
        /// What is wrong with it.
        reason: String,
    },
    /// A file that a variable names cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The keys that sign tasks cannot be used.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

//! What a handler may be given beside the arguments of its task: what is known of the task, and the program's own state.

use std::any::{Any, TypeId, type_name};
use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millpond::outcome::Failure;
use millpond::telemetry::TraceContext;

use crate::call::Call;

/// A parameter of a handler that comes from its task, or from its worker: [`TaskContext`], [`State`], or one of your own.
///
/// ```
/// use millpond::outcome::Failure;
/// use millpond_worker::{Call, FromTask, States};
///
/// /// The last attempt may take the slow way.
/// struct IsFirst(bool);
///
/// impl FromTask for IsFirst {
///     fn from_task(call: &Call, _: &States) -> Result<Self, Failure> {
///         Ok(Self(call.attempt == 1))
///     }
/// }
/// ```
pub trait FromTask: Sized + Send + 'static {
    /// The value for one attempt of a task.
    ///
    /// # Errors
    /// The failure of the attempt when there is none.
    fn from_task(call: &Call, states: &States) -> Result<Self, Failure>;

    /// Whether the worker can have such values at all; it does not start otherwise.
    ///
    /// # Errors
    /// The state that is missing.
    fn check(_states: &States) -> Result<(), MissingState> {
        Ok(())
    }
}

/// The state that no [`WorkerBuilder::state`](crate::WorkerBuilder::state) gave.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it wants the state {type_name}, which WorkerBuilder::state does not give")]
pub struct MissingState {
    /// Its type.
    pub type_name: &'static str,
}

/// The program's own values that handlers may have, one of each type.
#[derive(Clone, Default)]
pub struct States(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl States {
    pub(crate) fn put<T: Send + Sync + 'static>(&mut self, state: T) {
        self.0.insert(TypeId::of::<T>(), Arc::new(state));
    }

    /// The value of this type; none when none was given.
    #[must_use]
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.get(&TypeId::of::<T>())?.clone().downcast().ok()
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "States({})", self.0.len())
    }
}

/// A value of the program that its handlers share, as [`WorkerBuilder::state`](crate::WorkerBuilder::state) gave it: a pool of
/// connections, a client, a model.
///
/// ```
/// use millpond_worker::{State, TaskError};
///
/// struct Greetings(String);
///
/// async fn greet(name: String, greetings: State<Greetings>) -> Result<String, TaskError> {
///     Ok(format!("{} {name}", greetings.0))
/// }
/// # let _ = millpond_worker::Worker::builder().state(Greetings("hello".into())).handle("greet", greet);
/// ```
#[derive(Debug)]
pub struct State<T> {
    of_worker: Arc<T>,
}

impl<T> Clone for State<T> {
    fn clone(&self) -> Self {
        Self { of_worker: self.of_worker.clone() }
    }
}

impl<T> Deref for State<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.of_worker
    }
}

impl<T: Send + Sync + 'static> FromTask for State<T> {
    fn from_task(_: &Call, states: &States) -> Result<Self, Failure> {
        let missing = || Failure::new("error", MissingState { type_name: type_name::<T>() }.to_string());
        states.get().map(|of_worker| Self { of_worker }).ok_or_else(missing)
    }

    fn check(states: &States) -> Result<(), MissingState> {
        let missing = MissingState { type_name: type_name::<T>() };
        states.get::<T>().map(drop).ok_or(missing)
    }
}

/// What a handler may know of its task beside the arguments, and what it may tell of it.
#[derive(Debug, Clone)]
pub struct TaskContext {
    call: Call,
    deadline: Option<Instant>,
}

impl FromTask for TaskContext {
    fn from_task(call: &Call, _: &States) -> Result<Self, Failure> {
        let deadline = call.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Ok(Self { call: call.clone(), deadline })
    }
}

impl TaskContext {
    /// The id of the task, or `<original id>/<i>` of an item of a batch. It is the same in each attempt: use it where
    /// something outside must not be done twice.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.call.id
    }

    /// The number of the attempt, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.call.attempt
    }

    /// When the attempt times out.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// How long the attempt may still take; zero when its time is over. None where it has all the time it needs.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether nobody waits for the result any more: after the timeout, at the end of the drain, or when the task was
    /// cancelled. A blocking handler that computes for long looks at it now and then.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.call.stop.is_cancelled()
    }

    /// Returns when nobody waits for the result any more. An async handler is dropped then anyway; one that has to clean up
    /// waits for this beside its work.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn cancelled(&self) {
        self.call.stop.cancelled().await;
    }

    /// Tells how far the attempt is: a share from 0 to 1, and a note. Of an isolated handler `millpond top`, `worker ls` and the
    /// console show it; of others it is a line of the log, with the fields of the task.
    pub fn progress(&self, share: f64, note: &str) {
        self.call.progress.tell(share, note);
    }

    /// The arguments as published, for handlers that take others than JSON. Empty when they are in a file.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.call.payload
    }

    /// The file with the arguments, when they are larger than 8 MiB; it is removed when the attempt has ended.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.call.file.as_deref()
    }

    /// The span of the attempt: spans that the handler starts elsewhere belong below it.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        self.call.trace
    }
}

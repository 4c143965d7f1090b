//! For tests of a program's handlers: [`TestTask`] runs one with a task and no server; [`TestCluster`] is a nats-server with
//! workers within a test.

mod cluster;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use millpond::outcome::Failure;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

pub use cluster::TestCluster;

use crate::call::{Call, ProgressSink, Reply};
use crate::call_end::CallEnd;
use crate::handlers::ReadyHandler;
use crate::panics::note_panics;
use crate::run::execute::execute;
use crate::run::work_cursor::WorkCursor;
use crate::supervisor::Timeouts;
use crate::typed::extract::{MissingState, States};
use crate::typed::{AsyncHandler, BlockingHandler};

/// The timeout of a task that is given none: longer than any test.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);

/// A task for one run of a handler: arguments go through JSON both ways, panics and the timeout end it, as in a worker.
///
/// ```
/// use millpond_worker::testing::TestTask;
/// use millpond_worker::{TaskContext, TaskError};
///
/// async fn half(n: u32, task: TaskContext) -> Result<u32, TaskError> {
///     if n % 2 == 1 {
///         return Err(TaskError::dead(format!("{n} is odd")));
///     }
///     task.progress(0.5, "halved");
///     Ok(n / 2)
/// }
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let end = TestTask::json(&12).unwrap().attempt(2).run(half).await;
/// assert_eq!(end.json::<u32>().unwrap(), 6);
/// assert_eq!(end.progress, [(0.5, "halved".to_owned())]);
///
/// let end = TestTask::json(&7).unwrap().run(half).await;
/// assert!(end.is_dead_letter());
/// # });
/// ```
#[derive(Debug)]
pub struct TestTask {
    call: Call,
    states: States,
    timeout: Duration,
}

/// How the run of a handler ended.
#[derive(Debug)]
pub struct TestEnd {
    /// The result as JSON, or the failure of the attempt.
    pub reply: Reply,
    /// What the handler told of its progress: a share, and a note.
    pub progress: Vec<(f64, String)>,
}

impl TestTask {
    /// The first attempt of a task with these arguments; its id is `test`.
    ///
    /// # Errors
    /// What serde says when the arguments cannot be JSON.
    pub fn json<A: Serialize + ?Sized>(args: &A) -> Result<Self, serde_json::Error> {
        Ok(Self::bytes(serde_json::to_vec(args)?))
    }

    /// The same with arguments as they were published.
    #[must_use]
    pub fn bytes(payload: impl Into<Bytes>) -> Self {
        Self { call: Call::new("test", payload), states: States::default(), timeout: TIMEOUT_DEFAULT }
    }

    /// The id of the task.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.call.id = id.into();
        self
    }

    /// The number of the attempt, from 1.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.call.attempt = attempt;
        self
    }

    /// How long the attempt may take; an hour where it is not said.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// A value of the program that the handler takes as [`State<T>`](crate::State).
    #[must_use]
    pub fn state<T: Send + Sync + 'static>(mut self, state: T) -> Self {
        self.states.put(state);
        self
    }

    /// Nobody waits for the result any more, from the start on.
    #[must_use]
    pub fn cancelled(self) -> Self {
        self.call.stop.cancel();
        self
    }

    /// Runs an async handler, as [`WorkerBuilder::handle`](crate::WorkerBuilder::handle) takes it.
    pub async fn run<M, H: AsyncHandler<M>>(self, handler: H) -> TestEnd {
        let (handler, states) = (Arc::new(handler), Arc::new(self.states.clone()));
        let checked = handler.check(&states);
        let run = move |call: Call| handler.clone().run(call, states.clone());
        self.execute(checked, ReadyHandler::Async(Arc::new(run))).await
    }

    /// Runs a blocking handler on a thread, as
    /// [`WorkerBuilder::handle_blocking`](crate::WorkerBuilder::handle_blocking) takes it.
    pub async fn run_blocking<M, H: BlockingHandler<M>>(self, handler: H) -> TestEnd {
        let states = self.states.clone();
        let checked = handler.check(&states);
        let run = move |call: &Call| handler.run(call, &states);
        self.execute(checked, ReadyHandler::Blocking(Arc::new(run))).await
    }

    async fn execute(mut self, checked: Result<(), MissingState>, handler: ReadyHandler) -> TestEnd {
        let told: Arc<Mutex<Vec<(f64, String)>>> = Arc::default();
        let telling = told.clone();
        self.call.progress = ProgressSink::new(move |share, note| {
            telling.lock().unwrap_or_else(PoisonError::into_inner).push((share, note.to_owned()));
        });
        if let Err(missing) = checked {
            return TestEnd { reply: Err(Failure::fatal("error", missing.to_string())), progress: Vec::new() };
        }
        note_panics();
        let timeouts = Timeouts { soft: None, hard: self.timeout };
        let (cursor, stop) = (Arc::new(WorkCursor::new(1)), CancellationToken::new());
        let ends = execute(handler, vec![self.call], cursor, timeouts, &stop).await;
        let reply = match ends.into_iter().next() {
            Some(CallEnd::Done(value) | CallEnd::Bytes(value)) => Ok(value),
            Some(CallEnd::Failed(failure)) => Err(failure),
            // Not reached: nothing stops it.
            Some(CallEnd::NotRun) | None => Err(Failure::new("stopped", "the task has not run")),
        };
        let progress = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
        TestEnd { reply, progress }
    }
}

impl TestEnd {
    /// The result as any type that serde reads from it.
    ///
    /// # Errors
    /// The failure of the attempt; `bad_result` when the result is no `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let value = self.reply.as_ref().map_err(Clone::clone)?;
        serde_json::from_str(value.get()).map_err(|error| Failure::fatal("bad_result", error.to_string()))
    }

    /// The failure of the attempt; none when there is a result.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        self.reply.as_ref().err()
    }

    /// Whether the task would be dead-lettered at once, however many attempts it has left.
    #[must_use]
    pub fn is_dead_letter(&self) -> bool {
        self.failure().is_some_and(|failure| !failure.retry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::typed::error::TaskError;
    use crate::typed::extract::{State, TaskContext};

    struct Factor(u32);

    async fn times(n: u32, factor: State<Factor>, task: TaskContext) -> Result<u32, TaskError> {
        assert!(n < 1000, "too large");
        task.progress(1.0, task.id());
        Ok(n * factor.0 * task.attempt())
    }

    fn end_of(end: &TestEnd) -> &str {
        end.failure().map_or("done", |failure| &failure.kind)
    }

    #[tokio::test]
    async fn a_handler_is_run_as_a_worker_runs_it() {
        let task = |args: &str| TestTask::bytes(args.to_owned()).id("t7").attempt(2).state(Factor(10));
        let end = task("3").run(times).await;
        assert_eq!((end.json::<u32>().unwrap(), end.progress), (60, vec![(1.0, "t7".to_owned())]));
        let end = task("\"x\"").run(times).await;
        assert!(end_of(&end) == "bad_arguments" && end.is_dead_letter());
        let end = task("1000").run(times).await;
        assert!(end_of(&end) == "panic" && !end.is_dead_letter());
        let end = TestTask::bytes("3").run(times).await;
        assert!(end.failure().unwrap().message.contains("Factor"), "{end:?}");
    }

    #[tokio::test]
    async fn the_timeout_ends_it_and_its_deadline_is_known() {
        async fn hangs(_: (), task: TaskContext) -> Result<(), TaskError> {
            assert!(task.time_left().is_some_and(|left| left <= Duration::from_millis(50)));
            std::future::pending().await
        }
        let end = TestTask::json(&()).unwrap().timeout(Duration::from_millis(50)).run(hangs).await;
        assert_eq!(end_of(&end), "timeout");
    }

    #[tokio::test]
    async fn a_blocking_handler_sees_that_nobody_waits() {
        fn spins(n: u32, task: TaskContext) -> Result<u32, &'static str> {
            if task.is_cancelled() { Err("nobody waits") } else { Ok(n) }
        }
        assert_eq!(TestTask::json(&4).unwrap().run_blocking(spins).await.json::<u32>().unwrap(), 4);
        let end = TestTask::json(&4).unwrap().cancelled().run_blocking(spins).await;
        assert_eq!(end.failure().unwrap().message, "nobody waits");
    }
}

//! A task that was submitted, or that is known by its name: its result, where it stands, its cancellation. Its end is heard on
//! RESULTS; what RESULTS does not tell, because the task ended long ago, a collector does.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::errors::{RequestError, SubmitError, WaitError};
use super::payloads::{KnownEnd, final_end};
use super::requests::{CancelledTask, Named, TaskStanding};
use super::{Client, NewTask, NoResult, Submitted, TaskEnd};
use crate::bus::error::BusError;
use crate::bus::operate::control::{CTL_CANCEL, CTL_STATUS};
use crate::bus::publish::RetryDeadline;
use crate::bus::read::job_results::LiveResults;
use crate::chain::{ChainStep, next_id, resolve};
use crate::payload::PayloadRef;
use crate::wire::subject::{TaskSubject, key, results_of_job};

/// How much earlier than its submission an end of a task is looked for: this clock and the server's may differ by as much.
const CLOCKS_MS: i64 = 5_000;
/// An end that is this old may have left RESULTS: then a collector is requested at once.
const OLD_MS: i64 = 300_000;

/// A task by its queue, kind and id. It holds nothing at the server until somebody waits, and the task runs on when it is
/// dropped. `Send` and `Sync`; a wait needs it mutably, because it keeps what was heard.
pub struct TaskHandle {
    /// The id of the task.
    pub id: String,
    /// The server had this id already: the task was published before, most likely by this program.
    pub duplicate: bool,
    client: Client,
    queue: String,
    kind: String,
    job: Option<String>,
    /// The subjects of RESULTS that its end is published to.
    results: String,
    continuation: Vec<ChainStep>,
    /// Its end was stored at this time or later, Unix time in milliseconds; none when that is not known.
    since_ms: Option<i64>,
    /// None until somebody waits. The lock is never contended; it is here because what listens is not `Sync`, and a handle is.
    awaited: Mutex<Option<Awaited>>,
}

/// The step of a chain whose end is awaited, and those behind it. A task without a continuation is a chain of one.
struct Awaited {
    id: String,
    steps: VecDeque<Step>,
    /// The result of the last step lies in the store and is not fetched yet.
    stored: Option<PayloadRef>,
}

struct Step {
    results: LiveResults,
    of: TaskSubject,
}

/// A step that nobody listens for yet, and the subjects of RESULTS that its end is published to.
struct Unheard {
    results: String,
    of: TaskSubject,
}

impl Unheard {
    fn heard_by(self, results: LiveResults) -> Step {
        Step { results, of: self.of }
    }
}

impl fmt::Debug for TaskHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, duplicate, queue, kind, job, .. } = self;
        let mut shown = f.debug_struct("TaskHandle");
        shown.field("queue", queue).field("kind", kind).field("id", id).field("duplicate", duplicate);
        shown.field("job", job).finish_non_exhaustive()
    }
}

impl Client {
    /// Publishes a task and waits until the server has stored it. At 90 % of the capacity of TASKS it waits until there is more,
    /// however long; at the limit of a bounded queue, and for a server that does not answer, it waits until the deadline. A
    /// [`Duration`] is such a deadline; [`RetryDeadline::Unlimited`] waits for as long as the program lives.
    ///
    /// ```no_run
    /// # async fn example(client: millpond::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use millpond::NewTask;
    ///
    /// let task = NewTask::json("default", "square", &12)?.awaited();
    /// let mut task = client.submit(&task, Duration::from_secs(5)).await?;
    /// let squared: u64 = task.wait(Duration::from_secs(60)).await?;
    /// assert_eq!(squared, 144);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`SubmitError`]; on [`NoAnswer`](crate::bus::publish::PublishError::NoAnswer) submit again with the same id. A unique key
    /// that is taken is [`SubmitError::UniqueKeyTaken`].
    ///
    /// # Cancel safety
    /// Safe: when it is dropped, the task is stored as a whole or not at all. Who must know submits it again with the same id.
    pub async fn submit(&self, task: &NewTask, deadline: impl Into<RetryDeadline>) -> Result<TaskHandle, SubmitError> {
        let deadline = deadline.into();
        if !task.awaited {
            let mut handle = TaskHandle::new(self, task)?;
            Submitted { id: handle.id, duplicate: handle.duplicate } = self.publish_checked(task, deadline).await?;
            handle.since_ms = handle.since_ms.filter(|_| !handle.duplicate);
            return Ok(handle);
        }
        let named = task.job.clone();
        let task = with_own_job(task);
        let mut handle = TaskHandle::new(self, &task)?;
        // First of all: an end that is published before this listens would have to be looked for.
        let mut steps = VecDeque::with_capacity(task.continuation.len() + 1);
        for step in handle.steps() {
            let results = LiveResults::start_on(&self.bus, step.results.clone()).await?;
            steps.push_back(step.heard_by(results));
        }
        Submitted { id: handle.id, duplicate: handle.duplicate } = self.publish_checked(&task, deadline).await?;
        if handle.duplicate {
            // It was published before: it may have ended before this listened, and need not have the job that it would get here.
            (handle.since_ms, handle.job) = (None, named);
            steps.iter_mut().for_each(|step| step.results.read_from_oldest());
        }
        handle.awaited = Mutex::new(Some(Awaited { id: handle.id.clone(), steps, stored: None }));
        Ok(handle)
    }

    /// A task that was published before, by this program or another one, by its queue, kind and id. Nothing is looked up yet.
    #[must_use]
    pub fn task(&self, queue: impl Into<String>, kind: impl Into<String>, id: impl Into<String>) -> TaskHandle {
        let (queue, kind) = (queue.into(), kind.into());
        TaskHandle {
            id: id.into(),
            duplicate: true,
            client: self.clone(),
            // Its job is not known.
            results: format!("results.*.{queue}.{kind}"),
            queue,
            kind,
            job: None,
            continuation: Vec::new(),
            since_ms: None,
            awaited: Mutex::default(),
        }
    }
}

/// The same task with an id, and with a job that follows from it, so that a resend of the same id gets the same one.
fn with_own_job(task: &NewTask) -> NewTask {
    let mut task = task.clone();
    let id = task.id.get_or_insert_with(crate::random_token);
    if task.unique.is_none() {
        let own = format!("s-{}", key(&format!("{}/{}/{id}", task.queue, task.kind)));
        task.job.get_or_insert(own);
    }
    task
}

impl TaskHandle {
    /// The handle of a task that is about to be published.
    fn new(client: &Client, task: &NewTask) -> Result<Self, SubmitError> {
        let subject = TaskSubject { unique: None, ..task.subject()? };
        Ok(Self {
            id: String::new(),
            duplicate: false,
            client: client.clone(),
            results: task.job.as_deref().map_or_else(|| subject.results(), results_of_job),
            queue: subject.queue,
            kind: subject.kind,
            job: subject.job,
            continuation: task.continuation.clone(),
            since_ms: Some(crate::now_ms() - CLOCKS_MS),
            awaited: Mutex::default(),
        })
    }

    /// The job that it belongs to, where that is known: also one of its own ([`NewTask::awaited`]).
    #[must_use]
    pub fn job(&self) -> Option<&str> {
        self.job.as_deref()
    }

    /// Where the end of the task is published, and of each step that follows it.
    fn steps(&self) -> Vec<Unheard> {
        let (queue, kind) = (self.queue.clone(), self.kind.clone());
        let of = TaskSubject { queue, kind, job: self.job.clone(), unique: None };
        let first = Unheard { results: self.results.clone(), of };
        let later = resolve(&self.queue, &self.continuation).map(|step| Unheard { results: step.results(), of: step });
        std::iter::once(first).chain(later).collect()
    }

    /// Waits for the result of the task; of a chain, for that of its last step.
    ///
    /// # Errors
    /// [`WaitError::NotDone`] after `timeout`, while the task goes on: wait again. [`WaitError::NoResult`] when it has ended
    /// without a result, and so has a chain whose step failed. [`WaitError::OtherType`] when the result is no `T`.
    ///
    /// # Cancel safety
    /// Safe: the next wait goes on where this one was dropped.
    pub async fn wait<T: DeserializeOwned>(&mut self, timeout: Duration) -> Result<T, WaitError> {
        let ended = tokio::time::timeout(timeout, self.end()).await;
        let (_, end) = ended.map_err(|_| WaitError::NotDone { waited: timeout })??;
        let result = end.map_err(WaitError::NoResult)?;
        result.json().map_err(|error| WaitError::OtherType { reason: error.to_string(), result })
    }

    /// Waits for the end of the task, however long that takes; of a chain, for the end of its last step, or of the one that
    /// ended the chain. The id that comes with the end is that step's.
    ///
    /// # Errors
    /// [`BusError`] when results cannot be read.
    ///
    /// # Cancel safety
    /// Safe: the next call goes on where this one was dropped.
    pub async fn end(&mut self) -> Result<(String, TaskEnd), BusError> {
        let unheard = self.steps();
        let repeated = self.since_ms.is_none_or(|since_ms| crate::now_ms() - since_ms > OLD_MS);
        let slot = self.awaited.get_mut().unwrap_or_else(PoisonError::into_inner);
        let awaited = match &mut *slot {
            Some(awaited) => awaited,
            none => none.insert(Awaited::listen(&self.client, (self.id.clone(), unheard), self.since_ms).await?),
        };
        let ended = awaited.end(&self.client, repeated).await;
        // Whoever waits again reads it again.
        *slot = None;
        Ok(ended)
    }

    /// Where the task stands: whether it waits, runs or has ended, and a sentence that says why it has no result yet. The
    /// answer comes from a collector.
    ///
    /// # Errors
    /// [`RequestError`].
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn status(&self) -> Result<TaskStanding, RequestError> {
        self.client.request(CTL_STATUS, &self.name()).await
    }

    /// Cancels the task: it starts no more, and what runs is ended by its worker. It is durable: a worker that comes later
    /// heeds it too.
    ///
    /// # Errors
    /// [`RequestError::Refused`] when it has ended; else it is safe to try again.
    ///
    /// # Cancel safety
    /// When this is dropped, the task may be cancelled or not; cancelling it again changes nothing.
    pub async fn cancel(&self) -> Result<CancelledTask, RequestError> {
        self.client.request(CTL_CANCEL, &self.name()).await
    }

    fn name(&self) -> Named {
        Named::Task { queue: self.queue.clone(), kind: self.kind.clone(), id: self.id.clone() }
    }
}

impl Awaited {
    /// Listens, and reads what RESULTS has since a time.
    async fn listen(
        client: &Client,
        (id, unheard): (String, Vec<Unheard>),
        since_ms: Option<i64>,
    ) -> Result<Self, BusError> {
        let mut steps = VecDeque::with_capacity(unheard.len());
        for step in unheard {
            let results = LiveResults::start_since(&client.bus, step.results.clone(), since_ms).await?;
            steps.push_back(step.heard_by(results));
        }
        Ok(Self { id, steps, stored: None })
    }

    /// # Cancel safety
    /// Safe: what was heard is kept.
    async fn end(&mut self, client: &Client, repeated: bool) -> (String, TaskEnd) {
        while let Some(step) = self.steps.front_mut() {
            let of = step.of.clone();
            let end = match self.stored.clone() {
                Some(at) => KnownEnd::Stored(at),
                None => tokio::select! {
                    end = step.heard(&self.id) => end,
                    // Boxed: most ends are heard.
                    end = Box::pin(client.stored_end(&of.queue, &of.kind, &self.id, repeated)) => end,
                },
            };
            let end = match end {
                KnownEnd::Inline(end) => end,
                KnownEnd::Stored(at) => {
                    self.stored = Some(at.clone());
                    Box::pin(client.fetch(KnownEnd::Stored(at))).await
                }
            };
            if end.is_err() || self.steps.len() <= 1 {
                return (std::mem::take(&mut self.id), end);
            }
            self.stored = None;
            self.steps.pop_front();
            self.id = next_id(&of, &self.id);
        }
        // Not reached: there is a step at least.
        (std::mem::take(&mut self.id), Err(NoResult::Cancelled))
    }
}

impl Step {
    /// # Cancel safety
    /// Safe.
    async fn heard(&mut self, id: &str) -> KnownEnd {
        loop {
            let (subject, batch) = self.results.next().await;
            if batch.cancelled.as_ref().is_some_and(|c| subject.job.as_ref() == Some(&c.job) && c.covers(id)) {
                return KnownEnd::Inline(Err(NoResult::Cancelled));
            }
            if (&subject.queue, &subject.kind) != (&self.of.queue, &self.of.kind) {
                continue;
            }
            let of_task = batch.outcomes.iter().filter(|outcome| outcome.id == id);
            if let Some(end) = of_task.flat_map(|outcome| outcome.ends()).find_map(|(_, end)| final_end(end)) {
                return end;
            }
        }
    }
}

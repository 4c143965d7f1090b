//! One task: its headers, its publish, and the wait for its end.

use std::time::Duration;

use bytes::Bytes;

use super::{Client, ClientError, NoResult, TaskEnd};
use crate::bus::publish::{Patience, PublishError};
use crate::bus::subject::{TaskSubject, check_token};
use crate::bus::unique::only_when_alone;
use crate::chain::{self, HEADER_THEN, Step};
use crate::failpoint;
use crate::outcome::{End, Failure, Outcome};
use crate::task::{
    HEADER_ATTEMPTS_MAX, HEADER_BATCH, HEADER_EXPIRES, HEADER_ID, HEADER_INDEX, HEADER_MSG_ID, HEADER_REPLY_TO,
    HEADER_TIMEOUT, HEADER_TRACEPARENT, Headers, schedule_headers,
};
use crate::telemetry::TraceContext;

/// A task to publish, or a batch of them.
#[derive(Debug, Clone, Default)]
pub struct NewTask {
    /// Who runs it.
    pub queue: String,
    /// Which handler runs it.
    pub kind: String,
    /// The arguments: one JSON value, or an array of `batch` values.
    pub payload: Bytes,
    /// Its id; drawn at random when none.
    pub id: Option<String>,
    /// The job it belongs to.
    pub job: Option<String>,
    /// Place in its job (of the first item, for a batch).
    pub index: Option<u64>,
    /// The payload is an array of this many arguments.
    pub batch: Option<u32>,
    /// Timeout of one attempt; none means the worker's.
    pub timeout: Option<Duration>,
    /// Attempts before it is buried; none means the default.
    pub attempts_max: Option<u32>,
    /// RFC 3339 time after which it must not start.
    pub expires: Option<String>,
    /// It must not start earlier, Unix time in milliseconds; it waits at the server. None: at once.
    pub at_ms: Option<i64>,
    /// Subject `reply.<x>` on which its end is told too.
    pub reply_to: Option<String>,
    /// What runs when it is done, in order, each with the result of the one before it.
    pub then: Vec<Step>,
    /// Its unique key, a token: refused while another task of this queue, kind and key waits or runs.
    pub unique: Option<String>,
    /// The trace it continues, as a `traceparent`; none starts a new one.
    pub traceparent: Option<String>,
}

/// A task that the server has stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// Its id.
    pub id: String,
    /// The server had this id already.
    pub duplicate: bool,
}

impl NewTask {
    pub(super) fn subject(&self) -> Result<TaskSubject, ClientError> {
        let subject = TaskSubject::new(&self.queue, &self.kind, self.job.clone())?;
        let Some(key) = &self.unique else { return Ok(subject) };
        check_token("unique key", key)?;
        let alone = self.job.is_none() && self.batch.is_none();
        if alone { Ok(TaskSubject { unique: self.unique.clone(), ..subject }) } else { Err(ClientError::NotAlone) }
    }

    fn headers(&self, id: &str, trace: TraceContext) -> Headers {
        let mut headers =
            vec![(HEADER_MSG_ID.to_owned(), id.to_owned()), (HEADER_TRACEPARENT.to_owned(), trace.to_traceparent())];
        let mut put = |name: &str, value: Option<String>| headers.extend(value.map(|v| (name.to_owned(), v)));
        put(HEADER_BATCH, self.batch.map(|n| n.to_string()));
        put(HEADER_INDEX, self.index.map(|n| n.to_string()));
        put(HEADER_TIMEOUT, self.timeout.map(|t| humantime::format_duration(t).to_string()));
        put(HEADER_ATTEMPTS_MAX, self.attempts_max.map(|n| n.to_string()));
        put(HEADER_EXPIRES, self.expires.clone());
        put(HEADER_REPLY_TO, self.reply_to.clone());
        put(HEADER_THEN, chain::text(&self.then));
        headers
    }
}

impl Client {
    /// Publishes a task and waits until the server has stored it. Stops at 90 % of a full TASKS until there is room.
    ///
    /// # Errors
    /// [`ClientError`]; on [`crate::bus::publish::PublishError::NoAnswer`] submit again with the same id. A unique key
    /// that is taken is [`ClientError::AlreadyThere`].
    pub async fn submit(&self, task: &NewTask, patience: Patience) -> Result<Submitted, ClientError> {
        let subject = task.subject()?;
        let id = task.id.clone().unwrap_or_else(crate::random_token);
        let span = tracing::info_span!(
            "publish",
            otel.name = %format!("send tasks.{}.{}", task.queue, task.kind),
            otel.kind = "producer",
            messaging.system = "nats",
            messaging.operation.name = "send",
            queue = %task.queue,
            kind = %task.kind,
            task_id = %id,
        );
        let parent = task.traceparent.as_deref().and_then(TraceContext::parse);
        if let Some(parent) = parent {
            parent.adopt(&span);
        }
        let trace = TraceContext::of(&span).or(parent).unwrap_or_else(TraceContext::random);
        self.room.wait().await;
        let mut headers = task.headers(&id, trace);
        // In DUE it carries its id itself: the server drops its own header when it delivers.
        let place = match task.at_ms {
            Some(at_ms) => {
                let schedule = schedule_headers(at_ms, subject.due()).ok_or(ClientError::NoSuchTime { at_ms })?;
                headers.extend(schedule);
                headers.push((HEADER_ID.to_owned(), id.clone()));
                subject.sched(&id)
            }
            None => subject.task(),
        };
        if task.unique.is_some() {
            if self.bus.waits_in_due(&subject).await? {
                return self.already_there(task, &place, id).await;
            }
            headers.extend(only_when_alone(&subject, task.at_ms.is_some()));
        }
        let stored = match self.bus.store(&place, &headers, task.payload.clone(), patience).await {
            Err(PublishError::AlreadyThere { .. }) => return self.already_there(task, &place, id).await,
            stored => stored?,
        };
        failpoint::hit("publish.acked");
        Ok(Submitted { id, duplicate: stored.duplicate })
    }

    /// A task of its unique key waits or runs: another one, unless this is a resend.
    async fn already_there(&self, task: &NewTask, place: &str, id: String) -> Result<Submitted, ClientError> {
        if self.bus.has_id(place, &id).await {
            return Ok(Submitted { id, duplicate: true });
        }
        Err(ClientError::AlreadyThere { key: task.unique.clone().unwrap_or_default() })
    }

    /// Publishes a task under a job of its own, and waits for its end, however long that takes; of a chain for the end of
    /// its last step. `stored` is called once the server has it.
    ///
    /// # Errors
    /// [`ClientError`] when it cannot be published.
    pub async fn submit_and_wait(
        &self,
        task: NewTask,
        patience: Patience,
        stored: impl FnOnce(&Submitted),
    ) -> Result<(Submitted, TaskEnd), ClientError> {
        if task.unique.is_some() || !task.then.is_empty() {
            return self.submit_and_follow(task, patience, stored).await;
        }
        self.session(task.job.clone()).await?.run(task, patience, stored).await
    }
}

/// How an item ended for good; none while a later attempt waits.
pub(super) fn final_end(end: Result<&serde_json::value::RawValue, &crate::outcome::NotDone>) -> Option<TaskEnd> {
    match end {
        Ok(value) => Some(Ok(value.to_owned())),
        Err(not_done) => match not_done.end {
            End::Dead => {
                let failure = not_done.failure.clone();
                Some(Err(NoResult::Dead(failure.unwrap_or_else(|| Failure::new("error", "no reason given")))))
            }
            End::Cancelled => Some(Err(NoResult::Cancelled)),
            End::Retry | End::Rest => None,
        },
    }
}

/// The index in its job of each item of an outcome that ended for good.
pub(super) fn final_ends(outcome: &Outcome) -> impl Iterator<Item = (u64, TaskEnd)> {
    let first = outcome.first_item();
    outcome.ends().filter_map(move |(item, end)| {
        let index = outcome.index? + u64::from(item - first);
        Some((index, final_end(end)?))
    })
}

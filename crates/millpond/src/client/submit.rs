//! One task: its headers and its publish.

use std::time::Duration;

use bytes::Bytes;

use super::Client;
use super::batch_sizer::BatchSize;
use super::errors::SubmitError;
use super::identity::STORED_POLL_DELAY;
use super::payloads::expires;
use super::publish_span::PublishSpan;
use crate::bus::publish::stored_already::TakesNoRollup;
use crate::bus::publish::unique::only_when_alone;
use crate::bus::publish::{PublishError, RetryDeadline, Stored};
use crate::chain::ChainStep;
use crate::later::at_header;
use crate::payload::StoredPayload;
use crate::task::{Arrival, Origin, Task, check_task_id, schedule_headers};
use crate::telemetry::TraceContext;
use crate::wire::headers::{
    HEADER_ATTEMPTS_MAX, HEADER_BATCH, HEADER_CONTINUATION, HEADER_EXPECTED_SEQUENCE, HEADER_EXPIRES, HEADER_ID,
    HEADER_INDEX, HEADER_MSG_ID, HEADER_REF, HEADER_REPLY_TO, HEADER_TIMEOUT, HEADER_TRACEPARENT, Headers,
};
use crate::wire::subject::{TaskSubject, check_token};
use crate::{chain, failpoint};

/// What a message is that brings a task, among those of the task.
pub(super) const NEW_TASK: &str = "task";

/// A task to publish, or a batch of them.
#[derive(Debug, Clone, Default)]
pub struct NewTask {
    /// The queue whose workers run it.
    pub queue: String,
    /// The kind: which handler runs it.
    pub kind: String,
    /// The arguments: one JSON value, or an array of `batch` values. Without `batch`, arguments of more than
    /// [`CLAIM_CHECK_BYTES`](crate::limits::CLAIM_CHECK_BYTES) go to the store, and the task refers to them.
    pub payload: Bytes,
    /// Arguments that are in the store already ([`Client::put_payload`]); they go before `payload`.
    pub stored: Option<StoredPayload>,
    /// Its id; random when none.
    pub id: Option<String>,
    /// The job it belongs to.
    pub job: Option<String>,
    /// Place in its job (of the first item, for a batch).
    pub index: Option<u64>,
    /// The payload is an array of this many arguments.
    pub batch: Option<u32>,
    /// Timeout of one attempt; none means the worker's.
    pub timeout: Option<Duration>,
    /// Attempts before it is dead-lettered; none means the default.
    pub attempts_max: Option<u32>,
    /// RFC 3339 time after which it must not start.
    pub expires: Option<String>,
    /// When it may start, Unix time in milliseconds; it waits at the server, and a producer service must run. None: at once.
    pub at_ms: Option<i64>,
    /// Subject `reply.<x>` that is notified of its end as well.
    pub reply_to: Option<String>,
    /// The steps that run when it is done, in order, each with the result of the one before.
    pub continuation: Vec<ChainStep>,
    /// Its unique key, a token: refused while another task of this queue, kind and key waits or runs.
    pub unique: Option<String>,
    /// The trace it continues, as a `traceparent`. None: the trace of the span that submits it, else one of its own, which this
    /// process begins when it exports spans, or the worker.
    pub traceparent: Option<String>,
    /// Its end will be waited for: the client listens before it publishes ([`NewTask::awaited`]).
    pub awaited: bool,
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
    pub(super) fn subject(&self) -> Result<TaskSubject, SubmitError> {
        let subject = TaskSubject::new(&self.queue, &self.kind, self.job.clone())?;
        let Some(key) = &self.unique else { return Ok(subject) };
        check_token("unique key", key)?;
        let alone = self.job.is_none() && self.batch.is_none();
        if alone {
            Ok(TaskSubject { unique: self.unique.clone(), ..subject })
        } else {
            Err(SubmitError::UniqueKeyNotAlone)
        }
    }

    pub(super) fn headers(&self, id: &str, trace: Option<TraceContext>, stored: Option<&StoredPayload>) -> Headers {
        let mut headers = vec![(HEADER_ID.to_owned(), id.to_owned())];
        let mut put = |name: &str, value: Option<String>| headers.extend(value.map(|v| (name.to_owned(), v)));
        put(HEADER_TRACEPARENT, trace.map(TraceContext::to_traceparent));
        put(HEADER_BATCH, self.batch.map(|n| n.to_string()));
        put(HEADER_INDEX, self.index.map(|n| n.to_string()));
        put(HEADER_TIMEOUT, self.timeout.map(|t| humantime::format_duration(t).to_string()));
        put(HEADER_ATTEMPTS_MAX, self.attempts_max.map(|n| n.to_string()));
        put(HEADER_EXPIRES, expires(self.expires.as_deref(), stored));
        put(HEADER_REF, stored.map(|stored| stored.at.to_json()));
        put(HEADER_REPLY_TO, self.reply_to.clone());
        put(HEADER_CONTINUATION, chain::text(&self.continuation));
        headers
    }
}

/// What a worker would refuse in the headers is refused here, where it is handed in, by the same decoder.
fn check_headers(new: &NewTask, subject: &TaskSubject, headers: &Headers) -> Result<(), SubmitError> {
    let refused = |reason: String| SubmitError::Header { reason };
    chain::check(&new.continuation).map_err(|wrong| refused(format!("header {HEADER_CONTINUATION}: {wrong}")))?;
    let arrival = Arrival { origin: Origin::Tasks, epoch: "", seq: 0, stored_ms: 0 };
    let task = Task::parse(&subject.task(), headers, Bytes::new(), arrival);
    task.defect.map_or(Ok(()), |defect| Err(refused(defect.message)))
}

impl Client {
    /// Publishes a task and waits until the server has stored it.
    pub(super) async fn publish_checked(
        &self,
        task: &NewTask,
        deadline: RetryDeadline,
    ) -> Result<Submitted, SubmitError> {
        if let (Some(batch), None) = (task.batch, task.at_ms) {
            TaskSubject::new(&task.queue, &task.kind, None)?;
            self.check_batch(&task.queue, BatchSize::Fixed(batch), deadline).await?;
        }
        self.publish(task, deadline).await
    }

    /// The same, without the check of the batch: one that was filled before its queue was bounded counts as one task.
    pub(super) async fn publish(&self, task: &NewTask, deadline: RetryDeadline) -> Result<Submitted, SubmitError> {
        let id = task.id.clone().unwrap_or_else(crate::random_token);
        let parent = task.traceparent.as_deref().and_then(TraceContext::parse).or_else(TraceContext::current);
        let span = PublishSpan::start(task, &id, parent);
        let published = self.publish_as(task, id.clone(), span.trace, deadline).await;
        span.end(task, &id, published.as_ref().err());
        published
    }

    async fn publish_as(
        &self,
        task: &NewTask,
        id: String,
        trace: Option<TraceContext>,
        deadline: RetryDeadline,
    ) -> Result<Submitted, SubmitError> {
        let subject = task.subject()?;
        check_task_id(&id)?;
        self.capacity.wait().await;
        // Boxed: most tasks have none.
        let stored = if task.has_stored_arguments() {
            Some(Box::pin(self.store_arguments(task, deadline)).await?)
        } else {
            None
        };
        let payload = if stored.is_some() { Bytes::new() } else { task.payload.clone() };
        let mut headers = task.headers(&id, trace, stored.as_ref());
        check_headers(task, &subject, &headers)?;
        // Not the id itself: the server compares nothing else, and tasks of other queues and kinds may have it, too.
        headers.push((HEADER_MSG_ID.to_owned(), subject.message_id(NEW_TASK, &id)));
        let place = match task.at_ms {
            Some(at_ms) if self.bus.may_schedule() => {
                let schedule = schedule_headers(at_ms, crate::now_ms(), subject.due())
                    .ok_or(SubmitError::StartTimeOutOfRange { at_ms })?;
                headers.extend(schedule);
                subject.sched(&id)
            }
            Some(at_ms) => {
                headers.push(at_header(at_ms, crate::now_ms()).ok_or(SubmitError::StartTimeOutOfRange { at_ms })?);
                subject.later()
            }
            None => subject.task(),
        };
        let is_scheduled = task.at_ms.is_some() && self.bus.may_schedule();
        if task.unique.is_some() {
            if self.bus.key_waits(&subject).await? {
                return self.resent_or_refused(task, &subject, id, deadline).await;
            }
            headers.extend(only_when_alone(&subject, is_scheduled));
        } else if is_scheduled {
            // The server would replace whatever waits under this id: a task of before, or a retry of it.
            headers.push((HEADER_EXPECTED_SEQUENCE.to_owned(), "0".to_owned()));
        } else if task.at_ms.is_some() && task.id.is_some() && Box::pin(self.waits(task, &subject, &id)).await? {
            // It would not replace that, but become a dead letter.
            return Ok(Submitted { id, duplicate: true });
        }
        let mut stored = loop {
            match self.store(task, &place, &headers, payload.clone(), deadline).await {
                Err(PublishError::NotLast { .. }) if task.unique.is_none() => {
                    if Box::pin(self.waits(task, &subject, &id)).await? {
                        return Ok(Submitted { id, duplicate: true });
                    }
                    // It was delivered a moment ago, or this replica does not know it yet.
                    tokio::time::sleep(STORED_POLL_DELAY).await;
                }
                Err(PublishError::NotLast { .. }) => {
                    return self.resent_or_refused(task, &subject, id, deadline).await;
                }
                stored => break stored?,
            }
        };
        failpoint::hit("publish.acked");
        // Boxed: most tasks are new. What has a place in a job is published again only by the job's own publisher.
        if stored.duplicate && task.index.is_none() && !Box::pin(self.is_held(task, &subject, &id, stored)).await? {
            // Somebody's own id is this very text: their task is another one, and this one is not stored.
            headers.retain(|(name, _)| name != HEADER_MSG_ID);
            headers.push((HEADER_MSG_ID.to_owned(), subject.message_id(&crate::random_token(), &id)));
            stored = self.store(task, &place, &headers, payload, deadline).await?;
        }
        Ok(Submitted { id, duplicate: stored.duplicate })
    }

    async fn store(
        &self,
        task: &NewTask,
        place: &str,
        headers: &Headers,
        payload: Bytes,
        deadline: RetryDeadline,
    ) -> Result<Stored, PublishError> {
        match task.at_ms {
            // A message can have one condition: that of a unique key goes before the limit of the queue.
            None if task.unique.is_none() => self.admission.store(&task.queue, place, headers, payload, deadline).await,
            _ => self.bus.store(place, headers, payload, deadline).await,
        }
    }

    /// A task with the unique key waits or runs. If it is this very task, this is a resend.
    async fn resent_or_refused(
        &self,
        task: &NewTask,
        subject: &TaskSubject,
        id: String,
        deadline: RetryDeadline,
    ) -> Result<Submitted, SubmitError> {
        let stream = if task.at_ms.is_some() { TakesNoRollup::Later } else { TakesNoRollup::Tasks };
        let is_resent = if task.at_ms.is_some() && self.bus.may_schedule() {
            Box::pin(self.is_in_due(task, subject, &id)).await?
        } else {
            self.bus.is_stored(stream, subject, &subject.message_id(NEW_TASK, &id), deadline).await?
        };
        if is_resent {
            return Ok(Submitted { id, duplicate: true });
        }
        Err(SubmitError::UniqueKeyTaken { key: task.unique.clone().unwrap_or_default() })
    }
}

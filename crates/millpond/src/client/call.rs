//! Calls: a request to a handler and its reply, not stored; and pipes, which a call opens.

use std::sync::PoisonError;
use std::time::Duration;
#[cfg(feature = "telemetry")]
use std::time::SystemTime;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Client, TaskResult};
use crate::bus::call::pipe;
use crate::bus::call::pipe::Pipe;
use crate::bus::call::service::{CallOutcome, CallReply};
use crate::bus::error::BusError;
use crate::call::CALL_TIMEOUT_MAX;
use crate::call::Code;
use crate::limits::TASK_BYTES_MAX;
use crate::outcome::Failure;
use crate::telemetry::TraceContext;
#[cfg(feature = "telemetry")]
use crate::telemetry::{FIELD_KIND, FIELD_QUEUE, Span, SpanKind, record};
use crate::wire::bounds::parse_count;
use crate::wire::headers::{HEADER_PIPE, HEADER_PIPE_CAPACITY, HEADER_TIMEOUT, HEADER_TRACEPARENT, Headers};
use crate::wire::subject;
use crate::wire::subject::SubjectError;

/// How much longer than its timeout a caller waits, so that the worker's own failure arrives.
const CALL_ANSWER_GRACE: Duration = Duration::from_secs(1);
/// The delay before a call whose worker drains is made again; another worker gets it then.
const DRAINING_RETRY_DELAY: Duration = Duration::from_millis(20);

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// A queue or kind that is not a token.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// Arguments that are too long.
    #[error("arguments of {bytes} bytes are too long for a call, at most {TASK_BYTES_MAX}")]
    TooLarge {
        /// Their bytes.
        bytes: usize,
    },
    /// A timeout that a call cannot have.
    #[error(
        "a call within {} is not possible: from 1ms to {}; for longer work submit a task",
        humantime::format_duration(*.timeout), humantime::format_duration(CALL_TIMEOUT_MAX)
    )]
    BadTimeout {
        /// As given.
        timeout: Duration,
    },
    /// No worker listens for calls of this kind.
    #[error(
        "no worker answers calls of kind {kind} on queue {queue}: start one that does, or see `millpond worker ls` for who runs what"
    )]
    NoWorker {
        /// The queue.
        queue: String,
        /// The kind.
        kind: String,
    },
    /// The worker replied with a failure.
    #[error("{}: {}", .failure.kind, .failure.message)]
    Failed {
        /// In short.
        code: Code,
        /// In full.
        failure: Box<Failure>,
    },
    /// No reply came in time: the worker may have died, and the call may have run in part.
    #[error("no answer within {}; its worker may be gone, and may have run it in part", humantime::format_duration(*.timeout))]
    NoAnswer {
        /// The caller's timeout.
        timeout: Duration,
    },
    /// The reply cannot be parsed, or the connection was lost.
    #[error("no answer of kind {kind}: {reason}")]
    Broken {
        /// The kind.
        kind: String,
        /// What was seen.
        reason: String,
    },
    /// The server refuses the subscription of a pipe.
    #[error(transparent)]
    Topology(#[from] BusError),
}

impl Client {
    /// Calls a handler and waits for its result; nothing is stored, and nothing is tried again once it has started.
    /// `timeout` is for all of it, the wait for a slot included; `args` are JSON.
    ///
    /// ```no_run
    /// # async fn example(client: millpond::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// let squared = client.call("default", "square", "12", Duration::from_secs(5)).await?;
    /// assert_eq!(squared.get(), "144");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`CallError`].
    ///
    /// # Cancel safety
    /// The call runs on when this is dropped.
    pub async fn call(
        &self,
        queue: &str,
        kind: &str,
        args: impl Into<Bytes>,
        timeout: Duration,
    ) -> Result<TaskResult, CallError> {
        let answer = self.checked_call(queue, kind, args.into(), timeout, &[]).await?;
        let broken = |reason: String| CallError::Broken { kind: kind.to_owned(), reason };
        if answer.header(HEADER_PIPE).is_some() {
            return Err(broken("a pipe was opened that was not requested".to_owned()));
        }
        let (value, is_bytes) = answer.result().map_err(broken)?;
        Ok(TaskResult { value, is_bytes })
    }

    /// Opens a pipe to a handler that takes one: the counterpart of Python's `multiprocessing.Pipe()`.
    /// `timeout` is for the opening, the wait for a slot included; the pipe lasts until either side ends it.
    ///
    /// ```no_run
    /// # async fn example(client: millpond::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// let mut pipe = client.pipe("default", "sum", "null", Duration::from_secs(5)).await?;
    /// pipe.send("40").await?;
    /// pipe.send("2").await?;
    /// pipe.close().await?;
    /// while let Some(message) = pipe.recv().await? {
    ///     println!("{}", String::from_utf8_lossy(&message));
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`CallError`].
    ///
    /// # Cancel safety
    /// Safe: the worker ends a conversation that nobody takes up.
    pub async fn pipe(
        &self,
        queue: &str,
        kind: &str,
        args: impl Into<Bytes>,
        timeout: Duration,
    ) -> Result<Pipe, CallError> {
        let id = crate::random_token();
        // The subscription comes first: the worker may send at once.
        let frames = pipe::listen(&self.bus, subject::pipe_out(&id)).await?;
        let answer = self.checked_call(queue, kind, args.into(), timeout, &pipe::request_headers(&id)).await?;
        let capacity = answer.header(HEADER_PIPE_CAPACITY).and_then(parse_count);
        let Some(capacity) = capacity.filter(|_| answer.header(HEADER_PIPE) == Some(&id)) else {
            let reason = "it was answered like a plain call; is its worker older?".to_owned();
            return Err(CallError::Broken { kind: kind.to_owned(), reason });
        };
        let drivers = Some(self.pipe_drivers.clone());
        let (pipe, driver) = pipe::side(&self.bus, frames, subject::pipe_in(&id), false, capacity, drivers);
        let mut drivers = self.pipe_drivers.lock().unwrap_or_else(PoisonError::into_inner);
        while drivers.try_join_next().is_some() {}
        drivers.spawn(driver.run());
        Ok(pipe)
    }

    /// Makes a call whose arguments and timeout fit.
    async fn checked_call(
        &self,
        queue: &str,
        kind: &str,
        args: Bytes,
        timeout: Duration,
        more: &[(String, String)],
    ) -> Result<CallReply, CallError> {
        let subject = subject::call(queue, kind)?;
        if args.len() > TASK_BYTES_MAX {
            return Err(CallError::TooLarge { bytes: args.len() });
        }
        // Whole milliseconds, as they travel.
        let timeout = Duration::from_millis(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        if timeout.is_zero() || timeout > CALL_TIMEOUT_MAX {
            return Err(CallError::BadTimeout { timeout });
        }
        let parent = TraceContext::current();
        let trace = TraceContext::below(parent);
        #[cfg(feature = "telemetry")]
        let started = SystemTime::now();
        let answered = self.call_until_answered(queue, kind, (&subject, args), timeout, trace, more).await;
        #[cfg(feature = "telemetry")]
        if let Some(trace) = trace.filter(|trace| trace.is_recorded()) {
            let mut span = Span::new(("call", Some("send")), &subject, SpanKind::Client, (trace, parent), started);
            span.attribute(FIELD_QUEUE, queue);
            span.attribute(FIELD_KIND, kind);
            if let Err(error) = &answered {
                span.failed(&Failure::new("call", error.to_string()));
            }
            record(span);
        }
        answered
    }

    /// Makes the call again, to another worker, while the one that received it drains.
    async fn call_until_answered(
        &self,
        queue: &str,
        kind: &str,
        (subject, args): (&str, Bytes),
        timeout: Duration,
        trace: Option<TraceContext>,
        more: &[(String, String)],
    ) -> Result<CallReply, CallError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Duration::from_millis(u64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(1).max(1));
            let mut headers: Headers = more.to_vec();
            headers.push((HEADER_TIMEOUT.to_owned(), humantime::format_duration(left).to_string()));
            headers.extend(trace.map(|trace| (HEADER_TRACEPARENT.to_owned(), trace.to_traceparent())));
            return match self.bus.call(subject, &headers, args.clone(), left + CALL_ANSWER_GRACE).await {
                CallOutcome::Answered(answer) => match answer.error() {
                    None => Ok(answer),
                    // The call has not run.
                    Some((Code::Draining, _)) if Instant::now() + DRAINING_RETRY_DELAY < deadline => {
                        tokio::time::sleep(DRAINING_RETRY_DELAY).await;
                        continue;
                    }
                    Some((code, failure)) => Err(CallError::Failed { code, failure: Box::new(failure) }),
                },
                CallOutcome::NoWorker => Err(CallError::NoWorker { queue: queue.to_owned(), kind: kind.to_owned() }),
                CallOutcome::NoAnswer => Err(CallError::NoAnswer { timeout }),
                CallOutcome::Broken(reason) => Err(CallError::Broken { kind: kind.to_owned(), reason }),
            };
        }
    }
}

//! Serves calls: each is taken from the bus, runs in a slot of its kind's pool by the same `execute` as tasks, and is
//! answered. Nothing is stored, retried or settled. A call may open a conversation, which keeps its slot until it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use millpond::bus::Bus;
use millpond::bus::call::pipe;
use millpond::bus::call::service::{CallReceiver, IncomingCall};
use millpond::call::{CALL_TIMEOUT_DEFAULT, CALL_TIMEOUT_MAX, Code};
use millpond::config::duration;
use millpond::limits::TASK_BYTES_MAX;
use millpond::outcome::Failure;
use millpond::telemetry::{Scope, TaskFields, TraceContext};
use millpond::wire::bounds::parse_count;
use millpond::wire::header_names::{self, Way};
use millpond::wire::headers::{HEADER_PIPE, HEADER_PIPE_CAPACITY, HEADER_TIMEOUT, HEADER_TRACEPARENT};
use millpond::wire::subject::check_token;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::call::{Call, Reply};
use crate::call_end::CallEnd;
use crate::config::Settings;
use crate::context::WorkerContext;
use crate::handlers::{Handler, PipeHandler};
use crate::panics::caught;
use crate::report::spans;
use crate::run::execute::execute;
use crate::run::work_cursor::WorkCursor;
use crate::run_loop::pools::Slot;
use crate::supervisor::ChildUnavailable;

/// Calls that wait for a slot of this worker at once, beside those that run; more are refused.
const CALLS_WAITING_MAX: usize = 1024;
/// Bytes of the arguments of all calls that run or wait at this worker; what is more is refused. A call may wait for an hour, and its
/// arguments with it.
const CALLS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a handler may take to end its conversation once the other side is lost, or its worker must leave.
const PIPE_HANDLER_GRACE: Duration = Duration::from_secs(2);
/// How long the answers of calls may take that were stopped at the end of the drain.
const ANSWER_AFTER_DRAIN: Duration = Duration::from_secs(5);

/// Why a call does not run, or has no result.
struct CallRefusal(Code, Failure);

impl CallRefusal {
    fn bad(message: impl Into<String>) -> Self {
        Self(Code::Bad, Failure::fatal("bad_call", message))
    }

    fn draining() -> Self {
        Self(Code::Draining, Failure::new("draining", "this worker drains and has not run the call; call again"))
    }

    fn no_slot(message: impl Into<String>) -> Self {
        Self(Code::NoSlot, Failure::new("no_slot", message))
    }

    fn no_child(context: &WorkerContext, kind: &str) -> Self {
        let trouble = context.supervisor.troubles().remove(kind);
        let trouble = trouble.unwrap_or_else(|| "they are still starting".to_owned());
        Self::no_slot(format!("no child of kind {kind} can be had now: {trouble}"))
    }
}

/// The conversation that a call opens.
struct PipeRequest {
    id: String,
    /// For how many messages the caller has room.
    capacity: u64,
}

/// What runs a call.
enum CallHandler {
    /// It answers once.
    Answer(Handler),
    Converse(PipeHandler, PipeRequest),
}

/// How long a call may take in all.
#[derive(Clone, Copy)]
struct CallTime {
    timeout: Duration,
    deadline: Instant,
}

/// What a call is answered with.
struct CallResult {
    value: Box<RawValue>,
    /// The handler wrote bytes that are no JSON.
    is_bytes: bool,
}

/// A call that may run.
struct AdmittedCall {
    handler: CallHandler,
    call: Call,
    /// The caller's span.
    parent: Option<TraceContext>,
    time: CallTime,
}

/// Serves the calls of this worker.
pub(crate) struct CallServer {
    serving: JoinSet<()>,
}

impl CallServer {
    /// Takes calls from now on, until the worker drains.
    ///
    /// # Errors
    /// When the connection is closed.
    pub(crate) async fn start(bus: &Bus, settings: &Settings, context: &Arc<WorkerContext>) -> anyhow::Result<Self> {
        let kinds: Vec<&str> = context.handlers.keys().map(String::as_str).collect();
        let calls = bus.receive_calls(&settings.name, &settings.queues, &kinds).await?;
        let mut serving = JoinSet::new();
        serving.spawn(serve(calls, context.clone()));
        Ok(Self { serving })
    }

    /// Lets running calls end, and stops those that run after `drain_time`. The worker drains already.
    pub(crate) async fn drain(mut self, context: &WorkerContext, drain_time: Duration) {
        let ended = tokio::time::timeout(drain_time, self.serving.join_next()).await;
        if ended.is_ok() {
            return;
        }
        context.stop.cancel();
        let ended = tokio::time::timeout(ANSWER_AFTER_DRAIN, self.serving.join_next()).await;
        if ended.is_err() {
            tracing::warn!("not all calls could be answered");
        }
    }
}

async fn serve(mut calls: CallReceiver, context: Arc<WorkerContext>) {
    let mut running = JoinSet::new();
    let running_max = CALLS_WAITING_MAX + context.pools.size();
    let bytes = Arc::new(Semaphore::new(CALLS_BYTES_MAX));
    loop {
        let called = tokio::select! {
            biased;
            () = context.draining.cancelled() => break,
            Some(_) = running.join_next() => continue,
            called = calls.next() => called,
        };
        // None when the connection is closed for good.
        let Some(called) = called else { break };
        context.called.store(true, Ordering::Relaxed);
        if running.len() >= running_max {
            let text = format!("{running_max} calls run or wait at this worker already");
            refuse(called, CallRefusal::no_slot(text)).await;
            continue;
        }
        let wanted = u32::try_from(called.payload.len()).unwrap_or(u32::MAX);
        let Ok(held) = bytes.clone().try_acquire_many_owned(wanted) else {
            let text = format!(
                "the arguments of the calls that run or wait at this worker have {CALLS_BYTES_MAX} bytes already"
            );
            refuse(called, CallRefusal::no_slot(text)).await;
            continue;
        };
        let context = context.clone();
        running.spawn(async move {
            serve_one(context, called).await;
            drop(held);
        });
    }
    for called in calls.stop().await {
        refuse(called, CallRefusal::draining()).await;
    }
    while running.join_next().await.is_some() {}
}

async fn serve_one(context: Arc<WorkerContext>, called: IncomingCall) {
    let started = SystemTime::now();
    let AdmittedCall { handler, call, parent, time } = match admit(&context, &called) {
        Ok(admitted) => admitted,
        Err(refusal) => return refuse(called, refusal).await,
    };
    let (queue, kind, id, trace) = (called.queue().to_owned(), called.kind().to_owned(), call.id.clone(), call.trace);
    let fields =
        TaskFields { task_id: id.clone(), queue: Some(queue.clone()), kind: Some(kind.clone()), attempt: call.attempt };
    let scope = Scope::new(fields, trace);
    let record_span = |failure: Option<&Failure>| {
        if let Some(trace) = trace.filter(|trace| trace.is_recorded()) {
            spans::called((&queue, &kind, &id), trace, parent, started, failure);
        }
    };
    match handler {
        CallHandler::Answer(handler) => {
            let result = scope.around(run(&context, &kind, &handler, call, time)).await;
            record_span(result.as_ref().err().map(|CallRefusal(_, failure)| failure));
            answer(called, result).await;
        }
        CallHandler::Converse(handler, request) => {
            scope.around(converse(&context, called, handler, request, call, time)).await;
            record_span(None);
        }
    }
}

/// Whether a call may run, and with which handler. Everything that a caller can get wrong is checked here.
fn admit(context: &WorkerContext, called: &IncomingCall) -> Result<AdmittedCall, CallRefusal> {
    if called.payload.len() > TASK_BYTES_MAX {
        let bytes = called.payload.len();
        let text = format!("arguments of {bytes} bytes are too long for a call, at most {TASK_BYTES_MAX}");
        return Err(CallRefusal::bad(text));
    }
    header_names::check(&called.headers, Way::Call).map_err(|wrong| CallRefusal::bad(wrong.to_string()))?;
    let timeout = match called.header(HEADER_TIMEOUT) {
        None => CALL_TIMEOUT_DEFAULT,
        Some(text) => duration(text).map_err(|e| CallRefusal::bad(format!("header {HEADER_TIMEOUT}: {e}")))?,
    };
    if timeout.is_zero() || timeout > CALL_TIMEOUT_MAX {
        let max = humantime::format_duration(CALL_TIMEOUT_MAX);
        let text = format!("header {HEADER_TIMEOUT}: from 1ms to {max}; for longer work submit a task");
        return Err(CallRefusal::bad(text));
    }
    let handler = handler_for(context, called)?;
    let parent = called.header(HEADER_TRACEPARENT).and_then(TraceContext::parse);
    let call = Call {
        trace: TraceContext::below(parent),
        stop: context.stop.child_token(),
        ..Call::new(format!("call-{}", millpond::random_token()), called.payload.clone())
    };
    Ok(AdmittedCall { handler, call, parent, time: CallTime { timeout, deadline: Instant::now() + timeout } })
}

fn handler_for(context: &WorkerContext, called: &IncomingCall) -> Result<CallHandler, CallRefusal> {
    let kind = called.kind();
    match (context.handlers.get(kind).cloned(), called.header(HEADER_PIPE)) {
        (None, _) => Err(CallRefusal::bad(format!("kind {kind} is not known here"))),
        (Some(Handler::Pipe(handler)), Some(id)) => Ok(CallHandler::Converse(handler, pipe_request(called, id)?)),
        (Some(Handler::Pipe(_)), None) => Err(CallRefusal::bad(format!(
            "kind {kind} converses: open a pipe to it (`millpond call {kind} --pipe`, or Client::pipe)"
        ))),
        (Some(_), Some(_)) => {
            Err(CallRefusal::bad(format!("kind {kind} answers each call once: call it without a pipe")))
        }
        (Some(handler), None) => Ok(CallHandler::Answer(handler)),
    }
}

fn pipe_request(called: &IncomingCall, id: &str) -> Result<PipeRequest, CallRefusal> {
    check_token("pipe", id).map_err(|e| CallRefusal::bad(format!("header {HEADER_PIPE}: {e}")))?;
    let capacity = called.header(HEADER_PIPE_CAPACITY).and_then(parse_count).filter(|capacity| *capacity > 0);
    let Some(capacity) = capacity else {
        let text = format!("header {HEADER_PIPE_CAPACITY}: for how many messages there is room, from 1");
        return Err(CallRefusal::bad(text));
    };
    Ok(PipeRequest { id: id.to_owned(), capacity })
}

async fn answer(called: IncomingCall, result: Result<CallResult, CallRefusal>) {
    match result {
        // An answer is one message: an answer that is not stored cannot be fetched from the store of payloads.
        Ok(result) if result.value.get().len() > TASK_BYTES_MAX => {
            let bytes = result.value.get().len();
            let text = format!("the answer has {bytes} bytes, at most {TASK_BYTES_MAX} fit; submit a task instead");
            refuse(called, CallRefusal(Code::Failed, Failure::fatal("result_too_large", text))).await;
        }
        Ok(result) => {
            count(called.kind(), None);
            let value = Bytes::from(String::from(Box::<str>::from(result.value)));
            called.answer(value, result.is_bytes).await;
        }
        Err(refusal) => refuse(called, refusal).await,
    }
}

async fn refuse(called: IncomingCall, CallRefusal(code, failure): CallRefusal) {
    count(called.kind(), Some(code));
    called.refuse(code, &failure).await;
}

/// Counts a call, or a conversation that has ended, for the metrics.
fn count(kind: &str, code: Option<Code>) {
    let code = code.map_or(200, Code::number).to_string();
    metrics::counter!("millpond_calls_total", "kind" => kind.to_owned(), "code" => code).increment(1);
}

/// Waits within the caller's time for a slot of the kind's pool.
async fn slot(context: &WorkerContext, kind: &str, time: CallTime) -> Result<Slot, CallRefusal> {
    tokio::select! {
        biased;
        () = context.draining.cancelled() => Err(CallRefusal::draining()),
        slot = timeout_at(time.deadline, context.pools.slot(kind)) => slot.ok().flatten().ok_or_else(|| {
            let within = humantime::format_duration(time.timeout);
            CallRefusal::no_slot(format!("no slot for kind {kind} came free at this worker within {within}"))
        }),
    }
}

/// Waits within the caller's time for what the kind needs to start, such as a child.
async fn prepared<T>(
    context: &WorkerContext,
    kind: &str,
    time: CallTime,
    ready: impl Future<Output = Result<T, ChildUnavailable>>,
) -> Result<T, CallRefusal> {
    tokio::select! {
        biased;
        ready = timeout_at(time.deadline, ready) => match ready {
            Ok(Ok(ready)) => Ok(ready),
            Ok(Err(ChildUnavailable { .. })) | Err(_) => Err(CallRefusal::no_child(context, kind)),
        },
        () = context.draining.cancelled() => Err(CallRefusal::draining()),
    }
}

/// Runs a call that is answered once.
async fn run(
    context: &WorkerContext,
    kind: &str,
    handler: &Handler,
    call: Call,
    time: CallTime,
) -> Result<CallResult, CallRefusal> {
    let slot = slot(context, kind, time).await?;
    let ready = prepared(context, kind, time, handler.ready()).await?;
    let started = Instant::now();
    // The time that is left appears in messages: whole milliseconds read well.
    let left = time.deadline.saturating_duration_since(started).as_micros().div_ceil(1000);
    let left = Duration::from_millis(u64::try_from(left).unwrap_or(u64::MAX).max(1));
    let timeouts = handler.timeouts(Some(left), left);
    let ends = execute(ready, vec![call], Arc::new(WorkCursor::new(1)), timeouts, &context.stop).await;
    slot.note(started.elapsed());
    match ends.into_iter().next() {
        Some(CallEnd::Done(value)) => Ok(CallResult { value, is_bytes: false }),
        Some(CallEnd::Bytes(value)) => Ok(CallResult { value, is_bytes: true }),
        Some(CallEnd::Failed(failure)) => Err(CallRefusal(Code::of_failure(&failure), failure)),
        Some(CallEnd::NotRun) | None if !context.stop.is_cancelled() => Err(CallRefusal::no_child(context, kind)),
        Some(CallEnd::NotRun) | None => {
            let text = "its worker had to leave before it ended; it may have run in part";
            Err(CallRefusal(Code::Failed, Failure::new("stopped", text)))
        }
    }
}

/// Holds a conversation until it ends.
async fn converse(
    context: &WorkerContext,
    called: IncomingCall,
    handler: PipeHandler,
    request: PipeRequest,
    call: Call,
    time: CallTime,
) {
    let kind = called.kind().to_owned();
    let opening = async {
        let slot = slot(context, &kind, time).await?;
        if let PipeHandler::Child(children) = &handler {
            prepared(context, &kind, time, children.ticket()).await?;
        }
        let opened = pipe::accept(&called, &request.id, request.capacity).await;
        let (pipe, driver) = opened.map_err(|e| CallRefusal(Code::Failed, Failure::new("error", e.to_string())))?;
        Ok((slot, pipe, driver))
    };
    let (slot, pipe, driver) = match opening.await {
        Ok(opened) => opened,
        Err(refusal) => return refuse(called, refusal).await,
    };
    let sender = pipe.sender();
    let conversation = async {
        let ended = {
            // The slot is free while the last messages travel.
            let _slot = slot;
            match &handler {
                PipeHandler::Child(children) => children.converse(&call, pipe, &context.stop).await,
                PipeHandler::Own(handler) => {
                    run_own(context, handler(call.clone(), pipe), &sender.over(), &call.stop).await
                }
            }
        };
        let failure = ended.as_ref().err().cloned();
        let _ = sender.end(ended).await;
        failure
    };
    let (failure, ()) = tokio::join!(conversation, driver.run());
    count(&kind, failure.as_ref().map(Code::of_failure));
    called.note(failure.as_ref());
}

/// Runs a handler of this program until it ends. Once its caller is gone or the worker must leave, the handler is asked to
/// stop, and cut off a little later.
async fn run_own(
    context: &WorkerContext,
    handler: impl Future<Output = Reply>,
    over: &CancellationToken,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let cut_off = async {
        let reason = tokio::select! {
            () = over.cancelled() => Failure::new("gone", "its caller is gone"),
            () = context.stop.cancelled() => Failure::new("draining", "its worker had to leave"),
        };
        stop.cancel();
        tokio::time::sleep(PIPE_HANDLER_GRACE).await;
        reason
    };
    tokio::select! {
        biased;
        ended = caught(handler) => ended.map(drop).map_err(Failure::bounded),
        reason = cut_off => Err(reason),
    }
}

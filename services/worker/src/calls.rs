//! Calls: taken from the bus, run in the slots of their kind's pool by the same `execute` as tasks, answered. Nothing is
//! stored, tried again or settled. A call may open a conversation, which keeps its slot until it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use millpond::bus::Bus;
use millpond::bus::call::pipe;
use millpond::bus::call::service::IncomingCall;
use millpond::call::Code;
use millpond::config::duration;
use millpond::limits::{CALL_TIMEOUT_DEFAULT, CALL_TIMEOUT_MAX, CALLS_WAITING_MAX, PIPE_HANDLER_GRACE, TASK_BYTES_MAX};
use millpond::outcome::Failure;
use millpond::telemetry::{Scope, TaskFields, TraceContext};
use millpond::wire::headers::{HEADER_PIPE, HEADER_PIPE_CAPACITY, HEADER_TIMEOUT, HEADER_TRACEPARENT};
use millpond::wire::subject::check_token;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::call::Call;
use crate::call_end::CallEnd;
use crate::config::Settings;
use crate::handlers::{Handler, Ready, Talker};
use crate::panics::caught;
use crate::process::WorkerContext;
use crate::report::spans;
use crate::run::execute::execute;
use crate::run::work_cursor::WorkCursor;
use crate::run_loop::pools::Slot;
use crate::supervisor::NotNow;

/// How long the answers of calls that were ended may take.
const ANSWER_AFTER_DRAIN: Duration = Duration::from_secs(5);

/// Why a call does not run, or has no result.
struct Refusal(Code, Failure);

impl Refusal {
    fn bad(message: impl Into<String>) -> Self {
        Self(Code::Bad, Failure::fatal("bad_call", message))
    }

    fn draining() -> Self {
        Self(Code::Draining, Failure::new("draining", "this worker drains and has not run the call; call again"))
    }

    fn no_slot(message: impl Into<String>) -> Self {
        Self(Code::NoSlot, Failure::new("no_slot", message))
    }
}

/// The conversation that a call asks for.
struct Wanted {
    id: String,
    room: u64,
}

/// What runs a call.
enum Runner {
    Once(Handler),
    Talk(Talker, Wanted),
}

/// A call that may run.
struct Admitted {
    runner: Runner,
    call: Call,
    /// Whose it is.
    parent: Option<TraceContext>,
    scope: Scope,
    timeout: Duration,
    deadline: Instant,
}

/// The calls of this worker.
pub(crate) struct Calls {
    serving: JoinSet<()>,
}

impl Calls {
    /// Takes calls from now on, until the context drains.
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

    /// Lets what runs end; after the drain's time ends it. The context drains already.
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

async fn serve(mut calls: millpond::bus::call::service::CallReceiver, context: Arc<WorkerContext>) {
    let mut running = JoinSet::new();
    let most = CALLS_WAITING_MAX + context.pools.size();
    loop {
        let called = tokio::select! {
            biased;
            () = context.draining.cancelled() => break,
            Some(_) = running.join_next() => continue,
            called = calls.next() => called,
        };
        // Closed for good.
        let Some(called) = called else { break };
        context.called.store(true, Ordering::Relaxed);
        if running.len() >= most {
            let Refusal(code, failure) = Refusal::no_slot(format!("{most} calls run or wait at this worker already"));
            refuse(called, code, &failure).await;
            continue;
        }
        running.spawn(take(context.clone(), called));
    }
    for called in calls.stop().await {
        let Refusal(code, failure) = Refusal::draining();
        refuse(called, code, &failure).await;
    }
    while running.join_next().await.is_some() {}
}

/// Whether a call may run, and with what: everything that a caller can get wrong is told here.
fn admit(context: &WorkerContext, called: &IncomingCall) -> Result<Admitted, Refusal> {
    let kind = called.kind();
    if called.payload.len() > TASK_BYTES_MAX {
        let bytes = called.payload.len();
        return Err(Refusal::bad(format!(
            "arguments of {bytes} bytes are too long for a call, at most {TASK_BYTES_MAX}"
        )));
    }
    let timeout = match called.header(HEADER_TIMEOUT) {
        None => CALL_TIMEOUT_DEFAULT,
        Some(text) => duration(text).map_err(|e| Refusal::bad(format!("header {HEADER_TIMEOUT}: {e}")))?,
    };
    if timeout.is_zero() || timeout > CALL_TIMEOUT_MAX {
        let max = humantime::format_duration(CALL_TIMEOUT_MAX);
        return Err(Refusal::bad(format!("header {HEADER_TIMEOUT}: from 1ms to {max}; for longer work submit a task")));
    }
    let Some(handler) = context.handlers.get(kind) else {
        return Err(Refusal::bad(format!("kind {kind} is not known here")));
    };
    let runner = match (handler.clone(), called.header(HEADER_PIPE)) {
        (Handler::Pipe(talker), Some(id)) => Runner::Talk(talker, wanted(called, id)?),
        (Handler::Pipe(_), None) => {
            return Err(Refusal::bad(format!(
                "kind {kind} converses: open a pipe to it (`millpond call {kind} --pipe`, or Client::pipe)"
            )));
        }
        (_, Some(_)) => {
            return Err(Refusal::bad(format!("kind {kind} answers each call once: call it without a pipe")));
        }
        (handler, None) => Runner::Once(handler),
    };
    let parent = called.header(HEADER_TRACEPARENT).and_then(TraceContext::parse);
    let call = Call {
        file: None,
        id: format!("call-{}", millpond::random_token()),
        attempt: 1,
        payload: called.payload.clone(),
        trace: TraceContext::below(parent),
        stop: context.stop.child_token(),
    };
    let (queue, kind) = (Some(called.queue().to_owned()), Some(kind.to_owned()));
    let scope = Scope::new(TaskFields { task_id: call.id.clone(), queue, kind, attempt: call.attempt }, call.trace);
    Ok(Admitted { runner, call, parent, scope, timeout, deadline: Instant::now() + timeout })
}

fn wanted(called: &IncomingCall, id: &str) -> Result<Wanted, Refusal> {
    check_token("pipe", id).map_err(|e| Refusal::bad(format!("header {HEADER_PIPE}: {e}")))?;
    let room = called.header(HEADER_PIPE_CAPACITY).and_then(|text| text.parse().ok()).filter(|room| *room > 0);
    let room = room.ok_or_else(|| {
        Refusal::bad(format!("header {HEADER_PIPE_CAPACITY}: for how many messages there is room, from 1"))
    })?;
    Ok(Wanted { id: id.to_owned(), room })
}

async fn take(context: Arc<WorkerContext>, called: IncomingCall) {
    let started = SystemTime::now();
    let ended = match admit(&context, &called) {
        Err(refusal) => Err(refusal),
        Ok(Admitted { runner, call, parent, scope, timeout, deadline }) => {
            let (queue, kind) = (called.queue().to_owned(), called.kind().to_owned());
            let (trace, id) = (call.trace, call.id.clone());
            let over = move |failure: Option<Failure>| {
                let trace = trace.filter(|trace| trace.is_recorded());
                trace.iter().for_each(|at| spans::called((&queue, &kind, &id), *at, parent, started, failure.as_ref()));
            };
            match runner {
                Runner::Once(handler) => {
                    let kind = called.kind();
                    let ended = scope.around(once(&context, kind, &handler, call, (timeout, deadline))).await;
                    over(ended.as_ref().err().map(|Refusal(_, failure)| failure.clone()));
                    ended
                }
                Runner::Talk(talker, wanted) => {
                    scope.around(talk(&context, called, talker, wanted, call, (timeout, deadline))).await;
                    return over(None);
                }
            }
        }
    };
    match ended {
        // An answer is one message: no claim check for what is not stored.
        Ok(result) if result.len() > TASK_BYTES_MAX => {
            let text =
                format!("the answer has {} bytes, at most {TASK_BYTES_MAX} fit; submit a task instead", result.len());
            refuse(called, Code::Failed, &Failure::fatal("result_too_large", text)).await;
        }
        Ok(result) => {
            count(called.kind(), None);
            called.answer(result).await;
        }
        Err(Refusal(code, failure)) => refuse(called, code, &failure).await,
    }
}

async fn refuse(called: IncomingCall, code: Code, failure: &Failure) {
    count(called.kind(), Some(code));
    called.refuse(code, failure).await;
}

/// Counts a call, or a conversation that has ended, for the metrics.
fn count(kind: &str, code: Option<Code>) {
    let code = code.map_or(200, Code::number).to_string();
    metrics::counter!("millpond_calls_total", "kind" => kind.to_owned(), "code" => code).increment(1);
}

/// A slot of the kind's pool, within the caller's time.
async fn slot(context: &WorkerContext, kind: &str, (timeout, deadline): (Duration, Instant)) -> Result<Slot, Refusal> {
    tokio::select! {
        biased;
        () = context.draining.cancelled() => Err(Refusal::draining()),
        slot = timeout_at(deadline, context.pools.slot(context.pools.of(kind))) => slot.ok().flatten().ok_or_else(|| {
            let within = humantime::format_duration(timeout);
            Refusal::no_slot(format!("no slot for kind {kind} came free at this worker within {within}"))
        }),
    }
}

/// What the kind needs to start, such as a child, within the caller's time.
async fn prepared<T>(
    context: &WorkerContext,
    kind: &str,
    deadline: Instant,
    ready: impl Future<Output = Result<T, NotNow>>,
) -> Result<T, Refusal> {
    tokio::select! {
        biased;
        ready = timeout_at(deadline, ready) => ready.unwrap_or(Err(NotNow(Duration::ZERO))).map_err(|_| no_child(context, kind)),
        () = context.draining.cancelled() => Err(Refusal::draining()),
    }
}

fn no_child(context: &WorkerContext, kind: &str) -> Refusal {
    let why = context.supervisor.troubles().remove(kind).unwrap_or_else(|| "they are still starting".to_owned());
    Refusal::no_slot(format!("no child of kind {kind} can be had now: {why}"))
}

async fn once(
    context: &WorkerContext,
    kind: &str,
    handler: &Handler,
    call: Call,
    (timeout, deadline): (Duration, Instant),
) -> Result<Bytes, Refusal> {
    let slot = slot(context, kind, (timeout, deadline)).await?;
    let ready: Ready = prepared(context, kind, deadline, handler.ready()).await?;
    let started = Instant::now();
    // Whole milliseconds, as people read it.
    let left = deadline.saturating_duration_since(started).as_micros().div_ceil(1000);
    let left = Duration::from_millis(u64::try_from(left).unwrap_or(u64::MAX).max(1));
    let timeouts = handler.timeouts(Some(left), left);
    let ends = execute(ready, vec![call], Arc::new(WorkCursor::new(1)), timeouts, &context.stop).await;
    context.pools.note(context.pools.of(kind), started.elapsed());
    drop(slot);
    match ends.into_iter().next() {
        Some(CallEnd::Done(value)) => Ok(Bytes::from(String::from(Box::<str>::from(value)))),
        Some(CallEnd::Failed(failure)) => Err(Refusal(Code::of_failure(&failure), failure)),
        Some(CallEnd::NotRun) | None if !context.stop.is_cancelled() => Err(no_child(context, kind)),
        Some(CallEnd::NotRun) | None => {
            let text = "its worker had to leave before it ended; it may have run in part";
            Err(Refusal(Code::Failed, Failure::new("stopped", text)))
        }
    }
}

/// Holds a conversation to its end.
async fn talk(
    context: &WorkerContext,
    called: IncomingCall,
    talker: Talker,
    wanted: Wanted,
    call: Call,
    time: (Duration, Instant),
) {
    let kind = called.kind().to_owned();
    let opening = async {
        let slot = slot(context, &kind, time).await?;
        if let Talker::Child(pool) = &talker {
            prepared(context, &kind, time.1, pool.ticket()).await?;
        }
        let opened = pipe::accept(&called, &wanted.id, wanted.room).await;
        let (pipe, driver) = opened.map_err(|e| Refusal(Code::Failed, Failure::new("error", e.to_string())))?;
        Ok((slot, pipe, driver))
    };
    let (slot, pipe, driver) = match opening.await {
        Ok(opened) => opened,
        Err(Refusal(code, failure)) => return refuse(called, code, &failure).await,
    };
    let ours = pipe.sender();
    let talking = async {
        let ended = match &talker {
            Talker::Child(pool) => pool.converse(&call, pipe, &context.stop).await,
            Talker::Own(handler) => own(context, handler(call.clone(), pipe), &ours.over(), &call.stop).await,
        };
        // It is free while the last words travel.
        drop(slot);
        let failure = ended.as_ref().err().cloned();
        let _ = ours.end(ended).await;
        failure
    };
    let (failure, ()) = tokio::join!(talking, driver.run());
    count(&kind, failure.as_ref().map(Code::of_failure));
    called.note(failure.as_ref());
}

/// Runs a handler of this program until it ends; once its caller is gone, or the worker must leave, a little longer.
async fn own(
    context: &WorkerContext,
    handler: impl Future<Output = crate::call::Reply>,
    over: &CancellationToken,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let cut = async {
        let why = tokio::select! {
            () = over.cancelled() => Failure::new("gone", "its caller is gone"),
            () = context.stop.cancelled() => Failure::new("draining", "its worker had to leave"),
        };
        stop.cancel();
        tokio::time::sleep(PIPE_HANDLER_GRACE).await;
        why
    };
    tokio::select! {
        biased;
        ended = caught(handler) => ended.map(drop).map_err(Failure::bounded),
        why = cut => Err(why),
    }
}

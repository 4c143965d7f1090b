//! One lease from the door to its end: may it run, run it, settle it.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use millpond::bus::consume::lease::{Admission, Lease};
use millpond::bus::consume::start_records::StartEntry;
use millpond::limits::{BATCH_REPUBLISH_AFTER, RELEASE_AFTER, UNKNOWN_KIND_DELAY};
use millpond::outcome::{Items, id_of};
use millpond::task::Task;
use millpond::telemetry::TraceContext;
use millpond::{batch, failpoint};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::announced_kinds::AnnouncedKinds;
use crate::call::Call;
use crate::call_end::CallEnd;
use crate::cancellations::Cancelled;
use crate::handlers::{Handler, Handlers};
use crate::prepare::payloads::{FetchFailure, FetchedPayload, PayloadFetcher};
use crate::report::spans::AttemptSpans;
use crate::report::stats::Stats;
use crate::run::execute::execute;
use crate::run::work_cursor::WorkCursor;
use crate::run_loop::pools::{Slot, SlotPoolId, SlotPools};
use crate::settle::{Attempt, Settler, arguments};
use crate::supervisor::{ChildUnavailable, Supervisor};

/// When a task comes again whose arguments could not be fetched.
const FETCH_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What every task of this worker shares.
pub(crate) struct WorkerContext {
    pub(crate) settler: Settler,
    pub(crate) handlers: Handlers,
    pub(crate) kinds: AnnouncedKinds,
    pub(crate) task_timeout: Duration,
    pub(crate) unknown_kind_after: Duration,
    /// Cancelled when the drain begins.
    pub(crate) draining: CancellationToken,
    /// Cancelled when the drain's time is over.
    pub(crate) stop: CancellationToken,
    pub(crate) stats: Stats,
    /// Room for running tasks.
    pub(crate) pools: SlotPools,
    /// Arguments that are not in the message.
    pub(crate) payloads: PayloadFetcher,
    /// Leases whose door may take its time without a slot.
    pub(crate) asking: Arc<Semaphore>,
    /// A call came since this was looked at: the worker is not idle.
    pub(crate) called: AtomicBool,
    /// Handlers in processes of their own.
    pub(crate) supervisor: Supervisor,
}

/// What the door decides.
enum Verdict {
    Run(Handler),
    Bury(&'static str, String),
    Split(Items),
    Cancel(Cancelled),
    UnknownKind,
    Stop,
    OwnedElsewhere,
    LetGo,
}

/// Works on one lease; the slot is free again when its handler is done, before the settlement.
pub(crate) async fn work(context: Arc<WorkerContext>, mut lease: Lease, slot: Slot, pool: SlotPoolId) {
    failpoint::hit("door.delivered");
    // Before the door looks: what is cancelled from now on is heard of.
    let mut news = context.settler.cancellations.news();
    // To ask the others takes time in which another task can have the slot; not so often that leases are hoarded.
    let asking = if lease.needs_ownership_query() { context.asking.clone().try_acquire_owned().ok() } else { None };
    let mut slot = Some(slot);
    if asking.is_some() {
        slot = None;
    }
    let verdict = door(&context, &mut lease).await;
    let Verdict::Run(handler) = verdict else {
        drop(slot);
        return Box::pin(turn_away(&context, lease, verdict)).await;
    };
    if slot.is_none() {
        slot = Box::pin(slot_again(&context, pool)).await;
    }
    drop(asking);
    let Some(slot) = slot else { return Box::pin(lease.release(Duration::ZERO)).await };
    let (lease, fetched) = match &lease.task.payload_ref {
        None => (lease, None),
        Some(_) => match Box::pin(fetch(&context, lease, &handler)).await {
            Some((lease, fetched)) => (lease, Some(fetched)),
            None => return,
        },
    };
    let spans = AttemptSpans::new(&lease.task);
    let stop = context.stop.child_token();
    let calls = match calls(&lease.task, fetched.as_ref(), spans.attempt, &stop) {
        Ok(calls) => calls,
        Err(error) => {
            drop(slot);
            let kind = lease.task.subject.kind.clone();
            let buried = Box::pin(context.settler.bury(lease, "bad_batch", error.to_string())).await;
            return context.stats.count(&kind, buried);
        }
    };
    let ready = tokio::select! {
        biased;
        // Boxed within, where it waits for a child.
        ready = handler.ready() => ready,
        () = context.draining.cancelled() => Err(ChildUnavailable { retry_after: Duration::ZERO }),
    };
    let ready = match ready {
        Ok(ready) => ready,
        Err(ChildUnavailable { retry_after: delay }) => {
            drop(slot);
            return Box::pin(lease.release(delay)).await;
        }
    };
    // It may have been cancelled while it waited.
    if news.has_changed().unwrap_or(false) {
        news.mark_unchanged();
        if let Some(cancelled) = context.settler.cancellations.of(&lease) {
            drop(slot);
            return Box::pin(context.settler.cancel(lease, &cancelled)).await;
        }
    }
    // The last thing before the start: it may have been paused while it waited.
    if !lease.start() {
        return Box::pin(lease.abandon()).await;
    }
    failpoint::hit("work.started");
    let timeouts = handler.timeouts(lease.task.timeout, context.task_timeout);
    let (started, started_ms, started_at) = (Instant::now(), millpond::now_ms(), SystemTime::now());
    let scope = spans.scope(&lease.task);
    spans.started(&lease, started_at);
    context.stats.starts(&lease.task.subject.kind, AttemptSpans::waited_since(&lease), started_at);
    let cursor = Arc::new(WorkCursor::new(calls.len()));
    let over = CancellationToken::new();
    let running = async {
        let executing = scope.around(execute(ready, calls, cursor.clone(), timeouts, &stop));
        let ends = tokio::select! {
            biased;
            ends = executing => ends,
            never = ended_by_news(&context, &lease, &mut news, &cursor, &stop) => match never {},
        };
        over.cancel();
        (ends, started.elapsed())
    };
    // Rare things are boxed here and above: each task moves its whole future, and most need none of them.
    let ((ends, busy), handed_on) = match lease.task.items.filter(|items| items.len > 1) {
        Some(items) => tokio::join!(running, Box::pin(hand_on(&context, &lease, items, &cursor, &over, started_ms))),
        None => (running.await, None),
    };
    context.pools.note(pool, busy);
    drop(fetched);
    spans.ran(&lease.task, started_at, &ends);
    // Large results keep their slot until they are stored: so few are in memory at once.
    let slot = ends.iter().any(CallEnd::is_large).then_some(slot);
    let attempt = Attempt { started_ms, ended_ms: millpond::now_ms(), busy, trace: spans.attempt, ends, handed_on };
    let kind = lease.task.subject.kind.clone();
    let settling = Instant::now();
    let tally = scope.around(context.settler.settle(lease, attempt)).await;
    context.stats.ran(&kind, busy, settling.elapsed());
    context.stats.count(&kind, tally);
    drop(slot);
}

/// Fetches what the task refers to; none when its lease was ended instead. Its slot waits for it.
async fn fetch(context: &WorkerContext, lease: Lease, handler: &Handler) -> Option<(Lease, FetchedPayload)> {
    let at = lease.task.payload_ref.as_ref()?;
    let fetched = tokio::select! {
        biased;
        fetched = context.payloads.fetch(at, handler.takes_lines()) => fetched,
        () = context.draining.cancelled() => Err(FetchFailure::NotNow("the worker is leaving".to_owned())),
    };
    match fetched {
        Ok(fetched) => {
            failpoint::hit("work.fetched");
            return Some((lease, fetched));
        }
        Err(FetchFailure::Never(reason, message)) => {
            let kind = lease.task.subject.kind.clone();
            context.stats.count(&kind, context.settler.bury(lease, reason, message).await);
        }
        Err(FetchFailure::NotNow(reason)) => {
            tracing::warn!(task_id = %lease.task.id(), reason, "large arguments cannot be fetched now; the task waits");
            let delay = if context.draining.is_cancelled() { Duration::ZERO } else { FETCH_AGAIN_AFTER };
            lease.release(delay).await;
        }
    }
    None
}

/// The items of a batch that were handed on while an earlier one of them ran: after [`BATCH_REPUBLISH_AFTER`], and when
/// the worker drains. So no item waits behind a slow one while there are free slots. `over` ends the wait.
async fn hand_on(
    context: &WorkerContext,
    lease: &Lease,
    items: Items,
    cursor: &WorkCursor,
    over: &CancellationToken,
    started_ms: i64,
) -> Option<Items> {
    tokio::select! {
        biased;
        () = over.cancelled() => return None,
        () = tokio::time::sleep(BATCH_REPUBLISH_AFTER) => {}
        () = context.draining.cancelled() => {}
    }
    // What comes again may have been handed on before, by a worker that died since.
    if !lease.is_first_delivery() || lease.was_cut_off() {
        return None;
    }
    let rest = cursor.take_rest();
    let (from, len) = (u32::try_from(rest.start).ok()?, u32::try_from(rest.len()).ok().filter(|len| *len > 0)?);
    // First: whoever is given the rest asks who holds it.
    lease.shrink(Items { len: from, ..items });
    let rest = Items { of: items.of, from: items.from + from, len };
    context.settler.hand_on(&lease.task, rest, started_ms).await.then_some(rest)
}

/// Stops what runs when it is cancelled meanwhile. It never ends: whoever runs does, once it is stopped.
async fn ended_by_news(
    context: &WorkerContext,
    lease: &Lease,
    news: &mut watch::Receiver<()>,
    cursor: &WorkCursor,
    stop: &CancellationToken,
) -> Infallible {
    while news.changed().await.is_ok() {
        match context.settler.cancellations.of(lease) {
            None => {}
            Some(Cancelled::Whole) => stop.cancel(),
            Some(items) => {
                cursor.take_rest();
                // What runs is the last that was claimed; the others of it are published again.
                let first = lease.task.items.map_or(0, |i| i.from);
                let runs = u32::try_from(cursor.claimed()).ok().and_then(|n| n.checked_sub(1)).map(|n| first + n);
                if runs.is_some_and(|item| items.covers(item)) {
                    stop.cancel();
                }
            }
        }
    }
    std::future::pending().await
}

/// A slot for what was admitted without one; none when there is none for long, or the worker drains.
async fn slot_again(context: &WorkerContext, pool: SlotPoolId) -> Option<Slot> {
    tokio::select! {
        biased;
        () = context.draining.cancelled() => None,
        slot = tokio::time::timeout(RELEASE_AFTER, context.pools.slot(pool)) => slot.ok()?,
    }
}

async fn door(context: &WorkerContext, lease: &mut Lease) -> Verdict {
    if lease.is_settled() {
        return Verdict::Stop;
    }
    if lease.was_cut_off() {
        return Verdict::LetGo;
    }
    let task = &lease.task;
    if let Some(defect) = task.defect.clone() {
        return Verdict::Bury(defect.reason, defect.message);
    }
    if task.expires_ms.is_some_and(|at| at < millpond::now_ms()) {
        return Verdict::Bury("expired", "it had not started when it expired (header Millpond-Expires)".to_owned());
    }
    match context.settler.cancellations.of(lease) {
        // A batch that cannot be taken apart is buried as one.
        Some(Cancelled::Items(_)) if arguments(task).len() != task.items_len() as usize => {}
        Some(cancelled) => return Verdict::Cancel(cancelled),
        None => {}
    }
    let Some(handler) = context.handlers.get(&task.subject.kind).cloned() else { return Verdict::UnknownKind };
    if matches!(handler, Handler::Pipe(_)) {
        let kind = &task.subject.kind;
        let message = format!("kind {kind} converses, and takes no tasks: `millpond call {kind} --pipe` talks to it");
        return Verdict::Bury("needs_pipe", message);
    }
    match Box::pin(lease.admit()).await {
        Ok(Admission::Start) => Verdict::Run(handler),
        Ok(Admission::Acknowledge) => Verdict::Stop,
        Ok(Admission::OwnedElsewhere) => Verdict::OwnedElsewhere,
        Ok(Admission::StartsExhausted(_)) if lease.was_cut_off() => Verdict::LetGo,
        Ok(Admission::StartsExhausted(starts)) => killer(&lease.task, &starts),
        Err(error) => {
            tracing::warn!(task_id = %lease.task.id(), %error, "cannot tell whether a redelivered task may start");
            Verdict::LetGo
        }
    }
}

fn killer(task: &Task, starts: &[StartEntry]) -> Verdict {
    match task.items.filter(|i| i.len > 1) {
        Some(items) if !arguments(task).is_empty() => Verdict::Split(items),
        _ => {
            let workers: Vec<&str> = starts.iter().map(|s| s.worker.as_str()).collect();
            let (count, workers) = (starts.len(), workers.join(", "));
            Verdict::Bury(
                "kills_workers",
                format!(
                    "it was started again {count} times, and each time its worker died or was cut off (workers: {workers})"
                ),
            )
        }
    }
}

async fn turn_away(context: &WorkerContext, lease: Lease, verdict: Verdict) {
    match verdict {
        Verdict::Bury(reason, message) => {
            let kind = lease.task.subject.kind.clone();
            context.stats.count(&kind, context.settler.bury(lease, reason, message).await);
        }
        Verdict::Split(items) => context.settler.split(lease, items).await,
        Verdict::Cancel(cancelled) => context.settler.cancel(lease, &cancelled).await,
        Verdict::UnknownKind => unknown_kind(context, lease).await,
        Verdict::Stop => lease.complete().await,
        Verdict::OwnedElsewhere => lease.leave_to_owner(),
        Verdict::LetGo | Verdict::Run(_) => lease.abandon().await,
    }
}

/// It waits for a worker that knows its kind; it is buried when there is none for long.
async fn unknown_kind(context: &WorkerContext, lease: Lease) {
    let task = &lease.task;
    let (queue, kind) = (task.subject.queue.clone(), task.subject.kind.clone());
    if context.kinds.note_unknown(&queue, &kind) {
        tracing::warn!(%queue, %kind, "no worker for this kind here; its tasks wait for one that knows it");
    }
    let after = context.unknown_kind_after;
    let waited_ms = u128::try_from(millpond::now_ms().saturating_sub(task.published_ms)).unwrap_or(0);
    if waited_ms > after.as_millis() && context.kinds.unannounced_for(&queue, &kind, after) {
        let after = humantime::format_duration(after);
        let known: Vec<&str> = context.handlers.keys().map(String::as_str).collect();
        let known = known.join(", ");
        let message = format!("no live worker has known kind {kind} for {after}; this one knows {known}");
        context.stats.count(&kind, context.settler.bury(lease, "unknown_kind", message).await);
    } else {
        lease.release(UNKNOWN_KIND_DELAY).await;
    }
}

fn calls(
    task: &Task,
    fetched: Option<&FetchedPayload>,
    trace: TraceContext,
    stop: &CancellationToken,
) -> Result<Vec<Call>, batch::BatchError> {
    if task.is_batch() {
        // Told apart from an empty array, so that the reason is a good one.
        batch::split(&task.payload, task.items_len())?;
    }
    let first = task.items.map_or(0, |i| i.from);
    let calls = arguments(task).into_iter().zip(first..).map(|(payload, item)| {
        let items = task.items.map(|i| Items { of: i.of, from: item, len: 1 });
        let id = match items {
            Some(i) if i.of == 1 => format!("{}/0", task.original_id),
            items => id_of(&task.original_id, items),
        };
        // What is fetched is one task's.
        let payload = fetched.map_or(payload, FetchedPayload::payload);
        let file = fetched.and_then(FetchedPayload::file).map(Path::to_owned);
        Call { id, attempt: task.attempt, payload, file, trace: Some(trace), stop: stop.child_token() }
    });
    Ok(calls.collect())
}

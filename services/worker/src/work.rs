//! One lease from the door to its end: may it run, run it, settle it.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use millpond::batch;
use millpond::bus::lease::{Admission, Lease};
use millpond::bus::records::StartEntry;
use millpond::failpoint;
use millpond::limits::{BATCH_HAND_ON_AFTER, HAND_BACK_AFTER, UNKNOWN_KIND_DELAY};
use millpond::outcome::{Items, id_of};
use millpond::task::Task;
use millpond::telemetry::TraceContext;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::call::Call;
use crate::cancels::Cancelled;
use crate::claim::{Claims, Fetched, NotFetched};
use crate::execute::execute;
use crate::handlers::{Handler, Handlers};
use crate::kinds::Kinds;
use crate::lanes::{LaneId, Lanes, Slot};
use crate::settle::{Attempt, Settler, arguments};
use crate::share::{CallEnd, Share};
use crate::stats::Stats;
use crate::supervisor::{NotNow, Supervisor};
use crate::traced::Traced;

/// When a task comes again whose arguments could not be fetched.
const FETCH_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What every task of this worker shares.
pub(crate) struct Shop {
    pub(crate) settler: Settler,
    pub(crate) handlers: Handlers,
    pub(crate) kinds: Kinds,
    pub(crate) task_timeout: Duration,
    pub(crate) unknown_kind_after: Duration,
    /// Cancelled when the drain begins.
    pub(crate) draining: CancellationToken,
    /// Cancelled when the drain's time is over.
    pub(crate) stop: CancellationToken,
    pub(crate) stats: Stats,
    /// Room for running tasks.
    pub(crate) lanes: Lanes,
    /// Arguments that are not in the message.
    pub(crate) claims: Claims,
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
    LeaveAlone,
    LetGo,
}

/// Works on one lease; the slot is free again when its handler is done, before the settlement.
pub(crate) async fn work(shop: Arc<Shop>, mut lease: Lease, slot: Slot, lane: LaneId) {
    failpoint::hit("door.delivered");
    // Before the door looks: what is cancelled from now on is heard of.
    let mut news = shop.settler.cancels.news();
    // To ask the others takes time in which another task can have the slot; not so often that leases are hoarded.
    let asking = if lease.must_ask() { shop.asking.clone().try_acquire_owned().ok() } else { None };
    let mut slot = Some(slot);
    if asking.is_some() {
        slot = None;
    }
    let verdict = door(&shop, &mut lease).await;
    let Verdict::Run(handler) = verdict else {
        drop(slot);
        return Box::pin(turn_away(&shop, lease, verdict)).await;
    };
    if slot.is_none() {
        slot = Box::pin(slot_again(&shop, lane)).await;
    }
    drop(asking);
    let Some(slot) = slot else { return Box::pin(lease.hand_back(Duration::ZERO)).await };
    let (lease, fetched) = match &lease.task.payload_ref {
        None => (lease, None),
        Some(_) => match Box::pin(fetch(&shop, lease, &handler)).await {
            Some((lease, fetched)) => (lease, Some(fetched)),
            None => return,
        },
    };
    let traced = Traced::new(&lease.task);
    let stop = shop.stop.child_token();
    let calls = match calls(&lease.task, fetched.as_ref(), traced.attempt, &stop) {
        Ok(calls) => calls,
        Err(error) => {
            drop(slot);
            let kind = lease.task.subject.kind.clone();
            let buried = Box::pin(shop.settler.bury(lease, "bad_batch", error.to_string())).await;
            return shop.stats.count(&kind, buried);
        }
    };
    let ready = tokio::select! {
        biased;
        // Boxed within, where it waits for a child.
        ready = handler.ready() => ready,
        () = shop.draining.cancelled() => Err(NotNow(Duration::ZERO)),
    };
    let ready = match ready {
        Ok(ready) => ready,
        Err(NotNow(delay)) => {
            drop(slot);
            return Box::pin(lease.hand_back(delay)).await;
        }
    };
    // It may have been cancelled while it waited.
    if news.has_changed().unwrap_or(false) {
        news.mark_unchanged();
        if let Some(cancelled) = shop.settler.cancels.of(&lease) {
            ready.give_back();
            drop(slot);
            return Box::pin(shop.settler.cancel(lease, &cancelled)).await;
        }
    }
    // The last thing before the start: it may have been paused while it waited.
    if !lease.start() {
        ready.give_back();
        return Box::pin(lease.let_go()).await;
    }
    failpoint::hit("work.started");
    let timeouts = handler.timeouts(lease.task.timeout, shop.task_timeout);
    let (started, started_ms, started_at) = (Instant::now(), millpond::now_ms(), SystemTime::now());
    let scope = traced.scope(&lease.task);
    traced.started(&lease, started_at);
    shop.stats.starts(&lease.task.subject.kind, Traced::waited_since(&lease), started_at);
    let share = Arc::new(Share::new(calls.len()));
    let over = CancellationToken::new();
    let running = async {
        let executing = scope.around(execute(ready, calls, share.clone(), timeouts, &stop));
        let ends = tokio::select! {
            biased;
            ends = executing => ends,
            never = ended_by_news(&shop, &lease, &mut news, &share, &stop) => match never {},
        };
        over.cancel();
        (ends, started.elapsed())
    };
    // Rare things are boxed here and above: each task moves its whole future, and most need none of them.
    let ((ends, busy), handed_on) = match lease.task.items.filter(|items| items.len > 1) {
        Some(items) => tokio::join!(running, Box::pin(hand_on(&shop, &lease, items, &share, &over, started_ms))),
        None => (running.await, None),
    };
    shop.lanes.note(lane, busy);
    drop(fetched);
    traced.ran(&lease.task, started_at, &ends);
    // Large results keep their slot until they are stored: so few are in memory at once.
    let slot = ends.iter().any(CallEnd::is_large).then_some(slot);
    let attempt = Attempt { started_ms, ended_ms: millpond::now_ms(), busy, trace: traced.attempt, ends, handed_on };
    let kind = lease.task.subject.kind.clone();
    let settling = Instant::now();
    let tally = scope.around(shop.settler.settle(lease, attempt)).await;
    shop.stats.ran(&kind, busy, settling.elapsed());
    shop.stats.count(&kind, tally);
    drop(slot);
}

/// Fetches what the task refers to; none when its lease was ended instead. Its slot waits for it.
async fn fetch(shop: &Shop, lease: Lease, handler: &Handler) -> Option<(Lease, Fetched)> {
    let at = lease.task.payload_ref.as_ref()?;
    let fetched = tokio::select! {
        biased;
        fetched = shop.claims.fetch(at, handler.takes_lines()) => fetched,
        () = shop.draining.cancelled() => Err(NotFetched::NotNow("the worker is leaving".to_owned())),
    };
    match fetched {
        Ok(fetched) => {
            failpoint::hit("work.fetched");
            return Some((lease, fetched));
        }
        Err(NotFetched::Never(reason, message)) => {
            let kind = lease.task.subject.kind.clone();
            shop.stats.count(&kind, shop.settler.bury(lease, reason, message).await);
        }
        Err(NotFetched::NotNow(reason)) => {
            tracing::warn!(task_id = %lease.task.id(), reason, "large arguments cannot be fetched now; the task waits");
            let delay = if shop.draining.is_cancelled() { Duration::ZERO } else { FETCH_AGAIN_AFTER };
            lease.hand_back(delay).await;
        }
    }
    None
}

/// The items of a batch that were handed on while an earlier one of them ran: after [`BATCH_HAND_ON_AFTER`], and when
/// the worker drains. So no item waits behind a slow one while there are free slots. `over` ends the wait.
async fn hand_on(
    shop: &Shop,
    lease: &Lease,
    items: Items,
    share: &Share,
    over: &CancellationToken,
    started_ms: i64,
) -> Option<Items> {
    tokio::select! {
        biased;
        () = over.cancelled() => return None,
        () = tokio::time::sleep(BATCH_HAND_ON_AFTER) => {}
        () = shop.draining.cancelled() => {}
    }
    // What comes again may have been handed on before, by a worker that died since.
    if !lease.is_first_delivery() || lease.was_cut_off() {
        return None;
    }
    let rest = share.take_rest();
    let (from, len) = (u32::try_from(rest.start).ok()?, u32::try_from(rest.len()).ok().filter(|len| *len > 0)?);
    // First: whoever is given the rest asks who holds it.
    lease.shrink(Items { len: from, ..items });
    let rest = Items { of: items.of, from: items.from + from, len };
    shop.settler.hand_on(&lease.task, rest, started_ms).await.then_some(rest)
}

/// Stops what runs when it is cancelled meanwhile. It never ends: whoever runs does, once it is stopped.
async fn ended_by_news(
    shop: &Shop,
    lease: &Lease,
    news: &mut watch::Receiver<()>,
    share: &Share,
    stop: &CancellationToken,
) -> Infallible {
    while news.changed().await.is_ok() {
        match shop.settler.cancels.of(lease) {
            None => {}
            Some(Cancelled::Whole) => stop.cancel(),
            Some(items) => {
                share.take_rest();
                // What runs is the last that was claimed; the others of it are published again.
                let first = lease.task.items.map_or(0, |i| i.from);
                let runs = u32::try_from(share.claimed()).ok().and_then(|n| n.checked_sub(1)).map(|n| first + n);
                if runs.is_some_and(|item| items.covers(item)) {
                    stop.cancel();
                }
            }
        }
    }
    std::future::pending().await
}

/// A slot for what was admitted without one; none when there is none for long, or the worker drains.
async fn slot_again(shop: &Shop, lane: LaneId) -> Option<Slot> {
    tokio::select! {
        biased;
        () = shop.draining.cancelled() => None,
        slot = tokio::time::timeout(HAND_BACK_AFTER, shop.lanes.slot(lane)) => slot.ok()?,
    }
}

async fn door(shop: &Shop, lease: &mut Lease) -> Verdict {
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
    match shop.settler.cancels.of(lease) {
        // A batch that cannot be taken apart is buried as one.
        Some(Cancelled::Items(_)) if arguments(task).len() != task.items_len() as usize => {}
        Some(cancelled) => return Verdict::Cancel(cancelled),
        None => {}
    }
    let Some(handler) = shop.handlers.get(&task.subject.kind).cloned() else { return Verdict::UnknownKind };
    if matches!(handler, Handler::Pipe(_)) {
        let kind = &task.subject.kind;
        let message = format!("kind {kind} converses, and takes no tasks: `millpond call {kind} --pipe` talks to it");
        return Verdict::Bury("needs_pipe", message);
    }
    match Box::pin(lease.admit()).await {
        Ok(Admission::Start) => Verdict::Run(handler),
        Ok(Admission::Stop) => Verdict::Stop,
        Ok(Admission::LeaveAlone) => Verdict::LeaveAlone,
        Ok(Admission::Killer(_)) if lease.was_cut_off() => Verdict::LetGo,
        Ok(Admission::Killer(starts)) => killer(&lease.task, &starts),
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

async fn turn_away(shop: &Shop, lease: Lease, verdict: Verdict) {
    match verdict {
        Verdict::Bury(reason, message) => {
            let kind = lease.task.subject.kind.clone();
            shop.stats.count(&kind, shop.settler.bury(lease, reason, message).await);
        }
        Verdict::Split(items) => shop.settler.split(lease, items).await,
        Verdict::Cancel(cancelled) => shop.settler.cancel(lease, &cancelled).await,
        Verdict::UnknownKind => unknown_kind(shop, lease).await,
        Verdict::Stop => lease.complete().await,
        Verdict::LeaveAlone => lease.leave_alone(),
        Verdict::LetGo | Verdict::Run(_) => lease.let_go().await,
    }
}

/// It waits for a worker that knows its kind; it is buried when there is none for long.
async fn unknown_kind(shop: &Shop, lease: Lease) {
    let task = &lease.task;
    let (queue, kind) = (task.subject.queue.clone(), task.subject.kind.clone());
    if shop.kinds.note_unknown(&queue, &kind) {
        tracing::warn!(%queue, %kind, "no worker for this kind here; its tasks wait for one that knows it");
    }
    let after = shop.unknown_kind_after;
    let waited_ms = u128::try_from(millpond::now_ms().saturating_sub(task.published_ms)).unwrap_or(0);
    if waited_ms > after.as_millis() && shop.kinds.nobody_knows(&queue, &kind, after) {
        let after = humantime::format_duration(after);
        let known: Vec<&str> = shop.handlers.keys().map(String::as_str).collect();
        let known = known.join(", ");
        let message = format!("no live worker has known kind {kind} for {after}; this one knows {known}");
        shop.stats.count(&kind, shop.settler.bury(lease, "unknown_kind", message).await);
    } else {
        lease.hand_back(UNKNOWN_KIND_DELAY).await;
    }
}

fn calls(
    task: &Task,
    fetched: Option<&Fetched>,
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
            Some(i) if i.of == 1 => format!("{}/0", task.root),
            items => id_of(&task.root, items),
        };
        // What is fetched is one task's.
        let payload = fetched.map_or(payload, Fetched::payload);
        let file = fetched.and_then(Fetched::file).map(Path::to_owned);
        Call { id, attempt: task.attempt, payload, file, trace: Some(trace), stop: stop.child_token() }
    });
    Ok(calls.collect())
}

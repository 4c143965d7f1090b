//! Decides whether a delivered task may run here. Most tasks are checked by what this worker knows; only a message that may
//! have been delivered before costs a query to the other workers. Not here: what becomes of a task that is turned away.

pub(crate) mod suspects;

use std::pin::pin;
use std::time::Duration;

use millpond::bus::consume::lease::{Admission, Lease, Suspicion};
use millpond::bus::consume::start_records::StartEntry;
use millpond::bus::error::BusError;
use millpond::failpoint;
use millpond::limits::STARTS_MAX;
use millpond::worker_record::built_in_hint;
use tokio::sync::OwnedSemaphorePermit;

use crate::attempt::{Admitted, Arguments, Disposition, TurnedAway};
use crate::cancellations::CancelledPart;
use crate::context::WorkerContext;
use crate::handlers::Handler;
use crate::run_loop::intake::RELEASE_UNSTARTED_AFTER;
use crate::run_loop::pools::Slot;

use suspects::SuspectTurn;

/// How long a task keeps its slot while the other workers are asked about it. Most answers come within a few milliseconds: a
/// slot that is given up is lost to a task that is pulled for it, perhaps for longer than this one may wait.
const SLOT_KEPT_FOR: Duration = Duration::from_millis(50);

/// Decides whether a task runs here, and gives up its slot while other workers are asked about it.
pub(crate) async fn admit(context: &WorkerContext, lease: Lease, slot: Slot) -> Result<Admitted, TurnedAway> {
    failpoint::hit("admit.delivered");
    // Before the check, so that a cancellation between the check and the start is noticed.
    let cancellations = context.cancellations.subscribe();
    let arguments = Arguments::of(&lease.task);
    match check(context, &lease, arguments.as_ref().ok()) {
        Err(disposition) => Err(TurnedAway { lease, arguments: arguments.ok(), disposition }),
        Ok(handler) => {
            let admitted = Admitted { lease, slot, handler, arguments, cancellations };
            // Boxed: most messages come for the first time.
            if admitted.lease.needs_ownership_query() {
                Box::pin(ask_others(context, admitted)).await
            } else {
                Ok(admitted)
            }
        }
    }
}

/// The checks by what this worker knows, in the order of docs/protocol.md.
fn check(context: &WorkerContext, lease: &Lease, arguments: Option<&Arguments>) -> Result<Handler, Disposition> {
    if lease.is_settled() {
        return Err(Disposition::Acknowledge);
    }
    if lease.was_cut_off() {
        return Err(Disposition::Abandon);
    }
    let task = &lease.task;
    if let Some(defect) = &task.defect {
        return Err(Disposition::DeadLetter(defect.reason, defect.message.clone()));
    }
    if task.expires_ms.is_some_and(|at| at < millpond::now_ms()) {
        let message = "it had not started when it expired (header Millpond-Expires)";
        return Err(Disposition::DeadLetter("expired", message.to_owned()));
    }
    match context.cancellations.of(lease) {
        // A batch that cannot be taken apart goes on, and `prepare` dead-letters it as one.
        Some(CancelledPart::Items(_)) if arguments.is_none() => {}
        Some(cancelled) => return Err(Disposition::Cancel(cancelled)),
        None => {}
    }
    let kind = &task.subject.kind;
    match context.handlers.get(kind) {
        None => Err(unknown_kind(context, lease)),
        Some(Handler::Pipe(_)) => {
            let message =
                format!("kind {kind} converses, and takes no tasks: `millpond call {kind} --pipe` talks to it");
            Err(Disposition::DeadLetter("needs_pipe", message))
        }
        Some(handler) => match timeout_too_long(context, lease, handler) {
            Some(message) => Err(Disposition::DeadLetter("timeout_too_long", message)),
            None => Ok(handler.clone()),
        },
    }
}

/// What is said of a task that asks for a longer timeout than its kind allows.
fn timeout_too_long(context: &WorkerContext, lease: &Lease, handler: &Handler) -> Option<String> {
    let max = handler.timeout_max(context.task_timeout_max);
    let asked = lease.task.timeout.filter(|asked| *asked > max)?;
    let (kind, asked, max) =
        (&lease.task.subject.kind, humantime::format_duration(asked), humantime::format_duration(max));
    Some(format!(
        "it asks for a timeout of {asked}, and kind {kind} allows {max} at the most (timeout_max in handlers.toml, --task-timeout-max of the worker)"
    ))
}

/// A task of an unknown kind waits for a worker that knows the kind; it is dead-lettered when there is none for long.
fn unknown_kind(context: &WorkerContext, lease: &Lease) -> Disposition {
    let task = &lease.task;
    let (queue, kind) = (&task.subject.queue, &task.subject.kind);
    if context.kinds.note_unknown(queue, kind) {
        tracing::warn!(%queue, %kind, "no worker for this kind here; its tasks wait for one that knows it");
    }
    let after = context.unknown_kind_after;
    let waited_ms = u128::try_from(millpond::now_ms().saturating_sub(task.published_ms)).unwrap_or(0);
    if waited_ms <= after.as_millis() || !context.kinds.is_unannounced(queue, kind) {
        return Disposition::Release(context.kinds.unknown_again_after());
    }
    let after = humantime::format_duration(after);
    let known: Vec<&str> = context.handlers.keys().map(String::as_str).collect();
    let known = known.join(", ");
    let message =
        format!("no live worker has known kind {kind} for {after}; this one knows {known}{}", built_in_hint(kind));
    Disposition::DeadLetter("unknown_kind", message)
}

/// Asks the other workers whether one of them holds the task, and counts the start. An answer that takes long takes time in
/// which another task can have the slot.
async fn ask_others(context: &WorkerContext, admitted: Admitted) -> Result<Admitted, TurnedAway> {
    let Admitted { mut lease, slot, handler, arguments, cancellations } = admitted;
    let mut place = Place::Slot(slot);
    let admission = {
        let mut asking = pin!(lease.admit());
        match tokio::time::timeout(SLOT_KEPT_FOR, &mut asking).await {
            Ok(admission) => admission,
            Err(_) => {
                place = place.give_up(context);
                asking.await
            }
        }
    };
    if let Some(disposition) = judge(admission, &lease, arguments.as_ref().ok()) {
        return Err(TurnedAway { lease, arguments: arguments.ok(), disposition });
    }
    let turn = match lease.suspicion() {
        None => None,
        Some(suspicion) if is_batch(&lease, arguments.as_ref().ok()) => {
            let disposition = split(suspicion.deaths);
            return Err(TurnedAway { lease, arguments: arguments.ok(), disposition });
        }
        Some(suspicion) => {
            place = place.give_up(context);
            match suspects_turn(context, &lease.task.subject.kind, suspicion).await {
                Some(turn) => Some(turn),
                None => {
                    let disposition = Disposition::Release(Duration::ZERO);
                    return Err(TurnedAway { lease, arguments: None, disposition });
                }
            }
        }
    };
    let slot = match place {
        Place::Slot(slot) => Some(slot),
        Place::NoSlot(_permit) => slot_again(context, &lease.task.subject.kind).await,
    };
    match slot.map(|slot| slot.with_turn(turn)) {
        Some(slot) => Ok(Admitted { lease, slot, handler, arguments, cancellations }),
        None => Err(TurnedAway { lease, arguments: None, disposition: Disposition::Release(Duration::ZERO) }),
    }
}

/// Waits for the turn of a suspect; none when that takes too long, or the worker drains.
async fn suspects_turn(context: &WorkerContext, kind: &str, suspicion: Suspicion) -> Option<SuspectTurn> {
    tokio::select! {
        biased;
        () = context.draining.cancelled() => None,
        turn = context.suspects.turn(kind, suspicion) => turn,
    }
}

/// Where a task waits for what others say of it.
enum Place {
    Slot(Slot),
    /// The permits bound how many leases are held without a slot, so that none is hoarded.
    NoSlot(OwnedSemaphorePermit),
}

impl Place {
    /// Gives up the slot, if a permit is free.
    fn give_up(self, context: &WorkerContext) -> Self {
        match context.slotless.clone().try_acquire_owned() {
            Ok(permit) => Self::NoSlot(permit),
            Err(_) => self,
        }
    }
}

/// What the other workers' answer means for the lease; none: it may run.
pub(crate) fn judge(
    admission: Result<Admission, BusError>,
    lease: &Lease,
    arguments: Option<&Arguments>,
) -> Option<Disposition> {
    match admission {
        Ok(Admission::Start) => None,
        Ok(Admission::Acknowledge) => Some(Disposition::Acknowledge),
        Ok(Admission::OwnedElsewhere) => Some(Disposition::LeaveToOwner),
        Ok(Admission::StartsExhausted(_) | Admission::WorkerLost(_)) if lease.was_cut_off() => {
            Some(Disposition::Abandon)
        }
        Ok(Admission::WorkerLost(starts)) => {
            let workers: Vec<&str> = starts.iter().map(|start| start.worker.as_str()).collect();
            let workers = workers.join(", ");
            let message = format!(
                "it was started on {workers}, which died or was cut off before its end; with Millpond-Attempts-Max: 1 it is not started again"
            );
            Some(Disposition::DeadLetter("worker_lost", message))
        }
        Ok(Admission::StartsExhausted(starts)) => Some(killer(lease, arguments, &starts)),
        Err(error) => {
            tracing::warn!(task_id = %lease.task.id(), %error, "cannot tell whether a redelivered task may start");
            Some(Disposition::Abandon)
        }
    }
}

/// Whether it has several items, which can be taken apart.
fn is_batch(lease: &Lease, arguments: Option<&Arguments>) -> bool {
    lease.task.items_len() > 1 && arguments.is_some()
}

/// Each item of a batch with so many starts may still be started once.
fn split(starts: usize) -> Disposition {
    Disposition::Split(starts.min(STARTS_MAX - 1))
}

/// For a task that seems to kill its workers.
fn killer(lease: &Lease, arguments: Option<&Arguments>, starts: &[StartEntry]) -> Disposition {
    if is_batch(lease, arguments) {
        return split(starts.len());
    }
    let workers: Vec<&str> = starts.iter().map(|start| start.worker.as_str()).collect();
    let (count, workers) = (lease.task.starts_before + starts.len(), workers.join(", "));
    let message = format!(
        "it was started again {count} times, and each time its worker died or was cut off (workers: {workers})"
    );
    Disposition::DeadLetter("kills_workers", message)
}

/// A slot for a task that was admitted without one; none when it would have to wait too long, or the worker drains.
async fn slot_again(context: &WorkerContext, kind: &str) -> Option<Slot> {
    tokio::select! {
        biased;
        () = context.draining.cancelled() => None,
        slot = tokio::time::timeout(RELEASE_UNSTARTED_AFTER, context.pools.slot(kind)) => slot.ok()?,
    }
}

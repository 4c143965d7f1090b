//! Ends a lease with the outcome of its attempt. All effects are stored first (`outbox/`), then the end is announced, then
//! the message is acknowledged; never in another order. Knows ends and outcomes, not handlers.

pub(crate) mod retry_policies;
pub(crate) mod turned_away;

use std::sync::Arc;
use std::time::{Duration, Instant};

use millpond::bus::consume::lease::Lease;
use millpond::bus::publish::PublishError;
use millpond::failpoint;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::attempt::Finished;
use crate::call_end::CallEnd;
use crate::cancellations::CancelledPart;
use crate::context::WorkerContext;
use crate::outbox::result_batches::SoleOutcome;
use crate::outbox::{Outbox, Settlement};

/// How long until what the server refuses for good is tried again.
const REFUSED_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How long to keep a lease whose effects the server refused, before it is abandoned.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Settles an attempt that ran.
pub(crate) async fn settle(context: &WorkerContext, finished: Finished) {
    failpoint::hit("settle.executed");
    let settling = Instant::now();
    // The slot of a large result is free again when this returns.
    let Finished { lease, arguments, ends, republished, time, spans, scope, slot: _slot } = finished;
    let (task, arguments) = (&lease.task, arguments.as_slice());
    let stats = context.stats.of(&task.subject.kind);
    let policy = context.policies.of(&task.subject.queue, &task.subject.kind);
    let cancelled = context.cancellations.of(&lease);
    let mut outbox = Outbox::of_attempt(task, &context.worker, &time, spans.attempt);
    for ((item, end), argument) in (task.items.map_or(0, |items| items.from)..).zip(ends).zip(arguments) {
        match end {
            CallEnd::Done(value) => outbox.done(value),
            CallEnd::Bytes(value) => outbox.done_bytes(item, value),
            _ if cancelled.as_ref().is_some_and(|cancelled| cancelled.covers(item)) => outbox.cancelled(item),
            CallEnd::Failed(failure) => outbox.failed(item, failure, argument.clone(), policy),
            CallEnd::NotRun if republished.is_some_and(|rest| item >= rest.from) => outbox.left_to_others(item),
            CallEnd::NotRun => outbox.not_run(item),
        }
    }
    outbox.republish_not_run(arguments);
    // A task that was cancelled whole has no next step, whatever of it is done by now.
    if cancelled != Some(CancelledPart::Whole) {
        outbox.continue_chain();
    }
    let tally = outbox.tally();
    if lease.is_ended_by_ack()
        && let Some(json) = outbox.sole_outcome()
    {
        failpoint::hit("settle.effects_stored");
        let (outcome, attempt) = (outbox.into_outcome(), spans.attempt);
        let sole = SoleOutcome { lease, outcome, tally, busy: time.busy, since: settling, attempt };
        return context.batches.settle(sole, json);
    }
    // Boxed, as all that is rare: each task moves its whole future, and most end above.
    let published = Box::pin(scope.around(publish(context, &mut outbox))).await;
    Box::pin(scope.around(acknowledge(context, lease, published))).await;
    stats.ran(time.busy, settling.elapsed(), spans.attempt);
    stats.count(tally);
}

/// Settles, for ever, tasks whose outcome is all that they lead to, where the server has refused that.
pub(crate) async fn settle_refused(context: Arc<WorkerContext>, mut refused: mpsc::Receiver<SoleOutcome>) {
    let mut settling = JoinSet::new();
    while let Some(sole) = refused.recv().await {
        while settling.try_join_next().is_some() {}
        let context = context.clone();
        settling.spawn(async move {
            settle_sole(&context, sole).await;
            context.batches.note_settled(1);
        });
    }
}

async fn settle_sole(context: &WorkerContext, sole: SoleOutcome) {
    let SoleOutcome { lease, outcome, tally, busy, since, attempt } = sole;
    let mut outbox = Outbox::of_outcome(&lease.task, &context.worker, attempt, outcome);
    let published = publish(context, &mut outbox).await;
    let stats = context.stats.of(&lease.task.subject.kind);
    acknowledge(context, lease, published).await;
    stats.ran(busy, since.elapsed(), attempt);
    stats.count(tally);
}

/// Publishes what an attempt leads to. What the server refuses for good is tried again from time to time while the lease is held:
/// the handler does not run again for it, and an operator who mends the server loses nothing.
async fn publish(context: &WorkerContext, outbox: &mut Outbox<'_>) -> Result<Settlement, PublishError> {
    loop {
        match outbox.publish(context).await {
            Err(error) if error.is_permanent() => Box::pin(hold(context, error)).await?,
            published => return published,
        }
    }
}

async fn hold(context: &WorkerContext, error: PublishError) -> Result<(), PublishError> {
    tracing::error!(%error, again_after = ?REFUSED_AGAIN_AFTER, "the server refuses how a task ended, however little is said; it is kept and tried again");
    tokio::select! {
        () = context.draining.cancelled() => Err(error),
        () = tokio::time::sleep(REFUSED_AGAIN_AFTER) => Ok(()),
    }
}

/// Ends a lease once its effects are stored. If they could not be stored, nothing is acknowledged: the lease is
/// abandoned, and the task comes again.
async fn acknowledge(context: &WorkerContext, lease: Lease, published: Result<Settlement, PublishError>) {
    let published = match published {
        Ok(published) => published,
        Err(error) => return Box::pin(abandon(lease, &error)).await,
    };
    // Published again as the same attempt, it may come back to this worker, which must not take it for settled.
    if !published.same_again {
        lease.mark_settled();
    }
    failpoint::hit("settle.outcome_stored");
    // Before the ack: if the worker dies in between, the end is announced twice rather than never.
    if let Some(subject) = &lease.task.reply_to {
        for notification in published.notifications {
            context.bus.publish_core(subject, notification).await;
        }
    }
    lease.complete().await;
}

async fn abandon(lease: Lease, error: &PublishError) {
    tracing::error!(task_id = %lease.task.id(), %error, "the outcome of a task cannot be stored; the task will run again");
    tokio::time::sleep(REFUSED_PAUSE).await;
    lease.abandon().await;
}

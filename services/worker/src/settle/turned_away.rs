//! Ends a lease whose task does not run, as its disposition says.

use std::time::Duration;

use millpond::bus::consume::lease::Lease;

use crate::attempt::{Arguments, Disposition, TurnedAway};
use crate::context::WorkerContext;
use crate::outbox::Outbox;

use super::{acknowledge, publish};

/// When the items of a batch that kills workers may start.
const SPLIT_DELAY: Duration = Duration::from_secs(1);

/// Ends the lease of a task that does not run.
pub(crate) async fn turn_away(context: &WorkerContext, turned_away: TurnedAway) {
    let TurnedAway { lease, arguments, disposition } = turned_away;
    let arguments = arguments.as_ref().map(Arguments::as_slice);
    match disposition {
        Disposition::Acknowledge => lease.complete().await,
        Disposition::LeaveToOwner => lease.leave_to_owner(),
        Disposition::Abandon => lease.abandon().await,
        Disposition::Release(delay) => lease.release(delay).await,
        Disposition::DeadLetter(reason, message) => {
            settle_unrun(context, lease, |outbox| outbox.dead_letter_all(reason, message, arguments)).await;
        }
        Disposition::Cancel(cancelled) => {
            let covers = |item| cancelled.covers(item);
            settle_unrun(context, lease, |outbox| outbox.cancel(covers, arguments.unwrap_or_default())).await;
        }
        // The items wait for their time at the server: this message is acknowledged before one can kill this worker too,
        // and a second split replaces the items of the first instead of publishing more and more.
        Disposition::Split(starts) => {
            let arguments = arguments.unwrap_or_default();
            settle_unrun(context, lease, |outbox| outbox.split(arguments, starts, SPLIT_DELAY)).await;
        }
    }
}

async fn settle_unrun(context: &WorkerContext, lease: Lease, fill: impl FnOnce(&mut Outbox<'_>)) {
    let stats = context.stats.of(&lease.task.subject.kind);
    let mut outbox = Outbox::without_run(&lease.task, &context.worker);
    fill(&mut outbox);
    let tally = outbox.tally();
    let published = publish(context, &mut outbox).await;
    acknowledge(context, lease, published).await;
    stats.count(tally);
}

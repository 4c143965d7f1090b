//! Has what the NATS client cannot read taken out of the queues: when a worker was connected again, and when something was given
//! out again; and what would never end where it lies. What is found becomes a dead letter.

use std::sync::Arc;
use std::time::Duration;

use millpond::bus::Bus;
use millpond::bus::error::BusError;
use millpond::bus::operate::misaddressed::MisaddressedSearch;
use millpond::bus::operate::poison::{PoisonError, PoisonSearch, Reconnects};
use millpond::bus::operate::queues::QueueState;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long the reconciler's poll, which shows whether something was given out again, is waited for before this polls by itself.
const CHECK_EVERY: Duration = Duration::from_secs(6);
/// Between two searches, at least: many workers may come back at once.
const SEARCH_EVERY_MIN: Duration = Duration::from_millis(300);

/// Takes the queues as the reconciler polls them every few seconds.
pub(crate) type QueuePolls = watch::Sender<Arc<Vec<QueueState>>>;

/// Before anything is followed: a record that nobody can read may have ended the process before this one. It takes as long as there
/// are records, and no longer than this: the search goes on with what is left.
const FIRST_SWEEP_WITHIN: Duration = Duration::from_secs(5);

/// Looks at what this collector is about to read, and then searches in `background`, in what is polled.
///
/// # Errors
/// When the connection is closed.
pub(crate) async fn start(bus: &Bus, background: &mut JoinSet<()>) -> Result<QueuePolls, BusError> {
    let (polls, polled) = watch::channel(Arc::default());
    let reconnects = bus.reconnects().await?;
    let mut search = PoisonSearch::default();
    match tokio::time::timeout(FIRST_SWEEP_WITHIN, search.sweep(bus)).await {
        Ok(Ok(found)) => count(found),
        Ok(Err(error)) => tracing::warn!(%error, "cannot look for records that cannot be read, will try again"),
        Err(_) => {}
    }
    background.spawn(follow(bus.clone(), search, reconnects, polled));
    Ok(polls)
}

/// Searches for ever.
async fn follow(
    bus: Bus,
    mut search: PoisonSearch,
    mut reconnects: Reconnects,
    mut polled: watch::Receiver<Arc<Vec<QueueState>>>,
) {
    // A loss of the own connection may have come from what this collector reads.
    let (mut connection, mut of_all, mut lost, mut failing) = (bus.connection(), true, false, false);
    connection.mark_unchanged();
    // What the reconciler has just polled; none where nobody has.
    let mut queues: Option<Arc<Vec<QueueState>>> = None;
    let mut misaddressed = MisaddressedSearch::default();
    loop {
        match look(&bus, (&mut search, &mut misaddressed), queues.take(), of_all, lost).await {
            Ok(0) => (of_all, lost, failing) = (false, false, false),
            // There may be more behind them.
            Ok(found) => {
                count(found);
                (of_all, failing) = (true, false);
            }
            // Logged once, until it goes well again.
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "cannot look for messages that cannot be read, will try again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(SEARCH_EVERY_MIN).await;
        if of_all {
            continue;
        }
        of_all = tokio::select! {
            () = reconnects.next() => true,
            Ok(()) = connection.changed() => {
                lost = true;
                true
            }
            Ok(()) = polled.changed() => {
                queues = Some(polled.borrow_and_update().clone());
                false
            }
            () = tokio::time::sleep(CHECK_EVERY) => false,
        };
    }
}

async fn look(
    bus: &Bus,
    (search, misaddressed): (&mut PoisonSearch, &mut MisaddressedSearch),
    queues: Option<Arc<Vec<QueueState>>>,
    of_all: bool,
    lost: bool,
) -> Result<usize, PoisonError> {
    let swept = if lost { search.sweep(bus).await? } else { 0 };
    let queues = match queues {
        Some(queues) => queues,
        None => Arc::new(bus.standing().await?.listed),
    };
    let found = search.search(bus, &queues, of_all).await?;
    Ok(swept + found + misaddressed.search(bus, &queues).await?)
}

fn count(found: usize) {
    metrics::counter!("millpond_poison_messages_total").increment(found as u64);
}

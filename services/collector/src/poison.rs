//! Has what the NATS client cannot read taken out of the queues: when a worker was connected again, and when something was given
//! out again; and what would never end where it lies. What is found becomes a dead letter.

use std::time::Duration;

use millpond::bus::Bus;
use millpond::bus::error::BusError;
use millpond::bus::operate::misaddressed::MisaddressedSearch;
use millpond::bus::operate::poison::{PoisonError, PoisonSearch, Reconnects};
use tokio::task::JoinSet;

/// How often it is checked whether something was given out again.
const CHECK_EVERY: Duration = Duration::from_secs(3);
/// Between two searches, at least: many workers may come back at once.
const SEARCH_EVERY_MIN: Duration = Duration::from_millis(300);

/// Before anything is followed: a record that nobody can read may have ended the process before this one. It takes as long as there
/// are records, and no longer than this: the search goes on with what is left.
const FIRST_SWEEP_WITHIN: Duration = Duration::from_secs(5);

/// Looks at what this collector is about to read, and then searches in `background`.
///
/// # Errors
/// When the connection is closed.
pub(crate) async fn start(bus: &Bus, background: &mut JoinSet<()>) -> Result<(), BusError> {
    let reconnects = bus.reconnects().await?;
    let mut search = PoisonSearch::default();
    match tokio::time::timeout(FIRST_SWEEP_WITHIN, search.sweep(bus)).await {
        Ok(Ok(found)) => count(found),
        Ok(Err(error)) => tracing::warn!(%error, "cannot look for records that cannot be read, will try again"),
        Err(_) => {}
    }
    background.spawn(follow(bus.clone(), search, reconnects));
    Ok(())
}

/// Searches for ever.
async fn follow(bus: Bus, mut search: PoisonSearch, mut reconnects: Reconnects) {
    // A loss of the own connection may have come from what this collector reads.
    let (mut connection, mut of_all, mut lost, mut failing) = (bus.connection(), true, false, false);
    connection.mark_unchanged();
    let mut misaddressed = MisaddressedSearch::default();
    loop {
        match look(&bus, (&mut search, &mut misaddressed), of_all, lost).await {
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
            () = tokio::time::sleep(CHECK_EVERY - SEARCH_EVERY_MIN) => false,
        };
    }
}

async fn look(
    bus: &Bus,
    (search, misaddressed): (&mut PoisonSearch, &mut MisaddressedSearch),
    of_all: bool,
    lost: bool,
) -> Result<usize, PoisonError> {
    let swept = if lost { search.sweep(bus).await? } else { 0 };
    let queues = bus.standing().await?;
    let found = search.search(bus, &queues, of_all).await?;
    Ok(swept + found + misaddressed.search(bus, &queues).await?)
}

fn count(found: usize) {
    metrics::counter!("millpond_poison_messages_total").increment(found as u64);
}

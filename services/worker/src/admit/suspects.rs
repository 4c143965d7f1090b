//! Tasks whose workers have died twice: one of them may be the reason, the others were its neighbours. A worker runs one of
//! them at a time, so that the next death tells which one it was.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millpond::bus::consume::lease::Suspicion;
use tokio::sync::oneshot;

/// How long the first suspect waits for others, so that there is a choice: they are delivered again together.
const GATHER_FOR: Duration = Duration::from_millis(300);
/// How long a suspect waits for its turn before it is released: another worker may have nothing to do.
const TURN_WITHIN: Duration = Duration::from_secs(5);
/// How long the least suspicious ones go first, so that those that take no time are out of danger. Then comes the most
/// suspicious one, so that the guilty one is found before many others have waited.
const LEAST_FIRST_FOR: Duration = Duration::from_secs(2);

/// The suspects of a worker. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Suspects {
    state: Arc<Mutex<SuspectQueue>>,
}

#[derive(Default)]
struct SuspectQueue {
    /// Since when there are suspects.
    since: Option<Instant>,
    waiting: Vec<Waiting>,
}

/// A suspect that waits for its turn.
struct Waiting {
    kind: String,
    suspicion: Suspicion,
    due: oneshot::Sender<SuspectTurn>,
}

/// The right to run as the only suspect of a worker. The next one has its turn when this is dropped.
pub(crate) struct SuspectTurn {
    suspects: Suspects,
}

impl SuspectQueue {
    /// Takes out the one that is next. A task of a kind of which another one has killed more workers is as suspicious as that.
    fn take_next(&mut self) -> Option<Waiting> {
        let least = self.since.is_some_and(|since| since.elapsed() < LEAST_FIRST_FOR);
        let of_kind = |kind: &str| {
            let same = self.waiting.iter().filter(|other| other.kind == kind);
            same.map(|other| other.suspicion.deaths).max()
        };
        let keys = self.waiting.iter().enumerate().map(|(at, one)| ((of_kind(&one.kind), one.suspicion), at));
        let next = if least { keys.min() } else { keys.max() };
        next.map(|(_, at)| self.waiting.swap_remove(at))
    }
}

impl Suspects {
    fn state(&self) -> MutexGuard<'_, SuspectQueue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until this suspect may run; none when that takes too long.
    pub(crate) async fn turn(&self, kind: &str, suspicion: Suspicion) -> Option<SuspectTurn> {
        let (due, when_due) = oneshot::channel();
        let is_first = {
            let mut state = self.state();
            state.waiting.push(Waiting { kind: kind.to_owned(), suspicion, due });
            let is_first = state.since.is_none();
            state.since.get_or_insert_with(Instant::now);
            is_first
        };
        if is_first {
            // However this ends, one of those that have come by then has the turn.
            let first = SuspectTurn { suspects: self.clone() };
            tokio::time::sleep(GATHER_FOR).await;
            drop(first);
        }
        tokio::time::timeout(TURN_WITHIN, when_due).await.ok()?.ok()
    }

    /// The turn of one has ended.
    fn next(&self) {
        loop {
            let next = {
                let mut state = self.state();
                let next = state.take_next();
                if next.is_none() {
                    state.since = None;
                }
                next
            };
            let Some(Waiting { due, .. }) = next else { return };
            if due.is_closed() {
                // It was released.
                continue;
            }
            // A turn that comes too late for its suspect is dropped, and passed on by that.
            drop(due.send(SuspectTurn { suspects: self.clone() }));
            return;
        }
    }
}

impl Drop for SuspectTurn {
    fn drop(&mut self) {
        self.suspects.next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspicion(deaths: usize, number: u64) -> Suspicion {
        Suspicion { deaths, last_ms: 1, number }
    }

    #[tokio::test]
    async fn one_at_a_time_and_the_most_suspicious_one_soon() {
        let suspects = Suspects::default();
        let mut waiting = tokio::task::JoinSet::new();
        for (kind, deaths, number) in [("bad", 1, 0), ("good", 1, 1), ("bad", 2, 2), ("good", 1, 3)] {
            let suspects = suspects.clone();
            waiting.spawn(async move { (number, suspects.turn(kind, suspicion(deaths, number)).await) });
        }
        let (number, turn) = waiting.join_next().await.unwrap().unwrap();
        assert_eq!(
            (number, turn.is_some()),
            (1, true),
            "the least suspicious one first, of a kind that has killed least"
        );
        tokio::task::yield_now().await;
        assert!(waiting.try_join_next().is_none(), "one runs");
        suspects.state().since = Instant::now().checked_sub(LEAST_FIRST_FOR);
        drop(turn);
        for (expected, why) in [(2, "then the most suspicious one"), (3, "then the one that was started last")] {
            let (number, turn) = waiting.join_next().await.unwrap().unwrap();
            assert_eq!((number, turn.is_some()), (expected, true), "{why}");
        }
    }
}

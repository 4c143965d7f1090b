//! What this worker has done since it started, by kind: for its record, and for its metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use millpond::telemetry::{TraceContext, TracedHistogram};
use millpond::worker_record::KindCount;

/// How many items of a message ended how.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    /// Of those that failed, the ones that are tried again, and the ones that became dead letters.
    pub(crate) retried: u64,
    pub(crate) dead: u64,
}

/// Counts of all kinds.
pub(crate) struct Stats {
    /// The kinds that this worker knows.
    by_kind: BTreeMap<String, KindStats>,
    /// All others together: anybody may publish under any name.
    unknown: KindStats,
}

/// Counts of one kind, and how long its messages take.
#[derive(Default)]
pub(crate) struct KindStats {
    done: AtomicU64,
    failed: AtomicU64,
    retried: AtomicU64,
    dead: AtomicU64,
    /// How fast its tasks end.
    pub(crate) pace: Pace,
    /// None of kinds that this worker does not know.
    times: Option<Times>,
}

/// A kind whose tasks end within less on average is fast.
const FAST: Duration = Duration::from_micros(50);
/// What one task counts in the average at the most: a single slow one may be an accident, two in a row are none.
const COUNTED_MAX: Duration = Duration::from_micros(400);
/// Polls that are measured after one that took long.
const WATCHED_POLLS: u64 = 256;
/// How long a kind is not fast after a poll that computed for long.
const SLOW_FOR: Duration = Duration::from_secs(60);

/// How fast the handler of a kind ends with one task.
#[derive(Default)]
pub(crate) struct Pace {
    /// In nanoseconds; 0 when unknown.
    mean_ns: AtomicU64,
    slow_until: Mutex<Option<Instant>>,
    /// So many of its next polls are measured.
    watched: AtomicU64,
}

impl Pace {
    /// Whether its tasks end within microseconds, as far as is known.
    pub(crate) fn is_fast(&self) -> bool {
        let mean = self.mean_ns.load(Ordering::Relaxed);
        let is_slow = || self.slow_until().is_some_and(|until| Instant::now() < until);
        mean > 0 && u128::from(mean) < FAST.as_nanos() && !is_slow()
    }

    fn slow_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.slow_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how long a task took.
    pub(crate) fn note(&self, busy: Duration) {
        let took = u64::try_from(busy.min(COUNTED_MAX).as_nanos()).unwrap_or(u64::MAX).max(1);
        let mean = self.mean_ns.load(Ordering::Relaxed);
        let after = if mean == 0 { took } else { (mean * 7 + took) / 8 };
        self.mean_ns.store(after.max(1), Ordering::Relaxed);
    }

    /// Measures its next polls: one of them took long.
    pub(crate) fn watch(&self) {
        self.watched.store(WATCHED_POLLS, Ordering::Relaxed);
    }

    /// Whether the next poll is to be measured.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// Notes that the handler computed for long in one poll.
    pub(crate) fn note_slow_poll(&self) {
        *self.slow_until() = Some(Instant::now() + SLOW_FOR);
    }
}

struct Times {
    wait: TracedHistogram,
    run: TracedHistogram,
    settle: TracedHistogram,
}

impl Times {
    fn of(kind: &str) -> Self {
        Self {
            wait: TracedHistogram::new("millpond_message_wait_seconds", "kind", kind),
            run: TracedHistogram::new("millpond_message_run_seconds", "kind", kind),
            settle: TracedHistogram::new("millpond_message_settle_seconds", "kind", kind),
        }
    }
}

impl KindStats {
    /// Counts items that ended, and were settled.
    pub(crate) fn count(&self, tally: Tally) {
        self.done.fetch_add(tally.done, Ordering::Relaxed);
        self.failed.fetch_add(tally.failed, Ordering::Relaxed);
        self.retried.fetch_add(tally.retried, Ordering::Relaxed);
        self.dead.fetch_add(tally.dead, Ordering::Relaxed);
    }

    /// Notes that a message which waited since then starts.
    pub(crate) fn starts(&self, waited_since: SystemTime, now: SystemTime, attempt: TraceContext) {
        if let Some(times) = &self.times {
            times.wait.record(now.duration_since(waited_since).unwrap_or_default(), attempt);
        }
    }

    /// Notes how long a message's handler ran, and how long it took to store what came of it.
    pub(crate) fn ran(&self, took: Duration, settled: Duration, attempt: TraceContext) {
        if let Some(times) = &self.times {
            times.run.record(took, attempt);
            times.settle.record(settled, attempt);
        }
    }

    fn counted(&self) -> KindCount {
        KindCount { done: self.done.load(Ordering::Relaxed), failed: self.failed.load(Ordering::Relaxed) }
    }
}

impl Stats {
    pub(crate) fn new<'a>(kinds: impl Iterator<Item = &'a String>) -> Self {
        let of = |kind: &String| (kind.clone(), KindStats { times: Some(Times::of(kind)), ..KindStats::default() });
        Self { by_kind: kinds.map(of).collect(), unknown: KindStats::default() }
    }

    /// Those of a kind; of a kind that this worker does not know, those of all such kinds.
    pub(crate) fn of(&self, kind: &str) -> &KindStats {
        self.by_kind.get(kind).unwrap_or(&self.unknown)
    }

    /// Done and failed by kind, those with any.
    pub(crate) fn kinds(&self) -> BTreeMap<String, KindCount> {
        let counted = self.by_kind.iter().map(|(kind, stats)| (kind.clone(), stats.counted()));
        counted.filter(|(_, count)| *count != KindCount::default()).collect()
    }

    /// Attempts that are tried again, and dead letters, by kind.
    pub(crate) fn consequences(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        let of = |stats: &KindStats| (stats.retried.load(Ordering::Relaxed), stats.dead.load(Ordering::Relaxed));
        let known = self.by_kind.iter().map(move |(kind, stats)| (kind.as_str(), of(stats)));
        known.chain([("", of(&self.unknown))]).map(|(kind, (retried, dead))| (kind, retried, dead))
    }

    /// Done and failed, all kinds together.
    pub(crate) fn total(&self) -> KindCount {
        self.by_kind.values().chain([&self.unknown]).fold(KindCount::default(), |mut total, stats| {
            let count = stats.counted();
            total.done += count.done;
            total.failed += count.failed;
            total
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_fast_while_its_tasks_take_microseconds() {
        let pace = Pace::default();
        assert!(!pace.is_fast(), "nothing is known of it");
        pace.note(Duration::from_micros(5));
        assert!(pace.is_fast());
        pace.note(Duration::from_secs(1));
        pace.note(Duration::from_secs(1));
        assert!(!pace.is_fast(), "two in a row are no accident");
        (0..20).for_each(|_| pace.note(Duration::from_micros(5)));
        assert!(pace.is_fast());
        pace.note_slow_poll();
        assert!(!pace.is_fast() && !pace.is_fast(), "it has held up the loop");
    }

    #[test]
    fn names_that_others_make_up_are_counted_together_only() {
        let stats = Stats::new(["square".to_owned()].iter());
        for kind in ["square", "made_up_1", "made_up_2"] {
            stats.of(kind).count(Tally { done: 1, failed: 2, retried: 1, dead: 1 });
        }
        assert_eq!(stats.kinds().into_keys().collect::<Vec<_>>(), ["square"]);
        assert_eq!(stats.total(), KindCount { done: 3, failed: 6 });
        assert_eq!(stats.consequences().collect::<Vec<_>>(), [("square", 1, 1), ("", 2, 2)]);
    }
}

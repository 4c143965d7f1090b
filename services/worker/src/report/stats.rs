//! What this worker has done since it started, by kind: for its record, and for its metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::{Histogram, histogram};
use millpond::worker_record::KindCount;

use crate::settle::Tally;

/// Counts. Cheap: one short lock for each message.
pub(crate) struct Stats {
    counts: Mutex<Counts>,
    /// Of the kinds that this worker knows.
    times: BTreeMap<String, Times>,
}

/// How long the messages of a kind take.
struct Times {
    wait: Histogram,
    run: Histogram,
    settle: Histogram,
}

impl Times {
    fn of(kind: &str) -> Self {
        let kind = || [metrics::Label::new("kind", kind.to_owned())].to_vec();
        Self {
            wait: histogram!("millpond_message_wait_seconds", kind()),
            run: histogram!("millpond_message_run_seconds", kind()),
            settle: histogram!("millpond_message_settle_seconds", kind()),
        }
    }
}

struct Counts {
    /// The kinds that this worker knows, and no others: anybody may publish under any name.
    by_kind: BTreeMap<String, KindCount>,
    total: KindCount,
}

impl Stats {
    pub(crate) fn new<'a>(kinds: impl Iterator<Item = &'a String>) -> Self {
        let kinds: Vec<&String> = kinds.collect();
        let by_kind = kinds.iter().map(|kind| ((*kind).clone(), KindCount::default())).collect();
        let times = kinds.iter().map(|kind| ((*kind).clone(), Times::of(kind))).collect();
        Self { counts: Mutex::new(Counts { by_kind, total: KindCount::default() }), times }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Items that ended, and were settled.
    pub(crate) fn count(&self, kind: &str, tally: Tally) {
        let mut counts = self.counts();
        let Counts { by_kind, total } = &mut *counts;
        for count in by_kind.get_mut(kind).into_iter().chain([total]) {
            count.done += tally.done;
            count.failed += tally.failed;
        }
    }

    /// A message that waited since then starts.
    pub(crate) fn starts(&self, kind: &str, waited_since: SystemTime, now: SystemTime) {
        if let Some(times) = self.times.get(kind) {
            times.wait.record(now.duration_since(waited_since).unwrap_or_default().as_secs_f64());
        }
    }

    /// A message's handler ran for this long, and it took so long to store what came of it.
    pub(crate) fn ran(&self, kind: &str, took: Duration, settled: Duration) {
        if let Some(times) = self.times.get(kind) {
            times.run.record(took.as_secs_f64());
            times.settle.record(settled.as_secs_f64());
        }
    }

    /// Done and failed by kind, those with any.
    pub(crate) fn kinds(&self) -> BTreeMap<String, KindCount> {
        let counts = self.counts();
        let any = counts.by_kind.iter().filter(|(_, count)| **count != KindCount::default());
        any.map(|(kind, count)| (kind.clone(), *count)).collect()
    }

    /// Done and failed, all kinds together.
    pub(crate) fn total(&self) -> KindCount {
        self.counts().total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_others_make_up_are_counted_together_only() {
        let stats = Stats::new(["square".to_owned()].iter());
        for kind in ["square", "made_up_1", "made_up_2"] {
            stats.count(kind, Tally { done: 1, failed: 2 });
        }
        assert_eq!(stats.kinds().into_keys().collect::<Vec<_>>(), ["square"]);
        assert_eq!(stats.total(), KindCount { done: 3, failed: 6 });
    }
}

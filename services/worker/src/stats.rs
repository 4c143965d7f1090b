//! What this worker has done since it started, by kind: for its record, and for its metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millpond::worker_record::KindCount;

use crate::settle::Tally;

/// Counts. Cheap: one short lock for each message.
pub(crate) struct Stats {
    counts: Mutex<Counts>,
}

struct Counts {
    /// The kinds that this worker knows, and no others: anybody may publish under any name.
    by_kind: BTreeMap<String, KindCount>,
    total: KindCount,
}

impl Stats {
    pub(crate) fn new<'a>(kinds: impl Iterator<Item = &'a String>) -> Self {
        let by_kind = kinds.map(|kind| (kind.clone(), KindCount::default())).collect();
        Self { counts: Mutex::new(Counts { by_kind, total: KindCount::default() }) }
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

    /// A message's handler ran for this long.
    pub(crate) fn ran(&self, kind: &str, took: Duration) {
        metrics::histogram!("millpond_message_run_seconds", "kind" => kind.to_owned()).record(took.as_secs_f64());
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

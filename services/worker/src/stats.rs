//! What this worker has done since it started, by kind: for its record, and for its metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millpond::worker_record::KindCount;

use crate::settle::Tally;

/// Counts. Cheap: one short lock for each message.
#[derive(Default)]
pub(crate) struct Stats {
    by_kind: Mutex<BTreeMap<String, KindCount>>,
}

impl Stats {
    fn by_kind(&self) -> MutexGuard<'_, BTreeMap<String, KindCount>> {
        self.by_kind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Items that ended, and were settled.
    pub(crate) fn count(&self, kind: &str, tally: Tally) {
        let mut by_kind = self.by_kind();
        // Not `entry`: it would need the name anew for each message.
        if !by_kind.contains_key(kind) {
            by_kind.insert(kind.to_owned(), KindCount::default());
        }
        if let Some(count) = by_kind.get_mut(kind) {
            count.done += tally.done;
            count.failed += tally.failed;
        }
    }

    /// A message's handler ran for this long.
    pub(crate) fn ran(&self, kind: &str, took: Duration) {
        metrics::histogram!("millpond_message_run_seconds", "kind" => kind.to_owned()).record(took.as_secs_f64());
    }

    /// Done and failed by kind.
    pub(crate) fn kinds(&self) -> BTreeMap<String, KindCount> {
        self.by_kind().clone()
    }

    /// Done and failed, all kinds together.
    pub(crate) fn total(&self) -> KindCount {
        self.by_kind().values().fold(KindCount::default(), |sum, count| KindCount {
            done: sum.done + count.done,
            failed: sum.failed + count.failed,
        })
    }
}

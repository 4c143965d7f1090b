//! What is wrong now, for whoever asks: each problem is logged once when it appears and once when it goes.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Serialize;
use utoipa::ToSchema;

/// Problems of one kind that are listed at the most; the metric counts all.
const LISTED_MAX: usize = 100;
/// How long what was mended is told, in milliseconds.
const MENDED_SHOWN_MS: i64 = 600_000;

/// What a problem is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    NoWorker,
    Paused,
    OrphanedLease,
    StuckConsumer,
    StalledJob,
    LostTask,
    WorkerLost,
    Store,
}

impl Kind {
    pub(super) const ALL: [Self; 8] = [
        Self::NoWorker,
        Self::Paused,
        Self::OrphanedLease,
        Self::StuckConsumer,
        Self::StalledJob,
        Self::LostTask,
        Self::WorkerLost,
        Self::Store,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NoWorker => "no_worker",
            Self::Paused => "paused",
            Self::OrphanedLease => "orphaned_lease",
            Self::StuckConsumer => "stuck_consumer",
            Self::StalledJob => "stalled_job",
            Self::LostTask => "lost_task",
            Self::WorkerLost => "worker_lost",
            Self::Store => "store",
        }
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) kind: Kind,
    /// A queue, a worker, a job.
    pub(super) what: String,
    /// What it is, and what to do.
    pub(super) sentence: String,
    /// Since when, Unix time in milliseconds.
    pub(super) since_ms: i64,
}

/// A problem as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// `no_worker`, `paused`, `orphaned_lease`, `stuck_consumer`, `worker_lost`, `stalled_job`, `lost_task` or `store`.
    #[schema(value_type = String)]
    kind: &'static str,
    /// A queue, a worker, a job.
    what: String,
    /// What it is, and what to do.
    sentence: String,
    /// Since when, Unix milliseconds.
    since_ms: i64,
    /// It is mended, and only told.
    mended: bool,
}

struct Shown {
    found: Found,
    /// It is mended: told until then, Unix time in milliseconds.
    mended_until_ms: Option<i64>,
}

/// What is wrong now. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Problems {
    shown: Arc<RwLock<BTreeMap<(Kind, String), Shown>>>,
}

impl Problems {
    /// All of them, by kind, then by what they are about; a bounded number of each kind.
    pub(crate) fn rows(&self) -> Vec<Problem> {
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        let mut listed: BTreeMap<Kind, usize> = BTreeMap::new();
        let mut rows = Vec::new();
        for Shown { found, mended_until_ms } in shown.values() {
            let count = listed.entry(found.kind).or_default();
            *count += 1;
            if *count <= LISTED_MAX {
                rows.push(Problem {
                    kind: found.kind.name(),
                    what: found.what.clone(),
                    sentence: found.sentence.clone(),
                    since_ms: found.since_ms,
                    mended: mended_until_ms.is_some(),
                });
            }
        }
        rows
    }

    /// What a look at these kinds has found, instead of what was known of them.
    pub(super) fn replace(&self, kinds: &[Kind], found: Vec<Found>) {
        let now = millpond::now_ms();
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        let mut found: BTreeMap<(Kind, String), Found> =
            found.into_iter().map(|one| ((one.kind, one.what.clone()), one)).collect();
        shown.retain(|key, before| match (found.remove(key), before.mended_until_ms) {
            (Some(again), None) => {
                before.found = Found { since_ms: before.found.since_ms.min(again.since_ms), ..again };
                true
            }
            // What comes again after it was mended is new.
            (Some(again), Some(_)) => {
                appeared(&again);
                *before = Shown { found: again, mended_until_ms: None };
                true
            }
            (None, Some(until_ms)) => now < until_ms,
            (None, None) if kinds.contains(&key.0) => {
                let Found { kind, what, .. } = &before.found;
                tracing::info!(problem = kind.name(), what, "a problem is gone");
                false
            }
            (None, None) => true,
        });
        for (key, one) in found {
            appeared(&one);
            shown.insert(key, Shown { found: one, mended_until_ms: None });
        }
        for kind in Kind::ALL {
            let count = shown.iter().filter(|((of, _), one)| *of == kind && one.mended_until_ms.is_none()).count();
            metrics::gauge!("millpond_problems", "kind" => kind.name()).set(u32::try_from(count).unwrap_or(u32::MAX));
        }
    }

    /// Something was wrong and is not any more: it is told for a while.
    pub(super) fn mended(&self, kind: Kind, what: &str, sentence: String) {
        let now = millpond::now_ms();
        tracing::info!(problem = kind.name(), what, sentence, "mended");
        let found = Found { kind, what: what.to_owned(), sentence, since_ms: now };
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        shown.insert((kind, what.to_owned()), Shown { found, mended_until_ms: Some(now + MENDED_SHOWN_MS) });
    }
}

fn appeared(found: &Found) {
    tracing::warn!(problem = found.kind.name(), what = found.what, sentence = found.sentence, "a problem");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kind: Kind, what: &str, since_ms: i64) -> Found {
        Found { kind, what: what.into(), sentence: format!("since {since_ms}"), since_ms }
    }

    fn whats(problems: &Problems) -> Vec<(String, i64, bool)> {
        let rows = problems.rows();
        let of = |row: &Problem| (row.what.clone(), row.since_ms, row.mended);
        rows.iter().map(of).collect()
    }

    #[test]
    fn what_is_found_again_keeps_its_time_and_what_is_not_goes() {
        let problems = Problems::default();
        problems.replace(&[Kind::Paused], vec![found(Kind::Paused, "a", 5), found(Kind::Paused, "b", 6)]);
        problems.replace(&[Kind::StalledJob], vec![found(Kind::StalledJob, "j", 7)]);
        problems.replace(&[Kind::Paused], vec![found(Kind::Paused, "b", 9)]);
        assert_eq!(whats(&problems), [("b".into(), 6, false), ("j".into(), 7, false)]);
        problems.mended(Kind::LostTask, "q", "some".into());
        problems.replace(&Kind::ALL, Vec::new());
        assert_eq!(whats(&problems).len(), 1);
        assert!(problems.rows()[0].mended);
        problems.replace(&[Kind::LostTask], vec![found(Kind::LostTask, "q", 1)]);
        assert_eq!(whats(&problems), [("q".into(), 1, false)]);
        let many = (0..200).map(|n| found(Kind::StalledJob, &format!("{n:03}"), 1)).collect();
        problems.replace(&[Kind::StalledJob], many);
        assert_eq!(problems.rows().len(), LISTED_MAX + 1);
    }
}

//! The problems of now: each is logged once when it appears and once when it is gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use millpond_api::overview::{Problem, ProblemKind};

/// Problems of one kind that are listed at the most; the metric counts all.
const LISTED_MAX: usize = 100;
/// How long a problem that was mended stays listed, in milliseconds.
const MENDED_SHOWN_MS: i64 = 600_000;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundProblem {
    pub(super) kind: ProblemKind,
    /// The name of a queue, a worker or a job.
    pub(super) what: String,
    /// What is wrong, and what to do.
    pub(super) sentence: String,
    /// Since when, Unix time in milliseconds.
    pub(super) since_ms: i64,
}

/// A finding that is shown.
struct ShownFinding {
    found: FoundProblem,
    /// When it was mended: how long it stays listed, Unix time in milliseconds.
    mended_until_ms: Option<i64>,
}

/// What is wrong now. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Problems {
    shown: Arc<RwLock<BTreeMap<(ProblemKind, String), ShownFinding>>>,
    /// When a stream stood still last, or NATS was away.
    standstill: Arc<Mutex<Option<Instant>>>,
}

impl Problems {
    /// All of them, by kind, then by what they are about; a bounded number of each kind.
    pub(crate) fn rows(&self) -> Vec<Problem> {
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        let mut listed: BTreeMap<ProblemKind, usize> = BTreeMap::new();
        let mut rows = Vec::new();
        for ShownFinding { found, mended_until_ms } in shown.values() {
            let count = listed.entry(found.kind).or_default();
            *count += 1;
            if *count <= LISTED_MAX {
                rows.push(Problem {
                    kind: found.kind,
                    what: found.what.clone(),
                    sentence: found.sentence.clone(),
                    since_ms: found.since_ms,
                    mended: mended_until_ms.is_some(),
                });
            }
        }
        rows
    }

    /// A stream stands still, or NATS is away: who lives cannot write so.
    pub(super) fn note_standstill(&self) {
        *self.standstill.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(super) fn standstill_within(&self, within: Duration) -> bool {
        self.standstill.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|last| last.elapsed() < within)
    }

    /// Replaces what was known of these kinds by what was found now.
    pub(super) fn replace(&self, kinds: &[ProblemKind], found: Vec<FoundProblem>) {
        let now = millpond::now_ms();
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        let mut found: BTreeMap<(ProblemKind, String), FoundProblem> =
            found.into_iter().map(|one| ((one.kind, one.what.clone()), one)).collect();
        shown.retain(|key, before| match (found.remove(key), before.mended_until_ms) {
            (Some(again), None) => {
                before.found = FoundProblem { since_ms: before.found.since_ms.min(again.since_ms), ..again };
                true
            }
            // A problem that comes again after it was mended is a new one.
            (Some(again), Some(_)) => {
                appeared(&again);
                *before = ShownFinding { found: again, mended_until_ms: None };
                true
            }
            (None, Some(until_ms)) => now < until_ms,
            (None, None) if kinds.contains(&key.0) => {
                let FoundProblem { kind, what, .. } = &before.found;
                tracing::info!(problem = kind.name(), what, "a problem is gone");
                false
            }
            (None, None) => true,
        });
        for (key, one) in found {
            appeared(&one);
            shown.insert(key, ShownFinding { found: one, mended_until_ms: None });
        }
        for kind in ProblemKind::ALL.iter().copied() {
            let count = shown.iter().filter(|((of, _), one)| *of == kind && one.mended_until_ms.is_none()).count();
            metrics::gauge!("millpond_problems", "kind" => kind.name()).set(u32::try_from(count).unwrap_or(u32::MAX));
        }
    }

    /// A problem was mended: it stays listed for a while.
    pub(super) fn mended(&self, kind: ProblemKind, what: &str, sentence: String) {
        let now = millpond::now_ms();
        tracing::info!(problem = kind.name(), what, sentence, "mended");
        let found = FoundProblem { kind, what: what.to_owned(), sentence, since_ms: now };
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        shown.insert((kind, what.to_owned()), ShownFinding { found, mended_until_ms: Some(now + MENDED_SHOWN_MS) });
    }
}

fn appeared(found: &FoundProblem) {
    tracing::warn!(problem = found.kind.name(), what = found.what, sentence = found.sentence, "a problem");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kind: ProblemKind, what: &str, since_ms: i64) -> FoundProblem {
        FoundProblem { kind, what: what.into(), sentence: format!("since {since_ms}"), since_ms }
    }

    fn whats(problems: &Problems) -> Vec<(String, i64, bool)> {
        let rows = problems.rows();
        let of = |row: &Problem| (row.what.clone(), row.since_ms, row.mended);
        rows.iter().map(of).collect()
    }

    #[test]
    fn what_is_found_again_keeps_its_time_and_what_is_not_goes() {
        let problems = Problems::default();
        problems.replace(
            &[ProblemKind::Paused],
            vec![found(ProblemKind::Paused, "a", 5), found(ProblemKind::Paused, "b", 6)],
        );
        problems.replace(&[ProblemKind::StalledJob], vec![found(ProblemKind::StalledJob, "j", 7)]);
        problems.replace(&[ProblemKind::Paused], vec![found(ProblemKind::Paused, "b", 9)]);
        assert_eq!(whats(&problems), [("b".into(), 6, false), ("j".into(), 7, false)]);
        problems.mended(ProblemKind::LostTask, "q", "some".into());
        problems.replace(ProblemKind::ALL, Vec::new());
        assert_eq!(whats(&problems).len(), 1);
        assert!(problems.rows()[0].mended);
        problems.replace(&[ProblemKind::LostTask], vec![found(ProblemKind::LostTask, "q", 1)]);
        assert_eq!(whats(&problems), [("q".into(), 1, false)]);
        let many = (0..200).map(|n| found(ProblemKind::StalledJob, &format!("{n:03}"), 1)).collect();
        problems.replace(&[ProblemKind::StalledJob], many);
        assert_eq!(problems.rows().len(), LISTED_MAX + 1);
    }
}

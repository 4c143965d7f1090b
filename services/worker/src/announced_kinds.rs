//! Which kinds the records of live workers have announced lately, and which kinds this worker was given and does not know.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millpond::bus::Bus;
use millpond::bus::read::buckets::BucketWatch;
use millpond::wire::streams::BUCKET_WORKERS;
use millpond::worker_record::{UNKNOWN_KINDS_LISTED_MAX, WorkerRecord};

/// How long an unknown kind stays in the worker's record after its last task.
const UNKNOWN_LISTED_FOR: Duration = Duration::from_secs(10);
/// A task of an unknown kind comes again after this long at the soonest, for a worker that knows it, and this long at the latest.
const UNKNOWN_AGAIN_AFTER: Duration = Duration::from_secs(1);
const UNKNOWN_AGAIN_WITHIN: Duration = Duration::from_secs(8);
/// In between so many come again in a second: the server delivers them before tasks that are new.
const UNKNOWN_AGAIN_PER_SECOND: u32 = 200;
/// Unknown kinds that are remembered, at the most: anybody may publish under any name.
const UNKNOWN_KEPT_MAX: usize = 10_000;

/// What this worker knows of kinds. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AnnouncedKinds {
    seen: Arc<Mutex<KindsSeen>>,
    /// How long the kinds of a worker are remembered after its last record.
    keep: Duration,
}

/// When each worker and each unknown kind was seen last.
struct KindsSeen {
    watched_since: Instant,
    /// By name and nonce: what one process serves does not change.
    workers: HashMap<(String, String), SeenWorker>,
    /// By queue and kind.
    unknown: HashMap<(String, String), Instant>,
    /// When the next task of an unknown kind may come again.
    unknown_next: Instant,
}

struct SeenWorker {
    queues: HashSet<String>,
    kinds: HashSet<String>,
    at: Instant,
}

impl AnnouncedKinds {
    /// Kinds count as announced for `keep` after they were.
    pub(crate) fn new(keep: Duration) -> Self {
        let now = Instant::now();
        let (workers, unknown) = (HashMap::new(), HashMap::new());
        let seen = KindsSeen { watched_since: now, workers, unknown, unknown_next: now };
        Self { seen: Arc::new(Mutex::new(seen)), keep }
    }

    fn seen(&self) -> MutexGuard<'_, KindsSeen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a kind that this worker does not know. Returns true when it was not noted lately and is one of few.
    pub(crate) fn note_unknown(&self, queue: &str, kind: &str) -> bool {
        let mut seen = self.seen();
        let name = (queue.to_owned(), kind.to_owned());
        if seen.unknown.len() >= UNKNOWN_KEPT_MAX && !seen.unknown.contains_key(&name) {
            return false;
        }
        let before = seen.unknown.insert(name, Instant::now());
        before.is_none_or(|at| at.elapsed() > UNKNOWN_LISTED_FOR) && seen.unknown.len() <= UNKNOWN_KINDS_LISTED_MAX
    }

    /// After how long a task of an unknown kind comes again.
    pub(crate) fn unknown_again_after(&self) -> Duration {
        let (mut seen, now) = (self.seen(), Instant::now());
        let next = seen.unknown_next.clamp(now + UNKNOWN_AGAIN_AFTER, now + UNKNOWN_AGAIN_WITHIN);
        seen.unknown_next = next + Duration::from_secs(1) / UNKNOWN_AGAIN_PER_SECOND;
        next - now
    }

    /// The kinds that were noted lately, as `<queue>.<kind>`, sorted, [`UNKNOWN_KINDS_LISTED_MAX`] at the most; and how many
    /// there are beyond these.
    pub(crate) fn unknown(&self) -> (Vec<String>, u64) {
        let mut seen = self.seen();
        seen.unknown.retain(|_, at| at.elapsed() < UNKNOWN_LISTED_FOR);
        let mut names: Vec<String> = seen.unknown.keys().map(|(queue, kind)| format!("{queue}.{kind}")).collect();
        names.sort();
        let more = names.len().saturating_sub(UNKNOWN_KINDS_LISTED_MAX) as u64;
        names.truncate(UNKNOWN_KINDS_LISTED_MAX);
        (names, more)
    }

    /// Whether no live worker has announced the kind for as long as kinds are remembered, which is false until this one has
    /// watched for as long.
    pub(crate) fn is_unannounced(&self, queue: &str, kind: &str) -> bool {
        let seen = self.seen();
        let announces = |worker: &SeenWorker| {
            worker.at.elapsed() <= self.keep && worker.kinds.contains(kind) && worker.queues.contains(queue)
        };
        seen.watched_since.elapsed() > self.keep && !seen.workers.values().any(announces)
    }

    fn note_worker(&self, record: WorkerRecord) {
        let mut seen = self.seen();
        let now = Instant::now();
        let (queues, kinds) = (record.queues, record.kinds);
        let new = || SeenWorker { queues: queues.into_iter().collect(), kinds: kinds.into_iter().collect(), at: now };
        seen.workers.entry((record.name, record.nonce)).or_insert_with(new).at = now;
        seen.workers.retain(|_, worker| worker.at.elapsed() <= self.keep);
    }

    /// Follows the workers' records until it is aborted.
    pub(crate) async fn follow(self, bus: Bus) {
        let mut watch = BucketWatch::new(&bus, BUCKET_WORKERS);
        loop {
            let change = watch.next().await;
            let Some(record) = change.record::<WorkerRecord>() else { continue };
            if record.is_lost(millpond::now_ms()) {
                continue;
            }
            self.note_worker(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_others_make_up_are_listed_up_to_a_number() {
        let kinds = AnnouncedKinds::new(Duration::from_secs(60));
        let said = (0..UNKNOWN_KEPT_MAX * 2).filter(|n| kinds.note_unknown("q", &format!("made_up_{n}"))).count();
        assert_eq!(said, UNKNOWN_KINDS_LISTED_MAX);
        let (names, more) = kinds.unknown();
        assert_eq!(
            (names.len(), more),
            (UNKNOWN_KINDS_LISTED_MAX, (UNKNOWN_KEPT_MAX - UNKNOWN_KINDS_LISTED_MAX) as u64)
        );
    }

    #[test]
    fn the_more_unknown_tasks_wait_the_later_each_comes_again() {
        let kinds = AnnouncedKinds::new(Duration::from_secs(60));
        let delays: Vec<Duration> = (0..10_000).map(|_| kinds.unknown_again_after()).collect();
        assert_eq!(delays[0], UNKNOWN_AGAIN_AFTER);
        let soon = |until: Duration| delays.iter().filter(|delay| **delay <= until).count();
        assert!((190..=210).contains(&soon(Duration::from_secs(2))), "{}", soon(Duration::from_secs(2)));
        assert_eq!(soon(UNKNOWN_AGAIN_WITHIN), delays.len());
    }
}

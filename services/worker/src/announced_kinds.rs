//! Which kinds the records of live workers have announced lately, and which kinds this worker was given and does not know.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millpond::bus::Bus;
use millpond::bus::read::buckets::{BucketWatch, decode};
use millpond::wire::streams::BUCKET_WORKERS;
use millpond::worker_record::WorkerRecord;

/// How long an unknown kind stays in the worker's record after its last task.
const UNKNOWN_LISTED_FOR: Duration = Duration::from_secs(10);

/// What this worker knows of kinds. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AnnouncedKinds {
    seen: Arc<Mutex<KindsSeen>>,
}

/// When each kind was seen last, by queue and kind.
struct KindsSeen {
    watched_since: Instant,
    announced: HashMap<(String, String), Instant>,
    unknown: HashMap<(String, String), Instant>,
}

impl AnnouncedKinds {
    pub(crate) fn new() -> Self {
        let seen = KindsSeen { watched_since: Instant::now(), announced: HashMap::new(), unknown: HashMap::new() };
        Self { seen: Arc::new(Mutex::new(seen)) }
    }

    fn seen(&self) -> MutexGuard<'_, KindsSeen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a kind that this worker does not know. Returns true when it was not noted lately.
    pub(crate) fn note_unknown(&self, queue: &str, kind: &str) -> bool {
        let before = self.seen().unknown.insert((queue.to_owned(), kind.to_owned()), Instant::now());
        before.is_none_or(|at| at.elapsed() > UNKNOWN_LISTED_FOR)
    }

    /// The kinds that were noted lately, as `<queue>.<kind>`, sorted.
    pub(crate) fn unknown(&self) -> Vec<String> {
        let mut seen = self.seen();
        seen.unknown.retain(|_, at| at.elapsed() < UNKNOWN_LISTED_FOR);
        let mut names: Vec<String> = seen.unknown.keys().map(|(queue, kind)| format!("{queue}.{kind}")).collect();
        names.sort();
        names
    }

    /// Whether no live worker has announced the kind for `after`, which is false until this one has watched for as long.
    pub(crate) fn unannounced_for(&self, queue: &str, kind: &str, after: Duration) -> bool {
        let seen = self.seen();
        let announced = seen.announced.get(&(queue.to_owned(), kind.to_owned())).copied();
        seen.watched_since.elapsed() > after && announced.is_none_or(|at| at.elapsed() > after)
    }

    /// Follows the workers' records until it is aborted.
    pub(crate) async fn follow(self, bus: Bus) {
        let mut watch = BucketWatch::new(&bus, BUCKET_WORKERS);
        loop {
            let change = watch.next().await;
            let Some(record) = change.value.as_deref().and_then(decode::<WorkerRecord>) else { continue };
            if record.is_lost(millpond::now_ms()) {
                continue;
            }
            let mut seen = self.seen();
            for queue in &record.queues {
                for kind in &record.kinds {
                    seen.announced.insert((queue.clone(), kind.clone()), Instant::now());
                }
            }
        }
    }
}

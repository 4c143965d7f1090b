//! Which kinds live workers have announced lately, and which ones this worker was handed and does not know.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millpond::bus::Bus;
use millpond::bus::read::buckets::{BucketWatch, decode};
use millpond::limits::HEARTBEAT_LOST_AFTER;
use millpond::wire::streams::BUCKET_WORKERS;
use millpond::worker_record::WorkerRecord;

/// How long an unknown kind stays in the worker's record after it was last seen.
const SHOWN_FOR: Duration = Duration::from_secs(10);

/// What is known of kinds. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Kinds {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    since: Instant,
    announced: HashMap<(String, String), Instant>,
    unknown: HashMap<(String, String), Instant>,
}

impl Kinds {
    pub(crate) fn new() -> Self {
        let inner = Inner { since: Instant::now(), announced: HashMap::new(), unknown: HashMap::new() };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a kind that this worker does not know; true when it was not noted lately.
    pub(crate) fn note_unknown(&self, queue: &str, kind: &str) -> bool {
        let before = self.inner().unknown.insert((queue.to_owned(), kind.to_owned()), Instant::now());
        before.is_none_or(|at| at.elapsed() > SHOWN_FOR)
    }

    /// The unknown kinds of late, as `<queue>.<kind>`, sorted.
    pub(crate) fn unknown(&self) -> Vec<String> {
        let mut inner = self.inner();
        inner.unknown.retain(|_, at| at.elapsed() < SHOWN_FOR);
        let mut names: Vec<String> = inner.unknown.keys().map(|(queue, kind)| format!("{queue}.{kind}")).collect();
        names.sort();
        names
    }

    /// Whether no live worker has announced the kind for `after`, as far as this one has watched.
    pub(crate) fn nobody_knows(&self, queue: &str, kind: &str, after: Duration) -> bool {
        let inner = self.inner();
        let heard = inner.announced.get(&(queue.to_owned(), kind.to_owned())).copied();
        inner.since.elapsed() > after && heard.is_none_or(|at| at.elapsed() > after)
    }

    /// Follows the workers' records for ever.
    pub(crate) async fn follow(self, bus: Bus) {
        let mut watch = BucketWatch::new(&bus, BUCKET_WORKERS);
        loop {
            let change = watch.next().await;
            let Some(record) = change.value.as_deref().and_then(decode::<WorkerRecord>) else { continue };
            let age_ms = millpond::now_ms().saturating_sub(record.heartbeat_ms);
            if u128::try_from(age_ms).unwrap_or(0) > HEARTBEAT_LOST_AFTER.as_millis() {
                continue;
            }
            let mut inner = self.inner();
            for queue in &record.queues {
                for kind in &record.kinds {
                    inner.announced.insert((queue.clone(), kind.clone()), Instant::now());
                }
            }
        }
    }
}

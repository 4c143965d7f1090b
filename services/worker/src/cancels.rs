//! What was cancelled: the tombstones of the cancels bucket, and those of whole jobs, kept in memory.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use millpond::bus::Bus;
use millpond::bus::records::{BucketWatch, tombstone_key};
use millpond::bus::subject::TaskSubject;
use millpond::bus::topology::{BUCKET_CANCELS, TopologyError};

/// The tombstones. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cancels {
    keys: Arc<RwLock<HashSet<String>>>,
}

impl Cancels {
    /// Those that are there now: a worker takes no task before it knows them.
    pub(crate) async fn load(bus: &Bus) -> Result<Self, TopologyError> {
        let keys = bus.tombstones().await?.into_iter().collect();
        Ok(Self { keys: Arc::new(RwLock::new(keys)) })
    }

    /// Whether the task, its root, or its job is cancelled.
    pub(crate) fn contains(&self, subject: &TaskSubject, root: &str, id: &str) -> bool {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        if keys.is_empty() {
            return false;
        }
        let named = |id: &str| keys.contains(&tombstone_key(&subject.queue, id));
        let job = subject.job.as_ref().is_some_and(|job| keys.contains(&format!("job.{job}")));
        job || named(root) || (id != root && named(id))
    }

    /// Follows the bucket for ever.
    pub(crate) async fn follow(self, bus: Bus) {
        let mut watch = BucketWatch::new(&bus, BUCKET_CANCELS);
        loop {
            let change = watch.next().await;
            let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
            match change.value {
                Some(_) => keys.insert(change.key),
                None => keys.remove(&change.key),
            };
        }
    }
}

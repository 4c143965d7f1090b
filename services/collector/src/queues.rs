//! The queues as they are shown: how much waits, since when, and how many workers serve them. One look serves all who ask
//! within a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millpond::bus::Bus;
use millpond::bus::topology::TopologyError;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::records::{WorkerState, Workers};

/// How long a look is good for.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// Rows, and when they were looked at.
type Looked = (Instant, Vec<Value>);

/// Looks at the queues. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Queues {
    bus: Bus,
    workers: Workers,
    looked: Arc<Mutex<Option<Looked>>>,
}

impl Queues {
    pub(crate) fn new(bus: &Bus, workers: &Workers) -> Self {
        Self { bus: bus.clone(), workers: workers.clone(), looked: Arc::default() }
    }

    /// All of them, by name; a second old at the most.
    pub(crate) async fn rows(&self) -> Result<Vec<Value>, TopologyError> {
        let mut looked = self.looked.lock().await;
        if let Some((at, rows)) = &*looked
            && at.elapsed() < KNOWN_FOR
        {
            return Ok(rows.clone());
        }
        let rows = self.look().await?;
        *looked = Some((Instant::now(), rows.clone()));
        Ok(rows)
    }

    /// What was known is not so any more: somebody changed it through this collector.
    pub(crate) async fn forget(&self) {
        *self.looked.lock().await = None;
    }

    async fn look(&self) -> Result<Vec<Value>, TopologyError> {
        let workers = self.workers.records();
        let mut rows = Vec::new();
        for queue in self.bus.queues_with_limits().await? {
            let serves = |served: &String| *served == queue.queue;
            let live = workers
                .iter()
                .filter(|(worker, state)| *state == WorkerState::Live && worker.queues.iter().any(serves));
            let mut row = json!(queue);
            if let Some(row) = row.as_object_mut() {
                row.insert("workers".to_owned(), json!(live.count()));
                row.insert("oldest_ms".to_owned(), json!(self.bus.oldest_waiting(&queue).await?));
            }
            rows.push(row);
        }
        Ok(rows)
    }
}

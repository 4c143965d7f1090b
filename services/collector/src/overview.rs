//! How everything stands now: one poll a second of queues, workers and store while somebody watches, else one in ten; and the
//! samples of it that the series keeps. Everybody who watches gets the same tick.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use millpond::bus::Bus;
use millpond::bus::topology::stream_state;
use millpond::wire::streams::STREAM_DUE;
use millpond_api::overview::{ListVersions, Overview, Rates, StoreHealth, Tick, Totals};
use millpond_api::workers::WorkerState;
use tokio::sync::watch;

use crate::collect::Health;
use crate::queues::{QueueStatus, QueueStatuses, Queues};
use crate::reconcile::Problems;
use crate::store::{EndedPerStep, QueueSample, STEP_MS, Store};
use crate::workers::Workers;

/// How often everything is polled while somebody watches.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// The share of the time that polls may take, as a divisor: what takes 400 ms is done every two seconds.
const POLL_SHARE: u32 = 5;
/// How far back rates count, in milliseconds.
const RATES_BACK_MS: i64 = 60_000;

/// What is polled, and the last tick. Cheap to clone.
#[derive(Clone)]
pub(crate) struct OverviewPoller {
    bus: Bus,
    store: Store,
    workers: Workers,
    queues: Queues,
    problems: Problems,
    health: Arc<[Arc<Health>]>,
    last: watch::Sender<Arc<Polled>>,
    counted: Arc<RwLock<StoreCounts>>,
}

/// Counts of the store that cost more than the rest of a poll: they are read with each sample, and when dead letters came
/// or went.
#[derive(Debug, Clone, Copy, Default)]
struct StoreCounts {
    bytes: u64,
    retrying: u64,
    dead: u64,
}

/// What one poll has seen.
#[derive(Default)]
pub(crate) struct Polled {
    pub(crate) tick: Tick,
    /// The tick as JSON.
    pub(crate) json: String,
    queues: QueueStatuses,
}

/// The poll before, of which rates are made: sums that only grow.
#[derive(Default)]
struct PollBefore {
    at: Option<Instant>,
    arrived: BTreeMap<String, u64>,
    ended: EndedPerStep,
}

impl OverviewPoller {
    pub(crate) fn new(
        bus: &Bus,
        store: &Store,
        workers: &Workers,
        queues: &Queues,
        problems: &Problems,
        health: &[Arc<Health>],
    ) -> Self {
        Self {
            bus: bus.clone(),
            store: store.clone(),
            workers: workers.clone(),
            queues: queues.clone(),
            problems: problems.clone(),
            health: health.into(),
            last: watch::Sender::default(),
            counted: Arc::default(),
        }
    }

    /// The polls from now on. While one of these receivers is kept, there is one every second.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Polled>> {
        self.last.subscribe()
    }

    /// Polls now.
    pub(crate) async fn poll(&self) -> Arc<Polled> {
        Arc::new(self.poll_after(&mut PollBefore::default()).await)
    }

    /// Polls for ever.
    pub(crate) async fn run(self) {
        let (mut before, mut sampled) = (PollBefore::default(), BTreeMap::new());
        let (mut step, mut dead) = (None, 0);
        loop {
            let started = Instant::now();
            // A step that has ended is sampled right after.
            let ended = millpond::now_ms() / STEP_MS - 1;
            let over = step.replace(ended) != Some(ended);
            let watched = self.last.receiver_count() > 0;
            let [_, _, dead_now] = self.store.versions.now();
            if over || watched && dead_now != dead {
                dead = dead_now;
                self.count().await;
            }
            if over || watched {
                let polled = self.poll_after(&mut before).await;
                if over {
                    self.sample(ended * STEP_MS, &polled, &before, &mut sampled).await;
                }
                self.last.send_replace(Arc::new(polled));
            }
            tokio::time::sleep(POLL_EVERY.max(started.elapsed() * POLL_SHARE)).await;
        }
    }

    async fn count(&self) {
        let (bytes, unfinished) = tokio::join!(self.store.bytes(), self.store.unfinished());
        if let (Ok(bytes), Ok((retrying, dead))) = (bytes, unfinished) {
            *self.counted.write().unwrap_or_else(PoisonError::into_inner) = StoreCounts { bytes, retrying, dead };
        }
    }

    async fn poll_after(&self, before: &mut PollBefore) -> Polled {
        let at_ms = millpond::now_ms();
        let (queues, due, ended) = tokio::join!(
            self.queues.statuses(),
            stream_state(&self.bus, STREAM_DUE),
            self.store.ended_since(at_ms - RATES_BACK_MS),
        );
        let (queues, complaint) = match queues {
            Ok(queues) => (queues, None),
            Err(error) => (self.last.borrow().queues.clone(), Some(error.to_string())),
        };
        let rates = before.rates(&queues.listed, ended.unwrap_or_default());
        let [tasks, jobs, dead] = self.store.versions.now();
        let (workers, schedules) = (self.workers.version(), due.map_or(0, |due| due.last_seq));
        let counted = *self.counted.read().unwrap_or_else(PoisonError::into_inner);
        let overview = Overview {
            at_ms,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store: StoreHealth {
                kind: self.store.kind().to_owned(),
                bytes: counted.bytes,
                complaint: self.health.iter().find_map(|health| health.complaint()),
            },
            totals: self.totals(&queues, counted),
            lag_ms: self.health.iter().map(|health| health.lag_ms()).max().unwrap_or(0),
            complaint,
            problems: self.problems.rows(),
        };
        let versions = ListVersions { tasks, jobs, dead, workers, schedules };
        let rows = queues.listed.iter().map(QueueStatus::row).collect();
        let tick = Tick { at_ms, overview, queues: rows, rates, versions };
        Polled { json: serde_json::to_string(&tick).unwrap_or_default(), tick, queues }
    }

    fn totals(&self, queues: &QueueStatuses, counted: StoreCounts) -> Totals {
        let StoreCounts { retrying, dead, .. } = counted;
        let (unlisted, waiting) = (queues.unlisted, queues.unlisted.waiting);
        let mut totals = Totals { retrying, dead, unlisted, waiting, ..Totals::default() };
        for queue in &queues.listed {
            totals.waiting += queue.state.waiting;
            totals.held += queue.state.held;
            totals.scheduled += queue.state.scheduled;
            totals.oldest_ms = [totals.oldest_ms, queue.oldest_ms].into_iter().flatten().min();
        }
        for (worker, state) in self.workers.records() {
            let (count, runs) = match state {
                WorkerState::Live => (&mut totals.workers.live, true),
                WorkerState::Draining => (&mut totals.workers.draining, true),
                WorkerState::Lost => (&mut totals.workers.lost, false),
            };
            *count += 1;
            totals.running += if runs { worker.running.into() } else { 0 };
        }
        totals
    }

    /// Stores how the queues stand at the end of a step, and what came to each since the sample before.
    async fn sample(&self, step_ms: i64, polled: &Polled, before: &PollBefore, sampled: &mut BTreeMap<String, u64>) {
        let samples = polled.queues.listed.iter().map(|queue| {
            let arrived = before.arrived.get(&queue.state.queue).copied().unwrap_or(0);
            let last = sampled.insert(queue.state.queue.clone(), arrived);
            let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            QueueSample {
                queue: queue.state.queue.clone(),
                published: whole(last.map_or(0, |last| arrived.saturating_sub(last))),
                waiting: whole(queue.state.waiting),
                oldest_age_ms: queue.oldest_ms.map_or(0, |oldest| polled.tick.at_ms.saturating_sub(oldest)),
            }
        });
        let samples: Vec<QueueSample> = samples.collect();
        // Those that are not listed any more begin anew.
        sampled.retain(|queue, _| before.arrived.contains_key(queue));
        if let Err(error) = self.store.sample(step_ms, &samples).await {
            tracing::debug!(%error, "how the queues stand cannot be stored");
        }
    }
}

impl PollBefore {
    /// What came since the poll before, which this one replaces.
    fn rates(&mut self, queues: &[QueueStatus], ended: EndedPerStep) -> Rates {
        let arrived: BTreeMap<String, u64> = queues.iter().map(|q| (q.state.queue.clone(), q.arrived())).collect();
        let mut rates = Rates::default();
        if let Some(at) = self.at {
            let seconds = at.elapsed().as_secs_f64().max(0.001);
            let per_s = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / seconds;
            let came = |(queue, now): (&String, &u64)| now.saturating_sub(*self.arrived.get(queue).unwrap_or(now));
            let [done, failed, dead] = grown(&self.ended, &ended).map(per_s);
            let published = per_s(arrived.iter().map(came).sum());
            rates = Rates { published_per_s: published, done_per_s: done, failed_per_s: failed, dead_per_s: dead };
        }
        *self = Self { at: Some(Instant::now()), arrived, ended };
        rates
    }
}

/// What came to the steps. A step that has left the window counts no more.
fn grown(before: &EndedPerStep, now: &EndedPerStep) -> [u64; 3] {
    let mut sums = [0; 3];
    for (step, counts) in now {
        let then = before.get(step).copied().unwrap_or_default();
        for ((sum, now), then) in sums.iter_mut().zip(counts).zip(then) {
            *sum += now.saturating_sub(then);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grew_is_counted_over_steps_that_come_and_go() {
        let before = EndedPerStep::from([(0, [100, 0, 0]), (10, [5, 1, 0])]);
        let now = EndedPerStep::from([(10, [7, 1, 0]), (20, [3, 0, 2])]);
        assert_eq!(grown(&before, &now), [5, 0, 2]);
        assert_eq!(grown(&now, &before), [100, 0, 0]);
    }
}

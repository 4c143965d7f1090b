//! What an operator sees now: one look a second at queues, workers and store while somebody watches, else one in ten; and
//! the samples of it that the series keeps. Everybody who watches gets the same look.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use millpond::bus::Bus;
use millpond::bus::topology::stream_state;
use millpond::wire::streams::STREAM_DUE;
use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::collect::Health;
use crate::queues::{QueueRow, Queues};
use crate::reconcile::{Problem, Problems};
use crate::records::{WorkerState, Workers};
use crate::store::{Ended, STEP_MS, Sample, Store};

/// How often it is looked while somebody watches.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The share of the time that looking may take, as a divisor: what takes 400 ms is done every two seconds.
const LOOK_SHARE: u32 = 5;
/// How far back rates count, in milliseconds.
const RATES_BACK_MS: i64 = 60_000;

/// Sums over all queues and workers.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct Totals {
    /// Messages that no worker has taken yet.
    waiting: u64,
    /// Messages that workers hold.
    held: u64,
    /// Messages that wait for their time.
    scheduled: u64,
    /// When the oldest that waits was published, Unix milliseconds.
    oldest_ms: Option<i64>,
    /// Tasks that failed and wait for their next attempt.
    retrying: u64,
    /// Dead letters that wait for a person.
    dead: u64,
    /// Tasks (or batches) that run.
    running: u64,
    workers: WorkerTotals,
}

/// Workers by state.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct WorkerTotals {
    live: u64,
    draining: u64,
    lost: u64,
}

/// How the store fares.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct StoreState {
    /// `sqlite` or `postgres`.
    #[schema(value_type = String)]
    kind: &'static str,
    /// Bytes that it takes.
    bytes: u64,
    /// What is wrong with it.
    complaint: Option<String>,
}

/// How all stands.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct Overview {
    /// When this was looked at, Unix milliseconds.
    at_ms: i64,
    /// Version of the collector.
    #[schema(value_type = String)]
    version: &'static str,
    store: StoreState,
    totals: Totals,
    /// How far the store is behind what has ended, in milliseconds.
    lag_ms: i64,
    /// Why the queues cannot be looked at; their numbers are the last ones known.
    complaint: Option<String>,
    /// What is wrong, and what was mended lately.
    problems: Vec<Problem>,
}

/// Per second, of late.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(crate) struct Rates {
    /// Messages that TASKS took.
    published_per_s: f64,
    /// Tasks that got a result.
    done_per_s: f64,
    /// Attempts that failed and are tried again.
    failed_per_s: f64,
    /// Tasks that died.
    dead_per_s: f64,
}

/// A number that differs from the one before means that the list has changed.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(crate) struct VersionNumbers {
    tasks: u64,
    jobs: u64,
    dead: u64,
    workers: u64,
    schedules: u64,
}

/// One look.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct Tick {
    at_ms: i64,
    pub(crate) overview: Overview,
    #[schema(value_type = Vec<crate::http::QueueShown>)]
    pub(crate) queues: Vec<QueueRow>,
    rates: Rates,
    versions: VersionNumbers,
    /// All of it as JSON.
    #[serde(skip)]
    text: String,
}

impl Tick {
    /// As JSON.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// What is looked at, and the last look. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Live {
    bus: Bus,
    store: Store,
    workers: Workers,
    queues: Queues,
    problems: Problems,
    health: Arc<[Arc<Health>]>,
    last: watch::Sender<Arc<Tick>>,
    /// Bytes of the store and what is unfinished in it: looked up with each sample, and when letters came or went; they
    /// cost more than the rest.
    counted: Arc<RwLock<(u64, (u64, u64))>>,
}

/// What rates are made of: sums that only grow.
#[derive(Default)]
struct Before {
    at: Option<Instant>,
    arrived: BTreeMap<String, u64>,
    /// Done, failed and dead by step of the series.
    ended: Ended,
}

impl Live {
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

    /// The looks from now on. While one of these is kept, it is looked every second.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Tick>> {
        self.last.subscribe()
    }

    /// Looks now.
    pub(crate) async fn look(&self) -> Arc<Tick> {
        Arc::new(self.tick(&mut Before::default()).await)
    }

    /// Looks for ever.
    pub(crate) async fn run(self) {
        let (mut before, mut sampled) = (Before::default(), BTreeMap::new());
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
                let tick = self.tick(&mut before).await;
                if over {
                    self.sample(ended * STEP_MS, &tick, &before, &mut sampled).await;
                }
                self.last.send_replace(Arc::new(tick));
            }
            tokio::time::sleep(LOOK_EVERY.max(started.elapsed() * LOOK_SHARE)).await;
        }
    }

    async fn count(&self) {
        let (bytes, unfinished) = tokio::join!(self.store.bytes(), self.store.unfinished());
        if let (Ok(bytes), Ok(unfinished)) = (bytes, unfinished) {
            *self.counted.write().unwrap_or_else(PoisonError::into_inner) = (bytes, unfinished);
        }
    }

    async fn tick(&self, before: &mut Before) -> Tick {
        let at_ms = millpond::now_ms();
        let (queues, due, ended) = tokio::join!(
            self.queues.rows(),
            stream_state(&self.bus, STREAM_DUE),
            self.store.ended_since(at_ms - RATES_BACK_MS),
        );
        let (queues, complaint) = match queues {
            Ok(queues) => (queues, None),
            Err(error) => (self.last.borrow().queues.clone(), Some(error.to_string())),
        };
        let rates = before.rates(&queues, ended.unwrap_or_default());
        let [tasks, jobs, dead] = self.store.versions.now();
        let versions = VersionNumbers {
            tasks,
            jobs,
            dead,
            workers: self.workers.version(),
            schedules: due.map_or(0, |due| due.last_seq),
        };
        let (bytes, (retrying, dead)) = *self.counted.read().unwrap_or_else(PoisonError::into_inner);
        let overview = Overview {
            at_ms,
            version: env!("CARGO_PKG_VERSION"),
            store: StoreState {
                kind: self.store.kind(),
                bytes,
                complaint: self.health.iter().find_map(|health| health.complaint()),
            },
            totals: self.totals(&queues, retrying, dead),
            lag_ms: self.health.iter().map(|health| health.lag_ms()).max().unwrap_or(0),
            complaint,
            problems: self.problems.rows(),
        };
        let mut tick = Tick { at_ms, overview, queues, rates, versions, text: String::new() };
        tick.text = serde_json::to_string(&tick).unwrap_or_default();
        tick
    }

    fn totals(&self, queues: &[QueueRow], retrying: u64, dead: u64) -> Totals {
        let mut totals = Totals { retrying, dead, ..Totals::default() };
        for queue in queues {
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

    /// Keeps how the queues stand at the end of a step, and what came to each since the sample before.
    async fn sample(&self, step_ms: i64, tick: &Tick, before: &Before, sampled: &mut BTreeMap<String, u64>) {
        let samples = tick.queues.iter().map(|queue| {
            let arrived = before.arrived.get(&queue.state.queue).copied().unwrap_or(0);
            let last = sampled.insert(queue.state.queue.clone(), arrived);
            let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            Sample {
                queue: queue.state.queue.clone(),
                published: whole(last.map_or(0, |last| arrived.saturating_sub(last))),
                waiting: whole(queue.state.waiting),
                oldest_age_ms: queue.oldest_ms.map_or(0, |oldest| tick.at_ms.saturating_sub(oldest)),
            }
        });
        let samples: Vec<Sample> = samples.collect();
        if let Err(error) = self.store.sample(step_ms, &samples).await {
            tracing::debug!(%error, "how the queues stand cannot be kept");
        }
    }
}

impl Before {
    fn rates(&mut self, queues: &[QueueRow], ended: Ended) -> Rates {
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
fn grown(before: &Ended, now: &Ended) -> [u64; 3] {
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
        let before = Ended::from([(0, [100, 0, 0]), (10, [5, 1, 0])]);
        let now = Ended::from([(10, [7, 1, 0]), (20, [3, 0, 2])]);
        assert_eq!(grown(&before, &now), [5, 0, 2]);
        assert_eq!(grown(&now, &before), [100, 0, 0]);
    }
}

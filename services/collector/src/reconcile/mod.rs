//! Compares bus and store every few seconds, mends what is safe to mend, and shows the rest as problems. `judge` judges
//! what was seen, `lost` looks for tasks that are nowhere, `robbed` for jobs that a purge keeps from ending, `problems`
//! keeps what is shown. Nothing is mended on one look, nor when the bus was not looked at wholly.

mod judge;
mod lost;
mod problems;
mod robbed;

use std::sync::Arc;
use std::time::Duration;

use millpond::bus::Bus;
use millpond::bus::operate::queues::QueueState;
use millpond::bus::read::backlog::Purges;
use millpond::bus::read::outcomes::{OutcomeReader, OutcomeReaderState, OutcomeStream};
use millpond::bus::topology::{TopologyError, stream_state};
use millpond::worker_record::WorkerRecord;

pub(crate) use problems::{Problem, Problems};

use crate::collect::Health;
use crate::records::{OpenJobs, WorkerState, Workers};
use crate::store::Store;
use judge::{Judge, Moment, OF_A_MOMENT};
use lost::LostTasks;
use problems::{Found, Kind};
use robbed::RobbedJobs;

/// How often what is in memory is looked at: workers, jobs.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// How often bus and store are compared.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Between the two looks that anything that is mended takes, at least, in milliseconds.
const TWICE_AFTER_MS: i64 = 5_000;
/// How long a worker that was not heard of may still come back with what it held, in milliseconds.
const SILENT_FOR_MS: i64 = 60_000;

/// What it works with.
pub(crate) struct Reconciler {
    pub(crate) bus: Bus,
    pub(crate) store: Store,
    pub(crate) workers: Workers,
    pub(crate) problems: Problems,
}

/// What one look has seen of the bus. The durables were read first: what the store says now is at least as new.
struct Seen {
    now_ms: i64,
    durables: Vec<(&'static str, OutcomeReaderState)>,
    queues: Vec<QueueState>,
    workers: Vec<(WorkerRecord, WorkerState)>,
}

/// How far RESULTS and DEAD had come at some moment.
#[derive(Debug, Clone, Copy)]
struct Marks([u64; 2]);

/// Why a look was not finished.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Bus(#[from] TopologyError),
    #[error("the store: {0:#}")]
    Store(#[from] anyhow::Error),
}

/// Watches what is in memory, for ever.
pub(crate) async fn watch(workers: Workers, jobs: OpenJobs, health: Vec<Arc<Health>>, problems: Problems) {
    let mut tick = tokio::time::interval(WATCH_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let mut found = judge::lost(&workers.records());
        found.extend(judge::stalled(&jobs.stalled()));
        if health.iter().any(|health| health.store_fails()) {
            let sentence =
                "the store cannot be written, nothing that ends is acknowledged; the collector's log has the reason";
            let since_ms = millpond::now_ms();
            let (what, sentence) = ("store".to_owned(), sentence.to_owned());
            found.push(Found { kind: Kind::Store, what, sentence, since_ms });
        }
        problems.replace(&[Kind::WorkerLost, Kind::StalledJob, Kind::Store], found);
    }
}

impl Reconciler {
    /// Looks for ever.
    pub(crate) async fn look_for_ever(self) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut judge, mut purges) = (Judge::default(), Purges::default());
        let (mut lost, mut robbed) = (LostTasks::default(), RobbedJobs::default());
        let mut failing = false;
        loop {
            tick.tick().await;
            if !self.bus.is_connected() {
                continue;
            }
            let looked = self.look(&mut judge, &mut purges, &mut lost, &mut robbed).await;
            match looked {
                Ok(()) => failing = false,
                // Said once, until it goes well again.
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "bus and store cannot be compared, will try again");
                }
                Err(_) => {}
            }
        }
    }

    async fn look(
        &self,
        judge: &mut Judge,
        purges: &mut Purges,
        lost: &mut LostTasks,
        robbed: &mut RobbedJobs,
    ) -> Result<(), LookError> {
        let mut durables = Vec::new();
        for ended in [OutcomeStream::Results, OutcomeStream::Dead] {
            durables.push((ended.stream(), OutcomeReader::new(self.bus.clone(), ended).state().await?));
        }
        let queues = self.bus.standing().await?;
        let seen = Seen { now_ms: millpond::now_ms(), durables, queues, workers: self.workers.records() };
        let Seen { now_ms, durables, queues, workers } = &seen;
        let found = judge.found(&Moment { now_ms: *now_ms, queues, workers, durables });
        self.problems.replace(&OF_A_MOMENT, found);
        if self.bus.read_purges(purges).await? {
            lost.hurry(*now_ms);
            robbed.purged(purges);
        }
        lost.look(self, &seen, purges).await?;
        self.problems.replace(&[Kind::LostTask], lost.found());
        robbed.look(self, &seen, purges).await
    }
}

impl Seen {
    /// Messages that lie in a queue for a worker, or with one.
    fn lying(&self, queue: &str) -> u64 {
        self.queues.iter().find(|state| state.queue == queue).map_or(0, |state| state.waiting + state.held)
    }

    /// Whether a worker that serves a queue went silent a moment ago with something: it may come back with it.
    fn may_come_back(&self, queue: &str) -> bool {
        let silent = |worker: &WorkerRecord| worker.held > 0 && self.now_ms - worker.heartbeat_ms < SILENT_FOR_MS;
        serving(&self.workers, queue).any(|(worker, state)| *state == WorkerState::Lost && silent(worker))
    }
}

/// Workers that serve a queue.
fn serving<'a>(
    workers: &'a [(WorkerRecord, WorkerState)],
    queue: &'a str,
) -> impl Iterator<Item = &'a (WorkerRecord, WorkerState)> {
    workers.iter().filter(move |(worker, _)| worker.queues.iter().any(|served| served == queue))
}

impl Marks {
    async fn now(bus: &Bus) -> Result<Self, TopologyError> {
        let mut marks = [0; 2];
        for (mark, ended) in marks.iter_mut().zip([OutcomeStream::Results, OutcomeStream::Dead]) {
            *mark = stream_state(bus, ended.stream()).await?.last_seq;
        }
        Ok(Self(marks))
    }

    /// Whether all that had ended by then is stored.
    fn are_stored(self, seen: &Seen) -> bool {
        let stored = |(mark, (_, state)): (u64, &(&str, OutcomeReaderState))| {
            state.ack_floor >= mark || state.pending + state.ack_pending == 0
        };
        seen.durables.len() == self.0.len() && self.0.into_iter().zip(&seen.durables).all(stored)
    }
}

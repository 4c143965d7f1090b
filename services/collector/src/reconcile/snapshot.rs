//! What one poll has seen of the bus, and what the reconciler works with.

use std::sync::Arc;

use millpond::bus::Bus;
use millpond::bus::error::BusError;
use millpond::bus::operate::queues::{AllQueues, QueueState, UnlistedQueues};
use millpond::bus::read::later::StandingInLater;
use millpond::bus::read::outcomes::{OutcomeReader, OutcomeReaderState, OutcomeStream};
use millpond::bus::topology::stream_state;
use millpond::worker_record::WorkerRecord;
use millpond_api::workers::WorkerState;

use super::problems::Problems;
use crate::poison::QueuePolls;
use crate::store::{Store, StoreError};
use crate::workers::Workers;

/// Between the two polls that have to see the same before anything is mended, at least, in milliseconds.
pub(super) const SEEN_AGAIN_AFTER_MS: i64 = 5_000;
/// How long a task may lie in LATER, in milliseconds: a producer service looks four times a second.
pub(super) const NO_PRODUCER_AFTER_MS: i64 = 10_000;
/// How long a lost worker may still come back with what it held, in milliseconds.
const MAY_COME_BACK_MS: i64 = 60_000;

/// What the reconciler works with.
pub(crate) struct Context {
    pub(crate) bus: Bus,
    pub(crate) store: Store,
    pub(crate) workers: Workers,
    pub(crate) problems: Problems,
    /// Where others get the queues of each poll.
    polls: QueuePolls,
}

impl Context {
    pub(crate) fn new(bus: &Bus, store: &Store, workers: &Workers, problems: &Problems, polls: QueuePolls) -> Self {
        Self { bus: bus.clone(), store: store.clone(), workers: workers.clone(), problems: problems.clone(), polls }
    }
}

/// What one poll has seen of the bus. The durables were read first: what the store says now is at least as new.
pub(super) struct BusSnapshot {
    pub(super) now_ms: i64,
    /// The collector's durables, by their streams.
    pub(super) durables: Vec<(&'static str, OutcomeReaderState)>,
    pub(super) queues: Vec<QueueState>,
    /// Queues that no worker has served, beyond those that are listed.
    pub(super) unlisted: UnlistedQueues,
    /// What lies in LATER: tasks that no producer service has moved to DUE.
    pub(super) later: Option<StandingInLater>,
    pub(super) workers: Vec<(WorkerRecord, WorkerState)>,
}

/// How far RESULTS and DEAD had come at some moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamPositions([u64; 2]);

/// Why a poll was not finished.
#[derive(Debug, thiserror::Error)]
pub(super) enum PollError {
    /// The bus did not answer.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The store did not answer.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
}

impl BusSnapshot {
    pub(super) async fn take(context: &Context) -> Result<Self, PollError> {
        let mut durables = Vec::new();
        for ended in [OutcomeStream::Results, OutcomeStream::Dead] {
            durables.push((ended.stream(), OutcomeReader::new(context.bus.clone(), ended).state().await?));
        }
        let AllQueues { listed: queues, unlisted } = context.bus.standing().await?;
        context.polls.send_replace(Arc::new(queues.clone()));
        let later = context.bus.standing_in_later(millpond::now_ms(), NO_PRODUCER_AFTER_MS).await?;
        let workers = context.workers.records();
        Ok(Self { now_ms: millpond::now_ms(), durables, queues, unlisted, later, workers })
    }

    /// Messages that lie in a queue for a worker, or with one.
    pub(super) fn waiting_or_held(&self, queue: &str) -> u64 {
        self.queues.iter().find(|state| state.queue == queue).map_or(0, |state| state.waiting + state.held)
    }

    /// Whether a worker that serves a queue was lost a moment ago and held something: it may come back with it.
    pub(super) fn may_come_back(&self, queue: &str) -> bool {
        self.serving(queue, &[WorkerState::Lost])
            .any(|worker| worker.held > 0 && self.now_ms - worker.heartbeat_ms < MAY_COME_BACK_MS)
    }

    /// Workers in one of these states that serve a queue.
    pub(super) fn serving<'a>(
        &'a self,
        queue: &'a str,
        states: &'static [WorkerState],
    ) -> impl Iterator<Item = &'a WorkerRecord> {
        let serves = move |(worker, state): &&(WorkerRecord, WorkerState)| {
            states.contains(state) && worker.queues.iter().any(|served| served == queue)
        };
        self.workers.iter().filter(serves).map(|(worker, _)| worker)
    }
}

impl StreamPositions {
    pub(super) async fn now(bus: &Bus) -> Result<Self, BusError> {
        let mut positions = [0; 2];
        for (position, ended) in positions.iter_mut().zip([OutcomeStream::Results, OutcomeStream::Dead]) {
            *position = stream_state(bus, ended.stream()).await?.last_seq;
        }
        Ok(Self(positions))
    }

    /// Whether all that had ended by then is stored.
    pub(super) fn are_stored(self, seen: &BusSnapshot) -> bool {
        let stored = |(position, (_, state)): (u64, &(&str, OutcomeReaderState))| {
            state.ack_floor >= position || state.pending + state.ack_pending == 0
        };
        seen.durables.len() == self.0.len() && self.0.into_iter().zip(&seen.durables).all(stored)
    }
}

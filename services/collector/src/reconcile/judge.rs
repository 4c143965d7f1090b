//! What is wrong, judged by what was seen at one moment and how long that has been so. No I/O, no clock.

use std::collections::BTreeMap;

use millpond::bus::operate::queues::QueueState;
use millpond::bus::read::outcomes::OutcomeReaderState;
use millpond::job::JobRecord;
use millpond::worker_record::WorkerRecord;

use super::problems::{Found, Kind};
use crate::records::WorkerState;

/// How long something must wait without a worker, in milliseconds: a worker may just be starting.
const NO_WORKER_AFTER_MS: i64 = 2_000;
/// How long leases must be nobody's, in milliseconds: `ack_wait`, and the age of the workers' records.
const ORPHANED_AFTER_MS: i64 = 10_000;
/// How long nothing may be given out while something waits and slots are free, in milliseconds.
const STUCK_AFTER_MS: i64 = 10_000;
/// How long the collector's own durables may stand still, in milliseconds: longer than its server waits for acks.
const BEHIND_AFTER_MS: i64 = 15_000;

/// What was seen.
pub(super) struct Moment<'a> {
    pub(super) now_ms: i64,
    pub(super) queues: &'a [QueueState],
    pub(super) workers: &'a [(WorkerRecord, WorkerState)],
    /// The collector's durables, by their streams.
    pub(super) durables: &'a [(&'static str, OutcomeReaderState)],
}

/// Kinds that a [`Moment`] tells.
pub(super) const OF_A_MOMENT: [Kind; 4] = [Kind::NoWorker, Kind::Paused, Kind::OrphanedLease, Kind::StuckConsumer];

/// Remembers since when things have been as they are.
#[derive(Default)]
pub(super) struct Judge {
    /// What must not move for it to count as the same, and since when.
    since: BTreeMap<(Kind, String), (u64, i64)>,
}

/// A condition that holds now.
struct Suspect {
    kind: Kind,
    what: String,
    sentence: String,
    after_ms: i64,
    /// When this moves, it begins anew.
    still: u64,
}

impl Judge {
    /// What is wrong by now.
    pub(super) fn found(&mut self, seen: &Moment<'_>) -> Vec<Found> {
        let mut suspects = Vec::new();
        for queue in seen.queues {
            suspects.extend(no_worker(queue, seen));
            suspects.extend(paused(queue));
            suspects.extend(orphaned(queue, seen));
            suspects.extend(stuck(queue, seen));
        }
        suspects.extend(unknown_kinds(seen));
        suspects.extend(seen.durables.iter().filter_map(|(stream, state)| behind(stream, *state)));
        let mut since = BTreeMap::new();
        let mut found = Vec::new();
        for Suspect { kind, what, sentence, after_ms, still } in suspects {
            let key = (kind, what.clone());
            let before = self.since.get(&key).filter(|(at, _)| *at == still);
            let since_ms = before.map_or(seen.now_ms, |(_, since_ms)| *since_ms);
            since.insert(key, (still, since_ms));
            if seen.now_ms - since_ms >= after_ms {
                found.push(Found { kind, what, sentence, since_ms });
            }
        }
        self.since = since;
        found
    }
}

/// Workers that serve a queue, by what they are.
fn serving<'a>(
    seen: &'a Moment<'_>,
    queue: &'a str,
    states: &'static [WorkerState],
) -> impl Iterator<Item = &'a WorkerRecord> {
    let of = move |(worker, state): &&(WorkerRecord, WorkerState)| {
        states.contains(state) && worker.queues.iter().any(|served| served == queue)
    };
    seen.workers.iter().filter(of).map(|(worker, _)| worker)
}

const LIVE: &[WorkerState] = &[WorkerState::Live];
const THERE: &[WorkerState] = &[WorkerState::Live, WorkerState::Draining];

/// How many there are of something.
pub(super) fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn no_worker(queue: &QueueState, seen: &Moment<'_>) -> Option<Suspect> {
    let name = &queue.queue;
    let nobody = serving(seen, name, LIVE).next().is_none();
    let left = queue.held > 0 && serving(seen, name, THERE).next().is_none();
    if !nobody || (queue.waiting == 0 && !left) {
        return None;
    }
    let waiting = counted(queue.waiting + if left { queue.held } else { 0 }, "message");
    let text = format!(
        "{waiting} of queue {name} and no live worker that serves it; `millpond worker run --queues {name}` starts one"
    );
    Some(Suspect { kind: Kind::NoWorker, what: name.clone(), sentence: text, after_ms: NO_WORKER_AFTER_MS, still: 0 })
}

/// Kinds that workers were handed lately and none of their queue knows.
fn unknown_kinds<'a>(seen: &'a Moment<'_>) -> impl Iterator<Item = Suspect> + use<'a> {
    let mut unknown: BTreeMap<&str, ()> = BTreeMap::new();
    for (worker, _) in seen.workers.iter().filter(|(_, state)| *state == WorkerState::Live) {
        unknown.extend(worker.unknown_kinds.iter().map(|name| (name.as_str(), ())));
    }
    unknown.into_keys().filter_map(move |name| {
        let (queue, kind) = name.split_once('.')?;
        let count = serving(seen, queue, LIVE).count() as u64;
        if serving(seen, queue, LIVE).any(|worker| worker.kinds.iter().any(|known| known == kind)) {
            return None;
        }
        let sentence = format!(
            "tasks of kind {kind} wait in queue {queue}, and none of its {} knows it; start one that does, or they become dead letters",
            counted(count, "live worker")
        );
        Some(Suspect { kind: Kind::NoWorker, what: name.to_owned(), sentence, after_ms: 0, still: 0 })
    })
}

fn paused(queue: &QueueState) -> Option<Suspect> {
    if !queue.paused || queue.waiting == 0 {
        return None;
    }
    let (name, waiting) = (&queue.queue, counted(queue.waiting, "message"));
    let sentence = format!("queue {name} is paused with {waiting} waiting; `millpond queue resume {name}` goes on");
    Some(Suspect { kind: Kind::Paused, what: name.clone(), sentence, after_ms: 0, still: 0 })
}

/// What was given out, and no worker that is there holds; nothing is given out, either: what workers hand back for a
/// moment, because they do not know its kind, say, comes again at once.
fn orphaned(queue: &QueueState, seen: &Moment<'_>) -> Option<Suspect> {
    let name = &queue.queue;
    let there = serving(seen, name, THERE).count();
    // Of a worker of several queues all counts: rather none too many.
    let held: u64 = serving(seen, name, THERE).map(|worker| u64::from(worker.held)).sum();
    if there == 0 || queue.held <= held {
        return None;
    }
    let orphans = counted(queue.held - held, "message");
    let sentence = format!(
        "{orphans} of queue {name} were given to workers that do not hold them any more; the server gives them out again as soon as a worker has a free slot: add workers, or wait"
    );
    let still = deliveries(queue);
    Some(Suspect { kind: Kind::OrphanedLease, what: name.clone(), sentence, after_ms: ORPHANED_AFTER_MS, still })
}

/// How often something of a queue was given out.
fn deliveries(queue: &QueueState) -> u64 {
    queue.places.iter().map(|place| place.deliveries).sum()
}

/// What waits while live workers have free slots, and nothing is given out.
fn stuck(queue: &QueueState, seen: &Moment<'_>) -> Option<Suspect> {
    let name = &queue.queue;
    // Which slots a kind takes is the worker's to know: fewer running than the fewer ones, and one is free for any.
    let has_room = |worker: &WorkerRecord| worker.running < worker.slots.min(worker.io_slots);
    if queue.paused || queue.waiting == 0 || !serving(seen, name, LIVE).any(has_room) {
        return None;
    }
    let waiting = counted(queue.waiting, "message");
    let sentence = format!(
        "{waiting} of queue {name} wait, workers have free slots, and nothing is given out; look at the logs of its workers and of nats-server, and start the workers again"
    );
    let still = deliveries(queue);
    Some(Suspect { kind: Kind::StuckConsumer, what: name.clone(), sentence, after_ms: STUCK_AFTER_MS, still })
}

/// What ended and is not stored.
fn behind(stream: &str, state: OutcomeReaderState) -> Option<Suspect> {
    if state.pending + state.ack_pending == 0 {
        return None;
    }
    let waiting = counted(state.pending + state.ack_pending, "message");
    let sentence = format!(
        "{waiting} of {stream} are not stored, and nothing moves; what the collector's log says of the store or of NATS is the reason"
    );
    Some(Suspect {
        kind: Kind::StuckConsumer,
        what: stream.to_owned(),
        sentence,
        after_ms: BEHIND_AFTER_MS,
        still: state.ack_floor,
    })
}

/// Workers whose heartbeat has stopped.
pub(super) fn lost(workers: &[(WorkerRecord, WorkerState)]) -> Vec<Found> {
    let lost = workers.iter().filter(|(_, state)| *state == WorkerState::Lost);
    lost.map(|(worker, _)| {
        let WorkerRecord { name, host, pid, heartbeat_ms, .. } = worker;
        let held = counted(u64::from(worker.held), "message");
        let sentence = format!(
            "worker {name} (process {pid} on {host}) went without a word; {held} that it held go to others; start it again if it is missed"
        );
        Found { kind: Kind::WorkerLost, what: name.clone(), sentence, since_ms: *heartbeat_ms }
    })
    .collect()
}

/// Jobs whose producers are gone before the end of their input.
pub(super) fn stalled(jobs: &[JobRecord]) -> Vec<Found> {
    let found = jobs.iter().map(|record| {
        let JobRecord { job, kind, published, .. } = record;
        let sentence = format!(
            "the producer of job {job} is gone after {}; `millpond map {kind} … --job {job}` with the same input goes on, `millpond job cancel {job}` ends it",
            counted(*published, "task")
        );
        Found { kind: Kind::StalledJob, what: job.clone(), sentence, since_ms: record.heartbeat_ms }
    });
    found.collect()
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;

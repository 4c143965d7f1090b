//! Finds what is wrong, by what a snapshot shows and how long that has been so. No I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};

use millpond::bus::operate::queues::{QueueState, UnlistedQueues};
use millpond::bus::read::outcomes::OutcomeReaderState;
use millpond::bus::server_clock::ClockOff;
use millpond::job::JobRecord;
use millpond::wire::streams::STREAM_LATER;
use millpond::wire::subject::check_token;
use millpond::worker_record::{WorkerRecord, built_in_hint};
use millpond_api::overview::ProblemKind;
use millpond_api::workers::WorkerState;

use super::problems::FoundProblem;
use super::snapshot::{BusSnapshot, NO_PRODUCER_AFTER_MS};

/// How long messages must wait without a worker, in milliseconds: a worker may just be starting.
const NO_WORKER_AFTER_MS: i64 = 2_000;
/// How long leases must be held by no worker, in milliseconds: `ack_wait`, and the age of the workers' records.
const ORPHANED_AFTER_MS: i64 = 10_000;
/// How long nothing may be handed out while messages wait and slots are free, in milliseconds.
const STUCK_AFTER_MS: i64 = 10_000;
/// How long the collector's own durables may stand still, in milliseconds: longer than its server waits for acks.
const BEHIND_AFTER_MS: i64 = 15_000;

/// The kinds of problems that one snapshot shows.
pub(super) const OF_A_SNAPSHOT: [ProblemKind; 6] = [
    ProblemKind::NoWorker,
    ProblemKind::Paused,
    ProblemKind::OrphanedLease,
    ProblemKind::StuckConsumer,
    ProblemKind::BrokenKind,
    ProblemKind::NoProducer,
];
/// What the problem of all queues that are not listed is about: no name of a queue.
const UNLISTED: &str = "other queues";
/// How far the clock of a machine may be off, in milliseconds.
const CLOCK_OFF_MAX_MS: i64 = 2_000;

/// Remembers since when each condition holds.
#[derive(Default)]
pub(super) struct Detector {
    /// The value that must stay the same, and since when it is.
    since: BTreeMap<(ProblemKind, String), (u64, i64)>,
}

/// A condition that holds now.
struct Condition {
    kind: ProblemKind,
    what: String,
    sentence: String,
    after_ms: i64,
    /// When this value changes, the condition begins anew.
    still: u64,
}

impl Detector {
    /// What is wrong by now.
    pub(super) fn found(&mut self, seen: &BusSnapshot) -> Vec<FoundProblem> {
        let mut conditions = Vec::new();
        for queue in &seen.queues {
            conditions.extend(no_worker(queue, seen));
            conditions.extend(paused(queue));
            conditions.extend(orphaned(queue, seen));
            conditions.extend(stuck(queue, seen));
        }
        conditions.extend(unlisted(seen));
        conditions.extend(unknown_kinds(seen));
        conditions.extend(broken_kinds(seen));
        conditions.extend(seen.durables.iter().filter_map(|(stream, state)| behind(stream, *state)));
        let mut since = BTreeMap::new();
        let mut found: Vec<FoundProblem> = no_producer(seen).into_iter().collect();
        for Condition { kind, what, sentence, after_ms, still } in conditions {
            let key = (kind, what.clone());
            let before = self.since.get(&key).filter(|(at, _)| *at == still);
            let since_ms = before.map_or(seen.now_ms, |(_, since_ms)| *since_ms);
            since.insert(key, (still, since_ms));
            if seen.now_ms - since_ms >= after_ms {
                found.push(FoundProblem { kind, what, sentence, since_ms });
            }
        }
        self.since = since;
        found
    }
}

const LIVE: &[WorkerState] = &[WorkerState::Live];
const PRESENT: &[WorkerState] = &[WorkerState::Live, WorkerState::Draining];

/// How many there are of something.
pub(super) fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn no_worker(queue: &QueueState, seen: &BusSnapshot) -> Option<Condition> {
    let name = &queue.queue;
    if check_token("queue", name).is_err() {
        // No worker can serve it; what lies there is about to be dead-lettered.
        return None;
    }
    let nobody = seen.serving(name, LIVE).next().is_none();
    let left = queue.held > 0 && seen.serving(name, PRESENT).next().is_none();
    if !nobody || (queue.waiting == 0 && !left) {
        return None;
    }
    let waiting = counted(queue.waiting + if left { queue.held } else { 0 }, "message");
    let text = format!(
        "{waiting} of queue {name} and no live worker that serves it; `millpond worker run --queues {name}` starts one"
    );
    Some(Condition {
        kind: ProblemKind::NoWorker,
        what: name.clone(),
        sentence: text,
        after_ms: NO_WORKER_AFTER_MS,
        still: 0,
    })
}

/// Queues beyond those that are listed, as one.
fn unlisted(seen: &BusSnapshot) -> Option<Condition> {
    let UnlistedQueues { queues, waiting } = seen.unlisted;
    if queues == 0 {
        return None;
    }
    let sentence = format!(
        "{} of {} that no worker has ever served, beyond those that are listed; a program that publishes may be making up names: `nats stream subjects TASKS` lists them, and `millpond secrets DIR --publish-queues NAMES` bounds what the role publisher may use",
        counted(waiting, "message"),
        counted(queues, "more queue"),
    );
    let what = UNLISTED.to_owned();
    Some(Condition { kind: ProblemKind::NoWorker, what, sentence, after_ms: NO_WORKER_AFTER_MS, still: 0 })
}

/// Tasks with a time that nobody moves to where they wait for it.
fn no_producer(seen: &BusSnapshot) -> Option<FoundProblem> {
    let later = seen.later.filter(|later| seen.now_ms - later.oldest_ms >= NO_PRODUCER_AFTER_MS)?;
    let since = |ms: i64| {
        humantime::format_duration(std::time::Duration::from_secs((seen.now_ms - ms).unsigned_abs() / 1000)).to_string()
    };
    let of = if later.messages > later.looked_at {
        format!("of the {} that came first ", later.looked_at)
    } else {
        String::new()
    };
    let late = match later.late_since_ms {
        Some(late_since_ms) => format!("{of}{} late by now, the first by {}", are(later.late), since(late_since_ms)),
        None => "they will be late".to_owned(),
    };
    let sentence = format!(
        "{} with a time {} in LATER, since {} ago, and no producer service moves what is there to where it waits: {late}; start a producer (`millpond producer run`), or see its log",
        counted(later.messages, "task"),
        if later.messages == 1 { "lies" } else { "lie" },
        since(later.oldest_ms),
    );
    let what = STREAM_LATER.to_owned();
    Some(FoundProblem { kind: ProblemKind::NoProducer, what, sentence, since_ms: later.oldest_ms })
}

fn are(count: u64) -> String {
    format!("{count} {}", if count == 1 { "is" } else { "are" })
}

/// Kinds of tasks that workers got lately, and that no worker of their queue knows.
fn unknown_kinds(seen: &BusSnapshot) -> impl Iterator<Item = Condition> {
    let mut unknown: BTreeMap<&str, ()> = BTreeMap::new();
    for (worker, _) in seen.workers.iter().filter(|(_, state)| *state == WorkerState::Live) {
        unknown.extend(worker.unknown_kinds.iter().map(|name| (name.as_str(), ())));
    }
    unknown.into_keys().filter_map(move |name| {
        let (queue, kind) = name.split_once('.')?;
        let count = seen.serving(queue, LIVE).count() as u64;
        if seen.serving(queue, LIVE).any(|worker| worker.kinds.iter().any(|known| known == kind)) {
            return None;
        }
        let sentence = format!(
            "tasks of kind {kind} wait in queue {queue}, and none of its {} knows it; start one that does, or they become dead letters{}",
            counted(count, "live worker"),
            built_in_hint(kind)
        );
        Some(Condition { kind: ProblemKind::NoWorker, what: name.to_owned(), sentence, after_ms: 0, still: 0 })
    })
}

/// Kinds whose handlers cannot start, on some worker at least.
fn broken_kinds(seen: &BusSnapshot) -> impl Iterator<Item = Condition> {
    let mut broken: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for (worker, _) in seen.workers.iter().filter(|(_, state)| *state == WorkerState::Live) {
        let troubles = worker.troubles.iter();
        broken.extend(troubles.map(|(kind, why)| (kind.as_str(), (worker.name.as_str(), why.as_str()))));
    }
    broken.into_iter().map(|(kind, (worker, why))| {
        let sentence = format!(
            "the handler of kind {kind} cannot start on worker {worker}: {why}. Its tasks wait, and use up no attempt; they go on by themselves once it is mended"
        );
        Condition { kind: ProblemKind::BrokenKind, what: kind.to_owned(), sentence, after_ms: 0, still: 0 }
    })
}

fn paused(queue: &QueueState) -> Option<Condition> {
    if !queue.paused || queue.waiting == 0 {
        return None;
    }
    let (name, waiting) = (&queue.queue, counted(queue.waiting, "message"));
    let sentence = format!("queue {name} is paused with {waiting} waiting; `millpond queue resume {name}` goes on");
    Some(Condition { kind: ProblemKind::Paused, what: name.clone(), sentence, after_ms: 0, still: 0 })
}

/// Messages that were handed out, and that no worker that is there holds, while nothing else is handed out: a message that a
/// worker releases, because it does not know its kind, say, is handed out again at once.
fn orphaned(queue: &QueueState, seen: &BusSnapshot) -> Option<Condition> {
    let name = &queue.queue;
    let there = seen.serving(name, PRESENT).count();
    // All that a worker of several queues holds counts here: rather no problem than a wrong one.
    let held: u64 = seen.serving(name, PRESENT).map(|worker| u64::from(worker.held)).sum();
    if there == 0 || queue.held <= held {
        return None;
    }
    let orphans = counted(queue.held - held, "message");
    let sentence = format!(
        "{orphans} of queue {name} were given to workers that do not hold them any more; the server gives them out again as soon as a worker has a free slot: add workers, or wait"
    );
    let still = deliveries(queue);
    Some(Condition {
        kind: ProblemKind::OrphanedLease,
        what: name.clone(),
        sentence,
        after_ms: ORPHANED_AFTER_MS,
        still,
    })
}

/// How often messages of a queue were handed out.
fn deliveries(queue: &QueueState) -> u64 {
    queue.places.iter().map(|place| place.deliveries).sum()
}

/// Messages that wait while live workers have free slots, and nothing is handed out.
fn stuck(queue: &QueueState, seen: &BusSnapshot) -> Option<Condition> {
    let name = &queue.queue;
    // Only the worker knows which slots a kind takes. With fewer tasks running than it has slots of the scarcer sort, one of
    // each sort is free.
    let has_free_slot = |worker: &WorkerRecord| worker.running < worker.slots.min(worker.io_slots);
    if queue.paused || queue.waiting == 0 || !seen.serving(name, LIVE).any(has_free_slot) {
        return None;
    }
    let waiting = counted(queue.waiting, "message");
    let sentence = format!(
        "{waiting} of queue {name} wait, workers have free slots, and nothing is given out; look at the logs of its workers and of nats-server, and start the workers again"
    );
    let still = deliveries(queue);
    Some(Condition { kind: ProblemKind::StuckConsumer, what: name.clone(), sentence, after_ms: STUCK_AFTER_MS, still })
}

/// Messages about ends that are not stored.
fn behind(stream: &str, state: OutcomeReaderState) -> Option<Condition> {
    if state.pending + state.ack_pending == 0 {
        return None;
    }
    let waiting = counted(state.pending + state.ack_pending, "message");
    let sentence = format!(
        "{waiting} of {stream} are not stored, and nothing moves; what the collector's log says of the store or of NATS is the reason"
    );
    Some(Condition {
        kind: ProblemKind::StuckConsumer,
        what: stream.to_owned(),
        sentence,
        after_ms: BEHIND_AFTER_MS,
        still: state.ack_floor,
    })
}

/// Workers whose heartbeat has stopped.
pub(super) fn lost_workers(workers: &[(WorkerRecord, WorkerState)]) -> Vec<FoundProblem> {
    let lost = workers.iter().filter(|(_, state)| *state == WorkerState::Lost);
    lost.map(|(worker, _)| {
        let WorkerRecord { name, host, pid, heartbeat_ms, .. } = worker;
        let held = counted(u64::from(worker.held), "message");
        let sentence = format!(
            "worker {name} (process {pid} on {host}) went without a word; {held} that it held go to others; start it again if it is missed"
        );
        FoundProblem { kind: ProblemKind::WorkerLost, what: name.clone(), sentence, since_ms: *heartbeat_ms }
    })
    .collect()
}

/// Streams and buckets that are not there.
pub(super) fn missing_streams(names: &[String]) -> impl Iterator<Item = FoundProblem> {
    names.iter().map(|name| {
        let bucket = name.strip_prefix("KV_").or_else(|| name.strip_prefix("OBJ_"));
        let (what, sort) = bucket.map_or((name.as_str(), "stream"), |bucket| (bucket, "bucket"));
        let sentence = format!(
            "{sort} {what} is not there, somebody has deleted it; `millpond setup` makes it again, what it held is lost"
        );
        FoundProblem { kind: ProblemKind::Missing, what: what.to_owned(), sentence, since_ms: millpond::now_ms() }
    })
}

/// Queues that live workers serve, and that have no consumer.
pub(super) fn missing_consumers(
    queues: &[QueueState],
    workers: &[(WorkerRecord, WorkerState)],
) -> impl Iterator<Item = FoundProblem> {
    let live = workers.iter().filter(|(_, state)| *state == WorkerState::Live);
    let served: BTreeSet<&String> = live.flat_map(|(worker, _)| &worker.queues).collect();
    let has_both = |name: &str| queues.iter().any(|queue| queue.queue == name && queue.consumers == 2);
    served.into_iter().filter(move |name| !has_both(name)).map(|name| {
        let sentence = format!(
            "a consumer of queue {name} is not there, somebody has deleted it; a worker of the queue makes it again as soon as it has a free slot"
        );
        FoundProblem { kind: ProblemKind::Missing, what: name.clone(), sentence, since_ms: millpond::now_ms() }
    })
}

/// Machines whose clocks are off: those of live workers, of programs that tell it, and the collector's own.
pub(super) fn clocks(
    workers: &[(WorkerRecord, WorkerState)],
    told: &[ClockOff],
    own_ahead_ms: i64,
) -> impl Iterator<Item = FoundProblem> {
    let live = workers.iter().filter(|(_, state)| *state != WorkerState::Lost);
    let of_workers =
        live.map(|(worker, _)| (format!("worker {}", worker.name), worker.name.clone(), worker.clock_ahead_ms));
    let of_others = told.iter().map(|ClockOff { program, host, pid, clock_ahead_ms }| {
        (format!("{program} (process {pid} on {host})"), format!("{program} {host} {pid}"), *clock_ahead_ms)
    });
    let all = of_workers.chain(of_others);
    let all = all.chain([("the collector".to_owned(), "collector".to_owned(), own_ahead_ms)]);
    all.filter(|(_, _, ahead_ms)| ahead_ms.abs() > CLOCK_OFF_MAX_MS).map(|(who, what, ahead_ms)| {
        let (off, way) = ((ahead_ms.abs() + 500) / 1000, if ahead_ms > 0 { "ahead of" } else { "behind" });
        let sentence = format!(
            "the clock of {who} is {off} s {way} the server's; the server's counts; synchronise the clocks (NTP)"
        );
        FoundProblem { kind: ProblemKind::Clock, what, sentence, since_ms: millpond::now_ms() }
    })
}

/// Jobs whose producers are gone before the end of their input.
pub(super) fn stalled_jobs(jobs: &[JobRecord]) -> Vec<FoundProblem> {
    let found = jobs.iter().map(|record| {
        let JobRecord { job, kind, published, .. } = record;
        let sentence = format!(
            "the producer of job {job} is gone; its record, which lags behind what is stored, was last written after {}; `millpond map {kind} … --job {job}` with the same input goes on, `millpond job cancel {job}` ends it",
            counted(*published, "task")
        );
        FoundProblem { kind: ProblemKind::StalledJob, what: job.clone(), sentence, since_ms: record.heartbeat_ms }
    });
    found.collect()
}

#[cfg(test)]
#[path = "detect_tests.rs"]
mod tests;

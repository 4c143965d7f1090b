//! Each problem: what must be so, for how long, and what ends it.

use millpond::bus::operate::queues::QueueInStream;
use millpond::bus::read::later::StandingInLater;

use super::*;

fn worker(held: u32, running: u32, unknown: &[&str]) -> WorkerRecord {
    let text = r#"{"name":"w","nonce":"n","host":"h","pid":1,"queues":["q"],"kinds":["k"],"slots":2,"io_slots":4,"running":0,
        "held":0,"draining":false,"done":0,"failed":0,"unknown_kinds":[],"started_ms":0,"heartbeat_ms":0}"#;
    let record: WorkerRecord = serde_json::from_str(text).unwrap();
    WorkerRecord { held, running, unknown_kinds: unknown.iter().map(|k| (*k).to_owned()).collect(), ..record }
}

fn queue(waiting: u64, held: u64, deliveries: u64) -> QueueState {
    let place = QueueInStream { waiting, held, deliveries, ..QueueInStream::default() };
    QueueState {
        queue: "q".into(),
        waiting,
        held,
        consumers: 2,
        places: [place, QueueInStream::default()],
        ..QueueState::default()
    }
}

fn seen(now_ms: i64, queues: &[QueueState], workers: &[(WorkerRecord, WorkerState)]) -> BusSnapshot {
    let (queues, workers) = (queues.to_vec(), workers.to_vec());
    BusSnapshot { now_ms, durables: Vec::new(), queues, unlisted: UnlistedQueues::default(), later: None, workers }
}

/// What is found at these times, the same being seen each time.
fn found(times: &[i64], queue: &QueueState, workers: &[(WorkerRecord, WorkerState)]) -> Vec<Vec<ProblemKind>> {
    let mut detector = Detector::default();
    let queues = [queue.clone()];
    let at = |now_ms: &i64| detector.found(&seen(*now_ms, &queues, workers));
    times.iter().map(at).map(|found| found.iter().map(|f| f.kind).collect()).collect()
}

#[test]
fn what_waits_without_a_worker() {
    let (live, draining, lost) = (WorkerState::Live, WorkerState::Draining, WorkerState::Lost);
    for (waiting, held, workers, wanted) in [
        (1, 0, vec![], true),
        (0, 1, vec![], true),
        (0, 0, vec![], false),
        (1, 0, vec![(worker(0, 0, &[]), live)], false),
        (1, 0, vec![(worker(0, 0, &[]), draining)], true),
        (0, 1, vec![(worker(1, 1, &[]), draining)], false),
        (0, 1, vec![(worker(1, 1, &[]), lost)], true),
    ] {
        let seen = found(&[0, NO_WORKER_AFTER_MS], &queue(waiting, held, 0), &workers);
        let expected = if wanted { vec![ProblemKind::NoWorker] } else { vec![] };
        assert_eq!(seen, [vec![], expected], "{waiting} {held} {workers:?}");
    }
    let other = WorkerRecord { queues: vec!["other".into()], ..worker(0, 0, &[]) };
    assert_eq!(found(&[0, 5000], &queue(1, 0, 0), &[(other, live)])[1], [ProblemKind::NoWorker]);
}

#[test]
fn kinds_that_nobody_knows() {
    let asks = (worker(0, 0, &["q.strange"]), WorkerState::Live);
    assert_eq!(found(&[0], &queue(0, 0, 0), std::slice::from_ref(&asks)), [[ProblemKind::NoWorker]]);
    let knows = (WorkerRecord { kinds: vec!["strange".into()], ..worker(0, 0, &[]) }, WorkerState::Live);
    assert_eq!(found(&[0], &queue(0, 0, 0), &[asks, knows]), [[]]);
}

#[test]
fn kinds_that_cannot_start() {
    let troubles = [("k".to_owned(), "no module".to_owned())].into();
    let broken = (WorkerRecord { troubles, ..worker(0, 0, &[]) }, WorkerState::Live);
    assert_eq!(found(&[0], &queue(0, 0, 0), &[broken]), [[ProblemKind::BrokenKind]]);
}

#[test]
fn tasks_with_a_time_that_nobody_moves() {
    let found = |later: Option<StandingInLater>, now_ms| {
        let found = Detector::default().found(&BusSnapshot { later, ..seen(now_ms, &[], &[]) });
        found.into_iter().map(|found| (found.kind, found.since_ms, found.sentence)).collect::<Vec<_>>()
    };
    let later = |messages, oldest_ms, looked_at, late| {
        let late_since_ms = (late > 0).then_some(oldest_ms + 20_000);
        Some(StandingInLater { messages, oldest_ms, looked_at, late, late_since_ms })
    };
    assert!(found(None, 99_000).is_empty() && found(later(1, 90_001, 0, 0), 100_000).is_empty());
    for (standing, said) in [
        (later(1, 40_000, 1, 0), &["1 task with a time lies in LATER, since 1m ago", "they will be late"]),
        (later(3, 40_000, 3, 1), &["3 tasks with a time lie in LATER", ": 1 is late by now, the first by 40s;"]),
        (
            later(900, 40_000, 100, 7),
            &["900 tasks", ": of the 100 that came first 7 are late by now, the first by 40s;"],
        ),
    ] {
        let late = found(standing, 100_000);
        assert_eq!((late.len(), late[0].0, late[0].1), (1, ProblemKind::NoProducer, 40_000));
        assert!(said.iter().all(|said| late[0].2.contains(said)), "{late:?}");
    }
}

#[test]
fn leases_that_nobody_holds() {
    let one = [(worker(1, 1, &[]), WorkerState::Live)];
    let late = ORPHANED_AFTER_MS;
    assert_eq!(found(&[0, late - 1, late], &queue(0, 2, 0), &one), [vec![], vec![], vec![ProblemKind::OrphanedLease]]);
    assert_eq!(found(&[0, late], &queue(0, 1, 0), &one)[1], []);
    // It is released and handed out again.
    let mut detector = Detector::default();
    let mut at = |now_ms: i64, deliveries: u64| {
        let queues = [queue(0, 2, deliveries)];
        detector.found(&seen(now_ms, &queues, &one)).len()
    };
    assert_eq!((at(0, 1), at(late, 2), at(late * 2, 3), at(late * 3, 3)), (0, 0, 0, 1));
}

#[test]
fn a_consumer_that_gives_nothing_out() {
    let mut detector = Detector::default();
    let mut at = |now_ms: i64, queue: QueueState, running: u32| {
        let workers = [(worker(0, running, &[]), WorkerState::Live)];
        let found = detector.found(&seen(now_ms, &[queue], &workers));
        found.iter().map(|f| (f.kind, f.since_ms)).collect::<Vec<_>>()
    };
    assert_eq!(at(0, queue(1, 0, 7), 0), []);
    // It moves, waits for a slot, or is paused: it begins anew.
    assert_eq!(at(STUCK_AFTER_MS, queue(1, 0, 8), 0), []);
    assert_eq!(at(STUCK_AFTER_MS * 2, queue(1, 0, 8), 2), []);
    assert_eq!(at(STUCK_AFTER_MS * 3, queue(1, 0, 8), 0), []);
    assert_eq!(at(STUCK_AFTER_MS * 4, queue(1, 0, 8), 0), [(ProblemKind::StuckConsumer, STUCK_AFTER_MS * 3)]);
    let paused = QueueState { paused: true, ..queue(1, 0, 8) };
    assert_eq!(at(STUCK_AFTER_MS * 5, paused, 0), [(ProblemKind::Paused, STUCK_AFTER_MS * 5)]);
}

#[test]
fn a_collector_that_stands_still() {
    let mut detector = Detector::default();
    let mut at = |now_ms: i64, ack_floor: u64, pending: u64| {
        let durables = [("RESULTS", OutcomeReaderState { ack_floor, pending, ack_pending: 0 })];
        detector.found(&BusSnapshot { durables: durables.to_vec(), ..seen(now_ms, &[], &[]) }).len()
    };
    assert_eq!((at(0, 5, 1), at(BEHIND_AFTER_MS, 5, 9)), (0, 1));
    assert_eq!(
        (at(BEHIND_AFTER_MS * 2, 6, 9), at(BEHIND_AFTER_MS * 3, 6, 0), at(BEHIND_AFTER_MS * 4, 6, 1)),
        (0, 0, 0)
    );
}

#[test]
fn sentences_say_what_to_do() {
    let lost = lost_workers(&[(worker(2, 1, &[]), WorkerState::Lost)]);
    assert!(lost[0].sentence.contains("2 messages that it held"), "{lost:?}");
    let record = r#"{"job":"j1","queue":"default","kind":"square","epoch":1,"state":"open","published":1,"results_after":0,"producer":"p","created_ms":1,"heartbeat_ms":2}"#;
    let stalled = stalled_jobs(&[serde_json::from_str(record).unwrap()]);
    assert!(stalled[0].sentence.contains("after 1 task;") && stalled[0].sentence.contains("--job j1"), "{stalled:?}");
}

//! How fast it merges, finds and counts with a million tasks; run by hand:
//! `cargo test --release -p millpond-collector speed -- --ignored --nocapture` (with MILLPOND_TEST_POSTGRES_URL on Postgres).

use std::time::{Duration, Instant};

use millpond_api::jobs::JobStatus;
use millpond_api::tasks::TaskStatus;

use super::*;

/// Packs of one pull, and outcomes of one pack, under load.
const PACKS: usize = 16;
const OUTCOMES: usize = 256;
/// Jobs with a record.
const JOBS: usize = 100_000;
/// Reads of each list.
const READS: usize = 9;

/// Tasks as they come under load: most are done, one of a thousand fails and dies; three queues, twenty kinds, ten workers.
fn pull(pull: usize) -> Vec<OutcomeMessage> {
    let pack = |pack: usize| {
        let first = (pull * PACKS + pack) * OUTCOMES;
        let one = |n: usize| {
            let end = if n % 1000 == 7 { Err(NotDoneState::Dead) } else { Ok(7) };
            let mut message = outcome(&format!("j{}.1/{}", n / 100_000, n % 100_000), None, 1, &[end]);
            let Ok(OutcomeBody::Results(_, pack, _)) = &mut message.body else { unreachable!() };
            let outcome = pack.outcomes.remove(0);
            let (trace, at) = (Some(format!("{n:032x}")), n as i64 + 1_000_000);
            let index = Some(n as u64 % 100_000);
            Outcome { index, published_ms: at, started_ms: at + 1, ended_ms: at + 2, trace, ..outcome }
        };
        let outcomes = (first..first + OUTCOMES).map(one).collect();
        let job = Some(format!("j{}", first / 100_000));
        let subject = TaskSubject::new(format!("q{}", pack % 3), format!("k{}", first / OUTCOMES % 20), job).unwrap();
        let worker = format!("w{}", pack % 10);
        let mut message = message(
            OutcomeBody::Results(subject, ResultBatch { v: 1, worker, outcomes, cancelled: None }, Vec::new()),
            b"",
        );
        message.stored_ms = first as i64 + 1_000_000;
        message
    };
    // A dead letter is stored before the outcome that names it.
    let letter = |n: usize| {
        let (pack, at) = (n / OUTCOMES % PACKS, n as i64 + 1_000_000);
        let mut message = dead(&format!("j{}.1/{}", n / 100_000, n % 100_000), None, 1);
        let Ok(OutcomeBody::Dead(subject, evidence)) = &mut message.body else { unreachable!() };
        *subject = TaskSubject::new(format!("q{}", pack % 3), format!("k{}", n / OUTCOMES % 20), None).unwrap();
        (evidence.job, evidence.worker) = (Some(format!("j{}", n / 100_000)), format!("w{}", pack % 10));
        (evidence.index, evidence.trace) = (Some(n as u64 % 100_000), Some(format!("{n:032x}")));
        (evidence.published_ms, evidence.started_ms, evidence.dead_lettered_ms) = (at, Some(at + 1), at + 2);
        message
    };
    let all = pull * PACKS * OUTCOMES..(pull + 1) * PACKS * OUTCOMES;
    all.filter(|n| n % 1000 == 7).map(letter).chain((0..PACKS).map(pack)).collect()
}

/// The median and the longest of some reads.
async fn reads(what: &str, mut read: impl AsyncFnMut()) {
    let mut took = Vec::new();
    for _ in 0..READS {
        let started = Instant::now();
        read().await;
        took.push(started.elapsed());
    }
    took.sort();
    println!("{what:<48} median {:>10.3?}, longest {:>10.3?}", took[READS / 2], took[READS - 1]);
}

/// Lists of many jobs: all but a few are finished.
async fn list_jobs(store: &Store) {
    let started = Instant::now();
    for n in 0..JOBS {
        let (job, now) = (format!("many-{n}"), millpond::now_ms());
        let (state, heartbeat_ms) = match n % 10_000 {
            1 => ("open", now + 3_600_000),
            2 => ("open", 1),
            3 => ("cancelled", now),
            _ => ("closed", now),
        };
        let total = u64::from(n % 10_000 == 4);
        let record = json!({"job": job, "queue": "q", "kind": "k", "epoch": 1, "state": state, "total": total,
            "published": total, "results_after": 0, "producer": "p", "created_ms": now, "heartbeat_ms": heartbeat_ms});
        store.put_job(&serde_json::from_value(record).unwrap(), now).await.unwrap();
    }
    println!("{JOBS} records of jobs written in {:?}", started.elapsed());
    let page = Page { limit: 100, after: None };
    let named = |name: &str| Some(name.to_owned());
    reads("jobs", async || drop(store.jobs(&JobQuery::default(), page).await.unwrap())).await;
    for name in ["many", "many-77", "none"] {
        let filter = JobQuery { name: named(name), state: None };
        reads(&format!("jobs, {name}…"), async || drop(store.jobs(&filter, page).await.unwrap())).await;
    }
    for state in JobStatus::ALL {
        let filter = JobQuery { name: None, state: Some(*state) };
        reads(&format!("jobs, {state}"), async || drop(store.jobs(&filter, page).await.unwrap())).await;
    }
    let filter = JobQuery { name: named("many-99999"), state: Some(JobStatus::Finished) };
    reads("jobs, finished, one name", async || drop(store.jobs(&filter, page).await.unwrap())).await;
    let before = Page { after: Some(crate::store::ListCursor { n: 500, at_ms: None }), ..page };
    reads("jobs before 500", async || drop(store.jobs(&JobQuery::default(), before).await.unwrap())).await;
}

#[tokio::test]
#[ignore = "a measurement, not a test"]
async fn speed() {
    let (_home, store) = store().await;
    let tasks: usize = std::env::var("TASKS").map_or(1_000_000, |n| n.parse().unwrap());
    let (mut merging, mut count) = (Duration::ZERO, 0);
    while count < tasks {
        let messages = pull(count / (PACKS * OUTCOMES));
        let started = Instant::now();
        store.merge(OutcomeStream::Results, &messages).await.unwrap();
        merging += started.elapsed();
        count += PACKS * OUTCOMES;
    }
    let rate = count as f64 / merging.as_secs_f64();
    println!(
        "{}: {count} outcomes merged in {merging:?}: {rate:.0}/s, {} bytes",
        store.kind(),
        store.bytes().await.unwrap()
    );
    let page = Page { limit: 100, after: None };
    let named = |name: &str| Some(name.to_owned());
    let none = TaskQuery::default;
    reads("a task by its id", async || drop(store.task("j3.1/5000", None, None).await.unwrap())).await;
    reads("a task that is not there", async || drop(store.task("nothing.1/5", None, None).await.unwrap())).await;
    for (what, filter) in [
        ("tasks", none()),
        ("tasks of a kind", TaskQuery { kind: named("k3"), ..none() }),
        ("tasks of a queue", TaskQuery { queue: named("q1"), ..none() }),
        ("tasks of a job", TaskQuery { job: named("j2"), ..none() }),
        ("tasks of a worker", TaskQuery { worker: named("w9"), ..none() }),
        ("tasks of no worker", TaskQuery { worker: named("other"), ..none() }),
        ("tasks that are dead", TaskQuery { status: Some(TaskStatus::Dead), ..none() }),
        ("tasks that are done", TaskQuery { status: Some(TaskStatus::Done), ..none() }),
        ("tasks that are cancelled", TaskQuery { status: Some(TaskStatus::Cancelled), ..none() }),
        ("dead tasks of a kind", TaskQuery { status: Some(TaskStatus::Dead), kind: named("k3"), ..none() }),
        ("tasks of a kind and a worker", TaskQuery { kind: named("k3"), worker: named("w1"), ..none() }),
        ("tasks of a time", TaskQuery { since: Some(1_400_000), until: Some(1_500_000), ..none() }),
        ("tasks of a time and a kind", TaskQuery { since: Some(1_400_000), kind: named("k3"), ..none() }),
        ("tasks with an error", TaskQuery { error: named("attempt 1"), ..none() }),
        ("tasks with an error that none has", TaskQuery { error: named("no such text"), ..none() }),
        (
            "dead tasks of a job with an error",
            TaskQuery { error: named("tempt"), job: named("j2"), status: Some(TaskStatus::Dead), ..none() },
        ),
    ] {
        reads(what, async || drop(store.tasks(&filter, page).await.unwrap())).await;
    }
    for at in [1000_i64, 500_000] {
        let page = Page { after: Some(crate::store::ListCursor { n: at, at_ms: Some(at + 1_000_000) }), ..page };
        reads(&format!("tasks before {at}"), async || drop(store.tasks(&none(), page).await.unwrap())).await;
    }
    list_jobs(&store).await;
    let after = ResultCursor::parse("50000.0.0");
    reads("results from the middle of a job", async || drop(store.job_results("j2", 0, 100, after).await.unwrap()))
        .await;
    reads("unfinished tasks counted", async || assert!(store.unfinished().await.is_ok())).await;
    reads("the series of an hour", async || drop(store.series(3_600_000, None).await.unwrap())).await;
    let started = Instant::now();
    for n in 0..100 {
        merge(&store, &[outcome(&format!("lone-{n}"), None, 1, &[Ok(7)])]).await;
    }
    println!("a lone outcome in {:?}", started.elapsed() / 100);
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        status.lines().filter(|line| line.starts_with("VmHWM")).for_each(|line| println!("{line}"));
    }
}

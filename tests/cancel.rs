//! Cancelling, hard and durable: what waits is removed, what waits for its time too, what runs is ended; whatever dies
//! meanwhile, nothing of it runs later.

use std::path::PathBuf;

use futures_util::stream;
use millpond::bus::Role;
use millpond::bus::operate::cancel::Tombstone;
use millpond::bus::publish::RetryDeadline;
use millpond::bus::topology::stream_state;
use millpond::client::{BatchSize, MapSpec, NewTask};
use millpond::wire::streams::{STREAM_DUE, STREAM_LATER, STREAM_TASKS};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Cluster, PATIENCE, Process, output, statuses, task, text, until};

fn named(id: &str, kind: &str, arguments: &str) -> NewTask {
    NewTask { id: Some(id.into()), ..task(kind, arguments) }
}

async fn submit(cluster: &Cluster, task: &NewTask) {
    cluster.client.submit(task, RetryDeadline::Unlimited).await.unwrap();
}

async fn cancel(cluster: &Cluster, id: &str) -> Value {
    let asked = json!({ "id": id });
    until("answer", PATIENCE, async || cluster.api.post::<Value>("/api/v1/task/cancel", &asked).await.ok()).await
}

async fn publish(cluster: &Cluster, job: &str, kind: &str, argument: &'static str, count: usize, batch: BatchSize) {
    let spec =
        MapSpec { queue: "default".into(), kind: kind.into(), job: Some(job.into()), batch, ..MapSpec::default() };
    let input = stream::iter((0..count).map(move |_| Ok(argument.into())));
    assert_eq!(cluster.client.publish_all(spec, input).await.unwrap().tasks, count as u64);
}

async fn is_empty(cluster: &Cluster) {
    let bus = cluster.nats.bus(Role::Setup).await;
    until("no task in LATER, TASKS and DUE", PATIENCE, async || {
        for (stream, tasks) in
            [(STREAM_LATER, ">"), (STREAM_TASKS, ">"), (STREAM_DUE, "sched.>"), (STREAM_DUE, "due.>")]
        {
            if bus.next_raw_message(stream, 1, tasks).await.unwrap().is_some() {
                return None;
            }
        }
        Some(())
    })
    .await;
}

/// A kind whose tasks write the time to a file while they run, and do not listen.
struct Beats {
    dir: TempDir,
}

impl Beats {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = r#"
import json, sys, time
for line in sys.stdin:
    if json.loads(line).get("shutdown"):
        break
    for _ in range(100):
        with open(sys.argv[1], "a") as beats:
            beats.write(f"{time.time_ns() // 1000000}\n")
        time.sleep(0.02)
    print('{"result": 1}', flush=True)
"#;
        let (script, file) = (dir.path().join("beat.py"), dir.path().join("beats"));
        std::fs::write(&script, program).unwrap();
        let handlers = format!("[beat]\ncommand = [\"python3\", {script:?}, {file:?}]\n");
        std::fs::write(dir.path().join("handlers.toml"), handlers).unwrap();
        Self { dir }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("beats")
    }

    fn worker(&self, cluster: &Cluster, name: &str) -> Process {
        let handlers = self.dir.path().join("handlers.toml");
        cluster.worker(name, &["--handlers", handlers.to_str().unwrap(), "--slots", "2"], None)
    }

    fn all(&self) -> Vec<i64> {
        let beats = std::fs::read_to_string(self.file()).unwrap_or_default();
        beats.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_task_ends_at_the_door() {
    let cluster = Cluster::start().await;
    let operator = cluster.nats.bus(Role::Collector).await;
    let tombstone = Tombstone::Task {
        queue: "default".into(),
        kind: Some("square".into()),
        id: "cancelled".into(),
        by: "test".into(),
    };
    operator.put_tombstone(&tombstone).await.unwrap();
    submit(&cluster, &named("cancelled", "square", "4")).await;
    let _worker = cluster.worker("w1", &[], None);
    assert_eq!(cluster.ended("cancelled").await["status"], "cancelled");
    submit(&cluster, &named("not-cancelled", "square", "4")).await;
    assert_eq!(cluster.ended("not-cancelled").await["result"], 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_cancelled_wherever_it_is() {
    let mut cluster = Cluster::start().await;
    submit(&cluster, &named("waits", "square", "4")).await;
    let in_an_hour = Some(millpond::now_ms() + 3_600_000);
    submit(&cluster, &NewTask { at_ms: in_an_hour, ..named("later", "square", "4") }).await;
    assert_eq!(cancel(&cluster, "waits").await["ended"], false);
    assert_eq!(cancel(&cluster, "later").await["ended"], true);
    assert_eq!(cluster.ended("later").await["status"], "cancelled");
    // All that it takes is stored: neither the server nor the collector has to live on.
    cluster.nats.restart();
    cluster.restart_collector(None);
    let _worker = cluster.worker("w1", &["--slots", "2", "--retry-delay", "1h", "--retry-delay-max", "1h"], None);
    assert_eq!(cluster.ended("waits").await["status"], "cancelled");
    submit(&cluster, &named("retries", "fail", r#"{"how":"error"}"#)).await;
    until("waiting retry", PATIENCE, async || {
        (cluster.get("/api/v1/task", &[("id", "retries".into())]).await?["status"] == "retrying").then_some(())
    })
    .await;
    assert_eq!(cancel(&cluster, "retries").await["ended"], true);
    assert_eq!(cluster.ended("retries").await["status"], "cancelled");
    for (id, kind) in [("waiting", "sleep"), ("computing", "spin")] {
        submit(&cluster, &named(id, kind, "600")).await;
        cluster.worker_is("w1", |w| w["running"] == 1).await;
        cancel(&cluster, id).await;
        assert_eq!(cluster.ended(id).await["status"], "cancelled", "{id}");
        cluster.worker_is("w1", |w| w["running"] == 0).await;
    }
    is_empty(&cluster).await;
    let again = cluster.command(&["task", "cancel", "waits"]).output().unwrap();
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("it is cancelled"), "{said}");
    let unknown = cluster.command(&["task", "cancel", "nobody"]).output().unwrap();
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("name its queue"));
}

#[tokio::test(flavor = "multi_thread")]
async fn items_of_a_batch_are_cancelled_alone() {
    let cluster = Cluster::start().await;
    publish(&cluster, "items", "sleep", "1", 10, BatchSize::Fixed(10)).await;
    until("the job's record", PATIENCE, async || cluster.get("/api/v1/jobs/items", &[]).await).await;
    cluster.api.post::<Value>("/api/v1/task/cancel", &json!({ "id": "items.1/8", "queue": "default" })).await.unwrap();
    let _worker = cluster.worker("w1", &["--slots", "1", "--io-slots", "1"], None);
    cluster.worker_is("w1", |w| w["running"] == 1).await;
    // While an earlier one runs; of what is handed on it is the last.
    cluster.api.post::<Value>("/api/v1/task/cancel", &json!({ "id": "items.1/7", "queue": "default" })).await.unwrap();
    let ends = cluster.job_ends("items", 10, PATIENCE).await;
    let expected: Vec<&str> = (0..10).map(|i| if i == 7 || i == 8 { "cancelled" } else { "done" }).collect();
    assert_eq!(statuses(&ends), expected);
    is_empty(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_large_job_nothing_runs_a_second_after_its_cancellation() {
    const TASKS: usize = 100_000;
    let (cluster, beats) = (Cluster::start().await, Beats::new());
    let _workers = [beats.worker(&cluster, "w1"), beats.worker(&cluster, "w2")];
    publish(&cluster, "large", "beat", "1", TASKS, BatchSize::Fixed(1)).await;
    until("running tasks", PATIENCE, async || (beats.all().len() > 20).then_some(())).await;
    let asked = tokio::task::spawn_blocking({
        let mut command = cluster.command(&["job", "cancel", "large", "--json"]);
        move || command.output().unwrap()
    });
    let asked = asked.await.unwrap();
    let cancelled_ms = millpond::now_ms();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let said: Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert!(said["removed"].as_u64().unwrap() > 90_000, "{said}");
    // Another job takes the slots: what still ran would be seen.
    publish(&cluster, "next", "square", "3", 100, BatchSize::Auto).await;
    cluster.job_ends("next", 100, PATIENCE).await;
    for worker in ["w1", "w2"] {
        cluster.worker_is(worker, |w| w["held"] == 0 && w["heartbeat_ms"].as_i64() > Some(cancelled_ms + 1500)).await;
    }
    let last = *beats.all().last().unwrap();
    assert!(last <= cancelled_ms + 1000, "a task ran {} ms after the cancellation", last - cancelled_ms);
    let job = cluster.get("/api/v1/jobs/large", &[]).await.unwrap();
    let count = |field: &str| job[field].as_u64().unwrap();
    assert_eq!((&job["state"], count("done") + count("cancelled")), (&json!("cancelled"), TASKS as u64), "{job}");
    is_empty(&cluster).await;
    // A task of it that never ran has ended too.
    assert_eq!(cluster.ended("large.1/99999").await["status"], "cancelled");
    let waited = cluster.command(&["job", "wait", "large"]).output().unwrap();
    assert_eq!(waited.status.code(), Some(1));
    // The name can be used again; the old ends stay as they are.
    let again = cluster.command(&["map", "square", "--range", "0..50", "--job", "large"]);
    let again = output(again).await;
    let squares: String = (0..50).map(|n| format!("{}\n", n * n)).collect();
    assert_eq!(String::from_utf8_lossy(&again.stdout), squares);
    cluster.job_ends("large", 50, PATIENCE).await;
    assert_eq!(cluster.get("/api/v1/jobs/large", &[]).await.unwrap()["epoch"], 2);
    assert_eq!(cluster.ended("large.1/99999").await["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_job_hears_that_it_is_cancelled() {
    let cluster = Cluster::start().await;
    let map = cluster.started(&["map", "square", "--range", "0..30", "--job", "waited"]);
    let lone = cluster.started(&["submit", "square", "3", "--wait"]);
    let bus = cluster.nats.bus(Role::Setup).await;
    until("stored tasks", PATIENCE, async || {
        (stream_state(&bus, STREAM_TASKS).await.unwrap().messages >= 2).then_some(())
    })
    .await;
    cluster.api.post::<Value>("/api/v1/jobs/waited/cancel", &json!({})).await.unwrap();
    let map = map.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&map.stderr);
    assert_eq!(map.status.code(), Some(1), "{said}");
    assert!(said.contains("which was cancelled"), "{said}");
    assert!(String::from_utf8_lossy(&map.stdout).lines().all(str::is_empty), "a cancelled item has no result");
    let _worker = cluster.worker("w1", &[], None);
    assert_eq!(lone.wait_with_output().await.unwrap().stdout, b"9\n");
    is_empty(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_dies_half_way_still_cancels() {
    for failpoint in ["cancel.marked", "cancel.told"] {
        let mut cluster = Cluster::start().await;
        cluster.restart_collector(Some(failpoint));
        publish(&cluster, "half", "square", "2", 200, BatchSize::Fixed(1)).await;
        until("the job's record", PATIENCE, async || cluster.get("/api/v1/jobs/half", &[]).await).await;
        assert!(cluster.api.post::<Value>("/api/v1/jobs/half/cancel", &json!({})).await.is_err(), "the collector dies");
        let _worker = cluster.worker("w1", &[], None);
        // Workers need no collector to know of it.
        is_empty(&cluster).await;
        cluster.restart_collector(None);
        let job = until("cancelled job", PATIENCE, async || {
            let job = cluster.get("/api/v1/jobs/half", &[]).await?;
            (job["cancelled"] == 200).then_some(job)
        })
        .await;
        assert_eq!(job["done"], 0, "{job}");
        // To ask again does no harm.
        if text(&job, "state") != "finished" {
            cluster.api.post::<Value>("/api/v1/jobs/half/cancel", &json!({})).await.unwrap();
        }
        assert_eq!(cluster.ended("half.1/7").await["status"], "cancelled");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_by_kind_ends_what_runs_of_it_and_nothing_else() {
    let (cluster, beats) = (Cluster::start().await, Beats::new());
    let _worker = beats.worker(&cluster, "w1");
    publish(&cluster, "purged", "beat", "1", 20, BatchSize::Fixed(1)).await;
    submit(&cluster, &NewTask { at_ms: Some(millpond::now_ms() + 3_600_000), ..named("later", "beat", "1") }).await;
    submit(&cluster, &named("other", "sleep", "2")).await;
    until("running tasks", PATIENCE, async || (beats.all().len() > 5).then_some(())).await;
    let purge = cluster.command(&["queue", "purge", "default", "--kind", "beat", "--yes", "--json"]).output().unwrap();
    let purged_ms = millpond::now_ms();
    let said: Value = serde_json::from_slice(&purge.stdout).unwrap();
    // What a worker holds is removed as well, and told by it.
    assert!(said["count"].as_u64().unwrap() >= 10, "{said}");
    assert_eq!(cluster.ended("other").await["status"], "done");
    is_empty(&cluster).await;
    let last = *beats.all().last().unwrap();
    assert!(last <= purged_ms + 1000, "a task ran {} ms after the purge", last - purged_ms);
    let ran = cluster.get("/api/v1/tasks", &[("job", "purged".into())]).await.unwrap();
    let ran = ran["rows"].as_array().unwrap();
    assert!(!ran.is_empty() && ran.iter().all(|t| t["status"] == "cancelled" || t["status"] == "done"), "{ran:?}");
    submit(&cluster, &named("after", "square", "5")).await;
    assert_eq!(cluster.ended("after").await["result"], 25);
}

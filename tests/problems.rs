//! What is wrong is shown with what to do, and goes when it is mended; what a purge has robbed ends.

use std::time::{Duration, Instant};

use futures_util::stream;
use millpond::bus::publish::RetryDeadline;
use millpond::client::{BatchSize, MapSpec, NewTask};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, Process, statuses, task, text, until};

async fn submit(cluster: &Cluster, id: &str, task: NewTask) {
    cluster.client.submit(&NewTask { id: Some(id.into()), ..task }, RetryDeadline::Unlimited).await.unwrap();
}

async fn publish(cluster: &Cluster, job: &str, kind: &str, argument: &'static str, count: usize, batch: BatchSize) {
    let spec =
        MapSpec { queue: "default".into(), kind: kind.into(), job: Some(job.into()), batch, ..MapSpec::default() };
    let input = stream::iter((0..count).map(move |_| Ok(argument.into())));
    assert_eq!(cluster.client.publish_all(spec, input).await.unwrap().tasks, count as u64);
}

async fn problem(cluster: &Cluster, kind: &str, what: &str) -> Option<Value> {
    let problems = cluster.get("/api/v1/problems", &[]).await?;
    problems["rows"].as_array()?.iter().find(|row| row["kind"] == kind && row["what"] == what).cloned()
}

async fn shown(cluster: &Cluster, kind: &str, what: &str, words: &str) -> Value {
    let row = until(&format!("problem {kind} of {what}"), PATIENCE, async || problem(cluster, kind, what).await).await;
    assert!(text(&row, "sentence").contains(words), "{row}");
    assert!(row["since_ms"].as_i64().is_some_and(|ms| ms <= millpond::now_ms()), "{row}");
    row
}

async fn gone(cluster: &Cluster, kind: &str, what: &str) {
    until(&format!("end of problem {kind} of {what}"), PATIENCE, async || {
        cluster.get("/api/v1/problems", &[]).await?;
        problem(cluster, kind, what).await.is_none().then_some(())
    })
    .await;
}

async fn purge(cluster: &Cluster, queue: &str, body: Value) -> Value {
    cluster.api.post::<Value>(&format!("/api/v1/queues/{queue}/purge"), &body).await.unwrap()
}

async fn job(cluster: &Cluster, name: &str) -> Value {
    cluster.get(&format!("/api/v1/jobs/{name}"), &[]).await.unwrap_or_default()
}

async fn queue(cluster: &Cluster, name: &str) -> Value {
    let queues = cluster.get("/api/v1/queues", &[]).await.unwrap();
    queues["rows"].as_array().unwrap().iter().find(|row| row["queue"] == name).cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_without_a_worker_is_shown_until_one_comes() {
    let cluster = Cluster::start().await;
    let before_ms = millpond::now_ms() - 1000;
    submit(&cluster, "first", task("square", "3")).await;
    submit(&cluster, "second", task("square", "4")).await;
    shown(&cluster, "no_worker", "default", "2 messages of queue default").await;
    // Nobody has ever served it, and it is listed all the same.
    let row = until("row of the queue", PATIENCE, async || {
        Some(queue(&cluster, "default").await).filter(|row| row["waiting"] == 2)
    })
    .await;
    assert_eq!(row["workers"], 0);
    let oldest = row["oldest_ms"].as_i64().unwrap();
    assert!((before_ms..=millpond::now_ms()).contains(&oldest), "{row}");
    let worker = cluster.worker("w1", &["--slots", "1", "--io-slots", "1"], None);
    assert_eq!(cluster.ended("second").await["result"], 16);
    gone(&cluster, "no_worker", "default").await;
    until("served and empty queue", PATIENCE, async || {
        let row = queue(&cluster, "default").await;
        (row["workers"] == 1 && row["oldest_ms"].is_null()).then_some(())
    })
    .await;
    // What a worker holds does not wait.
    submit(&cluster, "long", task("sleep", "600")).await;
    cluster.worker_is("w1", |w| w["running"] == 1).await;
    cluster.api.post::<Value>("/api/v1/queues/default/pause", &json!({})).await.unwrap();
    let from_ms = millpond::now_ms() - 1000;
    submit(&cluster, "behind", task("square", "5")).await;
    until("what waits longest", PATIENCE, async || {
        queue(&cluster, "default").await["oldest_ms"].as_i64().filter(|oldest| *oldest >= from_ms)
    })
    .await;
    submit(&cluster, "strange", NewTask { queue: "other".into(), ..task("strange", "1") }).await;
    let _other = cluster.worker("w2", &["--queues", "other"], None);
    shown(&cluster, "no_worker", "other.strange", "none of its 1 live worker knows it").await;
    let metrics = reqwest::get(format!("{}/metrics", cluster.collector_url())).await.unwrap().text().await.unwrap();
    assert!(metrics.contains(r#"millpond_problems{kind="no_worker"} 1"#), "{metrics}");
    drop(worker);
    shown(&cluster, "no_worker", "default", "2 messages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_lost_within_ten_seconds_and_back_when_it_is() {
    let cluster = Cluster::start().await;
    let mut worker = cluster.worker("w1", &["--slots", "1", "--io-slots", "1"], None);
    let rest = cluster.worker("w2", &["--slots", "1", "--io-slots", "1"], None);
    for name in ["w1", "w2"] {
        submit(&cluster, name, task("sleep", "600")).await;
        cluster.worker_is(name, |w| w["state"] == "live").await;
    }
    for name in ["w1", "w2"] {
        cluster.worker_is(name, |w| w["held"].as_u64() >= Some(1)).await;
    }
    cluster.worker_is("w1", |w| w["history"].as_array().is_some_and(|history| history.len() >= 2)).await;
    worker.kill9();
    let killed = Instant::now();
    let row = shown(&cluster, "worker_lost", "w1", "1 message that it held").await;
    assert!(killed.elapsed() < Duration::from_secs(10), "after {:?}", killed.elapsed());
    assert_eq!(row["mended"], false);
    // The other one has no slot for what it held.
    shown(&cluster, "orphaned_lease", "default", "1 message of queue default").await;
    let _back = cluster.worker("w1", &["--slots", "1", "--io-slots", "1"], None);
    gone(&cluster, "worker_lost", "w1").await;
    gone(&cluster, "orphaned_lease", "default").await;
    let row = cluster.worker_is("w1", |w| w["running"] == 1).await;
    let beat = row["history"].as_array().unwrap().last().unwrap();
    assert!(
        beat["at_ms"] == row["heartbeat_ms"] && beat["rss_bytes"].as_u64() > Some(0) && beat["running"] == 1,
        "{row}"
    );
    // One that leaves in good order is none.
    rest.signal(Signal::SIGKILL);
    shown(&cluster, "worker_lost", "w2", "went without a word").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_and_a_stalled_job_are_shown() {
    let cluster = Cluster::start().await;
    let worker = cluster.worker("w1", &[], None);
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    cluster.api.post::<Value>("/api/v1/queues/default/pause", &json!({})).await.unwrap();
    submit(&cluster, "t", task("square", "3")).await;
    shown(&cluster, "paused", "default", "millpond queue resume default").await;
    cluster.api.post::<Value>("/api/v1/queues/default/resume", &json!({})).await.unwrap();
    gone(&cluster, "paused", "default").await;
    let mut map = cluster.command(&["map", "square", "--job", "half", "-"]);
    map.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut map = Process::start_talking(&mut map);
    until("the job's record", PATIENCE, async || (job(&cluster, "half").await["state"] == "open").then_some(())).await;
    map.kill9();
    shown(&cluster, "stalled_job", "half", "--job half").await;
    cluster.api.post::<Value>("/api/v1/jobs/half/cancel", &json!({})).await.unwrap();
    gone(&cluster, "stalled_job", "half").await;
    worker.signal(Signal::SIGTERM);
    until("end of the worker's row", PATIENCE, async || {
        let workers = cluster.get("/api/v1/workers", &[]).await?;
        workers["rows"].as_array()?.is_empty().then_some(())
    })
    .await;
    assert!(problem(&cluster, "worker_lost", "w1").await.is_none(), "it left in good order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_lets_its_jobs_end() {
    let cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    let worker = cluster.worker("w1", &["--slots", "1", "--io-slots", "1"], None);
    publish(&cluster, "fast", "square", "3", 5, BatchSize::Fixed(1)).await;
    cluster.job_ends("fast", 5, PATIENCE).await;
    drop(worker);
    // A batch, of which nothing has begun, and a job with a task to follow.
    publish(&cluster, "batched", "square", "3", 40, BatchSize::Fixed(10)).await;
    let then = cluster
        .command(&["map", "square", "--range", "0..7", "--job", "then", "--continuation", "echo", "--no-wait"])
        .output();
    assert!(then.unwrap().status.success());
    until("closed jobs", PATIENCE, async || {
        let (batched, then) = (job(&cluster, "batched").await, job(&cluster, "then").await);
        (batched["state"] == "closed" && then["state"] == "closed").then_some(())
    })
    .await;
    assert!(purge(&cluster, "default", json!({ "kind": "square" })).await["count"].as_u64() > Some(0));
    for (name, total) in [("batched", 40), ("then", 7)] {
        let ended = until(&format!("end of {name}"), PATIENCE, async || {
            Some(job(&cluster, name).await).filter(|job| job["state"] == "finished")
        })
        .await;
        assert_eq!((&ended["purged"], &ended["done"]), (&json!(total), &json!(0)), "{ended}");
        let row = shown(&cluster, "lost_task", name, "removed by a purge of queue default").await;
        assert_eq!(row["mended"], true);
    }
    let waited = cluster.command(&["job", "wait", "batched"]).output().unwrap();
    assert_eq!(waited.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&waited.stderr).contains("40 removed by a purge"), "{waited:?}");
    let _worker = cluster.worker("w2", &[], None);
    let followed = cluster.ended("then.1/then").await;
    assert_eq!((&followed["result"]["total"], &followed["result"]["purged"]), (&json!(7), &json!(7)), "{followed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_to_run_again_and_was_purged_is_cancelled() {
    let cluster = Cluster::start().await;
    let long = ["--slots", "2", "--io-slots", "1", "--retry-delay", "1h", "--retry-delay-max", "1h"];
    let _worker = cluster.worker("w1", &long, None);
    publish(&cluster, "retries", "fail", r#"{"how":"error"}"#, 2, BatchSize::Fixed(1)).await;
    submit(&cluster, "alone", task("fail", "{}")).await;
    for id in ["retries.1/0", "retries.1/1", "alone"] {
        until("waiting retry", PATIENCE, async || {
            (cluster.get("/api/v1/task", &[("id", id.into())]).await?["status"] == "retrying").then_some(())
        })
        .await;
    }
    // Some of a batch is done, the others wait for the same slot.
    publish(&cluster, "parts", "sleep", "1", 8, BatchSize::Fixed(8)).await;
    until("a part that is done", PATIENCE, async || {
        (job(&cluster, "parts").await["done"].as_u64() >= Some(1)).then_some(())
    })
    .await;
    purge(&cluster, "default", json!({})).await;
    let alone = cluster.ended("alone").await;
    let last = alone["attempts"].as_array().unwrap().last().unwrap();
    assert_eq!((&alone["status"], &last["failure"]["type"]), (&json!("cancelled"), &json!("purged")), "{alone}");
    let why = cluster.get("/api/v1/why", &[("id", "alone".into())]).await.unwrap();
    assert!(text(&why, "sentence").contains("removed by a purge of queue default by operator"), "{why}");
    assert_eq!(statuses(&cluster.job_ends("retries", 2, PATIENCE).await), ["cancelled", "cancelled"]);
    let parts = until("end of parts", PATIENCE, async || {
        Some(job(&cluster, "parts").await).filter(|job| job["state"] == "finished")
    })
    .await;
    let count = |field: &str| parts[field].as_u64().unwrap();
    assert_eq!(count("done") + count("dead") + count("cancelled") + count("purged"), 8, "{parts}");
    assert!(count("done") >= 1 && count("dead") == 0, "{parts}");
    // Each item has an end of its own.
    let ends = statuses(&cluster.job_ends("parts", 8, PATIENCE).await);
    assert_eq!(ends.iter().filter(|end| *end == "cancelled").count() as u64, count("cancelled"), "{ends:?}");
    // Nothing of what was purged while it was held stays given out.
    until("queue that nobody holds", PATIENCE, async || (queue(&cluster, "default").await["held"] == 0).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_still_waits_or_runs_is_not_mended() {
    let cluster = Cluster::start().await;
    let one = ["--slots", "1", "--io-slots", "1", "--retry-delay", "1h", "--retry-delay-max", "1h"];
    let _worker = cluster.worker("w1", &one, None);
    publish(&cluster, "runs", "sleep", "25", 1, BatchSize::Fixed(1)).await;
    cluster.worker_is("w1", |w| w["running"] == 1).await;
    // What runs is to go on: its job must not end before it does.
    purge(&cluster, "default", json!({ "keep_running": true })).await;
    let (retried, job_of_kind) = ("retried", "kinds");
    let _second = cluster.worker("w2", &one, None);
    submit(&cluster, retried, task("fail", "{}")).await;
    until("waiting retry", PATIENCE, async || {
        (cluster.get("/api/v1/task", &[("id", retried.into())]).await?["status"] == "retrying").then_some(())
    })
    .await;
    // A purge of another kind takes nothing of it, nor of this job.
    publish(&cluster, job_of_kind, "nobody_knows", "1", 2, BatchSize::Fixed(1)).await;
    purge(&cluster, "default", json!({ "kind": "square" })).await;
    let ended = until("end of what runs", PATIENCE, async || {
        Some(job(&cluster, "runs").await).filter(|job| job["state"] == "finished")
    })
    .await;
    assert_eq!((&ended["done"], &ended["purged"]), (&json!(1), &json!(0)), "{ended}");
    assert!(problem(&cluster, "orphaned_lease", "default").await.is_none());
    assert_eq!(cluster.get("/api/v1/task", &[("id", retried.into())]).await.unwrap()["status"], "retrying");
    assert_eq!(job(&cluster, job_of_kind).await["state"], "closed");
    assert!(problem(&cluster, "lost_task", "default").await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_written_is_shown() {
    let mut cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("locked.sqlite");
    cluster.restart_collector_with(&[("MILLPOND_COLLECTOR_STORE", path.to_str().unwrap())]);
    until("collector", PATIENCE, async || cluster.get("/api/v1/problems", &[]).await).await;
    let _worker = cluster.worker("w1", &[], None);
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    let lock = "import sqlite3, sys, time\nc = sqlite3.connect(sys.argv[1], timeout=60)\nc.execute('BEGIN IMMEDIATE')\ntime.sleep(600)";
    let mut holder = Process::start(std::process::Command::new("python3").args(["-c", lock, path.to_str().unwrap()]));
    // Whatever ends before the lock is held is stored at once.
    let mut count = 0;
    until("problem of the store", PATIENCE, async || {
        count += 1;
        submit(&cluster, &format!("t{count}"), task("square", "3")).await;
        problem(&cluster, "store", "store").await
    })
    .await;
    shown(&cluster, "stuck_consumer", "RESULTS", "are not stored").await;
    holder.kill9();
    gone(&cluster, "store", "store").await;
    gone(&cluster, "stuck_consumer", "RESULTS").await;
    assert_eq!(cluster.ended(&format!("t{count}")).await["result"], 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_nowhere_and_was_not_purged_is_shown_as_lost() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--retry-delay", "1h", "--retry-delay-max", "1h"], None);
    for id in ["lost", "kept"] {
        submit(&cluster, id, task("fail", "{}")).await;
        until("waiting retry", PATIENCE, async || {
            (cluster.get("/api/v1/task", &[("id", id.into())]).await?["status"] == "retrying").then_some(())
        })
        .await;
    }
    let setup = async_nats::ConnectOptions::new()
        .user_and_password("setup".into(), cluster.nats.secrets.passwords["setup"].clone())
        .custom_inbox_prefix("_INBOX_setup")
        .connect(format!("127.0.0.1:{}", cluster.nats.port))
        .await
        .unwrap();
    let removed = json!({ "filter": format!("sched.*.*.*.{}", millpond::wire::subject::key("lost")) }).to_string();
    setup.request("$JS.API.STREAM.PURGE.DUE", removed.into()).await.unwrap();
    until("lost task", PATIENCE * 3, async || problem(&cluster, "lost_task", "default").await).await;
    shown(&cluster, "lost_task", "default", "1 task of queue default should run again").await;
    let task = cluster.get("/api/v1/task", &[("id", "lost".into())]).await.unwrap();
    assert_eq!(task["status"], "retrying", "nothing explains it, so nothing is mended");
}

//! Processes and the server are killed, paused and restarted under work.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use millpond::bus::Role;
use millpond::bus::consume::pull::{PULL_EXPIRES, PULL_WATCHDOG};
use millpond::bus::publish::RetryDeadline;
use millpond::bus::read::outcomes::{OutcomeReader, OutcomeStream};
use millpond::bus::topology::{StreamLimits, setup, stream_state};
use millpond::limits::LEASE_ACK_WAIT;
use millpond::wire::streams::STREAM_RESULTS;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Cluster, MILLPOND, NatsServer, PATIENCE, Process, free_port, is_ready, statuses, task, text, until,
};

async fn submit(cluster: &Cluster, kind: &str, arguments: &str) -> String {
    cluster.client.submit(&task(kind, arguments), RetryDeadline::Unlimited).await.unwrap().id
}

fn busy(worker: &Value) -> bool {
    worker["running"] == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn work_of_a_killed_worker_restarts_within_five_seconds() {
    let cluster = Cluster::start().await;
    let mut first = cluster.worker("w1", &[], None);
    let id = submit(&cluster, "sleep", "12").await;
    cluster.worker_is("w1", busy).await;
    let _second = cluster.worker("w2", &[], None);
    cluster.worker_is("w2", |w| w["state"] == "live").await;
    let killed_ms = millpond::now_ms();
    first.kill9();
    let ended = cluster.ended(&id).await;
    assert_eq!((&ended["status"], &ended["worker"]), (&json!("done"), &json!("w2")));
    let restarted_after = ended["started_ms"].as_i64().unwrap() - killed_ms;
    assert!(restarted_after < 5000, "restarted after {restarted_after} ms");
    cluster.worker_is("w1", |w| w["state"] == "lost").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_task_runs_once_also_over_a_restart_of_the_server() {
    let mut cluster = Cluster::start().await;
    let _workers = [cluster.worker("w1", &[], None), cluster.worker("w2", &[], None)];
    let id = submit(&cluster, "sleep", "60").await;
    until("a busy worker", PATIENCE, async || {
        let workers = cluster.get("/api/v1/workers", &[]).await?;
        workers["rows"].as_array()?.iter().any(busy).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    cluster.nats.kill9();
    tokio::time::sleep(Duration::from_secs(7)).await;
    cluster.nats.restart();
    let ended = until("end of the long task", Duration::from_secs(120), async || {
        let task = cluster.get("/api/v1/task", &[("id", id.clone())]).await?;
        (task["status"] == "done").then_some(task)
    })
    .await;
    assert_eq!(ended["result"], 60.0);
    // A second start anywhere would be an attempt row of its own, once it ended: wait for every lease to be over.
    for worker in ["w1", "w2"] {
        cluster.worker_is(worker, |w| w["held"] == 0 && w["state"] == "live").await;
    }
    assert_eq!(cluster.attempts(&id).await.len(), 1, "{:?}", cluster.attempts(&id).await);
}

/// By then its lease is over at the server, which gives the task to whoever is back first. The time is well within
/// that after which a heartbeat is lost, and well beyond what a new connection takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_back_late_after_a_restart_keeps_its_task() {
    let (mut cluster, [first, _second], id) = one_busy_and_one_idle("14").await;
    cluster.nats.kill9();
    first.signal(Signal::SIGSTOP);
    tokio::time::sleep(LEASE_ACK_WAIT).await;
    cluster.nats.restart();
    until("w2 is back", PATIENCE, async || cluster.log("w2").contains("on their way back").then_some(())).await;
    // Longer than a reconnect takes; others wait for it for 4 s.
    tokio::time::sleep(Duration::from_secs(3)).await;
    first.signal(Signal::SIGCONT);
    let ended = cluster.ended(&id).await;
    assert_eq!((&ended["status"], &ended["worker"]), (&json!("done"), &json!("w1")), "{}", cluster.log("w2"));
    assert_eq!(ended["attempts"].as_array().unwrap().len(), 1, "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn work_of_a_worker_that_dies_with_the_server_restarts_when_its_heartbeat_is_lost() {
    let (mut cluster, [mut first, _second], id) = one_busy_and_one_idle("12").await;
    cluster.nats.kill9();
    first.kill9();
    tokio::time::sleep(LEASE_ACK_WAIT).await;
    cluster.nats.restart();
    until("w2 waits", PATIENCE, async || cluster.log("w2").contains("on their way back").then_some(())).await;
    let ended = cluster.ended(&id).await;
    assert_eq!((&ended["status"], &ended["worker"]), (&json!("done"), &json!("w2")), "{}", cluster.log("w2"));
    let told = cluster.log("w2");
    assert!(told.contains("did not come back") && told.contains("w1"), "{told}");
}

/// The worker that runs a task of so many seconds, and one that waits for nothing else, and logs all it thinks.
async fn one_busy_and_one_idle(seconds: &str) -> (Cluster, [Process; 2], String) {
    let cluster = Cluster::start().await;
    let first = cluster.worker("w1", &[], None);
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    let id = submit(&cluster, "sleep", seconds).await;
    cluster.worker_is("w1", busy).await;
    let second = cluster.worker_with("w2", &[], &[("MILLPOND_LOG", "debug")]);
    cluster.worker_is("w2", |w| w["state"] == "live").await;
    (cluster, [first, second], id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_worker_cannot_store_a_second_result() {
    let cluster = Cluster::start().await;
    let paused = cluster.worker("w1", &[], None);
    let id = submit(&cluster, "sleep", "10").await;
    cluster.worker_is("w1", busy).await;
    paused.signal(Signal::SIGSTOP);
    let _second = cluster.worker("w2", &[], None);
    let first_end = cluster.ended(&id).await;
    assert_eq!((&first_end["worker"], &first_end["status"]), (&json!("w2"), &json!("done")));
    paused.signal(Signal::SIGCONT);
    // Its late outcome arrives as an attempt; the stored end stays as it was.
    until("late attempt", PATIENCE, async || (cluster.attempts(&id).await.len() == 2).then_some(())).await;
    let end = cluster.get("/api/v1/task", &[("id", id.clone())]).await.unwrap();
    for field in ["worker", "result", "ended_ms", "stored_ms"] {
        assert_eq!(end[field], first_end[field], "{field}");
    }
    let next = submit(&cluster, "square", "3").await;
    assert_eq!(cluster.ended(&next).await["result"], 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_delivered_twice_changes_nothing() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let arguments = ["map", "fail", "-", "--batch", "7", "--job", "twice", "--attempts-max", "2"];
    let mut child =
        cluster.command(&arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let hows = [r#"{"how":"never"}"#, r#"{"until":2}"#, r#"{"how":"fatal"}"#];
    let input: String = (0..60).map(|i| format!("{}\n", hows[i % 3])).collect();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let before = cluster.job_ends("twice", 60, PATIENCE).await;
    child.wait().unwrap();
    let url = cluster.nats.url("setup");
    let options = async_nats::ConnectOptions::new()
        .user_and_password("setup".into(), cluster.nats.secrets.passwords["setup"].clone());
    let worker = async_nats::ConnectOptions::new()
        .user_and_password("worker".into(), cluster.nats.secrets.passwords["worker"].clone())
        .custom_inbox_prefix("_INBOX_worker");
    let address = url.rsplit('@').next().unwrap().to_owned();
    let reading =
        async_nats::jetstream::new(options.custom_inbox_prefix("_INBOX_setup").connect(&address).await.unwrap());
    let writing = async_nats::jetstream::new(worker.connect(&address).await.unwrap());
    for name in ["RESULTS", "DEAD"] {
        let stream = reading.get_stream(name).await.unwrap();
        for seq in 1..=stream.cached_info().state.last_sequence {
            let message = stream.get_raw_message(seq).await.unwrap();
            let mut headers = message.headers.clone();
            headers.insert("Nats-Msg-Id", format!("again-{seq}").as_str());
            writing.publish_with_headers(message.subject, headers, message.payload).await.unwrap().await.unwrap();
        }
    }
    let bus = cluster.nats.bus(Role::Setup).await;
    for ended in [OutcomeStream::Results, OutcomeStream::Dead] {
        let reader = OutcomeReader::new(bus.clone(), ended);
        until("everything stored", PATIENCE, async || {
            let state = reader.state().await.ok()?;
            (state.pending + state.ack_pending == 0).then_some(())
        })
        .await;
    }
    assert_eq!(cluster.job_ends("twice", 60, PATIENCE).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_is_killed_under_load() {
    let mut cluster = Cluster::start().await;
    let _workers = [cluster.worker("w1", &[], None), cluster.worker("w2", &[], None)];
    let mut command = cluster.command(&["map", "square", "--range", "0..20000", "--job", "load"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    for done in [1000, 8000] {
        until("some progress", PATIENCE, async || {
            let found = cluster.get("/api/v1/jobs/load", &[]).await?;
            (found["done"].as_u64()? > done).then_some(())
        })
        .await;
        cluster.nats.restart();
    }
    let output = tokio::time::timeout(PATIENCE * 2, output).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.lines().eq((0..20_000u64).map(|n| (n * n).to_string())), "every result once, in order");
    let ends = cluster.job_ends("load", 20_000, PATIENCE * 2).await;
    assert!(statuses(&ends).iter().all(|s| s == "done"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_loses_and_repeats_nothing() {
    let cluster = Cluster::start().await;
    let mut first = cluster.worker("w1", &["--drain-time", "10s"], None);
    let mut command = cluster.command(&["map", "sleep", "-", "--job", "drain"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), "0.05\n".repeat(200).as_bytes()).unwrap();
    let _second = cluster.worker("w2", &[], None);
    cluster.worker_is("w1", |w| w["done"].as_u64() > Some(10)).await;
    first.signal(Signal::SIGTERM);
    assert!(first.end(Duration::from_secs(10)).await.success(), "{}", cluster.log("w1"));
    let ends = cluster.job_ends("drain", 200, PATIENCE).await;
    assert!(statuses(&ends).iter().all(|s| s == "done"));
    for end in &ends {
        assert_eq!(cluster.attempts(&text(end, "id")).await.len(), 1, "nothing ran twice: {end}");
    }
    assert!(child.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_within_the_drain_time_is_handed_on() {
    let cluster = Cluster::start().await;
    let mut first = cluster.worker("w1", &["--drain-time", "500ms", "--slots", "2", "--io-slots", "2"], None);
    let alone = submit(&cluster, "sleep", "15").await;
    let batch = millpond::client::NewTask {
        job: Some("rest".into()),
        index: Some(0),
        batch: Some(4),
        payload: "[0.1, 12, 0.1, 0.1]".into(),
        ..task("sleep", "")
    };
    cluster.client.submit(&batch, RetryDeadline::Unlimited).await.unwrap();
    cluster.worker_is("w1", |w| w["running"] == 2).await;
    first.signal(Signal::SIGTERM);
    assert!(first.end(Duration::from_secs(10)).await.success(), "{}", cluster.log("w1"));
    let _second = cluster.worker("w2", &[], None);
    let ends = cluster.job_ends("rest", 4, PATIENCE).await;
    assert_eq!(statuses(&ends), ["done"; 4]);
    let ended = cluster.ended(&alone).await;
    assert_eq!((&ended["worker"], &ended["attempt"]), (&json!("w2"), &json!(1)));
}

/// Half an hour of restarts in a minute or two: each time the task was delivered, never started.
#[tokio::test(flavor = "multi_thread")]
async fn restarts_do_not_bury_a_task_that_never_ran() {
    let cluster = Cluster::start().await;
    let id = submit(&cluster, "square", "7").await;
    for cycle in 0..30 {
        let mut worker = cluster.worker(&format!("w{cycle}"), &[], Some("admit.delivered"));
        worker.end(PATIENCE).await;
    }
    let _worker = cluster.worker("survivor", &[], None);
    let ended = cluster.ended(&id).await;
    assert_eq!((&ended["status"], &ended["result"], &ended["attempt"]), (&json!("done"), &json!(49), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_kills_workers_is_buried_and_its_neighbours_are_not() {
    let cluster = Cluster::start().await;
    let mut workers: Vec<Process> = Vec::new();
    let batch = millpond::client::NewTask {
        job: Some("poison".into()),
        index: Some(0),
        batch: Some(3),
        payload: r#"[{"how":"never"},{"how":"never"},{"how":"exit"}]"#.into(),
        ..task("fail", "")
    };
    cluster.client.submit(&batch, RetryDeadline::Unlimited).await.unwrap();
    let mut started = 0;
    let ends = until("end of the poisoned job", PATIENCE * 6, async || {
        workers.retain_mut(|w| w.ended().is_none());
        if workers.is_empty() {
            started += 1;
            workers.push(cluster.worker(&format!("w{started}"), &[], None));
        }
        let job = cluster.get("/api/v1/jobs/poison", &[]).await?;
        (job["done"] == 2 && job["dead"] == 1).then_some(())
    });
    ends.await;
    let ends = cluster.job_ends("poison", 3, PATIENCE).await;
    assert_eq!(statuses(&ends), ["done", "done", "dead"]);
    assert_eq!(cluster.ended(&text(&ends[2], "id")).await["dead"]["reason"], "kills_workers");
    let bus = cluster.nats.bus(Role::Setup).await;
    assert!(stream_state(&bus, STREAM_RESULTS).await.unwrap().last_seq > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_idle_for_long_still_takes_tasks() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    // Longer than a pull waits at the server, and than the watchdog waits for that.
    let idle_ms = i64::try_from((PULL_EXPIRES + PULL_WATCHDOG).as_millis()).unwrap() + 2000;
    let age = |w: &Value| w["heartbeat_ms"].as_i64().unwrap() - w["started_ms"].as_i64().unwrap();
    cluster.worker_is("w1", |w| age(w) > idle_ms).await;
    let id = cluster.client.submit(&task("square", "12"), RetryDeadline::Unlimited).await.unwrap().id;
    assert_eq!(cluster.ended(&id).await["result"], 144);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_before_setup_waits_for_it() {
    let nats = NatsServer::start();
    let dir = tempfile::tempdir().unwrap();
    let worker = |wait: &str| {
        let port = free_port();
        let mut command = Command::new(MILLPOND);
        command.args(["--state", "none", "worker", "run", "--connect-timeout", wait]);
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        command.env("MILLPOND_WORKER_NATS_URL", nats.url("worker"));
        let log = File::create(dir.path().join(wait)).unwrap();
        (Process::start(command.stdout(Stdio::null()).stderr(log)), format!("http://127.0.0.1:{port}"))
    };
    nats.bus(Role::Setup).await;
    let log = |wait: &str| std::fs::read_to_string(dir.path().join(wait)).unwrap();
    assert!(!worker("1s").0.end(PATIENCE).await.success());
    assert!(log("1s").contains("has `setup` run?"), "{}", log("1s"));
    let (_patient, url) = worker("60s");
    until("a worker that waits", PATIENCE, async || log("60s").contains("waiting for setup").then_some(())).await;
    setup(&nats.bus(Role::Setup).await, &StreamLimits::default()).await.unwrap();
    is_ready(&url).await;
}

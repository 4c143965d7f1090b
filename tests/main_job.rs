//! The main job as a new user meets it: map, submit, a bare TCP client, retries, dead letters, the verbs that read.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use millpond::bus::publish::RetryDeadline;
use millpond::client::{MapSpec, NewTask};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, task, text, until};

#[tokio::test(flavor = "multi_thread")]
async fn primes_are_counted_in_order() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let arguments = ["map", "is_prime", "--range", "1..=10000", "--batch", "100", "--job", "primes"];
    let output = tokio::task::spawn_blocking({
        let mut command = cluster.command(&arguments);
        move || command.output().unwrap()
    });
    let output = output.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<String> = output.stdout.lines().map(Result::unwrap).collect();
    assert_eq!(lines.len(), 10_000);
    assert_eq!(lines.iter().filter(|l| *l == "true").count(), 1229);
    let first: Vec<&str> = lines.iter().take(7).map(String::as_str).collect();
    assert_eq!(first, ["false", "true", "true", "false", "true", "false", "true"]);
    let ends = cluster.job_ends("primes", 10_000, PATIENCE).await;
    assert_eq!(ends.iter().filter(|e| e["result"] == true).count(), 1229);
    until("finished job", PATIENCE, async || {
        (cluster.get("/api/v1/jobs/primes", &[]).await?["state"] == "finished").then_some(())
    })
    .await;
    // One row per batch, not per item.
    let rows = cluster.get("/api/v1/tasks", &[("job", "primes".into()), ("limit", "1000".into())]).await.unwrap();
    assert_eq!(rows["rows"].as_array().unwrap().len(), 100);
    let item = cluster.get("/api/v1/task", &[("id", "primes.1/0+100/1".into())]).await.unwrap();
    assert_eq!((&item["result"], &item["status"]), (&json!(true), &json!("done")));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_from_standard_input_are_squared_in_order() {
    let cluster = Cluster::start().await;
    let _workers = [cluster.worker("w1", &[], None), cluster.worker("w2", &[], None)];
    let mut command = cluster.command(&["map", "square", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let numbers: String = (1..=100).map(|n| format!("{n}\n")).collect();
    child.stdin.take().unwrap().write_all(numbers.as_bytes()).unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let squares: Vec<u64> = output.stdout.lines().map(|l| l.unwrap().parse().unwrap()).collect();
    assert_eq!(squares, (1..=100).map(|n| n * n).collect::<Vec<u64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_whose_next_is_dropped_again_and_again_loses_nothing() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let spec = MapSpec {
        queue: "default".into(),
        kind: "square".into(),
        job: Some("dropped".into()),
        batch: millpond::client::BatchSize::Fixed(3),
        ordered: false,
        timeout: None,
        attempts_max: None,
        ..MapSpec::default()
    };
    let input = futures_util::stream::iter((0..500u64).map(|n| Ok(n.to_string().into())));
    let mut run = cluster.client.map(spec, input).await.unwrap();
    let mut seen = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_micros(200), run.next()).await {
            Err(_) => {}
            Ok(None) => break,
            Ok(Some(item)) => {
                let item = item.unwrap();
                assert_eq!(item.end.unwrap().get(), (item.index * item.index).to_string());
                seen.push(item.index);
            }
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..500).collect::<Vec<u64>>());
    until("finished job", PATIENCE, async || {
        (cluster.get("/api/v1/jobs/dropped", &[]).await?["state"] == "finished").then_some(())
    })
    .await;
}

/// A NATS client of twenty lines: no SDK, no headers, no envelope.
fn publish_bare(address: (&str, u16), user: &str, password: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let _info = lines.next().unwrap().unwrap();
    let connect = json!({ "verbose": false, "user": user, "pass": password });
    write!(stream, "CONNECT {connect}\r\nSUB _INBOX.me 1\r\n").unwrap();
    write!(stream, "PUB tasks.default.square _INBOX.me 2\r\n12\r\n").unwrap();
    loop {
        let line = lines.next().unwrap().unwrap();
        assert!(!line.starts_with("-ERR"), "{line}");
        if line.starts_with("MSG") {
            return lines.next().unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_tcp_client_publishes_a_whole_task() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let password = cluster.nats.secrets.passwords["client"].clone();
    let ack: Value =
        serde_json::from_str(&publish_bare(("127.0.0.1", cluster.nats.port), "client", &password)).unwrap();
    assert_eq!(ack["stream"], "TASKS");
    let tasks = until("row of the task", PATIENCE, async || {
        let tasks = cluster.get("/api/v1/tasks", &[]).await?;
        (!tasks["rows"].as_array()?.is_empty()).then_some(tasks)
    })
    .await;
    let id = text(&tasks["rows"][0], "id");
    assert!(id.ends_with(&format!("-{}", ack["seq"])), "id {id} is made of the stream's epoch and the sequence");
    let shown = cluster.command(&["task", "show", &id, "--json"]).output().unwrap();
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["result"], &shown["status"]), (&json!(144), &json!("done")));
    let attempt = &shown["attempts"][0];
    assert_eq!((&attempt["attempt"], &attempt["worker"]), (&json!(1), &json!("w1")));
    assert!(attempt["ended_ms"].as_i64() >= attempt["started_ms"].as_i64());
    assert!(shown["published_ms"].as_i64().unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_attempts_are_retried_and_then_buried_with_evidence() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let submit = async |arguments: &str| {
        let task = task("fail", arguments);
        cluster.client.submit(&task, RetryDeadline::Within(PATIENCE)).await.unwrap().id
    };
    let heals = submit(r#"{"until": 3}"#).await;
    let panics = submit(r#"{"how": "panic", "message": "boom"}"#).await;
    let fatal = submit(r#"{"how": "fatal"}"#).await;
    let healed = cluster.ended(&heals).await;
    assert_eq!((&healed["status"], &healed["result"], &healed["attempt"]), (&json!("done"), &json!(3), &json!(3)));
    assert_eq!(healed["attempts"].as_array().unwrap().len(), 3);
    let dead = cluster.ended(&panics).await;
    assert_eq!((&dead["status"], &dead["dead"]["reason"]), (&json!("dead"), &json!("exhausted")));
    assert_eq!(dead["dead"]["failure"]["type"], "panic");
    assert!(text(&dead["dead"]["failure"], "traceback").contains("fail.rs"));
    assert_eq!(dead["dead"]["failures"].as_array().unwrap().len(), 2);
    assert_eq!(dead["dead"]["payload"]["message"], "boom");
    let fatal = cluster.ended(&fatal).await;
    assert_eq!((&fatal["attempt"], &fatal["dead"]["reason"]), (&json!(1), &json!("fatal")));
    // Whoever reads the worker's log finds each failed attempt and each dead letter there.
    let log = cluster.log("w1");
    let found = |words: &[&str]| log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count();
    for (id, retries, dead) in [(&heals, 2, 0), (&panics, 2, 1), (&fatal["id"].as_str().unwrap().to_owned(), 0, 1)] {
        let named = ["kind=fail", "queue=default", "exception.type=", "trace_id=", &format!("task_id={id} ")];
        assert_eq!(found(&[&named[..], &["WARN", "tried again"]].concat()), retries, "{id}: {log}");
        assert_eq!(found(&[&named[..], &["ERROR", "dead letter"]].concat()), dead, "{id}: {log}");
    }
    assert_eq!(found(&["ERROR", "reason=\"exhausted\"", "boom", "attempt=3"]), 1, "{log}");
    let listed = cluster.command(&["dead", "ls", "--json"]).output().unwrap();
    assert_eq!(listed.stdout.lines().count(), 2);
    let refused = cluster.command(&["submit", "square", "abc"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("not JSON") && said.contains("quotes"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_always_fails_does_not_flood_the_log_and_is_counted() {
    let cluster = Cluster::start().await;
    let mut worker = cluster.worker("w1", &["--log-json", "--retry-delay", "10ms"], None);
    let job = NewTask { job: Some("night".into()), ..task("fail", "\"no\"") };
    let within = RetryDeadline::Within(PATIENCE);
    let ids = futures_util::future::join_all((0..150).map(|_| cluster.client.submit(&job, within))).await;
    for id in ids {
        assert_eq!(cluster.ended(&id.unwrap().id).await["status"], "dead");
    }
    worker.signal(Signal::SIGTERM);
    assert!(worker.end(PATIENCE).await.success());
    let lines: Vec<Value> = cluster.log("w1").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = |message: &str| lines.iter().filter(|line| line["message"] == message).cloned().collect::<Vec<_>>();
    let (retried, dead) = (said("an attempt failed; the task is tried again"), said("a task is a dead letter"));
    let left_out: u64 = said("more attempts failed than have a line").iter().filter_map(|l| l["more"].as_u64()).sum();
    assert_eq!((retried.len() + dead.len()) as u64 + left_out, 3 * 150, "each attempt has a line or is counted");
    assert!(left_out > 300, "{left_out} have no line");
    let first = &retried[0];
    assert_eq!(
        (&first["log.level"], &first["kind"], &first["queue"]),
        (&json!("warn"), &json!("fail"), &json!("default"))
    );
    assert!(first["error.type"].is_string() && first["error.message"].is_string() && first["trace.id"].is_string());
    assert!(first["job"] == "night" && first["attempt"] == 1 && first["task_id"].is_string(), "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_has_a_retry_policy_of_its_own() {
    let cluster = Cluster::start().await;
    let flags = ["--queues", "default,once", "--queue-retry", "once:attempts=1", "--retry-delay", "10ms"];
    let _worker = cluster.worker("w1", &flags, None);
    for (queue, attempts) in [("once", 1), ("default", 3)] {
        let task = NewTask { queue: queue.into(), ..task("fail", r#"{"how": "panic", "message": "boom"}"#) };
        let id = cluster.client.submit(&task, RetryDeadline::Within(PATIENCE)).await.unwrap().id;
        assert_eq!(cluster.ended(&id).await["attempt"], attempts, "{queue}");
    }
    for (wrong, said) in [("other:attempts=1", "does not serve"), ("once:tries=1", "mails:attempts=5")] {
        let flags = ["worker", "run", "--nats-url", "nats://127.0.0.1:1", "--queues", "once", "--queue-retry", wrong];
        let refused = cluster.command(&flags).output().unwrap();
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && stderr.contains(said), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_leaves_when_told_to() {
    let cluster = Cluster::start().await;
    let id = cluster.client.submit(&task("square", "5"), RetryDeadline::Unlimited).await.unwrap().id;
    let mut worker = cluster.worker("w1", &["--idle-exit", "500ms"], None);
    assert_eq!(cluster.ended(&id).await["result"], 25);
    assert!(worker.end(Duration::from_secs(10)).await.success());
}

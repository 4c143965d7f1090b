//! Consumers, streams and buckets that somebody has deleted are made again, or named within ten seconds; what is held meanwhile
//! runs once.

use std::time::{Duration, Instant};

use async_nats::{Client, ConnectOptions};
use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use serde_json::{Value, json};

use crate::harness::{Cluster, NatsServer, PATIENCE, Process, task, text, until};

/// How long it may take until what was deleted is there again, or named.
const NAMED_WITHIN: Duration = Duration::from_secs(10);

async fn as_setup(nats: &NatsServer) -> Client {
    let options = ConnectOptions::new().user_and_password("setup".into(), nats.secrets.passwords["setup"].clone());
    options.custom_inbox_prefix("_INBOX_setup").connect(format!("127.0.0.1:{}", nats.port)).await.unwrap()
}

async fn api(setup: &Client, subject: &str) -> Value {
    let answer = setup.request(format!("$JS.API.{subject}"), "".into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

async fn delete(setup: &Client, what: &str) {
    let answer = api(setup, what).await;
    assert_eq!(answer["success"], true, "{answer}");
}

/// Deletes the consumers of the queue `default`.
async fn delete_consumers(setup: &Client) {
    for stream in ["TASKS", "DUE"] {
        delete(setup, &format!("CONSUMER.DELETE.{stream}.q-default")).await;
    }
}

/// A cluster whose worker has run the task `before`, and a client in the role of setup.
async fn cluster_with_a_task_done() -> (Cluster, Process, Client) {
    let cluster = Cluster::start().await;
    let worker = cluster.worker("w1", &[], None);
    submit(&cluster, "before", task("square", "3")).await;
    assert_eq!(cluster.ended("before").await["result"], 9);
    let setup = as_setup(&cluster.nats).await;
    (cluster, worker, setup)
}

async fn submit(cluster: &Cluster, id: &str, task: NewTask) {
    cluster.client.submit(&NewTask { id: Some(id.into()), ..task }, RetryDeadline::Unlimited).await.unwrap();
}

async fn consumer(setup: &Client, stream: &str, name: &str) -> Value {
    let started = Instant::now();
    loop {
        let info = api(setup, &format!("CONSUMER.INFO.{stream}.{name}")).await;
        if info["name"] == name {
            return info;
        }
        assert!(started.elapsed() < NAMED_WITHIN, "{stream} {name}: {info}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_made_again_gives_nothing_to_two_workers() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (handlers, log) = (dir.path().join("handlers.toml"), dir.path().join("log"));
    let script = format!("read id; echo start $id >>{0}; sleep 12; echo end $id >>{0}; echo 1", log.display());
    std::fs::write(
        &handlers,
        format!("[mark]\ncommand = [\"sh\", \"-c\", '''{script}''']\nmode = \"once\"\nslots = 8\n"),
    )
    .unwrap();
    let handlers = handlers.to_str().unwrap();
    let _first = cluster.worker("w1", &["--handlers", handlers], None);
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    let ids: Vec<String> = (0..8).map(|n| format!("t{n}")).collect();
    for id in &ids {
        submit(&cluster, id, task("mark", &format!("\"{id}\""))).await;
    }
    cluster.worker_is("w1", |w| w["running"] == 8).await;
    // It has nothing to do, and takes what it is given.
    let _second = cluster.worker("w2", &["--handlers", handlers], None);
    cluster.worker_is("w2", |w| w["state"] == "live").await;
    let setup = as_setup(&cluster.nats).await;
    delete_consumers(&setup).await;
    for stream in ["TASKS", "DUE"] {
        consumer(&setup, stream, "q-default").await;
    }
    // All of it is given out again, as if for the first time.
    until("deliveries of the consumer that was made again", PATIENCE, async || {
        let info = api(&setup, "CONSUMER.INFO.TASKS.q-default").await;
        info["delivered"]["consumer_seq"].as_u64().filter(|delivered| *delivered >= 8)
    })
    .await;
    for id in &ids {
        assert_eq!(cluster.ended(id).await["status"], "done");
    }
    until("an empty stream", PATIENCE, async || {
        (api(&setup, "STREAM.INFO.TASKS").await["state"]["messages"] == 0).then_some(())
    })
    .await;
    let lines = std::fs::read_to_string(&log).unwrap();
    for id in &ids {
        let of_it: Vec<&str> = lines.lines().filter(|line| line.ends_with(&format!("\"{id}\""))).collect();
        assert_eq!(of_it, [format!("start \"{id}\""), format!("end \"{id}\"")], "{lines}");
    }
    // The queue goes on.
    submit(&cluster, "after", task("square", "12")).await;
    assert_eq!(cluster.ended("after").await["result"], 144);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_outlives_its_consumer() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    let setup = as_setup(&cluster.nats).await;
    cluster.api.post::<Value>("/api/v1/queues/default/pause", &json!({})).await.unwrap();
    delete_consumers(&setup).await;
    submit(&cluster, "behind", task("square", "12")).await;
    for stream in ["TASKS", "DUE"] {
        assert_eq!(consumer(&setup, stream, "q-default").await["paused"], true);
    }
    cluster.api.post::<Value>("/api/v1/queues/default/resume", &json!({})).await.unwrap();
    assert_eq!(cluster.ended("behind").await["result"], 144);
    // A pause that has ended does not come back.
    delete_consumers(&setup).await;
    submit(&cluster, "later", task("square", "5")).await;
    assert_eq!(cluster.ended("later").await["result"], 25);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collector_makes_its_consumers_again() {
    let (cluster, _worker, setup) = cluster_with_a_task_done().await;
    for stream in ["RESULTS", "DEAD"] {
        delete(&setup, &format!("CONSUMER.DELETE.{stream}.collector")).await;
    }
    submit(&cluster, "after", task("square", "4")).await;
    for stream in ["RESULTS", "DEAD"] {
        consumer(&setup, stream, "collector").await;
    }
    assert_eq!(cluster.ended("after").await["result"], 16);
    assert_eq!(cluster.ended("before").await["result"], 9);
}

/// The collector's answer to "are you ready", the problem, and doctor's line, each with the name.
async fn is_named(cluster: &Cluster, what: &str) {
    let started = Instant::now();
    let ready = format!("{}/readyz", cluster.collector_url());
    loop {
        let problems = cluster.get("/api/v1/problems", &[]).await.unwrap_or_default();
        let found = problems["rows"].as_array().into_iter().flatten();
        let found = found.into_iter().find(|row| row["kind"] == "missing" && row["what"] == what).cloned();
        let answer = reqwest::get(&ready).await.unwrap().text().await.unwrap();
        if let Some(found) = found
            && answer.contains(what)
        {
            assert!(text(&found, "sentence").contains("deleted"), "{found}");
            break;
        }
        assert!(started.elapsed() < NAMED_WITHIN, "{what}: {problems} {answer}\n{}", cluster.log("collector"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let doctor = cluster.command(&["doctor"]).output().unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.lines().any(|line| line.starts_with("FAIL") && line.contains(what)), "{said}");
    assert_eq!(doctor.status.code(), Some(1), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_buckets_that_are_gone_are_named_until_setup_makes_them() {
    let (cluster, _worker, setup) = cluster_with_a_task_done().await;
    for (stream, what) in [
        ("KV_millpond_starts", "millpond_starts"),
        ("OBJ_millpond_payloads", "millpond_payloads"),
        ("DUE", "DUE"),
        ("TASKS", "TASKS"),
    ] {
        delete(&setup, &format!("STREAM.DELETE.{stream}")).await;
        is_named(&cluster, what).await;
        let output =
            cluster.command(&["setup"]).env("MILLPOND_SETUP_NATS_URL", cluster.nats.url("setup")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        until("a collector that is ready again", PATIENCE, async || {
            let ready = reqwest::get(format!("{}/readyz", cluster.collector_url())).await.ok()?;
            ready.status().is_success().then_some(())
        })
        .await;
    }
    // Sequences of TASKS begin anew, ids do not: a task without an id of its own is not taken for an earlier one.
    let id = cluster.client.submit(&task("square", "5"), RetryDeadline::Unlimited).await.unwrap().id;
    assert_eq!(cluster.ended(&id).await["result"], 25);
    let nc = cluster.client.submit(&task("square", "6"), RetryDeadline::Unlimited).await.unwrap().id;
    assert_eq!(cluster.ended(&nc).await["result"], 36);
}

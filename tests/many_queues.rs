//! Queues and names: a queue can be removed once it has nothing, one that nobody uses is removed by itself, and neither many
//! queues nor made-up kinds cost a worker what they cost who made them.

use std::process::Output;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use millpond::bus::topology::stream_state;
use millpond::client::NewTask;
use millpond::wire::streams::STREAM_LATER;

use crate::harness::{Cluster, PATIENCE, output, task, until};

/// More than the consumers that a server allows a stream by default.
const QUEUES: usize = 1100;

async fn cli(cluster: &Cluster, arguments: &[&str]) -> Output {
    let command = cluster.command(arguments);
    output(command).await
}

async fn submit(cluster: &Cluster, queue: &str, kind: &str) -> String {
    let new = NewTask { queue: queue.into(), ..task(kind, "4") };
    cluster.client.submit(&new, RetryDeadline::Unlimited).await.unwrap().id
}

async fn queues(cluster: &Cluster) -> Vec<String> {
    let listed = cli(cluster, &["queue", "ls", "--json"]).await;
    let rows = String::from_utf8(listed.stdout).unwrap();
    let name =
        |row: &str| serde_json::from_str::<serde_json::Value>(row).unwrap()["queue"].as_str().unwrap().to_owned();
    rows.lines().map(name).collect()
}

async fn leaves(cluster: &Cluster, mut worker: crate::harness::Process) {
    worker.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(worker.end(PATIENCE).await.success());
    // Its record is gone from what the collector knows.
    until("end of the worker", PATIENCE, async || {
        let workers = cluster.get("/api/v1/workers", &[]).await?;
        workers["rows"].as_array()?.iter().all(|worker| worker["state"] != "live").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_removed_once_it_has_nothing() {
    let cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    let refused = async |why: &str| {
        let said = cli(&cluster, &["queue", "rm", "old"]).await;
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && text.contains(why), "{why}: {text}");
    };
    refused("there is no queue old").await;
    let worker = cluster.worker("w1", &["--queues", "old"], None);
    until("queue", PATIENCE, async || queues(&cluster).await.contains(&"old".to_owned()).then_some(())).await;
    refused("live workers serve it").await;
    leaves(&cluster, worker).await;
    submit(&cluster, "old", "square").await;
    refused("1 messages wait").await;
    let later = NewTask { queue: "old".into(), at_ms: Some(millpond::now_ms() + 3_600_000), ..task("square", "4") };
    cluster.client.submit(&later, RetryDeadline::Unlimited).await.unwrap();
    // While the producer moves it to DUE, it lies in both streams and counts twice.
    let setup = cluster.nats.bus(Role::Setup).await;
    until("the move", PATIENCE, async || {
        (stream_state(&setup, STREAM_LATER).await.unwrap().messages == 0).then_some(())
    })
    .await;
    refused("1 messages wait for their time").await;
    assert!(cli(&cluster, &["queue", "purge", "old", "--yes"]).await.status.success());
    assert!(
        cli(&cluster, &["schedule", "add", "nightly", "square", "4", "--queue", "old", "--every", "1h"])
            .await
            .status
            .success()
    );
    refused("schedules publish to it: nightly").await;
    assert!(cli(&cluster, &["schedule", "rm", "nightly"]).await.status.success());
    assert!(cli(&cluster, &["queue", "set", "old", "--max-waiting", "7"]).await.status.success());
    refused("a limit of 7 waiting tasks").await;
    assert!(cli(&cluster, &["queue", "set", "old", "--unlimited"]).await.status.success());
    assert!(cli(&cluster, &["queue", "pause", "old"]).await.status.success());
    refused("it is paused").await;
    assert!(cli(&cluster, &["queue", "resume", "old"]).await.status.success());
    let removed = cli(&cluster, &["queue", "rm", "old"]).await;
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    assert_eq!(queues(&cluster).await, Vec::<String>::new());
    assert_eq!((cluster.nats.consumers("TASKS").await, cluster.nats.consumers("DUE").await), (0, 0));
    // What is published to it afterwards waits for the next worker.
    let id = submit(&cluster, "old", "square").await;
    let _worker = cluster.worker("w2", &["--queues", "old"], None);
    assert_eq!(cluster.ended(&id).await["result"], 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_nobody_uses_loses_its_consumers() {
    let mut cluster = Cluster::start().await;
    cluster.restart_collector_with(&[("MILLPOND_COLLECTOR_QUEUE_KEEP", "10s")]);
    let served = cluster.worker("w1", &["--queues", "served"], None);
    let gone = cluster.worker("w2", &["--queues", "unused,paused,waiting"], None);
    until("queues", PATIENCE, async || (cluster.nats.consumers("DUE").await == 4).then_some(())).await;
    until("a collector", PATIENCE, async || (queues(&cluster).await.len() == 4).then_some(())).await;
    assert!(cli(&cluster, &["queue", "pause", "paused"]).await.status.success());
    let mut gone = gone;
    gone.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(gone.end(PATIENCE).await.success());
    let left = Instant::now();
    submit(&cluster, "waiting", "square").await;
    until("removal of the unused queue", PATIENCE, async || (cluster.nats.consumers("TASKS").await == 3).then_some(()))
        .await;
    assert!(left.elapsed() > Duration::from_secs(9), "too early: after {:?}", left.elapsed());
    // Two more times over, and nothing else has gone.
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(queues(&cluster).await, ["paused", "served", "waiting"]);
    let _worker = cluster.worker("w3", &["--queues", "unused"], None);
    let id = submit(&cluster, "unused", "square").await;
    assert_eq!(cluster.ended(&id).await["result"], 16);
    drop(served);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_more_queues_than_a_stream_has_consumers_by_default_starts_tasks_at_once() {
    let cluster = Cluster::start().await;
    let names: Vec<String> = (0..QUEUES).map(|n| format!("queue_of_tenant_{n:05}")).collect();
    let _worker = cluster.worker("w1", &["--queues", &names.join(",")], None);
    cluster.worker_is("w1", |worker| worker["state"] == "live").await;
    assert_eq!(cluster.nats.consumers("TASKS").await, QUEUES as u64);
    for queue in [0, QUEUES / 2, QUEUES - 1, 17].map(|n| names[n].as_str()) {
        let id = submit(&cluster, queue, "square").await;
        let task = cluster.ended(&id).await;
        let waited = task["started_ms"].as_i64().unwrap() - task["published_ms"].as_i64().unwrap();
        assert!(task["result"] == 16 && waited < 500, "{queue}: {waited} ms");
    }
    let listed = cli(&cluster, &["worker", "ls"]).await;
    let widest = String::from_utf8_lossy(&listed.stdout).lines().map(|line| line.chars().count()).max();
    assert!(widest < Some(300), "{widest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_kinds_cost_who_makes_them_up_and_not_the_worker() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let kind = |n: usize| format!("{:x<64}", format!("tenant_{n:05}_"));
    stream::iter(0..3000).map(async |n| submit(&cluster, "default", &kind(n)).await).buffer_unordered(64).count().await;
    let worker = cluster.worker_is("w1", |worker| worker["unknown_kinds_more"].as_u64() > Some(300)).await;
    assert_eq!((worker["unknown_kinds"].as_array().unwrap().len(), &worker["state"]), (20, &serde_json::json!("live")));
    let listed = cli(&cluster, &["worker", "ls"]).await;
    let widest = String::from_utf8_lossy(&listed.stdout).lines().map(|line| line.chars().count()).max();
    assert!(widest < Some(400), "{widest:?}");
    let id = submit(&cluster, "default", "square").await;
    assert_eq!(cluster.ended(&id).await["result"], 16);
}

/// A collector that is started again every few seconds, less than a queue is kept for.
#[tokio::test(flavor = "multi_thread")]
async fn an_unused_queue_is_removed_by_a_collector_that_is_started_again_and_again() {
    let mut cluster = Cluster::start().await;
    let worker = cluster.worker("w1", &["--queues", "gone"], None);
    until("queue", PATIENCE, async || queues(&cluster).await.contains(&"gone".to_owned()).then_some(())).await;
    leaves(&cluster, worker).await;
    let started = Instant::now();
    while cluster.nats.consumers("TASKS").await > 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "{}", cluster.log("collector"));
        cluster.restart_collector_with(&[("MILLPOND_COLLECTOR_QUEUE_KEEP", "10s")]);
        tokio::time::sleep(Duration::from_secs(6)).await;
    }
    assert!(
        started.elapsed() >= Duration::from_secs(10),
        "it was kept for as long as was said: {:?}",
        started.elapsed()
    );
}

/// Each program that watches a bucket is a consumer of its stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_may_have_more_watchers_than_a_server_allows_by_default() {
    let cluster = Cluster::start().await;
    let password = cluster.nats.secrets.passwords["setup"].clone();
    let options = async_nats::ConnectOptions::with_user_and_password("setup".into(), password);
    let options = options.custom_inbox_prefix("_INBOX_setup");
    let setup = options.connect(format!("127.0.0.1:{}", cluster.nats.port)).await.unwrap();
    let bucket = async_nats::jetstream::new(setup).get_key_value("millpond_queues").await.unwrap();
    let before = cluster.nats.consumers("KV_millpond_queues").await;
    let watches = stream::iter(0..QUEUES).map(async |_| bucket.watch("x").await.unwrap());
    let watches: Vec<_> = watches.buffer_unordered(32).collect().await;
    assert_eq!(cluster.nats.consumers("KV_millpond_queues").await, before + watches.len() as u64);
}

/// Whoever may publish may make up names of queues: they are counted, and what waits in a queue of the operator's is still seen.
#[tokio::test(flavor = "multi_thread")]
async fn made_up_queues_are_one_line() {
    const MADE_UP: u64 = 2000;
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--queues", "served"], None);
    let made_up = (0..MADE_UP).map(|n| (format!("q{n}"), "square"));
    // More than waits in any other.
    let reports = (0..3).map(|_| ("reports".to_owned(), "square"));
    stream::iter(made_up.chain(reports).chain([("served".to_owned(), "square")]))
        .for_each_concurrent(64, async |(queue, kind)| drop(submit(&cluster, &queue, kind).await))
        .await;
    let listed = until("the queues", PATIENCE, async || {
        let listed = cluster.get("/api/v1/queues", &[]).await?;
        listed["rows"].as_array()?.iter().any(|row| row["queue"] == "served").then_some(listed)
    })
    .await;
    let rows = listed["rows"].as_array().unwrap();
    let reports = rows.iter().find(|row| row["queue"] == "reports").unwrap();
    assert_eq!(
        (rows.len(), reports["waiting"].as_u64()),
        (101, Some(3)),
        "100 without a worker, and the one that has one"
    );
    let unlisted = MADE_UP - 99;
    assert_eq!(listed["unlisted"], serde_json::json!({ "queues": unlisted, "waiting": unlisted }));
    let printed = cli(&cluster, &["queue", "ls"]).await;
    let said = String::from_utf8_lossy(&printed.stderr).into_owned();
    assert!(printed.status.success() && said.contains(&format!("and {unlisted} more")), "{said}");
    // What the worker serves it has taken by and by.
    until("the sum of what waits", PATIENCE, async || {
        let overview = cluster.get("/api/v1/overview", &[]).await?;
        (overview["totals"]["waiting"] == MADE_UP + 3).then_some(())
    })
    .await;
    let problem = until("the problem", PATIENCE, async || {
        let problems = cluster.get("/api/v1/problems", &[]).await?;
        problems["rows"].as_array()?.iter().find(|row| row["what"] == "other queues").cloned()
    })
    .await;
    let sentence = problem["sentence"].as_str().unwrap();
    assert!(sentence.starts_with(&format!("{unlisted} messages of {unlisted} more queues")), "{sentence}");
    // One that is not listed is found by its name, and refused to be removed for what it has.
    let hidden =
        (0..MADE_UP).map(|n| format!("q{n}")).find(|name| rows.iter().all(|row| row["queue"] != **name)).unwrap();
    let refused = cli(&cluster, &["queue", "rm", &hidden]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("1 messages wait"), "{said}");
    assert!(cli(&cluster, &["queue", "purge", &hidden, "--yes"]).await.status.success());
}

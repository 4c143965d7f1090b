//! Three nodes with three replicas of everything. Here is the slice of at most a minute that CI runs; what is ignored takes longer, and
//! `tests/long.sh cluster` runs all of it.

use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use millpond::bus::Role;
use millpond::bus::publish::{PublishError, RetryDeadline};
use millpond::bus::topology::stream_state;
use millpond::client::{NewTask, SubmitError, TaskHandle};
use millpond::wire::server_errors::{is_passing, is_without_leader};
use millpond::wire::streams::STREAM_TASKS;
use serde_json::Value;

use crate::harness::{Cluster, NatsServer, PATIENCE, only_busy_turn, output, task, until};
use crate::tidy::root;

const SHORT: RetryDeadline = RetryDeadline::Within(Duration::from_secs(5));

async fn cli(cluster: &Cluster, arguments: &[&str]) -> Output {
    output(cluster.command(arguments)).await
}

fn named(id: &str, queue: &str) -> NewTask {
    NewTask { id: Some(id.into()), queue: queue.into(), ..task("square", "3") }
}

/// The name of the node that leads a stream; none while nobody does.
async fn leader(nats: &NatsServer, stream: &str) -> Option<String> {
    let info = nats.try_asked(&format!("$JS.API.STREAM.INFO.{stream}"), &Value::Null).await?;
    Some(info["cluster"]["leader"].as_str()?.to_owned())
}

/// Nothing here is the server's business: a queue that is full and a key that is taken. Both are asked about in a way that a cluster
/// withstands, and TASKS goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_and_a_taken_key_are_ordinary_refusals() {
    let _turn = only_busy_turn().await;
    let cluster = Cluster::start_three().await;
    until("a limit", PATIENCE, async || {
        cli(&cluster, &["queue", "set", "two", "--max-waiting", "2"]).await.status.success().then_some(())
    })
    .await;
    for id in ["a", "b"] {
        assert!(!cluster.client.submit(&named(id, "two"), SHORT).await.unwrap().duplicate);
    }
    for _ in 0..3 {
        let full = cluster.client.submit(&named("c", "two"), Duration::ZERO).await.unwrap_err();
        assert!(matches!(full, SubmitError::Publish(PublishError::QueueFull { max_waiting: 2, .. })), "{full}");
        assert!(cluster.client.submit(&named("b", "two"), SHORT).await.unwrap().duplicate, "one's own resend");
    }
    let unique = |id: &str, at_ms| NewTask { unique: Some("key".into()), at_ms, ..named(id, "default") };
    let later = Some(millpond::now_ms() + 3_600_000);
    for at_ms in [None, later] {
        let key = at_ms.map_or("now", |_| "later");
        let unique = |id: &str| NewTask { unique: Some(key.into()), ..unique(id, at_ms) };
        assert!(!cluster.client.submit(&unique(&format!("{key}-1")), SHORT).await.unwrap().duplicate);
        for _ in 0..3 {
            let taken = cluster.client.submit(&unique(&format!("{key}-2")), SHORT).await.unwrap_err();
            assert!(matches!(taken, SubmitError::UniqueKeyTaken { .. }), "{taken}");
            assert!(cluster.client.submit(&unique(&format!("{key}-1")), SHORT).await.unwrap().duplicate, "a resend");
        }
    }
    let bus = cluster.nats.bus(Role::Setup).await;
    assert_eq!(stream_state(&bus, STREAM_TASKS).await.unwrap().messages, 3, "a, b and now-1");
    // A worker has taken it since, and its publisher still learns that it was stored.
    let _worker = cluster.worker("w1", &["--queues", "two,default"], None);
    for id in ["a", "b", "now-1"] {
        assert_eq!(cluster.ended(id).await["result"], 9);
    }
    assert!(cluster.client.submit(&named("b", "two"), SHORT).await.unwrap().duplicate);
    assert!(!cluster.client.submit(&named("c", "two"), SHORT).await.unwrap().duplicate);
    assert_eq!(cluster.ended("c").await["result"], 9);
    assert!(leader(&cluster.nats, STREAM_TASKS).await.is_some());
}

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// The number of the node that leads TASKS, once one does.
async fn leader_of_tasks(nats: &NatsServer) -> usize {
    let name = until("a leader of TASKS", PATIENCE, async || leader(nats, STREAM_TASKS).await).await;
    NODES.iter().position(|node| *node == name).unwrap()
}

/// The words of a publish that did not come through in time, and that may be sent again.
fn not_yet(submitted: Result<TaskHandle, SubmitError>) -> String {
    let error = submitted.unwrap_err();
    assert!(error.is_passing() && !error.is_permanent(), "{error}");
    error.to_string()
}

/// The first publish is not committed, and each one after it is refused with 10158, also after the other nodes are back, until the
/// server knows; and without a leader there is still a stream, so nobody is told to run `setup`.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_process_is_asked_again_until_it_is_stored() {
    let _turn = only_busy_turn().await;
    let mut cluster = Cluster::start_three().await;
    let leads = leader_of_tasks(&cluster.nats).await;
    let others: Vec<usize> = (0..NODES.len()).filter(|node| *node != leads).collect();
    for node in &others {
        cluster.nats.kill9_node(*node);
    }
    let one = named("one", "default");
    let told = not_yet(cluster.client.submit(&one, RetryDeadline::Within(Duration::from_secs(7))).await);
    assert!(told.contains("10158"), "{told}");
    // The server that is left needs a while to know that it does not lead any more.
    let told = until("an answer of a stream without a leader", PATIENCE, async || {
        let told = not_yet(cluster.client.submit(&one, RetryDeadline::Within(Duration::from_secs(5))).await);
        told.contains("no leader").then_some(told)
    });
    let told = told.await;
    assert!(!told.contains("setup"), "{told}");
    for node in others {
        cluster.nats.restart_node(node);
    }
    cluster.client.submit(&one, RetryDeadline::Unlimited).await.unwrap();
    let bus = cluster.nats.bus(Role::Setup).await;
    assert_eq!(stream_state(&bus, STREAM_TASKS).await.unwrap().messages, 1);
    // Other streams may have no leader yet: a worker that starts waits for them.
    let _worker = cluster.worker("w1", &[], None);
    assert_eq!(cluster.ended("one").await["result"], 9);
}

/// The node dies that leads TASKS, while a job is published and run.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "`tests/long.sh cluster`: three nodes under load want a machine for themselves"]
async fn the_leader_of_tasks_is_killed_under_load() {
    let _turn = only_busy_turn().await;
    let mut cluster = Cluster::start_three().await;
    let _workers = [cluster.worker("w1", &[], None), cluster.worker("w2", &[], None)];
    let mut map = cluster.command(&["map", "square", "--range", "0..6000", "--job", "load", "--batch", "1"]);
    map.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let map = tokio::process::Command::from(map).kill_on_drop(true).spawn().unwrap();
    until("some progress", PATIENCE, async || {
        let found = cluster.get("/api/v1/jobs/load", &[]).await?;
        (found["done"].as_u64()? > 300).then_some(())
    })
    .await;
    let leads = leader_of_tasks(&cluster.nats).await;
    cluster.nats.kill9_node(leads);
    let killed = Instant::now();
    let published = cluster.client.submit(&named("after", "default"), RetryDeadline::Within(PATIENCE)).await;
    let silent = killed.elapsed();
    published.unwrap();
    println!("published again {silent:?} after the death of the leader");
    assert!(silent < Duration::from_secs(8), "published again {silent:?} after the death of the leader");
    let output = tokio::time::timeout(PATIENCE, map.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("setup"), "{said}");
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.lines().eq((0..6000_u64).map(|n| (n * n).to_string())), "every result once, in order");
    let ends = cluster.job_ends("load", 6000, PATIENCE).await;
    assert!(ends.iter().all(|end| end["status"] == "done"));
    assert_eq!(cluster.ended("after").await["result"], 9);
    let problems = cluster.get("/api/v1/problems", &[]).await.unwrap();
    for problem in problems["rows"].as_array().unwrap() {
        assert!(!["worker_lost", "stalled_job"].contains(&problem["kind"].as_str().unwrap()), "{problem}");
    }
}

/// A new leader of a queue's consumer counts from when a message was stored, and so gives out at once what another worker was given a
/// moment ago. That one has no extension behind it yet, and answers all the same.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "`tests/long.sh cluster`: it takes a minute"]
async fn what_began_just_before_a_change_of_leaders_runs_once() {
    const ROUNDS: usize = 3;
    const TASKS: usize = 16;
    let _turn = only_busy_turn().await;
    let cluster = Cluster::start_three().await;
    let slots = ["--io-slots", "16"];
    let _workers = [cluster.worker("w1", &slots, None), cluster.worker("w2", &slots, None)];
    for worker in ["w1", "w2"] {
        cluster.worker_is(worker, |w| w["state"] == "live").await;
    }
    let mut again = 0;
    for round in 0..ROUNDS {
        assert!(cli(&cluster, &["queue", "pause", "default"]).await.status.success());
        let ids: Vec<String> = (0..TASKS).map(|n| format!("{round}-{n}")).collect();
        for id in &ids {
            let new = NewTask { id: Some(id.clone()), ..task("sleep", "4") };
            cluster.client.submit(&new, SHORT).await.unwrap();
        }
        // Longer than a worker may be silent.
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(cli(&cluster, &["queue", "resume", "default"]).await.status.success());
        until("that tasks are handed out", PATIENCE, async || {
            let info = cluster.nats.try_asked("$JS.API.CONSUMER.INFO.TASKS.q-default", &Value::Null).await?;
            (info["num_ack_pending"].as_u64()? >= TASKS as u64).then_some(())
        })
        .await;
        let stepped = cluster.nats.try_asked("$JS.API.CONSUMER.LEADER.STEPDOWN.TASKS.q-default", &Value::Null).await;
        assert!(stepped.is_some_and(|answer| answer["success"] == true));
        for id in &ids {
            assert_eq!(cluster.ended(id).await["status"], "done");
            again += cluster.attempts(id).await.len() - 1;
        }
    }
    println!("{again} of {} ran again beside a living worker", ROUNDS * TASKS);
    assert_eq!(again, 0);
}

/// A connection of a foreign program, in the role of a client.
async fn foreign(cluster: &Cluster) -> async_nats::Client {
    let password = cluster.nats.secrets.passwords["client"].clone();
    let addresses: Vec<String> = cluster.nats.addresses().collect();
    let options = async_nats::ConnectOptions::with_user_and_password("client".into(), password);
    options.request_timeout(Some(Duration::from_secs(2))).connect(addresses).await.unwrap()
}

async fn standstill(cluster: &Cluster) -> Option<String> {
    let problems = cluster.get("/api/v1/problems", &[]).await?;
    let rows = problems["rows"].as_array()?;
    let row = rows.iter().find(|row| row["kind"] == "standstill" && row["what"] == "TASKS")?;
    Some(row["sentence"].as_str()?.to_owned())
}

/// docs/operate.md, "A TASKS that stands still".
#[tokio::test(flavor = "multi_thread")]
#[ignore = "tests/long.sh cluster"]
async fn a_tasks_that_stands_still_comes_back_with_all_that_waits() {
    let _turn = only_busy_turn().await;
    let cluster = Cluster::start_three().await;
    let foreign = foreign(&cluster).await;
    let bare = foreign.request("tasks.default.square", "4".into()).await.unwrap();
    let bare: Value = serde_json::from_slice(&bare.payload).unwrap();
    let epoch = cluster.nats.bus(Role::Setup).await.tasks_epoch().await.unwrap();
    let bare = format!("{epoch}-{}", bare["seq"]);
    cluster.client.submit(&named("named", "default"), SHORT).await.unwrap();
    let unique = NewTask { unique: Some("key".into()), ..named("unique", "default") };
    cluster.client.submit(&unique, SHORT).await.unwrap();
    let job = cli(&cluster, &["map", "square", "--range", "0..50", "--batch", "1", "--job", "j", "--no-wait"]).await;
    assert!(job.status.success(), "{job:?}");

    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Expected-Last-Msg-Id", "nope");
    let _ = foreign.request_with_headers("tasks.default.square", headers, "5".into()).await;
    let stopped = Instant::now();
    let sentence = until("a word on it", PATIENCE, async || standstill(&cluster).await).await;
    let told = stopped.elapsed();
    println!("told after {told:?}: {sentence}");
    assert!(told < Duration::from_secs(10) && sentence.contains("docs/operate.md"), "{told:?}: {sentence}");
    let doctor = cli(&cluster, &["doctor"]).await;
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(1), "{said}");
    assert!(said.contains("stream TASKS") && said.contains("docs/operate.md"), "{said}");
    assert!(!said.contains("setup"), "{said}");
    let refused = not_yet(cluster.client.submit(&named("after", "default"), SHORT).await);
    assert!(!refused.contains("setup"), "{refused}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("waiting.ndjson");
    let mut setup = cluster.command(&["setup", "--replicas", "3", "--tasks-anew", file.to_str().unwrap()]);
    setup.env("MILLPOND_SETUP_NATS_URL", cluster.nats.url("setup"));
    let anew = output(setup).await;
    assert!(anew.status.success(), "{anew:?}");
    let saved = std::fs::read_to_string(&file).unwrap();
    assert_eq!(saved.lines().count(), 53, "{saved}");
    let _worker = cluster.worker("w1", &[], None);
    let restored = cli(&cluster, &["task", "restore", file.to_str().unwrap()]).await;
    assert!(restored.status.success(), "{restored:?}");
    assert_eq!(cluster.ended(&bare).await["result"], 16);
    for id in ["named", "unique"] {
        assert_eq!(cluster.ended(id).await["result"], 9);
    }
    assert_eq!(cluster.job_ends("j", 50, PATIENCE).await.len(), 50);
    // Run again it publishes nothing that has ended.
    let again = cli(&cluster, &["task", "restore", file.to_str().unwrap()]).await;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("0 tasks are published again, 53 have ended already"), "{said}");
    assert_eq!(cluster.attempts(&bare).await.len(), 1);
    until("no word on it", PATIENCE, async || standstill(&cluster).await.is_none().then_some(())).await;
}

/// What a cluster without a leader answers is told from all else, by the first row of the table of docs/protocol.md.
#[test]
fn the_first_row_of_the_table_is_what_a_cluster_answers() {
    let protocol = std::fs::read_to_string(root().join("docs/protocol.md")).unwrap();
    let row = protocol.lines().find(|line| line.starts_with("| 10004, ")).unwrap();
    let cell = row.split('|').nth(1).unwrap();
    let codes = cell.split(',').flat_map(|part| {
        let (from, to) = part.split_once(" to ").unwrap_or((part, part));
        from.trim().parse::<u64>().unwrap()..=to.trim().parse().unwrap()
    });
    let codes: Vec<u64> = codes.collect();
    let known: Vec<u64> = (10_000..11_000).filter(|code| is_without_leader(*code)).collect();
    assert_eq!(codes, known);
    assert!(codes.iter().chain(&[10_158]).all(|code| is_passing(*code, 400)));
}

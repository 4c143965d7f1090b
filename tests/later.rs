//! Tasks with a time of clients and publishers: they are published to LATER, where no header wipes anything, and a producer service
//! moves them to where they wait. Whatever dies on the way, each runs once.

use std::time::Duration;

use async_nats::HeaderMap;
use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use millpond::bus::topology::{DUPLICATE_WINDOW, stream_state};
use millpond::client::NewTask;
use millpond::signature::Signer;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::attacks::hostile;
use crate::harness::{Cluster, PATIENCE, output, task, text, until};
use crate::poison::RawPublisher;

const SHORT: RetryDeadline = RetryDeadline::Within(Duration::from_secs(5));
const KEY: &str = "0123456789abcdef0123456789abcdef";

/// The server's answer to a publish in a role.
async fn published(cluster: &Cluster, role: &str, subject: &str, headers: &[(&str, &str)], payload: &str) -> Value {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, *value);
    }
    let client = hostile(&cluster.nats, role).await;
    let answer = client.request_with_headers(subject.to_owned(), map, payload.to_owned().into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

async fn publish(cluster: &Cluster, subject: &str, headers: &[(&str, &str)], payload: &str) {
    let answer = published(cluster, "publisher", subject, headers, payload).await;
    assert_eq!(answer["stream"], "LATER", "{answer}");
}

async fn in_later(cluster: &Cluster) -> u64 {
    stream_state(&cluster.nats.bus(Role::Setup).await, "LATER").await.unwrap().messages
}

async fn is_moved(cluster: &Cluster) {
    until("an empty LATER", PATIENCE, async || (in_later(cluster).await == 0).then_some(())).await;
}

async fn why(cluster: &Cluster, id: &str) -> (Option<i32>, String) {
    let said = output(cluster.command(&["why", id])).await;
    (said.status.code(), String::from_utf8_lossy(&said.stdout).into_owned())
}

fn in_an_hour(id: &str) -> NewTask {
    NewTask { id: Some(id.into()), at_ms: Some(millpond::now_ms() + 3_600_000), ..task("square", "12") }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_nats_client_says_when_in_one_header_and_what_is_late_is_told() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let before = millpond::now_ms();
    publish(&cluster, "later.default.square", &[("Nats-Msg-Id", "delay"), ("Millpond-Delay", "1s")], "3").await;
    let at = jiff::Timestamp::from_millisecond(before + 2000).unwrap().to_string();
    let headers = [("millpond-id", "at"), ("millpond-at", at.as_str()), ("Millpond-Attempts-Max", "1")];
    publish(&cluster, "later.default.square", &headers, "4").await;
    publish(&cluster, "later.default.square", &[("Millpond-Delay", "1s"), ("Millpond-Batch", "2")], "[5, 6]").await;
    assert_eq!(in_later(&cluster).await, 3);
    // Nobody moves them.
    let (code, said) = why(&cluster, "at").await;
    assert!(code == Some(11) && said.contains("for attempt 1"), "{said}");
    let problem = until("a problem", PATIENCE, async || {
        let problems = cluster.get("/api/v1/problems", &[]).await?;
        problems["rows"].as_array()?.iter().find(|row| row["kind"] == "no_producer").cloned()
    })
    .await;
    assert!(text(&problem, "sentence").contains("start a producer"), "{problem}");
    let (_producer, _) = cluster.producer().await;
    for (id, result, after) in [("delay", 9, 1000), ("at", 16, 2000)] {
        let ended = cluster.ended(id).await;
        assert_eq!((&ended["status"], &ended["result"]), (&json!("done"), &json!(result)), "{ended}");
        assert!(ended["started_ms"].as_i64().unwrap() >= before + after, "{ended}");
    }
    is_moved(&cluster).await;
    until("the batch", PATIENCE, async || {
        let tasks = cluster.get("/api/v1/tasks", &[]).await?;
        let done = tasks["rows"].as_array()?.iter().filter(|row| row["status"] == "done").count();
        (done == 3).then_some(())
    })
    .await;
    // With a producer it is in time, and why finds it while it waits.
    let before = millpond::now_ms();
    publish(&cluster, "later.default.square.j-later", &[("Nats-Msg-Id", "soon"), ("Millpond-Delay", "PT2S")], "7")
        .await;
    is_moved(&cluster).await;
    let (code, said) = why(&cluster, "soon").await;
    assert!(code == Some(11) && said.contains("for attempt 1"), "{said}");
    let ended = cluster.ended("soon").await;
    let late = ended["started_ms"].as_i64().unwrap() - before - 2000;
    assert!(ended["result"] == 49 && ended["job"] == "later" && (0..1500).contains(&late), "{late} ms late: {ended}");
    until("no problem", PATIENCE, async || {
        let problems = cluster.get("/api/v1/problems", &[]).await?;
        problems["rows"]
            .as_array()?
            .iter()
            .all(|row| row["kind"] != "no_producer" || row["mended"] == true)
            .then_some(())
    })
    .await;
}

async fn readyz(cluster: &Cluster) -> (u16, String) {
    let answer = reqwest::get(format!("{}/readyz", cluster.collector_url())).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_producer_it_is_said_how_many_are_late_and_since_when() {
    let cluster = Cluster::start().await;
    let (mut producer, _) = cluster.producer().await;
    publish(&cluster, "later.default.square", &[("Millpond-Delay", "1h")], "3").await;
    is_moved(&cluster).await;
    assert_eq!(readyz(&cluster).await, (200, "ready\n".to_owned()));
    producer.signal(Signal::SIGTERM);
    assert!(producer.end(PATIENCE).await.success());
    let stopped_ms = millpond::now_ms();
    for delay in ["1s", "1h"] {
        publish(&cluster, "later.default.square", &[("Millpond-Delay", delay)], "3").await;
    }
    let problem = until("a problem", PATIENCE, async || {
        let problems = cluster.get("/api/v1/problems", &[]).await?;
        problems["rows"].as_array()?.iter().find(|row| row["kind"] == "no_producer").cloned()
    })
    .await;
    let took_ms = millpond::now_ms() - stopped_ms;
    let since_ms = problem["since_ms"].as_i64().unwrap() - stopped_ms;
    assert!((10_000..20_000).contains(&took_ms) && (0..2000).contains(&since_ms), "{took_ms} ms: {problem}");
    let sentence = text(&problem, "sentence");
    for said in
        ["2 tasks with a time lie in LATER, since 1", ": 1 is late by now, the first by ", "`millpond producer run`"]
    {
        assert!(sentence.contains(said), "{sentence}");
    }
    let (status, said) = readyz(&cluster).await;
    assert!(status == 200 && said.starts_with("ready\n2 tasks with a time lie in LATER"), "{said}");
    let doctor = output(cluster.command(&["doctor"])).await;
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(
        said.lines().any(|line| line.starts_with("warn  no_producer") && line.contains("2 tasks with a time")),
        "{said}"
    );
    let (_producer, _) = cluster.producer().await;
    until("no problem", PATIENCE, async || {
        let problems = cluster.get("/api/v1/problems", &[]).await?;
        problems["rows"].as_array()?.iter().all(|row| row["kind"] != "no_producer").then_some(())
    })
    .await;
    assert_eq!(readyz(&cluster).await, (200, "ready\n".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_dies_between_the_move_and_the_removal_has_nothing_run_twice() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let headers = [("Nats-Msg-Id", "once"), ("Millpond-Delay", "1s")];
    publish(&cluster, "later.default.square", &headers, "12").await;
    publish(&cluster, "later.default.square", &[("Millpond-Delay", "1s")], "13").await;
    let mut victim = cluster.failing_producer("producer.later_moved");
    until("its death", PATIENCE, async || victim.ended()).await;
    assert_eq!(cluster.ended("once").await["result"], 144);
    assert_eq!(in_later(&cluster).await, 2, "what it has moved it has not removed");
    // The server knows no id of a message for longer.
    tokio::time::sleep(DUPLICATE_WINDOW + Duration::from_secs(2)).await;
    let (_heir, _) = cluster.producer().await;
    is_moved(&cluster).await;
    publish(&cluster, "later.default.square", &[("Nats-Msg-Id", "after"), ("Millpond-Delay", "1s")], "1").await;
    assert_eq!(cluster.ended("after").await["result"], 1);
    // All that was ever run: each of the three once.
    cluster.worker_is("w1", |worker| worker["done"] == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_producers_move_each_task_once() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let _producers = [cluster.producer().await, cluster.producer().await, cluster.producer().await];
    for number in 0..300 {
        let (id, payload) = (format!("t{number}"), number.to_string());
        let later = NewTask { id: Some(id), at_ms: Some(millpond::now_ms() + 500), ..task("square", &payload) };
        cluster.client.submit(&later, SHORT).await.unwrap();
    }
    is_moved(&cluster).await;
    for number in [0, 150, 299] {
        assert_eq!(cluster.ended(&format!("t{number}")).await["result"], number * number);
    }
    cluster.worker_is("w1", |worker| worker["done"] == 300).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_wait_is_a_dead_letter_that_says_why_and_stops_nobody() {
    let cluster = Cluster::start().await;
    let mut raw = RawPublisher::connect(&cluster.nats, "publisher");
    for block in [&b"NATS/1.0\r\ngarbage\r\n\r\n"[..], b"NATS/1.0\r\nX-Note: a\rb\r\n\r\n", b"HELLO\r\n\r\n"] {
        raw.publish(b"later.default.echo", block, b"1");
    }
    let delay = ("Millpond-Delay", "1h");
    for (id, subject, headers, _, _) in CANNOT_WAIT {
        let headers: Vec<_> = [("Nats-Msg-Id", *id)].iter().chain(*headers).copied().collect();
        publish(&cluster, subject, &headers, "12").await;
    }
    publish(&cluster, "later.default.square.u-key", &[("Nats-Msg-Id", "first"), delay], "1").await;
    // The same again is no other task; another one has the key when it is to be moved.
    publish(&cluster, "later.default.square.u-key", &[("Millpond-Id", "first"), delay], "1").await;
    publish(&cluster, "later.default.square.u-key", &[("Nats-Msg-Id", "second"), delay], "1").await;
    publish(&cluster, "later.default.square", &[("Nats-Msg-Id", "same"), delay], "1").await;
    publish(&cluster, "later.default.square", &[("Millpond-Id", "same"), delay], "1").await;
    publish(&cluster, "later.default.square", &[("Millpond-Id", "same"), delay], "2").await;
    let (mut producer, url) = cluster.producer().await;
    is_moved(&cluster).await;
    for (id, _, _, reason, said) in CANNOT_WAIT {
        let ended = cluster.ended(id).await;
        assert_eq!((&ended["status"], &ended["dead"]["reason"]), (&json!("dead"), &json!(reason)), "{id}: {ended}");
        assert!(ended["dead"]["failure"]["message"].as_str().unwrap().contains(said), "{id}: {ended}");
        assert_eq!(ended["dead"]["worker"], "producer");
    }
    let ended = cluster.ended("second").await;
    assert_eq!(ended["dead"]["reason"], "unique_key_taken", "{ended}");
    let dead = cluster.get("/api/v1/dead", &[("limit", "100".into())]).await.unwrap();
    let rows = dead["rows"].as_array().unwrap();
    let reasons = |reason: &str| rows.iter().filter(|row| row["reason"] == reason).count();
    // Three of them nobody can read.
    assert_eq!((rows.len(), reasons("id_taken"), reasons("unique_key_taken")), (CANNOT_WAIT.len() + 5, 1, 1), "{dead}");
    for id in ["first", "same"] {
        assert_eq!(why(&cluster, id).await.0, Some(11), "{id} waits");
    }
    assert!(producer.ended().is_none() && reqwest::get(format!("{url}/readyz")).await.unwrap().status().is_success());
}

/// Id, subject, headers, reason, and what is said.
type CannotWait = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str, &'static str);

const CANNOT_WAIT: &[CannotWait] = &[
    ("timeless", "later.default.square", &[], "bad_header", "tasks.<queue>.<kind>"),
    ("soon", "later.default.square", &[("Millpond-Delay", "soon")], "bad_header", "Millpond-Delay"),
    ("far", "later.default.square", &[("Millpond-At", "9999-01-01T00:00:00Z")], "bad_header", "Millpond-At"),
    (
        "typo",
        "later.default.square",
        &[("Millpond-Delay", "1h"), ("Millpond-Typo", "1")],
        "bad_header",
        "Millpond-Typo",
    ),
    (
        "timeout",
        "later.default.square",
        &[("Millpond-Delay", "1h"), ("Millpond-Timeout", "x")],
        "bad_header",
        "Timeout",
    ),
    ("queue", "later.a@b.square", &[("Millpond-Delay", "1h")], "bad_subject", "a@b"),
    ("shape", "later.default.square.x", &[("Millpond-Delay", "1h")], "bad_subject", "j-<job>"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_or_purged_on_the_way_does_not_run() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    cluster.worker_is("w1", |worker| worker["state"] == "live").await;
    for moved in [false, true] {
        let _producer = if moved { Some(cluster.producer().await) } else { None };
        let id = |what: &str| format!("{what}-{moved}");
        for what in ["cancelled", "of-job", "purged"] {
            let (id, job) = (id(what), (what == "of-job").then(|| id("job")));
            let queue = if what == "purged" { "purged" } else { "default" };
            cluster.client.submit(&NewTask { job, queue: queue.into(), ..in_an_hour(&id) }, SHORT).await.unwrap();
        }
        if moved {
            is_moved(&cluster).await;
        }
        let queues = cluster.get("/api/v1/queues", &[]).await.unwrap();
        let scheduled = queues["rows"].as_array().unwrap().iter().find(|row| row["queue"] == "default").cloned();
        assert_eq!(scheduled.unwrap()["scheduled"], 2, "{queues}");
        let cancelled = output(cluster.command(&["task", "cancel", &id("cancelled")])).await;
        assert!(cancelled.status.success(), "{}", String::from_utf8_lossy(&cancelled.stderr));
        assert_eq!(cluster.ended(&id("cancelled")).await["status"], "cancelled");
        let cancelled = cluster.api.post::<Value>(&format!("/api/v1/jobs/{}/cancel", id("job")), &json!({})).await;
        assert_eq!(cancelled.unwrap()["removed"], 1);
        let purged = cluster.api.post::<Value>("/api/v1/queues/purged/purge", &json!({})).await.unwrap();
        assert_eq!(purged["count"], 1, "{purged}");
        let setup = cluster.nats.bus(Role::Setup).await;
        for (stream, left) in [("LATER", "later.>"), ("DUE", "sched.>")] {
            assert!(setup.next_raw_message(stream, 1, left).await.unwrap().is_none(), "{left}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_wipes_nothing_there() {
    let cluster = Cluster::start().await;
    publish(&cluster, "later.default.square", &[("Millpond-Delay", "1h")], "1").await;
    for (name, value) in [
        ("Nats-Rollup", "all"),
        ("Nats-Rollup", "sub"),
        ("Nats-Schedule", "@every 1s"),
        ("Nats-TTL", "1s"),
        ("Nats-Marker-Reason", "Purge"),
        ("Nats-Batch-Id", "b"),
    ] {
        for role in ["publisher", "client"] {
            let answer = published(&cluster, role, "later.default.square", &[(name, value)], "2").await;
            assert!(answer["error"].is_object() || name == "Nats-Marker-Reason", "{role} {name}: {answer}");
        }
    }
    assert_eq!(in_later(&cluster).await, 3, "the markers are messages as any other");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_signatures_what_has_none_is_not_moved_and_what_has_one_is_believed() {
    let cluster = Cluster::start().await;
    let keys = [("MILLPOND_SIGNING_KEY", KEY)];
    let _worker = cluster.worker_with("w1", &[], &keys);
    let (_producer, _) = cluster.producer_with(&keys).await;
    let delay = ("Millpond-Delay", "1s");
    publish(&cluster, "later.default.square", &[("Nats-Msg-Id", "plain"), delay], "12").await;
    let signer = Signer::new(KEY).unwrap();
    let signed = |id: &str, subject: &str| {
        let mut headers = vec![("Nats-Msg-Id".to_owned(), id.to_owned()), (delay.0.to_owned(), delay.1.to_owned())];
        signer.sign(subject, &mut headers, b"12");
        headers
    };
    for (id, signed_for) in
        [("good", "later.default.square"), ("moved", "later.default.echo"), ("now", "tasks.default.square")]
    {
        let headers = signed(id, signed_for);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        publish(&cluster, "later.default.square", &headers, "12").await;
    }
    let mut later = signed("early", "later.default.square");
    later.retain(|(name, _)| name != delay.0);
    later.push((delay.0.to_owned(), "0s".to_owned()));
    let later: Vec<(&str, &str)> = later.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    publish(&cluster, "later.default.square", &later, "12").await;
    assert_eq!(cluster.ended("good").await["result"], 144);
    let mine = cluster.client.clone().with_signer(Some(signer.clone()));
    let soon = NewTask { id: Some("mine".into()), at_ms: Some(millpond::now_ms() + 500), ..task("square", "5") };
    mine.submit(&soon, SHORT).await.unwrap();
    assert_eq!(cluster.ended("mine").await["result"], 25);
    let dead = until("what is not believed", PATIENCE, async || {
        let dead = cluster.get("/api/v1/dead", &[]).await?;
        let rows = dead["rows"].as_array()?.clone();
        (rows.len() == 4).then_some(rows)
    })
    .await;
    let reasons = |reason: &str| dead.iter().filter(|row| row["reason"] == reason).count();
    assert_eq!((reasons("unsigned"), reasons("bad_signature")), (1, 3), "{dead:?}");
    for id in ["plain", "moved", "now", "early"] {
        let task = cluster.get("/api/v1/task", &[("id", id.to_owned())]).await;
        assert!(task.is_none(), "the dead letter of {id} has an id of its own: {task:?}");
    }
}

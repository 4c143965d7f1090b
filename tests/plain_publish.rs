//! What publishers of any language put on NATS by hand. Headers mean the same in any case, and what means nothing is a dead letter that
//! names it, never a task with another meaning; what is stored where nothing would end it is a dead letter too.

use std::time::Duration;

use bytes::Bytes;
use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use millpond::bus::topology::stream_state;
use millpond::wire::subject::key;
use serde_json::json;

use crate::harness::{Cluster, PATIENCE, task, until};

const SHORT: RetryDeadline = RetryDeadline::Within(Duration::from_secs(5));

async fn publish(cluster: &Cluster, subject: &str, headers: &[(&str, &str)], payload: &str) {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    // Clients may not publish to DUE.
    let is_due = ["due.", "sched."].iter().any(|prefix| subject.starts_with(prefix));
    let role = if is_due { Role::Worker } else { Role::Client };
    let bus = cluster.nats.bus(role).await;
    bus.store(subject, &headers, Bytes::from(payload.to_owned()), SHORT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_have_no_case_and_durations_and_dates_are_those_of_each_library() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let in_python = "2100-01-31T12:00:00.123456+00:00";
    for (id, kind, name, value, payload, end) in [
        ("expired", "square", "millpond-expires", "2020-01-01T00:00:00Z", "12", "expired"),
        ("too-long", "sleep", "MILLPOND-TIMEOUT", "PT0.1S", "9", "exhausted"),
        ("go", "square", "Millpond-Timeout", "1m0s", "12", "done"),
        ("java", "square", "millpond-timeout", "PT30S", "12", "done"),
        ("python", "square", "Millpond-expires", in_python, "12", "done"),
        ("naive", "square", "Millpond-Expires", "2100-01-31T12:00:00.123456", "12", "has no time zone"),
    ] {
        let headers = [("Nats-Msg-Id", id), ("millpond-attempts-max", "1"), (name, value)];
        publish(&cluster, &format!("tasks.default.{kind}"), &headers, payload).await;
        let ended = cluster.ended(id).await;
        assert!(ended.to_string().contains(end), "{id}: {ended}");
        assert_eq!(ended["status"] == "done", end == "done", "{id}: {ended}");
    }
    // A retry has the header too, by its own name.
    let headers = [("Nats-Msg-Id", "twice"), ("MILLPOND-ATTEMPTS-MAX", "2"), ("millpond-attempts-max", "2")];
    publish(&cluster, "tasks.default.fail", &headers, "\"no\"").await;
    let ended = cluster.ended("twice").await;
    assert_eq!((&ended["dead"]["reason"], &ended["attempt"]), (&json!("exhausted"), &json!(2)), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_means_nothing_is_a_dead_letter_that_names_it() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    for (id, header, words) in [
        ("unknown", ("Millpond-Expire", "2100-01-31T12:00:00Z"), "the nearest is Millpond-Expires"),
        ("typo", ("millpond-typo", "x"), "header millpond-typo is not known"),
        ("delay", ("Millpond-Delay", "1h"), "later.<queue>.<kind>"),
        ("unique", ("millpond-unique", "k"), "tasks.<queue>.<kind>.u-<key>"),
        ("key", ("Idempotency-Key", "k"), "the id of a task is in Nats-Msg-Id"),
        ("two", ("millpond-batch", "2"), "Millpond-Batch is given twice"),
    ] {
        let headers = [("Nats-Msg-Id", id), header, ("Millpond-Batch", "1")];
        publish(&cluster, "tasks.default.square", &headers, "[12]").await;
        let found = until(id, PATIENCE, async || {
            let dead = cluster.get("/api/v1/dead", &[("limit", "100".into())]).await?;
            dead["rows"].as_array()?.iter().find(|row| row.to_string().contains(words)).cloned()
        })
        .await;
        assert_eq!(found["reason"], "bad_header", "{id}: {found}");
    }
    // The server has read no id in these, so nothing protects them from being stored twice.
    publish(&cluster, "tasks.default.square", &[("nats-msg-id", "lower")], "12").await;
    publish(&cluster, "tasks.default.square", &[("Nats-Msg-ID", "mixed")], "12").await;
    let found = until("two more", PATIENCE, async || {
        let dead = cluster.get("/api/v1/dead", &[("limit", "100".into())]).await?;
        let spelt = |row: &&serde_json::Value| row.to_string().contains("must be written Nats-Msg-Id");
        (dead["rows"].as_array()?.iter().filter(spelt).count() == 2).then_some(())
    });
    found.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_where_nothing_would_end_it_is_a_dead_letter_that_why_finds() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let (long, right) = ("x".repeat(65), key("keyed"));
    let later = ("Nats-Schedule", "@at 2100-01-01T00:00:00Z");
    let target = ("Nats-Schedule-Target", "due.default.square");
    for (id, subject, headers, reason, said) in [
        ("sign", "tasks.a@b.square".to_owned(), &[][..], "bad_queue", "a@b"),
        ("dash", "tasks.-.square".to_owned(), &[], "bad_queue", "lone"),
        ("long", format!("tasks.{long}.square.j-j"), &[], "bad_queue", long.as_str()),
        ("letters", "tasks.w\u{f6}rter.square".to_owned(), &[], "bad_queue", "w\u{f6}rter"),
        ("due", "due.a@b.square".to_owned(), &[("Millpond-Id", "due")], "bad_queue", "a@b"),
        ("shape", "tasks.default.square.x".to_owned(), &[], "bad_subject", "j-<job>"),
        ("timeless", "sched.default.square.-.timeless".to_owned(), &[], "bad_schedule", "no header Nats-Schedule"),
        (
            "lower",
            "sched.default.square.-.lower".to_owned(),
            &[("nats-schedule", later.1)],
            "bad_schedule",
            "no header",
        ),
        (
            "keyed",
            "sched.default.square.-.keyed".to_owned(),
            &[later, target, ("Millpond-Id", "keyed")],
            "bad_schedule",
            &right,
        ),
        ("other", "sched.default.echo.-.other".to_owned(), &[later, target], "bad_schedule", "here due.default.square"),
        ("nightly", "sched.-.nightly".to_owned(), &[("Millpond-Schedule", "nightly")], "bad_schedule", "no header"),
    ] {
        let headers: Vec<_> = headers.iter().copied().chain([("Nats-Msg-Id", id)]).collect();
        publish(&cluster, &subject, &headers, "12").await;
        let ended = cluster.ended(id).await;
        assert_eq!((&ended["status"], &ended["dead"]["reason"]), (&json!("dead"), &json!(reason)), "{id}: {ended}");
        let message = ended["dead"]["failure"]["message"].as_str().unwrap();
        assert!(message.contains(said), "{id}: {message}");
        assert_eq!(ended["dead"]["payload"], 12, "{id}: {ended}");
        let why = cluster.command(&["why", id]).output().unwrap();
        let why = String::from_utf8_lossy(&why.stdout).into_owned();
        assert!(why.contains(reason) || why.contains(said), "{id}: {why}");
    }
    // Nobody signs it by running it again, and nothing is left where it lay.
    let again = cluster.command(&["dead", "retry", "sign"]).output().unwrap();
    assert!(!again.status.success(), "{again:?}");
    let bus = cluster.nats.bus(Role::Setup).await;
    for stream in ["TASKS", "DUE"] {
        assert_eq!(stream_state(&bus, stream).await.unwrap().messages, 0, "{stream}");
    }
    // What is as it must be waits, also without an id and a key of its own.
    publish(&cluster, &format!("sched.default.square.-.{right}"), &[later, target, ("Millpond-Id", "keyed")], "5")
        .await;
    publish(&cluster, "sched.default.square.-.any", &[later, target], "5").await;
    let (_producer, _) = cluster.producer().await;
    let nightly = ["schedule", "add", "nightly", "square", "5", "--every", "1h"];
    assert!(cluster.command(&nightly).status().unwrap().success());
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(stream_state(&bus, "DUE").await.unwrap().messages, 3);
    let id = cluster.client.submit(&task("square", "12"), SHORT).await.unwrap().id;
    assert_eq!(cluster.ended(&id).await["result"], 144);
}

#[test]
fn the_keys_of_the_documentation_are_right() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md")).unwrap();
    let (_, table) = text.split_once("| id | its key |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with("| `"));
    let vectors: Vec<(&str, &str)> = rows.filter_map(|row| row.split_once("` | `")).collect();
    assert_eq!(vectors.len(), 3, "{vectors:?}");
    for (id, wanted) in vectors {
        assert_eq!(key(id.trim_start_matches("| `")), wanted.trim_end_matches("` |"));
    }
}

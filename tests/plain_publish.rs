//! What publishers of any language put on NATS by hand. Headers mean the same in any case, and what means nothing is a dead letter that
//! names it, never a task with another meaning.

use std::time::Duration;

use bytes::Bytes;
use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use serde_json::json;

use crate::harness::{Cluster, PATIENCE, until};

const SHORT: RetryDeadline = RetryDeadline::Within(Duration::from_secs(5));

async fn publish(cluster: &Cluster, subject: &str, headers: &[(&str, &str)], payload: &str) {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let bus = cluster.nats.bus(Role::Client).await;
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
        ("delay", ("Millpond-Delay", "1h"), "Nats-Schedule"),
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

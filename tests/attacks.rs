//! What a hostile program tries that has the password of a role: answers that go where they should not, deliveries to subjects that
//! services listen to, headers that wipe streams, and tasks without the key. docs/security.md says what each role may do.

use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use millpond::bus::Role;
use serde_json::{Value, json};

use crate::harness::{Cluster, NatsServer, PATIENCE};

/// As long as it takes until what was sent by then has had its effect, seen by the effects of what is allowed.
const A_MOMENT: Duration = Duration::from_secs(1);

/// A connection with the password of a role.
pub async fn hostile(nats: &NatsServer, role: &str) -> Client {
    let inbox = if ["client", "publisher"].contains(&role) { "_INBOX".to_owned() } else { format!("_INBOX_{role}") };
    let options = ConnectOptions::new().custom_inbox_prefix(inbox);
    let options = options.user_and_password(role.into(), nats.secrets.passwords[role].clone());
    options.connect(format!("127.0.0.1:{}", nats.port)).await.unwrap()
}

async fn asked(client: &Client, subject: &str, body: &Value) -> Value {
    let answer = client.request(subject.to_owned(), body.to_string().into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

/// Has the server deliver a value, and heartbeats, to any subject: by a push consumer on a bucket that a client may write.
async fn push(client: &Client, key: &str, value: &Value, to: &str) {
    let stored = asked(client, &format!("$KV.millpond_shared.{key}"), value).await;
    assert_eq!(stored["stream"], "KV_millpond_shared", "{stored}");
    let config = json!({
        "name": key, "deliver_subject": to, "ack_policy": "none", "deliver_policy": "last", "replay_policy": "instant",
        "filter_subject": format!("$KV.millpond_shared.{key}"), "idle_heartbeat": 100_000_000, "inactive_threshold": 60_000_000_000_u64,
    });
    let request = json!({ "stream_name": "KV_millpond_shared", "config": config });
    let made = asked(client, "$JS.API.CONSUMER.CREATE.KV_millpond_shared", &request).await;
    assert_eq!(made["error"], Value::Null, "{to}: {made}");
}

/// A dead letter that never was, as `ctl.replay` is asked to run it again.
fn replay(id: &str) -> Value {
    json!({
        "queue": "default", "kind": "square", "headers": [], "payload": "MTI=",
        "evidence": { "v": 1, "id": id, "attempt": 1, "reason": "exhausted", "worker": "w", "published_ms": 1, "dead_lettered_ms": 1,
            "failure": { "type": "error", "message": "no", "retry": true } },
    })
}

fn continuation(job: &str) -> Value {
    json!({ "job": job, "epoch": 1, "queue": "default", "kind": "square", "total": 0, "done": 0, "dead": 0, "cancelled": 0 })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_push_consumer_delivers_is_heard_by_nobody() {
    let cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    let _worker = cluster.worker("w1", &[], None);
    cluster.worker_is("w1", |_| true).await;
    let client = hostile(&cluster.nats, "client").await;
    // All that listen do so by one type (tests/tidy.rs); here is what would be seen of those that act.
    push(&client, "drain", &json!({}), "ctl.drain.w1").await;
    push(&client, "replay", &replay("pushed"), "ctl.replay").await;
    push(&client, "ended", &continuation("pushed"), "ctl.continuation").await;
    let clock = json!({ "program": "producer", "host": "evil", "pid": 1, "clock_ahead_ms": 60_000 });
    push(&client, "clock", &clock, "events.clock").await;
    push(&client, "call", &json!(3), "call.default.square").await;
    // In the order of the server, and of each service: behind these.
    let bus = cluster.nats.bus(Role::Collector).await;
    let real = bus.request("ctl.replay", &replay("requested"), PATIENCE).await.unwrap();
    assert!(serde_json::to_string(&real).unwrap().contains("requested"), "{real:?}");
    assert_eq!(cluster.ended("requested").await["result"], 144);
    tokio::time::sleep(A_MOMENT).await;
    for id in ["pushed", "pushed.1/then"] {
        assert!(cluster.get("/api/v1/task", &[("id", id.into())]).await.is_none(), "{id} has run");
    }
    assert!(!cluster.log("w1").contains("an operator asks this worker to drain"), "{}", cluster.log("w1"));
    let problems = cluster.get("/api/v1/problems", &[]).await.unwrap().to_string();
    assert!(!problems.contains("evil"), "{problems}");
    // A stream does not take it up either.
    for (key, to) in
        [("t", "tasks.default.square"), ("r", "results.-.default.square"), ("c", "$KV.millpond_cancels.job.j9")]
    {
        push(&client, key, &json!({}), to).await;
    }
    push(&client, "delete", &json!({}), "$JS.API.STREAM.DELETE.KV_millpond_cancels").await;
    tokio::time::sleep(A_MOMENT).await;
    let cancels = cluster.nats.asked("$JS.API.STREAM.INFO.KV_millpond_cancels", &Value::Null).await;
    assert_eq!(cancels["state"]["messages"], 0, "{cancels}");
    let subjects = |stream: &str| format!("$JS.API.STREAM.INFO.{stream}");
    for stream in ["TASKS", "RESULTS"] {
        let found = cluster.nats.asked(&subjects(stream), &json!({ "subjects_filter": "$KV.>" })).await;
        assert_eq!(found["state"]["subjects"], Value::Null, "{found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_no_place_for_an_answer_is_no_request() {
    let cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    let _worker = cluster.worker("w1", &[], None);
    cluster.worker_is("w1", |_| true).await;
    // A worker may write one bucket, and have the server send it anywhere: beside the streams an answer goes where the asker says.
    let worker = hostile(&cluster.nats, "worker").await;
    for (key, value, to) in [
        ("a", replay("answered"), "ctl.replay"),
        ("b", continuation("answered"), "ctl.continuation"),
        ("c", json!({}), "ctl.drain.w1"),
    ] {
        worker.publish(format!("$KV.millpond_servers.{key}"), value.to_string().into()).await.unwrap();
        let get = format!("$JS.API.DIRECT.GET.KV_millpond_servers.$KV.millpond_servers.{key}");
        worker.publish_with_reply(get, to.to_owned(), "".into()).await.unwrap();
    }
    worker.flush().await.unwrap();
    let bus = cluster.nats.bus(Role::Collector).await;
    let _real = bus.request("ctl.replay", &replay("requested"), PATIENCE).await.unwrap();
    assert_eq!(cluster.ended("requested").await["result"], 144);
    tokio::time::sleep(A_MOMENT).await;
    for id in ["answered", "answered.1/then"] {
        assert!(cluster.get("/api/v1/task", &[("id", id.into())]).await.is_none(), "{id} has run");
    }
    assert!(!cluster.log("w1").contains("an operator asks this worker to drain"), "{}", cluster.log("w1"));
}

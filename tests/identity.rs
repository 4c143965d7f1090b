//! An id is unique in its queue and kind: tasks of one id in several of them are several tasks, whichever way they were published and
//! whatever happens to one of them; and what was acknowledged as a duplicate is no other task.

use std::process::Output;
use std::time::Duration;

use bytes::Bytes;
use millpond::bus::Role;
use millpond::bus::publish::{PublishError, RetryDeadline, Stored};
use millpond::chain::parse;
use millpond::client::{NewTask, SubmitError};
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, output, task, text, until};

const SHORT: RetryDeadline = RetryDeadline::Within(Duration::from_secs(5));
/// A queue, a kind, arguments, and a result.
const PLACES: [(&str, &str, &str, i64); 4] = [
    ("default", "square", "3", 9),
    ("default", "echo", "4", 4),
    ("other", "square", "5", 25),
    ("other", "echo", "6", 6),
];

fn named(id: &str, queue: &str, kind: &str, arguments: &str) -> NewTask {
    NewTask { id: Some(id.into()), queue: queue.into(), ..task(kind, arguments) }
}

fn query(id: &str, queue: &str, kind: &str) -> [(&'static str, String); 3] {
    [("id", id.into()), ("queue", queue.into()), ("kind", kind.into())]
}

/// The task once it is not under way any more.
async fn ended(cluster: &Cluster, id: &str, queue: &str, kind: &str) -> Value {
    until(&format!("the end of {id} in {queue}.{kind}"), PATIENCE, async || {
        let found = cluster.get("/api/v1/task", &query(id, queue, kind)).await?;
        let whole = match text(&found, "status").as_str() {
            "done" | "cancelled" => true,
            "dead" => found["dead"].is_object(),
            _ => false,
        };
        whole.then_some(found)
    })
    .await
}

async fn cli(cluster: &Cluster, arguments: &[&str]) -> (Option<i32>, String) {
    let command = cluster.command(arguments);
    let Output { status, stdout, stderr } = output(command).await;
    (status.code(), [stdout, stderr].map(|said| String::from_utf8(said).unwrap()).concat())
}

async fn publish(cluster: &Cluster, subject: &str, headers: &[(&str, &str)], payload: &str) -> Stored {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let bus = cluster.nats.bus(Role::Client).await;
    bus.store(subject, &headers, Bytes::from(payload.to_owned()), SHORT).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_id_in_two_queues_and_two_kinds_is_four_tasks_by_every_way() {
    let cluster = Cluster::start().await;
    let (_producer, url) = cluster.producer().await;
    let http = reqwest::Client::new();
    for (queue, kind, arguments, _) in PLACES {
        let task = named("client", queue, kind, arguments);
        assert!(!cluster.client.submit(&task, SHORT).await.unwrap().duplicate, "{queue}.{kind}");
        assert!(cluster.client.submit(&task, SHORT).await.unwrap().duplicate, "{queue}.{kind}: a resend");
        let submitted = cli(&cluster, &["submit", kind, arguments, "--queue", queue, "--id", "cli", "--json"]).await;
        assert_eq!(submitted, (Some(0), "{\"duplicate\":false,\"id\":\"cli\"}\n".to_owned()));
        publish(&cluster, &format!("tasks.{queue}.{kind}"), &[("Millpond-Id", "nats")], arguments).await;
        let post = http.post(format!("{url}/v1/tasks/{queue}/{kind}")).bearer_auth(&cluster.nats.secrets.token);
        let post = post.header("Idempotency-Key", "http").body(arguments);
        let stored: Value = post.send().await.unwrap().json().await.unwrap();
        assert_eq!(
            (&stored["queue"], &stored["kind"], &stored["duplicate"]),
            (&json!(queue), &json!(kind), &json!(false))
        );
    }
    // While they wait, an id alone is that of several.
    let (code, said) = cli(&cluster, &["why", "cli"]).await;
    assert!(code == Some(70) && said.contains("default.echo, default.square, other.echo, other.square"), "{said}");
    let (code, said) = cli(&cluster, &["why", "cli", "--queue", "other", "--kind", "echo"]).await;
    assert!(code == Some(13) && said.contains("no live worker serves queue other"), "{code:?} {said}");
    let _worker = cluster.worker("w1", &["--queues", "default,other"], None);
    for id in ["client", "cli", "nats", "http"] {
        for (queue, kind, _, result) in PLACES {
            let task = ended(&cluster, id, queue, kind).await;
            assert_eq!((&task["status"], &task["result"]), (&json!("done"), &json!(result)), "{id} {queue}.{kind}");
            assert_eq!(task["attempts"].as_array().unwrap().len(), 1, "{task}");
        }
    }
    let several = cluster.api.get::<Value>("/api/v1/task", &[("id", "http")]).await.unwrap_err().to_string();
    assert!(
        several.contains("409") && several.contains("default.echo, default.square, other.echo, other.square"),
        "{several}"
    );
    let several = cluster.api.get::<Value>("/api/v1/task", &[("id", "http"), ("kind", "echo")]).await.unwrap_err();
    assert!(several.to_string().ends_with("default.echo, other.echo"), "{several}");
    let (code, said) = cli(&cluster, &["task", "result", "nats", "--queue", "other", "--kind", "square"]).await;
    assert_eq!((code, said.as_str()), (Some(0), "25\n"));
    let (code, said) = cli(&cluster, &["task", "show", "nats", "--queue", "other"]).await;
    assert!(code == Some(70) && said.contains("--kind"), "{said}");
    let (code, said) = cli(&cluster, &["why", "cli", "--queue", "other", "--kind", "echo"]).await;
    assert!(code == Some(0) && said.contains("it is done"), "{said}");
    // Who waits hears of the own task, also of one that was published before.
    for (queue, kind, arguments, result) in PLACES {
        let post =
            http.post(format!("{url}/v1/tasks/{queue}/{kind}?wait=20s")).bearer_auth(&cluster.nats.secrets.token);
        let end = post.header("Idempotency-Key", "http").body(arguments).send().await.unwrap();
        assert_eq!(end.json::<Value>().await.unwrap()["result"], result);
        let arguments = ["submit", kind, arguments, "--queue", queue, "--id", "waited", "--wait"];
        assert_eq!(cli(&cluster, &arguments).await, (Some(0), format!("{result}\n")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_is_the_same_task_and_other_arguments_are_refused() {
    let cluster = Cluster::start().await;
    let (_producer, url) = cluster.producer().await;
    let http = reqwest::Client::new();
    let post = async |query: &str, body: String| {
        let post = http.post(format!("{url}/v1/tasks/default/echo{query}")).bearer_auth(&cluster.nats.secrets.token);
        let answer = post.header("Idempotency-Key", "key").body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    assert_eq!(post("", "1".into()).await.1["duplicate"], false);
    assert_eq!(post("", "1".into()).await.1["duplicate"], true);
    // It waits: the message is looked at.
    for query in ["", "?wait=20s"] {
        let (status, refused) = post(query, "2".into()).await;
        let said = text(&refused, "error");
        assert!(
            status == 409 && said.contains("kind echo in queue default") && said.contains("waits or runs"),
            "{said}"
        );
    }
    let taken = cluster.client.submit(&named("key", "default", "echo", "2"), SHORT).await;
    assert!(matches!(taken, Err(SubmitError::IdTaken { .. })), "{taken:?}");
    let (code, said) = cli(&cluster, &["submit", "echo", "2", "--id", "key"]).await;
    assert!(code == Some(1) && said.contains("another task of kind echo in queue default"), "{said}");
    // Somebody's own id is the very message id of another task: that one is stored all the same.
    let imitated = [("Nats-Msg-Id", "millpond:default/square/task/mine")];
    publish(&cluster, "tasks.default.echo", &imitated, "7").await;
    assert!(!cluster.client.submit(&named("mine", "default", "square", "7"), SHORT).await.unwrap().duplicate);
    // A plain publish is told of any message that had its id, as the docs say.
    assert!(!publish(&cluster, "tasks.default.echo", &[("Nats-Msg-Id", "plain")], "1").await.duplicate);
    assert!(publish(&cluster, "tasks.other.square", &[("Nats-Msg-Id", "plain")], "2").await.duplicate);
    let _worker = cluster.worker("w1", &[], None);
    assert_eq!(ended(&cluster, "mine", "default", "square").await["result"], 49);
    assert_eq!(ended(&cluster, "millpond:default/square/task/mine", "default", "echo").await["result"], 7);
    // It has ended: the outcome has a digest of the arguments, large ones too, and whoever published it.
    let first = ended(&cluster, "key", "default", "echo").await;
    assert_eq!(first["digest"], millpond::payload::digest(b"1"));
    let (status, refused) = post("", "2".into()).await;
    assert!(status == 409 && text(&refused, "error").contains("it is done"), "{refused}");
    let (status, same) = post("?wait=20s", "1".into()).await;
    assert_eq!((status, &same["result"]), (200, &json!(1)));
    publish(&cluster, "tasks.default.echo", &[("Nats-Msg-Id", "by-nats")], "1").await;
    ended(&cluster, "by-nats", "default", "echo").await;
    let large = format!("\"{}\"", "x".repeat(600_000));
    let stored = named("large", "default", "echo", &large);
    cluster.client.submit(&stored, SHORT).await.unwrap();
    ended(&cluster, "large", "default", "echo").await;
    for (id, first) in [("by-nats", "1"), ("large", large.as_str())] {
        for (body, status) in [("2", 409), (first, 202)] {
            let post = http.post(format!("{url}/v1/tasks/default/echo")).bearer_auth(&cluster.nats.secrets.token);
            let answer = post.header("Idempotency-Key", id).body(body.to_owned()).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), status, "{id}");
        }
    }
    // A dead letter stands for its task, too.
    cluster.client.submit(&named("dies", "default", "fail", r#"{"how":"fatal"}"#), SHORT).await.unwrap();
    ended(&cluster, "dies", "default", "fail").await;
    let post = http.post(format!("{url}/v1/tasks/default/fail")).bearer_auth(&cluster.nats.secrets.token);
    let answer = post.header("Idempotency-Key", "dies").body("{}").send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn to_cancel_one_leaves_the_other() {
    let cluster = Cluster::start().await;
    let in_an_hour = Some(millpond::now_ms() + 3_600_000);
    for kind in ["square", "echo"] {
        cluster.client.submit(&named("waits", "default", kind, "3"), SHORT).await.unwrap();
        let later = NewTask { at_ms: in_an_hour, ..named("later", "default", kind, "3") };
        cluster.client.submit(&later, SHORT).await.unwrap();
    }
    for id in ["waits", "later"] {
        let (code, said) = cli(&cluster, &["task", "cancel", id]).await;
        assert!(code == Some(70) && said.contains("default.echo, default.square"), "{said}");
        let (code, said) = cli(&cluster, &["task", "cancel", id, "--kind", "square", "--json"]).await;
        assert!(code == Some(0) && said.contains(r#""kind":"square""#), "{said}");
    }
    // Of two of which one is cancelled, the other is meant.
    assert_eq!(ended(&cluster, "later", "default", "square").await["status"], "cancelled");
    let (code, said) = cli(&cluster, &["why", "later", "--kind", "echo"]).await;
    assert_eq!(code, Some(11), "{said}");
    let (code, said) = cli(&cluster, &["task", "cancel", "later", "--json"]).await;
    assert!(code == Some(0) && said.contains(r#""kind":"echo""#), "{said}");
    let _worker = cluster.worker("w1", &[], None);
    assert_eq!(ended(&cluster, "waits", "default", "square").await["status"], "cancelled");
    assert_eq!(ended(&cluster, "waits", "default", "echo").await["result"], 3);
    assert_eq!(ended(&cluster, "later", "default", "echo").await["status"], "cancelled");
    // What runs is ended alone, and an item of a batch as well.
    for kind in ["sleep", "spin"] {
        let runs = NewTask { attempts_max: Some(1), ..named("runs", "default", kind, "600") };
        cluster.client.submit(&runs, SHORT).await.unwrap();
    }
    until("both run", PATIENCE, async || {
        let (_, sleeps) = cli(&cluster, &["why", "runs", "--kind", "sleep"]).await;
        let (_, spins) = cli(&cluster, &["why", "runs", "--kind", "spin"]).await;
        (sleeps.contains("it runs on w1") && spins.contains("it runs on w1")).then_some(())
    })
    .await;
    let (code, said) = cli(&cluster, &["why", "runs"]).await;
    assert!(code == Some(70) && said.contains("default.sleep, default.spin"), "{said}");
    let cancel = json!({ "id": "runs", "queue": "default", "kind": "sleep" });
    cluster.api.post::<Value>("/api/v1/task/cancel", &cancel).await.unwrap();
    assert_eq!(ended(&cluster, "runs", "default", "sleep").await["status"], "cancelled");
    let (code, said) = cli(&cluster, &["why", "runs", "--kind", "spin"]).await;
    assert_eq!(code, Some(10), "{said}");
    // A task that is still to come is cancelled in all kinds of its queue.
    let cancel = json!({ "id": "to-come", "queue": "default" });
    cluster.api.post::<Value>("/api/v1/task/cancel", &cancel).await.unwrap();
    for kind in ["square", "echo"] {
        cluster.client.submit(&named("to-come", "default", kind, "3"), SHORT).await.unwrap();
        assert_eq!(ended(&cluster, "to-come", "default", kind).await["status"], "cancelled");
    }
    let cancel = json!({ "id": "runs", "queue": "default" });
    cluster.api.post::<Value>("/api/v1/task/cancel", &cancel).await.unwrap();
    assert_eq!(ended(&cluster, "runs", "default", "spin").await["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_dead_letters_replays_and_next_steps_of_one_id_are_apart() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--queues", "default,other,third"], None);
    let (_producer, _) = cluster.producer().await;
    // Each is tried again in its own queue.
    for queue in ["default", "other"] {
        cluster.client.submit(&named("again", queue, "fail", r#"{"until":2}"#), SHORT).await.unwrap();
    }
    for queue in ["default", "other"] {
        let task = ended(&cluster, "again", queue, "fail").await;
        assert_eq!((&task["result"], task["attempts"].as_array().unwrap().len()), (&json!(2), 2), "{task}");
    }
    // Four dead letters of one id.
    let dying = [("default", "fail"), ("default", "square"), ("other", "fail"), ("other", "square")];
    for (queue, kind) in dying {
        let arguments = r#"{"how":"fatal","until":2}"#;
        cluster.client.submit(&named("dies", queue, kind, arguments), SHORT).await.unwrap();
    }
    for (queue, kind) in dying {
        assert_eq!(ended(&cluster, "dies", queue, kind).await["dead"]["kind"], kind);
    }
    let (code, said) = cli(&cluster, &["dead", "retry", "dies"]).await;
    assert!(code == Some(70) && said.contains("default.fail, default.square, other.fail, other.square"), "{said}");
    let unnamed = json!({ "dead_letters": [{ "queue": "default", "id": "dies", "attempt": 1 }] });
    let several = cluster.api.post::<Value>("/api/v1/dead/retry", &unnamed).await.unwrap_err().to_string();
    assert!(several.contains("409") && several.contains("default.fail, default.square"), "{several}");
    let retry = ["dead", "retry", "dies", "--queue", "default", "--kind", "fail"];
    assert_eq!(cli(&cluster, &retry).await.0, Some(0));
    assert_eq!(ended(&cluster, "dies", "default", "fail").await["result"], 2);
    // Out of two queues into a third one: two tasks.
    for queue in ["default", "other"] {
        let moved =
            ["dead", "retry", "dies", "--queue", queue, "--kind", "square", "--to-queue", "third", "--args", "5"];
        let (code, said) = cli(&cluster, &moved).await;
        assert!(code == Some(0) && said.starts_with(&format!("dies@{queue}\n")), "{said}");
        let task = ended(&cluster, &format!("dies@{queue}"), "third", "square").await;
        assert_eq!((&task["result"], &task["replay_of"]["queue"]), (&json!(25), &json!(queue)), "{task}");
    }
    let purged = ["dead", "purge", "dies", "--queue", "other", "--kind", "fail"];
    assert_eq!(cli(&cluster, &purged).await.0, Some(0));
    assert_eq!(cluster.get("/api/v1/dead", &[]).await.unwrap()["rows"], json!([]));
    // Both have a next step of the same queue and kind.
    for kind in ["square", "echo"] {
        let chain = NewTask { continuation: parse("third.echo").unwrap(), ..named("chain", "default", kind, "3") };
        let mut task = cluster.client.submit(&chain.awaited(), SHORT).await.unwrap();
        let (id, end) = task.end().await.unwrap();
        assert_eq!(id, format!("chain/default.{kind}/then"));
        assert_eq!(end.unwrap().value.get(), if kind == "square" { "9" } else { "3" });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_holds_or_has_settled_one_does_not_keep_the_other_from_running() {
    let cluster = Cluster::start().await;
    let _first = cluster.worker("first", &["--slots", "1"], None);
    cluster.client.submit(&named("held", "default", "sleep", "600"), SHORT).await.unwrap();
    until("it runs", PATIENCE, async || {
        cli(&cluster, &["why", "held"]).await.1.contains("it runs on first").then_some(())
    })
    .await;
    // What waited for its time is asked about; whoever holds the other one says that it does not hold this one.
    let soon = Some(millpond::now_ms() + 300);
    let _second = cluster.worker("second", &[], None);
    let (_producer, _) = cluster.producer().await;
    cluster.client.submit(&NewTask { at_ms: soon, ..named("held", "default", "echo", "1") }, SHORT).await.unwrap();
    assert_eq!(ended(&cluster, "held", "default", "echo").await["result"], 1);
    let (code, said) = cli(&cluster, &["why", "held", "--kind", "sleep"]).await;
    assert!(code == Some(10) && said.contains("it runs on first"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_its_time_is_not_replaced() {
    let cluster = Cluster::start().await;
    let in_an_hour = |id, arguments| NewTask {
        at_ms: Some(millpond::now_ms() + 3_600_000),
        ..named(id, "default", "fail", arguments)
    };
    assert!(!cluster.client.submit(&in_an_hour("later", "1"), SHORT).await.unwrap().duplicate);
    // Before a producer service has moved it, and after.
    let mut producer = None;
    for _ in 0..2 {
        assert!(cluster.client.submit(&in_an_hour("later", "1"), SHORT).await.unwrap().duplicate);
        let taken = cluster.client.submit(&in_an_hour("later", "2"), SHORT).await;
        assert!(matches!(taken, Err(SubmitError::IdTaken { .. })), "{taken:?}");
        let (code, said) = cli(&cluster, &["submit", "fail", "2", "--id", "later", "--delay", "2h"]).await;
        assert!(code == Some(1) && said.contains("another task of kind fail in queue default"), "{said}");
        let (_, said) = cli(&cluster, &["why", "later", "--json"]).await;
        assert!(said.contains("for attempt 1"), "{said}");
        producer = Some(cluster.producer().await);
        let setup = cluster.nats.bus(Role::Setup).await;
        until("the move", PATIENCE, async || {
            setup.next_raw_message("LATER", 1, ">").await.unwrap().is_none().then_some(())
        })
        .await;
    }
    drop(producer);
    // A retry is a task that waits, too.
    let arguments = r#"{"until":2}"#;
    let _worker = cluster.worker("w1", &["--retry-delay", "1h", "--retry-delay-max", "1h"], None);
    cluster.client.submit(&named("again", "default", "fail", arguments), SHORT).await.unwrap();
    until("a retry", PATIENCE, async || {
        cli(&cluster, &["why", "again"]).await.1.contains("for attempt 2").then_some(())
    })
    .await;
    assert!(cluster.client.submit(&in_an_hour("again", arguments), SHORT).await.unwrap().duplicate);
    assert!(cluster.client.submit(&in_an_hour("again", "{}"), SHORT).await.is_err());
    let (_, said) = cli(&cluster, &["why", "again"]).await;
    assert!(said.contains("for attempt 2"), "{said}");
    // Who publishes to DUE can have the same.
    let key = millpond::wire::subject::key("by-nats");
    let headers = [
        ("Nats-Schedule", "@at 2100-01-01T00:00:00Z"),
        ("Nats-Schedule-Target", "due.default.fail"),
        ("Millpond-Id", "by-nats"),
        ("Nats-Expected-Last-Subject-Sequence", "0"),
    ];
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let (bus, subject) = (cluster.nats.bus(Role::Worker).await, format!("sched.default.fail.-.{key}"));
    bus.store(&subject, &headers, "1".into(), SHORT).await.unwrap();
    assert!(matches!(bus.store(&subject, &headers, "2".into(), SHORT).await, Err(PublishError::NotLast { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_leaves_both_to_its_heir_and_each_ends_once() {
    let cluster = Cluster::start().await;
    for (number, place) in
        ["run.started", "settle.executed", "settle.outcome_stored", "settle.acked"].into_iter().enumerate()
    {
        let queue = format!("q{number}");
        for kind in ["square", "echo"] {
            cluster.client.submit(&named("both", &queue, kind, "3"), SHORT).await.unwrap();
        }
        let mut victim = cluster.worker(&format!("victim{number}"), &["--queues", &queue, "--slots", "1"], Some(place));
        until(&format!("death at {place}"), PATIENCE, async || victim.ended()).await;
        let _heir = cluster.worker(&format!("heir{number}"), &["--queues", &queue], None);
        for (kind, result) in [("square", 9), ("echo", 3)] {
            let task = ended(&cluster, "both", &queue, kind).await;
            assert_eq!((&task["status"], &task["result"]), (&json!("done"), &json!(result)), "{place}: {task}");
        }
    }
    let tasks = cluster.get("/api/v1/tasks", &[]).await.unwrap();
    assert_eq!(tasks["rows"].as_array().unwrap().len(), 8, "each once: {tasks}");
}

//! What a hostile program tries that has the password of a role: answers that go where they should not, deliveries to subjects that
//! services listen to, headers that wipe streams, and tasks without the key. docs/security.md says what each role may do.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, HeaderMap};
use futures_util::StreamExt;
use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use millpond::signature::Signer;
use serde_json::{Value, json};

use crate::harness::{Cluster, NatsServer, PATIENCE, until};

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
        let stored = asked(&worker, &format!("$KV.millpond_servers.{key}"), &value).await;
        assert_eq!(stored["stream"], "KV_millpond_servers", "{stored}");
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

const KEY: &str = "0123456789abcdef0123456789abcdef";

/// With keys, what nobody has made with one of them runs by no path.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_key_nothing_is_run() {
    let cluster = Cluster::start().await;
    let keys = [("MILLPOND_SIGNING_KEY", KEY)];
    let (_producer, _) = cluster.producer_with(&keys).await;
    let _worker = cluster.worker_with("w1", &[], &keys);
    let client = hostile(&cluster.nats, "client").await;
    let worker = hostile(&cluster.nats, "worker").await;
    // A dead letter that no worker with the key has made: asked for, and as an operator finds it.
    let bus = cluster.nats.bus(Role::Collector).await;
    let asked_for = bus.request("ctl.replay", &replay("asked"), PATIENCE).await.unwrap();
    assert!(serde_json::to_string(&asked_for).unwrap().contains("signing key"), "{asked_for:?}");
    let evidence = replay("forged")["evidence"].to_string();
    let mut headers = HeaderMap::new();
    headers.insert("Millpond-Dead", evidence.as_str());
    worker.publish_with_headers("dead.default.square", headers, "12".into()).await.unwrap();
    let letter = until("the forged dead letter", PATIENCE, async || {
        cluster.get("/api/v1/dead_letter", &[("id", "forged".into())]).await
    });
    assert_eq!(letter.await["reason"], "exhausted");
    let again = cluster.started(&["dead", "retry", "forged"]).wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("signing key"), "{said}");
    // A job whose record names what its end starts, with no signature, and with that of another one.
    let signer = Signer::new(KEY).unwrap();
    for (job, signature) in [("bare", None), ("other", signer.sign_continuation(("another", 1), "default", "square"))] {
        let mut record = json!({
            "job": job, "queue": "default", "kind": "square", "epoch": 1, "state": "closed", "total": 0, "published": 0,
            "continuation": { "queue": "default", "kind": "square" }, "created_ms": 1, "heartbeat_ms": 1,
        });
        if let Some(signature) = signature {
            record["continuation_signature"] = json!(signature);
        }
        assert_eq!(asked(&client, &format!("$KV.millpond_jobs.{job}"), &record).await["stream"], "KV_millpond_jobs");
        let refused = until("the refused continuation", PATIENCE, async || {
            let found = cluster.get(&format!("/api/v1/jobs/{job}"), &[]).await?;
            found["continuation_refused"].as_str().map(str::to_owned)
        });
        assert!(refused.await.contains("signed"), "{job}");
    }
    // Who has the key has it all.
    let mut map = cluster.command(&["map", "square", "--range", "0..3", "--job", "good", "--continuation", "echo"]);
    let mapped = tokio::process::Command::from({
        map.envs(keys);
        map
    })
    .output()
    .await
    .unwrap();
    assert!(mapped.status.success(), "{}", String::from_utf8_lossy(&mapped.stderr));
    until("the end of the continuation", PATIENCE, async || {
        cluster.get("/api/v1/task", &[("id", "good.1/then".into())]).await
    })
    .await;
    for id in ["asked", "bare.1/then", "other.1/then"] {
        assert!(cluster.get("/api/v1/task", &[("id", id.into())]).await.is_none(), "{id} has run");
    }
    assert_eq!(cluster.get("/api/v1/task", &[("id", "forged".into())]).await.unwrap()["status"], "dead");
}

/// Where answers are told to go that nobody else may publish to.
const ELSEWHERE: [&str; 12] = [
    "$JS.API.STREAM.DELETE.KV_millpond_cancels",
    "$JS.API.STREAM.PURGE.TASKS",
    "$JS.API.STREAM.PURGE.RESULTS",
    "$JS.API.CONSUMER.DELETE.RESULTS.collector",
    "results.-.default.square",
    "dead.default.square",
    "due.default.square",
    "$KV.millpond_cancels.job.j9",
    "$KV.millpond_queues.default",
    "ctl.replay",
    "ctl.drain.w1",
    "events.clock",
];

/// All that the server or a service answers, asked by who may ask it.
fn questions(role: &str) -> Vec<(String, Value)> {
    let mut all = vec![("tasks.idle.square".to_owned(), json!(12))];
    if role == "client" {
        let payload = json!({ "job": "j9", "epoch": 1, "by": "evil", "max_waiting": 1 });
        for subject in [
            "call.default.echo",
            "$KV.millpond_jobs.evil",
            "$KV.millpond_shared.evil",
            "$O.millpond_payloads.M.evil",
            "$JS.API.INFO",
            "$JS.API.STREAM.NAMES",
            "$JS.API.STREAM.INFO.TASKS",
            "$JS.API.CONSUMER.INFO.RESULTS.none",
            "$JS.API.CONSUMER.CREATE.RESULTS",
            "$JS.API.DIRECT.GET.KV_millpond_shared.$KV.millpond_shared.evil",
            "$SRV.PING",
            "ctl.request.results",
        ] {
            all.push((subject.to_owned(), payload.clone()));
        }
        let last = |subject: &str| json!({ "last_by_subj": subject });
        for bucket in ["shared", "jobs"] {
            let subject = format!("$KV.millpond_{bucket}.evil");
            all.push((format!("$JS.API.DIRECT.GET.KV_millpond_{bucket}"), last(&subject)));
            all.push((format!("$JS.API.STREAM.MSG.GET.KV_millpond_{bucket}"), last(&subject)));
        }
    }
    all
}

/// How many messages each stream has; which streams there are.
async fn streams(nats: &NatsServer) -> Vec<(String, u64)> {
    let list = nats.asked("$JS.API.STREAM.LIST", &Value::Null).await;
    let of = |stream: &Value| {
        let name = stream["config"]["name"].as_str().unwrap().to_owned();
        (name, stream["state"]["messages"].as_u64().unwrap())
    };
    let mut all: Vec<(String, u64)> = list["streams"].as_array().unwrap().iter().map(of).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_back_to_who_asked_and_nowhere_else() {
    let cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    let _worker = cluster.worker("w1", &["--queues", "default"], None);
    cluster.worker_is("w1", |_| true).await;
    // What a client may write is written once before, so that all that follows is answers.
    let client = hostile(&cluster.nats, "client").await;
    for (subject, payload) in questions("client").iter().filter(|(subject, _)| subject.starts_with("$KV")) {
        asked(&client, subject, payload).await;
    }
    let listener = hostile(&cluster.nats, "collector").await;
    let mut heard = listener.subscribe("ctl.>").await.unwrap();
    listener.flush().await.unwrap();
    let closed_to_all = ["DEAD", "DUE", "RESULTS", "KV_millpond_cancels", "KV_millpond_queues", "KV_millpond_purges"];
    let kept = |all: Vec<(String, u64)>| {
        let names: Vec<String> = all.iter().map(|(name, _)| name.clone()).collect();
        let counts: Vec<(String, u64)> =
            all.into_iter().filter(|(name, _)| closed_to_all.contains(&name.as_str())).collect();
        (names, counts)
    };
    let (before, consumers) = (kept(streams(&cluster.nats).await), cluster.nats.consumers("RESULTS").await);
    let mut asked_for = 0;
    for role in ["publisher", "client"] {
        let hostile = hostile(&cluster.nats, role).await;
        for (subject, payload) in questions(role) {
            for to in ELSEWHERE {
                hostile.publish_with_reply(subject.clone(), to, payload.to_string().into()).await.unwrap();
                asked_for += 1;
            }
        }
        hostile.flush().await.unwrap();
    }
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!(kept(streams(&cluster.nats).await), before);
    let tasks = cluster.nats.asked("$JS.API.STREAM.INFO.TASKS", &json!({ "subjects_filter": "tasks.idle.>" })).await;
    assert_eq!(tasks["state"]["messages"], 2 * ELSEWHERE.len(), "all of them are there: {tasks}");
    assert_eq!(cluster.nats.consumers("RESULTS").await, consumers, "nor is the collector's gone");
    // The one that asks a collector is heard where it is asked.
    while let Ok(Some(said)) = tokio::time::timeout(Duration::from_millis(100), heard.next()).await {
        assert_eq!(said.subject.as_str(), "ctl.request.results");
    }
    assert!(!cluster.log("w1").contains("an operator asks this worker to drain"), "{asked_for} questions");
    assert!(!cluster.log("collector").contains("cannot be read"), "{}", cluster.log("collector"));
}

async fn lying(cluster: &Cluster, stream: &str) -> u64 {
    let bus = cluster.nats.bus(Role::Setup).await;
    millpond::bus::topology::stream_state(&bus, stream).await.unwrap().messages
}

/// What the server answers to a message with headers; none when it does not let the role publish there.
async fn with_headers(client: &Client, subject: &str, headers: &[(&str, &str)]) -> Option<Value> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, *value);
    }
    let request = client.request_with_headers(subject.to_owned(), map, "{}".into());
    let answer = tokio::time::timeout(Duration::from_secs(1), request).await.ok()?.ok()?;
    serde_json::from_slice(&answer.payload).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_removes_nothing_that_others_have_published() {
    let cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    let run = async |arguments: &[&str]| {
        let said = crate::harness::output(cluster.command(arguments)).await;
        assert!(said.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said.stderr));
    };
    for id in ["late0", "late1", "late2"] {
        run(&["submit", "square", "3", "--delay", "600s", "--id", id]).await;
    }
    run(&["schedule", "add", "nightly", "square", "3", "--every", "1h"]).await;
    until("the move", PATIENCE, async || (lying(&cluster, "LATER").await == 0).then_some(())).await;
    let large = crate::harness::task("echo", &format!("\"{}\"", "x".repeat(600_000)));
    let held = millpond::client::NewTask { at_ms: Some(millpond::now_ms() + 600_000), ..large };
    cluster.client.submit(&held, RetryDeadline::Within(PATIENCE)).await.unwrap();
    until("the move", PATIENCE, async || (lying(&cluster, "LATER").await == 0).then_some(())).await;
    run(&["shared", "set", "limit", "7"]).await;
    run(&["map", "square", "--range", "0..3", "--job", "kept", "--no-wait"]).await;
    let streams = ["DUE", "TASKS", "OBJ_millpond_payloads", "KV_millpond_jobs", "KV_millpond_shared"];
    let mut before = Vec::new();
    for stream in streams {
        before.push(lying(&cluster, stream).await);
        assert!(before.last() > Some(&0), "{stream}");
    }
    let places = [
        "sched.a.b.-.k",
        "sched.-.nightly",
        "sched.-.-.probe",
        "due.a.b",
        "moved",
        "tasks.a.b",
        "later.a.b",
        "$KV.millpond_jobs.zz",
        "$KV.millpond_shared.zz",
        "$O.millpond_payloads.M.zz",
        "$O.millpond_payloads.C.zz",
    ];
    let wiping: [&[(&str, &str)]; 5] = [
        &[("Nats-Rollup", "all")],
        &[("Nats-Rollup", "sub")],
        &[("Nats-Schedule", "@at 2200-01-01T00:00:00Z"), ("Nats-Schedule-Target", "due.a.b"), ("Nats-Rollup", "all")],
        &[("Nats-Scheduler", "sched.-.nightly"), ("Nats-Schedule-Next", "purge")],
        &[("Nats-Marker-Reason", "Purge"), ("KV-Operation", "PURGE")],
    ];
    for role in ["publisher", "client"] {
        let client = hostile(&cluster.nats, role).await;
        for place in places {
            for headers in wiping {
                let _ = with_headers(&client, place, headers).await;
            }
        }
    }
    // A worker may publish to DUE, and so wipe that (docs/security.md); it puts large results.
    let worker = hostile(&cluster.nats, "worker").await;
    for headers in &wiping[..2] {
        let answer = with_headers(&worker, "$O.millpond_payloads.M.zz", headers).await;
        assert!(answer.is_some_and(|answer| answer["error"]["err_code"] == 10111));
    }
    for (stream, before) in streams.iter().zip(before) {
        let after = lying(&cluster, stream).await;
        assert!(after >= before, "{stream} had {before} messages and has {after}");
    }
    for id in ["late0", "late1", "late2"] {
        let why = crate::harness::output(cluster.command(&["why", id])).await;
        assert_eq!(why.status.code(), Some(11), "{}", String::from_utf8_lossy(&why.stdout));
    }
}

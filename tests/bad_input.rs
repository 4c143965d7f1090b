//! What a publisher can do wrong: each ends as a dead letter with its reason or as a clear error, and nothing is lost.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use millpond::bus::Role;
use millpond::bus::publish::{PublishError, RetryDeadline};
use millpond::bus::topology::{StreamLimits, stream_state};
use millpond::client::{NewTask, SubmitError};
use millpond::wire::streams::STREAM_TASKS;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{Cluster, PATIENCE, statuses, task, until};

const SHORT: RetryDeadline = RetryDeadline::Within(Duration::from_secs(5));

/// Id, subject, headers and payload; then the reason, and a part of the message.
type Case =
    (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static [u8], &'static str, &'static str);

async fn publish(
    cluster: &Cluster,
    subject: &str,
    headers: &[(&str, &str)],
    payload: &[u8],
) -> Result<u64, PublishError> {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let bus = cluster.nats.bus(Role::Client).await;
    bus.store(subject, &headers, Bytes::copy_from_slice(payload), SHORT).await.map(|stored| stored.seq)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_ends_as_a_dead_letter_with_its_reason() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let cases: [Case; 8] = [
        ("not-json", "tasks.default.square", &[], b"twelve", "fatal", "do not fit"),
        ("not-text", "tasks.default.square", &[], &[0xff, 0xfe, 0], "fatal", "do not fit"),
        (
            "count",
            "tasks.default.square",
            &[("Millpond-Batch", "3")],
            b"[1,2]",
            "bad_batch",
            "says 3 values, the array has 2",
        ),
        ("no-array", "tasks.default.square", &[("Millpond-Batch", "2")], b"{}", "bad_batch", "JSON array"),
        (
            "expired",
            "tasks.default.square",
            &[("Millpond-Expires", "2020-01-01T00:00:00Z")],
            b"1",
            "expired",
            "expired",
        ),
        ("timeout", "tasks.default.square", &[("Millpond-Timeout", "soon")], b"1", "bad_header", "Millpond-Timeout"),
        ("shape", "tasks.default.square.what", &[], b"1", "bad_subject", "j-<job>"),
        (
            "too-long",
            "tasks.default.sleep",
            &[("Millpond-Timeout", "100ms"), ("Millpond-Attempts-Max", "1")],
            b"9",
            "exhausted",
            "100ms",
        ),
    ];
    for (id, subject, headers, payload, _, _) in cases {
        let headers: Vec<_> = headers.iter().copied().chain([("Nats-Msg-Id", id)]).collect();
        publish(&cluster, subject, &headers, payload).await.unwrap();
    }
    for (id, _, _, payload, reason, said) in cases {
        let ended = cluster.ended(id).await;
        assert_eq!((&ended["status"], &ended["dead"]["reason"]), (&json!("dead"), &json!(reason)), "{id}");
        let message = ended["dead"]["failure"]["message"].as_str().unwrap();
        assert!(message.contains(said), "{id}: {message}");
        if payload == b"twelve" {
            assert_eq!(ended["dead"]["payload_base64"], "dHdlbHZl");
        }
    }
    // The worker is unharmed.
    let id = cluster.client.submit(&task("square", "12"), SHORT).await.unwrap().id;
    assert_eq!(cluster.ended(&id).await["result"], 144);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_of_an_unknown_kind_waits_is_shown_and_is_buried_when_nobody_knows_it() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--unknown-kind-after", "6s"], None);
    let known_later = cluster.client.submit(&task("special", "1"), SHORT).await.unwrap().id;
    let never_known = cluster.client.submit(&task("sqare", "1"), SHORT).await.unwrap().id;
    cluster.worker_is("w1", |w| w["unknown_kinds"] == json!(["default.special", "default.sqare"])).await;
    // A worker with a handler of its own joins: the library form.
    async fn special(n: u32) -> Result<u32, std::convert::Infallible> {
        Ok(n + 41)
    }
    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        config: millpond_worker::Config,
    }
    let url = cluster.nats.url("worker");
    let flags =
        <Flags as clap::Parser>::parse_from(["w", "--nats-url", &url, "--name", "w2", "--unknown-kind-after", "6s"]);
    let shutdown = CancellationToken::new();
    let worker = millpond_worker::Worker::builder().handle("special", special);
    let worker = worker.build(flags.config.check().unwrap()).unwrap();
    let mut running = tokio::task::JoinSet::new();
    running.spawn(worker.run(shutdown.clone()));
    assert_eq!(cluster.ended(&known_later).await["result"], 42);
    let dead = cluster.ended(&never_known).await;
    assert_eq!((&dead["status"], &dead["dead"]["reason"]), (&json!("dead"), &json!("unknown_kind")));
    shutdown.cancel();
    running.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_refuses_is_told_to_the_publisher_and_loses_nothing() {
    let cluster = Cluster::start().await;
    publish(&cluster, "tasks.default.square", &[("Nats-Msg-Id", "kept")], b"3").await.unwrap();
    for subject in ["tasks.default", "tasks.a.b.c.d", "task.default.square"] {
        let error = publish(&cluster, subject, &[], b"1").await.unwrap_err();
        // The role may not publish outside of tasks.>: the server says nothing then, and we say that.
        let told = matches!(error, PublishError::NoStream { .. } | PublishError::NoAnswer { .. });
        assert!(told, "{subject}: {error}");
    }
    for (name, value) in [("Nats-Rollup", "all"), ("Nats-Schedule", "@every 1s"), ("Nats-TTL", "1s")] {
        let error = publish(&cluster, "tasks.default.square", &[(name, value)], b"1").await.unwrap_err();
        assert!(matches!(error, PublishError::Refused { .. }), "{name}: {error}");
    }
    // A batch is never put into the store of payloads.
    let large = NewTask { payload: Bytes::from(vec![b'1'; 2_000_000]), batch: Some(1), ..task("square", "") };
    let error = cluster.client.submit(&large, SHORT).await.unwrap_err();
    assert!(matches!(&error, SubmitError::Publish(PublishError::TooLarge { bytes: 2_000_000, .. })), "{error}");
    let bus = cluster.nats.bus(Role::Setup).await;
    assert_eq!(stream_state(&bus, STREAM_TASKS).await.unwrap().messages, 1);
    let _worker = cluster.worker("w1", &[], None);
    assert_eq!(cluster.ended("kept").await["result"], 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_makes_publishers_wait_and_retries_go_on() {
    let cluster = Cluster::start_with(&StreamLimits { tasks_max: 1000, ..StreamLimits::default() }).await;
    let failing = NewTask { id: Some("retried".into()), ..task("fail", r#"{"until": 3}"#) };
    cluster.client.submit(&failing, SHORT).await.unwrap();
    let mut command = cluster.command(&["map", "echo", "--range", "0..30000", "--job", "flood"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let bus = cluster.nats.bus(Role::Setup).await;
    until("TASKS as full as our clients make it", PATIENCE, async || {
        (stream_state(&bus, STREAM_TASKS).await.unwrap().messages >= 900).then_some(())
    })
    .await;
    let _worker = cluster.worker("w1", &[], None);
    assert_eq!(cluster.ended("retried").await["result"], 3);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.lines().eq((0..30_000).map(|n| n.to_string())), "every result once, in order");
    let ends = cluster.job_ends("flood", 30_000, PATIENCE).await;
    assert!(statuses(&ends).iter().all(|s| s == "done"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_http_services_say_what_is_wrong() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let port = crate::harness::free_port();
    let mut command = cluster.command(&["producer", "run", "--listen", &format!("127.0.0.1:{port}")]);
    command.env("MILLPOND_PRODUCER_NATS_URL", cluster.nats.url("producer"));
    let _producer = crate::harness::Process::start(command.stderr(Stdio::null()));
    let http = reqwest::Client::new();
    let url = format!("http://127.0.0.1:{port}");
    until("ready producer", PATIENCE, async || http.get(format!("{url}/readyz")).send().await.ok()).await;
    let post = async |path: &str, token: &str, body: &str| {
        let request = http.post(format!("{url}{path}")).bearer_auth(token).body(body.to_owned());
        let response = request.header("Idempotency-Key", "http-1").send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    let token = cluster.nats.secrets.token.clone();
    assert_eq!(post("/v1/tasks/default/square", "wrong", "12").await.0, 401);
    assert_eq!(post("/v1/tasks/default/square", &token, "twelve").await.0, 400);
    assert_eq!(post("/v1/tasks/de.fault/square", &token, "12").await.0, 400);
    assert_eq!(post("/v1/nothing", &token, "12").await.0, 404);
    let (status, answer) = post("/v1/tasks/default/square", &token, "12").await;
    assert_eq!((status, &answer["id"]), (202, &json!("http-1")));
    assert_eq!(post("/v1/tasks/default/square", &token, "12").await.1["duplicate"], true);
    assert_eq!(cluster.ended("http-1").await["result"], 144);
    assert!(
        cluster.api.get::<Value>("/api/v1/tasks", &[("limit", "0")]).await.unwrap_err().to_string().contains("limit")
    );
    let anonymous = http.get(format!("{}/api/v1/tasks", cluster.collector_url())).send().await.unwrap();
    assert_eq!(anonymous.status().as_u16(), 401);
    until("counted messages", PATIENCE, async || {
        let metrics = http.get(format!("{}/metrics", cluster.collector_url())).send().await.ok()?;
        metrics.text().await.ok()?.contains("millpond_messages_collected_total").then_some(())
    })
    .await;
}

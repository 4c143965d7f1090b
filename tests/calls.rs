//! Calls: answered, or refused with a code and a reason; stored nowhere. Conversations: tests/pipes.rs.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use futures_util::StreamExt;
use millpond::bus::Role;
use millpond::bus::topology::stream_state;
use millpond::call::Code;
use millpond::client::CallError;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Cluster, PATIENCE, Process, until};

/// For what answers at once, on a machine that does other things too.
pub const SOON: Duration = Duration::from_secs(20);

/// A client of the NATS library, in the client role.
pub async fn raw(cluster: &Cluster) -> async_nats::Client {
    let password = cluster.nats.secrets.passwords["client"].clone();
    let options = async_nats::ConnectOptions::with_user_and_password("client".into(), password);
    options.connect(format!("127.0.0.1:{}", cluster.nats.port)).await.unwrap()
}

/// Asks as `nats req` does; the code and the line of the error, and the body.
async fn asks(
    client: &async_nats::Client,
    kind: &str,
    headers: &[(&str, &str)],
    args: &str,
) -> (String, String, Value) {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, *value);
    }
    let request = async_nats::Request::new().headers(map).payload(args.to_owned().into()).timeout(Some(PATIENCE));
    let answer = client.send_request(format!("call.default.{kind}"), request).await.unwrap();
    let headers = answer.headers.unwrap_or_default();
    let header = |name: &str| headers.get(name).map(ToString::to_string).unwrap_or_default();
    assert_eq!(header("Millpond-Worker"), "w1");
    let body = serde_json::from_slice(&answer.payload).unwrap();
    (header("Nats-Service-Error-Code"), header("Nats-Service-Error"), body)
}

/// Calls until the worker is there.
async fn called(cluster: &Cluster, kind: &str, args: &str) -> Value {
    until(&format!("an answer of {kind}"), PATIENCE, async || {
        match cluster.client.call("default", kind, args.to_owned(), SOON).await {
            Ok(value) => Some(serde_json::from_str(value.get()).unwrap()),
            Err(CallError::NoWorker { .. }) => None,
            Err(error) => panic!("{kind}: {error}"),
        }
    })
    .await
}

/// A worker with a `handlers.toml`.
pub struct Handled {
    _dir: TempDir,
    pub worker: Process,
}

impl Handled {
    pub fn start(cluster: &Cluster, handlers: &str, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handlers.toml");
        std::fs::write(&path, handlers).unwrap();
        let arguments = [&["--handlers", path.to_str().unwrap()], more].concat();
        Self { worker: cluster.worker("w1", &arguments, None), _dir: dir }
    }
}

pub fn script(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/handlers").join(name);
    path.canonicalize().unwrap().to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_answered_or_refused_with_a_code_and_stored_nowhere() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--slots", "1"], None);
    assert_eq!(called(&cluster, "square", "12").await, 144);
    let client = raw(&cluster).await;
    assert_eq!(asks(&client, "square", &[], "13").await, (String::new(), String::new(), json!(169)));
    let busy = cluster.client.call("default", "spin", "3", SOON);
    let others = async {
        // It has come, and has the only slot: calls are heard in order.
        called(&cluster, "square", "1").await;
        let (code, line, body) = asks(&client, "spin", &[("Millpond-Timeout", "100ms")], "0").await;
        assert_eq!((code.as_str(), &body["type"]), ("429", &json!("no_slot")), "{body}");
        assert!(
            line.starts_with("no_slot: no slot for kind spin came free") && line.contains("within 100ms"),
            "{line}"
        );
    };
    let (ended, ()) = tokio::join!(busy, others);
    assert_eq!(ended.unwrap().get(), "3.0");
    for (kind, headers, args, code, failure, words) in [
        ("square", &[][..], "\"x\"", "400", "bad_arguments", "do not fit"),
        ("square", &[], "{nope", "400", "bad_arguments", "do not fit"),
        ("square", &[("Millpond-Timeout", "soon")], "1", "400", "bad_call", "Millpond-Timeout"),
        ("square", &[("Millpond-Timeout", "2h")], "1", "400", "bad_call", "1h"),
        ("square", &[("millpond-timeout", "PT2H")], "1", "400", "bad_call", "1h"),
        ("square", &[("Millpond-Timeouts", "1s")], "1", "400", "bad_call", "the nearest is Millpond-Timeout"),
        ("square", &[("Millpond-Expires", "2100-01-31T12:00:00Z")], "1", "400", "bad_call", "a call has"),
        (
            "square",
            &[("Millpond-Pipe", "a"), ("Millpond-Pipe-Capacity", "1")],
            "1",
            "400",
            "bad_call",
            "without a pipe",
        ),
        // Within what is left of the 100 ms when it begins.
        ("sleep", &[("Millpond-Timeout", "100ms")], "60", "408", "timeout", "no end within"),
        ("fail", &[], r#"{"how": "error", "message": "a\nb"}"#, "500", "error", "a b"),
        ("fail", &[], r#"{"how": "panic"}"#, "500", "panic", "panic"),
    ] {
        let (got, line, body) = asks(&client, kind, headers, args).await;
        assert_eq!((got.as_str(), &body["type"]), (code, &json!(failure)), "{kind} {args}: {line} {body}");
        assert!(line.starts_with(failure) && line.contains(words), "{kind} {args}: {line}");
    }
    // After all of these the slots are free, and nothing was stored.
    assert_eq!(called(&cluster, "is_prime", "7").await, true);
    let bus = cluster.nats.bus(Role::Setup).await;
    for stream in ["TASKS", "DUE", "RESULTS", "DEAD"] {
        let state = stream_state(&bus, stream).await.unwrap();
        assert_eq!((state.messages, state.last_seq), (0, 0), "{stream}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_nobody_answers_fails_at_once() {
    let cluster = Cluster::start().await;
    let started = Instant::now();
    let error = cluster.client.call("default", "square", "1", PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::NoWorker { .. }), "{error}");
    assert!(started.elapsed() < SOON);
    let output = cluster.command(&["call", "square", "1"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("no worker answers calls of kind square on queue default"), "{said}");
    let _worker = cluster.worker("w1", &[], None);
    called(&cluster, "square", "1").await;
    // The kind and the queue both count.
    let other = cluster.client.call("other", "square", "1", PATIENCE).await.unwrap_err();
    assert!(matches!(other, CallError::NoWorker { .. }), "{other}");
    let unknown = cluster.client.call("default", "sqare", "1", PATIENCE).await.unwrap_err();
    assert!(matches!(unknown, CallError::NoWorker { .. }), "{unknown}");
    let bad = cluster.client.call("default", "a b", "1", PATIENCE).await.unwrap_err();
    assert!(matches!(bad, CallError::Subject(_)), "{bad}");
    let long = cluster.client.call("default", "square", "1", PATIENCE * 100).await.unwrap_err();
    assert!(matches!(long, CallError::BadTimeout { .. }), "{long}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verb_prints_results_and_says_what_failed() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    called(&cluster, "square", "1").await;
    let check = |arguments: &[&str], code: i32, out: &str, err: &str| {
        let output = cluster.command(&[&["call"], arguments].concat()).stdin(Stdio::null()).output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!((output.status.code(), stdout.trim()), (Some(code), out), "{arguments:?}: {stderr}");
        assert!(stderr.contains(err), "{arguments:?}: {stderr}");
    };
    check(&["square", "12"], 0, "144", "");
    check(&["square", "-12", "--json"], 0, r#"{"result":144,"status":"done"}"#, "");
    check(&["square", "twelve"], 2, "", "are not JSON");
    check(&["square", "\"twelve\""], 1, "", "bad_arguments");
    check(&["sleep", "60", "--timeout", "100ms"], 1, "", "timeout: no end within 100ms");
    check(&["square", "1", "--pipe"], 1, "", "call it without a pipe");
    check(&["fail", r#"{"how": "panic", "message": "boom"}"#], 1, "", "fail.rs");
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_micro_sees_the_service() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--queues", "default,other"], None);
    called(&cluster, "square", "12").await;
    let client = raw(&cluster).await;
    asks(&client, "square", &[], "13").await;
    let (code, ..) = asks(&client, "square", &[], "null").await;
    assert_eq!(code, "400");
    let ask = async |subject: String| -> Value {
        let answer = client.request(subject, "".into()).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    };
    let ping = ask("$SRV.PING".into()).await;
    assert_eq!(
        (&ping["type"], &ping["name"], &ping["metadata"]),
        (&json!("io.nats.micro.v1.ping_response"), &json!("millpond"), &json!({"worker": "w1"}))
    );
    assert_eq!(ping["version"], env!("CARGO_PKG_VERSION"));
    let id = ping["id"].as_str().unwrap();
    let info = ask("$SRV.INFO.millpond".into()).await;
    assert_eq!(info["id"], id);
    let endpoint = |said: &Value, subject: &str| {
        let all = said["endpoints"].as_array().unwrap();
        all.iter().find(|e| e["subject"] == subject).cloned().unwrap()
    };
    assert_eq!(
        endpoint(&info, "call.other.square"),
        json!({"name": "other-square", "subject": "call.other.square", "queue_group": "millpond",
            "metadata": {"queue": "other", "kind": "square"}})
    );
    let stats = ask(format!("$SRV.STATS.millpond.{id}")).await;
    let square = endpoint(&stats, "call.default.square");
    assert_eq!((&square["num_requests"], &square["num_errors"]), (&json!(3), &json!(1)), "{square}");
    assert!(square["last_error"].as_str().unwrap().starts_with("bad_arguments: "), "{square}");
    assert!(square["average_processing_time"].as_u64().unwrap() > 0, "{square}");
    assert_eq!(endpoint(&stats, "call.other.square")["num_requests"], 0);
    let none = client.request("$SRV.PING.others", "".into()).await.unwrap_err();
    assert!(none.to_string().contains("no responders"), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_run_over_warm_children() {
    let cluster = Cluster::start().await;
    let command = format!("[child]\ncommand = [\"python3\", {:?}]\nslots = 1\n", script("child.py"));
    let _handled = Handled::start(&cluster, &command, &[]);
    for n in 0..5 {
        assert_eq!(called(&cluster, "child", &n.to_string()).await, n);
    }
    let workers = cluster.worker_is("w1", |w| w["children"][0]["done"] == 5).await;
    assert_eq!(workers["children"].as_array().unwrap().len(), 1, "{workers}");
    assert_eq!(workers["children"][0]["restarts"], 0, "{workers}");
    // A crash is told with its evidence, and the next call has a new child.
    let error = cluster.client.call("default", "child", r#"{"how": "exit"}"#, SOON).await.unwrap_err();
    let CallError::Failed { code: Code::Failed, failure } = error else { panic!("{error}") };
    let child = failure.child.unwrap();
    assert_eq!((failure.kind.as_str(), child.exit_code), ("exit", Some(3)));
    assert_eq!(child.log, ["leaving with 3"]);
    assert_eq!(called(&cluster, "child", "6").await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_finishes_its_calls_and_others_take_the_next() {
    let cluster = Cluster::start().await;
    let mut first = cluster.worker("w1", &[], None);
    called(&cluster, "square", "1").await;
    let running = cluster.client.call("default", "sleep", "2", SOON);
    let draining = async {
        called(&cluster, "square", "1").await;
        let second = cluster.worker("w2", &[], None);
        cluster.worker_is("w2", |w| w["draining"] == false).await;
        // No call is lost, whoever hears it, and of many some are always on their way.
        let calls = futures_util::stream::iter(0..5000_u32).map(async |n| {
            if n == 500 {
                first.signal(Signal::SIGTERM);
            }
            let squared = cluster.client.call("default", "square", n.to_string(), SOON).await.unwrap();
            assert_eq!(squared.get(), (n * n).to_string());
        });
        calls.buffer_unordered(32).count().await;
        second
    };
    let (ended, mut second) = tokio::join!(running, draining);
    assert_eq!(ended.unwrap().get(), "2.0");
    // In good order: a call to a worker that was killed can be lost until the server notices.
    second.signal(Signal::SIGTERM);
    for leaving in [&mut first, &mut second] {
        assert!(leaving.end(PATIENCE).await.success());
    }
    // The last one leaves in the middle of a call: after its drain time it says so.
    let last = cluster.worker("w3", &["--drain-time", "300ms"], None);
    called(&cluster, "square", "1").await;
    let error = async {
        let running = cluster.client.call("default", "sleep", "60", PATIENCE);
        let leaving = async {
            cluster.worker_is("w3", |w| w["running"] == 1).await;
            last.signal(Signal::SIGTERM);
        };
        tokio::join!(running, leaving).0.unwrap_err()
    };
    let error = error.await;
    assert!(
        matches!(&error, CallError::Failed { code: Code::Failed, failure } if failure.kind == "stopped"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_hold_so_many_bytes_and_no_more() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--io-slots", "1"], None);
    called(&cluster, "square", "2").await;
    let client = raw(&cluster).await;
    // A byte less than a mebibyte each: 64 of them run or wait.
    let large = format!("30{}", " ".repeat(1024 * 1024 - 3));
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..66 {
        let (client, large) = (client.clone(), large.clone());
        asked.spawn(async move { asks(&client, "sleep", &[("Millpond-Timeout", "1m")], &large).await });
    }
    for _ in 0..2 {
        let refused = tokio::time::timeout(SOON, asked.join_next()).await.expect("an answer at once");
        let (code, line, body) = refused.unwrap().unwrap();
        assert_eq!((code.as_str(), &body["type"]), ("429", &json!("no_slot")), "{line}");
        assert!(line.contains("67108864 bytes"), "{line}");
    }
    // A small one of another pool is not held up.
    assert_eq!(called(&cluster, "count_primes", r#"{"from": 1, "to": 100}"#).await, json!(25));
}

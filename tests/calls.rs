//! Calls and conversations: answered, refused with a code and a reason, stored nowhere; conversations in order, with
//! backpressure, closed by either side, and ended within seconds when one side is killed.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use futures_util::StreamExt;
use millpond::bus::Role;
use millpond::bus::pipe::PipeError;
use millpond::bus::publish::Patience;
use millpond::bus::topology::stream_state;
use millpond::call::Code;
use millpond::client::CallError;
use millpond::outcome::Failure;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::{Cluster, PATIENCE, Process, task, until};

/// For what answers at once, on a machine that does other things too.
const SOON: Duration = Duration::from_secs(20);

/// A client of the NATS library, in the client role.
async fn raw(cluster: &Cluster) -> async_nats::Client {
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
struct Handled {
    _dir: TempDir,
    worker: Process,
}

impl Handled {
    fn start(cluster: &Cluster, handlers: &str, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handlers.toml");
        std::fs::write(&path, handlers).unwrap();
        let arguments = [&["--handlers", path.to_str().unwrap()], more].concat();
        Self { worker: cluster.worker("w1", &arguments, None), _dir: dir }
    }
}

fn script(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/handlers").join(name);
    path.canonicalize().unwrap().to_str().unwrap().to_owned()
}

/// A worker with tests/handlers/talk.py.
fn talker(cluster: &Cluster, more: &str) -> Handled {
    let talk = script("talk.py");
    Handled::start(
        cluster,
        &format!("[talk]\ncommand = [\"python3\", {talk:?}]\nmode = \"once\"\npipe = true\n{more}"),
        &[],
    )
}

async fn opened(cluster: &Cluster, kind: &str) -> millpond::bus::pipe::Pipe {
    until(&format!("a pipe to {kind}"), PATIENCE, async || {
        match cluster.client.pipe("default", kind, r#"{"a": 1}"#, SOON).await {
            Ok(pipe) => Some(pipe),
            Err(CallError::NoWorker { .. }) => None,
            Err(error) => panic!("{kind}: {error}"),
        }
    })
    .await
}

fn text(message: Option<bytes::Bytes>) -> String {
    String::from_utf8(message.unwrap().to_vec()).unwrap()
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
        ("square", &[("Millpond-Pipe", "a"), ("Millpond-Room", "1")], "1", "400", "bad_call", "without a pipe"),
        ("sleep", &[("Millpond-Timeout", "100ms")], "60", "408", "timeout", "100ms"),
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
    check(&["square", "twelve"], 70, "", "are not JSON");
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
        let _second = cluster.worker("w2", &[], None);
        cluster.worker_is("w2", |w| w["draining"] == false).await;
        first.signal(Signal::SIGTERM);
        // No call is lost, whoever hears it.
        for n in 0..200 {
            let squared = cluster.client.call("default", "square", n.to_string(), SOON).await.unwrap();
            assert_eq!(squared.get(), (n * n).to_string());
        }
    };
    let (ended, ()) = tokio::join!(running, draining);
    assert_eq!(ended.unwrap().get(), "2.0");
    assert!(first.end(PATIENCE).await.success());
    // The last one leaves in the middle of a call: after its drain time it says so.
    let last = cluster.worker("w3", &["--drain-time", "300ms"], None);
    called(&cluster, "square", "1").await;
    let error = async {
        let running = cluster.client.call("default", "sleep", "60", PATIENCE);
        let leaving = async {
            called(&cluster, "square", "1").await;
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

/// A worker in this process whose handlers are Rust.
struct Own {
    running: JoinSet<anyhow::Result<()>>,
    shutdown: CancellationToken,
}

impl Own {
    fn start(cluster: &Cluster) -> Self {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            config: millpond_worker::Config,
        }
        let url = cluster.nats.url("worker");
        let flags = <Flags as clap::Parser>::parse_from(["w", "--nats-url", &url, "--name", "w1", "--io-slots", "2"]);
        let worker = millpond_worker::Worker::new(flags.config.check().unwrap())
            .handle_pipe("double", |call, mut pipe| async move {
                let _: Value = call.args()?;
                while let Some(n) = pipe.recv_json::<u64>().await? {
                    pipe.send_json(&(n * 2)).await?;
                }
                pipe.send("last").await?;
                Ok(())
            })
            .handle_pipe("leave", |_, mut pipe| async move {
                pipe.send("one").await?;
                pipe.recv().await?;
                Ok(())
            })
            .handle_pipe("fail", |_, pipe| async move {
                pipe.send("one").await?;
                Err(Failure::new("sad", "no more"))
            })
            // It hears and says nothing by itself.
            .handle_pipe("deaf", |_, pipe| async move {
                let _held = pipe;
                std::future::pending().await
            });
        let (mut running, shutdown) = (JoinSet::new(), CancellationToken::new());
        running.spawn(worker.run(shutdown.clone()));
        Self { running, shutdown }
    }

    async fn end(mut self) {
        self.shutdown.cancel();
        self.running.join_next().await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_in_order_both_ways_and_closed_by_the_caller() {
    let cluster = Cluster::start().await;
    let own = Own::start(&cluster);
    let pipe = opened(&cluster, "double").await;
    let (sender, mut receiver) = pipe.split();
    let talking = async {
        for n in 0..1000 {
            sender.send(n.to_string()).await.unwrap();
        }
        sender.close().await.unwrap();
        assert_eq!(sender.send("more").await.unwrap_err(), PipeError::Closed);
    };
    let listening = async {
        for n in 0..1000 {
            assert_eq!(text(receiver.recv().await.unwrap()), (n * 2).to_string());
        }
        assert_eq!(text(receiver.recv().await.unwrap()), "last");
        assert_eq!(receiver.recv().await.unwrap(), None);
    };
    tokio::join!(talking, listening);
    // What is large, and what is too large.
    let mut pipe = opened(&cluster, "double").await;
    let long = format!("{}7", " ".repeat((1 << 20) - 1));
    pipe.send(long.clone()).await.unwrap();
    assert_eq!(text(pipe.recv().await.unwrap()), "14");
    assert_eq!(pipe.send(long + " ").await.unwrap_err(), PipeError::TooLong { bytes: (1 << 20) + 1 });
    // What does not fit ends it with a reason.
    pipe.send("seven").await.unwrap();
    let Err(PipeError::Failed(failure)) = pipe.recv().await else { panic!("it must fail") };
    assert_eq!(failure.kind, "bad_arguments");
    own.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_closes_a_conversation_in_order_or_with_a_failure() {
    let cluster = Cluster::start().await;
    let own = Own::start(&cluster);
    let mut pipe = opened(&cluster, "leave").await;
    assert_eq!(text(pipe.recv().await.unwrap()), "one");
    pipe.send("go").await.unwrap();
    assert_eq!(pipe.recv().await.unwrap(), None);
    assert_eq!(pipe.send("more").await.unwrap_err(), PipeError::Closed);
    let mut pipe = opened(&cluster, "fail").await;
    assert_eq!(text(pipe.recv().await.unwrap()), "one");
    let Err(PipeError::Failed(failure)) = pipe.recv().await else { panic!("it must fail") };
    assert_eq!((failure.kind.as_str(), failure.message.as_str()), ("sad", "no more"));
    // The wrong way round, each with what would be right.
    let error = cluster.client.call("default", "leave", "1", SOON).await.unwrap_err();
    assert!(error.to_string().contains("millpond call leave --pipe"), "{error}");
    let id = cluster.client.submit(&task("leave", "1"), Patience::Endless).await.unwrap().id;
    let dead = cluster.ended(&id).await;
    assert_eq!(dead["dead"]["reason"], "needs_pipe", "{dead}");
    own.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_stops_who_writes() {
    let cluster = Cluster::start().await;
    let own = Own::start(&cluster);
    let pipe = opened(&cluster, "deaf").await;
    let mut said = 0;
    while tokio::time::timeout(Duration::from_secs(1), pipe.send("x")).await.is_ok() {
        said += 1;
        assert!(said < 100, "it must wait");
    }
    assert!((16..=17).contains(&said), "{said} messages wait at the other side and in the hand");
    // It holds a slot until its caller leaves. There are two.
    let second = opened(&cluster, "deaf").await;
    let full = cluster.client.pipe("default", "deaf", "1", Duration::from_millis(300)).await;
    let Err(CallError::Failed { code: Code::NoSlot, .. }) = full else { panic!("there must be no slot") };
    drop(pipe);
    let third = opened(&cluster, "deaf").await;
    drop((second, third));
    own.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_converses_line_by_line() {
    let cluster = Cluster::start().await;
    let _handled = talker(&cluster, "slots = 2");
    let mut pipe = opened(&cluster, "talk").await;
    pipe.send("args").await.unwrap();
    assert_eq!(text(pipe.recv().await.unwrap()), r#"{"a": 1}"#);
    // More than all buffers on the way hold, before anybody reads.
    pipe.send("count 100000").await.unwrap();
    for n in 0..100_000 {
        assert_eq!(text(pipe.recv().await.unwrap()), n.to_string());
    }
    pipe.close().await.unwrap();
    assert_eq!(text(pipe.recv().await.unwrap()), "closed");
    assert_eq!(pipe.recv().await.unwrap(), None);
    // It ends by itself, in order, and with a failure that has its evidence.
    let mut pipe = opened(&cluster, "talk").await;
    pipe.send("leave").await.unwrap();
    assert_eq!(pipe.recv().await.unwrap(), None);
    let mut pipe = opened(&cluster, "talk").await;
    pipe.send("fail").await.unwrap();
    assert_eq!(text(pipe.recv().await.unwrap()), "last words");
    let Err(PipeError::Failed(failure)) = pipe.recv().await else { panic!("it must fail") };
    let child = failure.child.unwrap();
    assert_eq!(
        (failure.kind.as_str(), child.exit_code, child.log),
        ("exit", Some(3), vec!["about to fail".to_owned()])
    );
    let pipe = opened(&cluster, "talk").await;
    pipe.send("two\nlines").await.unwrap();
    let (_, mut receiver) = pipe.split();
    let error = receiver.recv().await.unwrap_err();
    assert!(error.to_string().contains("must not have a line end"), "{error}");
    // The verb.
    let mut command = cluster.command(&["call", "talk", "--pipe"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"args\none\ntwo").unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "null\nheard one\nheard two\nclosed\n");
    assert!(output.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_ends_its_conversations_within_seconds() {
    let cluster = Cluster::start().await;
    let mut handled = talker(&cluster, "slots = 2");
    let mut pipe = opened(&cluster, "talk").await;
    pipe.send("hello").await.unwrap();
    assert_eq!(text(pipe.recv().await.unwrap()), "heard hello");
    let mut command = cluster.command(&["call", "talk", "--pipe"]);
    let mut verb = Process::start_talking(command.stderr(Stdio::null()).stdout(Stdio::null()));
    cluster.worker_is("w1", |w| w["running"] == 2).await;
    handled.worker.kill9();
    let started = Instant::now();
    assert_eq!(pipe.recv().await.unwrap_err(), PipeError::Lost);
    assert_eq!(pipe.send("more").await.unwrap_err(), PipeError::Lost);
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    assert_eq!(verb.end(SOON).await.code(), Some(69));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_is_gone_frees_the_slot_and_ends_the_child() {
    let cluster = Cluster::start().await;
    let _handled = talker(&cluster, "slots = 1");
    // By good-bye, and by silence.
    for kill in [false, true] {
        let pipe = opened(&cluster, "talk").await;
        drop(pipe);
        let mut command = cluster.command(&["call", "talk", "--pipe"]);
        let mut verb = Process::start_talking(command.stdout(Stdio::null()));
        let running = cluster.worker_is("w1", |w| w["children"][0]["state"] == "busy").await;
        let pid = running["children"][0]["pid"].as_u64().unwrap();
        if kill {
            verb.kill9();
        } else {
            verb.signal(Signal::SIGINT);
            assert_eq!(verb.end(SOON).await.code(), Some(130));
        }
        let gone = format!("/proc/{pid}");
        until("the end of the child", SOON, async || (!Path::new(&gone).exists()).then_some(())).await;
        cluster.worker_is("w1", |w| w["running"] == 0).await;
    }
    let mut pipe = opened(&cluster, "talk").await;
    pipe.send("again").await.unwrap();
    assert_eq!(text(pipe.recv().await.unwrap()), "heard again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_outlives_a_restart_of_the_server() {
    let mut cluster = Cluster::start().await;
    let _handled = talker(&cluster, "slots = 1");
    let mut pipe = opened(&cluster, "talk").await;
    for n in 0..200 {
        if n == 100 {
            cluster.nats.restart();
        }
        pipe.send(n.to_string()).await.unwrap();
        assert_eq!(text(pipe.recv().await.unwrap()), format!("heard {n}"));
    }
    pipe.close().await.unwrap();
    assert_eq!(text(pipe.recv().await.unwrap()), "closed");
    assert_eq!(pipe.recv().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_client_may_converse() {
    let cluster = Cluster::start().await;
    let _handled = talker(&cluster, "slots = 1");
    drop(opened(&cluster, "talk").await);
    let client = raw(&cluster).await;
    // As docs/protocol.md says it.
    let mut heard = client.subscribe("pipe.mine.out").await.unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("Millpond-Pipe", "mine");
    headers.insert("Millpond-Room", "100");
    let opened = client.request_with_headers("call.default.talk", headers, "".into()).await.unwrap();
    assert_eq!(opened.headers.unwrap().get("Millpond-Pipe").unwrap().as_str(), "mine");
    let say = async |seq: &str, end: Option<&str>, text: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("Millpond-Seq", seq);
        headers.insert("Millpond-Got", "0");
        if let Some(end) = end {
            headers.insert("Millpond-End", end);
        }
        client.publish_with_headers("pipe.mine.in", headers, text.into()).await.unwrap();
    };
    // One comes late, one twice.
    say("2", None, "two").await;
    say("1", None, "one").await;
    say("1", None, "one").await;
    say("2", None, "two").await;
    say("3", Some("ok"), "").await;
    let mut said = Vec::new();
    loop {
        let message = heard.next().await.unwrap();
        let headers = message.headers.unwrap();
        let Some(seq) = headers.get("Millpond-Seq") else { continue };
        let end = headers.get("Millpond-End").map(ToString::to_string);
        said.push((seq.to_string(), String::from_utf8_lossy(&message.payload).into_owned()));
        if end.as_deref() == Some("ok") {
            break;
        }
    }
    said.dedup();
    let expected = [("1", "heard one"), ("2", "heard two"), ("3", "closed"), ("4", "")];
    assert_eq!(said, expected.map(|(seq, text)| (seq.to_owned(), text.to_owned())));
}

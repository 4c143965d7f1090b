//! Conversations: in order both ways, with backpressure, closed by either side, ended within seconds when one side is
//! killed; with handlers in Rust and in child processes.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use futures_util::StreamExt;
use millpond::bus::call::pipe::PipeError;
use millpond::bus::publish::RetryDeadline;
use millpond::call::Code;
use millpond::client::CallError;
use millpond::outcome::Failure;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::calls::{Handled, SOON, raw, script};
use crate::harness::{Cluster, PATIENCE, Process, task, until};

/// A worker with tests/handlers/talk.py.
fn talker(cluster: &Cluster, more: &str, arguments: &[&str]) -> Handled {
    let talk = script("talk.py");
    Handled::start(
        cluster,
        &format!("[talk]\ncommand = [\"python3\", {talk:?}]\nmode = \"once\"\npipe = true\n{more}"),
        arguments,
    )
}

async fn opened(cluster: &Cluster, kind: &str) -> millpond::bus::call::pipe::Pipe {
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
        let worker = millpond_worker::Worker::builder()
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
            })
            .build(flags.config.check().unwrap())
            .unwrap();
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
    let id = cluster.client.submit(&task("leave", "1"), RetryDeadline::Unlimited).await.unwrap().id;
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
    let _handled = talker(&cluster, "slots = 2", &[]);
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
    let mut handled = talker(&cluster, "slots = 2", &[]);
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
async fn a_draining_worker_lets_conversations_go_on_for_its_drain_time() {
    let cluster = Cluster::start().await;
    let mut handled = talker(&cluster, "slots = 1", &["--drain-time", "4s"]);
    let mut pipe = opened(&cluster, "talk").await;
    pipe.send("hello").await.unwrap();
    assert_eq!(text(pipe.recv().await.unwrap()), "heard hello");
    handled.worker.signal(Signal::SIGTERM);
    until("the end of its service", SOON, async || {
        let error = cluster.client.pipe("default", "talk", "1", Duration::from_millis(100)).await.err().unwrap();
        matches!(error, CallError::NoWorker { .. }).then_some(())
    })
    .await;
    pipe.send("still").await.unwrap();
    assert_eq!(text(pipe.recv().await.unwrap()), "heard still");
    let Err(PipeError::Failed(failure)) = pipe.recv().await else { panic!("it must fail") };
    assert_eq!(failure.kind, "draining");
    assert!(handled.worker.end(SOON).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_not_there_is_told() {
    let cluster = Cluster::start().await;
    let once = "command = [\"./not-there\"]\nmode = \"once\"\n";
    let _handled = Handled::start(&cluster, &format!("[plain]\n{once}[talk]\n{once}pipe = true"), &[]);
    let mut pipe = opened(&cluster, "talk").await;
    let Err(PipeError::Failed(failure)) = pipe.recv().await else { panic!("it must fail") };
    assert_eq!(failure.kind, "cannot_start");
    let error = cluster.client.call("default", "plain", "1", SOON).await.unwrap_err();
    assert!(matches!(error, CallError::Failed { code: Code::NoSlot, .. }), "{error}");
    for said in [failure.message, error.to_string()] {
        assert!(said.contains("cannot start ./not-there"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_is_gone_frees_the_slot_and_ends_the_child() {
    let cluster = Cluster::start().await;
    let _handled = talker(&cluster, "slots = 1", &[]);
    // By good-bye, and by silence.
    for kill in [false, true] {
        let pipe = opened(&cluster, "talk").await;
        drop(pipe);
        let mut command = cluster.command(&["call", "talk", "--pipe"]);
        let mut verb = Process::start_talking(command.stdout(Stdio::piped()));
        // Once it answers, it converses, and minds signals.
        let pid = verb.asked("pid");
        assert!(Path::new(&format!("/proc/{pid}")).exists());
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
    let _handled = talker(&cluster, "slots = 1", &[]);
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
    let _handled = talker(&cluster, "slots = 1", &[]);
    drop(opened(&cluster, "talk").await);
    let client = raw(&cluster).await;
    // As docs/protocol.md says it.
    let mut heard = client.subscribe("pipe.mine.out").await.unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("Millpond-Pipe", "mine");
    headers.insert("Millpond-Pipe-Capacity", "100");
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

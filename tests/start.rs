//! How programs begin and end where nobody watches: what they say while NATS is away or refuses them, in which format, and what ends the
//! first process of a container.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};
use serde_json::Value;

use crate::exit_codes::RIGHT;
use crate::harness::{Cluster, MILLPOND, NatsServer, PATIENCE, Process, task, until};

const SERVICES: [&str; 4] = ["setup", "worker run", "producer run", "collector run"];
/// How soon a program ends at a signal.
const ENDS_WITHIN: Duration = Duration::from_secs(4);

/// A program that looks for NATS at an address, with a log of JSON.
fn service(words: &str, nats: &str, log: &Path) -> Command {
    let mut command = Command::new(MILLPOND);
    command.args(["--state", "none"]).args(words.split(' ')).current_dir(log.parent().unwrap());
    for name in ["WORKER_", "PRODUCER_", "COLLECTOR_", "SETUP_"] {
        command.env(format!("MILLPOND_{name}NATS_URL"), format!("nats://x:pa55w0rd@{nats}"));
    }
    command.env("MILLPOND_TOKEN", "a token for tests").env("MILLPOND_LOG_JSON", "true");
    command.env("MILLPOND_PRODUCER_LISTEN", "127.0.0.1:0").env("MILLPOND_COLLECTOR_LISTEN", "127.0.0.1:0");
    command.stdout(Stdio::null()).stderr(File::create(log).unwrap());
    command
}

/// The lines of a log, each of which is a JSON object.
fn lines(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap();
    assert!(!text.contains("pa55w0rd"), "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

fn message(line: &Value) -> &str {
    line["message"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_nats_says_so_soon_and_every_ten_seconds_and_ends_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().to_string();
    // Nobody listens at the one, and at the other connections come about and nothing is ever said.
    let places = [("refused", "127.0.0.1:1"), ("silent", silent.as_str())];
    let all = SERVICES.into_iter().flat_map(|words| places.map(|place| (words, place)));
    let programs = all.map(async |(words, (name, nats))| {
        let folder = dir.path().join(format!("{words}.{name}"));
        std::fs::create_dir(&folder).unwrap();
        let log = folder.join("log");
        let mut command = service(words, nats, &log);
        let mut process = Process::start(command.env("MILLPOND_CONNECT_TIMEOUT", "12s"));
        let started = Instant::now();
        until("the first words of who waits", Duration::from_secs(4), async || (!lines(&log).is_empty()).then_some(()))
            .await;
        let status = process.end(PATIENCE).await;
        assert!(!status.success() && started.elapsed() >= Duration::from_secs(11), "{words}: {status}");
        let lines = lines(&log);
        let said: Vec<&Value> = lines.iter().filter(|line| message(line).contains("NATS is not reached yet")).collect();
        assert_eq!(said.len(), 2, "{words}: {lines:?}");
        assert!(said[1]["nats"] == nats && said[1]["reason"].is_string(), "{words}: {}", said[1]);
        let last = lines.last().unwrap();
        let times = ["tried for 11s 9", "tried for 12s"];
        assert!(last["log.level"] == "error" && message(last).contains(nats), "{words}: {last}");
        assert!(times.iter().any(|time| message(last).contains(time)), "{words}: {last}");
    });
    stream::iter(programs).buffer_unordered(SERVICES.len() * places.len()).collect::<Vec<()>>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_at_the_start_ends_at_once_and_says_no_other_time() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    for words in SERVICES {
        let log = dir.path().join(words);
        let nats = format!("127.0.0.1:{}", cluster.nats.port);
        let mut process = Process::start(service(words, &nats, &log).env("MILLPOND_CONNECT_TIMEOUT", "5m"));
        assert!(!process.end(Duration::from_secs(20)).await.success(), "{words}");
        let lines = lines(&log);
        let refused = lines.iter().filter(|line| line.to_string().contains("authorization violation"));
        assert_eq!(refused.count(), 1, "{words}: {lines:?}");
        let last = lines.last().unwrap();
        assert!(message(last).contains("refuses") && !message(last).contains("5m"), "{words}: {last}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_streams_says_what_it_waits_for() {
    let nats = NatsServer::start();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("worker");
    let mut command = service("worker run", &format!("127.0.0.1:{}", nats.port), &log);
    command.env("MILLPOND_WORKER_NATS_URL", nats.url("worker")).env("MILLPOND_CONNECT_TIMEOUT", "60s");
    let _worker = Process::start(&mut command);
    let said = until("the words of who waits", Duration::from_secs(5), async || {
        lines(&log).into_iter().find(|line| message(line).contains("waiting for setup"))
    })
    .await;
    assert!(said["nats"].is_string() && said["reason"].as_str().unwrap().contains("TASKS"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_refused_meanwhile_is_told_a_few_times_and_tried_less_and_less_often() {
    let mut cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    cluster.worker_is("w1", |_| true).await;
    let refusals = |cluster: &Cluster| cluster.log("w1").matches("refuses this program").count();
    cluster.nats.restart_with(&[("MILLPOND_WORKER_PASSWORD", Path::new("mAnotherPasswordOfTheWorkers"))]);
    until("the first refusal", PATIENCE, async || (refusals(&cluster) == 1).then_some(())).await;
    // Tries after 1, 2, 4, 8 and 10 seconds: lines for the first, second and fourth refusal.
    tokio::time::sleep(Duration::from_secs(9)).await;
    let log = cluster.log("w1");
    assert!((2..=3).contains(&refusals(&cluster)), "{log}");
    assert!(log.matches("authorization violation").count() <= 3, "{log}");
    cluster.nats.restart();
    let done = cluster.client.submit(&task("square", "12"), PATIENCE).await.unwrap();
    assert_eq!(cluster.ended(&done.id).await["status"], "done");
}

/// The child of `unshare`: the first process of its namespace.
fn first_process(unshare: &Process) -> Option<Pid> {
    let pid = unshare.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let child: i32 = children.split_whitespace().next()?.parse().ok()?;
    let name = std::fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
    (name.trim() == "millpond").then_some(Pid::from_raw(child))
}

/// Whether a process has handlers for both signals.
fn handles_signals(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
    let caught = u64::from_str_radix(caught.trim(), 16).unwrap_or(0);
    [Signal::SIGINT, Signal::SIGTERM].iter().all(|signal| caught & (1 << (*signal as u64 - 1)) != 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_process_of_a_container_ends_at_ctrl_c_and_at_sigterm() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = &silent.local_addr().unwrap();
    let all = RIGHT.iter().flat_map(|(verb, more)| more.iter().map(move |more| format!("{verb} {more}")));
    let cases: Vec<_> =
        all.flat_map(|line| [Signal::SIGINT, Signal::SIGTERM].map(|signal| (line.clone(), signal))).collect();
    let checks = cases.into_iter().map(async |(line, signal)| {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        if !getuid().is_root() {
            command.args(["--user", "--map-current-user"]);
        }
        command
            .args(["--pid", "--fork", "--kill-child=KILL", MILLPOND, "--state", "none"])
            .args(line.split_whitespace());
        for name in ["", "WORKER_", "PRODUCER_", "COLLECTOR_", "SETUP_"] {
            command.env(format!("MILLPOND_{name}NATS_URL"), format!("nats://client:x@{silent}"));
        }
        command.env("MILLPOND_COLLECTOR_URL", format!("http://{silent}")).env("MILLPOND_TOKEN", "a token for tests");
        command.env("MILLPOND_PRODUCER_LISTEN", "127.0.0.1:0").env("MILLPOND_COLLECTOR_LISTEN", "127.0.0.1:0");
        command.env("MILLPOND_CONNECT_TIMEOUT", "60s").current_dir(dir.path());
        let mut process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        let listens = until("handlers for both signals", PATIENCE, async || {
            let ended = process.ended().map(|_| None);
            first_process(&process).filter(|pid| handles_signals(*pid)).map(Some).or(ended)
        });
        // What reads an empty input, say, has ended by itself.
        let Some(pid) = listens.await else { return };
        let _ = kill(pid, signal);
        let status = process.end(ENDS_WITHIN).await;
        let is_service = SERVICES.iter().any(|service| line.starts_with(service));
        assert!(status.code() == Some(130) || is_service, "{line} at {signal}: {status}");
    });
    stream::iter(checks).buffer_unordered(8).collect::<Vec<()>>().await;
}

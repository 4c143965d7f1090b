//! Every verb with a standard output that is full, closed or that nobody reads, and with Ctrl-C at its start, in its middle and at its
//! end. The verbs are those of `exit_codes`, whose tables are held against the help.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit_codes::RIGHT;
use crate::harness::{Cluster, MILLPOND, PATIENCE, until};
use crate::up::processes_of;

/// How soon a verb ends at Ctrl-C.
const ENDS_WITHIN: Duration = Duration::from_secs(4);
/// How long a verb may take on a busy machine.
const RUNS_WITHIN: Duration = Duration::from_secs(40);
const INTERRUPTED: i32 = 130;
const FULL: i32 = 70;
const SERVICES: [&str; 4] = ["worker run", "producer run", "collector run", "setup"];

/// Each verb with each of its arguments.
fn lines() -> Vec<Vec<String>> {
    let all = RIGHT.iter().flat_map(|(verb, more)| more.iter().map(move |more| format!("{verb} {more}")));
    all.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

fn is_service(line: &[String]) -> bool {
    SERVICES.iter().any(|service| line.join(" ").starts_with(service))
}

/// How a command in a process group of its own ended, and what it said.
struct Ended {
    status: ExitStatus,
    said: String,
    took: Duration,
}

/// Has what is started from here heed Ctrl-C as in a terminal. A shell's background ignores it, and whatever it starts inherits that;
/// a signal that is handled is not inherited. These tests still end at Ctrl-C.
fn heed_ctrl_c() {
    static HANDLED: Once = Once::new();
    HANDLED.call_once(|| {
        let (handled, is_handled) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            runtime.block_on(async {
                let mut ctrl_c = signal(SignalKind::interrupt()).unwrap();
                handled.send(()).unwrap();
                ctrl_c.recv().await;
                std::process::exit(INTERRUPTED);
            });
        });
        is_handled.recv().unwrap();
    });
}

/// Runs a command; with `interrupt`, Ctrl-C comes after that long, to it and to all that it has started.
async fn run(command: Command, interrupt: Option<Duration>, within: Duration) -> Result<Ended, String> {
    heed_ctrl_c();
    let stderr = tempfile::NamedTempFile::new().unwrap();
    let said = || String::from_utf8_lossy(&std::fs::read(stderr.path()).unwrap()).into_owned();
    let mut command = tokio::process::Command::from(command);
    let mut child = command.stdin(Stdio::null()).stderr(stderr.reopen().unwrap()).process_group(0).spawn().unwrap();
    let group = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    let started = Instant::now();
    if let Some(after) = interrupt
        && tokio::time::timeout(after, child.wait()).await.is_err()
    {
        let _ = killpg(group, Signal::SIGINT);
    }
    let ended = tokio::time::timeout(within, child.wait()).await;
    let took = started.elapsed();
    let Ok(status) = ended else {
        let _ = killpg(group, Signal::SIGKILL);
        let _ = child.wait().await;
        return Err(format!("has not ended within {within:?}: {}", said()));
    };
    // Whatever it has started is gone a moment later.
    until("end of all that a verb has started", ENDS_WITHIN, async || killpg(group, None).is_err().then_some(())).await;
    Ok(Ended { status: status.unwrap(), said: said(), took })
}

/// Checks all lines, a few at a time; the faults.
async fn faults(lines: Vec<Vec<String>>, check: impl AsyncFn(&[String]) -> Result<(), String>) -> Vec<String> {
    let check = &check;
    let checks = lines.iter().map(|line| async move { check(line).await.map_err(|why| format!("{line:?}: {why}")) });
    let checks: Vec<_> = checks.collect();
    let ended: Vec<Result<(), String>> = stream::iter(checks).buffer_unordered(4).collect().await;
    ended.into_iter().filter_map(Result::err).collect()
}

/// The same command without a standard output, as the shell's `>&-` starts it.
fn without_stdout(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"exec "$0" "$@" >&-"#]).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

fn is_interrupted(status: ExitStatus) -> bool {
    status.code() == Some(INTERRUPTED) || status.signal() == Some(Signal::SIGINT as i32)
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_every_verb_that_waits_for_a_cluster_that_does_not_answer() {
    // Connections come about, and nothing is ever said.
    let (nats, http) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (nats, http) = (&nats.local_addr().unwrap(), &http.local_addr().unwrap());
    let wrong = faults(lines(), async |line| {
        for after in [0, 30, 400] {
            let dir = tempfile::tempdir().unwrap();
            let mut command = Command::new(MILLPOND);
            command.arg("--state").arg(dir.path()).args(line).current_dir(dir.path()).stdout(Stdio::null());
            for name in ["", "WORKER_", "PRODUCER_", "COLLECTOR_", "SETUP_"] {
                command.env(format!("MILLPOND_{name}NATS_URL"), format!("nats://client:x@{nats}"));
            }
            command.env("MILLPOND_COLLECTOR_URL", format!("http://{http}")).env("MILLPOND_TOKEN", "a token for tests");
            command.env("MILLPOND_PRODUCER_LISTEN", "127.0.0.1:0").env("MILLPOND_COLLECTOR_LISTEN", "127.0.0.1:0");
            command.env("MILLPOND_WORKER_LISTEN", "127.0.0.1:0").env("MILLPOND_CONNECT_TIMEOUT", "60s");
            let ended = run(command, Some(Duration::from_millis(after)), ENDS_WITHIN).await?;
            let Ended { status, said, .. } = &ended;
            if said.contains("panicked") || !(is_interrupted(*status) || is_service(line)) {
                return Err(format!("after {after} ms: {status}, {said}"));
            }
        }
        Ok(())
    })
    .await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_and_any_standard_output_suit_every_verb() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--allow-xargs", "echo"], None);
    cluster.worker_is("w1", |worker| worker["draining"] == false).await;
    let command = |line: &[String]| {
        let words: Vec<&str> = line.iter().map(String::as_str).collect();
        cluster.command(&words)
    };
    // `shared ls` has something to print, and `shared cas` does the same each time, whatever the others set and remove meanwhile.
    for key in ["stays", "k"] {
        assert!(cluster.command(&["shared", "set", key, "1"]).stdout(Stdio::null()).status().unwrap().success());
    }
    // They go on until somebody ends them, or end the worker that the others need, or need a handler of its own.
    let apart = |line: &Vec<String>| {
        let line = line.join(" ");
        ["shared watch", "job wait j", "worker drain", "schedule rm", "queue rm", "call square --pipe", "handler try"]
            .iter()
            .any(|verb| line.starts_with(verb))
    };
    let lines: Vec<_> = lines().into_iter().filter(|line| !is_service(line) && !apart(line)).collect();
    let extra = ["completions bash", "job wait j --timeout 300ms", "doctor", "env", "--help", "job --help"]
        .map(|line| line.split(' ').map(str::to_owned).collect());
    let lines: Vec<Vec<String>> = lines.into_iter().chain(extra).collect();
    let wrong = faults(lines, async |line| {
        let with_stdout = async |stdout: Stdio| {
            let mut command = command(line);
            command.stdout(stdout);
            let ended = run(command, None, RUNS_WITHIN).await?;
            if ended.said.contains("panicked") || ended.status.signal().is_some() {
                return Err(format!("{}: {}", ended.status, ended.said));
            }
            Ok(ended)
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        let as_usual = with_stdout(file.reopen().unwrap().into()).await?;
        let prints = file.as_file().metadata().unwrap().len() > 0;
        let code = as_usual.status.code();
        let full = with_stdout(File::options().write(true).open("/dev/full").unwrap().into()).await?;
        if prints && (full.status.code() != Some(FULL) || !full.said.contains("standard output")) {
            return Err(format!("standard output is full: {}, {}", full.status, full.said));
        }
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let dead = with_stdout(writer.into()).await?;
        if dead.said.contains("roken pipe") || ![code, Some(0), Some(1)].contains(&dead.status.code()) {
            return Err(format!("nobody reads: {} instead of {code:?}, {}", dead.status, dead.said));
        }
        // A standard output that is closed takes everything.
        let closed = run(without_stdout(&command(line)), None, RUNS_WITHIN).await?;
        if closed.said.contains("panicked") || ![code, Some(0), Some(1)].contains(&closed.status.code()) {
            return Err(format!("standard output is closed: {} instead of {code:?}, {}", closed.status, closed.said));
        }
        // Ctrl-C in the middle and near the end: it ends as it would have, or because of that.
        for share in [0.3, 0.6, 0.9] {
            let mut command = command(line);
            command.stdout(Stdio::null());
            let ended = run(command, Some(as_usual.took.mul_f64(share)), ENDS_WITHIN).await?;
            let as_before = [code, Some(0), Some(1)].contains(&ended.status.code());
            if ended.said.contains("panicked") || !(as_before || is_interrupted(ended.status)) {
                return Err(format!("Ctrl-C at {share}: {}, {}", ended.status, ended.said));
            }
        }
        Ok(())
    })
    .await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_what_goes_on_until_then() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let handlers = dir.path().join("handlers.toml");
    let sleep = "command = [\"sleep\", \"61234\"]\nmode = \"once\"";
    std::fs::write(&handlers, format!("[long]\n{sleep}\n[talk]\n{sleep}\npipe = true\n")).unwrap();
    let handlers = handlers.to_str().unwrap();
    let _worker = cluster.worker("w1", &["--handlers", handlers], None);
    let mut drained = cluster.worker("w2", &["--queues", "other", "--drain-time", "10m"], None);
    for worker in ["w1", "w2"] {
        cluster.worker_is(worker, |worker| worker["draining"] == false).await;
    }
    let submitted = cluster.command(&["submit", "sleep", "600", "--queue", "other"]).status().unwrap();
    assert!(submitted.success());
    cluster.worker_is("w2", |worker| worker["running"] == 1).await;
    for (line, after) in [
        ("shared watch", 500),
        ("call talk --pipe", 700),
        ("worker drain w2 --wait --timeout 5m", 700),
        ("job wait j", 500),
        (format!("handler try long 1 --handlers {handlers}").as_str(), 900),
        (format!("handler try long 1 --handlers {handlers} --debug").as_str(), 900),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let mut command = cluster.command(&words);
        command.stdout(Stdio::null());
        let ended = run(command, Some(Duration::from_millis(after)), ENDS_WITHIN).await.unwrap();
        let Ended { status, said, took } = &ended;
        assert!(took.as_millis() >= u128::from(after), "{line} ended by itself: {status}, {said}");
        assert!(is_interrupted(*status) || status.success(), "{line}: {status}, {said}");
        assert!(!said.contains("panicked"), "{line}: {said}");
    }
    // Who waited for it is gone; the drain goes on.
    cluster.worker_is("w2", |worker| worker["draining"] == true).await;
    assert!(drained.ended().is_none());
    until("end of what was tried and talked to", PATIENCE, async || {
        let sleeps = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut all = std::fs::read_dir("/proc").unwrap().flatten().map(sleeps);
        (!all.any(|line| line == b"sleep\x0061234\x00")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_clusters_with_all_that_is_theirs() {
    for (line, after) in [
        ("up --ports auto", 0),
        ("up --ports auto", 300),
        ("up --ports auto", 1000),
        ("up --ports auto", 5000),
        ("up --ports auto -- map sleep --range 60..62", 5000),
        ("up --ports auto -- job wait j", 5000),
        ("bench --rounds 1 --tasks 100", 0),
        ("bench --rounds 1 --tasks 100", 500),
        ("bench --rounds 1 --tasks 100", 5000),
        ("secrets made", 0),
        ("secrets made", 5),
        ("secrets made", 15),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let temporary = dir.path().join("tmp");
        std::fs::create_dir(&temporary).unwrap();
        let mut command = Command::new(MILLPOND);
        command.arg("--state").arg(dir.path().join("state")).args(line.split(' ')).current_dir(dir.path());
        command.env("TMPDIR", &temporary).stdout(Stdio::null());
        let ended = run(command, Some(Duration::from_millis(after)), RUNS_WITHIN).await;
        let Ended { status, said, .. } = ended.unwrap_or_else(|why| panic!("{line} after {after} ms: {why}"));
        let is_right = is_interrupted(status) || [Some(0), Some(FULL)].contains(&status.code());
        assert!(is_right && !said.contains("panicked"), "{line} after {after} ms: {status}, {said}");
        until(&format!("end of all of {line}"), PATIENCE, async || processes_of(dir.path()).is_empty().then_some(()))
            .await;
        // Before `bench` listens for the signal, nobody removes what it has made.
        let made = std::fs::read_dir(&temporary)
            .unwrap()
            .flatten()
            .filter(|entry| after > 0 && entry.file_name().to_string_lossy().starts_with(".tmp"));
        assert_eq!(made.count(), 0, "{line} after {after} ms leaves no folder");
        if line.starts_with("secrets") {
            let again = Command::new(MILLPOND).args(["secrets", "made"]).current_dir(dir.path()).output().unwrap();
            assert!(again.status.success(), "{line} after {after} ms: {again:?}");
        }
    }
}

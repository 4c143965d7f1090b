//! `up`: one command runs a whole cluster, its exit code is the command's, nothing is left behind.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{MILLPOND, PATIENCE, Process, output, until};

fn up(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(MILLPOND);
    command.arg("--state").arg(dir).args(["up", "--ports", "auto"]).args(arguments);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_a_command_and_ends_with_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let first = output(up(dir.path(), &["--", "submit", "square", "12", "--wait", "--id", "first"])).await;
    assert_eq!((text(&first.stdout).as_str(), first.status.code()), ("144\n", Some(0)), "{}", text(&first.stderr));
    let failed = output(up(dir.path(), &["--", "submit", "fail", "\"no\"", "--attempts-max", "1", "--wait"])).await;
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed.stderr));
    // The second one continued where the first stopped; so does the third.
    let shown = output(up(dir.path(), &["--workers", "2", "--", "task", "show", "first", "--json"])).await;
    let task: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&task["result"], &task["attempts"][0]["worker"]), (&144.into(), &"w1".into()));
    assert!(!dir.path().join("env").exists(), "nobody answers there any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn stays_up_is_found_by_other_commands_and_drains_at_the_signal() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = up(dir.path(), &[]);
    let mut cluster = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let env = dir.path().join("env");
    until("env file", PATIENCE, async || env.exists().then_some(())).await;
    let here = |arguments: &[&str]| {
        let mut command = Command::new(MILLPOND);
        command.arg("--state").arg(dir.path()).args(arguments);
        command
    };
    let result = output(here(&["submit", "square", "9", "--wait"])).await;
    assert_eq!(text(&result.stdout), "81\n", "{}", text(&result.stderr));
    let more = here(&["worker", "run", "--name", "by-hand"]).stderr(Stdio::null()).stdin(Stdio::null()).spawn();
    let _more = scopeguard(more.unwrap());
    until("worker that joined by hand", PATIENCE, async || {
        text(&output(here(&["worker", "ls"])).await.stdout).contains("by-hand").then_some(())
    })
    .await;
    let second = output(up(dir.path(), &[])).await;
    assert!(!second.status.success() && text(&second.stderr).contains("another `millpond up` runs"));
    cluster.signal(Signal::SIGTERM);
    assert!(cluster.end(Duration::from_secs(30)).await.success());
    let after = output(here(&["submit", "square", "9"])).await;
    assert!(text(&after.stderr).contains("start `millpond up` first"), "{}", text(&after.stderr));
}

/// Ends a child when the test does.
fn scopeguard(child: std::process::Child) -> impl Drop {
    struct Ended(std::process::Child);
    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    Ended(child)
}

/// All processes whose command line or environment names the folder.
pub fn processes_of(dir: &Path) -> Vec<i32> {
    let wanted = dir.to_str().unwrap().as_bytes();
    let names = |path: &Path| {
        let holds = |file: &str| {
            let text = std::fs::read(path.join(file)).unwrap_or_default();
            text.windows(wanted.len()).any(|part| part == wanted)
        };
        holds("cmdline") || holds("environ")
    };
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok().map(|pid| (pid, e.path())));
    pids.filter(|(_, path)| names(path)).map(|(pid, _)| pid).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_no_orphan_when_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = up(dir.path(), &["--workers", "2"]);
    let mut cluster = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let env = dir.path().join("env");
    until("env file", PATIENCE, async || env.exists().then_some(())).await;
    // up, nats-server, producer, collector, two workers.
    assert_eq!(processes_of(dir.path()).len(), 6);
    cluster.kill9();
    until("end of everything", PATIENCE, async || processes_of(dir.path()).is_empty().then_some(())).await;
}

/// Those of them that are a nats-server.
fn servers_of(dir: &Path) -> Vec<i32> {
    let is_server = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("nats-server"))
    };
    processes_of(dir).into_iter().filter(is_server).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_killed_there_is_one_server_and_none_stays_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = up(dir.path(), &[]);
    let mut cluster = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let env = dir.path().join("env");
    until("env file", PATIENCE, async || env.exists().then_some(())).await;
    let (root, processes) = (i32::try_from(cluster.pid()).unwrap(), processes_of(dir.path()));
    assert_eq!((processes.len(), servers_of(dir.path()).len()), (5, 1));
    for killed in processes.iter().filter(|pid| **pid != root) {
        let line = text(&std::fs::read(format!("/proc/{killed}/cmdline")).unwrap());
        kill(Pid::from_raw(*killed), Signal::SIGKILL).unwrap();
        until(&format!("successor of {line}"), PATIENCE, async || {
            let now = processes_of(dir.path());
            assert!(servers_of(dir.path()).len() <= 1, "after the end of {line}");
            (now.len() == processes.len() && !now.contains(killed)).then_some(())
        })
        .await;
        let mut submit = Command::new(MILLPOND);
        submit.arg("--state").arg(dir.path()).args(["submit", "square", "5", "--wait"]);
        let submitted = output(submit).await;
        assert_eq!(text(&submitted.stdout), "25\n", "after the end of {line}: {}", text(&submitted.stderr));
    }
    // All that could end it, at once.
    let servers = servers_of(dir.path());
    for pid in processes_of(dir.path()).into_iter().filter(|pid| !servers.contains(pid)) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    cluster.kill9();
    until("end of everything", Duration::from_secs(5), async || processes_of(dir.path()).is_empty().then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_another_server_has_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let lock = dir.path().join("nats/lock");
    std::fs::create_dir_all(dir.path().join("nats")).unwrap();
    let mut command = Command::new(MILLPOND);
    command.args(["run-with-parent", "--lock"]).arg(&lock).args(["--", "sleep", "100"]);
    let mut other = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let is_sleep =
        || std::fs::read_to_string(format!("/proc/{}/comm", other.pid())).is_ok_and(|name| name == "sleep\n");
    until("another user of the folder", PATIENCE, async || is_sleep().then_some(())).await;
    let started = Instant::now();
    let refused = output(up(dir.path(), &["--", "worker", "ls"])).await;
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains(&format!("process {} uses", other.pid())), "{said}");
    assert!(started.elapsed() < Duration::from_secs(20), "it does not wait for a server that never comes");
    until("end of everything else", PATIENCE, async || processes_of(dir.path()).is_empty().then_some(())).await;
    other.kill9();
    let free = output(up(dir.path(), &["--", "submit", "square", "7", "--wait"])).await;
    assert_eq!(text(&free.stdout), "49\n", "{}", text(&free.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_dies_is_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = up(dir.path(), &[]);
    let mut cluster = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let env = dir.path().join("env");
    until("env file", PATIENCE, async || env.exists().then_some(())).await;
    let mut here = Command::new(MILLPOND);
    here.arg("--state").arg(dir.path()).args(["worker", "ls", "--json"]);
    let listed = output(here).await;
    let worker: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let pid = i32::try_from(worker["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let mut submit = Command::new(MILLPOND);
    submit.arg("--state").arg(dir.path()).args(["submit", "square", "5", "--wait"]);
    assert_eq!(text(&output(submit).await.stdout), "25\n");
    cluster.signal(Signal::SIGTERM);
    assert!(cluster.end(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_again_and_again_is_soon_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = up(dir.path(), &[]);
    let mut cluster = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let env = dir.path().join("env");
    until("env file", PATIENCE, async || env.exists().then_some(())).await;
    let worker = || {
        let is_worker = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.windows(10).any(|part| part == b"worker\0run")
        };
        processes_of(dir.path()).into_iter().find(is_worker)
    };
    // From the fifth death on the delay is the longest.
    for n in 1..=7 {
        let pid = until("the worker", Duration::from_secs(4), async || worker()).await;
        let killed = Instant::now();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        until("its successor", Duration::from_secs(4), async || worker().filter(|next| *next != pid)).await;
        assert!(killed.elapsed() < Duration::from_secs(4), "death {n}: {:?}", killed.elapsed());
    }
    cluster.signal(Signal::SIGTERM);
    assert!(cluster.end(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_log_is_put_aside_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = up(dir.path(), &[]);
    let mut cluster = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let env = dir.path().join("env");
    until("env file", PATIENCE, async || env.exists().then_some(())).await;
    let log = dir.path().join("log/w1.log");
    let begins = text(&std::fs::read(&log).unwrap());
    assert!(begins.contains("worker ready"), "{begins}");
    // A hole stands for all that a talkative handler has written.
    std::fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(65 << 20).unwrap();
    let aside = dir.path().join("log/w1.log.1");
    let is_small = || std::fs::metadata(&log).is_ok_and(|known| known.len() < 1 << 20);
    until("the log put aside", PATIENCE, async || (aside.exists() && is_small()).then_some(())).await;
    let aside = std::fs::read(&aside).unwrap();
    assert!(aside.len() == 65 << 20 && aside.starts_with(begins.as_bytes()), "all of it is kept");
    drop(aside);
    cluster.signal(Signal::SIGTERM);
    assert!(cluster.end(Duration::from_secs(30)).await.success());
    let goes_on = text(&std::fs::read(&log).unwrap());
    assert!(goes_on.contains("worker drained") && !goes_on.contains('\0'), "{goes_on}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:7611");
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(MILLPOND);
    command.arg("--state").arg(dir.path()).args(["up", "--", "worker", "ls"]);
    let refused = output(command).await;
    drop(taken);
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("--ports auto"), "{}", text(&refused.stderr));
}

/// All below a folder, and the folder itself.
fn all_of(dir: &Path) -> Vec<std::path::PathBuf> {
    let below = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let below = below.flat_map(|path| if path.is_dir() { all_of(&path) } else { vec![path] });
    std::iter::once(dir.to_owned()).chain(below).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_writes_is_for_its_user_alone_and_it_prints_no_password() {
    use std::io::BufRead;
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let mut command = up(&state, &[]);
    let mut cluster = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufReader::new(cluster.stdout.take().unwrap()).lines();
    let printed = tokio::task::spawn_blocking(move || {
        let mut printed = Vec::new();
        for line in lines.map(Result::unwrap) {
            let is_last = line.starts_with("ready");
            printed.push(line);
            if is_last {
                break;
            }
        }
        printed.join("\n")
    });
    let printed = tokio::time::timeout(PATIENCE, printed).await.unwrap().unwrap();
    let here = |arguments: &[&str]| {
        let mut command = Command::new(MILLPOND);
        command.arg("--state").arg(&state).args(arguments);
        command
    };
    let result = output(here(&["submit", "square", "9", "--wait"])).await;
    assert_eq!(text(&result.stdout), "81\n", "{}", text(&result.stderr));
    let all = all_of(&state);
    for path in &all {
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
    for name in ["env", "secrets.json", "lock", "nats", "log"] {
        assert!(all.contains(&state.join(name)), "{name}");
    }
    assert!(all.iter().any(|path| path.to_string_lossy().contains("sqlite")), "{all:?}");
    let secrets: serde_json::Value =
        serde_json::from_slice(&std::fs::read(state.join("secrets.json")).unwrap()).unwrap();
    let passwords =
        secrets["passwords"].as_object().unwrap().values().chain([&secrets["token"], &secrets["viewer_token"]]);
    for password in passwords {
        assert!(!printed.contains(password.as_str().unwrap()), "{printed}");
    }
    // The line that it prints instead.
    assert!(printed.contains("env MILLPOND_NATS_URL)\" req tasks.default.square 12"), "{printed}");
    let url = output(here(&["env", "MILLPOND_NATS_URL"])).await;
    let wanted = format!("nats://client:{}@", secrets["passwords"]["client"].as_str().unwrap());
    assert!(text(&url.stdout).starts_with(&wanted), "{}", text(&url.stderr));
    assert!(!output(here(&["env", "MILLPOND_NOTHING"])).await.status.success());
    kill(Pid::from_raw(cluster.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(tokio::task::spawn_blocking(move || cluster.wait().unwrap()).await.unwrap().success());
}

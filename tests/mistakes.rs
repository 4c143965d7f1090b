//! What people type, pipe and interrupt: waiting ends, bad lines lose nothing, standard streams that are gone change nothing, and
//! Ctrl-C says what becomes of the work.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, task, until};

const SHORT: RetryDeadline = RetryDeadline::Within(Duration::from_secs(10));
/// A verb that has not ended by then waits for ever.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

async fn output(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_owned();
    let run = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(&input);
        child.wait_with_output().unwrap()
    });
    tokio::time::timeout(ENDS_WITHIN, run).await.expect("the verb ends").unwrap()
}

async fn cli(cluster: &Cluster, arguments: &[&str]) -> Output {
    output(cluster.command(arguments), b"").await
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn with_worker(arguments: &[&str]) -> (Cluster, crate::harness::Process) {
    let cluster = Cluster::start().await;
    let worker = cluster.worker("w1", arguments, None);
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    (cluster, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_returns_the_end_of_a_task_whoever_submitted_it() {
    let (cluster, _worker) = with_worker(&[]).await;
    // Submitted before without --wait, and ended: done, dead, and one of a queue of its own.
    for arguments in [&["square", "7", "--id", "done"][..], &["fail", "\"no\"", "--attempts-max", "1", "--id", "dead"]]
    {
        assert!(cli(&cluster, &[&["submit"], arguments].concat()).await.status.success());
    }
    cluster.ended("done").await;
    cluster.ended("dead").await;
    let done = cli(&cluster, &["submit", "square", "7", "--id", "done", "--wait"]).await;
    assert_eq!((out(&done).as_str(), done.status.code()), ("49\n", Some(0)), "{}", said(&done));
    let dead = cli(&cluster, &["submit", "fail", "\"no\"", "--attempts-max", "1", "--id", "dead", "--wait"]).await;
    assert_eq!(dead.status.code(), Some(1), "{}", said(&dead));
    // The advice works as it is printed.
    assert!(
        said(&dead).contains("task dead ") && said(&dead).contains("`millpond dead show` with this id"),
        "{}",
        said(&dead)
    );
    assert!(cli(&cluster, &["dead", "show", "dead"]).await.status.success());
    let (_producer, url) = cluster.producer().await;
    let http = reqwest::Client::new();
    let post = async |key: &str, query: &str, body: &str| {
        let request = http.post(format!("{url}/v1/tasks/default/square{query}")).header("Idempotency-Key", key);
        let answer = request.bearer_auth(&cluster.nats.secrets.token).body(body.to_owned()).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    assert_eq!(post("http", "", "3").await.0, 202);
    cluster.ended("http").await;
    let (status, ended) = post("http", "?wait=20s", "3").await;
    assert_eq!((status, &ended["result"]), (200, &json!(9)), "{ended}");
    // The same key with another body is not the first one's result.
    for query in ["", "?wait=20s"] {
        let (status, refused) = post("http", query, "4").await;
        assert_eq!(status, 409, "{refused}");
    }
    // Ids that cannot be are refused everywhere; the client crate is below all.
    for id in ["", " lead", "trail ", "a\nb", "a\rb", "a\0b", &"x".repeat(257)] {
        let refused = cluster.client.submit(&NewTask { id: Some(id.to_owned()), ..task("echo", "1") }, SHORT).await;
        assert!(refused.unwrap_err().to_string().contains("task id"), "{id:?}");
    }
    assert_eq!(post(&"x".repeat(257), "", "1").await.0, 400);
    let unknown = cli(&cluster, &["job", "wait", "nobody", "--timeout", "300ms"]).await;
    assert!(unknown.status.code() == Some(70) && said(&unknown).contains("unknown"), "{}", said(&unknown));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_loses_nothing_that_stands_before_it() {
    let (cluster, _worker) = with_worker(&["--allow-xargs", "echo,sh"]).await;
    let mut lines: Vec<u8> = (1..=50).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    lines.extend(b"caf\xe9\n");
    lines.extend((52..=60).flat_map(|n| format!("{n}\n").into_bytes()));
    let ran = output(cluster.command(&["xargs", "echo"]), &lines).await;
    assert_eq!((out(&ran).lines().count(), ran.status.code()), (59, Some(1)), "{}", said(&ran));
    assert!(said(&ran).contains("line 51") && said(&ran).contains("job "), "{}", said(&ran));
    let values: Vec<u8> = (0..3000).flat_map(|n| format!("{n}\n").into_bytes()).chain(*b"oops\n4\n").collect();
    for more in [&[][..], &["--unordered"], &["--json"]] {
        let mapped = output(cluster.command(&[&["map", "echo", "-"], more].concat()), &values).await;
        assert_eq!((out(&mapped).lines().count(), mapped.status.code()), (3000, Some(2)), "{}", said(&mapped));
        assert!(said(&mapped).contains("line 3001"), "{}", said(&mapped));
    }
    // What it says works: the same job with a better input runs what is left.
    let mapped = output(cluster.command(&["map", "square", "-", "--job", "broken"]), b"1\n2\noops\n").await;
    assert!(said(&mapped).contains("--job broken"), "{}", said(&mapped));
    let mended = output(cluster.command(&["map", "square", "-", "--job", "broken"]), b"1\n2\n3\n").await;
    assert_eq!((out(&mended).as_str(), mended.status.code()), ("1\n4\n9\n", Some(0)), "{}", said(&mended));
    let stored = output(cluster.command(&["map", "square", "-", "--no-wait"]), b"1\n2\noops\n").await;
    assert!(stored.status.code() == Some(2) && said(&stored).contains(", job "), "{}", said(&stored));
    // A failed item keeps its place, and is no null.
    let failing = cli(&cluster, &["map", "fail", "--range", "0..2", "--attempts-max", "1"]).await;
    assert_eq!((out(&failing).as_str(), failing.status.code()), ("\n\n", Some(1)), "{}", said(&failing));
    let advice = said(&failing).split('`').nth(1).unwrap().to_owned();
    let words: Vec<&str> = advice.split(' ').skip(1).collect();
    until("dead letter that the advice names", PATIENCE, async || {
        cli(&cluster, &words).await.status.success().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn xargs_is_as_gnu_has_it() {
    let (cluster, _worker) = with_worker(&["--allow-xargs", "printf,sh"]).await;
    let input = b"a\0 \0\n\0\0b\0";
    let ran = output(cluster.command(&["xargs", "-0", "printf", "[%s]\\n"]), input).await;
    assert_eq!(out(&ran), "[a]\n[ ]\n[\n]\n[]\n[b]\n", "{}", said(&ran));
    let cut = cli(&cluster, &["xargs", "sh", "-c", "head -c 6000000 /dev/zero", "sh", ":::", "x"]).await;
    assert_eq!(cut.status.code(), Some(1), "what was cut has failed: {}", said(&cut));
    assert!(said(&cut).contains("counts as failed"), "{}", said(&cut));
}

/// A standard error that takes nothing: a reader that has gone, a full disk.
fn gone() -> [Stdio; 2] {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    [writer.into(), File::options().write(true).open("/dev/full").unwrap().into()]
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_streams_that_are_gone_change_nothing() {
    let (cluster, _worker) = with_worker(&["--allow-xargs", "sh"]).await;
    let cases: [(usize, i32, &[&str]); 7] = [
        (2000, 0, &["map", "echo", "--range", "0..2000"]),
        (4, 1, &["map", "fail", "--range", "0..4", "--attempts-max", "1"]),
        (0, 1, &["submit", "fail", r#"{"how": "fatal"}"#, "--wait"]),
        (0, 0, &["schedule", "ls"]),
        (0, 0, &["dead", "purge", "--all", "--dry-run", "--kind", "none"]),
        (3, 3, &["xargs", "sh", "-c", "echo out $1; echo talk >&2; exit 3", "sh", ":::", "1", "2", "3"]),
        (0, 69, &["call", "nobody", "1", "--timeout", "300ms"]),
    ];
    for (lines, code, arguments) in cases {
        for stderr in gone() {
            let mut command = cluster.command(arguments);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
            let child = command.spawn().unwrap();
            let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
            assert_eq!((ended.status.code(), out(&ended).lines().count()), (Some(code), lines), "{arguments:?}");
        }
    }
    // Standard output: its reader has gone is quiet, whatever the verb; a full disk is an error that says so.
    cluster.client.submit(&NewTask { id: Some("t".into()), ..task("square", "3") }, SHORT).await.unwrap();
    cluster.ended("t").await;
    let printing: [(i32, &[&str]); 12] = [
        (0, &["submit", "square", "12", "--wait"]),
        (0, &["submit", "square", "12"]),
        (0, &["map", "echo", "--range", "0..2000"]),
        (0, &["map", "echo", "--range", "0..3", "--no-wait"]),
        (0, &["xargs", "sh", "-c", "echo out", "sh", ":::", "1"]),
        (0, &["call", "square", "12"]),
        (0, &["task", "ls"]),
        (0, &["task", "export"]),
        (0, &["task", "show", "t"]),
        (0, &["worker", "ls"]),
        (0, &["queue", "ls", "--json"]),
        (0, &["why", "t"]),
    ];
    for (code, arguments) in printing {
        let [closed, full] = gone();
        let mut command = cluster.command(arguments);
        let ended = output_to(command.stdout(closed)).await;
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {}", said(&ended));
        assert!(!said(&ended).contains("panicked") && !said(&ended).contains("roken pipe"), "{}", said(&ended));
        let mut command = cluster.command(arguments);
        let ended = output_to(command.stdout(full)).await;
        assert_eq!(ended.status.code(), Some(70), "{arguments:?}: {}", said(&ended));
        assert!(said(&ended).contains("standard output"), "{arguments:?}: {}", said(&ended));
    }
}

async fn output_to(command: &mut Command) -> Output {
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    tokio::time::timeout(ENDS_WITHIN, ended).await.expect("the verb ends").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_tells_what_becomes_of_the_work() {
    let (cluster, _worker) = with_worker(&["--allow-xargs", "sh", "--slots", "2"]).await;
    let ran = tempfile::tempdir().unwrap();
    let count = || std::fs::read_dir(ran.path()).unwrap().count();
    let script = format!("touch {}/$1; sleep 1", ran.path().display());
    let interrupted = async |arguments: &[&str], begun: &dyn Fn() -> bool| {
        let mut command = cluster.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        until("begun work", PATIENCE, async || begun().then_some(())).await;
        kill(pid, Signal::SIGINT).unwrap();
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
        tokio::time::timeout(ENDS_WITHIN, ended).await.expect("Ctrl-C ends it").unwrap()
    };
    // xargs cancels what waits, and says so.
    let mut arguments = vec!["xargs", "--job", "stopped", "sh", "-c", &script, "sh", ":::"];
    let numbers: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    arguments.extend(numbers.iter().map(String::as_str));
    let xargs = interrupted(&arguments, &|| count() >= 2).await;
    assert_eq!(xargs.status.code(), Some(130), "{}", said(&xargs));
    assert_eq!(said(&xargs).matches("job stopped").count(), 1, "{}", said(&xargs));
    assert!(said(&xargs).contains("is cancelled"), "{}", said(&xargs));
    cluster.worker_is("w1", |w| w["running"] == 0).await;
    let then = count();
    assert!(then < 40, "{then} of 40 commands ran");
    let state: Value = cluster.get("/api/v1/jobs/stopped", &[]).await.unwrap();
    assert_eq!(state["state"], "cancelled", "{state}");
    // map leaves its job, and says how to go on and how to cancel; both work.
    let jobs = ["map", "sleep", "--range", "1..30", "--job", "left"];
    let begun = async || cluster.get("/api/v1/workers", &[]).await.is_some_and(|w| w["rows"][0]["running"] != 0);
    let mut command = cluster.command(&jobs);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    until("running task", PATIENCE, async || begun().await.then_some(())).await;
    kill(pid, Signal::SIGINT).unwrap();
    let map = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(map.status.code(), Some(130), "{}", said(&map));
    for part in ["job left", "--job left", "`millpond job cancel left`"] {
        assert!(said(&map).contains(part), "{}", said(&map));
    }
    assert!(cli(&cluster, &["job", "cancel", "left"]).await.status.success());
    // A second one ends it at once, also when nobody reads its output.
    let mut command = cluster.command(&["map", "echo", "--range", "0..1000000"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut held_up = command.spawn().unwrap();
    let mut first = [0];
    let mut stdout = held_up.stdout.take().unwrap();
    tokio::task::block_in_place(|| stdout.read_exact(&mut first)).unwrap();
    let pid = Pid::from_raw(held_up.id().try_into().unwrap());
    until("end by the second Ctrl-C", ENDS_WITHIN, async || {
        let _ = kill(pid, Signal::SIGINT);
        held_up.try_wait().unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn control_characters_of_others_are_escaped_where_a_person_reads() {
    let (cluster, _worker) = with_worker(&[]).await;
    let evil = "t\u{1b}[2J\u{202e}\u{9b}1m";
    let failing =
        NewTask { id: Some(evil.into()), attempts_max: Some(1), ..task("fail", "\"\\u001b[31mred\\r\u{202e}\"") };
    cluster.client.submit(&failing, SHORT).await.unwrap();
    let ended = cluster.ended(evil).await;
    assert_eq!(ended["id"], evil);
    let hidden = |c: char| c != '\n' && (c.is_control() || matches!(c, '\u{202a}'..='\u{202e}'));
    let verbs: [&[&str]; 9] = [
        &["task", "ls"],
        &["dead", "ls"],
        &["task", "show", evil],
        &["dead", "show", evil],
        &["why", evil],
        &["worker", "ls"],
        &["task", "ls", "--json"],
        &["dead", "ls", "--json"],
        &["submit", "fail", "\"\u{202e}\"", "--id", evil, "--wait"],
    ];
    for arguments in verbs {
        let shown = cli(&cluster, arguments).await;
        let text = out(&shown) + &said(&shown);
        assert!(!text.is_empty() && !text.contains(hidden), "{arguments:?}: {text:?}");
    }
    // JSON keeps the value.
    let rows = out(&cli(&cluster, &["task", "ls", "--json"]).await);
    let ids: Vec<Value> = rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].clone()).collect();
    assert!(ids.contains(&json!(evil)), "{rows}");
    let exported = out(&cli(&cluster, &["task", "export"]).await);
    assert!(exported.lines().any(|line| serde_json::from_str::<Value>(line).unwrap()["id"] == evil), "{exported}");
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_tell_what_they_will_do() {
    let cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    let odd = ["schedule", "add", "odd", "echo", "1", "--cron", "*/90 2 * * *", "--tz", "Europe/Berlin"];
    let added = cli(&cluster, &odd).await;
    assert!(added.status.success(), "{}", said(&added));
    let listed = out(&cli(&cluster, &["schedule", "ls"]).await);
    for told in [said(&added), listed] {
        for part in [
            "minute */90 means minute 0 of each hour",
            "the change of the clocks skips",
            "the change of the clocks repeats",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }
    let row = out(&cli(&cluster, &["schedule", "ls", "--json"]).await);
    assert_eq!(serde_json::from_str::<Value>(&row).unwrap()["remarks"].as_array().unwrap().len(), 3, "{row}");
    let quiet = cli(&cluster, &["schedule", "add", "quiet", "echo", "1", "--cron", "*/15 * * * *"]).await;
    assert!(quiet.status.success() && said(&quiet).is_empty(), "{}", said(&quiet));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_under_up_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(crate::harness::MILLPOND);
    command.arg("--state").arg(dir.path()).args([
        "up",
        "--ports",
        "auto",
        "--",
        "map",
        "sleep",
        "--range",
        "1000..1003",
    ]);
    let log = File::create(dir.path().join("up.log")).unwrap();
    let mut up = crate::harness::Process::start(command.stdout(Stdio::null()).stderr(log));
    let said = || std::fs::read_to_string(dir.path().join("up.log")).unwrap();
    until("running map", PATIENCE, async || said().contains("running map").then_some(())).await;
    let child = until("process of the map", PATIENCE, async || {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", up.pid())).unwrap();
        let of_map = |pid: &&str| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).any(|word| word == b"map")
        };
        children.split_whitespace().find(of_map).map(str::to_owned)
    })
    .await;
    up.kill9();
    until("end of the map", PATIENCE, async || {
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        (status.is_empty() || status.contains("State:\tZ")).then_some(())
    })
    .await;
}

//! Waiting for an end: over an outage of the server, by the official clients as the examples use them and over HTTP; with an id that was
//! sent before; and for a job that was made by subjects alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::harness::{Cluster, PATIENCE, until};

const SHORT: RetryDeadline = RetryDeadline::Within(Duration::from_secs(5));
/// How soon an end is told once its client has a connection again.
const TOLD_WITHIN: Duration = Duration::from_secs(2);
/// Connections that break in one job.
const LOSSES: usize = 6;
/// The release of the official client that is installed.
const NATS_PY: &str = "nats-py==2.16.0";

/// A Python with the official client, made once and kept in the target folder; none where it cannot be had.
static PYTHON: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join(NATS_PY.replace("==", "-"));
    let run = |program: &Path, arguments: &[&str]| {
        Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
    };
    let is_there = run(&venv.join("bin/python"), &["-c", "import nats"])
        || run(Path::new("python3"), &["-m", "venv", "--clear", venv.to_str().unwrap()])
            && run(&venv.join("bin/pip"), &["install", "--quiet", "--disable-pip-version-check", NATS_PY]);
    is_there.then(|| venv.join("bin/python"))
});

/// Whether a program is on PATH.
fn is_there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients").join(name)
}

/// How long the server is away, in seconds: `tests/long.sh` says more than CI has time for.
fn outages() -> Vec<f64> {
    let said = std::env::var("MILLPOND_TEST_OUTAGES").unwrap_or_else(|_| "1".to_owned());
    said.split(',').map(|seconds| seconds.parse().unwrap()).collect()
}

async fn publish(cluster: &Cluster, subject: &str, headers: &[(&str, &str)], payload: &str) {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let bus = cluster.nats.bus(Role::Client).await;
    bus.store(subject, &headers, Bytes::from(payload.to_owned()), SHORT).await.unwrap();
}

/// An example that waits for the end of a task which sleeps.
struct Waits {
    id: String,
    child: tokio::process::Child,
    stderr: tokio::io::Lines<BufReader<tokio::process::ChildStderr>>,
}

impl Waits {
    fn start(cluster: &Cluster, program: &Path, script: Option<&Path>, id: String, seconds: f64) -> Self {
        let mut command = tokio::process::Command::new(program);
        command.args(script).args(["default", "sleep", &seconds.to_string(), &id]);
        command.env("MILLPOND_NATS_URL", cluster.nats.url("client"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { id, child, stderr }
    }

    /// Reads until a line with one of these words.
    async fn says(&mut self, words: &[&str]) {
        let line = async {
            while let Some(line) = self.stderr.next_line().await.unwrap() {
                eprintln!("{}: {line}", self.id);
                if words.iter().any(|word| line.contains(word)) {
                    return;
                }
            }
            panic!("{} has ended", self.id);
        };
        tokio::time::timeout(PATIENCE, line).await.unwrap();
    }

    /// The end that it prints.
    async fn end(self) -> Value {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait_with_output()).await.unwrap().unwrap();
        assert!(ended.status.success(), "{}: {ended:?}", self.id);
        serde_json::from_slice(&ended.stdout).unwrap()
    }
}

/// Tasks that end before, while and after the server is away, each waited for by this example.
async fn over_outages(program: &Path, script: Option<&Path>, says_when_back: bool) {
    let mut cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    cluster.worker_is("w1", |worker| worker["draining"] == false).await;
    for away in outages() {
        let tasks = [4.0, 4.0 + away, 7.0 + away].into_iter().enumerate();
        let start = |(n, seconds)| Waits::start(&cluster, program, script, format!("away-{away}-{n}"), seconds);
        let mut waiting: Vec<Waits> = tasks.map(start).collect();
        let mut first_ends = None;
        for waits in &mut waiting {
            waits.says(&["stored", "Stored"]).await;
            first_ends.get_or_insert(tokio::time::Instant::now() + Duration::from_secs(4));
        }
        // The first one ends while the server is away.
        let half = Duration::from_secs_f64(away / 2.0);
        tokio::time::sleep_until(first_ends.and_then(|ends| ends.checked_sub(half)).unwrap()).await;
        cluster.nats.kill9();
        tokio::time::sleep(Duration::from_secs_f64(away)).await;
        cluster.nats.restart();
        let cluster = &cluster;
        let ends = waiting.into_iter().map(|mut waits| async move {
            match says_when_back {
                true => waits.says(&["connected again"]).await,
                false => is_back(cluster).await,
            }
            let (id, back) = (waits.id.clone(), Instant::now());
            let end = waits.end().await;
            assert_eq!((&end["id"], &end["status"]), (&json!(id), &json!("done")), "{end}");
            was_told_soon(cluster, &id, back, Instant::now()).await;
        });
        futures_util::future::join_all(ends).await;
    }
}

/// Waits until a client that connects anew is answered.
async fn is_back(cluster: &Cluster) {
    cluster.nats.asked("$JS.API.INFO", &Value::Null).await;
}

/// Whether an end was told soon after its client had its connection again, or, where the task has ended after that, after its end.
async fn was_told_soon(cluster: &Cluster, id: &str, back: Instant, told: Instant) {
    let ended_ms = cluster.ended(id).await["ended_ms"].as_i64().unwrap();
    // The worker's clock is that of this machine.
    let since_end = Duration::from_millis(u64::try_from(millpond::now_ms() - ended_ms).unwrap());
    let since_end = since_end.saturating_sub(told.elapsed());
    println!("{id}: told {:?} after its client was back, {since_end:?} after it ended", told - back);
    assert!((told - back).min(since_end) < TOLD_WITHIN, "{id} was told late");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "seconds count; `.ci/run` runs it alone"]
async fn the_official_client_of_python_is_told_over_an_outage() {
    let Some(python) = tokio::task::spawn_blocking(|| PYTHON.as_ref()).await.unwrap() else {
        assert!(std::env::var_os("CI").is_none(), "CI needs {NATS_PY}: python3 with venv and pip");
        eprintln!("skipped: {NATS_PY} cannot be installed on this machine");
        return;
    };
    over_outages(python, Some(&program("outage.py")), true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "seconds count; `.ci/run` runs it alone"]
async fn the_shell_is_told_over_an_outage() {
    if !is_there("nats") || !is_there("jq") {
        eprintln!("skipped: this machine has no `nats` or no `jq`");
        return;
    }
    over_outages(&program("outage.sh"), None, false).await;
}

/// Publishes over HTTP; the status and the answer.
async fn post(url: &str, token: &str, key: &str, body: &str) -> (u16, Value) {
    let request = reqwest::Client::new().post(url).bearer_auth(token).header("Idempotency-Key", key);
    let answer = request.body(body.to_owned()).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "seconds count; `.ci/run` runs it alone"]
async fn http_is_told_over_an_outage() {
    let mut cluster = Cluster::start().await;
    let (_producer, url) = cluster.producer().await;
    let _worker = cluster.worker("w1", &[], None);
    cluster.worker_is("w1", |worker| worker["draining"] == false).await;
    for away in outages() {
        let url = format!("{url}/v1/tasks/default/sleep?wait=3m");
        let token = cluster.nats.secrets.token.clone();
        let key = format!("away-{away}");
        let id = key.clone();
        let mut waiting = JoinSet::new();
        waiting.spawn(async move { (post(&url, &token, &key, "3").await, Instant::now()) });
        cluster.worker_is("w1", |worker| worker["running"] == 1).await;
        cluster.nats.kill9();
        tokio::time::sleep(Duration::from_secs_f64(away)).await;
        cluster.nats.restart();
        is_back(&cluster).await;
        let back = Instant::now();
        let ((status, end), told) =
            tokio::time::timeout(PATIENCE, waiting.join_next()).await.unwrap().unwrap().unwrap();
        assert_eq!((status, &end["status"]), (200, &json!("done")), "{end}");
        was_told_soon(&cluster, &id, back, told).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_was_sent_before_is_answered_with_its_end() {
    let cluster = Cluster::start().await;
    let (_producer, url) = cluster.producer().await;
    let token = &cluster.nats.secrets.token;
    let to = |kind: &str, query: &str| format!("{url}/v1/tasks/default/{kind}{query}");
    // By NATS, by HTTP without `wait`; they wait for a worker.
    publish(&cluster, "tasks.default.square", &[("Nats-Msg-Id", "by-nats")], "12").await;
    publish(&cluster, "tasks.default.square.j-mine", &[("Nats-Msg-Id", "of-a-job")], "12").await;
    assert_eq!(post(&to("square", ""), token, "by-http", "12").await.0, 202);
    assert_eq!(post(&to("fail", ""), token, "dies", r#"{"how":"fatal","message":"no"}"#).await.0, 202);
    let (status, answer) = post(&to("square", "?wait=10ms"), token, "by-http", "12").await;
    // Which job it has was said by who published it.
    assert_eq!((status, &answer["duplicate"], &answer["job"]), (202, &json!(true), &Value::Null), "{answer}");
    let _worker = cluster.worker("w1", &[], None);
    for id in ["by-nats", "of-a-job", "by-http", "dies"] {
        cluster.ended(id).await;
    }
    for key in ["by-nats", "of-a-job", "by-http"] {
        let (status, answer) = post(&to("square", "?wait=30s"), token, key, "12").await;
        assert_eq!((status, answer), (200, json!({ "id": key, "status": "done", "result": 144 })));
    }
    let (status, answer) = post(&to("fail", "?wait=30s"), token, "dies", r#"{"how":"fatal","message":"no"}"#).await;
    assert_eq!((status, &answer["status"], &answer["failure"]["message"]), (200, &json!("dead"), &json!("no")));
    // By `ctl`, as any client asks.
    let password = cluster.nats.secrets.passwords["client"].clone();
    let options = async_nats::ConnectOptions::new().user_and_password("client".into(), password);
    let client = options.connect(format!("127.0.0.1:{}", cluster.nats.port)).await.unwrap();
    for (id, wanted) in [
        (
            "by-nats",
            json!({ "index": null, "id": "by-nats", "queue": "default", "kind": "square", "status": "done", "result": 144,
                // The start of the arguments' SHA-256.
                "digest": "6b51d431df5d7f141cbececcf79edf3d" }),
        ),
        ("nothing", Value::Null),
    ] {
        let question = json!({ "queue": "default", "kind": "square", "id": id }).to_string();
        let answer = client.request("ctl.request.results", question.into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!((&answer["ok"]["rows"][0], &answer["ok"]["next"]), (&wanted, &Value::Null), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_made_by_subjects_is_known_and_waited_for() {
    let cluster = Cluster::start().await;
    let (_producer, url) = cluster.producer().await;
    let token = cluster.nats.secrets.token.clone();
    let progress = async |job: &str| {
        let request = reqwest::Client::new().get(format!("{url}/v1/jobs/{job}")).bearer_auth(&token);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    assert_eq!(progress("none").await.0, 404);
    for n in 0..3 {
        publish(&cluster, "tasks.default.square.j-hand", &[("Millpond-Index", &n.to_string())], "12").await;
    }
    publish(&cluster, "later.default.square.j-later", &[("Millpond-At", "2100-01-01T00:00:00Z")], "12").await;
    publish(&cluster, "tasks.default.fail.j-fails", &[("Millpond-Attempts-Max", "2")], "\"no\"").await;
    // No worker has had any of it, and it is known.
    for (job, kind) in [("hand", "square"), ("later", "square"), ("fails", "fail")] {
        let (status, answer) = progress(job).await;
        assert_eq!((status, &answer["state"], &answer["kind"]), (200, &json!("session"), &json!(kind)), "{answer}");
        let shown = cluster.get(&format!("/api/v1/jobs/{job}"), &[]).await.unwrap();
        assert_eq!((&shown["state"], &shown["ended"]), (&json!("session"), &json!(false)), "{shown}");
    }
    let mut waits = cluster.started(&["job", "wait", "hand"]);
    let early = cluster.started(&["job", "wait", "hand", "--timeout", "1s"]).wait_with_output().await.unwrap();
    assert!(String::from_utf8_lossy(&early.stderr).contains("is session after 1s"), "{early:?}");
    assert!(waits.try_wait().unwrap().is_none(), "it waits for a worker");
    let _worker = cluster.worker("w1", &[], None);
    let ended = tokio::time::timeout(PATIENCE, waits.wait_with_output()).await.unwrap().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    let failed = cluster.started(&["job", "wait", "fails"]).wait_with_output().await.unwrap();
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let shown = cluster.get("/api/v1/jobs/hand", &[]).await.unwrap();
    assert_eq!((&shown["done"], &shown["ended"]), (&json!(3), &json!(true)), "{shown}");
    assert_eq!(progress("hand").await.1["published"], 3);
    let none = cluster.started(&["job", "wait", "later", "--timeout", "1s"]).wait_with_output().await.unwrap();
    assert!(!none.status.success(), "one task of it is still to come: {none:?}");
    let cancelled = cluster.started(&["job", "cancel", "later"]).wait_with_output().await.unwrap();
    assert!(cancelled.status.success(), "{cancelled:?}");
    assert_eq!(progress("later").await.1["state"], "cancelled");
}

/// A way to nats-server that loses what the server sends, and then breaks: what was on its way when a connection ends.
struct LossyLink {
    port: u16,
    is_losing: Arc<AtomicBool>,
    broken: Arc<Notify>,
    _links: JoinSet<()>,
}

impl LossyLink {
    async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (is_losing, broken) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
        let (losing, breaks) = (is_losing.clone(), broken.clone());
        let mut links = JoinSet::new();
        links.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                let (losing, breaks) = (losing.clone(), breaks.clone());
                open.spawn(async move {
                    tokio::select! {
                        () = pass(client, server, &losing) => {}
                        () = breaks.notified() => {}
                    }
                });
            }
        });
        Self { port, is_losing, broken, _links: links }
    }

    /// From now on nothing of what the server sends arrives.
    fn lose(&self) {
        self.is_losing.store(true, Ordering::SeqCst);
    }

    /// Ends all connections; the next ones lose nothing.
    fn break_up(&self) {
        self.is_losing.store(false, Ordering::SeqCst);
        self.broken.notify_waiters();
    }
}

/// Passes on what both say until one of them ends, without what the server says while this loses it.
async fn pass(client: TcpStream, server: TcpStream, is_losing: &AtomicBool) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let answers = async {
        let mut buffer = vec![0; 64 * 1024];
        // What has lost something is never whole again.
        let mut has_lost = false;
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            has_lost |= is_losing.load(Ordering::SeqCst);
            if !has_lost && to_client.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        () = answers => {}
    }
}

/// Results that were delivered on a connection that has ended never arrive: they are read again, in the middle of a job and at
/// its end, by who reads the stream (a job of many items) and by who hears it (a job of few).
#[tokio::test(flavor = "multi_thread")]
async fn results_that_were_lost_on_their_way_are_read_again() {
    let cluster = Cluster::start().await;
    let _workers = [cluster.worker("w1", &[], None), cluster.worker("w2", &[], None)];
    let link = LossyLink::start(cluster.nats.port).await;
    for items in [400_u64, 20_000] {
        let job = format!("of-{items}");
        let mut map = cluster.command(&["map", "square", "-", "--job", &job, "--batch", "1"]);
        map.env("MILLPOND_NATS_URL", cluster.nats.secrets.nats_url("client", link.port));
        map.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut map = tokio::process::Command::from(map).kill_on_drop(true).spawn().unwrap();
        let mut input = map.stdin.take().unwrap();
        let mut running = JoinSet::new();
        running.spawn(map.wait_with_output());
        let values: Vec<u64> = (0..items).collect();
        for part in values.chunks(values.len().div_ceil(LOSSES)) {
            let lines: String = part.iter().map(|n| format!("{n}\n")).collect();
            input.write_all(lines.as_bytes()).await.unwrap();
            // A job that has not begun is another matter.
            until("some ends", PATIENCE, async || {
                let found = cluster.get(&format!("/api/v1/jobs/{job}"), &[]).await?;
                (found["done"].as_u64()? > 0).then_some(())
            })
            .await;
            // Anywhere in the part.
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..100))).await;
            link.lose();
            // Shorter than any watch for a connection that is silent.
            tokio::time::sleep(Duration::from_millis(100)).await;
            link.break_up();
        }
        drop(input);
        let ended = tokio::time::timeout(PATIENCE, running.join_next()).await;
        let output = ended.unwrap_or_else(|_| panic!("{job} does not end")).unwrap().unwrap().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        assert!(lines.lines().eq((0..items).map(|n| (n * n).to_string())), "{job}: every result once, in order");
    }
}

//! Bounded queues: never one too many, whoever publishes and whatever happens; publishers block, and go on.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use millpond::bus::topology::stream_state;
use millpond::bus::{Bus, Role};
use millpond::wire::streams::STREAM_TASKS;
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, Process, output, until};

async fn cli(cluster: &Cluster, arguments: &[&str]) -> Output {
    output(cluster.command(arguments)).await
}

async fn limit(cluster: &Cluster, queue: &str, max: u64) {
    // The collector may still be starting.
    until("a limit", PATIENCE, async || {
        let set = cli(cluster, &["queue", "set", queue, "--max-waiting", &max.to_string()]).await;
        set.status.success().then_some(())
    })
    .await;
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// All that lies in TASKS: in these tests, the tasks of one queue.
async fn waiting(bus: &Bus) -> u64 {
    stream_state(bus, STREAM_TASKS).await.unwrap().messages
}

async fn waiting_is(bus: &Bus, wanted: u64) {
    let mut last = 0;
    let found = tokio::time::timeout(PATIENCE, async {
        while last != wanted {
            last = waiting(bus).await;
        }
    });
    assert!(found.await.is_ok(), "{last} wait, not {wanted}");
}

/// A file with this many naps, in seconds.
fn naps(dir: &tempfile::TempDir, count: u64) -> PathBuf {
    let path = dir.path().join(format!("naps-{count}"));
    let line = |n: u64| format!("{}\n", 0.02 + 0.01 * (n % 4) as f64);
    std::fs::write(&path, (0..count).map(line).collect::<String>()).unwrap();
    path
}

fn quiet(command: &mut Command) -> Process {
    Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_producers_never_have_more_than_ten_waiting() {
    const EACH: u64 = 30;
    let cluster = Cluster::start().await;
    let bus = cluster.nats.bus(Role::Client).await;
    limit(&cluster, "ten", 10).await;
    let dir = tempfile::tempdir().unwrap();
    let input = naps(&dir, EACH);
    let _worker = cluster.worker("w1", &["--queues", "ten", "--slots", "2", "--io-slots", "2"], None);
    let jobs: Vec<String> = (0..8).map(|n| format!("p{n}")).collect();
    let mut producers: Vec<Process> = Vec::new();
    for (n, job) in jobs.iter().enumerate() {
        let mut arguments = vec!["map", "sleep", input.to_str().unwrap(), "--queue", "ten", "--job", job];
        // Most only publish; some also wait for the results.
        arguments.extend((n < 6).then_some("--no-wait"));
        producers.push(quiet(&mut cluster.command(&arguments)));
    }
    let over = AtomicBool::new(false);
    let sampled = async {
        let (mut most, mut samples) = (0, 0_u64);
        while !over.load(Ordering::Relaxed) {
            most = most.max(waiting(&bus).await);
            samples += 1;
        }
        (most, samples)
    };
    let joined = async {
        let mut arguments = vec!["job", "wait"];
        arguments.extend(jobs.iter().map(String::as_str));
        let joined = cli(&cluster, &arguments).await;
        over.store(true, Ordering::Relaxed);
        joined
    };
    let ((most, samples), joined) = tokio::join!(sampled, joined);
    assert!(joined.status.success(), "{}", said(&joined));
    println!("{samples} samples, at most {most} waited");
    assert!(most > 5 && most <= 10, "{samples} samples, at most {most} waited");
    for (job, producer) in jobs.iter().zip(&mut producers) {
        let ends = cluster.job_ends(job, EACH, PATIENCE).await;
        assert!(ends.iter().all(|end| end["status"] == "done"), "{job}");
        assert!(producer.end(PATIENCE).await.success(), "{job}");
    }
}

/// A producer whose input comes line by line.
struct Feed {
    child: Child,
}

impl Feed {
    fn start(cluster: &Cluster, arguments: &[&str]) -> Self {
        let mut command = cluster.command(arguments);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { child }
    }

    fn lines(&mut self, count: usize) {
        self.child.stdin.as_mut().unwrap().write_all("1\n".repeat(count).as_bytes()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_set_raised_and_removed_while_a_producer_runs() {
    let cluster = Cluster::start().await;
    let bus = cluster.nats.bus(Role::Client).await;
    let mut feed = Feed::start(&cluster, &["map", "square", "-", "--no-wait", "--queue", "q", "--job", "fed"]);
    feed.lines(50);
    waiting_is(&bus, 50).await;
    limit(&cluster, "q", 150).await;
    // It hears of the limit within a second; the limit is two seconds away.
    let mut fed = 50;
    until("200 more lines", PATIENCE, async || {
        feed.lines(1);
        fed += 1;
        (fed == 250).then_some(())
    })
    .await;
    waiting_is(&bus, 150).await;
    let listed = cli(&cluster, &["queue", "ls", "--json"]).await;
    let row: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&row["queue"], &row["waiting"], &row["max_waiting"]), (&json!("q"), &json!(150), &json!(150)));
    let shown = cluster.get("/api/v1/jobs/fed", &[]).await.unwrap();
    assert_eq!((&shown["state"], &shown["total"]), (&json!("open"), &Value::Null));
    limit(&cluster, "q", 170).await;
    waiting_is(&bus, 170).await;
    let removed = cli(&cluster, &["queue", "set", "q", "--unlimited"]).await;
    assert!(removed.status.success(), "{}", said(&removed));
    waiting_is(&bus, 250).await;
    drop(feed.child.stdin.take());
    assert!(feed.child.wait().unwrap().success());
    // In a bounded queue each task is a message, also where tasks are short.
    limit(&cluster, "q", 200).await;
    let _worker = cluster.worker("w1", &["--queues", "q"], None);
    let quick = cli(&cluster, &["map", "square", "--range", "1..=300", "--queue", "q", "--job", "quick"]).await;
    assert!(quick.status.success(), "{}", said(&quick));
    assert!(cli(&cluster, &["job", "wait", "fed", "quick"]).await.status.success());
    cluster.job_ends("fed", 250, PATIENCE).await;
    cluster.job_ends("quick", 300, PATIENCE).await;
    let rows = cluster.get("/api/v1/tasks", &[("job", "quick".into()), ("limit", "1000".into())]).await.unwrap();
    assert_eq!(rows["rows"].as_array().unwrap().len(), 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_answers_429_while_a_queue_is_full() {
    let cluster = Cluster::start().await;
    let (_producer, url) = cluster.producer().await;
    limit(&cluster, "default", 3).await;
    let http = reqwest::Client::new();
    let post = async |key: &str, body: &'static str, more: &[(&'static str, &str)]| {
        let path = if more.is_empty() { "tasks/default/square" } else { "jobs/default/square?batch=auto" };
        let path = if key == "batch" { "jobs/default/square?batch=5" } else { path };
        let mut request = http.post(format!("{url}/v1/{path}")).body(body);
        request = request.bearer_auth(&cluster.nats.secrets.token).header("Idempotency-Key", key);
        let request = more.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let answer = request.send().await.unwrap();
        let retry = answer.headers().get("Retry-After").map(|v| v.to_str().unwrap().to_owned());
        (answer.status().as_u16(), retry, answer.json::<Value>().await.unwrap())
    };
    for key in ["a", "b", "c"] {
        assert_eq!(post(key, "2", &[]).await.0, 202);
    }
    let (status, retry, said) = post("d", "2", &[]).await;
    assert_eq!((status, retry.as_deref()), (429, Some("1")), "{said}");
    assert!(said["error"].as_str().unwrap().contains("queue default is full: 3 tasks may wait"), "{said}");
    // What is stored already is no news, however full it is.
    let (status, _, said) = post("c", "2", &[]).await;
    assert_eq!((status, &said["duplicate"]), (202, &json!(true)), "{said}");
    let lines = [("Content-Type", "application/x-ndjson")];
    let (status, _, said) = post("batch", "1\n2\n", &lines).await;
    assert_eq!(status, 400, "{said}");
    assert!(said["error"].as_str().unwrap().contains("one task per message"), "{said}");
    let _worker = cluster.worker("w1", &[], None);
    // It comes again, as it was told to.
    let stored = until("room", PATIENCE, async || {
        let (status, _, said) = post("d", "2", &[]).await;
        (status == 202).then_some(said)
    });
    assert_eq!(stored.await["id"], "d");
    let (status, _, said) = post("many", "1\n2\n3\n4\n5\n6\n7\n8\n", &lines).await;
    assert_eq!((status, &said["tasks"]), (202, &json!(8)), "{said}");
    for key in ["a", "b", "c", "d"] {
        assert_eq!(cluster.ended(key).await["status"], "done");
    }
    cluster.job_ends("many", 8, PATIENCE).await;
    // Settings that make no sense are refused with words.
    for body in [json!({ "max_waiting": 0 }), json!({ "max_waiting": "ten" }), json!({})] {
        let answer = cluster.api.post::<Value>("/api/v1/queues/default/set", &body).await;
        assert!(answer.unwrap_err().to_string().contains("max_waiting"));
    }
    assert_eq!(cli(&cluster, &["queue", "set", "default"]).await.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_blocks_while_a_queue_is_full_and_goes_on() {
    let cluster = Cluster::start().await;
    limit(&cluster, "default", 2).await;
    for id in ["a", "b"] {
        assert!(cli(&cluster, &["submit", "square", "3", "--id", id]).await.status.success());
    }
    let full = cli(&cluster, &["submit", "square", "3", "--wait-capacity", "0s"]).await;
    assert_eq!(full.status.code(), Some(75), "{}", said(&full));
    assert!(said(&full).contains("queue default is full"), "{}", said(&full));
    let batch = cli(&cluster, &["map", "square", "--range", "1..=10", "--batch", "5", "--job", "refused"]).await;
    assert_eq!(batch.status.code(), Some(70));
    assert!(said(&batch).contains("bounded to 2 waiting tasks"), "{}", said(&batch));
    assert!(cluster.get("/api/v1/jobs/refused", &[]).await.is_none());
    // What waits for its time, and what goes to another queue, is not held up.
    assert!(cli(&cluster, &["submit", "square", "3", "--delay", "1h"]).await.status.success());
    assert!(cli(&cluster, &["submit", "square", "3", "--queue", "other"]).await.status.success());
    let dir = tempfile::tempdir().unwrap();
    let told = dir.path().join("told");
    let mut blocked = cluster.command(&["submit", "square", "3", "--id", "c"]);
    let mut blocked = Process::start(blocked.stdout(Stdio::null()).stderr(std::fs::File::create(&told).unwrap()));
    let mut waiting = quiet(&mut cluster.command(&["submit", "square", "3", "--id", "d", "--wait"]));
    until("a word on the full queue", PATIENCE, async || {
        let told = std::fs::read_to_string(&told).unwrap();
        told.contains("queue default is full: 2 tasks wait of at most 2").then_some(())
    })
    .await;
    assert!(blocked.ended().is_none() && waiting.ended().is_none());
    let _worker = cluster.worker("w1", &[], None);
    assert!(blocked.end(PATIENCE).await.success());
    assert!(waiting.end(PATIENCE).await.success());
    assert_eq!(std::fs::read_to_string(&told).unwrap().lines().count(), 1);
    for id in ["a", "b", "c", "d"] {
        assert_eq!(cluster.ended(id).await["result"], 9);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_dies_while_it_is_blocked_leaves_a_job_that_can_go_on() {
    let cluster = Cluster::start().await;
    let bus = cluster.nats.bus(Role::Client).await;
    let (_producer, url) = cluster.producer().await;
    limit(&cluster, "default", 5).await;
    let mut feed = Feed::start(&cluster, &["map", "square", "-", "--no-wait", "--job", "cut"]);
    feed.lines(20);
    waiting_is(&bus, 5).await;
    feed.child.kill().unwrap();
    feed.child.wait().unwrap();
    let _worker = cluster.worker("w1", &[], None);
    waiting_is(&bus, 0).await;
    let early = cli(&cluster, &["job", "wait", "cut", "--timeout", "100ms"]).await;
    assert_eq!(early.status.code(), Some(70), "{}", said(&early));
    let stalled = cli(&cluster, &["job", "wait", "cut"]).await;
    assert_eq!(stalled.status.code(), Some(5), "{}", said(&stalled));
    assert!(said(&stalled).contains("is stalled") && said(&stalled).contains("5 of 5 tasks"), "{}", said(&stalled));
    let shown = cluster.get("/api/v1/jobs/cut", &[]).await.unwrap();
    assert_eq!((&shown["state"], &shown["done"]), (&json!("stalled"), &json!(5)));
    // The same input under the same name completes it, through the same bounded queue.
    let request = reqwest::Client::new().post(format!("{url}/v1/jobs/default/square")).body("1\n".repeat(20));
    let request = request.bearer_auth(&cluster.nats.secrets.token).header("Idempotency-Key", "cut");
    let answer = request.header("Content-Type", "application/x-ndjson").send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 202, "{}", answer.text().await.unwrap());
    let joined = cli(&cluster, &["job", "wait", "cut"]).await;
    assert!(joined.status.success(), "{}", said(&joined));
    cluster.job_ends("cut", 20, PATIENCE).await;
}

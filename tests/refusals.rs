//! Permanent refusals are not passing ones: what a worker publishes fits, and what the server refuses all the same ends as a smaller
//! dead letter or outcome. A handler never runs again because of what its failure said.

use std::path::Path;
use std::time::Duration;

use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Cluster, PATIENCE, Process, task, until};

const BAD: &str = r#"
import json, sys
for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    print(task["id"], file=open("runs", "a"))
    c = task["args"]
    for _ in range(8):
        print(c * 1000, file=sys.stderr, flush=True)
    error = {"type": "ValueError" + c * 100, "message": "bad packet " + c * 2000, "traceback": c * 8000}
    print(json.dumps({"error": error, "retry": False}), flush=True)
"#;
const ROWS: &str = r#"
import json, sys
runs = open("runs", "a")
for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    n = task["args"]
    print(n, file=runs, flush=True)
    if n % 20:
        error = {"type": "ValueError", "message": "bad row %d%s" % (n, " x" * 900), "traceback": '  File "framework.py", line 1\n' * 280}
        print(json.dumps({"error": error, "retry": False}), flush=True)
    else:
        print(json.dumps({"ok": "x" * 2000}), flush=True)
"#;

fn handlers(script: &str, table: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("bad.py"), script).unwrap();
    let table = format!("[bad]\ncommand = [\"python3\", \"bad.py\"]\n{table}");
    std::fs::write(dir.path().join("handlers.toml"), table).unwrap();
    dir
}

fn worker(cluster: &Cluster, dir: &TempDir) -> Process {
    cluster.worker("w1", &["--handlers", dir.path().join("handlers.toml").to_str().unwrap()], None)
}

/// How often each task or item ran.
fn runs(dir: &Path) -> Vec<String> {
    let mut runs: Vec<String> =
        std::fs::read_to_string(dir.join("runs")).unwrap_or_default().lines().map(str::to_owned).collect();
    runs.sort();
    runs
}

/// Sets the largest message of a stream, as an operator may.
async fn set_largest(cluster: &Cluster, stream: &str, bytes: i32) {
    let (address, password) = (cluster.nats.url("setup"), cluster.nats.secrets.passwords["setup"].clone());
    let options = async_nats::ConnectOptions::with_user_and_password("setup".into(), password);
    let address = format!("nats://{}", address.rsplit_once('@').unwrap().1);
    let client = options.custom_inbox_prefix("_INBOX_setup").connect(address).await.unwrap();
    let js = async_nats::jetstream::new(client);
    let mut config = js.get_stream(stream).await.unwrap().cached_info().config.clone();
    config.max_message_size = bytes;
    js.update_stream(config).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_control_characters_is_one_run_and_one_dead_letter() {
    let cluster = Cluster::start().await;
    let dir = handlers(BAD, "io = true\n");
    let _worker = worker(&cluster, &dir);
    let ids = ["letters", "zeros", "escapes", "quotes", "crabs"];
    for (id, c) in ids.into_iter().zip([r#""a""#, r#""\u0000""#, r#""\u001b""#, r#""\"""#, r#""🦀""#]) {
        let task = NewTask { id: Some(id.into()), ..task("bad", c) };
        cluster.client.submit(&task, RetryDeadline::Unlimited).await.unwrap();
    }
    for id in ids {
        let ended = cluster.ended(id).await;
        assert_eq!((&ended["dead"]["reason"], &ended["attempt"]), (&json!("fatal"), &json!(1)), "{id}");
        let failure = &ended["dead"]["failure"];
        assert!(failure["message"].as_str().unwrap().starts_with("bad packet "), "{failure}");
        assert!(
            !failure["child"]["log"].as_array().unwrap().is_empty() && failure["traceback"].is_string(),
            "{failure}"
        );
    }
    let mut expected = ids.map(str::to_owned);
    expected.sort();
    assert_eq!(runs(dir.path()), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_many_failures_ends_with_each_item_run_once() {
    let cluster = Cluster::start().await;
    let dir = handlers(ROWS, "");
    let _worker = worker(&cluster, &dir);
    let numbers: String = (0..2000).map(|n| format!("{n}\n")).collect();
    std::fs::write(dir.path().join("numbers"), numbers).unwrap();
    let input = dir.path().join("numbers");
    let mut map =
        cluster.command(&["map", "bad", input.to_str().unwrap(), "--job", "rows", "--batch", "1000", "--no-wait"]);
    assert!(map.output().unwrap().status.success());
    let ends = cluster.job_ends("rows", 2000, Duration::from_secs(60)).await;
    for (n, end) in ends.iter().enumerate() {
        let done = if n % 20 == 0 { "done" } else { "dead" };
        assert_eq!(end["status"], done, "{end}");
        let message = end["failure"]["message"].as_str().unwrap_or_default();
        assert!(n % 20 == 0 || message.starts_with(&format!("bad row {n} ")), "{end}");
    }
    let ran = runs(dir.path());
    let mut once = ran.clone();
    once.dedup();
    assert_eq!((ran.len(), once.len()), (2000, 2000), "each item runs once");
}

/// An attempt publishes the next step of its chain with its result, which does not fit: the step is a dead letter, and the attempt's
/// own end stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_next_step_that_is_too_large_is_a_dead_letter_and_no_handler_runs_again() {
    let cluster = Cluster::start().await;
    set_largest(&cluster, "DUE", 3000).await;
    let _worker = cluster.worker("w1", &[], None);
    let large = format!("\"{}\"", "y".repeat(5000));
    let continuation = vec!["square".parse().unwrap()];
    let first = NewTask { id: Some("first".into()), continuation, ..task("echo", &large) };
    cluster.client.submit(&first, RetryDeadline::Unlimited).await.unwrap();
    let done = cluster.ended("first").await;
    assert_eq!((&done["status"], &done["attempt"]), (&json!("done"), &json!(1)), "{done}");
    let next = cluster.ended("first/default.echo/then").await;
    assert_eq!((&next["status"], &next["dead"]["reason"]), (&json!("dead"), &json!("refused")), "{next}");
    let message = next["dead"]["failure"]["message"].as_str().unwrap();
    assert!(message.contains("too large"), "{message}");
    assert_eq!(next["dead"]["payload"].as_str().map(str::len), Some(5000), "it keeps the result: {next}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_streams_refuse_for_good_becomes_smaller_and_no_handler_runs_again() {
    let cluster = Cluster::start().await;
    set_largest(&cluster, "DEAD", 3000).await;
    set_largest(&cluster, "RESULTS", 3000).await;
    let dir = handlers(BAD, "");
    let _worker = worker(&cluster, &dir);
    // A dead letter whose evidence is too large, one whose arguments are as well, and a result.
    let large = format!("\"{}\"", "y".repeat(5000));
    let wide = format!("{{\"how\":\"fatal\",\"value\":{large}}}");
    for (id, kind, arguments) in
        [("evidence", "bad", r#""a""#), ("arguments", "fail", &wide), ("result", "echo", &large)]
    {
        let task = NewTask { id: Some(id.into()), ..task(kind, arguments) };
        cluster.client.submit(&task, RetryDeadline::Unlimited).await.unwrap();
    }
    for id in ["evidence", "arguments"] {
        let ended = cluster.ended(id).await;
        let message = ended["dead"]["failure"]["message"].as_str().unwrap();
        assert!(message.contains("the rest is not kept") && ended["attempt"] == 1, "{ended}");
    }
    assert_eq!(cluster.ended("arguments").await["dead"]["ref"]["size"], wide.len());
    let done = cluster.ended("result").await;
    assert_eq!((&done["ref"]["size"], &done["attempt"]), (&json!(large.len()), &json!(1)), "{done}");
    let fetched = cluster.command(&["task", "result", "result"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&fetched.stdout).trim_end(), large);
    assert_eq!(runs(dir.path()), ["evidence"]);
    let (_producer, _) = cluster.producer().await;
    // A dead letter that is smaller than it was can run again, with what it had.
    set_largest(&cluster, "DEAD", -1).await;
    assert!(cluster.command(&["dead", "retry", "arguments"]).output().unwrap().status.success());
    let again = until("the second attempt", PATIENCE, async || {
        let task = cluster.get("/api/v1/task", &[("id", "arguments".to_owned())]).await?;
        (task["attempt"] == 2 && task["dead"].is_object()).then_some(task)
    })
    .await;
    assert_eq!(again["dead"]["ref"]["size"], wide.len(), "{again}");
}

//! docs/handlers.md: its examples, taken out of the page as they stand, run and do what it says.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use millpond::bus::publish::RetryDeadline;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, task, text};

/// The files that the page names: `<!-- file: NAME -->`, then a fenced block.
fn files() -> Vec<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/handlers.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mut lines = page.lines();
    let mut files = Vec::new();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("<!-- file: ").and_then(|rest| rest.strip_suffix(" -->")) else { continue };
        assert!(lines.next().unwrap().starts_with("```"), "{name} is a fenced block");
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        assert!(block.len() < 25, "{name} is short");
        files.push((name.to_owned(), format!("{}\n", block.join("\n"))));
    }
    files
}

/// Whether the program is there; says so when it is not.
fn there(program: &str, arguments: &[&str]) -> bool {
    let found = Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success());
    if !found {
        println!("{program} is not on PATH: its part of docs/handlers.md is not tried");
    }
    found
}

async fn run(cluster: &Cluster, kind: &str, arguments: &str) -> Value {
    let id = cluster.client.submit(&task(kind, arguments), RetryDeadline::Unlimited).await.unwrap().id;
    cluster.ended(&id).await
}

/// A task with an error that is not tried again; its failure.
async fn fails(cluster: &Cluster, kind: &str, arguments: &str) -> Value {
    let ended = run(cluster, kind, arguments).await;
    assert_eq!(
        (&ended["status"], &ended["attempt"], &ended["dead"]["reason"]),
        (&json!("dead"), &json!(1), &json!("fatal"))
    );
    ended["dead"]["failure"].clone()
}

/// A language whose handler takes square roots: results, then errors with type, message and traceback.
async fn takes_roots(cluster: &Cluster, kind: &str, failure_type: &str, place: &str) {
    for (arguments, root) in [("16", 4.0), ("2.25", 1.5)] {
        let ended = run(cluster, kind, arguments).await;
        assert_eq!(ended["result"].as_f64(), Some(root), "{ended}");
    }
    let failure = fails(cluster, kind, "-1").await;
    assert_eq!(failure["type"], failure_type, "{failure}");
    assert_eq!(failure["message"], "no square root of -1", "{failure}");
    let traceback = text(&failure, "traceback");
    assert!(traceback.contains(place), "{kind}: {traceback}");
    assert_eq!(failure["child"]["name"], format!("w1/{kind}-1"));
    // It goes on after an error, and arguments that do not fit are one.
    fails(cluster, kind, "\"four\"").await;
    assert_eq!(run(cluster, kind, "9").await["result"].as_f64(), Some(3.0));
}

async fn counts_words(cluster: &Cluster) {
    assert_eq!(run(cluster, "words", r#""to be or not to be""#).await["result"], 6);
    let failure = fails(cluster, "words", "12").await;
    assert_eq!((&failure["type"], &failure["child"]["exit_code"]), (&json!("exit"), &json!(65)));
    assert!(text(&failure, "message").contains("not a text: 12"), "{failure}");
    let log: Vec<&str> = failure["child"]["log"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(log[0].starts_with("attempt 1 of ") && log.len() == 2, "{log:?}");
}

async fn sums(cluster: &Cluster) {
    let mut pipe = cluster.client.pipe("default", "sum", "null", PATIENCE).await.unwrap();
    for (n, sum) in [("40", "40 so far"), ("2", "42 so far")] {
        pipe.send(n).await.unwrap();
        assert_eq!(pipe.recv().await.unwrap().unwrap(), sum);
    }
    pipe.close().await.unwrap();
    assert_eq!(pipe.recv().await.unwrap().unwrap(), "42 in all");
    assert_eq!(pipe.recv().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_the_page_run() {
    let dir = tempfile::tempdir().unwrap();
    let files = files();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["ten.py", "handlers.toml", "sum.sh", "root.py", "root.mjs", "root.go", "words.sh", "profile.sh"]
    );
    for (name, text) in &files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let (python, node) = (there("python3", &["--version"]), there("node", &["--version"]));
    let (go, sh) = (there("go", &["version"]), there("sh", &["-c", "true"]));
    if go {
        let built =
            Command::new("go").args(["build", "-o", "root", "root.go"]).current_dir(dir.path()).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    }
    let cluster = Cluster::start().await;
    let handlers = dir.path().join("handlers.toml");
    let mut worker = cluster.worker("w1", &["--handlers", handlers.to_str().unwrap()], None);
    let mut leave = Vec::new();
    if python {
        assert_eq!(run(&cluster, "ten", "[1, 2, 4]").await["result"], 7);
        assert_eq!(fails(&cluster, "ten", "5").await["type"], "TypeError");
        takes_roots(&cluster, "root_py", "ValueError", "root.py").await;
        leave.push("python leaves");
    }
    if node {
        takes_roots(&cluster, "root_node", "RangeError", "root.mjs").await;
        leave.push("node leaves");
    }
    if go {
        takes_roots(&cluster, "root_go", "panic", "squareRoot").await;
        leave.push("go leaves");
    }
    if sh {
        counts_words(&cluster).await;
        sums(&cluster).await;
    }
    // In order: each handler reaches its last line, and nothing has to be asked twice.
    worker.signal(Signal::SIGTERM);
    assert!(worker.end(Duration::from_secs(10)).await.success());
    let log = cluster.log("w1");
    for line in leave {
        assert_eq!(log.matches(line).count(), 1, "{line}: {log}");
    }
    assert!(log.contains("worker drained"), "{log}");
}

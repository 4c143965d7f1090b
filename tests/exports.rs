//! Lists of the collector, filtered, and as downloads: whole, in order, and no faster than they are read.

use std::time::Duration;

use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use serde_json::Value;

use crate::collector_http::{Caller, refused};
use crate::harness::{Cluster, PATIENCE, output, task, until};

/// Exports that are under way at once (docs/http.md).
const EXPORTS_MAX: usize = 16;

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_and_exported_whole() {
    const TASKS: usize = 2300;
    let cluster = Cluster::start().await;
    let caller = Caller::of(&cluster).await;
    let _worker = cluster.worker("w1", &[], None);
    let before = millpond::now_ms();
    let range = format!("0..{TASKS}");
    let run = async |arguments: &[&str]| {
        let command = cluster.command(arguments);
        output(command).await
    };
    assert!(run(&["map", "square", "--range", &range, "--batch", "1", "--job", "m"]).await.status.success());
    cluster.job_ends("m", TASKS as u64, PATIENCE).await;
    let dying = NewTask { id: Some("dies".into()), attempts_max: Some(1), ..task("fail", r#""no""#) };
    cluster.client.submit(&dying, RetryDeadline::Unlimited).await.unwrap();
    cluster.ended("dies").await;
    let after = millpond::now_ms() + 1;
    let export = async |path: &str| {
        let answer = caller.get(path).bearer_auth(&cluster.nats.secrets.viewer_token).send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["content-type"]),
            (200, &"application/x-ndjson".parse().unwrap())
        );
        let name = answer.headers()["content-disposition"].to_str().unwrap().to_owned();
        let text = answer.text().await.unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        (name, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>())
    };
    let (name, tasks) = export("/api/v1/tasks.ndjson").await;
    assert_eq!((name.as_str(), tasks.len()), ("attachment; filename=\"tasks.ndjson\"", TASKS + 1));
    let mut listed = Vec::new();
    let limit = [("limit", "999".to_owned())];
    let each = cluster.api.each("/api/v1/tasks", &limit, async |row: Value| {
        listed.push(row);
        Ok(())
    });
    each.await.unwrap();
    assert_eq!(tasks, listed, "the rows of the list, in its order");
    let since = |ms: i64| jiff::Timestamp::from_millisecond(ms).unwrap().to_string();
    for (query, wanted) in [
        ("?status=dead".to_owned(), 1),
        ("?error=NO".to_owned(), 1),
        ("?error=yes".to_owned(), 0),
        ("?job=m&status=done".to_owned(), TASKS),
        ("?kind=fail&worker=w1".to_owned(), 1),
        (format!("?since={before}&until={after}"), TASKS + 1),
        (format!("?until={before}"), 0),
        (format!("?since={}", since(after)), 0),
        (format!("?until={}", since(after)), TASKS + 1),
        ("?queue=other".to_owned(), 0),
    ] {
        assert_eq!(export(&format!("/api/v1/tasks.ndjson{query}")).await.1.len(), wanted, "{query}");
    }
    let (name, ends) = export("/api/v1/jobs/m/results.ndjson").await;
    assert_eq!(name, "attachment; filename=\"m.ndjson\"");
    assert!(ends.iter().enumerate().all(|(n, end)| end["index"] == n && end["result"] == n * n) && ends.len() == TASKS);
    assert_eq!(export("/api/v1/dead.ndjson?reason=exhausted").await.1.len(), 1);
    assert_eq!(export("/api/v1/dead.ndjson?kind=square").await.1.len(), 0);
    for path in [
        "/tasks.ndjson?limit=5",
        "/tasks.ndjson?status=gone",
        "/dead.ndjson?since=noon",
        "/jobs/a.b/results.ndjson",
        "/tasks?after=41",
        "/jobs?after=1800000000000.41",
    ] {
        let request = caller.get(&format!("/api/v1{path}")).bearer_auth(&cluster.nats.secrets.token);
        assert_eq!(refused(request).await.0, 400, "{path}");
    }
    // The command line has the same words.
    let lines = |output: &std::process::Output| {
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lines(&run(&["task", "export"]).await).len(), TASKS + 1);
    let dead = lines(&run(&["task", "export", "--status", "dead", "--kind", "fail", "--since", "1h"]).await);
    assert_eq!(serde_json::from_str::<Value>(&dead[0]).unwrap()["id"], "dies");
    let table = run(&["task", "ls", "--job", "m", "--limit", "20"]).await;
    assert_eq!(lines(&table).len(), 21, "a heading, and the newest");
    assert!(String::from_utf8_lossy(&table.stderr).contains("--limit"), "there are more");
    let newest = lines(&run(&["task", "ls", "--json", "--limit", "2", "--until", &after.to_string()]).await);
    assert!(tasks.is_sorted_by_key(|task| std::cmp::Reverse(task["published_ms"].as_i64())), "the newest first");
    assert_eq!(newest.iter().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>(), tasks[..2]);
    assert!(!run(&["task", "ls", "--since", "noon"]).await.status.success());
    assert_eq!(run(&["task", "ls", "--status", "gone"]).await.status.code(), Some(2));
    let jobs = |output: std::process::Output| lines(&output).len();
    assert_eq!(jobs(run(&["job", "ls", "--json", "--name", "m", "--status", "finished"]).await), 1);
    assert_eq!(jobs(run(&["job", "ls", "--json", "--status", "open"]).await), 0);
    // Jobs by name and state.
    for (query, wanted) in
        [("name=m", 1), ("name=n", 0), ("state=finished", 1), ("state=open", 0), ("name=m&state=finished&limit=1", 1)]
    {
        let request = caller.get(&format!("/api/v1/jobs?{query}")).bearer_auth(&cluster.nats.secrets.token);
        let found: Value = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(found["rows"].as_array().unwrap().len(), wanted, "{query}: {found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_nobody_reads_waits_and_makes_room_when_its_caller_goes() {
    const WIDE: usize = 160;
    const WIDE_BYTES: usize = 200_000;
    let cluster = Cluster::start().await;
    let caller = Caller::of(&cluster).await;
    let _worker = cluster.worker("w1", &[], None);
    // More than what lies between the collector and a caller who does not read.
    let lines = (0..WIDE).map(|_| format!("\"{}\"\n", "x".repeat(WIDE_BYTES))).collect::<String>();
    let mut command = cluster.command(&["map", "echo", "-", "--job", "wide", "--batch", "1"]);
    let mut child = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), lines.as_bytes()).unwrap();
    assert!(tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap().success());
    cluster.job_ends("wide", WIDE as u64, PATIENCE).await;
    let open = || caller.get("/api/v1/jobs/wide/results.ndjson").bearer_auth(&cluster.nats.secrets.token).send();
    let mut held = Vec::new();
    let full = until("the last place", PATIENCE, async || {
        let answer = open().await.unwrap();
        let full = answer.status() == 429;
        held.push(answer);
        full.then(|| held.pop().unwrap())
    })
    .await;
    assert_eq!((held.len(), &full.headers()["retry-after"]), (EXPORTS_MAX, &"5".parse().unwrap()));
    let mut first = held.swap_remove(0);
    drop(held);
    let again = until("room", PATIENCE, async || {
        let answer = open().await.unwrap();
        (answer.status() == 200).then_some(answer)
    });
    assert_eq!(again.await.text().await.unwrap().lines().count(), WIDE);
    let mut bytes = 0;
    while let Some(chunk) = tokio::time::timeout(Duration::from_secs(30), first.chunk()).await.unwrap().unwrap() {
        bytes += chunk.len();
    }
    assert!(bytes > WIDE * WIDE_BYTES, "who waited gets the whole: {bytes}");
}

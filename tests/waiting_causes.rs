//! Waiting is never silent: each verb that waits prints why nothing moves, and what to do.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use crate::harness::{Cluster, PATIENCE};

/// Starts a verb that is to wait.
fn start(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The first cause that a verb prints; the verb is ended then.
async fn cause(command: Command) -> String {
    let mut verb = start(command);
    let stderr = verb.stderr.take().unwrap();
    let read = move || BufReader::new(stderr).lines().map_while(Result::ok).find(|line| line.contains("still waiting"));
    let found = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(read)).await;
    verb.kill().unwrap();
    verb.wait().unwrap();
    found.expect("it must print why it waits").unwrap().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_verb_that_waits_prints_why_nothing_moves() {
    let mut cluster = Cluster::start().await;
    let ok = async |cluster: &Cluster, arguments: &[&str]| {
        let done = tokio::process::Command::from(cluster.command(arguments)).output().await.unwrap();
        assert!(done.status.success(), "{arguments:?}: {done:?}");
    };
    // Nobody serves the queue.
    ok(&cluster, &["map", "square", "--range", "0..3", "--job", "j", "--no-wait"]).await;
    for verb in [&["submit", "square", "2", "--wait"][..], &["map", "square", "--range", "0..3"], &["job", "wait", "j"]]
    {
        let said = cause(cluster.command(verb)).await;
        assert!(said.contains("no live worker serves queue default"), "{verb:?}: {said}");
        assert!(said.contains("millpond worker run --queues default"), "{verb:?}: {said}");
    }
    // Somebody does, and it is paused.
    let _worker = cluster.worker("w1", &["--retry-delay", "1h", "--retry-delay-max", "1h"], None);
    cluster.worker_is("w1", |_| true).await;
    ok(&cluster, &["queue", "pause", "default"]).await;
    ok(&cluster, &["map", "square", "--range", "0..3", "--job", "k", "--no-wait"]).await;
    let mut quiet = start(cluster.command(&["submit", "square", "3", "--wait", "--quiet"]));
    for verb in [
        &["submit", "square", "2", "--wait"][..],
        &["map", "square", "--range", "0..3"],
        &["xargs", "echo", ":::", "x"],
        &["job", "wait", "k"],
    ] {
        let said = cause(cluster.command(verb)).await;
        assert!(said.contains("queue default is paused; `millpond queue resume default`"), "{verb:?}: {said}");
    }
    ok(&cluster, &["queue", "resume", "default"]).await;
    let mut said = String::new();
    quiet.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(quiet.wait().unwrap().success() && said.is_empty(), "--quiet prints nothing: {said}");
    // What failed waits for its next attempt: the reason of the first is there.
    let said = cause(cluster.command(&["submit", "fail", r#""it does not fit""#, "--wait"])).await;
    assert!(said.contains("attempt 1 failed, error: it does not fit") && said.contains("`millpond why "), "{said}");
    // Nobody knows the kind.
    let said = cause(cluster.command(&["map", "resise", "--range", "0..2"])).await;
    assert!(said.contains("knows kind resise"), "{said}");
    // Nobody tells.
    cluster.collector.kill9();
    let said = cause(cluster.command(&["submit", "sleep", "60", "--wait"])).await;
    assert!(said.contains("the collector does not answer, the cause is not known"), "{said}");
}

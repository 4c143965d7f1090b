//! Several collectors, and their addresses as a list: verbs go on with the next one when the one that they speak to is gone.

use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::harness::{Cluster, PATIENCE, output};
use crate::postgres::{Server, database};

/// Nobody listens there.
const NOBODY: &str = "http://127.0.0.1:1";

async fn at(cluster: &Cluster, addresses: &str, arguments: &[&str]) -> Output {
    let mut command = cluster.command(arguments);
    command.env("MILLPOND_COLLECTOR_URL", addresses);
    output(command).await
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_first_address_is_passed_over_and_the_error_names_all() {
    let mut cluster = Cluster::start().await;
    let list = format!("{NOBODY}, {}/", cluster.collector_url());
    for arguments in
        [&["job", "ls"][..], &["queue", "set", "default", "--unlimited"], &["task", "export"], &["top", "--once"]]
    {
        let done = at(&cluster, &list, arguments).await;
        assert!(done.status.success(), "{arguments:?}: {}", said(&done));
    }
    let doctor = at(&cluster, &list, &["doctor"]).await;
    let found = said(&doctor);
    assert!(doctor.status.success() && found.contains("127.0.0.1:1 does not answer: Connection refused"), "{found}");
    assert!(found.contains("is ready") && found.contains("ok    lag"), "{found}");

    for (wrong, place) in [(format!("{list},"), "address 3 of the list is empty"), (format!("{list},b:1"), "(b:1)")] {
        let refused = at(&cluster, &wrong, &["job", "ls"]).await;
        assert!(refused.status.code() == Some(2) && said(&refused).contains(place), "{}", said(&refused));
    }
    let refused = at(&cluster, "", &["secrets", "d", "--collector", "http://a:1,,http://b:1"]).await;
    assert!(refused.status.code() == Some(2) && said(&refused).contains("address 2"), "{}", said(&refused));

    cluster.collector.kill9();
    let own = cluster.collector_url();
    let own = own.trim_start_matches("http://");
    for arguments in [&["job", "ls"][..], &["queue", "set", "default", "--unlimited"]] {
        let failed = at(&cluster, &list, arguments).await;
        let error = said(&failed);
        assert_eq!(failed.status.code(), Some(69), "{error}");
        assert!(error.contains("no collector answers at 127.0.0.1:1 (Connection refused"), "{error}");
        assert!(error.contains(&format!("), {own}; what")), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_that_follow_go_on_when_the_collector_that_they_speak_to_dies() {
    let Some(postgres) = Server::start() else { return };
    let url = database(&postgres.url());
    let store = [("MILLPOND_COLLECTOR_STORE", url.as_str())];
    let mut cluster = Cluster::start().await;
    cluster.restart_collector_with(&store);
    crate::harness::is_ready(&cluster.collector_url()).await;
    let (_second, other) = cluster.another_collector_url(&store).await;
    let mapped = cluster.command(&["map", "square", "--range", "1..=20", "--job", "j", "--no-wait"]).output().unwrap();
    assert!(mapped.status.success(), "{}", said(&mapped));
    let list = format!("{},{other}", cluster.collector_url());

    let started = |arguments: &[&str]| {
        let mut command = tokio::process::Command::from(cluster.command(arguments));
        command.env("MILLPOND_COLLECTOR_URL", &list).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
    };
    let waiting = started(&["job", "wait", "j"]);
    let mut top = started(&["top", "--json", "--every", "100ms"]);
    let mut lines = BufReader::new(top.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        let shown: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(shown["error"], Value::Null, "{shown}");
        shown
    };
    next().await;
    cluster.collector.kill9();
    for _ in 0..10 {
        assert_eq!(next().await["jobs"][0]["job"], "j");
    }
    let _worker = cluster.worker("w1", &[], None);
    let waited = tokio::time::timeout(PATIENCE, waiting.wait_with_output()).await.unwrap().unwrap();
    assert!(waited.status.success(), "{}", said(&waited));
}

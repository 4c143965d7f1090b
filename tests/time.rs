//! Tasks that wait for their time at the server: nothing of ours has to run meanwhile.

use std::time::Duration;

use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use serde_json::{Value, json};

use crate::harness::{Cluster, output, task};

fn ms(task: &Value, field: &str) -> i64 {
    task[field].as_i64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_task_waits_through_a_restart_of_the_server_and_keeps_its_id() {
    let mut cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let (_producer, _) = cluster.producer().await;
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    let at_ms = millpond::now_ms() + 10_000;
    let later = NewTask { id: Some("later".into()), at_ms: Some(at_ms), ..task("square", "12") };
    cluster.client.submit(&later, RetryDeadline::Unlimited).await.unwrap();
    // The same id again replaces nothing and adds nothing.
    assert!(cluster.client.submit(&later, RetryDeadline::Unlimited).await.unwrap().duplicate);
    let why = cluster.command(&["why", "later"]).output().unwrap();
    assert_eq!(why.status.code(), Some(11), "{}", String::from_utf8_lossy(&why.stdout));
    cluster.nats.restart();
    let ended = cluster.ended("later").await;
    assert_eq!((&ended["status"], &ended["result"], &ended["attempt"]), (&json!("done"), &json!(144), &json!(1)));
    assert!(ms(&ended, "started_ms") >= at_ms, "not before its time: {ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_by_command_line_and_http() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let (_producer, url) = cluster.producer().await;
    let before = millpond::now_ms();
    let waited = cluster.command(&["submit", "square", "5", "--delay", "1500ms", "--wait", "--json"]);
    let waited = output(waited).await;
    let end: Value = serde_json::from_slice(&waited.stdout).unwrap();
    assert_eq!(end["result"], 25);
    assert!(ms(&cluster.ended(end["id"].as_str().unwrap()).await, "started_ms") >= before + 1500);
    let post = async |delay: &str| {
        let request = reqwest::Client::new().post(format!("{url}/v1/tasks/default/square")).body("6");
        let request = request.bearer_auth(&cluster.nats.secrets.token).header("Millpond-Delay", delay);
        request.timeout(Duration::from_secs(20)).send().await.unwrap()
    };
    let before = millpond::now_ms();
    let answer: Value = post("1s").await.json().await.unwrap();
    let ended = cluster.ended(answer["id"].as_str().unwrap()).await;
    assert_eq!(ended["result"], 36);
    assert!(ms(&ended, "started_ms") >= before + 1000);
    assert_eq!(post("soon").await.status(), 400);
    let wrong = cluster.command(&["submit", "square", "5", "--delay", "5s", "--expires", "1s"]).output().unwrap();
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("--expires longer"));
    let wrong = cluster.command(&["submit", "square", "5", "--at", "tomorrow"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

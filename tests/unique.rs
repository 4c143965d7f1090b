//! Unique tasks: while one of a key waits or runs, another is refused.

use std::process::{Output, Stdio};

use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use millpond::bus::topology::stream_state;
use millpond::client::{NewTask, SubmitError, TaskHandle};
use millpond::wire::streams::{STREAM_DUE, STREAM_LATER, STREAM_TASKS};
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, Process, output, task, until};

async fn submit(cluster: &Cluster, id: &str, kind: &str, arguments: &str) -> Result<TaskHandle, SubmitError> {
    let unique =
        NewTask { id: Some(id.into()), unique: Some("key".into()), attempts_max: Some(20), ..task(kind, arguments) };
    cluster.client.submit(&unique, RetryDeadline::Unlimited).await
}

fn refused(submitted: Result<TaskHandle, SubmitError>) -> bool {
    match submitted {
        Ok(submitted) => panic!("{submitted:?} was taken"),
        Err(error) => matches!(error, SubmitError::UniqueKeyTaken { key } if key == "key"),
    }
}

async fn cli(cluster: &Cluster, arguments: &[&str]) -> Output {
    let mut command = cluster.command(arguments);
    command.stdin(Stdio::null());
    output(command).await
}

async fn messages(cluster: &Cluster, stream: &str) -> u64 {
    stream_state(&cluster.nats.bus(Role::Setup).await, stream).await.unwrap().messages
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_a_key_at_a_time_whether_it_waits_runs_or_will_be_tried_again() {
    let cluster = Cluster::start().await;
    submit(&cluster, "first", "fail", r#"{"until": 2}"#).await.unwrap();
    assert!(refused(submit(&cluster, "second", "fail", "{}").await), "while it waits");
    // One's own resend is no other task, and another kind, queue or key is free.
    assert!(submit(&cluster, "first", "fail", r#"{"until": 2}"#).await.unwrap().duplicate);
    submit(&cluster, "other-kind", "square", "3").await.unwrap();
    // It fails at first, and its retry waits.
    let mut worker = cluster.command(&["worker", "run", "--name", "w1", "--retry-delay", "10s"]);
    worker.env("MILLPOND_WORKER_NATS_URL", cluster.nats.url("worker")).env("MILLPOND_WORKER_BUILT_IN", "*");
    worker.stdout(Stdio::null()).stderr(Stdio::null());
    let worker = Process::start(&mut worker);
    until("a retry that waits", PATIENCE, async || {
        let task = cluster.get("/api/v1/task", &[("id", "first".into())]).await?;
        (task["status"] == "retrying").then_some(())
    })
    .await;
    until("an empty TASKS", PATIENCE, async || (messages(&cluster, STREAM_TASKS).await == 0).then_some(())).await;
    assert!(refused(submit(&cluster, "second", "fail", "{}").await), "while its retry waits");
    assert!(submit(&cluster, "first", "fail", "{}").await.unwrap().duplicate, "a resend");
    let line = cli(&cluster, &["submit", "fail", "{}", "--unique", "key", "--json"]).await;
    let said = String::from_utf8_lossy(&line.stderr).into_owned();
    assert_eq!(line.status.code(), Some(1), "{said}");
    assert!(said.contains("unique key key waits or runs"), "{said}");
    assert_eq!(serde_json::from_slice::<Value>(&line.stdout).unwrap(), json!({ "id": null, "already_there": true }));
    let ended = cluster.ended("first").await;
    assert_eq!((&ended["status"], &ended["attempt"]), (&json!("done"), &json!(2)));
    until("nothing of it", PATIENCE, async || (messages(&cluster, STREAM_DUE).await == 0).then_some(())).await;
    // After its end the key is free; while it runs it is not.
    let long = NewTask { unique: Some("long".into()), ..task("sleep", "600") };
    cluster.client.submit(&long, RetryDeadline::Unlimited).await.unwrap();
    cluster.worker_is("w1", |w| w["running"] == 1).await;
    let again = cluster.client.submit(&long, RetryDeadline::Unlimited).await;
    assert!(matches!(again, Err(SubmitError::UniqueKeyTaken { .. })), "while it runs: {again:?}");
    submit(&cluster, "second", "fail", r#"{"until": 1}"#).await.unwrap();
    assert_eq!(cluster.ended("second").await["status"], "done");
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_one_is_stored() {
    let cluster = Cluster::start().await;
    let all = futures_util::future::join_all((0..20).map(|n| {
        let cluster = &cluster;
        async move { submit(cluster, &format!("t{n}"), "square", "3").await }
    }));
    let taken = all.await.into_iter().filter(|one| match one {
        Ok(_) => true,
        Err(SubmitError::UniqueKeyTaken { .. }) => false,
        Err(other) => panic!("{other}"),
    });
    assert_eq!(taken.count(), 1);
    assert_eq!(messages(&cluster, STREAM_TASKS).await, 1);
    // With a delay the server refuses the second one where they wait.
    let later = |id: &str| NewTask {
        id: Some(id.into()),
        unique: Some("later".into()),
        at_ms: Some(millpond::now_ms() + 1500),
        ..task("square", "3")
    };
    let both = [later("l1"), later("l2"), later("l3")];
    let all =
        futures_util::future::join_all(both.iter().map(|t| cluster.client.submit(t, RetryDeadline::Unlimited))).await;
    let taken: Vec<&str> = all.iter().filter_map(|one| one.as_ref().ok()).map(|s| s.id.as_str()).collect();
    assert_eq!((taken.len(), messages(&cluster, STREAM_LATER).await), (1, 1));
    let mine = both.iter().find(|t| t.id.as_deref() == Some(taken[0])).unwrap();
    assert!(cluster.client.submit(mine, RetryDeadline::Unlimited).await.unwrap().duplicate, "a resend");
    let now = NewTask { at_ms: None, ..later("now") };
    assert!(matches!(
        cluster.client.submit(&now, RetryDeadline::Unlimited).await,
        Err(SubmitError::UniqueKeyTaken { .. })
    ));
    let _worker = cluster.worker("w1", &[], None);
    let (_producer, _) = cluster.producer().await;
    assert_eq!(cluster.ended(taken[0]).await["result"], 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_and_asking_over_http() {
    let cluster = Cluster::start().await;
    let (_producer, url) = cluster.producer().await;
    let post = async |key: &str| {
        let request = reqwest::Client::new().post(format!("{url}/v1/tasks/default/square")).body("6");
        let request = request.bearer_auth(&cluster.nats.secrets.token).header("Millpond-Unique", key);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!([post("http").await, post("http").await, post("not a token").await], [202, 409, 400]);
    let worker = cluster.worker("w1", &[], None);
    let waited = cli(&cluster, &["submit", "square", "12", "--unique", "cli", "--wait"]).await;
    assert_eq!(String::from_utf8_lossy(&waited.stdout).trim(), "144", "{}", String::from_utf8_lossy(&waited.stderr));
    // Dead letters keep the key: what runs again has it.
    let dying = NewTask {
        id: Some("dies".into()),
        unique: Some("dies".into()),
        attempts_max: Some(1),
        ..task("fail", r#"{"until": 2}"#)
    };
    cluster.client.submit(&dying, RetryDeadline::Unlimited).await.unwrap();
    assert_eq!(cluster.ended("dies").await["status"], "dead");
    drop(worker);
    assert!(cli(&cluster, &["dead", "retry", "dies"]).await.status.success());
    let again = cluster.client.submit(&NewTask { id: None, ..dying.clone() }, RetryDeadline::Unlimited).await;
    assert!(matches!(again, Err(SubmitError::UniqueKeyTaken { .. })), "{again:?}");
    for wrong in [NewTask { job: Some("j".into()), ..dying.clone() }, NewTask { batch: Some(2), ..dying }] {
        assert!(matches!(
            cluster.client.submit(&wrong, RetryDeadline::Unlimited).await,
            Err(SubmitError::UniqueKeyNotAlone)
        ));
    }
}

//! Batches that form by themselves, the producer service's many lines, and ends told on a subject.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use millpond::bus::publish::RetryDeadline;
use millpond::client::{BatchSize, MapSpec, NewTask};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, statuses, until};

fn spec(kind: &str, job: &str) -> MapSpec {
    MapSpec {
        queue: "default".into(),
        kind: kind.into(),
        job: Some(job.into()),
        batch: BatchSize::Auto,
        ordered: true,
        timeout: None,
        attempts_max: None,
        ..MapSpec::default()
    }
}

/// The sizes of a job's messages, as they were published.
async fn sizes(cluster: &Cluster, job: &str) -> Vec<u64> {
    let mut sizes = Vec::new();
    let query = [("job", job.to_owned()), ("limit", "1000".to_owned())];
    let each = cluster.api.each("/api/v1/tasks", &query, async |row: Value| {
        if row["original_id"].is_null() {
            sizes.push(row["items"].as_u64().unwrap_or(1));
        }
        Ok(())
    });
    each.await.unwrap();
    sizes
}

#[tokio::test(flavor = "multi_thread")]
async fn tiny_tasks_share_messages_and_long_ones_do_not() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--slots", "4", "--io-slots", "4"], None);
    let run = async |kind: &str, job: &str, arguments: Vec<&'static str>| {
        let count = arguments.len() as u64;
        let input = futures_util::stream::iter(arguments.into_iter().map(|a| Ok(a.into())));
        let mut run = cluster.client.map(spec(kind, job), input).await.unwrap();
        let mut ended = 0;
        while let Some(item) = run.next().await {
            let item = item.unwrap();
            assert_eq!(item.index, ended);
            assert!(item.end.is_ok());
            ended += 1;
        }
        assert_eq!(ended, count);
        cluster.job_ends(job, ended, PATIENCE).await;
        sizes(&cluster, job).await
    };
    // Sizes follow the durations seen, and those are long while other tests have the cores: then again, as often as it takes.
    let mut tiny = Vec::new();
    for job in ["tiny", "tiny2", "tiny3", "tiny4", "tiny5"] {
        tiny = run("square", job, vec!["7"; 20_000]).await;
        if tiny.len() < 2000 && tiny.iter().max() == Some(&256) {
            break;
        }
    }
    assert!(tiny.len() < 2000 && tiny.iter().max() == Some(&256), "{} messages, {:?}", tiny.len(), tiny.iter().max());
    assert_eq!(run("sleep", "long", vec!["0.2"; 24]).await, vec![1; 24]);
    // Items of a job have one address, whatever message they came in.
    let item = cluster.get("/api/v1/task", &[("id", "tiny.1/19999".into())]).await.unwrap();
    assert_eq!((&item["result"], &item["index"]), (&json!(49), &json!(19_999)));
}

/// From nothing to two seconds, most of them tiny, one in a hundred no number at all.
fn mixed(n: u64) -> (String, bool) {
    match n {
        n if n % 100 == 50 => ("\"no number\"".to_owned(), false),
        n if n % 300 == 7 && n < 1200 => ("2".to_owned(), true),
        n if n % 50 == 3 => ("0.05".to_owned(), true),
        n if n % 5 == 1 => ("0.005".to_owned(), true),
        _ => ("0".to_owned(), true),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mixed_work_is_in_order_and_keeps_the_slots_busy() {
    const TASKS: u64 = 6000;
    const SLOTS: u64 = 4;
    let cluster = Cluster::start().await;
    let _workers = ["w1", "w2"].map(|name| cluster.worker(name, &["--slots", "2", "--io-slots", "2"], None));
    cluster.worker_is("w2", |w| w["state"] == "live").await;
    let input = futures_util::stream::iter((0..TASKS).map(|n| Ok(mixed(n).0.into())));
    let mut run = cluster.client.map(spec("sleep", "mixed"), input).await.unwrap();
    for index in 0..TASKS {
        let item = run.next().await.unwrap().unwrap();
        assert_eq!((item.index, item.end.is_ok()), (index, mixed(index).1));
    }
    assert!(run.next().await.is_none());
    let ends = cluster.job_ends("mixed", TASKS, PATIENCE).await;
    assert!(statuses(&ends).iter().zip(0..).all(|(status, n)| (status == "done") == mixed(n).1));
    // How busy the slots were, for whoever reads the output: measured, not asserted.
    let mut spans: Vec<(i64, i64)> = Vec::new();
    let query = [("job", "mixed".to_owned()), ("limit", "1000".to_owned())];
    let each = cluster.api.each("/api/v1/tasks", &query, async |row: Value| {
        spans.extend(row["started_ms"].as_i64().zip(row["ended_ms"].as_i64()));
        Ok(())
    });
    each.await.unwrap();
    let (first, last) = (spans.iter().map(|s| s.0).min().unwrap(), spans.iter().map(|s| s.1).max().unwrap());
    let busy: f64 = (0..TASKS).filter_map(|n| mixed(n).0.parse::<f64>().ok()).sum();
    let wall = (last - first) as f64 / 1000.0;
    println!(
        "mixed work: {busy:.1} s of work on {SLOTS} slots in {wall:.1} s: {:.1} %",
        100.0 * busy / wall / SLOTS as f64
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_behind_a_slow_item_is_handed_on() {
    let cluster = Cluster::start().await;
    let _workers = ["w1", "w2"].map(|name| cluster.worker(name, &["--slots", "1", "--io-slots", "1"], None));
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    cluster.worker_is("w2", |w| w["state"] == "live").await;
    let batch = NewTask {
        queue: "default".into(),
        kind: "sleep".into(),
        payload: "[6, 0, 0, 0, 0, 0, 0, 0]".into(),
        batch: Some(8),
        job: Some("slow".into()),
        index: Some(0),
        ..Default::default()
    };
    cluster.client.submit(&batch, RetryDeadline::Unlimited).await.unwrap();
    // The seven others have results while the first still runs.
    until("seven results", Duration::from_secs(5), async || {
        (cluster.get("/api/v1/jobs/slow", &[]).await?["done"] == 7).then_some(())
    })
    .await;
    let ends = cluster.job_ends("slow", 8, PATIENCE).await;
    assert_eq!(statuses(&ends), ["done"; 8]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_keeps_no_item_that_has_not_started() {
    let cluster = Cluster::start().await;
    let mut leaving = cluster.worker("w1", &["--slots", "1", "--io-slots", "1"], None);
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    let batch = NewTask {
        queue: "default".into(),
        kind: "spin".into(),
        payload: "[1, 1, 1, 1, 1, 1]".into(),
        batch: Some(6),
        job: Some("drained".into()),
        index: Some(0),
        ..Default::default()
    };
    cluster.client.submit(&batch, RetryDeadline::Unlimited).await.unwrap();
    cluster.worker_is("w1", |w| w["running"] == 1).await;
    leaving.signal(Signal::SIGTERM);
    assert!(leaving.end(Duration::from_secs(15)).await.success());
    let _heir = cluster.worker("w2", &[], None);
    let ends = cluster.job_ends("drained", 6, PATIENCE).await;
    assert_eq!(statuses(&ends), ["done"; 6]);
    assert!(ends.iter().all(|end| end["result"].is_number()), "{ends:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_are_told_on_the_subject_that_a_task_names() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let client = async_nats_client(&cluster).await;
    let mut told = client.subscribe("reply.here.>").await.unwrap();
    client.flush().await.unwrap();
    for (kind, arguments, reply, batch) in [
        ("square", "12", "reply.here.a", None),
        ("fail", r#"{"how": "fatal"}"#, "reply.here.b", None),
        ("square", "[2, 3]", "reply.here.c", Some(2)),
    ] {
        let task = NewTask {
            queue: "default".into(),
            kind: kind.into(),
            payload: arguments.into(),
            reply_to: Some(reply.into()),
            batch,
            ..Default::default()
        };
        cluster.client.submit(&task, RetryDeadline::Unlimited).await.unwrap();
    }
    let mut heard = BTreeMap::new();
    while heard.len() < 4 {
        let message = tokio::time::timeout(PATIENCE, told.next()).await.unwrap().unwrap();
        let end: Value = serde_json::from_slice(&message.payload).unwrap();
        let place = end["id"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let what = end.get("result").or_else(|| end["failure"].get("type")).cloned().unwrap();
        heard.insert(format!("{} {}", message.subject, if place.len() == 1 { place } else { String::new() }), what);
    }
    let expected = [("reply.here.a ", json!(144)), ("reply.here.b ", json!("fatal"))];
    let batch = [("reply.here.c 0", json!(4)), ("reply.here.c 1", json!(9))];
    let expected = expected.into_iter().chain(batch).map(|(k, v)| (k.to_owned(), v));
    assert_eq!(heard, expected.collect::<BTreeMap<_, _>>());
}

/// A plain NATS client in the client role.
async fn async_nats_client(cluster: &Cluster) -> async_nats::Client {
    let password = cluster.nats.secrets.passwords["client"].clone();
    let options = async_nats::ConnectOptions::with_user_and_password("client".into(), password);
    options.connect(format!("127.0.0.1:{}", cluster.nats.port)).await.unwrap()
}

async fn post(cluster: &Cluster, url: &str, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> (u16, Value) {
    let http = reqwest::Client::new();
    let mut request = http.post(url).bearer_auth(&cluster.nats.secrets.token).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_lines_in_one_request_become_a_job() {
    let cluster = Cluster::start().await;
    let (_producer, url) = cluster.producer().await;
    let one = format!("{url}/v1/tasks/default/square");
    let url = format!("{url}/v1/jobs/default/square");
    let ndjson = ("Content-Type", "application/x-ndjson");
    let mut worker = cluster.worker("w1", &[], None);
    // Each job begins with batches as large as results have shown to be right, and at most four times that: after three it is the
    // most that there is.
    for job in ["known-1", "known-2", "known-3"] {
        let known: String = (0..2000).map(|n| format!("{n}\n")).collect();
        assert_eq!(post(&cluster, &format!("{url}?job={job}"), &[ndjson], known).await.0, 202);
        cluster.job_ends(job, 2000, PATIENCE).await;
    }
    worker.kill9();
    // Nobody runs them now: the queue takes them all the same, more than a map's window, in batches as large as before.
    let lines: String = (0..70_000).map(|n| format!("{n}\n")).collect();
    let (status, answer) = post(&cluster, &format!("{url}?job=lines"), &[ndjson], lines).await;
    assert_eq!((status, &answer["tasks"], &answer["first_id"]), (202, &json!(70_000), &json!("lines.1/0")));
    let (status, answer) = post(&cluster, &format!("{url}?job=lines"), &[ndjson], "1\n").await;
    assert_eq!(status, 409, "{answer}");
    // The same request twice is one job.
    for duplicate in [false, true] {
        let headers = [ndjson, ("Idempotency-Key", "order-7")];
        let (status, answer) = post(&cluster, &format!("{url}?batch=10"), &headers, "1\n2\n\n3").await;
        assert_eq!((status, &answer["tasks"], &answer["duplicate"]), (202, &json!(3), &json!(duplicate)));
    }
    // A line that is no JSON ends it, and the answer says how far it came.
    let (status, answer) = post(&cluster, &format!("{url}?job=torn"), &[ndjson], "1\n2\nx\n4\n").await;
    assert_eq!(status, 400);
    assert!(answer["error"].as_str().unwrap().contains("line 3"), "{answer}");
    assert!(answer["stored"].as_u64().unwrap() <= 2);
    let (status, answer) = post(&cluster, &one, &[("Idempotency-Key", "one")], "12").await;
    assert_eq!((status, &answer["id"]), (202, &json!("one")));
    let (status, answer) = post(&cluster, &one, &[("Millpond-Reply-To", "results.x")], "12").await;
    assert_eq!(status, 400, "{answer}");
    let _worker = cluster.worker("w2", &[], None);
    cluster.job_ends("lines", 70_000, PATIENCE).await;
    let keyed = cluster.job_ends("order-7", 3, PATIENCE).await;
    assert_eq!(keyed.iter().map(|end| end["result"].clone()).collect::<Vec<_>>(), [json!(1), json!(4), json!(9)]);
}

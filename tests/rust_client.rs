//! What a Rust program does with the client crate: handles of tasks and jobs, many tasks at once, and the crate's examples.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, stream};
use millpond::client::{
    JobWaitError, MapError, MapSpec, NoResult, RequestError, SubmitError, TaskState, WaitError, json_values,
};
use millpond::job::JobStatus;
use millpond::{Client, NewTask};
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, until};

const SHORT: Duration = Duration::from_millis(200);

fn square(n: u64) -> NewTask {
    NewTask::json("default", "square", &n).unwrap()
}

#[test]
fn a_client_is_shared_by_threads_and_its_futures_are_sent() {
    fn is_shared<T: Send + Sync + Clone>() {}
    fn is_sent<T: Send>(_: impl Fn(Client) -> T) {}
    is_shared::<Client>();
    is_shared::<millpond::client::JobHandle>();
    is_sent(|client| async move { client.submit(&square(1), SHORT).await });
    is_sent(
        |client| async move { client.submit(&square(1), SHORT).await?.wait::<u64>(SHORT).await.map_err(Error::from) },
    );
    is_sent(|client| async move { client.job("j").results().await?.next().await.transpose() });
    is_sent(|client| async move { client.task("q", "k", "id").cancel().await });
    type Error = Box<dyn std::error::Error>;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_waits_tells_and_cancels() {
    let cluster = Cluster::start().await;
    let client = &cluster.client;
    // Nobody runs it yet.
    let mut waits = client.submit(&square(12).id("waits"), PATIENCE).await.unwrap();
    let not_done = waits.wait::<u64>(SHORT).await.unwrap_err();
    assert!(matches!(not_done, WaitError::NotDone { waited } if waited == SHORT), "{not_done}");
    let stands = waits.status().await.unwrap();
    assert!(stands.state == TaskState::NoWorker && stands.sentence.contains("no live worker"), "{stands:?}");
    let mut never = client.submit(&square(13).id("never").awaited(), PATIENCE).await.unwrap();
    assert!(!never.cancel().await.unwrap().ended);
    let mut later = client.submit(&square(14).id("later").delay(PATIENCE), PATIENCE).await.unwrap();
    assert_eq!(later.status().await.unwrap().state, TaskState::Scheduled);
    assert!(later.cancel().await.unwrap().ended, "what waits for its time has no worker that ends it");

    let _worker = cluster.worker("w1", &[], None);
    assert_eq!(waits.wait::<u64>(PATIENCE).await.unwrap(), 144);
    assert_eq!(waits.wait::<u64>(PATIENCE).await.unwrap(), 144, "again");
    let other = waits.wait::<String>(PATIENCE).await.unwrap_err();
    assert!(matches!(&other, WaitError::OtherType { result, .. } if result.get() == "144"), "{other}");
    for cancelled in [&mut never, &mut later] {
        let ended = cancelled.wait::<u64>(PATIENCE).await.unwrap_err();
        assert!(matches!(ended, WaitError::NoResult(NoResult::Cancelled)), "{ended}");
    }
    // A task by its name, long after; of another kind it is another task.
    until("its end at the collector", PATIENCE, async || {
        (waits.status().await.ok()?.state == TaskState::Done).then_some(())
    })
    .await;
    let mut named = client.task("default", "square", "waits");
    assert_eq!(named.wait::<u64>(PATIENCE).await.unwrap(), 144);
    let refused = named.cancel().await.unwrap_err();
    assert!(matches!(&refused, RequestError::Refused { reason } if reason.contains("has ended")), "{refused}");
    for unknown in [client.task("default", "echo", "waits"), client.task("default", "square", "nobody")] {
        assert_eq!(unknown.status().await.unwrap().state, TaskState::Unknown, "{unknown:?}");
    }
    // What failed for good tells why.
    let dies = NewTask::json("default", "fail", &json!({"how": "fatal"})).unwrap();
    let end = client.submit(&dies.awaited(), PATIENCE).await.unwrap().wait::<Value>(PATIENCE).await.unwrap_err();
    assert!(matches!(&end, WaitError::NoResult(NoResult::Dead(_))), "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_is_dropped_goes_on_with_the_next() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    for awaited in [true, false] {
        let chain = NewTask::json("default", "sleep", &0.3).unwrap().continuation("echo".parse().unwrap());
        let chain = if awaited { chain.awaited() } else { chain };
        let mut task = cluster.client.submit(&chain, PATIENCE).await.unwrap();
        let mut drops = 0;
        // Dropped again and again, in each part of the wait.
        let slept = loop {
            match task.wait::<f64>(Duration::from_millis(10)).await {
                Err(WaitError::NotDone { .. }) => drops += 1,
                ended => break ended.unwrap(),
            }
        };
        assert!((slept - 0.3).abs() < 1e-9 && drops > 10, "{slept} after {drops}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_header_of_a_task_arrives() {
    let cluster = Cluster::start().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let task = square(5)
        .id("all")
        .timeout(Duration::from_secs(90))
        .attempts(7)
        .expires(SystemTime::now() + Duration::from_secs(3600))
        .continuation("echo".parse().unwrap())
        .continuation("other.echo".parse().unwrap())
        .job("together")
        .index(3)
        .reply_to("reply.x")
        .traceparent(trace);
    cluster.client.submit(&task, PATIENCE).await.unwrap();
    let stored = cluster.nats.asked("$JS.API.STREAM.MSG.GET.TASKS", &json!({"seq": 1})).await;
    assert_eq!(stored["message"]["subject"], "tasks.default.square.j-together");
    let headers = stored["message"]["hdrs"].as_str().unwrap();
    let headers = String::from_utf8(data_encoding::BASE64.decode(headers.as_bytes()).unwrap()).unwrap();
    for expected in [
        "Nats-Msg-Id: millpond:default/square/task/all",
        "Millpond-Id: all",
        "Millpond-Timeout: 1m 30s",
        "Millpond-Attempts-Max: 7",
        "Millpond-Expires: 20",
        "Millpond-Continuation: echo,other.echo",
        "Millpond-Index: 3",
        "Millpond-Reply-To: reply.x",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-",
    ] {
        assert!(headers.contains(expected), "{expected} in {headers}");
    }
    cluster.client.submit(&square(6).unique("alone"), PATIENCE).await.unwrap();
    let taken = cluster.client.submit(&square(6).unique("alone"), PATIENCE).await.unwrap_err();
    assert!(matches!(taken, SubmitError::UniqueKeyTaken { .. }), "{taken}");
    assert!(cluster.client.submit(&task, PATIENCE).await.unwrap().duplicate);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_is_answered_in_order() {
    let cluster = Cluster::start().await;
    let tasks = (0..2500_u64).map(|n| if n == 7 { square(n).id("") } else { square(n).id(format!("t{n}")) });
    let mut answers = std::pin::pin!(cluster.client.submit_all(stream::iter(tasks), PATIENCE));
    let (mut n, mut refused) = (0, Vec::new());
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(task) => assert_eq!(task.id, format!("t{n}")),
            Err(error) => refused.push((n, error.to_string())),
        }
        n += 1;
    }
    assert!(n == 2500 && refused.len() == 1 && refused[0].0 == 7, "{n} {refused:?}");
    let state = cluster.nats.asked("$JS.API.STREAM.INFO.TASKS", &Value::Null).await;
    assert_eq!(state["state"]["messages"], 2499);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_awaited_read_and_cancelled_by_its_name() {
    let cluster = Cluster::start().await;
    let spec = |job: &str| MapSpec { job: Some(job.to_owned()), ..MapSpec::new("default", "square") };
    let none = cluster.client.job("none");
    assert!(matches!(none.results().await, Err(MapError::NoSuchJob { .. })));
    // Long enough for the collector's answer, which says that there is no such job.
    let wait = none.wait(Duration::from_secs(3)).await.unwrap_err();
    assert!(matches!(wait, JobWaitError::Request(RequestError::Refused { .. })), "{wait}");
    cluster.client.publish_all(spec("squares"), json_values(0..300_u64)).await.unwrap();
    // Somebody else reads it, while it runs and afterwards.
    let other = Client::connect(&cluster.nats.url("client")).await.unwrap();
    let mut live = other.job("squares").results().await.unwrap();
    let not_done = other.job("squares").wait(SHORT).await.unwrap_err();
    assert!(matches!(not_done, JobWaitError::NotDone { .. }), "{not_done}");
    let _worker = cluster.worker("w1", &[], None);
    let ended = other.job("squares").wait(PATIENCE).await.unwrap();
    assert!(ended.is_success() && (ended.total, ended.done) == (Some(300), 300), "{ended:?}");
    for results in [&mut live, &mut other.job("squares").results().await.unwrap()] {
        let mut seen = BTreeSet::new();
        while let Some(item) = results.next().await {
            let item = item.unwrap();
            assert_eq!(item.end.unwrap().json::<u64>().unwrap(), item.index * item.index);
            assert!(seen.insert(item.index), "{} comes once", item.index);
        }
        assert_eq!(seen.len(), 300);
    }
    // A job that is cancelled ends, for who waits and for who reads.
    let slow = MapSpec { job: Some("slow".into()), ..MapSpec::new("default", "sleep") };
    cluster.client.publish_all(slow, json_values([600; 20])).await.unwrap();
    let job = other.job("slow");
    assert_eq!(job.cancel().await.unwrap().job, "slow");
    let ended = job.wait(PATIENCE).await.unwrap();
    assert!(ended.state == JobStatus::Cancelled && !ended.is_success(), "{ended:?}");
    let mut results = job.results().await.unwrap();
    let mut cancelled = 0;
    while let Some(item) = results.next().await {
        assert_eq!(item.unwrap().end.unwrap_err(), NoResult::Cancelled);
        cancelled += 1;
    }
    assert_eq!(cancelled, 20);
    let again = cluster.client.job("squares").cancel().await.unwrap_err();
    assert!(matches!(&again, RequestError::Refused { reason } if reason.contains("has ended")), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_a_request_says_so() {
    let mut cluster = Cluster::start().await;
    cluster.collector.kill9();
    let gone =
        until("no collector", PATIENCE, async || cluster.client.task("default", "square", "x").status().await.err())
            .await;
    assert!(gone.is_passing(), "{gone}");
    // Waiting needs none.
    let _worker = cluster.worker("w1", &[], None);
    let mut task = cluster.client.submit(&square(9), PATIENCE).await.unwrap();
    assert_eq!(task.wait::<u64>(PATIENCE).await.unwrap(), 81);
}

/// An example, as the test build leaves it beside the tests; none where only the tests were built.
pub fn example(name: &str) -> Option<PathBuf> {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    if program.exists() {
        return Some(program);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is not built", program.display());
    println!("skipped: {} is not built; `cargo test --workspace --no-run` does", program.display());
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_the_client_do_what_they_say() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    for (name, expected) in [
        ("publish", "square/12 is stored\n1000 more are stored\n"),
        ("wait", "12 * 12 = 144\n"),
        ("map", "the squares of 1 to 100 are 338350 together\n100 of Some(100) are done\n"),
        ("chain", "3, squared twice, is 81\n"),
    ] {
        let Some(program) = example(name) else { return };
        let mut command = Command::new(program);
        command.env("MILLPOND_NATS_URL", cluster.nats.url("client"));
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{name}: {said}");
    }
    // The environment is named where it is wrong.
    let Some(program) = example("wait") else { return };
    let failed = |name: &str, value: &str| {
        let mut command = Command::new(&program);
        command.env_remove("MILLPOND_NATS_URL").env("MILLPOND_NATS_URL", cluster.nats.url("client")).env(name, value);
        String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned()
    };
    for (name, value, expected) in [
        ("MILLPOND_NATS_URL", "", "NotSet"),
        ("MILLPOND_CONNECT_TIMEOUT", "soon", "Timeout"),
        ("MILLPOND_NATS_PASSWORD_FILE", "/none", "Unreadable"),
        ("MILLPOND_SIGNING_KEY", "short", "Signing"),
    ] {
        let said = failed(name, value);
        assert!(said.contains(expected), "{name}: {said}");
    }
}

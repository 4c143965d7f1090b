//! What a Rust program does with the worker crate: handlers as functions, on a worker of its own and in tests of its own.

use std::convert::Infallible;
use std::process::{Command, Stdio};
use std::time::Duration;

use millpond::NewTask;
use millpond::client::{NoResult, WaitError};
use millpond::outcome::Failure;
use millpond_worker::testing::TestCluster;
use millpond_worker::{HandlerError, State, TaskContext, TaskError, Worker};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, Process, until};
use crate::rust_client::example;

#[derive(Deserialize, Serialize)]
struct Image {
    file: String,
    width: u32,
}

#[derive(Debug)]
enum ResizeError {
    NoSuchFile,
    Busy,
}

impl HandlerError for ResizeError {
    fn into_failure(self) -> Failure {
        match self {
            Self::NoSuchFile => Failure::fatal("no_such_file", "gone"),
            Self::Busy => Failure::new("busy", "come again"),
        }
    }
}

struct Folder(&'static str);

async fn resize(image: Image, folder: State<Folder>, task: TaskContext) -> Result<Image, ResizeError> {
    match image.file.as_str() {
        "gone" => Err(ResizeError::NoSuchFile),
        "busy" if task.attempt() < 3 => Err(ResizeError::Busy),
        file => Ok(Image { file: format!("{}/{file}", folder.0), width: image.width / 2 }),
    }
}

fn count((from, to): (u64, u64)) -> Result<u64, Infallible> {
    Ok(to - from)
}

async fn asks(_: (), task: TaskContext) -> Result<(String, u32, bool), TaskError> {
    Ok((task.id().to_owned(), task.attempt(), task.time_left().is_some_and(|left| left <= Duration::from_secs(7))))
}

fn builder() -> millpond_worker::WorkerBuilder {
    Worker::builder()
        .state(Folder("images"))
        .handle("resize", resize)
        .handle_blocking("count", count)
        .handle("asks", asks)
        .handle("parses", async |text: String| -> Result<u32, TaskError> { Ok(text.parse()?) })
        .handle_raw("bytes", async |call| millpond_worker::reply(&call.payload.len()))
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_are_functions() {
    let mut cluster = TestCluster::start().await.unwrap();
    cluster.worker(builder()).unwrap();
    let client = cluster.client().clone();
    let run = async |task: NewTask| {
        let mut task = client.submit(&task.awaited(), PATIENCE).await.unwrap();
        task.wait::<Value>(PATIENCE).await
    };
    let json = |kind: &str, args: Value| NewTask::json("default", kind, &args).unwrap();
    let failure = |end: Result<Value, WaitError>| match end {
        Err(WaitError::NoResult(NoResult::Dead(failure))) => (failure.kind, failure.retry),
        other => panic!("{other:?}"),
    };
    let image = |file: &str| json("resize", json!({"file": file, "width": 640}));
    assert_eq!(run(image("cat.png")).await.unwrap(), json!({"file": "images/cat.png", "width": 320}));
    assert_eq!(run(image("busy")).await.unwrap()["file"], "images/busy", "the third attempt");
    assert_eq!(failure(run(image("gone")).await), ("no_such_file".to_owned(), false));
    assert_eq!(failure(run(json("resize", json!({"file": 7}))).await), ("bad_arguments".to_owned(), false));
    assert_eq!(run(json("count", json!([3, 10]))).await.unwrap(), 7);
    assert_eq!(run(json("parses", json!("12"))).await.unwrap(), 12);
    assert_eq!(failure(run(json("parses", json!("x")).attempts(2)).await), ("error".to_owned(), true));
    assert_eq!(run(NewTask::bytes("default", "bytes", &b"\xff\xfe"[..])).await.unwrap(), 2);
    let asked = json("asks", Value::Null).id("t1").timeout(Duration::from_secs(7));
    assert_eq!(run(asked).await.unwrap(), json!(["t1", 1, true]));
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_missing_is_named_before_the_worker_starts() {
    let mut cluster = TestCluster::start().await.unwrap();
    let refused = cluster.worker(Worker::builder().handle("resize", resize)).unwrap_err();
    let text = format!("{refused:#}");
    assert!(text.contains("handler [resize]") && text.contains("Folder"), "{text}");
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_a_test_ends_with_it() {
    let cluster = TestCluster::start().await.unwrap();
    let address = cluster.url().trim_start_matches("nats://").to_owned();
    std::net::TcpStream::connect(&address).unwrap();
    drop(cluster);
    assert!(std::net::TcpStream::connect(&address).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_a_worker_runs_its_handlers() {
    let Some(program) = example("handler") else { return };
    let cluster = Cluster::start().await;
    let mut command = Command::new(program);
    command.env("MILLPOND_WORKER_NATS_URL", cluster.nats.url("worker")).args(["--name", "w1"]);
    let _worker = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let submit = async |kind: &str, args: Value| {
        let task = NewTask::json("default", kind, &args).unwrap().awaited();
        cluster.client.submit(&task, PATIENCE).await.unwrap().wait::<Value>(PATIENCE).await
    };
    let resized = submit("resize", json!({"file": "cat.png", "width": 640})).await.unwrap();
    assert_eq!(resized, "images/640-cat.png, in attempt 1");
    let dead = submit("resize", json!({"file": "cat.png", "width": 0})).await.unwrap_err();
    assert!(matches!(&dead, WaitError::NoResult(NoResult::Dead(failure)) if failure.kind == "bad_width"), "{dead}");
    // It runs in a process of its own, which the worker shows.
    assert_eq!(submit("primes", json!([1, 10_000])).await.unwrap(), 1229);
    until("its child", PATIENCE, async || {
        let workers = cluster.get("/api/v1/workers", &[]).await?;
        workers["rows"][0]["children"].as_array()?.iter().any(|child| child["kind"] == "primes").then_some(())
    })
    .await;
}

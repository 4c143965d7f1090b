//! The entry's worker and submitter: four workloads, as the harness describes them (bench/README.md).
//! W1 many squares, W2 lone squares, W3 primes in chunks and squares, W4 checksums of large texts.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the harness reads what the entry prints")]

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Parser;
use millpond::bus::publish::RetryDeadline;
use millpond::client::{BatchSize, Client, MapSpec, NewTask};
use millpond_worker::{Config, Worker};
use serde_json::json;
use tokio::task::JoinSet;

/// Worker and submitter of the entry.
#[derive(Parser)]
enum Verb {
    /// Runs a worker with the kinds of the workloads.
    Worker(Box<Config>),
    /// Runs the workload that the environment names.
    Submit {
        /// NATS.
        url: String,
        /// `auto`, or tasks in one message.
        batch: String,
    },
}

/// The C library's allocator takes a fifth of a busy worker's time (`millpond bench` tells).
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let done = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        // A task of its own: on the thread that waits in `block_on`, each wake-up would cost a system call.
        runtime.block_on(async {
            let mut verb = JoinSet::new();
            verb.spawn(async {
                match Verb::parse() {
                    Verb::Worker(config) => work(*config).await,
                    Verb::Submit { url, batch } => submit(&url, &batch).await,
                }
            });
            verb.join_next().await.context("nothing was started")??
        })
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millpond-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn work(config: Config) -> anyhow::Result<()> {
    let shutdown = millpond::shutdown::on_signal()?;
    let worker = Worker::builder().handle_blocking("primes", primes).handle("crc", crc);
    worker.build(config.check()?)?.run(shutdown).await
}

/// Naive on purpose, as in the other entries: every divisor below the number.
fn primes((from, to): (u64, u64)) -> Result<usize, Infallible> {
    Ok((from..=to).filter(|n| *n > 1 && (2..*n).all(|d| n % d != 0)).count())
}

async fn crc(text: String) -> Result<u32, Infallible> {
    Ok(crc32fast::hash(text.as_bytes()))
}

fn env(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set; the harness sets it"))
}

async fn submit(url: &str, batch: &str) -> anyhow::Result<()> {
    let batch = match batch.parse() {
        Ok(items) => BatchSize::Fixed(items),
        Err(_) => BatchSize::Auto,
    };
    let client = Client::connect_with(url, "bench", Duration::from_secs(10)).await?;
    let count: u64 = env("BENCH_N")?.parse()?;
    map(&client, "square", BatchSize::Fixed(1), (0..20).map(|n| n.to_string()).collect()).await?;
    let workload = env("BENCH_WORKLOAD")?;
    if workload == "W2" {
        return lone(&client, count).await;
    }
    let numbers = |from: u64, to: u64| (from..to).map(|n| n.to_string()).collect::<Vec<_>>();
    let texts = if workload == "W4" { texts(count)? } else { Vec::new() };
    let started = Instant::now();
    let results = match workload.as_str() {
        "W1" => map(&client, "square", batch, numbers(0, count)).await?,
        "W3" => {
            let chunks = (0..100).map(|i| json!([100 * i + 1, 100 * i + 100]).to_string()).collect();
            let both =
                tokio::join!(map(&client, "primes", batch, chunks), map(&client, "square", batch, numbers(1, 101)));
            [both.0?, both.1?].concat()
        }
        "W4" => map(&client, "crc", batch, texts).await?,
        other => bail!("workload {other} is not one of W1 to W4"),
    };
    let seconds = started.elapsed().as_secs_f64();
    write(&results)?;
    println!("{}", json!({ "seconds": seconds }));
    Ok(())
}

fn texts(count: u64) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(env("BENCH_PAYLOAD")?)?;
    let rest = text.get(8..).context("the payload is shorter than eight characters")?;
    Ok((0..count).map(|n| json!(format!("{n:08}{rest}")).to_string()).collect())
}

async fn map(client: &Client, kind: &str, batch: BatchSize, input: Vec<String>) -> anyhow::Result<Vec<String>> {
    let spec = MapSpec {
        queue: "default".to_owned(),
        kind: kind.to_owned(),
        job: None,
        batch,
        ordered: true,
        timeout: None,
        attempts_max: None,
        ..MapSpec::default()
    };
    let mut results = Vec::with_capacity(input.len());
    let input = futures_util::stream::iter(input.into_iter().map(|value| Ok(Bytes::from(value))));
    let mut run = client.map(spec, input).await?;
    while let Some(item) = run.next().await {
        match item?.end {
            Ok(value) => results.push(value.get().to_owned()),
            Err(no_result) => bail!("a task has no result: {no_result:?}"),
        }
    }
    Ok(results)
}

async fn lone(client: &Client, count: u64) -> anyhow::Result<()> {
    let limit = Duration::from_secs_f64(env("BENCH_W2_MAX_S")?.parse()?);
    let mut session = client.session(None).await?;
    let (mut results, mut trips, begun) = (Vec::new(), Vec::new(), Instant::now());
    for n in 0..count {
        if begun.elapsed() > limit {
            break;
        }
        let task = NewTask {
            queue: "default".to_owned(),
            kind: "square".to_owned(),
            payload: Bytes::from(n.to_string()),
            ..Default::default()
        };
        let started = Instant::now();
        let (_, end) = session.run(task, RetryDeadline::Unlimited, |_| {}).await?;
        trips.push(started.elapsed().as_secs_f64() * 1e3);
        match end {
            Ok(value) => results.push(value.get().to_owned()),
            Err(no_result) => bail!("lone task {n} has no result: {no_result:?}"),
        }
    }
    write(&results)?;
    println!("{}", json!({ "lat_ms": trips }));
    Ok(())
}

fn write(results: &[String]) -> anyhow::Result<()> {
    let lines: String = results.iter().enumerate().map(|(n, result)| format!("{n} {result}\n")).collect();
    Ok(std::fs::write(env("BENCH_RESULTS")?, lines)?)
}

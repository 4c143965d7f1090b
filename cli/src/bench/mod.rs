//! `bench`: how far millpond is from what the server and its client can do at all. One run, one server, rounds of each
//! kind in turn, every result checked. It starts a cluster of its own in a temporary folder (`up -- bench`).

mod isolate;
mod process;
mod raw;
mod report;
mod telemetry;

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use millpond::bus::publish::RetryDeadline;
use millpond::client::{BatchSize, Client, MapSpec, NewTask};
use millpond::config::SigningArgs;

use crate::state::{Env, publisher};
use process::snapshot;
use raw::Raw;
use report::{Report, Round};

/// Where the inner process finds the account of the raw rounds.
pub const BENCH_NATS_URL: &str = "MILLPOND_BENCH_NATS_URL";
/// How long the collector may take to store a round after its last result.
const STORED_WITHIN: Duration = Duration::from_secs(120);
/// How often it is asked.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the idle cluster is watched.
const IDLE_FOR: Duration = Duration::from_secs(10);
/// What the cluster is left alone for before that.
const SETTLE_FOR: Duration = Duration::from_secs(3);
/// Tasks of a round with batches, for each task of one without: so that it lasts.
const BATCHED_FACTOR: u64 = 20;

/// How much to measure.
#[derive(clap::Args, Debug, Clone)]
pub struct BenchArgs {
    /// Rounds of each kind; their order is reversed each time.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Tasks of a round with one task per message; a round with batches has twenty times as many.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    tasks: u64,
    /// Lone round trips of a round.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=1_000_000))]
    lone: u64,
    /// Slots of the worker. Default: the number of cores.
    #[arg(long)]
    slots: Option<usize>,
    /// Measure handlers in child processes instead, beside Python's multiprocessing.Pool.
    #[arg(long)]
    isolate: bool,
    /// Measure what exported spans and logs cost instead, also when the Collector is away, hangs or refuses.
    #[arg(long, conflicts_with = "isolate")]
    telemetry: bool,
    /// All figures as one JSON object.
    #[arg(long)]
    json: bool,
    /// On the cluster of `up --bench-account`, which this process is the command of.
    #[arg(long, hide = true)]
    inside: bool,
}

/// Measures.
///
/// # Errors
/// When a result is wrong, or the cluster cannot be started.
pub async fn run(args: BenchArgs, env: &Env) -> anyhow::Result<ExitCode> {
    match (args.inside, args.telemetry) {
        (true, _) => inside(&args, env).await,
        (false, true) => telemetry::outside(&args).await.map(|()| ExitCode::SUCCESS),
        (false, false) => outside(&args).await,
    }
}

/// Starts a cluster and runs this command in it.
async fn outside(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut command = cluster(args, dir.path())?;
    if args.isolate {
        command.arg("--handlers").arg(isolate::handlers(dir.path(), slots(args))?);
    }
    command.args(["--", "bench", "--inside", "--rounds", &args.rounds.to_string()]);
    command.args(["--tasks", &args.tasks.to_string(), "--lone", &args.lone.to_string()]);
    for (flag, given) in [("--json", args.json), ("--isolate", args.isolate)] {
        command.args(given.then_some(flag));
    }
    let status = command.stdin(Stdio::null()).status().await.context("cannot start the cluster")?;
    Ok(ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(crate::EXIT_ERROR)))
}

/// The command that starts a cluster in this folder.
fn cluster(args: &BenchArgs, dir: &Path) -> anyhow::Result<tokio::process::Command> {
    let program = std::env::current_exe().context("this program cannot be found again")?;
    let mut command = tokio::process::Command::new(program);
    command.arg("--state").arg(dir).args(["up", "--ports", "auto", "--bench-account"]);
    command.args(args.slots.map(|slots| format!("--slots={slots}"))).env_remove("NATS_URL");
    Ok(command)
}

fn slots(args: &BenchArgs) -> usize {
    args.slots.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// The kinds of rounds, in their first order.
const KINDS: [&str; 5] = ["raw", "single", "auto", "raw_lone", "lone"];

async fn inside(args: &BenchArgs, env: &Env) -> anyhow::Result<ExitCode> {
    let client = publisher(env, "bench", crate::state::access()?, &SigningArgs::default()).await?;
    if args.telemetry {
        telemetry::inside(args, &client, env).await?;
        client.close().await;
        return Ok(ExitCode::SUCCESS);
    }
    if args.isolate {
        isolate::run(args, &client, slots(args)).await?;
        client.close().await;
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("idle for {} s …", (SETTLE_FOR + IDLE_FOR).as_secs());
    tokio::time::sleep(SETTLE_FOR).await;
    let before = snapshot();
    tokio::time::sleep(IDLE_FOR).await;
    let mut report = Report::new(&before, &snapshot(), IDLE_FOR);
    let mut raw = Raw::start(&env.need(BENCH_NATS_URL)?, slots(args)).await?;
    // Outside the clock: connections, caches, and what is learnt of durations.
    raw.round(1000).await?;
    let (_, job) = map(&client, "square", BatchSize::Auto, 20_000, square).await?;
    settled(env, &job, 20_000).await?;
    let (_, job) = lone(&client, 20).await?;
    settled(env, &job, 20).await?;
    for round in 0..args.rounds {
        let mut kinds = KINDS;
        if round % 2 == 1 {
            kinds.reverse();
        }
        for kind in kinds {
            eprintln!("round {} of {}: {kind} …", round + 1, args.rounds);
            let before = snapshot();
            let mut job = None;
            let (tasks, took, trips) = match kind {
                "raw" => (args.tasks, raw.round(args.tasks).await?, Vec::new()),
                "raw_lone" => lone_round(raw.lone(args.lone).await?),
                "lone" => {
                    let (trips, session) = lone(&client, args.lone).await?;
                    job = Some(session);
                    lone_round(trips)
                }
                _ => {
                    let (batch, tasks) = match kind {
                        "single" => (BatchSize::Fixed(1), args.tasks),
                        _ => (BatchSize::Auto, args.tasks * BATCHED_FACTOR),
                    };
                    let (took, mapped) = map(&client, "square", batch, tasks, square).await?;
                    job = Some(mapped);
                    (tasks, took, Vec::new())
                }
            };
            let all_stored = match job {
                Some(job) => settled(env, &job, tasks).await?,
                None => Duration::ZERO,
            };
            report.add(Round { kind, tasks, took, trips, all_stored }, &before, &snapshot());
        }
    }
    client.close().await;
    report.print(args.json)?;
    Ok(ExitCode::SUCCESS)
}

fn lone_round(trips: Vec<Duration>) -> (u64, Duration, Vec<Duration>) {
    (trips.len() as u64, trips.iter().sum(), trips)
}

/// How long the collector needed to store the rest: its CPU time belongs to the round, and it must not burden the next.
async fn settled(env: &Env, job: &str, tasks: u64) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let api = crate::api::Api::new(env)?;
    loop {
        let found = api.get(&format!("/api/v1/jobs/{job}"), &[]).await?;
        let done = found.as_ref().and_then(|job| job.get("done")?.as_u64()).unwrap_or(0);
        let took = started.elapsed();
        if done >= tasks {
            return Ok(took);
        }
        if took > STORED_WITHIN {
            bail!("the collector has stored {done} of {tasks} tasks of {job} after {} s", took.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn square(n: u64) -> u64 {
    n * n
}

/// Runs `kind` over `count` numbers and checks its results; how long it took from the first publish to the last result, and
/// the job.
async fn map(
    client: &Client,
    kind: &str,
    batch: BatchSize,
    count: u64,
    expected: impl Fn(u64) -> u64,
) -> anyhow::Result<(Duration, String)> {
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
    let numbers = futures_util::stream::iter((0..count).map(|n| Ok(Bytes::from(n.to_string()))));
    let started = Instant::now();
    let mut run = client.map(spec, numbers).await?;
    let job = run.job();
    for n in 0..count {
        let item = run.next().await.context("a map ended early")??;
        let right = item.end.as_ref().is_ok_and(|end| end.get().parse() == Ok(expected(n)));
        if item.index != n || !right {
            bail!("item {n} of a map ended as {item:?}");
        }
    }
    let took = started.elapsed();
    if run.next().await.is_some() {
        bail!("a map gave more than was asked");
    }
    Ok((took, job))
}

/// Lone tasks, one after the other, each checked; and the job of their session.
async fn lone(client: &Client, count: u64) -> anyhow::Result<(Vec<Duration>, String)> {
    let mut session = client.session(None).await?;
    let job = session.job().to_owned();
    let mut took = Vec::new();
    for n in 0..count {
        let task = NewTask {
            queue: "default".to_owned(),
            kind: "square".to_owned(),
            payload: Bytes::from(n.to_string()),
            ..Default::default()
        };
        let started = Instant::now();
        let (_, end) = session.run(task, RetryDeadline::Unlimited, |_| {}).await?;
        took.push(started.elapsed());
        if !end.as_ref().is_ok_and(|end| end.get().parse() == Ok(n * n)) {
            bail!("lone task {n} ended as {end:?}");
        }
    }
    Ok((took, job))
}

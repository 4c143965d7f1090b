//! `bench`: how far millpond is from what the server and its client can do at all. One run, one server, rounds of each
//! kind in turn, every result checked. It starts a cluster of its own in a temporary folder (`up -- bench`).

mod args;
mod isolate;
mod process;
mod raw;
mod report;
mod telemetry;
mod workload;

use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use millpond::bus::Role;
use millpond::client::{BatchSize, Client};
use millpond::config::SigningArgs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster_env::{CLIENT_NATS_URL, ClusterEnv, PRODUCER_NATS_URL, access};
use crate::exit;
pub(crate) use args::BenchArgs;
use args::SubmitterRole;
use process::snapshot;
use raw::Raw;
use report::{BenchReport, Round};
use workload::{BATCHED_FACTOR, all_stored, lone, map, square};

/// URL of the account for the raw rounds.
pub const BENCH_NATS_URL: &str = "MILLPOND_BENCH_NATS_URL";
/// How long the idle cluster is watched.
const IDLE_FOR: Duration = Duration::from_secs(10);
/// How long the cluster is left alone before that.
const SETTLE_FOR: Duration = Duration::from_secs(3);

/// Measures.
///
/// # Errors
/// When a result is wrong, or the cluster cannot be started.
pub async fn run(args: BenchArgs, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    match (args.inside, args.telemetry) {
        (true, _) => inside(&args, env).await,
        (false, true) => telemetry::outside(&args).await.map(|()| ExitCode::SUCCESS),
        (false, false) => outside(&args).await,
    }
}

/// Starts a cluster and runs this command in it.
async fn outside(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut command = args.cluster(dir.path())?;
    if args.isolate {
        command.arg("--handlers").arg(isolate::handlers(dir.path(), args.slots())?);
    }
    command.args(["--", "bench", "--inside", "--rounds", &args.rounds.to_string()]);
    command.args(["--tasks", &args.tasks.to_string(), "--lone", &args.lone.to_string()]);
    if args.role == SubmitterRole::Producer {
        command.args(["--role", "producer"]);
    }
    for (flag, given) in [("--json", args.json), ("--isolate", args.isolate)] {
        command.args(given.then_some(flag));
    }
    let stop = super::interrupt::on_signal()?;
    let mut cluster = command.stdin(Stdio::null()).spawn().context("cannot start the cluster")?;
    let status = tokio::select! {
        status = cluster.wait() => status?,
        () = stop.cancelled() => {
            // Ctrl-C has reached the cluster too, another signal has not. Its folder is removed when it has ended.
            if let Some(pid) = cluster.id().and_then(|id| i32::try_from(id).ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            cluster.wait().await?
        }
    };
    Ok(exit::of_process(status, exit::INTERRUPTED))
}

/// Measures on the cluster that this command runs in.
async fn inside(args: &BenchArgs, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let (role, url) = match args.role {
        SubmitterRole::Client => (Role::Client, CLIENT_NATS_URL),
        SubmitterRole::Producer => (Role::Producer, PRODUCER_NATS_URL),
    };
    let signer = env.signing(&SigningArgs::default()).signer()?;
    let client = env.client_as(role, url, "bench", access()?).await?.with_signer(signer);
    match (args.telemetry, args.isolate) {
        (true, _) => telemetry::inside(args, &client, env).await?,
        (false, true) => isolate::run(args, &client, args.slots()).await?,
        (false, false) => ratios(args, &client, env).await?,
    }
    client.close().await;
    Ok(ExitCode::SUCCESS)
}

/// The kinds of rounds, in their first order.
const KINDS: [&str; 5] = ["raw", "single", "auto", "raw_lone", "lone"];

/// Measures rounds of each kind in turn and prints what millpond reaches of the raw client.
async fn ratios(args: &BenchArgs, client: &Client, env: &ClusterEnv) -> anyhow::Result<()> {
    note!("idle for {} s …", (SETTLE_FOR + IDLE_FOR).as_secs());
    tokio::time::sleep(SETTLE_FOR).await;
    let before = snapshot();
    tokio::time::sleep(IDLE_FOR).await;
    let mut report = BenchReport::new(&before, &snapshot(), IDLE_FOR);
    let mut raw = Raw::start(&env.need(BENCH_NATS_URL)?, args.slots()).await?;
    // The warm-up is not measured: connections, caches, and the durations that batches are sized by.
    raw.round(1000).await?;
    let (_, job) = map(client, "square", BatchSize::Auto, 20_000, square).await?;
    all_stored(env, &job, 20_000).await?;
    let (_, job) = lone(client, 20).await?;
    all_stored(env, &job, 20).await?;
    for number in 0..args.rounds {
        let mut kinds = KINDS;
        if number % 2 == 1 {
            kinds.reverse();
        }
        for kind in kinds {
            note!("round {} of {}: {kind} …", number + 1, args.rounds);
            let before = snapshot();
            let round = round(kind, args, client, &mut raw, env).await?;
            report.add(round, &before, &snapshot());
        }
    }
    Ok(report.print(args.json)?)
}

async fn round(
    kind: &'static str,
    args: &BenchArgs,
    client: &Client,
    raw: &mut Raw,
    env: &ClusterEnv,
) -> anyhow::Result<Round> {
    let (tasks, took, trips, job) = match kind {
        "raw" => (args.tasks, raw.round(args.tasks).await?, Vec::new(), None),
        "raw_lone" => {
            let trips = raw.lone(args.lone).await?;
            (args.lone, trips.iter().sum(), trips, None)
        }
        "lone" => {
            let (trips, job) = lone(client, args.lone).await?;
            (args.lone, trips.iter().sum(), trips, Some(job))
        }
        _ => {
            let (batch, tasks) = match kind {
                "single" => (BatchSize::Fixed(1), args.tasks),
                _ => (BatchSize::Auto, args.tasks * BATCHED_FACTOR),
            };
            let (took, job) = map(client, "square", batch, tasks, square).await?;
            (tasks, took, Vec::new(), Some(job))
        }
    };
    let stored_after = match job {
        Some(job) => all_stored(env, &job, tasks).await?,
        None => Duration::ZERO,
    };
    Ok(Round { kind, tasks, took, trips, stored_after })
}

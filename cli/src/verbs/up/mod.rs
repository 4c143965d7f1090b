//! `up`: a whole cluster on this machine, each service a process of its own, everything in the state folder. Here is what
//! `up` tells and writes; `cluster` starts, watches and drains the processes.

mod args;
mod cluster;
mod lock;
mod ports;
mod process;

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, bail};
use millpond::bus::without_password;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::bench::BENCH_NATS_URL;
use crate::output::output;
use crate::{cluster_env, exit};
pub(crate) use args::UpArgs;
use cluster::LocalCluster;
use lock::StateFolderLock;
use process::ClusterProcess;

/// Starts the cluster, and runs the command or waits for Ctrl-C; then drains it.
///
/// # Errors
/// When something cannot be started; the processes that were started are ended.
pub async fn run(args: UpArgs, dir: &Path) -> anyhow::Result<ExitCode> {
    let _lock = StateFolderLock::take(dir)?;
    let dir = dir.canonicalize().with_context(|| format!("cannot use {}", dir.display()))?;
    let shutdown = super::interrupt::on_signal()?;
    let mut cluster = LocalCluster::start(&args, &dir, &shutdown).await?;
    let result = serve(&mut cluster, &args, &dir, &shutdown).await;
    cluster_env::remove(&dir);
    cluster.drain().await;
    if result.is_ok() && !args.command.is_empty() {
        // Cargo names itself to what it runs.
        let millpond = if std::env::var_os("CARGO").is_some() { "cargo run --" } else { "millpond" };
        note!("millpond: the cluster has stopped; what it stored is kept in {}", dir.display());
        note!("millpond: next, `{millpond} up` starts one that stays, for commands in other shells");
    }
    result
}

/// The settings of the cluster, for DIR/env and for the command.
fn env(cluster: &LocalCluster, args: &UpArgs) -> Vec<(&'static str, String)> {
    let url = |role: &str| cluster.nats_url(role);
    let mut env = vec![
        (cluster_env::CLIENT_NATS_URL, url("client")),
        (cluster_env::WORKER_NATS_URL, url("worker")),
        (cluster_env::PRODUCER_NATS_URL, url("producer")),
        (cluster_env::COLLECTOR_NATS_URL, url("collector")),
        (cluster_env::PUBLISHER_NATS_URL, url("publisher")),
        (cluster_env::PRODUCER_URL, format!("http://127.0.0.1:{}", cluster.ports.producer)),
        (cluster_env::COLLECTOR_URL, format!("http://127.0.0.1:{}", cluster.ports.collector)),
        (cluster_env::TOKEN, cluster.credentials.token.clone()),
        (cluster_env::VIEWER_TOKEN, cluster.credentials.viewer_token.clone()),
    ];
    // The services inherit the signing keys from the environment of `up`; commands in other shells read them here.
    let keys = std::env::var(cluster_env::SIGNING_KEY).ok().filter(|keys| !keys.is_empty());
    env.extend(keys.map(|keys| (cluster_env::SIGNING_KEY, keys)));
    if args.bench_account {
        env.push((BENCH_NATS_URL, url("setup").replacen("setup:", "bench:", 1)));
    }
    env
}

/// Waits until the cluster is ready, then for the end of the command, or for Ctrl-C.
async fn serve(
    cluster: &mut LocalCluster,
    args: &UpArgs,
    dir: &Path,
    shutdown: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    tokio::select! {
        ready = cluster.ready(dir) => ready?,
        () = shutdown.cancelled() => bail!("stopped before everything was ready"),
    }
    note!(
        "millpond: the cluster is up: nats-server, collector, producer and {} worker{}; logs are in {}",
        cluster.workers.len(),
        if cluster.workers.len() == 1 { "" } else { "s" },
        dir.join("log").display()
    );
    let env = env(cluster, args);
    cluster_env::write(dir, &env)?;
    if args.command.is_empty() {
        greet(cluster, &env, dir);
        cluster.watch(shutdown).await;
        note!("draining; press Ctrl-C again to stop at once");
        return Ok(ExitCode::SUCCESS);
    }
    let program = std::env::current_exe().context("this program cannot be found again")?;
    let mut command = Command::new(program);
    // Killed, `up` can tell the command nothing: the command looks for its parent itself.
    let parent = std::process::id().to_string();
    command.arg("--state").arg(dir).args(["--parent", &parent]).args(&args.command).kill_on_drop(true);
    // The shell around `up` may name another cluster; the command is for this one.
    command.envs(env.iter().map(|(name, value)| (*name, value)));
    let mut command = command.stdin(Stdio::inherit()).spawn().context("cannot run the command")?;
    note!("millpond: running {}", args.command.join(OsStr::new(" ")).display());
    // Ctrl-C reaches the command too: it ends by itself, and `up` still ends with its exit code.
    let never = CancellationToken::new();
    let status = tokio::select! {
        status = command.wait() => status?,
        () = cluster.watch(&never) => return Ok(ExitCode::SUCCESS),
    };
    Ok(exit::of_process(status, exit::INTERRUPTED))
}

/// How another shell starts this program for this cluster.
fn program(dir: &Path) -> String {
    // Cargo names itself to what it runs.
    let program = if std::env::var_os("CARGO").is_some() { "cargo run --" } else { "millpond" };
    format!("{program} --state '{}'", dir.display())
}

/// Prints where everything is. The cluster is up whether or not somebody reads that.
fn greet(cluster: &LocalCluster, env: &[(&str, String)], dir: &Path) {
    let find = |name: &str| env.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v.as_str());
    let collector = find(cluster_env::COLLECTOR_URL);
    // What stands on a screen is kept by scrollbacks, and in logs of who started this: no password.
    let nats = without_password(find(cluster_env::CLIENT_NATS_URL));
    let (token, viewer) = (cluster_env::TOKEN, cluster_env::VIEWER_TOKEN);
    let lines = [
        format!("nats       nats://{nats}"),
        format!("producer   {}", find(cluster_env::PRODUCER_URL)),
        format!("collector  {collector}"),
        format!("console    {collector}/console/"),
        format!("tokens     in {}: {token} for everything, {viewer} to read", dir.join("env").display()),
        format!("workers    {}", cluster.workers.iter().map(ClusterProcess::name).collect::<Vec<_>>().join(" ")),
        "any NATS client publishes a task:".to_owned(),
        format!(
            "  nats --server \"$({} env {})\" req tasks.default.square 12",
            program(dir),
            cluster_env::CLIENT_NATS_URL
        ),
        "ready; Ctrl-C drains and leaves".to_owned(),
    ];
    let _ = lines.iter().try_for_each(|line| writeln!(output(), "{line}"));
}

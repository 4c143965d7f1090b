//! `worker run`, `producer run`, `collector run` and `setup`: the same `run()` as the service binaries, so that one
//! binary can start real processes. A URL that is not given is taken from DIR/env: workers join by hand.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use millpond::bus::topology::{StreamLimits, setup};
use millpond::bus::{Bus, Role};
use millpond::config::{ConnectArgs, LogArgs, bytes};
use tokio_util::sync::CancellationToken;

use crate::state::{COLLECTOR_NATS_URL, Env, PRODUCER_NATS_URL, TOKEN, VIEWER_TOKEN, WORKER_NATS_URL};

/// Leave when the parent does.
#[derive(Args, Debug)]
pub struct ParentArgs {
    /// Drain when standard input ends: whoever started this process is gone.
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

impl ParentArgs {
    fn shutdown(&self) -> anyhow::Result<CancellationToken> {
        let token = millpond::shutdown::on_signal()?;
        if self.exit_with_parent {
            millpond::shutdown::on_stdin_end(&token);
        }
        Ok(token)
    }
}

/// `worker run`.
#[derive(Args, Debug)]
pub struct WorkerRunArgs {
    #[command(flatten)]
    pub(crate) config: millpond_worker::Config,
    #[command(flatten)]
    parent: ParentArgs,
}

/// Runs a worker until it is told to stop.
///
/// # Errors
/// When a setting does not fit or NATS cannot be reached.
pub async fn run_worker(mut args: WorkerRunArgs, env: &Env) -> anyhow::Result<ExitCode> {
    args.config.nats_url = args.config.nats_url.or_else(|| env.get(WORKER_NATS_URL));
    args.config.signing = env.signing(&args.config.signing);
    millpond_worker::run(args.config.check()?, args.parent.shutdown()?).await?;
    Ok(ExitCode::SUCCESS)
}

/// The producer service.
#[derive(Subcommand, Debug)]
pub enum ProducerCommand {
    /// Run it in the foreground.
    Run(ProducerRunArgs),
}

/// `producer run`.
#[derive(Args, Debug)]
pub struct ProducerRunArgs {
    #[command(flatten)]
    config: millpond_producer::Config,
    #[command(flatten)]
    parent: ParentArgs,
}

impl ProducerCommand {
    pub(crate) fn log(&self) -> LogArgs {
        let Self::Run(args) = self;
        args.config.service.log.clone()
    }
}

/// Runs the producer until it is told to stop.
///
/// # Errors
/// When a setting does not fit or NATS cannot be reached.
pub async fn run_producer(command: ProducerCommand, env: &Env) -> anyhow::Result<ExitCode> {
    let ProducerCommand::Run(mut args) = command;
    args.config.nats_url = args.config.nats_url.or_else(|| env.get(PRODUCER_NATS_URL));
    args.config.token.token = env.or(args.config.token.token, args.config.token.token_file.is_some(), TOKEN);
    args.config.signing = env.signing(&args.config.signing);
    millpond_producer::run(args.config.check()?, args.parent.shutdown()?).await?;
    Ok(ExitCode::SUCCESS)
}

/// The collector service.
#[derive(Subcommand, Debug)]
pub enum CollectorCommand {
    /// Run it in the foreground.
    Run(CollectorRunArgs),
}

/// `collector run`.
#[derive(Args, Debug)]
pub struct CollectorRunArgs {
    #[command(flatten)]
    config: millpond_collector::Config,
    #[command(flatten)]
    parent: ParentArgs,
}

impl CollectorCommand {
    pub(crate) fn log(&self) -> LogArgs {
        let Self::Run(args) = self;
        args.config.service.log.clone()
    }
}

/// Runs the collector until it is told to stop.
///
/// # Errors
/// When a setting does not fit or NATS cannot be reached.
pub async fn run_collector(command: CollectorCommand, env: &Env) -> anyhow::Result<ExitCode> {
    let CollectorCommand::Run(mut args) = command;
    args.config.nats_url = args.config.nats_url.or_else(|| env.get(COLLECTOR_NATS_URL));
    args.config.token.token = env.or(args.config.token.token, args.config.token.token_file.is_some(), TOKEN);
    args.config.viewer_token = env.or(args.config.viewer_token, args.config.viewer_token_file.is_some(), VIEWER_TOKEN);
    millpond_collector::run(args.config.check()?, args.parent.shutdown()?).await?;
    Ok(ExitCode::SUCCESS)
}

/// `setup`.
#[derive(Args, Debug)]
pub struct SetupArgs {
    /// NATS, with the setup role's user and password.
    #[arg(long, env = "MILLPOND_SETUP_NATS_URL", hide_env_values = true)]
    nats_url: Option<String>,
    /// Messages that TASKS holds at the most; publishers wait beyond it.
    #[arg(long, env = "MILLPOND_SETUP_TASKS_MAX", default_value_t = StreamLimits::default().tasks_max)]
    tasks_max: i64,
    /// Size of TASKS at the most; publishers wait beyond it. Raise it for long queues of large tasks.
    #[arg(long, env = "MILLPOND_SETUP_TASKS_BYTES_MAX", default_value = "4GiB", value_parser = bytes)]
    tasks_bytes_max: u64,
    /// Size of RESULTS at the most; workers wait beyond it. Raise it for long outages of the collector.
    #[arg(long, env = "MILLPOND_SETUP_RESULTS_BYTES_MAX", default_value = "4GiB", value_parser = bytes)]
    results_bytes_max: u64,
    /// Size of DEAD at the most.
    #[arg(long, env = "MILLPOND_SETUP_DEAD_BYTES_MAX", default_value = "1GiB", value_parser = bytes)]
    dead_bytes_max: u64,
    /// Size of the store of large payloads at the most; whoever puts more waits. Default: as much as the server may store.
    #[arg(long, env = "MILLPOND_SETUP_PAYLOADS_BYTES_MAX", value_parser = bytes)]
    payloads_bytes_max: Option<u64>,
    /// Copies of everything: 1, or 3 in a cluster of servers.
    #[arg(long, env = "MILLPOND_SETUP_REPLICAS", default_value_t = 1)]
    replicas: usize,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Makes or updates everything on the server.
///
/// # Errors
/// What the server refused.
pub async fn run_setup(args: SetupArgs, env: &Env) -> anyhow::Result<ExitCode> {
    let url = match args.nats_url {
        Some(url) => url,
        None => env.need("MILLPOND_SETUP_NATS_URL")?,
    };
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let limits = StreamLimits {
        tasks_max: args.tasks_max,
        tasks_bytes_max: signed(args.tasks_bytes_max),
        results_bytes_max: signed(args.results_bytes_max),
        dead_bytes_max: signed(args.dead_bytes_max),
        payloads_bytes_max: args.payloads_bytes_max.map_or(-1, signed),
        replicas: args.replicas,
    };
    let bus = Bus::connect(&url, Role::Setup, "setup", args.connect.check()?).await?;
    setup(&bus, &limits).await?;
    bus.close().await;
    eprintln!("streams, consumers and buckets are in place");
    Ok(ExitCode::SUCCESS)
}

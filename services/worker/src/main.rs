//! Binary `millpond-worker`: the worker service with the built-in kinds.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Takes tasks from NATS, runs their handlers in slots, and settles them.
#[derive(Parser)]
#[command(name = "millpond-worker", version)]
struct Cli {
    #[command(flatten)]
    config: millpond_worker::Config,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What else it can do than to run.
#[derive(Subcommand)]
enum Command {
    /// Ask the worker that runs here, with these settings, whether it is ready: exit code 0 when it is. For containers.
    Health,
}

/// The C library's allocator takes a fifth of a busy worker's time (`millpond bench` tells).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    millpond_worker::child_main();
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millpond-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    let config = cli.config;
    if let Some(Command::Health) = cli.command {
        let listen = config.listen.context("this worker serves no health: set --listen or MILLPOND_WORKER_LISTEN")?;
        return Ok(config.http_tls.health(listen)?);
    }
    let telemetry = millpond::telemetry::start("millpond-worker", Some(&config.name()), &config.log)?;
    let settings = config.check()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let result = runtime.block_on(async {
        let shutdown = millpond::shutdown::on_signal().context("cannot listen for signals")?;
        millpond_worker::run(settings, shutdown).await
    });
    // A handler's thread that never ends must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    telemetry.flush();
    result
}

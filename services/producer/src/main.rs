//! Binary `millpond-producer`: the producer service.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Takes tasks over HTTP and publishes them to NATS.
#[derive(Parser)]
#[command(name = "millpond-producer", version)]
struct Cli {
    #[command(flatten)]
    config: millpond_producer::Config,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What else it can do than to run.
#[derive(Subcommand)]
enum Command {
    /// Ask the producer that runs here, with these settings, whether it is ready: exit code 0 when it is. For containers.
    Health,
}

/// The C library's allocator takes a fifth of a busy worker's time (`millpond bench` tells).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millpond-producer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    let config = cli.config;
    if let Some(Command::Health) = cli.command {
        return Ok(config.http_tls.health(config.listen)?);
    }
    let telemetry = millpond::telemetry::start("millpond-producer", None, &config.log)?;
    let settings = config.check()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let result = runtime.block_on(async {
        let shutdown = millpond::shutdown::on_signal().context("cannot listen for signals")?;
        millpond_producer::run(settings, shutdown).await
    });
    telemetry.flush();
    result
}

//! Binary `millpond-collector`: the collector service.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Keeps what ended: results, attempts, dead letters; and serves them over HTTP.
#[derive(Parser)]
#[command(name = "millpond-collector", version)]
struct Cli {
    #[command(flatten)]
    config: millpond_collector::Config,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What else it can do than to run.
#[derive(Subcommand)]
enum Command {
    /// Ask the collector that runs here, with these settings, whether it is ready: exit code 0 when it is. For containers.
    Health,
    /// Print the operator's token, for a login at /console/.
    Token,
}

/// The C library's allocator takes a fifth of a busy worker's time (`millpond bench` tells).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millpond-collector: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    let config = cli.config;
    match cli.command {
        Some(Command::Health) => return Ok(config.http_tls.health(config.listen)?),
        Some(Command::Token) => {
            println!("{}", config.operators_token()?);
            return Ok(());
        }
        None => {}
    }
    let telemetry = millpond::telemetry::start("millpond-collector", None, &config.log)?;
    let settings = config.check()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let result = runtime.block_on(async {
        let shutdown = millpond::shutdown::on_signal().context("cannot listen for signals")?;
        millpond_collector::run(settings, shutdown).await
    });
    telemetry.flush();
    result
}

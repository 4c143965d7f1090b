//! Binary `millpond-worker`: the worker service with the built-in kinds.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

/// Takes tasks from NATS, runs their handlers in slots, and settles them.
#[derive(Parser)]
#[command(name = "millpond-worker", version)]
struct Cli {
    #[command(flatten)]
    config: millpond_worker::Config,
}

/// The C library's allocator takes a fifth of a busy worker's time (`millpond bench` tells).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    millpond_worker::child_main();
    match start(Cli::parse().config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millpond-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: millpond_worker::Config) -> anyhow::Result<()> {
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

//! The program `millpond-worker`: the service alone, under its own name.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::Config;

/// The name of the program, and of the service in telemetry.
const NAME: &str = "millpond-worker";

/// Takes tasks from NATS, runs their handlers in slots, and settles them.
#[derive(Parser)]
#[command(name = NAME, version)]
struct Program {
    #[command(flatten)]
    config: Config,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What the program does instead of running the service.
#[derive(Subcommand)]
enum Command {
    /// Ask the worker that runs here, with these settings, whether it is ready: exit code 0 when it is. For containers.
    Health,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    crate::child_main();
    millpond_service::exit_code(NAME, start(Program::parse()))
}

fn start(program: Program) -> anyhow::Result<()> {
    let config = program.config;
    match program.command {
        Some(Command::Health) => {
            let listen =
                config.listen.context("this worker serves no health: set --listen or MILLPOND_WORKER_LISTEN")?;
            Ok(config.http_tls.health(listen)?)
        }
        None => {
            let (instance, log) = (Some(config.name()), config.log.clone());
            millpond_service::run(NAME, instance.as_deref(), &log, async |shutdown| {
                crate::run(config.check()?, shutdown).await
            })
        }
    }
}

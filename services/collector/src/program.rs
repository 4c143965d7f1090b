//! The program `millpond-collector`: the service alone, under its own name.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::Config;

/// The name of the program, and of the service in telemetry.
const NAME: &str = "millpond-collector";

/// Keeps what ended: results, attempts, dead letters; and serves them over HTTP.
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
    /// Ask the collector that runs here, with these settings, whether it is ready: exit code 0 when it is. For containers.
    Health,
    /// Print the operator's token, for a login at /console/.
    Token,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    millpond_service::exit_code(NAME, start(Program::parse()))
}

fn start(program: Program) -> anyhow::Result<()> {
    let config = program.config;
    match program.command {
        Some(Command::Health) => Ok(config.http_tls.health(config.listen)?),
        Some(Command::Token) => {
            println!("{}", config.operators_token()?);
            Ok(())
        }
        None => {
            let (instance, log) = (None::<String>, config.log.clone());
            millpond_service::run(NAME, instance.as_deref(), &log, async |shutdown| {
                crate::run(config.check()?, shutdown).await
            })
        }
    }
}

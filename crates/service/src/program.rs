//! A service as a program of its own, under its own name: settings from flags and the environment, telemetry, a runtime,
//! signals, and the exit code.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use millpond::visible::visible;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::settings::ServiceArgs;

/// How long a thread that never ends, such as a handler's, may keep the process at its end.
const THREADS_END_WITHIN: Duration = Duration::from_millis(100);

/// The settings of a service, as typed, and what the service is.
pub trait Service: Args {
    /// Name of the program, and of the service in telemetry: `millpond-<service>`.
    const NAME: &'static str;
    /// What the service does, for `--help`.
    const ABOUT: &'static str;
    /// What the program does instead of running the service, beside `health`.
    type Command: Subcommand;

    /// The settings that every service has.
    fn args(&self) -> &ServiceArgs;

    /// Where health is served.
    ///
    /// # Errors
    /// When it is not served.
    fn health_address(&self) -> anyhow::Result<SocketAddr>;

    /// Name of this instance in telemetry, where it has one of its own.
    fn instance(&self) -> Option<String> {
        None
    }

    /// Does something else instead of running the service.
    ///
    /// # Errors
    /// When it cannot be done.
    fn execute(self, command: Self::Command) -> anyhow::Result<()>;

    /// Checks the settings and runs the service until `shutdown`.
    fn run(self, shutdown: CancellationToken) -> impl Future<Output = anyhow::Result<()>> + Send + 'static;
}

/// A service that has no further commands.
#[derive(Subcommand)]
pub enum NoCommand {}

#[derive(Parser)]
#[command(version)]
struct Program<S: Service> {
    #[command(flatten)]
    config: S,
    #[command(subcommand)]
    command: Option<Command<S::Command>>,
}

/// What the program does instead of running the service.
#[derive(Subcommand)]
enum Command<M: Subcommand> {
    /// Ask the service that runs here, with these settings, whether it is ready: exit code 0 when it is. For containers.
    Health,
    #[command(flatten)]
    Other(M),
}

/// What this process writes from now on is for its user alone: files of mode 0600 in folders of 0700. Not for a worker, whose handlers
/// would write so too.
pub fn keep_files_private() {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
}

/// Says why a service ends, in the format of its log; where that leaves errors out, as plain text.
pub fn log_end(name: &str, error: &anyhow::Error) {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{name} ends: {}", visible(&format!("{error:#}")));
    } else {
        print_end(name, error);
    }
}

fn print_end(name: &str, error: &anyhow::Error) {
    // A standard error that is full or gone does not change the exit code.
    let _ = writeln!(std::io::stderr(), "{name}: {}", visible(&format!("{error:#}")));
}

/// Runs the program of a service. An error is reported here, and nowhere else.
#[must_use]
pub fn main<S: Service>() -> ExitCode {
    main_with::<S, _>(S::run)
}

/// The same for a program that runs the service in its own way.
#[must_use]
pub fn main_with<S: Service, F: Future<Output = anyhow::Result<()>> + Send + 'static>(
    run: impl FnOnce(S, CancellationToken) -> F,
) -> ExitCode {
    match start(parse::<S>(std::env::args_os()), run) {
        Ok(code) => code,
        Err(error) => {
            print_end(S::NAME, &error);
            ExitCode::FAILURE
        }
    }
}

fn parse<S: Service>(typed: impl IntoIterator<Item = OsString>) -> Program<S> {
    let mut command = Program::<S>::command().name(S::NAME).bin_name(S::NAME).about(S::ABOUT);
    let program = Program::from_arg_matches(&command.clone().get_matches_from(typed));
    program.unwrap_or_else(|error| error.format(&mut command).exit())
}

fn start<S: Service, F: Future<Output = anyhow::Result<()>> + Send + 'static>(
    program: Program<S>,
    run: impl FnOnce(S, CancellationToken) -> F,
) -> anyhow::Result<ExitCode> {
    let config = program.config;
    match program.command {
        Some(Command::Health) => config.args().http.health(config.health_address()?)?,
        Some(Command::Other(command)) => config.execute(command)?,
        None => {
            let telemetry = millpond::telemetry::start(S::NAME, config.instance().as_deref(), &config.args().log)?;
            let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
            let result = runtime.block_on(async {
                let shutdown = millpond::shutdown::on_signal().context("cannot listen for signals")?;
                // A task of its own: on the thread that waits in `block_on`, each wake-up would cost a system call.
                let mut service = JoinSet::new();
                service.spawn(run(config, shutdown));
                service.join_next().await.context("the service was not started")??
            });
            runtime.shutdown_timeout(THREADS_END_WITHIN);
            if let Err(error) = &result {
                log_end(S::NAME, error);
            }
            telemetry.flush();
            if result.is_err() {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

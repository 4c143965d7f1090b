//! The `millpond` command: one file per verb, an error printed in one place, exit codes in one list. The library form
//! is for the integration tests. `up` is the only verb that starts other processes.

pub mod api;
mod bench;
mod call;
mod dead;
mod doctor;
mod guard;
mod job;
mod join;
mod map;
pub mod nats_server;
mod no_wait;
mod output;
mod payloads;
mod queue;
mod schedule;
mod secrets;
mod service;
mod shared;
pub mod state;
mod submit;
mod task;
mod tasks;
mod top;
mod up;
mod why;
mod worker;
mod xargs;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use millpond::bus::ConnectError;
use millpond::bus::publish::PublishError;
use millpond::client::{MapError, SubmitError};
use millpond::config::LogArgs;
use millpond_service::program;

use state::Env;

/// A task failed, or a job did not end well.
pub const EXIT_TASK_FAILED: u8 = 1;
/// `job wait`: a job has nobody who adds to it or closes it, and nothing of it changes.
pub const EXIT_STALLED: u8 = 5;
/// NATS or the collector cannot be reached.
pub const EXIT_UNREACHABLE: u8 = 69;
/// The queue is full: come again.
pub const EXIT_QUEUE_FULL: u8 = 75;
/// Anything else that went wrong.
pub const EXIT_ERROR: u8 = 70;

/// A worker pool that spans machines, over NATS JetStream.
#[derive(Parser)]
#[command(name = "millpond", version, propagate_version = true)]
struct Cli {
    /// Folder in which `up` keeps everything, and in which the other commands find how to reach it.
    #[arg(long, env = "MILLPOND_STATE", default_value = ".millpond", global = true)]
    state: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the whole cluster on this machine: nats-server, producer, workers, collector; Ctrl-C drains it.
    Up(up::UpArgs),
    /// Publish one task; with --wait, print its result.
    Submit(submit::SubmitArgs),
    /// Run a kind over many arguments and print the results, in order, one JSON value a line.
    Map(map::MapArgs),
    /// Run a command for each line, on the workers: GNU parallel over the cluster.
    Xargs(xargs::XargsArgs),
    /// Call a handler and print its result, or converse with it; nothing is stored.
    Call(call::CallArgs),
    /// List jobs, show one, wait for some, print results, cancel.
    #[command(subcommand)]
    Job(job::JobCommand),
    /// List tasks, export them, show what became of one, print its result, cancel it.
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Dead letters: tasks that wait for a person.
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    /// Queues: what waits; pause, resume, purge, set a limit.
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// Tasks that recur: add, list, pause, resume, remove.
    Schedule(schedule::ScheduleArgs),
    /// Why has this task no result? One sentence, and an exit code for each answer.
    Why(why::WhyArgs),
    /// Watch queues, workers with their children, and jobs.
    Top(top::TopArgs),
    /// State that programs share: keys with compare-and-set.
    Shared(shared::SharedArgs),
    /// Look whether everything is well, and say what to do where it is not.
    Doctor(doctor::DoctorArgs),
    /// Measure the distance to what the server can do at all, on a cluster of its own.
    Bench(bench::BenchArgs),
    /// Print a completion script for a shell.
    Completions {
        /// bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
    /// List workers, drain them, or run one.
    #[command(subcommand)]
    Worker(worker::WorkerCommand),
    /// The producer service.
    #[command(subcommand)]
    Producer(Box<service::ProducerCommand>),
    /// The collector service.
    #[command(subcommand)]
    Collector(Box<service::CollectorCommand>),
    /// Make or update streams, consumers and buckets; safe to repeat.
    Setup(service::SetupArgs),
    /// Make passwords and tokens for a cluster of containers: once, as files, a folder for each service.
    Secrets(secrets::SecretsArgs),
    /// Print the settings of the cluster, with its secrets, as lines for a shell or for another machine's .millpond/env.
    Env(secrets::EnvArgs),
    /// Run a program that ends when standard input does.
    #[command(hide = true)]
    Guard(guard::GuardArgs),
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    millpond_worker::child_main();
    // The images have one program; a service's name for it is that service.
    let name = std::env::args_os().next().map(PathBuf::from);
    match name.as_deref().and_then(Path::file_name).and_then(OsStr::to_str) {
        Some("millpond-producer") => return program::main::<millpond_producer::Config>(),
        Some("millpond-worker") => return program::main::<millpond_worker::Config>(),
        Some("millpond-collector") => return program::main::<millpond_collector::Config>(),
        _ => {}
    }
    let cli = Cli::parse();
    // The process's choice of cryptography for HTTPS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = start(cli);
    result.unwrap_or_else(|error| {
        if !is_broken_pipe(&error) {
            eprintln!("millpond: {error:#}");
        }
        ExitCode::from(exit_code(&error))
    })
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    let (name, instance, log) = cli.command.logs();
    let telemetry = millpond::telemetry::start(name, instance.as_deref(), &log)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(run(cli));
    // A thread that waits for standard input, or a handler that never ends, must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(50));
    telemetry.flush();
    result
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let env = Env::load(&cli.state);
    match cli.command {
        Command::Up(args) => up::run(args, &cli.state).await,
        Command::Submit(args) => submit::run(args, &env).await,
        Command::Map(args) => map::run(args, &env).await,
        Command::Xargs(args) => xargs::run(args, &env).await,
        Command::Call(args) => call::run(args, &env).await,
        Command::Job(command) => job::run(command, &env).await,
        Command::Task(command) => task::run(command, &env).await,
        Command::Dead(command) => dead::run(command, &env).await,
        Command::Queue(command) => queue::run(command, &env).await,
        Command::Schedule(args) => schedule::run(args, &env).await,
        Command::Why(args) => why::run(args, &env).await,
        Command::Top(args) => top::run(args, &env).await,
        Command::Shared(args) => shared::run(args, &env).await,
        Command::Doctor(args) => doctor::run(args, &env).await,
        Command::Bench(args) => bench::run(args, &env).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "millpond", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Worker(command) => worker::run(command, &env).await,
        Command::Producer(command) => service::run_producer(*command, &env).await,
        Command::Collector(command) => service::run_collector(*command, &env).await,
        Command::Setup(args) => service::run_setup(args, &env).await,
        Command::Secrets(args) => secrets::run(&args),
        Command::Env(args) => secrets::env(&args, &env),
        Command::Guard(args) => guard::run(args).await,
    }
}

impl Command {
    /// The names under which this process logs, and how: services as they are told, verbs only what is unexpected.
    fn logs(&self) -> (&'static str, Option<String>, LogArgs) {
        match self {
            Self::Worker(worker::WorkerCommand::Run(args)) => {
                ("millpond-worker", Some(args.config.name()), args.config.service.log.clone())
            }
            Self::Producer(command) => ("millpond-producer", None, command.log()),
            Self::Collector(command) => ("millpond-collector", None, command.log()),
            _ => ("millpond", None, quiet()),
        }
    }
}

fn quiet() -> LogArgs {
    LogArgs {
        log: std::env::var("MILLPOND_LOG").unwrap_or_else(|_| "error".to_owned()),
        log_json: false,
        log_file: None,
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let unreachable = error.chain().any(|cause| {
        cause.is::<ConnectError>()
            || cause.downcast_ref().is_some_and(|e: &reqwest::Error| e.is_connect() || e.is_timeout())
    });
    let is_full = |e: &SubmitError| matches!(e, SubmitError::Publish(PublishError::QueueFull { .. }));
    let full = error.chain().any(|cause| match cause.downcast_ref() {
        Some(MapError::Submit(error)) => is_full(error),
        _ => cause.downcast_ref().is_some_and(is_full),
    });
    match () {
        () if is_broken_pipe(error) => 0,
        () if full => EXIT_QUEUE_FULL,
        () if unreachable => EXIT_UNREACHABLE,
        () => EXIT_ERROR,
    }
}

/// Whoever read our output has had enough (`| head`).
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(broken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

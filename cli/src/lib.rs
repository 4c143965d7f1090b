//! The `millpond` command: one file per verb in `verbs`, errors printed in one place, exit codes listed in `exit`.
//! The library form is for the integration tests.

#[macro_use]
mod output;

mod addresses;
pub mod api;
mod cluster_env;
pub mod credentials;
mod exit;
mod nats_config;
pub mod nats_server;
mod private_file;
mod verbs;

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use millpond::config::LogArgs;
use millpond_service::program;

use cluster_env::ClusterEnv;
use verbs::services::ServiceCommand;
use verbs::{
    bench, call, dead, doctor, env, explain, handler, interrupt, job, map, queue, run_with_parent, schedule, secrets,
    setup, shared, submit, task, top, up, why, worker, xargs,
};

/// How long a thread that never ends, such as one that reads standard input, may delay the end of the process.
const THREADS_END_WITHIN: Duration = Duration::from_millis(50);

/// What verbs log: errors, and that they wait for NATS.
const VERB_LOG: &str = "error,millpond::bus::wait_log=warn";

/// How often a process that is to end with its parent looks for it.
const PARENT_POLL_EVERY: Duration = Duration::from_millis(200);

/// A worker pool that spans machines, over NATS JetStream.
#[derive(Parser)]
#[command(name = "millpond", version, propagate_version = true)]
struct Cli {
    /// Folder in which `up` keeps the cluster, and where the other commands find its addresses and passwords.
    #[arg(long, env = "MILLPOND_STATE", default_value = ".millpond", global = true)]
    state: PathBuf,
    /// End when the parent is no longer the process of this id.
    #[arg(long, hide = true, global = true)]
    parent: Option<i32>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a whole cluster on this machine: nats-server, producer, workers and collector. Ctrl-C drains it.
    Up(up::UpArgs),
    /// Publish one task; with --wait, print its result.
    Submit(submit::SubmitArgs),
    /// Run a kind over many arguments and print the results in order, one JSON value per line.
    Map(map::MapArgs),
    /// Run a command for each input line on the workers, as GNU parallel does on one machine.
    Xargs(xargs::XargsArgs),
    /// Call a handler and print its answer, or hold a conversation with it; nothing is stored.
    Call(call::CallArgs),
    /// List, show, await and cancel jobs, and print their results.
    #[command(subcommand)]
    Job(job::JobCommand),
    /// List, export, show and cancel tasks, and print their results.
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// List, show, retry and purge dead letters: failed tasks that wait for a decision.
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    /// Try a handler of handlers.toml on this machine, without a cluster.
    #[command(subcommand)]
    Handler(handler::HandlerCommand),
    /// List queues; pause, resume, purge and limit them.
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// Add, list, pause, resume and remove schedules of recurring tasks.
    Schedule(schedule::ScheduleArgs),
    /// Explain in one sentence why a task has no result yet, with an exit code for each reason.
    Why(why::WhyArgs),
    /// Watch queues, workers with their child processes, and jobs.
    Top(top::TopArgs),
    /// Read and write keys that programs share, with compare-and-set.
    Shared(shared::SharedArgs),
    /// Check everything that a cluster needs, and say how to repair what is wrong.
    Doctor(doctor::DoctorArgs),
    /// Explain a problem by its code: how it looks, why it comes about, and what to do.
    Explain(explain::ExplainArgs),
    /// Measure throughput and latency against the bare NATS client, on a temporary cluster.
    Bench(bench::BenchArgs),
    /// Print a completion script for a shell.
    Completions {
        /// Name of the shell: bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
    /// List workers, drain them, or run one.
    #[command(subcommand)]
    Worker(worker::WorkerCommand),
    /// Run the producer service.
    #[command(subcommand)]
    Producer(Box<ServiceCommand<millpond_producer::Config>>),
    /// Run the collector service.
    #[command(subcommand)]
    Collector(Box<ServiceCommand<millpond_collector::Config>>),
    /// Create or update the streams, consumers and buckets on the NATS server; repeating it is safe.
    Setup(setup::SetupArgs),
    /// Generate the passwords and tokens of a cluster of containers as files, one folder per service.
    Secrets(secrets::SecretsArgs),
    /// Print the settings of the cluster, secrets included, as lines for a shell or for another machine's .millpond/env.
    Env(env::EnvArgs),
    /// Become a program that is killed when the parent is gone.
    #[command(hide = true)]
    RunWithParent(run_with_parent::RunWithParentArgs),
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    millpond_worker::child_main();
    // The images hold one program: under the name of a service it is that service.
    let name = std::env::args_os().next().map(PathBuf::from);
    match name.as_deref().and_then(Path::file_name).and_then(OsStr::to_str) {
        Some("millpond-producer") => return program::main::<millpond_producer::Config>(),
        Some("millpond-worker") => return program::main::<millpond_worker::Config>(),
        Some("millpond-collector") => return program::main::<millpond_collector::Config>(),
        _ => {}
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => return tell(&told),
    };
    // The process chooses its cryptography for HTTPS once.
    let _ = rustls::crypto::ring::default_provider().install_default();
    start(cli).unwrap_or_else(|error| {
        if !exit::is_broken_pipe(&error) {
            note!("millpond: {error:#}");
        }
        exit::of(&error).into()
    })
}

/// Prints what is wrong with the command line, or the help that was wanted.
fn tell(told: &clap::Error) -> ExitCode {
    match told.print() {
        // A standard error that is full or gone does not change the exit code.
        _ if told.use_stderr() => exit::USAGE.into(),
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            note!("millpond: standard output: {error}");
            exit::ERROR.into()
        }
        _ => ExitCode::SUCCESS,
    }
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    let (name, instance, log) = cli.command.telemetry();
    let telemetry = millpond::telemetry::start(name, instance.as_deref(), &log)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let is_service = cli.command.is_service();
    let result = runtime.block_on(async {
        if let Some(parent) = cli.parent {
            millpond::shutdown::spawn(end_without(parent));
        }
        run(cli).await
    });
    runtime.shutdown_timeout(THREADS_END_WITHIN);
    let result = match result {
        Err(error) if is_service || log.log_json => {
            program::log_end(name, &error);
            Ok(exit::of(&error).into())
        }
        result => result,
    };
    telemetry.flush();
    result
}

/// Ends the process when its parent is gone.
async fn end_without(parent: i32) {
    while nix::unistd::getppid().as_raw() == parent {
        tokio::time::sleep(PARENT_POLL_EVERY).await;
    }
    std::process::exit(exit::INTERRUPTED.into());
}

/// Runs the verb, until its end or that of its connection.
async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let env = ClusterEnv::load(&cli.state);
    let (interrupted, next) = (interrupt::unheeded()?, cli.command.after_interrupt());
    tokio::select! {
        biased;
        result = run_verb(cli, &env) => result,
        failure = env.connection_failed() => Err(failure),
        () = interrupted.cancelled() => {
            note!("millpond: interrupted{next}");
            Ok(exit::INTERRUPTED.into())
        }
    }
}

async fn run_verb(cli: Cli, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Up(args) => up::run(args, &cli.state).await,
        Command::Submit(args) => submit::run(args, env).await,
        Command::Map(args) => map::run(args, env).await,
        Command::Xargs(args) => xargs::run(args, env).await,
        Command::Call(args) => call::run(args, env).await,
        Command::Job(command) => job::run(command, env).await,
        Command::Task(command) => task::run(command, env).await,
        Command::Dead(command) => dead::run(command, env).await,
        Command::Handler(command) => handler::run(command, env).await,
        Command::Queue(command) => queue::run(command, env).await,
        Command::Schedule(args) => schedule::run(args, env).await,
        Command::Why(args) => why::run(args, env).await,
        Command::Top(args) => top::run(args, env).await,
        Command::Shared(args) => shared::run(args, env).await,
        Command::Doctor(args) => doctor::run(args, env).await,
        Command::Explain(args) => explain::run(&args),
        Command::Bench(args) => bench::run(args, env).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "millpond", &mut script);
            output::output().write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Worker(command) => worker::run(command, env).await,
        Command::Producer(command) => match *command {
            ServiceCommand::Run(args) => args.run(env).await,
        },
        Command::Collector(command) => match *command {
            ServiceCommand::Run(args) => args.run(env).await,
        },
        Command::Setup(args) => setup::run(args, env).await,
        Command::Secrets(args) => secrets::run(&args),
        Command::Env(args) => env::run(&args, env),
        Command::RunWithParent(args) => match run_with_parent::run(args, cli.parent).await? {},
    }
}

impl Command {
    /// Whether it runs a service: then even its end is a line of its log.
    fn is_service(&self) -> bool {
        matches!(self, Self::Worker(worker::WorkerCommand::Run(_)) | Self::Producer(_) | Self::Collector(_))
    }

    /// What becomes of the work of a verb that was interrupted, and what to do next. Verbs that deal with signals say it themselves.
    fn after_interrupt(&self) -> String {
        match self {
            Self::Job(command) => command.after_interrupt(),
            Self::Submit(_) => {
                "; the task may be stored already: `millpond task ls --limit 5` shows the newest".to_owned()
            }
            Self::Call(_) => "; a call is not stored: call again".to_owned(),
            Self::Setup(_) => "; run it again: what is in place already stays".to_owned(),
            _ => String::new(),
        }
    }

    /// The names under which this process logs, and how: services as their settings say, verbs only errors, and that they wait for
    /// NATS. Setup runs in containers beside the services, and logs as they do.
    fn telemetry(&self) -> (&'static str, Option<String>, LogArgs) {
        match self {
            Self::Worker(worker::WorkerCommand::Run(args)) => args.telemetry(),
            Self::Producer(command) => match command.as_ref() {
                ServiceCommand::Run(args) => args.telemetry(),
            },
            Self::Collector(command) => match command.as_ref() {
                ServiceCommand::Run(args) => args.telemetry(),
            },
            _ => {
                // The log of a handler that is tried is a part of what one wants to see.
                let default = if matches!(self, Self::Handler(_)) { "info" } else { VERB_LOG };
                let log = std::env::var("MILLPOND_LOG").unwrap_or_else(|_| default.to_owned());
                let is_json = || std::env::var("MILLPOND_LOG_JSON").is_ok_and(|value| value == "true");
                let log_json = matches!(self, Self::Setup(_)) && is_json();
                ("millpond", None, LogArgs { log, log_json, log_file: None })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The sources of all that gives advice.
    fn sources(below: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(below).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }

    /// A command as advice has it, with something in the place of what stands for something.
    fn words(command: &str) -> Vec<String> {
        let mut filled = String::new();
        let mut depth = 0;
        for c in command.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 1 => {
                    depth = 0;
                    filled.push_str("x1");
                }
                '}' => depth -= 1,
                _ if depth > 0 => {}
                _ => filled.push(c),
            }
        }
        let filled = filled.replace("run x1", "run --allow-xargs x1");
        let of = |word: &str| match word {
            "N" => "1".to_owned(),
            word => word.to_owned(),
        };
        let words = filled.split_whitespace().filter(|word| !word.contains(['…', '[', ']'])).map(of);
        words.collect()
    }

    #[test]
    fn advice_names_commands_that_there_are() {
        use clap::error::ErrorKind;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut files = Vec::new();
        for below in ["cli/src", "services", "crates"] {
            sources(&root.join(below), &mut files);
        }
        let mut tried = 0;
        let mut wrong = Vec::new();
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            for (start, _) in text.match_indices("`millpond ") {
                let Some(command) = text[start + 1..].split('`').next() else { continue };
                if command.contains(['\n', '|', '"']) {
                    continue;
                }
                tried += 1;
                let Err(error) = Cli::try_parse_from(words(command)) else { continue };
                let is_begun = matches!(
                    error.kind(),
                    ErrorKind::MissingRequiredArgument
                        | ErrorKind::DisplayHelp
                        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                        | ErrorKind::MissingSubcommand
                );
                if !is_begun {
                    wrong.push(format!("{}: `{command}`: {error}", file.display()));
                }
            }
        }
        assert!(tried > 40, "only {tried} commands are found");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

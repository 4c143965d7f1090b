//! `worker ls|drain`, through the collector; `worker run` is in `services`.

mod drain;
pub(super) mod list;

use std::process::ExitCode;

use clap::Subcommand;

use super::services::RunArgs;
use crate::api::Api;
use crate::cluster_env::ClusterEnv;
use crate::output::json_line;

/// What to do with workers.
#[derive(Subcommand, Debug)]
pub enum WorkerCommand {
    /// List workers and their child processes, and what they do now.
    Ls {
        /// Print one JSON object per line: the worker's record, its child processes within.
        #[arg(long)]
        json: bool,
    },
    /// Let workers finish what runs, take nothing more, and leave.
    Drain(drain::DrainArgs),
    /// Run a worker in the foreground; it joins the cluster of --state, or of --nats-url.
    Run(Box<RunArgs<millpond_worker::Config>>),
}

/// Runs the command.
///
/// # Errors
/// When the collector or NATS cannot be reached.
pub async fn run(command: WorkerCommand, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    match command {
        WorkerCommand::Run(args) => args.run(env).await,
        WorkerCommand::Ls { json } => ls(&Api::new(env)?, json).await,
        WorkerCommand::Drain(args) => drain::run(&Api::new(env)?, args).await,
    }
}

async fn ls(api: &Api, json: bool) -> anyhow::Result<ExitCode> {
    let workers = list::list(api).await?;
    if json {
        workers.iter().try_for_each(json_line)?;
    } else {
        list::table(&workers).print("no workers; start one with `millpond worker run`")?;
    }
    Ok(ExitCode::SUCCESS)
}

//! `worker ls`; `worker run` is a service (service.rs).

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::Value;

use crate::api::{Api, text};
use crate::output::{Table, json_line, milliseconds};
use crate::service::{WorkerRunArgs, run_worker};
use crate::state::Env;

/// What to do with workers.
#[derive(Subcommand, Debug)]
pub enum WorkerCommand {
    /// List workers with what they do now.
    Ls(LsArgs),
    /// Run a worker in the foreground; it joins the cluster of --state, or of --nats-url.
    Run(Box<WorkerRunArgs>),
}

/// `worker ls`.
#[derive(clap::Args, Debug)]
pub struct LsArgs {
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Runs it.
///
/// # Errors
/// When the collector or NATS cannot be reached.
pub async fn run(command: WorkerCommand, env: &Env) -> anyhow::Result<ExitCode> {
    match command {
        WorkerCommand::Run(args) => run_worker(*args, env).await,
        WorkerCommand::Ls(args) => ls(&Api::new(env)?, args.json).await,
    }
}

async fn ls(api: &Api, json: bool) -> anyhow::Result<ExitCode> {
    let mut table =
        Table::new(&["WORKER", "STATE", "HOST", "PID", "QUEUES", "RUNNING", "DONE", "FAILED", "UP", "UNKNOWN KINDS"]);
    api.each("/api/v1/workers", &[], |worker| {
        if json {
            json_line(worker)?;
            return Ok(true);
        }
        let ms = |field| worker.get(field).and_then(Value::as_i64).unwrap_or(0);
        let list = |field| {
            let items = worker.get(field).and_then(Value::as_array).into_iter().flatten();
            items.filter_map(Value::as_str).collect::<Vec<_>>().join(",")
        };
        table.row(vec![
            text(worker, "name"),
            text(worker, "state"),
            text(worker, "host"),
            text(worker, "pid"),
            list("queues"),
            format!("{}/{}", text(worker, "running"), text(worker, "slots")),
            text(worker, "done"),
            text(worker, "failed"),
            milliseconds(ms("heartbeat_ms") - ms("started_ms")),
            list("unknown_kinds"),
        ]);
        Ok(true)
    })
    .await?;
    if !json {
        table.print("no workers; start one with `millpond worker run`")?;
    }
    Ok(ExitCode::SUCCESS)
}

//! `job ls|show|wait|results|cancel`, over the collector's API.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use serde_json::{Value, json};

use crate::api::{Api, text};
use crate::output::{Table, json_line, time};
use crate::state::Env;

/// What to do with jobs.
#[derive(Subcommand, Debug)]
pub enum JobCommand {
    /// List jobs, the newest first.
    Ls {
        /// Those whose name begins so.
        #[arg(long)]
        name: Option<String>,
        /// Those that stand so.
        #[arg(long, value_parser = ["open", "stalled", "closed", "finished", "cancelled", "session"])]
        status: Option<String>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show one job.
    Show {
        /// Its name.
        job: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Wait until all tasks of some jobs have ended; exit code 1 when some failed, 5 when a job has stalled.
    Wait(crate::join::WaitArgs),
    /// Cancel a job: what waits of it is removed, what runs is ended. Its name can be used again after.
    Cancel {
        /// Its name.
        job: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the results of a job in the order of its tasks, one JSON value a line.
    Results {
        /// Its name.
        job: String,
        /// An object per task, with its index and how it ended.
        #[arg(long)]
        json: bool,
    },
}

/// Runs it.
///
/// # Errors
/// When the collector does not answer, or there is no such job.
pub async fn run(command: JobCommand, env: &Env) -> anyhow::Result<ExitCode> {
    let api = Api::new(env)?;
    match command {
        JobCommand::Ls { name, status, json } => {
            let filters = [("name", name), ("state", status)];
            let query: Vec<_> = filters.into_iter().filter_map(|(field, value)| Some((field, value?))).collect();
            ls(&api, &query, json).await
        }
        JobCommand::Show { job, json } => show(&api, &job, json).await,
        JobCommand::Wait(args) => crate::join::run(&api, args).await,
        JobCommand::Cancel { job, json } => {
            let answer = api.post(&format!("/api/v1/jobs/{job}/cancel"), &json!({})).await?;
            if json {
                json_line(&answer)?;
            } else {
                eprintln!("job {job} is cancelled; {} messages that waited were removed", text(&answer, "removed"));
            }
            Ok(ExitCode::SUCCESS)
        }
        JobCommand::Results { job, json } => {
            get(&api, &job).await?;
            crate::payloads::print_results(&api, &job, json, env).await
        }
    }
}

async fn ls(api: &Api, query: &[(&str, String)], json: bool) -> anyhow::Result<ExitCode> {
    let mut table =
        Table::new(&["JOB", "STATE", "QUEUE", "KIND", "TOTAL", "DONE", "RETRYING", "DEAD", "CANCELLED", "CREATED"]);
    api.each("/api/v1/jobs", query, |job| {
        if json {
            json_line(job)?;
        } else {
            let fields = ["job", "state", "queue", "kind", "total", "done", "retrying", "dead", "cancelled"];
            let mut cells: Vec<String> = fields.iter().map(|f| text(job, f)).collect();
            cells.push(time(job, "created_ms"));
            table.row(cells);
        }
        Ok(true)
    })
    .await?;
    if !json {
        table.print("no jobs yet")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn get(api: &Api, job: &str) -> anyhow::Result<Value> {
    match api.get(&format!("/api/v1/jobs/{job}"), &[]).await? {
        Some(found) => Ok(found),
        None => bail!("no job {job}; `millpond job ls` lists them"),
    }
}

async fn show(api: &Api, job: &str, json: bool) -> anyhow::Result<ExitCode> {
    let job = get(api, job).await?;
    if json {
        json_line(&job)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = std::io::stdout().lock();
    for field in [
        "job",
        "state",
        "queue",
        "kind",
        "total",
        "published",
        "done",
        "retrying",
        "dead",
        "cancelled",
        "purged",
        "epoch",
    ] {
        writeln!(out, "{field:<10} {}", text(&job, field))?;
    }
    writeln!(out, "{:<10} {}", "created", time(&job, "created_ms"))?;
    Ok(ExitCode::SUCCESS)
}

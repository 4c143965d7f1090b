//! `job ls|show|wait|results|cancel`, through the collector.

mod results;
mod wait;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use millpond::visible::visible;
use millpond_api::jobs::{JobCancelled, JobQuery, JobRow, JobStatus};

use super::listing::{Listing, one_of};
use super::task_args;
use crate::api::{Api, NoBody};
use crate::cluster_env::ClusterEnv;
use crate::output::{json_line, optional, output, time};
pub(super) use results::StoredResults;

/// What to do with jobs.
#[derive(Subcommand, Debug)]
pub enum JobCommand {
    /// List jobs, the newest first.
    Ls {
        /// Only jobs whose name begins with this text.
        #[arg(long)]
        name: Option<String>,
        /// Only jobs in this state.
        #[arg(long, value_parser = one_of(JobStatus::ALL, JobStatus::name))]
        status: Option<JobStatus>,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Show one job.
    Show {
        /// Name of the job.
        #[arg(value_parser = task_args::job)]
        job: String,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Wait until all tasks of the given jobs have ended. The exit code is 1 when some failed, 5 when a job has stalled.
    Wait(wait::WaitArgs),
    /// Cancel a job: remove its waiting tasks and stop its running ones. Its name can be used again afterwards.
    Cancel {
        /// Name of the job.
        #[arg(value_parser = task_args::job)]
        job: String,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Print the results of a job in the order of its tasks, one JSON value per line.
    Results {
        /// Name of the job.
        #[arg(value_parser = task_args::job)]
        job: String,
        /// Print an object per task, with its index and how it ended.
        #[arg(long)]
        json: bool,
    },
}

impl JobCommand {
    /// What becomes of the jobs when the command is interrupted.
    pub(crate) fn after_interrupt(&self) -> String {
        match self {
            Self::Wait(args) => args.after_interrupt(),
            _ => String::new(),
        }
    }
}

const JOBS: Listing<JobRow> = Listing {
    path: "/api/v1/jobs",
    headings: &["JOB", "STATE", "QUEUE", "KIND", "TOTAL", "DONE", "RETRYING", "DEAD", "CANCELLED", "CREATED"],
    cells: |job| {
        vec![
            job.job.clone(),
            job.state.to_string(),
            job.queue.clone(),
            job.kind.clone(),
            optional(job.total),
            job.done.to_string(),
            job.retrying.to_string(),
            job.dead.to_string(),
            job.cancelled.to_string(),
            time(job.created_ms),
        ]
    },
    empty: "no jobs yet",
};

/// Runs the command.
///
/// # Errors
/// When the collector does not answer, or there is no such job.
pub async fn run(command: JobCommand, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let api = Api::new(env)?;
    match command {
        JobCommand::Ls { name, status, json } => JOBS.print(&api, &JobQuery { name, state: status }, json).await?,
        JobCommand::Show { job, json } => {
            let job = find(&api, &job).await?;
            if json { json_line(&job)? } else { print(&job)? }
        }
        JobCommand::Wait(args) => return wait::run(&api, args).await,
        JobCommand::Cancel { job, json } => {
            let cancelled: JobCancelled = api.post(&format!("/api/v1/jobs/{job}/cancel"), &NoBody {}).await?;
            if json {
                json_line(&cancelled)?;
            } else {
                note!("job {job} is cancelled; {} waiting messages were removed", cancelled.removed);
            }
        }
        JobCommand::Results { job, json } => {
            find(&api, &job).await?;
            return results::print(&api, &job, json, env).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn find(api: &Api, job: &str) -> anyhow::Result<JobRow> {
    let found = api.find(&format!("/api/v1/jobs/{job}"), &()).await?;
    found.with_context(|| format!("no job {job}; `millpond job ls` lists them"))
}

fn print(job: &JobRow) -> std::io::Result<()> {
    let fields = [
        ("job", job.job.clone()),
        ("state", job.state.to_string()),
        ("queue", job.queue.clone()),
        ("kind", job.kind.clone()),
        ("total", optional(job.total)),
        ("published", optional(job.published)),
        ("done", job.done.to_string()),
        ("retrying", job.retrying.to_string()),
        ("dead", job.dead.to_string()),
        ("cancelled", job.cancelled.to_string()),
        ("purged", job.purged.to_string()),
        ("epoch", optional(job.epoch)),
        ("created", time(job.created_ms)),
    ];
    let mut out = output();
    fields.iter().try_for_each(|(name, value)| writeln!(out, "{name:<10} {}", visible(value)))?;
    let Some(reason) = &job.continuation_refused else { return Ok(()) };
    writeln!(out, "its continuation is refused for good: {}", visible(reason))
}

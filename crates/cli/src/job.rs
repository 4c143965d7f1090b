//! `job ls|show|wait|results`, over the collector's API.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Subcommand;
use millpond::config::duration;
use serde_json::Value;

use crate::EXIT_TASK_FAILED;
use crate::api::{Api, text};
use crate::output::{Table, json_line, time};
use crate::state::Env;

/// How often a waiting command asks.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// What to do with jobs.
#[derive(Subcommand, Debug)]
pub enum JobCommand {
    /// List jobs, the newest first.
    Ls {
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
    /// Wait until all tasks of a job have ended; exit code 1 when some failed.
    Wait {
        /// Its name.
        job: String,
        /// Give up after this long.
        #[arg(long, value_parser = duration)]
        timeout: Option<Duration>,
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
        JobCommand::Ls { json } => ls(&api, json).await,
        JobCommand::Show { job, json } => show(&api, &job, json).await,
        JobCommand::Wait { job, timeout } => wait(&api, &job, timeout).await,
        JobCommand::Results { job, json } => {
            get(&api, &job).await?;
            crate::payloads::print_results(&api, &job, json, env).await
        }
    }
}

async fn ls(api: &Api, json: bool) -> anyhow::Result<ExitCode> {
    let mut table =
        Table::new(&["JOB", "STATE", "QUEUE", "KIND", "TOTAL", "DONE", "RETRYING", "DEAD", "CANCELLED", "CREATED"]);
    api.each("/api/v1/jobs", &[], |job| {
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
    for field in
        ["job", "state", "queue", "kind", "total", "published", "done", "retrying", "dead", "cancelled", "epoch"]
    {
        writeln!(out, "{field:<10} {}", text(&job, field))?;
    }
    writeln!(out, "{:<10} {}", "created", time(&job, "created_ms"))?;
    Ok(ExitCode::SUCCESS)
}

async fn wait(api: &Api, job: &str, timeout: Option<Duration>) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    loop {
        let found = api.get(&format!("/api/v1/jobs/{job}"), &[]).await?;
        if let Some(found) = &found
            && text(found, "state") == "finished"
        {
            let failed = |field| found.get(field).and_then(Value::as_u64).unwrap_or(0);
            let (dead, cancelled) = (failed("dead"), failed("cancelled"));
            if dead + cancelled == 0 {
                return Ok(ExitCode::SUCCESS);
            }
            eprintln!("millpond: job {job}: {dead} dead, {cancelled} cancelled");
            return Ok(ExitCode::from(EXIT_TASK_FAILED));
        }
        if let Some(limit) = timeout
            && started.elapsed() >= limit
        {
            let state = found.map_or_else(|| "is not known".to_owned(), |f| format!("is {}", text(&f, "state")));
            bail!("job {job} {state} after {}", humantime::format_duration(limit));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

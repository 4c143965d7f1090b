//! `dead ls|show`: dead letters with their evidence.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use serde_json::Value;

use crate::api::{Api, text};
use crate::output::{Table, json_line, short, time};
use crate::state::Env;
use crate::task::print_failure;

/// What to do with dead letters.
#[derive(Subcommand, Debug)]
pub enum DeadCommand {
    /// List them, the newest first.
    Ls {
        /// Of this queue only.
        #[arg(long)]
        queue: Option<String>,
        /// Of this kind only.
        #[arg(long)]
        kind: Option<String>,
        /// Of this job only.
        #[arg(long)]
        job: Option<String>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show one with its evidence.
    Show {
        /// Id of the task.
        id: String,
        /// Its queue, where several have this id.
        #[arg(long)]
        queue: Option<String>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Runs it.
///
/// # Errors
/// When the collector does not answer, or has no such dead letter.
pub async fn run(command: DeadCommand, env: &Env) -> anyhow::Result<ExitCode> {
    let api = Api::new(env)?;
    match command {
        DeadCommand::Ls { queue, kind, job, json } => {
            let filters = [("queue", queue), ("kind", kind), ("job", job)];
            let query: Vec<_> = filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
            ls(&api, &query, json).await
        }
        DeadCommand::Show { id, queue, json } => {
            let mut query = vec![("id", id.clone())];
            query.extend(queue.map(|queue| ("queue", queue)));
            let Some(dead) = api.get("/api/v1/dead_letter", &query).await? else {
                bail!("no dead letter {id}; `millpond dead ls` lists them");
            };
            if json {
                json_line(&dead)?
            } else {
                print(&dead)?
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn ls(api: &Api, query: &[(&str, String)], json: bool) -> anyhow::Result<ExitCode> {
    let mut table = Table::new(&["ID", "QUEUE", "KIND", "REASON", "ATTEMPT", "FAILURE", "BURIED"]);
    api.each("/api/v1/dead", query, |dead| {
        if json {
            json_line(dead)?;
            return Ok(true);
        }
        let mut cells: Vec<String> =
            ["id", "queue", "kind", "reason", "attempt"].iter().map(|f| text(dead, f)).collect();
        cells.push(dead.get("failure").map(|f| short(f, "message", 60)).unwrap_or_default());
        cells.push(time(dead, "buried_ms"));
        table.row(cells);
        Ok(true)
    })
    .await?;
    if !json {
        table.print("no dead letters")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(dead: &Value) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for field in ["id", "queue", "kind", "job", "index", "reason", "attempt", "worker", "trace"] {
        let value = text(dead, field);
        if !value.is_empty() {
            writeln!(out, "{field:<10} {value}")?;
        }
    }
    writeln!(out, "{:<10} {}", "buried", time(dead, "buried_ms"))?;
    print_failure(&mut out, dead.get("failure"))?;
    for before in dead.get("failures").and_then(Value::as_array).into_iter().flatten() {
        writeln!(out, "attempt {} on {}", text(before, "attempt"), text(before, "worker"))?;
        print_failure(&mut out, before.get("failure"))?;
    }
    let payload = ["payload", "payload_base64"].iter().map(|f| text(dead, f)).find(|p| !p.is_empty());
    writeln!(out, "{:<10} {}", "arguments", payload.unwrap_or_default())
}

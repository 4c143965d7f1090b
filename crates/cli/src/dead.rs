//! `dead ls|show|retry|purge`: dead letters with their evidence, and what becomes of them.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use millpond::limits::PAGE_ROWS_MAX;
use serde_json::{Value, json};

use crate::EXIT_TASK_FAILED;
use crate::api::{Api, text};
use crate::output::{Table, json_line, short, time};
use crate::state::Env;
use crate::task::print_failure;

/// Letters a second that are run again or thrown away, when nothing else is said.
const RATE_DEFAULT: u32 = 1000;

/// What to do with dead letters.
#[derive(Subcommand, Debug)]
pub enum DeadCommand {
    /// List them, the newest first.
    Ls {
        #[command(flatten)]
        filter: Filter,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Run tasks again, as their next attempt.
    Retry(Chosen),
    /// Throw dead letters away; their tasks stay dead.
    Purge(Chosen),
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

/// Which dead letters.
#[derive(Args, Debug, Clone)]
pub struct Filter {
    /// Of this queue only.
    #[arg(long)]
    queue: Option<String>,
    /// Of this kind only.
    #[arg(long)]
    kind: Option<String>,
    /// Of this job only.
    #[arg(long)]
    job: Option<String>,
    /// With this reason only: exhausted, fatal, unknown_kind, kills_workers, expired, …
    #[arg(long)]
    reason: Option<String>,
    /// Buried by this worker only.
    #[arg(long)]
    worker: Option<String>,
}

impl Filter {
    fn query(&self) -> Vec<(&'static str, String)> {
        let fields = [
            ("queue", &self.queue),
            ("kind", &self.kind),
            ("job", &self.job),
            ("reason", &self.reason),
            ("worker", &self.worker),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
    }
}

/// What to run again or throw away.
#[derive(Args, Debug)]
pub struct Chosen {
    /// Ids of tasks.
    ids: Vec<String>,
    /// All that the filters leave.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// So many a second at the most.
    #[arg(long, default_value_t = RATE_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Runs it.
///
/// # Errors
/// When the collector does not answer, or has no such dead letter.
pub async fn run(command: DeadCommand, env: &Env) -> anyhow::Result<ExitCode> {
    let api = Api::new(env)?;
    match command {
        DeadCommand::Ls { filter, json } => ls(&api, &filter.query(), json).await,
        DeadCommand::Retry(chosen) => each_chosen(&api, chosen, "retry", "runs again").await,
        DeadCommand::Purge(chosen) => each_chosen(&api, chosen, "purge", "thrown away").await,
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

/// Does it to each chosen letter, in requests of a tenth of a second; exit code 1 when one could not be done.
async fn each_chosen(api: &Api, chosen: Chosen, verb: &str, done: &str) -> anyhow::Result<ExitCode> {
    let filtered = !chosen.filter.query().is_empty();
    if chosen.ids.is_empty() && !chosen.all && !filtered {
        bail!("say which: ids, filters such as --kind or --reason, or --all; --dry-run shows what it would be");
    }
    let mut letters = Vec::new();
    let mut query = chosen.filter.query();
    query.push(("limit", PAGE_ROWS_MAX.to_string()));
    api.each("/api/v1/dead", &query, |dead| {
        if chosen.ids.is_empty() || chosen.ids.contains(&text(dead, "id")) {
            letters.push(json!({ "queue": dead["queue"], "id": dead["id"], "attempt": dead["attempt"] }));
        }
        Ok(true)
    })
    .await?;
    if let Some(missing) = chosen.ids.iter().find(|id| !letters.iter().any(|l| l["id"] == **id)) {
        bail!("no dead letter {missing} waits; `millpond dead ls` lists them");
    }
    let (mut well, mut failed) = (0u64, 0u64);
    let share = (chosen.rate as usize).div_ceil(10);
    let mut pace = tokio::time::interval(Duration::from_secs_f64(share as f64 / f64::from(chosen.rate)));
    for some in letters.chunks(share.min(PAGE_ROWS_MAX as usize)) {
        let rows = if chosen.dry_run {
            some.iter().map(|l| json!({ "queue": l["queue"], "id": l["id"], "ok": true, "dry_run": true })).collect()
        } else {
            pace.tick().await;
            let answer = api.post(&format!("/api/v1/dead/{verb}"), &json!({ "letters": some })).await?;
            answer.get("rows").and_then(Value::as_array).cloned().unwrap_or_default()
        };
        for row in rows {
            let ok = row.get("ok") == Some(&Value::Bool(true));
            *(if ok { &mut well } else { &mut failed }) += 1;
            if chosen.json {
                json_line(&row)?;
            } else if ok {
                writeln!(std::io::stdout().lock(), "{}", text(&row, "id"))?;
            } else {
                eprintln!("millpond: {}: {}", text(&row, "id"), text(&row, "error"));
            }
        }
    }
    let would = if chosen.dry_run { "would be: " } else { "" };
    eprintln!("{would}{well} {done}, {failed} not");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_TASK_FAILED) })
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

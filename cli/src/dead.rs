//! `dead ls|show|retry|purge`: dead letters with their evidence, and what becomes of them.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use millpond::limits::PAGE_ROWS_MAX;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::EXIT_TASK_FAILED;
use crate::api::{Api, text};
use crate::output::{Table, json_line, short, time};
use crate::state::Env;
use crate::task::print_failure;
use crate::tasks::time_ms;

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
    /// Run tasks again, as their next attempt, or in another queue.
    Retry {
        #[command(flatten)]
        chosen: Chosen,
        /// In this queue, as new tasks that point back; their letters do not wait any more.
        #[arg(long)]
        to_queue: Option<String>,
        /// With these arguments, JSON; for one task.
        #[arg(long, value_name = "JSON")]
        args: Option<String>,
    },
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
    /// With this text in the type or the message of their failure only.
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Buried since then only: an RFC 3339 time, or so long ago, such as 2h.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Buried before then only: likewise.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

impl Filter {
    fn query(&self) -> anyhow::Result<Vec<(&'static str, String)>> {
        let (since, until) = (time_ms(self.since.as_deref())?, time_ms(self.until.as_deref())?);
        let fields = [
            ("queue", &self.queue),
            ("kind", &self.kind),
            ("job", &self.job),
            ("reason", &self.reason),
            ("worker", &self.worker),
            ("error", &self.error),
            ("since", &since),
            ("until", &until),
        ];
        Ok(fields.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect())
    }
}

/// What to run again or throw away.
#[derive(Args, Debug)]
pub struct Chosen {
    /// Ids of tasks; of the filters only --queue goes with them.
    #[arg(conflicts_with_all = ["kind", "job", "reason", "worker", "error", "since", "until"])]
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
        DeadCommand::Ls { filter, json } => ls(&api, &filter.query()?, json).await,
        DeadCommand::Retry { chosen, to_queue, args } => {
            let arguments = arguments(&chosen, args.as_deref())?;
            each_chosen(&api, chosen, "retry", Asked { queue: to_queue, arguments, ..Asked::default() }).await
        }
        DeadCommand::Purge(chosen) => each_chosen(&api, chosen, "purge", Asked::default()).await,
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

/// Other arguments, as they are sent.
fn arguments(chosen: &Chosen, args: Option<&str>) -> anyhow::Result<Option<Box<RawValue>>> {
    let Some(args) = args else { return Ok(None) };
    if chosen.ids.len() != 1 {
        bail!("--args goes with the id of one task");
    }
    let raw = RawValue::from_string(args.trim().to_owned());
    Ok(Some(raw.with_context(|| format!("--args {args:?} is not JSON: quote a text, such as '\"photo.raw\"'"))?))
}

/// A request; the arguments go as they were typed.
#[derive(Serialize, Default)]
struct Asked {
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<BTreeMap<&'static str, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    letters: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    after: Option<Value>,
    dry_run: bool,
    rate: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<Box<RawValue>>,
}

/// Does it to each chosen letter, request by request, as far as the collector came in each; exit code 1 when one could
/// not be done.
async fn each_chosen(api: &Api, chosen: Chosen, verb: &str, how: Asked) -> anyhow::Result<ExitCode> {
    let filter: BTreeMap<_, _> = chosen.filter.query()?.into_iter().collect();
    if chosen.ids.is_empty() && !chosen.all && filter.is_empty() {
        bail!("say which: ids, filters such as --kind or --reason, or --all; --dry-run shows what it would be");
    }
    let mut asked = Asked { dry_run: chosen.dry_run, rate: chosen.rate, ..how };
    let mut told = Told { json: chosen.json, well: 0, failed: 0 };
    if chosen.ids.is_empty() {
        (asked.filter, asked.limit) = (Some(filter), Some(PAGE_ROWS_MAX));
        all_of(api, verb, &mut asked, &mut told).await?;
    } else {
        for some in named(api, &chosen).await?.chunks(PAGE_ROWS_MAX as usize) {
            asked.letters = Some(some.to_vec());
            all_of(api, verb, &mut asked, &mut told).await?;
        }
    }
    let Told { well, failed, .. } = told;
    let would = if chosen.dry_run { "would be: " } else { "" };
    let done = if verb == "retry" { "runs again" } else { "thrown away" };
    eprintln!("{would}{well} {done}, {failed} not");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_TASK_FAILED) })
}

/// The letters of these ids, where the filters leave them.
async fn named(api: &Api, chosen: &Chosen) -> anyhow::Result<Vec<Value>> {
    let mut letters = Vec::with_capacity(chosen.ids.len());
    for id in &chosen.ids {
        let mut query = vec![("id", id.clone())];
        query.extend(chosen.filter.queue.clone().map(|queue| ("queue", queue)));
        let Some(dead) = api.get("/api/v1/dead_letter", &query).await? else {
            bail!("no dead letter {id} waits; `millpond dead ls` lists them");
        };
        letters.push(json!({ "queue": dead.get("queue"), "id": dead.get("id"), "attempt": dead.get("attempt") }));
    }
    Ok(letters)
}

/// What was said so far.
struct Told {
    json: bool,
    well: u64,
    failed: u64,
}

impl Told {
    fn row(&mut self, row: &Value) -> std::io::Result<()> {
        let ok = row.get("ok") == Some(&Value::Bool(true));
        *(if ok { &mut self.well } else { &mut self.failed }) += 1;
        if self.json {
            return json_line(row);
        }
        let (id, new_id) = (text(row, "id"), text(row, "new_id"));
        match (ok, new_id.is_empty()) {
            (true, true) => writeln!(std::io::stdout().lock(), "{id}"),
            (true, false) => writeln!(std::io::stdout().lock(), "{new_id}"),
            (false, _) => {
                eprintln!("millpond: {id}: {}", text(row, "error"));
                Ok(())
            }
        }
    }
}

/// Asks until there is no more to go on with.
async fn all_of(api: &Api, verb: &str, asked: &mut Asked, told: &mut Told) -> anyhow::Result<()> {
    loop {
        let answer = api.post(&format!("/api/v1/dead/{verb}"), asked).await?;
        for row in answer.get("rows").and_then(Value::as_array).into_iter().flatten() {
            told.row(row)?;
        }
        asked.after = answer.get("next").filter(|next| !next.is_null()).cloned();
        if asked.after.is_none() {
            return Ok(());
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
        cells.push(time(dead, "dead_lettered_ms"));
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
    writeln!(out, "{:<10} {}", "buried", time(dead, "dead_lettered_ms"))?;
    print_failure(&mut out, dead.get("failure"))?;
    for before in dead.get("failures").and_then(Value::as_array).into_iter().flatten() {
        writeln!(out, "attempt {} on {}", text(before, "attempt"), text(before, "worker"))?;
        print_failure(&mut out, before.get("failure"))?;
    }
    let payload = ["payload", "payload_base64"].iter().map(|f| text(dead, f)).find(|p| !p.is_empty());
    writeln!(out, "{:<10} {}", "arguments", payload.unwrap_or_default())
}

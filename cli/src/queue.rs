//! `queue ls|set|pause|resume|purge`, over the collector's API.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Subcommand;
use millpond::config::duration;
use serde_json::{Value, json};

use crate::api::{Api, text};
use crate::output::{Table, json_line, milliseconds};
use crate::state::Env;

/// What to do with queues.
#[derive(Subcommand, Debug)]
pub enum QueueCommand {
    /// List queues: what waits, what workers hold, what waits for its time.
    Ls {
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Set how many tasks may wait in a queue: publishers block while it is full.
    #[command(group = clap::ArgGroup::new("limit").required(true))]
    Set {
        /// Its name; it need not have workers yet.
        queue: String,
        /// Tasks that may wait in it, those that workers hold included; retries and delayed tasks are not counted.
        #[arg(long, group = "limit", value_parser = clap::value_parser!(u64).range(1..))]
        max_waiting: Option<u64>,
        /// Any number.
        #[arg(long, group = "limit")]
        unlimited: bool,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Hand out nothing of a queue; what runs goes on.
    Pause {
        /// Its name.
        queue: String,
        /// Resume by itself after this long, such as 10m; else when told to.
        #[arg(long = "for", value_parser = duration)]
        how_long: Option<Duration>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// End a pause.
    Resume {
        /// Its name.
        queue: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove what waits in a queue, for good, and end what runs of it. A purge record covers what is removed.
    Purge {
        /// Its name.
        queue: String,
        /// Of this kind only.
        #[arg(long)]
        kind: Option<String>,
        /// Let what runs go on to its end.
        #[arg(long)]
        keep_running: bool,
        /// Do it without asking.
        #[arg(long)]
        yes: bool,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Runs it.
///
/// # Errors
/// When the collector does not answer, or there is no such queue.
pub async fn run(command: QueueCommand, env: &Env) -> anyhow::Result<ExitCode> {
    let api = Api::new(env)?;
    match command {
        QueueCommand::Ls { json } => ls(&api, json).await?,
        QueueCommand::Set { queue, max_waiting, json, .. } => {
            let answer =
                api.post(&format!("/api/v1/queues/{queue}/set"), &json!({ "max_waiting": max_waiting })).await?;
            let limit = max_waiting.map_or_else(|| "any number of".to_owned(), |max| format!("at most {max}"));
            say(&answer, json, &format!("{limit} tasks may wait in queue {queue}"))?;
        }
        QueueCommand::Pause { queue, how_long, json } => {
            let body = json!({ "for_ms": how_long.map(|d| d.as_millis()) });
            let answer = api.post(&format!("/api/v1/queues/{queue}/pause"), &body).await?;
            say(&answer, json, &format!("queue {queue} is paused"))?;
        }
        QueueCommand::Resume { queue, json } => {
            let answer = api.post(&format!("/api/v1/queues/{queue}/resume"), &json!({})).await?;
            say(&answer, json, &format!("queue {queue} goes on"))?;
        }
        QueueCommand::Purge { queue, kind, keep_running, yes, json } => {
            if !yes && !confirmed(&queue, kind.as_deref(), keep_running)? {
                bail!("nothing was removed; add --yes to remove without being asked");
            }
            let body = json!({ "kind": kind, "keep_running": keep_running });
            let answer = api.post(&format!("/api/v1/queues/{queue}/purge"), &body).await?;
            say(&answer, json, &format!("{} messages removed", text(&answer, "count")))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn say(answer: &Value, json: bool, sentence: &str) -> std::io::Result<()> {
    if json {
        return json_line(answer);
    }
    eprintln!("{sentence}");
    Ok(())
}

fn confirmed(queue: &str, kind: Option<&str>, keep_running: bool) -> std::io::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    let what = kind.map_or_else(String::new, |kind| format!(" of kind {kind}"));
    let running = if keep_running { "" } else { " or run" };
    eprint!("Remove all tasks{what} that wait{running} in queue {queue}, for good? Type the queue's name: ");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim() == queue)
}

async fn ls(api: &Api, json: bool) -> anyhow::Result<()> {
    let mut table = Table::new(&["QUEUE", "WAITING", "HELD", "MAX", "SCHEDULED", "STATE"]);
    api.each("/api/v1/queues", &[], |queue| {
        if json {
            json_line(queue)?;
            return Ok(true);
        }
        let fields = ["queue", "waiting", "held", "max_waiting", "scheduled"];
        let mut cells: Vec<String> = fields.iter().map(|f| text(queue, f)).collect();
        cells.push(state(queue));
        table.row(cells);
        Ok(true)
    })
    .await?;
    if !json {
        table.print("no queues yet; a worker makes those that it serves")?;
    }
    Ok(())
}

/// Whether a queue is open or paused, and for how long.
pub fn state(queue: &Value) -> String {
    match queue.get("paused_for_ms").and_then(Value::as_i64) {
        Some(ms) if ms < FOR_EVER_MS => format!("paused for {}", milliseconds(ms)),
        Some(_) => "paused".to_owned(),
        None => "open".to_owned(),
    }
}

/// A pause that lasts longer has no end that anybody chose, in milliseconds: ten years.
const FOR_EVER_MS: i64 = 10 * 365 * 24 * 3600 * 1000;

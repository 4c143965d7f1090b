//! `queue ls|set|pause|resume|purge|rm`, through the collector.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Subcommand;
use millpond::bus::operate::queues::{PurgeRecord, UnlistedQueues};
use millpond::config::duration;
use millpond_api::queues::{
    PauseQueue, PurgeQueue, QueueLimit, QueueList, QueuePaused, QueueRemoved, QueueRow, SetQueueLimit,
};
use serde::Serialize;

use super::listing::Listing;
use super::task_args;
use crate::api::{Api, NoBody};
use crate::cluster_env::ClusterEnv;
use crate::output::{json_line, milliseconds, optional};

/// A pause that lasts longer than this, ten years, is shown as one without an end.
const PAUSE_SHOWN_MS_MAX: u64 = 10 * 365 * 24 * 3600 * 1000;

/// What to do with queues.
#[derive(Subcommand, Debug)]
pub enum QueueCommand {
    /// List queues: how many tasks wait, how many workers hold, and how many are scheduled for later.
    Ls {
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Limit how many tasks may wait in a queue; publishers block while it is full.
    #[command(group = clap::ArgGroup::new("limit").required(true))]
    Set {
        /// Name of the queue; it need not have workers yet.
        #[arg(value_parser = task_args::queue)]
        queue: String,
        /// How many tasks may wait in it; tasks that workers hold count, retries and delayed tasks do not.
        #[arg(long, group = "limit", value_parser = clap::value_parser!(u64).range(1..))]
        max_waiting: Option<u64>,
        /// Remove the limit.
        #[arg(long, group = "limit")]
        unlimited: bool,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Stop handing out the tasks of a queue; running tasks continue.
    Pause {
        /// Name of the queue.
        #[arg(value_parser = task_args::queue)]
        queue: String,
        /// Resume automatically after this long, such as 10m. Default: only `queue resume` ends the pause.
        #[arg(long = "for", value_parser = duration)]
        how_long: Option<Duration>,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// End a pause.
    Resume {
        /// Name of the queue.
        #[arg(value_parser = task_args::queue)]
        queue: String,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Remove the waiting tasks of a queue for good, and stop its running ones. A purge record accounts for them.
    Purge {
        /// Name of the queue.
        #[arg(value_parser = task_args::queue)]
        queue: String,
        /// Purge only tasks of this kind.
        #[arg(long, value_parser = task_args::kind)]
        kind: Option<String>,
        /// Let running tasks finish.
        #[arg(long)]
        keep_running: bool,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Remove a queue that has no tasks, schedules, limit, pause or workers. A worker that serves it later makes it anew.
    Rm {
        /// Name of the queue.
        #[arg(value_parser = task_args::queue)]
        queue: String,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
}

const QUEUES: Listing<QueueRow> = Listing {
    path: "/api/v1/queues",
    headings: &["QUEUE", "WAITING", "HELD", "MAX", "SCHEDULED", "STATE"],
    cells: |queue| {
        vec![
            queue.queue.clone(),
            queue.waiting.to_string(),
            queue.held.to_string(),
            optional(queue.max_waiting),
            queue.scheduled.to_string(),
            state(queue),
        ]
    },
    empty: "no queues yet; a worker creates the queues that it serves",
};

/// Runs the command.
///
/// # Errors
/// When the collector does not answer, or there is no such queue.
pub async fn run(command: QueueCommand, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let api = Api::new(env)?;
    match command {
        QueueCommand::Ls { json } => list(&api, json).await?,
        QueueCommand::Set { queue, max_waiting, json, .. } => {
            let limit: QueueLimit = api.post(&path(&queue, "set"), &SetQueueLimit { max_waiting }).await?;
            let most = max_waiting.map_or_else(|| "any number of".to_owned(), |max| format!("at most {max}"));
            report(&limit, json, &format!("{most} tasks may wait in queue {queue}"))?;
        }
        QueueCommand::Pause { queue, how_long, json } => {
            let for_ms = how_long.map(|long| u64::try_from(long.as_millis()).unwrap_or(u64::MAX));
            let paused: QueuePaused = api.post(&path(&queue, "pause"), &PauseQueue { for_ms }).await?;
            report(&paused, json, &format!("queue {queue} is paused"))?;
        }
        QueueCommand::Resume { queue, json } => {
            let paused: QueuePaused = api.post(&path(&queue, "resume"), &NoBody {}).await?;
            report(&paused, json, &format!("queue {queue} is resumed"))?;
        }
        QueueCommand::Purge { queue, kind, keep_running, yes, json } => {
            if !yes && !confirmed(&queue, kind.as_deref(), keep_running)? {
                bail!("nothing was removed; add --yes to purge without confirmation");
            }
            let purged: PurgeRecord = api.post(&path(&queue, "purge"), &PurgeQueue { kind, keep_running }).await?;
            report(&purged, json, &format!("{} messages removed", optional(purged.count)))?;
        }
        QueueCommand::Rm { queue, json } => {
            let removed: QueueRemoved = api.post(&path(&queue, "remove"), &NoBody {}).await?;
            report(&removed, json, &format!("queue {queue} is removed"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(api: &Api, json: bool) -> anyhow::Result<()> {
    let QueueList { rows, unlisted, .. } = api.get(QUEUES.path, &()).await?;
    QUEUES.print_rows(&rows, json)?;
    let UnlistedQueues { queues, waiting } = unlisted;
    if queues > 0 {
        note!(
            "and {queues} more that no worker has ever served, with {waiting} messages; a program that publishes may be making up names"
        );
    }
    Ok(())
}

fn path(queue: &str, action: &str) -> String {
    format!("/api/v1/queues/{queue}/{action}")
}

fn report(answer: &impl Serialize, json: bool, sentence: &str) -> anyhow::Result<()> {
    if json {
        return json_line(answer);
    }
    note!("{sentence}");
    Ok(())
}

fn confirmed(queue: &str, kind: Option<&str>, keep_running: bool) -> std::io::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    let of_kind = kind.map_or_else(String::new, |kind| format!(" of kind {kind}"));
    let running = if keep_running { "" } else { " or run" };
    let question =
        format!("Remove all tasks{of_kind} that wait{running} in queue {queue}, for good? Type the queue's name: ");
    // Whoever cannot be asked removes nothing.
    std::io::stderr().lock().write_all(question.as_bytes())?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim() == queue)
}

/// Whether a queue is open or paused, and for how long.
pub(super) fn state(queue: &QueueRow) -> String {
    match queue.paused_for_ms {
        Some(ms) if ms < PAUSE_SHOWN_MS_MAX => {
            format!("paused for {}", milliseconds(i64::try_from(ms).unwrap_or(i64::MAX)))
        }
        Some(_) => "paused".to_owned(),
        None => "open".to_owned(),
    }
}

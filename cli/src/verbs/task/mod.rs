//! `task ls|export|show|result|cancel`, through the collector; `restore` publishes.

mod list;
mod restore;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use millpond::visible::{visible, visible_json};
use millpond_api::list::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX};
use millpond_api::tasks::{Attempt, CancelTask, Replay, TaskCancelled, TaskDetails, TaskHistory, TaskIdQuery, TaskRow};

use super::failure::print_failure;
use super::job::StoredResults;
use super::task_args::{self, TaskIdArgs};
use crate::api::Api;
use crate::cluster_env::ClusterEnv;
use crate::output::{json_line, one_line, optional, output, time, took};
use list::TaskFilterArgs;

/// What to do with tasks.
#[derive(Subcommand, Debug)]
pub enum TaskCommand {
    /// List the newest tasks of which an attempt has ended.
    Ls {
        #[command(flatten)]
        filter: TaskFilterArgs,
        /// How many tasks to list at most.
        #[arg(long, default_value_t = PAGE_ROWS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=i64::from(PAGE_ROWS_MAX)))]
        limit: u32,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Print all tasks of which an attempt has ended, the newest first, one JSON object per line.
    Export {
        #[command(flatten)]
        filter: TaskFilterArgs,
    },
    /// Show the state of a task, its attempts and the evidence of its failures.
    Show {
        #[command(flatten)]
        task: TaskIdArgs,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Cancel a task. A scheduled task is removed, a running one is stopped, and a waiting one ends when a worker gets it.
    Cancel {
        /// Id of the task; `<id>/<i>` for an item of a batch.
        #[arg(value_parser = task_args::task_id)]
        id: String,
        /// Queue of the task; needed when tasks of several queues have this id, or when the task is not published yet.
        #[arg(long, value_parser = task_args::queue)]
        queue: Option<String>,
        /// Kind of the task; needed when tasks of several kinds have this id. Without it all kinds are meant of a task that is not
        /// published yet.
        #[arg(long, value_parser = task_args::kind)]
        kind: Option<String>,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Publish again, under the same ids, what `setup --tasks-anew` has written to a file (docs/operate.md). What has ended meanwhile is
    /// left out.
    Restore(restore::RestoreArgs),
    /// Print the result of a task, and nothing else; a large result is fetched from the store of payloads.
    Result {
        #[command(flatten)]
        task: TaskIdArgs,
    },
}

/// Runs the command.
///
/// # Errors
/// When the collector does not answer, or does not know the task.
pub async fn run(command: TaskCommand, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let api = Api::new(env)?;
    match command {
        TaskCommand::Ls { filter, limit, json } => list::ls(&api, filter, limit, json).await?,
        TaskCommand::Export { filter } => list::export(&api, filter).await?,
        TaskCommand::Show { task, json } => {
            let task = find(&api, task).await?;
            if json { json_line(&task)? } else { print(&task)? }
        }
        TaskCommand::Cancel { id, queue, kind, json } => cancel(&api, CancelTask { id, queue, kind }, json).await?,
        TaskCommand::Result { task } => print_result(&find(&api, task).await?.row, env).await?,
        TaskCommand::Restore(args) => restore::restore(args, env).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn cancel(api: &Api, task: CancelTask, json: bool) -> anyhow::Result<()> {
    let cancelled: TaskCancelled = api.post("/api/v1/task/cancel", &task).await?;
    match (json, cancelled.ended) {
        (true, _) => json_line(&cancelled)?,
        (false, true) => note!("task {} is cancelled", task.id),
        (false, false) => {
            note!("task {} is cancelled: if it runs, it is being stopped; if it waits, it will not start", task.id);
        }
    }
    Ok(())
}

async fn find(api: &Api, task: TaskIdArgs) -> anyhow::Result<TaskDetails> {
    let query = TaskIdQuery::from(task);
    let found = api.find("/api/v1/task", &query).await?;
    found.with_context(|| {
        format!(
            "no attempt of a task {} has ended yet: it waits, runs, or does not exist (`submit` prints the ids)",
            query.id
        )
    })
}

async fn print_result(task: &TaskRow, env: &ClusterEnv) -> anyhow::Result<()> {
    let fetched = StoredResults::new(env).fetch(task.stored_result.as_ref()).await?;
    let fetched = fetched.as_ref().map(|result| result.get());
    let result = fetched.or(task.result.as_deref().map(|value| value.get()));
    let Some(result) = result.or(task.result_text.as_deref()) else {
        bail!("task {} has no result: it is {}", task.id, task.status);
    };
    Ok(writeln!(output(), "{}", visible_json(result))?)
}

/// Prints a task for a person.
fn print(task: &TaskDetails) -> anyhow::Result<()> {
    let TaskDetails { row, history } = task;
    let result = row.result.as_deref().map(|value| value.get()).or(row.result_text.as_deref());
    let fields = [
        ("id", row.id.clone()),
        ("queue", row.queue.clone()),
        ("kind", row.kind.clone()),
        ("status", row.status.to_string()),
        ("job", row.job.clone().unwrap_or_default()),
        ("index", optional(row.index)),
        ("items", optional(row.items)),
        ("result", one_line(result.unwrap_or_default()).into_owned()),
        ("continuation", row.continuation.clone().unwrap_or_default()),
        ("trace", row.trace.clone().unwrap_or_default()),
    ];
    let mut out = output();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        writeln!(out, "{name:<10} {}", visible(value))?;
    }
    if let Some(at) = &row.stored_result {
        writeln!(
            out,
            "{:<10} {} bytes in the store, object {} (`millpond task result {}` prints it)",
            "result",
            at.size,
            visible(&at.object),
            visible(&row.id)
        )?;
    }
    writeln!(out, "{:<10} {}", "published", time(row.published_ms))?;
    writeln!(out, "{:<10} {}", "stored", time(row.stored_ms))?;
    Ok(print_history(&mut out, history)?)
}

fn print_history(out: &mut impl Write, history: &TaskHistory) -> std::io::Result<()> {
    for Attempt { attempt, worker, started_ms, ended_ms, status, failure, .. } in &history.attempts {
        let (status, worker) = (optional(*status), visible(worker.as_deref().unwrap_or_default()));
        let (started, took) = (time(*started_ms), took(*started_ms, *ended_ms));
        writeln!(out, "attempt {attempt}  {status} on {worker}, started {started}, took {took}")?;
        if let Some(failure) = failure {
            print_failure(out, failure)?;
        }
    }
    for Replay { attempt, reason, by, new_id, at_ms, .. } in &history.replays {
        let how = new_id.as_deref().map_or_else(|| "retried".to_owned(), |id| format!("moved as {}", visible(id)));
        writeln!(out, "dead in attempt {attempt} ({}), {how} by {by} {}", visible(reason), time(*at_ms))?;
    }
    if let Some(of) = &history.replay_of {
        writeln!(out, "made of    {} of queue {}, dead in attempt {}", visible(&of.id), of.queue, of.attempt)?;
    }
    if let Some(dead) = &history.dead {
        writeln!(out, "dead       {}, dead-lettered {}", dead.row.reason, time(dead.row.dead_lettered_ms))?;
        print_failure(out, &dead.row.failure)?;
    }
    Ok(())
}

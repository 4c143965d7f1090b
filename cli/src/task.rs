//! `task show|result|cancel` (`ls` and `export` are in `tasks`): what became of a task, each attempt with worker and times; and its end before its time.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use millpond::limits::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX};
use serde_json::{Value, json};

use crate::api::{Api, text};
use crate::output::{json_line, time, took};
use crate::payloads::Results;
use crate::state::Env;
use crate::tasks;
use crate::tasks::Filter;

/// What to do with a task.
#[derive(Subcommand, Debug)]
pub enum TaskCommand {
    /// List the newest tasks that have ended an attempt.
    Ls {
        #[command(flatten)]
        filter: Filter,
        /// So many at the most.
        #[arg(long, default_value_t = PAGE_ROWS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=i64::from(PAGE_ROWS_MAX)))]
        limit: u32,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Print all tasks that have ended an attempt, the newest first, one JSON object a line.
    Export {
        #[command(flatten)]
        filter: Filter,
    },
    /// Show its end, its attempts and its evidence.
    Show {
        /// Its id; `<id>/<i>` for an item of a batch.
        id: String,
        /// Its queue, where several have this id.
        #[arg(long)]
        queue: Option<String>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Cancel a task: what waits for its time is removed, what runs is ended, what waits for a worker ends at its door.
    Cancel {
        /// Its id; `<id>/<i>` for an item of a batch.
        id: String,
        /// Its queue, where several have this id, or where it is still to come.
        #[arg(long)]
        queue: Option<String>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print its result, and nothing else; a large one is fetched from the store.
    Result {
        /// Its id; `<id>/<i>` for an item of a batch.
        id: String,
        /// Its queue, where several have this id.
        #[arg(long)]
        queue: Option<String>,
    },
}

/// Runs it.
///
/// # Errors
/// When the collector does not answer, or does not know the task.
pub async fn run(command: TaskCommand, env: &Env) -> anyhow::Result<ExitCode> {
    let api = Api::new(env)?;
    match command {
        TaskCommand::Ls { filter, limit, json } => tasks::ls(&api, &filter, limit, json).await?,
        TaskCommand::Export { filter } => tasks::export(&api, &filter).await?,
        TaskCommand::Show { id, queue, json } => show(&api, &id, queue, json).await?,
        TaskCommand::Cancel { id, queue, json } => cancel(&api, &id, queue, json).await?,
        TaskCommand::Result { id, queue } => print_result(&find(&api, &id, queue).await?, env).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(api: &Api, id: &str, queue: Option<String>, json: bool) -> anyhow::Result<()> {
    let task = find(api, id, queue).await?;
    if json { Ok(json_line(&task)?) } else { print(&task) }
}

async fn cancel(api: &Api, id: &str, queue: Option<String>, json: bool) -> anyhow::Result<()> {
    let answer = api.post("/api/v1/task/cancel", &json!({ "id": id, "queue": queue })).await?;
    if json {
        return Ok(json_line(&answer)?);
    }
    match answer.get("ended") {
        Some(Value::Bool(true)) => eprintln!("task {id} is cancelled"),
        _ => eprintln!("task {id} is cancelled: where it runs it is ended now, where it waits it will not start"),
    }
    Ok(())
}

async fn find(api: &Api, id: &str, queue: Option<String>) -> anyhow::Result<Value> {
    let mut query = vec![("id", id.to_owned())];
    query.extend(queue.map(|queue| ("queue", queue)));
    let Some(task) = api.get("/api/v1/task", &query).await? else {
        bail!("no task {id} has ended an attempt yet: it waits, runs, or never was (ids are printed by `submit`)");
    };
    Ok(task)
}

/// Prints a result, and nothing else.
///
/// # Errors
/// When there is none, or it cannot be had.
async fn print_result(task: &Value, env: &Env) -> anyhow::Result<()> {
    let fetched = Results::new(env).of(task).await?.map(|value| value.get().to_owned());
    let here = || task.get("result").map(ToString::to_string);
    let as_text = || task.get("result_text").and_then(Value::as_str).map(str::to_owned);
    let Some(result) = fetched.or_else(here).or_else(as_text) else {
        bail!("task {} has no result: it is {}", text(task, "id"), text(task, "status"));
    };
    writeln!(std::io::stdout().lock(), "{result}")?;
    Ok(())
}

/// A task for a person.
///
/// # Errors
/// When standard output is closed.
fn print(task: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for field in ["id", "queue", "kind", "status", "job", "index", "items", "result", "continuation", "trace"] {
        let value = text(task, field);
        if !value.is_empty() {
            writeln!(out, "{field:<10} {value}")?;
        }
    }
    if let Some(at) = task.get("ref").filter(|at| at.is_object()) {
        let (size, object) = (text(at, "size"), text(at, "object"));
        writeln!(
            out,
            "{:<10} {size} bytes in the store, object {object} (`millpond task result` prints it)",
            "result"
        )?;
    }
    writeln!(out, "{:<10} {}", "published", time(task, "published_ms"))?;
    writeln!(out, "{:<10} {}", "stored", time(task, "stored_ms"))?;
    for attempt in task.get("attempts").and_then(Value::as_array).into_iter().flatten() {
        writeln!(
            out,
            "attempt {}  {} on {}, started {}, took {}",
            text(attempt, "attempt"),
            text(attempt, "status"),
            text(attempt, "worker"),
            time(attempt, "started_ms"),
            took(attempt, "started_ms", "ended_ms"),
        )?;
        print_failure(&mut out, attempt.get("failure"))?;
    }
    for replay in task.get("replays").and_then(Value::as_array).into_iter().flatten() {
        let (attempt, reason, by, new_id) =
            (text(replay, "attempt"), text(replay, "reason"), text(replay, "by"), text(replay, "new_id"));
        let how = if new_id.is_empty() { "run again".to_owned() } else { format!("moved as {new_id}") };
        writeln!(out, "dead in attempt {attempt} ({reason}), {how} by {by} {}", time(replay, "at_ms"))?;
    }
    if let Some(of) = task.get("replay_of").filter(|of| of.is_object()) {
        writeln!(
            out,
            "made of    {} of queue {}, dead in attempt {}",
            text(of, "id"),
            text(of, "queue"),
            text(of, "attempt")
        )?;
    }
    if let Some(dead) = task.get("dead").filter(|d| d.is_object()) {
        writeln!(out, "dead       {}, buried {}", text(dead, "reason"), time(dead, "dead_lettered_ms"))?;
        print_failure(&mut out, dead.get("failure"))?;
    }
    Ok(())
}

/// A failure, indented.
///
/// # Errors
/// When the output is closed.
pub fn print_failure(out: &mut impl Write, failure: Option<&Value>) -> std::io::Result<()> {
    let Some(failure) = failure.filter(|f| f.is_object()) else { return Ok(()) };
    writeln!(out, "           {}: {}", text(failure, "type"), text(failure, "message"))?;
    for line in text(failure, "traceback").lines() {
        writeln!(out, "           {line}")?;
    }
    match failure.get("child").filter(|child| child.is_object()) {
        Some(child) => print_child(out, child),
        None => Ok(()),
    }
}

/// What is known of the process that it ran in, and the last lines of its log.
fn print_child(out: &mut impl Write, child: &Value) -> std::io::Result<()> {
    let mut known = vec![format!("child {}", text(child, "name"))];
    let fields = [("exit code", "exit_code"), ("signal", "signal")];
    known.extend(
        fields
            .iter()
            .filter(|(_, f)| child.get(*f).is_some_and(|value| !value.is_null()))
            .map(|(what, f)| format!("{what} {}", text(child, f))),
    );
    if child.get("oom") == Some(&Value::Bool(true)) {
        known.push("out of memory".to_owned());
    }
    known.extend(child.get("rss_bytes").and_then(Value::as_u64).map(|bytes| format!("{} MiB resident", bytes >> 20)));
    writeln!(out, "           {}", known.join(", "))?;
    for line in child.get("log").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        writeln!(out, "           | {line}")?;
    }
    Ok(())
}

//! `task show`: what became of a task, each attempt with worker and times.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use serde_json::Value;

use crate::api::{Api, text};
use crate::output::{json_line, time, took};
use crate::state::Env;

/// What to do with a task.
#[derive(Subcommand, Debug)]
pub enum TaskCommand {
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
}

/// Runs it.
///
/// # Errors
/// When the collector does not answer, or does not know the task.
pub async fn run(command: TaskCommand, env: &Env) -> anyhow::Result<ExitCode> {
    let TaskCommand::Show { id, queue, json } = command;
    let mut query = vec![("id", id.clone())];
    query.extend(queue.map(|queue| ("queue", queue)));
    let Some(task) = Api::new(env)?.get("/api/v1/task", &query).await? else {
        bail!("no task {id} has ended an attempt yet: it waits, runs, or never was (ids are printed by `submit`)");
    };
    if json {
        json_line(&task)?;
    } else {
        print(&task)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A task for a person.
///
/// # Errors
/// When standard output is closed.
fn print(task: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for field in ["id", "queue", "kind", "status", "job", "index", "items", "result", "then", "trace"] {
        let value = text(task, field);
        if !value.is_empty() {
            writeln!(out, "{field:<10} {value}")?;
        }
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
    if let Some(dead) = task.get("dead").filter(|d| d.is_object()) {
        writeln!(out, "dead       {}, buried {}", text(dead, "reason"), time(dead, "buried_ms"))?;
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

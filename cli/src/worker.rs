//! `worker ls|drain`, over the collector's API; `worker run` is a service (service.rs). `top` shows the same rows.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Subcommand;
use millpond::config::duration;
use serde_json::{Value, json};

use crate::api::{Api, text};
use crate::output::{Table, json_line, milliseconds, short};
use crate::service::{WorkerRunArgs, run_worker};
use crate::state::Env;

/// How often a waiting command asks.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// Characters of a task's id that are shown.
const TASK_CHARS_MAX: usize = 40;
/// Characters of a reason or note that are shown.
const NOTE_CHARS_MAX: usize = 80;

/// What [`rows`] are headed by. The last column is for those who have something to say: see [`headings`].
const HEADINGS: [&str; 12] =
    ["WORKER", "STATE", "HOST", "PID", "QUEUES", "RUNNING", "DONE", "FAILED", "CPU", "RSS", "UP", "NOTE"];

/// What to do with workers.
#[derive(Subcommand, Debug)]
pub enum WorkerCommand {
    /// List workers and their children with what they do now.
    Ls(LsArgs),
    /// Ask workers to take nothing more, finish what runs, and leave.
    Drain(DrainArgs),
    /// Run a worker in the foreground; it joins the cluster of --state, or of --nats-url.
    Run(Box<WorkerRunArgs>),
}

/// `worker ls`.
#[derive(clap::Args, Debug)]
pub struct LsArgs {
    /// One JSON object a line: the worker's record, its children within.
    #[arg(long)]
    json: bool,
}

/// `worker drain`.
#[derive(clap::Args, Debug)]
pub struct DrainArgs {
    /// Their names, as `worker ls` shows them.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    names: Vec<String>,
    /// All workers that are connected.
    #[arg(long)]
    all: bool,
    /// Wait until they have left.
    #[arg(long)]
    wait: bool,
    /// Wait no longer than this; what runs goes on, and the workers still leave.
    #[arg(long, default_value = "60s", value_parser = duration, requires = "wait")]
    timeout: Duration,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Runs it.
///
/// # Errors
/// When the collector or NATS cannot be reached.
pub async fn run(command: WorkerCommand, env: &Env) -> anyhow::Result<ExitCode> {
    match command {
        WorkerCommand::Run(args) => run_worker(*args, env).await,
        WorkerCommand::Ls(args) => ls(&Api::new(env)?, args.json).await,
        WorkerCommand::Drain(args) => drain(&Api::new(env)?, args).await,
    }
}

async fn ls(api: &Api, json: bool) -> anyhow::Result<ExitCode> {
    let workers = list(api).await?;
    if json {
        workers.iter().try_for_each(json_line)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = workers.iter().flat_map(rows).collect();
    let mut table = Table::new(headings(&rows));
    rows.into_iter().for_each(|row| table.row(row));
    table.print("no workers; start one with `millpond worker run`")?;
    Ok(ExitCode::SUCCESS)
}

/// All workers that the collector knows of, by name.
///
/// # Errors
/// As [`Api::get`].
pub async fn list(api: &Api) -> anyhow::Result<Vec<Value>> {
    let mut workers = Vec::new();
    api.each("/api/v1/workers", &[], |worker| {
        workers.push(worker.clone());
        Ok(true)
    })
    .await?;
    Ok(workers)
}

/// The headings of these rows: without the last when none has a note.
pub fn headings(rows: &[Vec<String>]) -> &'static [&'static str] {
    let noted = rows.iter().any(|row| row.last().is_some_and(|note| !note.is_empty()));
    HEADINGS.split_at_checked(HEADINGS.len() - usize::from(!noted)).map_or(&[], |(shown, _)| shown)
}

/// A worker as cells under [`HEADINGS`], then its children, indented: kind for queues, task for running.
pub fn rows(worker: &Value) -> Vec<Vec<String>> {
    let number = |field| worker.get(field).and_then(Value::as_i64).unwrap_or(0);
    let list = |field| {
        let items = worker.get(field).and_then(Value::as_array).into_iter().flatten();
        items.filter_map(Value::as_str).collect::<Vec<_>>().join(",")
    };
    let of_worker = vec![
        text(worker, "name"),
        text(worker, "state"),
        text(worker, "host"),
        text(worker, "pid"),
        list("queues"),
        format!("{}/{}+{}", text(worker, "running"), text(worker, "slots"), number("io_slots")),
        text(worker, "done"),
        text(worker, "failed"),
        percent(worker),
        mebibytes(worker),
        milliseconds(number("heartbeat_ms") - number("started_ms")),
        note(worker, &list("unknown_kinds")),
    ];
    let children = worker.get("children").and_then(Value::as_array).into_iter().flatten();
    let children = children.map(|child| child_row(child, number("heartbeat_ms")));
    std::iter::once(of_worker).chain(children).collect()
}

fn child_row(child: &Value, now_ms: i64) -> Vec<String> {
    let number = |field| child.get(field).and_then(Value::as_i64);
    let mut task = short(child, "task", TASK_CHARS_MAX);
    if let Some(age) = number("task_ms") {
        task = format!("{task} {}", milliseconds(age));
    }
    if let Some(progress) = child.get("progress").and_then(Value::as_f64) {
        task = format!("{task} {:.0}%", progress * 100.0);
    }
    let restarts = number("restarts").filter(|n| *n > 0).map(|n| format!("restarts {n}"));
    let note = Some(short(child, "note", NOTE_CHARS_MAX)).filter(|note| !note.is_empty());
    vec![
        format!("  {}", text(child, "name")),
        text(child, "state"),
        String::new(),
        text(child, "pid"),
        text(child, "kind"),
        task,
        text(child, "done"),
        String::new(),
        percent(child),
        mebibytes(child),
        number("started_ms").map(|started| milliseconds(now_ms - started)).unwrap_or_default(),
        restarts.into_iter().chain(note).collect::<Vec<_>>().join("; "),
    ]
}

/// What a person should know of a worker: kinds whose children cannot start, kinds that it was handed in vain.
fn note(worker: &Value, unknown_kinds: &str) -> String {
    let troubles = worker.get("troubles").and_then(Value::as_object);
    let kinds = troubles.into_iter().flat_map(|troubles| troubles.keys().map(move |kind| (troubles, kind)));
    let mut notes: Vec<String> = kinds
        .map(|(troubles, kind)| {
            let reason = troubles.get(kind).map(|reason| json!({ "reason": reason })).unwrap_or_default();
            format!("{kind} cannot start: {}", short(&reason, "reason", NOTE_CHARS_MAX))
        })
        .collect();
    if !unknown_kinds.is_empty() {
        notes.push(format!("unknown kinds: {unknown_kinds}"));
    }
    notes.join("; ")
}

fn percent(row: &Value) -> String {
    let percent = row.get("cpu_percent").and_then(Value::as_f64).unwrap_or(0.0);
    format!("{percent:.1}%")
}

fn mebibytes(row: &Value) -> String {
    let bytes = row.get("rss_bytes").and_then(Value::as_f64).unwrap_or(0.0);
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

async fn drain(api: &Api, args: DrainArgs) -> anyhow::Result<ExitCode> {
    let before = list(api).await?;
    let connected = before.iter().filter(|worker| text(worker, "state") != "lost");
    // The nonce tells whether who has the name later is the same process.
    let nonces: BTreeMap<String, String> = connected.map(|w| (text(w, "name"), text(w, "nonce"))).collect();
    let names = if args.all { nonces.keys().cloned().collect() } else { args.names };
    if names.is_empty() {
        eprintln!("no workers are connected");
    }
    let (mut failed, mut draining) = (false, BTreeMap::new());
    for name in names {
        match api.post(&format!("/api/v1/workers/{name}/drain"), &json!({})).await {
            Ok(_) if args.wait => drop(draining.insert(name.clone(), nonces.get(&name).cloned())),
            Ok(_) => tell(args.json, &name, "draining")?,
            Err(error) if error.chain().any(<dyn std::error::Error>::is::<reqwest::Error>) => return Err(error),
            Err(error) => {
                failed = true;
                match nonces.contains_key(&name) {
                    true => eprintln!("millpond: worker {name} cannot be drained: {error:#}"),
                    false => eprintln!(
                        "millpond: no worker of the name {name} is connected; `millpond worker ls` lists those that are"
                    ),
                }
            }
        }
    }
    let left = wait(api, draining, args.timeout, args.json).await?;
    for (name, state) in &left {
        let timeout = humantime::format_duration(args.timeout);
        eprintln!("millpond: worker {name} is {state} after {timeout}; `millpond worker ls` shows what it still does");
    }
    Ok(if failed || !left.is_empty() { ExitCode::from(crate::EXIT_TASK_FAILED) } else { ExitCode::SUCCESS })
}

/// Tells of each worker that it has left; those that have not within `timeout`, with their state.
async fn wait(
    api: &Api,
    mut draining: BTreeMap<String, Option<String>>,
    timeout: Duration,
    json: bool,
) -> anyhow::Result<BTreeMap<String, String>> {
    let started = Instant::now();
    while !draining.is_empty() {
        let workers = list(api).await?;
        let state = |name: &String, nonce: &Option<String>| {
            let same = |w: &&Value| text(w, "name") == *name && nonce.as_ref().is_none_or(|n| text(w, "nonce") == *n);
            workers.iter().find(same).map(|worker| text(worker, "state"))
        };
        let (still, gone): (BTreeMap<_, _>, _) =
            draining.into_iter().partition(|(name, nonce)| state(name, nonce).is_some());
        gone.keys().try_for_each(|name| tell(json, name, "gone"))?;
        if started.elapsed() >= timeout {
            let with_state = |(name, nonce)| state(&name, &nonce).map(|state| (name, state));
            return Ok(still.into_iter().filter_map(with_state).collect());
        }
        draining = still;
        if !draining.is_empty() {
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
    Ok(BTreeMap::new())
}

fn tell(json: bool, name: &str, state: &str) -> std::io::Result<()> {
    if json {
        return json_line(&json!({ "worker": name, "state": state }));
    }
    writeln!(std::io::stdout().lock(), "{name} {state}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_stand_below_their_worker() {
        let worker = json!({
            "name": "w1", "state": "live", "host": "h", "pid": 7, "queues": ["a", "b"], "running": 1, "slots": 2,
            "io_slots": 64, "done": 3, "failed": 1, "cpu_percent": 12.34, "rss_bytes": 3 << 19, "started_ms": 1000,
            "heartbeat_ms": 2500, "unknown_kinds": [], "children": [{
                "name": "w1/convert-2", "kind": "convert", "pid": 8, "state": "busy", "task": "j.1/4", "task_ms": 1250,
                "progress": 0.4, "done": 2, "restarts": 1, "cpu_percent": 99.0, "rss_bytes": 0, "started_ms": 1500,
            }],
        });
        let rows = rows(&worker);
        assert_eq!(rows[0].join("|"), "w1|live|h|7|a,b|1/2+64|3|1|12.3%|1.5 MiB|1.50s|");
        assert_eq!(
            rows[1].join("|"),
            "  w1/convert-2|busy||8|convert|j.1/4 1.25s 40%|2||99.0%|0.0 MiB|1.00s|restarts 1"
        );
        assert_eq!(headings(&rows).last(), Some(&"NOTE"));
        assert_eq!(headings(&rows[..1]).last(), Some(&"UP"));
    }

    #[test]
    fn troubles_and_unknown_kinds_are_noted() {
        let worker = json!({ "troubles": { "convert": "no such\nfile" }, "unknown_kinds": ["default.x"] });
        assert_eq!(rows(&worker)[0][11], "convert cannot start: no such file; unknown kinds: default.x");
    }
}

//! `worker drain`: lets workers finish and leave, and waits until they have.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use millpond::config::duration;
use millpond_api::workers::{WorkerDraining, WorkerRow, WorkerState};
use serde_json::json;

use super::super::task_args;
use super::list::list;
use crate::api::{Api, NoBody};
use crate::exit;
use crate::output::{json_line, output};

/// How often the workers are polled.
const POLL_EVERY: Duration = Duration::from_millis(250);

/// `worker drain`.
#[derive(clap::Args, Debug)]
pub struct DrainArgs {
    /// Names of the workers, as `worker ls` shows them.
    #[arg(required_unless_present = "all", conflicts_with = "all", value_parser = task_args::worker)]
    names: Vec<String>,
    /// Drain all workers that are connected.
    #[arg(long)]
    all: bool,
    /// Wait until the workers have left.
    #[arg(long)]
    wait: bool,
    /// How long to wait at most; after that the workers still finish and leave.
    #[arg(long, default_value = "60s", value_parser = duration, requires = "wait")]
    timeout: Duration,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
}

/// Worker names, each with when its drain was requested, Unix time in milliseconds: what started later is another process, which
/// has taken the name since.
type Draining = BTreeMap<String, i64>;

/// Drains the workers.
///
/// # Errors
/// When the collector does not answer.
pub(super) async fn run(api: &Api, args: DrainArgs) -> anyhow::Result<ExitCode> {
    let before = list(api).await?;
    let connected = before.into_iter().filter(|worker| worker.state != WorkerState::Lost);
    // By the clock of the workers' records, which is the server's.
    let mut requested_ms = 0;
    let mut connected_names = BTreeSet::new();
    for worker in connected {
        requested_ms = requested_ms.max(worker.record.heartbeat_ms);
        connected_names.insert(worker.record.name);
    }
    let names = if args.all { connected_names.iter().cloned().collect() } else { args.names };
    if names.is_empty() {
        note!("no workers are connected");
    }
    let (mut failed, mut draining) = (false, Draining::new());
    for name in names {
        match api.post::<WorkerDraining>(&format!("/api/v1/workers/{name}/drain"), &NoBody {}).await {
            Ok(_) if args.wait => drop(draining.insert(name.clone(), requested_ms)),
            Ok(_) => print(args.json, &name, "draining")?,
            Err(error) if error.chain().any(<dyn std::error::Error>::is::<reqwest::Error>) => return Err(error),
            Err(error) => {
                failed = true;
                match connected_names.contains(&name) {
                    true => note!("millpond: worker {name} cannot be drained: {error:#}"),
                    false => note!(
                        "millpond: no worker named {name} is connected; `millpond worker ls` lists those that are"
                    ),
                }
            }
        }
    }
    let left = wait(api, draining, args.timeout, args.json).await?;
    for (name, state) in &left {
        let timeout = humantime::format_duration(args.timeout);
        note!("millpond: worker {name} is {state} after {timeout}; `millpond worker ls` shows what it still does");
    }
    Ok(if failed || !left.is_empty() { exit::TASK_FAILED.into() } else { ExitCode::SUCCESS })
}

/// Prints the name of each worker that has left; returns those that have not within `timeout`, with their state.
async fn wait(
    api: &Api,
    mut draining: Draining,
    timeout: Duration,
    json: bool,
) -> anyhow::Result<BTreeMap<String, WorkerState>> {
    let started = Instant::now();
    while !draining.is_empty() {
        let workers = list(api).await?;
        let state = |name: &String, requested_ms: i64| {
            let same =
                |WorkerRow { record, .. }: &&WorkerRow| record.name == *name && record.started_ms <= requested_ms;
            workers.iter().find(same).map(|worker| worker.state)
        };
        let (still, gone): (Draining, Draining) =
            draining.into_iter().partition(|(name, requested_ms)| state(name, *requested_ms).is_some());
        gone.keys().try_for_each(|name| print(json, name, "gone"))?;
        if started.elapsed() >= timeout {
            let with_state = |(name, requested_ms)| state(&name, requested_ms).map(|state| (name, state));
            return Ok(still.into_iter().filter_map(with_state).collect());
        }
        draining = still;
        if !draining.is_empty() {
            tokio::time::sleep(POLL_EVERY).await;
        }
    }
    Ok(BTreeMap::new())
}

fn print(json: bool, name: &str, state: &str) -> anyhow::Result<()> {
    if json {
        return json_line(&json!({ "worker": name, "state": state }));
    }
    Ok(writeln!(output(), "{name} {state}")?)
}

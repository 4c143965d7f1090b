//! `bench --telemetry`: what it costs to export spans and logs, and what a Collector costs that is away, hangs or refuses.
//! A cluster of its own for each round, in turn; the sink is in this process and only reads.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, bail};
use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use millpond::client::{Batch, Client};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::process::snapshot;
use super::report::{Spread, spread};
use super::{BATCHED_FACTOR, BenchArgs, map, settled, square};
use crate::state::Env;

/// Tasks before the clock starts.
const WARM_TASKS: u64 = 5000;
/// Span ids that are sampled of a hundred, as the sampler is told.
const SAMPLED: &str = "0.01";

/// How the Collector is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    Off,
    On,
    Sampled,
    Away,
    Hangs,
    Refuses,
}

const MODES: [Mode; 6] = [Mode::Off, Mode::On, Mode::Sampled, Mode::Away, Mode::Hangs, Mode::Refuses];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "all traces, logs",
            Self::Sampled => "1 % of traces, logs",
            Self::Away => "all, Collector away",
            Self::Hangs => "all, Collector hangs",
            Self::Refuses => "all, Collector answers 500",
        }
    }

    /// What it is compared with, and what that should give.
    fn goal(self) -> Option<(Self, &'static str)> {
        match self {
            Self::Off => None,
            Self::On => Some((Self::Off, "at least 0.90")),
            Self::Sampled => Some((Self::Off, "at least 0.97")),
            Self::Away | Self::Hangs | Self::Refuses => Some((Self::On, "at least 0.95")),
        }
    }
}

/// One round, within its cluster: how many tasks a second, and the memory of each process at the end.
pub(super) async fn inside(args: &BenchArgs, client: &Client, env: &Env) -> anyhow::Result<()> {
    let (_, job) = map(client, "square", Batch::Fixed(1), WARM_TASKS, square).await?;
    settled(env, &job, WARM_TASKS).await?;
    let before = snapshot();
    let (took, job) = map(client, "square", Batch::Fixed(1), args.tasks, square).await?;
    settled(env, &job, args.tasks).await?;
    let after = snapshot();
    let batched_tasks = args.tasks * BATCHED_FACTOR;
    let (batched_took, job) = map(client, "square", Batch::Auto, batched_tasks, square).await?;
    settled(env, &job, batched_tasks).await?;
    let tasks = super::report::float(args.tasks);
    let cpu = |name: &String, used: f64| (used - before.get(name).map_or(0.0, |b| b.cpu_s)) * 1e6 / tasks;
    let cpu: BTreeMap<&String, f64> = after.iter().map(|(name, used)| (name, cpu(name, used.cpu_s))).collect();
    let rss: BTreeMap<&String, u64> = after.iter().map(|(name, used)| (name, used.rss)).collect();
    let batched = super::report::float(batched_tasks) / batched_took.as_secs_f64();
    let round = json!({
        "tasks_per_s": tasks / took.as_secs_f64(),
        "batched_per_s": batched,
        "cpu_us_per_task": cpu,
        "rss_bytes": rss,
    });
    writeln!(std::io::stdout().lock(), "{round}").context("the round cannot be told")
}

/// All rounds.
pub(super) async fn outside(args: &BenchArgs) -> anyhow::Result<()> {
    let mut rounds: BTreeMap<Mode, Vec<Value>> = BTreeMap::new();
    for round in 0..args.rounds {
        let mut modes = MODES;
        if round % 2 == 1 {
            modes.reverse();
        }
        for mode in modes {
            eprintln!("round {} of {}: {} …", round + 1, args.rounds, mode.name());
            rounds.entry(mode).or_default().push(one(args, mode).await?);
        }
    }
    print(&rounds, args.json).context("the figures cannot be told")
}

async fn one(args: &BenchArgs, mode: Mode) -> anyhow::Result<Value> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("no port is free")?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let mut sink = JoinSet::new();
    match mode {
        Mode::Off | Mode::Away => drop(listener),
        _ => {
            sink.spawn(take(listener, mode));
        }
    }
    let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut command = super::cluster(args, dir.path())?;
    command.args(["--", "bench", "--inside", "--telemetry", "--tasks", &args.tasks.to_string()]);
    for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"] {
        command.env_remove(name);
    }
    if mode != Mode::Off {
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    }
    if mode == Mode::Sampled {
        command.env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio").env("OTEL_TRACES_SAMPLER_ARG", SAMPLED);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().await.context("no cluster starts")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let round = said.lines().find_map(|line| serde_json::from_str(line).ok());
    match round {
        Some(round) if output.status.success() => Ok(round),
        _ => bail!("a round failed ({}): {said}", output.status),
    }
}

/// Reads what comes, and answers or not.
async fn take(listener: TcpListener, mode: Mode) {
    let router = Router::new().fallback(async move |_body: Bytes| match mode {
        Mode::Hangs => std::future::pending().await,
        Mode::Refuses => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::OK,
    });
    let _ = axum::serve(listener, router.layer(DefaultBodyLimit::disable())).await;
}

fn figures(rounds: &[Value], of: impl Fn(&Value) -> Option<f64>) -> Vec<f64> {
    rounds.iter().map(|round| of(round).unwrap_or(f64::NAN)).collect()
}

fn print(rounds: &BTreeMap<Mode, Vec<Value>>, as_json: bool) -> std::io::Result<()> {
    let rates = |mode, of| figures(rounds.get(&mode).map_or(&[], Vec::as_slice), |r| r.get(of)?.as_f64());
    let ratio = |mode: Mode, figure| -> Option<(Spread, &str)> {
        let (to, goal) = mode.goal()?;
        Some((spread(rates(mode, figure).iter().zip(rates(to, figure)).map(|(of, to)| of / to)), goal))
    };
    // Of all processes together: what others do on the machine hides less of it.
    let cpu = |mode: Mode| {
        let sum = |r: &Value| Some(r.get("cpu_us_per_task")?.as_object()?.values().filter_map(Value::as_f64).sum());
        figures(rounds.get(&mode).map_or(&[], Vec::as_slice), sum)
    };
    let cpu_ratio = |mode: Mode| -> Option<Spread> {
        let (to, _) = mode.goal()?;
        Some(spread(cpu(to).iter().zip(cpu(mode)).map(|(to, of)| to / of)))
    };
    let median = |mode: Mode, figure: &str, process: &str| {
        let of = |r: &Value| r.get(figure)?.get(process)?.as_f64();
        spread(figures(rounds.get(&mode).map_or(&[], Vec::as_slice), of)).median
    };
    let mut out = std::io::stdout().lock();
    if as_json {
        let all: BTreeMap<&str, Value> = rounds.iter().map(|(mode, rounds)| (mode.name(), json!(rounds))).collect();
        return writeln!(out, "{}", json!(all));
    }
    for (title, figure) in [("one per message", "tasks_per_s"), ("automatic batches", "batched_per_s")] {
        writeln!(out, "\n{title:<26} {:<30} ratio, goal", "tasks/s: median (min-max)")?;
        for mode in MODES {
            let ratio =
                ratio(mode, figure).map_or_else(String::new, |(ratio, goal)| format!("{}, {goal}", ratio.text(2)));
            writeln!(out, "{:<26} {:<30} {ratio}", mode.name(), spread(rates(mode, figure)).text(0))?;
        }
    }
    writeln!(out, "\n{:<26} {:<18} {:<16} by process: CPU, RSS MiB", "one per message", "CPU us/task", "ratio")?;
    for mode in MODES {
        let cpu_ratio = cpu_ratio(mode).map_or_else(String::new, |ratio| ratio.text(2));
        let used = ["bench", "nats-server", "worker", "collector"].map(|process| {
            let (cpu, rss) = (median(mode, "cpu_us_per_task", process), median(mode, "rss_bytes", process));
            format!("{process} {cpu:.1} {:.0}", rss / 1024.0 / 1024.0)
        });
        let cpu = spread(cpu(mode)).text(0);
        writeln!(out, "{:<26} {cpu:<18} {cpu_ratio:<16} {}", mode.name(), used.join("  "))?;
    }
    Ok(())
}

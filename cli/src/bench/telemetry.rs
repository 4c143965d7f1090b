//! `bench --telemetry`: what it costs to export spans and logs, and what a Collector costs that is away, hangs or refuses.
//! A cluster for each, all at once, which run the parts of each round in turn: a machine that is slower now is so for all of
//! them. The sink is in this process and only reads.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, bail};
use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use millpond::client::{BatchSize, Client};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::task::JoinSet;

use super::process::snapshot;
use super::report::{Spread, spread};
use super::{BATCHED_FACTOR, BenchArgs, map, settled, square};
use crate::state::Env;

/// Tasks before the clock starts, and twenty times as many with batches.
const WARM_TASKS: u64 = 5000;
/// A round is run in so many parts, each cluster's after another's.
const PARTS: u64 = 5;
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

/// A part of a round, within a cluster.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Part {
    /// One task per message, in seconds.
    single_s: f64,
    /// The same with batches.
    batched_s: f64,
    /// CPU time of each process with one task per message, in seconds.
    cpu_s: BTreeMap<String, f64>,
    /// Memory of each process at the end.
    rss_bytes: BTreeMap<String, u64>,
}

impl Part {
    fn add(&mut self, more: Self) {
        self.single_s += more.single_s;
        self.batched_s += more.batched_s;
        for (name, s) in more.cpu_s {
            *self.cpu_s.entry(name).or_default() += s;
        }
        self.rss_bytes = more.rss_bytes;
    }
}

/// Runs a part for each line that comes, within its cluster, and tells how it went in a line.
pub(super) async fn inside(args: &BenchArgs, client: &Client, env: &Env) -> anyhow::Result<()> {
    part(WARM_TASKS, client, env).await?;
    tell(&Part::default())?;
    let mut asked = BufReader::new(tokio::io::stdin()).lines();
    while asked.next_line().await?.is_some() {
        tell(&part(args.tasks / PARTS, client, env).await?)?;
    }
    Ok(())
}

async fn part(tasks: u64, client: &Client, env: &Env) -> anyhow::Result<Part> {
    let before = snapshot();
    let (single, job) = map(client, "square", BatchSize::Fixed(1), tasks, square).await?;
    settled(env, &job, tasks).await?;
    let after = snapshot();
    let (batched, job) = map(client, "square", BatchSize::Auto, tasks * BATCHED_FACTOR, square).await?;
    settled(env, &job, tasks * BATCHED_FACTOR).await?;
    let cpu = |name: &String, used: f64| used - before.get(name).map_or(0.0, |before| before.cpu_s);
    Ok(Part {
        single_s: single.as_secs_f64(),
        batched_s: batched.as_secs_f64(),
        cpu_s: after.iter().map(|(name, used)| (name.clone(), cpu(name, used.cpu_s))).collect(),
        rss_bytes: after.iter().map(|(name, used)| (name.clone(), used.rss)).collect(),
    })
}

fn tell(part: &Part) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(part)?).and_then(|()| out.flush()).context("a part cannot be told")
}

/// A cluster that runs a part when it is asked.
struct Running {
    mode: Mode,
    process: Child,
    ask: ChildStdin,
    told: Lines<BufReader<ChildStdout>>,
    _sink: JoinSet<()>,
    _dir: TempDir,
}

impl Running {
    async fn start(args: &BenchArgs, mode: Mode) -> anyhow::Result<Self> {
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
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().context("no cluster starts")?;
        let (ask, told) = (process.stdin.take(), process.stdout.take());
        let (ask, told) = ask.zip(told).context("a cluster without pipes")?;
        let mut started = Self { mode, process, ask, told: BufReader::new(told).lines(), _sink: sink, _dir: dir };
        started.told().await?;
        Ok(started)
    }

    async fn told(&mut self) -> anyhow::Result<Part> {
        while let Some(line) = self.told.next_line().await? {
            // `up` tells something of its own before.
            if let Ok(part) = serde_json::from_str(&line) {
                return Ok(part);
            }
        }
        bail!("the cluster of {:?} ended: {}", self.mode.name(), self.process.wait().await?)
    }

    async fn part(&mut self) -> anyhow::Result<Part> {
        self.ask.write_all(b"\n").await.context("a cluster hears nothing")?;
        self.told().await
    }

    async fn end(mut self) -> anyhow::Result<()> {
        drop(self.ask);
        let status = self.process.wait().await?;
        if !status.success() {
            bail!("the cluster of {:?} ended badly: {status}", self.mode.name());
        }
        Ok(())
    }
}

/// All rounds.
pub(super) async fn outside(args: &BenchArgs) -> anyhow::Result<()> {
    if args.tasks < PARTS * 100 {
        bail!("--tasks {} is too few here: a round has {PARTS} parts of at least 100 tasks each", args.tasks);
    }
    let mut clusters = Vec::new();
    for mode in MODES {
        eprintln!("starts a cluster: {} …", mode.name());
        clusters.push(Running::start(args, mode).await?);
    }
    let mut rounds: BTreeMap<Mode, Vec<Part>> = BTreeMap::new();
    for round in 0..args.rounds {
        eprintln!("round {} of {} …", round + 1, args.rounds);
        let mut parts: BTreeMap<Mode, Part> = BTreeMap::new();
        for _ in 0..PARTS {
            clusters.reverse();
            for cluster in &mut clusters {
                parts.entry(cluster.mode).or_default().add(cluster.part().await?);
            }
        }
        parts.into_iter().for_each(|(mode, part)| rounds.entry(mode).or_default().push(part));
    }
    for cluster in clusters {
        cluster.end().await?;
    }
    let tasks = super::report::float(args.tasks / PARTS * PARTS);
    let figures = |parts: &Vec<Part>| parts.iter().map(|part| figures(part, tasks)).collect();
    let rounds = rounds.iter().map(|(mode, parts)| (*mode, figures(parts))).collect();
    print(&rounds, args.json).context("the figures cannot be told")
}

fn figures(round: &Part, tasks: f64) -> Value {
    let cpu: BTreeMap<&String, f64> = round.cpu_s.iter().map(|(name, s)| (name, s * 1e6 / tasks)).collect();
    json!({
        "tasks_per_s": tasks / round.single_s,
        "batched_per_s": tasks * super::report::float(BATCHED_FACTOR) / round.batched_s,
        "cpu_us_per_task": cpu,
        "rss_bytes": round.rss_bytes,
    })
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

fn each(rounds: &[Value], of: impl Fn(&Value) -> Option<f64>) -> Vec<f64> {
    rounds.iter().map(|round| of(round).unwrap_or(f64::NAN)).collect()
}

fn print(rounds: &BTreeMap<Mode, Vec<Value>>, as_json: bool) -> std::io::Result<()> {
    let rates = |mode, of| each(rounds.get(&mode).map_or(&[], Vec::as_slice), |r| r.get(of)?.as_f64());
    let ratio = |mode: Mode, figure| -> Option<(Spread, &str)> {
        let (to, goal) = mode.goal()?;
        Some((spread(rates(mode, figure).iter().zip(rates(to, figure)).map(|(of, to)| of / to)), goal))
    };
    // Of all processes together: what others do on the machine hides less of it.
    let cpu = |mode: Mode| {
        let sum = |r: &Value| Some(r.get("cpu_us_per_task")?.as_object()?.values().filter_map(Value::as_f64).sum());
        each(rounds.get(&mode).map_or(&[], Vec::as_slice), sum)
    };
    let cpu_ratio = |mode: Mode| -> Option<Spread> {
        let (to, _) = mode.goal()?;
        Some(spread(cpu(to).iter().zip(cpu(mode)).map(|(to, of)| to / of)))
    };
    let median = |mode: Mode, figure: &str, process: &str| {
        let of = |r: &Value| r.get(figure)?.get(process)?.as_f64();
        spread(each(rounds.get(&mode).map_or(&[], Vec::as_slice), of)).median
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

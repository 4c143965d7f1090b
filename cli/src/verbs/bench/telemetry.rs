//! `bench --telemetry`: the cost of exporting spans and logs, also to an OpenTelemetry Collector that is away, hangs or
//! refuses. Each case has a cluster, and all clusters run the parts of each round in turn, so that a slower moment of the
//! machine hits all of them. The sink is in this process and only reads.

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

use super::args::BenchArgs;
use super::process::snapshot;
use super::report::{Spread, spread};
use super::workload::{BATCHED_FACTOR, all_stored, map, square};
use crate::cluster_env::ClusterEnv;
use crate::output::output;

/// How many tasks warm a cluster up, and twenty times as many with batches.
const WARM_TASKS: u64 = 5000;
/// How many parts a round has; the clusters take turns after each part.
const PARTS: u64 = 5;
/// The share of traces that are sampled.
const SAMPLED: &str = "0.01";

/// What the exporter of a cluster meets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ExportCase {
    Off,
    On,
    Sampled,
    Away,
    Hangs,
    Refuses,
}

const CASES: [ExportCase; 6] =
    [ExportCase::Off, ExportCase::On, ExportCase::Sampled, ExportCase::Away, ExportCase::Hangs, ExportCase::Refuses];

impl ExportCase {
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

    /// The case that it is compared with, and the ratio that it should reach.
    fn goal(self) -> Option<(Self, &'static str)> {
        match self {
            Self::Off => None,
            Self::On => Some((Self::Off, "at least 0.90")),
            Self::Sampled => Some((Self::Off, "at least 0.97")),
            Self::Away | Self::Hangs | Self::Refuses => Some((Self::On, "at least 0.95")),
        }
    }
}

/// A part of a round on one cluster.
#[derive(Debug, Default, Serialize, Deserialize)]
struct RoundPart {
    /// One task per message, in seconds.
    single_s: f64,
    /// The same with batches.
    batched_s: f64,
    /// CPU time of each process with one task per message, in seconds.
    cpu_s: BTreeMap<String, f64>,
    /// Memory of each process at the end.
    rss_bytes: BTreeMap<String, u64>,
}

impl RoundPart {
    fn add(&mut self, more: Self) {
        self.single_s += more.single_s;
        self.batched_s += more.batched_s;
        for (name, s) in more.cpu_s {
            *self.cpu_s.entry(name).or_default() += s;
        }
        self.rss_bytes = more.rss_bytes;
    }
}

/// Runs a part for each line of standard input, and prints its measurements as a line.
pub(super) async fn inside(args: &BenchArgs, client: &Client, env: &ClusterEnv) -> anyhow::Result<()> {
    part(WARM_TASKS, client, env).await?;
    print_part(&RoundPart::default())?;
    let mut requests = BufReader::new(tokio::io::stdin()).lines();
    while requests.next_line().await?.is_some() {
        print_part(&part(args.tasks / PARTS, client, env).await?)?;
    }
    Ok(())
}

async fn part(tasks: u64, client: &Client, env: &ClusterEnv) -> anyhow::Result<RoundPart> {
    let before = snapshot();
    let (single, job) = map(client, "square", BatchSize::Fixed(1), tasks, square).await?;
    all_stored(env, &job, tasks).await?;
    let after = snapshot();
    let (batched, job) = map(client, "square", BatchSize::Auto, tasks * BATCHED_FACTOR, square).await?;
    all_stored(env, &job, tasks * BATCHED_FACTOR).await?;
    let cpu = |name: &String, used: f64| used - before.get(name).map_or(0.0, |before| before.cpu_s);
    Ok(RoundPart {
        single_s: single.as_secs_f64(),
        batched_s: batched.as_secs_f64(),
        cpu_s: after.iter().map(|(name, used)| (name.clone(), cpu(name, used.cpu_s))).collect(),
        rss_bytes: after.iter().map(|(name, used)| (name.clone(), used.rss)).collect(),
    })
}

fn print_part(part: &RoundPart) -> anyhow::Result<()> {
    let mut out = output();
    writeln!(out, "{}", serde_json::to_string(part)?).and_then(|()| out.flush()).context("a part cannot be printed")
}

/// A cluster that runs a part on request.
struct MeasuredCluster {
    case: ExportCase,
    process: Child,
    requests: ChildStdin,
    parts: Lines<BufReader<ChildStdout>>,
    _sink: JoinSet<()>,
    _dir: TempDir,
}

impl MeasuredCluster {
    async fn start(args: &BenchArgs, case: ExportCase) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port is free")?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let mut sink = JoinSet::new();
        match case {
            ExportCase::Off | ExportCase::Away => drop(listener),
            _ => {
                sink.spawn(take(listener, case));
            }
        }
        let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
        let mut command = args.cluster(dir.path())?;
        command.args(["--", "bench", "--inside", "--telemetry", "--tasks", &args.tasks.to_string()]);
        for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"] {
            command.env_remove(name);
        }
        if case != ExportCase::Off {
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        }
        if case == ExportCase::Sampled {
            command.env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio").env("OTEL_TRACES_SAMPLER_ARG", SAMPLED);
        }
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().context("no cluster starts")?;
        let (requests, parts) = (process.stdin.take(), process.stdout.take());
        let (requests, parts) = requests.zip(parts).context("a cluster without pipes")?;
        let parts = BufReader::new(parts).lines();
        let mut started = Self { case, process, requests, parts, _sink: sink, _dir: dir };
        started.read_part().await?;
        Ok(started)
    }

    async fn read_part(&mut self) -> anyhow::Result<RoundPart> {
        while let Some(line) = self.parts.next_line().await? {
            // `up` prints lines of its own before.
            if let Ok(part) = serde_json::from_str(&line) {
                return Ok(part);
            }
        }
        bail!("the cluster of {:?} ended: {}", self.case.name(), self.process.wait().await?)
    }

    async fn part(&mut self) -> anyhow::Result<RoundPart> {
        self.requests.write_all(b"\n").await.context("a cluster does not listen")?;
        self.read_part().await
    }

    async fn end(mut self) -> anyhow::Result<()> {
        drop(self.requests);
        let status = self.process.wait().await?;
        if !status.success() {
            bail!("the cluster of {:?} ended badly: {status}", self.case.name());
        }
        Ok(())
    }
}

/// Runs all rounds.
pub(super) async fn outside(args: &BenchArgs) -> anyhow::Result<()> {
    if args.tasks < PARTS * 100 {
        bail!("--tasks {} is too few here: a round has {PARTS} parts of at least 100 tasks each", args.tasks);
    }
    let mut clusters = Vec::new();
    for case in CASES {
        note!("starts a cluster: {} …", case.name());
        clusters.push(MeasuredCluster::start(args, case).await?);
    }
    let mut rounds: BTreeMap<ExportCase, Vec<RoundPart>> = BTreeMap::new();
    for round in 0..args.rounds {
        note!("round {} of {} …", round + 1, args.rounds);
        let mut parts: BTreeMap<ExportCase, RoundPart> = BTreeMap::new();
        for _ in 0..PARTS {
            clusters.reverse();
            for cluster in &mut clusters {
                parts.entry(cluster.case).or_default().add(cluster.part().await?);
            }
        }
        parts.into_iter().for_each(|(case, part)| rounds.entry(case).or_default().push(part));
    }
    for cluster in clusters {
        cluster.end().await?;
    }
    let tasks = super::report::float(args.tasks / PARTS * PARTS);
    let figures = |parts: &Vec<RoundPart>| parts.iter().map(|part| figures(part, tasks)).collect();
    let rounds = rounds.iter().map(|(case, parts)| (*case, figures(parts))).collect();
    print(&rounds, args.json).context("the figures cannot be printed")
}

fn figures(round: &RoundPart, tasks: f64) -> Value {
    let cpu: BTreeMap<&String, f64> = round.cpu_s.iter().map(|(name, s)| (name, s * 1e6 / tasks)).collect();
    json!({
        "tasks_per_s": tasks / round.single_s,
        "batched_per_s": tasks * super::report::float(BATCHED_FACTOR) / round.batched_s,
        "cpu_us_per_task": cpu,
        "rss_bytes": round.rss_bytes,
    })
}

/// Reads everything that is exported, and answers as the case demands.
async fn take(listener: TcpListener, case: ExportCase) {
    let router = Router::new().fallback(async move |_body: Bytes| match case {
        ExportCase::Hangs => std::future::pending().await,
        ExportCase::Refuses => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::OK,
    });
    let _ = axum::serve(listener, router.layer(DefaultBodyLimit::disable())).await;
}

fn each(rounds: &[Value], of: impl Fn(&Value) -> Option<f64>) -> Vec<f64> {
    rounds.iter().map(|round| of(round).unwrap_or(f64::NAN)).collect()
}

fn print(rounds: &BTreeMap<ExportCase, Vec<Value>>, as_json: bool) -> std::io::Result<()> {
    let rates = |case, of| each(rounds.get(&case).map_or(&[], Vec::as_slice), |r| r.get(of)?.as_f64());
    let ratio = |case: ExportCase, figure| -> Option<(Spread, &str)> {
        let (to, goal) = case.goal()?;
        Some((spread(rates(case, figure).iter().zip(rates(to, figure)).map(|(of, to)| of / to)), goal))
    };
    // The sum over all processes, because other load on the machine hides less of it.
    let cpu = |case: ExportCase| {
        let sum = |r: &Value| Some(r.get("cpu_us_per_task")?.as_object()?.values().filter_map(Value::as_f64).sum());
        each(rounds.get(&case).map_or(&[], Vec::as_slice), sum)
    };
    let cpu_ratio = |case: ExportCase| -> Option<Spread> {
        let (to, _) = case.goal()?;
        Some(spread(cpu(to).iter().zip(cpu(case)).map(|(to, of)| to / of)))
    };
    let median = |case: ExportCase, figure: &str, process: &str| {
        let of = |r: &Value| r.get(figure)?.get(process)?.as_f64();
        spread(each(rounds.get(&case).map_or(&[], Vec::as_slice), of)).median
    };
    let mut out = output();
    if as_json {
        let all: BTreeMap<&str, Value> = rounds.iter().map(|(case, rounds)| (case.name(), json!(rounds))).collect();
        return writeln!(out, "{}", json!(all));
    }
    for (title, figure) in [("one per message", "tasks_per_s"), ("automatic batches", "batched_per_s")] {
        writeln!(out, "\n{title:<26} {:<30} ratio, goal", "tasks/s: median (min-max)")?;
        for case in CASES {
            let ratio =
                ratio(case, figure).map_or_else(String::new, |(ratio, goal)| format!("{}, {goal}", ratio.text(2)));
            writeln!(out, "{:<26} {:<30} {ratio}", case.name(), spread(rates(case, figure)).text(0))?;
        }
    }
    writeln!(out, "\n{:<26} {:<18} {:<16} by process: CPU, RSS MiB", "one per message", "CPU us/task", "ratio")?;
    for case in CASES {
        let cpu_ratio = cpu_ratio(case).map_or_else(String::new, |ratio| ratio.text(2));
        let used = ["bench", "nats-server", "worker", "collector"].map(|process| {
            let (cpu, rss) = (median(case, "cpu_us_per_task", process), median(case, "rss_bytes", process));
            format!("{process} {cpu:.1} {:.0}", rss / 1024.0 / 1024.0)
        });
        let cpu = spread(cpu(case)).text(0);
        writeln!(out, "{:<26} {cpu:<18} {cpu_ratio:<16} {}", case.name(), used.join("  "))?;
    }
    Ok(())
}

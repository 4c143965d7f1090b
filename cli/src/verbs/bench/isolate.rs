//! `bench --isolate`: the cost of a task in a child process, beside Python's own `multiprocessing.Pool` on the same work, in
//! turn, every result checked.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use millpond::client::{BatchSize, Client};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::args::BenchArgs;
use super::report::{Spread, spread};
use super::workload::map;
use crate::output::output;

const CHILD: &str = include_str!("isolate_child.py");
const POOL: &str = include_str!("isolate_pool.py");
/// How many tasks of one millisecond a round has, for each hundred that do nothing.
const SLOW_PER_HUNDRED: u64 = 10;
/// Chunks of a usual size.
const CHUNK: u32 = 16;

/// A line of the table: some work, in messages of ours and chunks of theirs.
struct Comparison {
    name: &'static str,
    kind: &'static str,
    seconds: &'static str,
    batch: BatchSize,
    /// The chunk size of `imap`.
    chunk: u32,
    per_hundred: u64,
    rates: Vec<(f64, f64)>,
}

fn comparisons() -> Vec<Comparison> {
    let row = |name, kind, seconds, batch, chunk, per_hundred| Comparison {
        name,
        kind,
        seconds,
        batch,
        chunk,
        per_hundred,
        rates: Vec::new(),
    };
    vec![
        row("no-op, one at a time", "py_noop", "0", BatchSize::Fixed(1), 1, 100),
        row("no-op, automatic batches; chunk 1", "py_noop", "0", BatchSize::Auto, 1, 100),
        row("no-op, chunks of 16", "py_noop", "0", BatchSize::Fixed(CHUNK), CHUNK, 100),
        row("1 ms, one at a time", "py_1ms", "0.001", BatchSize::Fixed(1), 1, SLOW_PER_HUNDRED),
        row("1 ms, chunks of 16", "py_1ms", "0.001", BatchSize::Fixed(CHUNK), CHUNK, SLOW_PER_HUNDRED),
        row("1 ms, automatic batches; chunks of 16", "py_1ms", "0.001", BatchSize::Auto, CHUNK, SLOW_PER_HUNDRED),
    ]
}

/// Writes the handlers that the measured worker needs, and returns their file.
pub(super) fn handlers(dir: &Path, slots: usize) -> anyhow::Result<std::path::PathBuf> {
    let path = dir.join("handlers.toml");
    std::fs::write(dir.join("child.py"), CHILD)?;
    let handler = |kind: &str, seconds: &str| {
        format!("[{kind}]\ncommand = [\"python3\", \"child.py\", \"{seconds}\"]\nslots = {slots}\n")
    };
    std::fs::write(&path, handler("py_noop", "0") + &handler("py_1ms", "0.001"))?;
    Ok(path)
}

/// Python's pool, waiting for work.
struct PythonPool {
    _process: Child,
    _script: tempfile::TempPath,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl PythonPool {
    fn start(slots: usize) -> anyhow::Result<Self> {
        let script = tempfile::Builder::new().suffix(".py").tempfile()?;
        script.as_file().write_all(POOL.as_bytes())?;
        let script = script.into_temp_path();
        let mut command = Command::new("python3");
        command.arg(&script).arg(slots.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().context("cannot start python3, which --isolate measures against")?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let (input, output) = input.zip(output).context("python3 has no standard input or output")?;
        Ok(Self { _process: process, _script: script, input, output: BufReader::new(output).lines() })
    }

    async fn run(&mut self, row: &Comparison, count: u64) -> anyhow::Result<Duration> {
        self.input.write_all(format!("{} {} {count}\n", row.seconds, row.chunk).as_bytes()).await?;
        let line = self.output.next_line().await?.context("python3 ended")?;
        Ok(Duration::from_secs_f64(line.parse()?))
    }
}

/// Measures in turn and prints the table.
pub(super) async fn run(args: &BenchArgs, client: &Client, slots: usize) -> anyhow::Result<()> {
    let mut pool = PythonPool::start(slots)?;
    let mut rows = comparisons();
    for row in &rows {
        // The warm-up is not measured: processes start, and durations become known.
        pool.run(row, 100).await?;
        map(client, row.kind, row.batch, 100, |n| n).await?;
    }
    for round in 0..args.rounds {
        for row in &mut rows {
            note!("round {} of {}: {} …", round + 1, args.rounds, row.name);
            let count = (args.tasks * row.per_hundred / 100).max(1);
            let ours = async || anyhow::Ok(map(client, row.kind, row.batch, count, |n| n).await?.0);
            let (ours, theirs) = if round % 2 == 0 {
                (ours().await?, pool.run(row, count).await?)
            } else {
                let theirs = pool.run(row, count).await?;
                (ours().await?, theirs)
            };
            let rate = |took: Duration| super::report::float(count) / took.as_secs_f64();
            row.rates.push((rate(ours), rate(theirs)));
        }
    }
    print(&rows, args.json)
}

fn print(rows: &[Comparison], as_json: bool) -> anyhow::Result<()> {
    let mut out = output();
    let figures = |row: &Comparison| -> [Spread; 3] {
        let each = |figure: fn(&(f64, f64)) -> f64| spread(row.rates.iter().map(figure));
        [each(|r| r.0), each(|r| r.1), each(|r| r.0 / r.1)]
    };
    if as_json {
        let lines = rows.iter().map(|row| {
            let [ours, theirs, ratio] = figures(row);
            json!({ "name": row.name, "millpond_per_s": ours.json(), "pool_per_s": theirs.json(), "ratio": ratio.json() })
        });
        writeln!(out, "{}", json!({ "isolate": lines.collect::<Vec<_>>() }))?;
        return Ok(());
    }
    writeln!(
        out,
        "\n{:<40} {:<26} {:<26} ratio (goal: at least 1)",
        "tasks/s: median (min-max)", "millpond", "Pool.imap"
    )?;
    for row in rows {
        let [ours, theirs, ratio] = figures(row);
        writeln!(out, "{:<40} {:<26} {:<26} {}", row.name, ours.text(0), theirs.text(0), ratio.text(2))?;
    }
    Ok(())
}

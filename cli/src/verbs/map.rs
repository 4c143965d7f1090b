//! `map`: runs a kind over a range, a file or standard input; one JSON value per line on standard output, progress on
//! standard error.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use millpond::chain::ChainStep;
use millpond::client::{BatchSize, Client, IfJobExists, MapItem, MapRun, MapSpec};
use millpond::config::{ConnectArgs, SigningArgs};
use millpond::limits::BATCH_ITEMS_MAX;
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};

use super::task_args::RunnerArgs;
use super::task_end::{EndedTask, describe};
use super::{arguments, hints};
use crate::cluster_env::ClusterEnv;
use crate::exit;
use crate::output::{json_line, one_line};

/// Failures that are printed one by one; further ones are only counted.
const FAILURES_PRINTED_MAX: u64 = 10;
/// Buffered output is written at least this often.
const WRITE_EVERY: Duration = Duration::from_millis(100);

/// `map`.
#[derive(clap::Args, Debug)]
pub struct MapArgs {
    /// Kind of the tasks: which handler runs them.
    kind: String,
    /// File with one JSON value per line, the arguments of a task each; `-` is standard input.
    #[arg(required_unless_present = "range", conflicts_with = "range")]
    input: Option<PathBuf>,
    /// Run over whole numbers instead of a file: 1..10 is without the 10, 1..=10 with it.
    #[arg(long, value_parser = range, allow_hyphen_values = true)]
    range: Option<NumberRange>,
    /// How many tasks go into one message: a number, or `auto` for as many as take about 50 ms together.
    #[arg(long, default_value = "auto", value_parser = batch)]
    batch: BatchSize,
    /// Print results as they arrive instead of in the order of the input.
    #[arg(long)]
    unordered: bool,
    /// Name of the job; random by default. A job that was interrupted goes on where it stopped when it gets the same input
    /// again: killed and started again, the command still prints every result.
    #[arg(long)]
    job: Option<String>,
    /// Start anew under the name of a job that already exists.
    #[arg(long, requires = "job")]
    again: bool,
    #[command(flatten)]
    runner: RunnerArgs,
    /// Print an object per task, with its index and how it ended, instead of the bare result.
    #[arg(long)]
    json: bool,
    /// Return as soon as the server has stored all tasks, and print the job's name, for `job wait` and `job results`.
    #[arg(long, conflicts_with = "unordered")]
    no_wait: bool,
    /// When the whole job has ended, run this kind once, KIND or QUEUE.KIND, with the job's counts as its arguments.
    #[arg(long, value_name = "KIND")]
    continuation: Option<ChainStep>,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Whole numbers from `from` up to `to`, which is not included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NumberRange {
    from: i64,
    to: i64,
}

fn batch(text: &str) -> Result<BatchSize, String> {
    match text.parse() {
        _ if text == "auto" => Ok(BatchSize::Auto),
        Ok(items) if (1..=BATCH_ITEMS_MAX).contains(&items) => Ok(BatchSize::Fixed(items)),
        _ => Err(format!("must be `auto` or a number from 1 to {BATCH_ITEMS_MAX}")),
    }
}

fn range(text: &str) -> Result<NumberRange, String> {
    let wrong = || format!("{text:?} is not a range such as 1..10 or 1..=10");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let (to, included) = to.strip_prefix('=').map_or((to, 0), |to| (to, 1));
    let from: i64 = from.trim().parse().map_err(|_| wrong())?;
    let to: i64 = to.trim().parse().map_err(|_| wrong())?;
    let to = to.checked_add(included).ok_or_else(wrong)?;
    if to < from { Err(format!("range {text} goes backwards")) } else { Ok(NumberRange { from, to }) }
}

/// Runs the kind over the input.
///
/// # Errors
/// When the input cannot be read or a task cannot be published.
pub async fn run(args: MapArgs, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let (input, total) = open(&args).await?;
    let client = env.publisher("map", args.connect.check()?, &args.signing).await?;
    let spec = MapSpec {
        queue: args.runner.queue.clone(),
        kind: args.kind.clone(),
        job: args.job.clone(),
        if_exists: if args.again { IfJobExists::StartAnew } else { IfJobExists::GoOn },
        batch: args.batch,
        ordered: !args.unordered,
        timeout: args.runner.timeout,
        attempts_max: args.runner.attempts_max,
        continuation: args.continuation.clone(),
    };
    if args.no_wait {
        return publish_only(&client, spec, input, args.json).await;
    }
    let mut run = client.map(spec, input).await?;
    let mut report = MapReport::new(&args, total);
    let mut hint = std::pin::pin!(hints::no_worker(env, &args.runner.queue, &args.kind));
    let mut first = true;
    loop {
        let item = tokio::select! {
            biased;
            item = run.next() => item,
            () = &mut hint, if first => continue,
            () = tokio::time::sleep(WRITE_EVERY) => {
                report.flush(&run)?;
                continue;
            }
        };
        let Some(item) = item else { break };
        first = false;
        report.item(item?, &run)?;
    }
    report.flush(&run)?;
    let failed = report.end(&run);
    client.close().await;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { exit::TASK_FAILED.into() })
}

/// Publishes the whole input as one job, closes the job, and prints its name once the server has stored all of it.
///
/// # Errors
/// When the input cannot be read or a task cannot be published; the text says how much of it is stored.
async fn publish_only(client: &Client, spec: MapSpec, input: MapInput, json: bool) -> anyhow::Result<ExitCode> {
    let (started, queue) = (Instant::now(), spec.queue.clone());
    let mut publishing = std::pin::pin!(client.publish_all(spec, input));
    let stored = tokio::select! {
        stored = &mut publishing => stored?,
        () = hints::queue_full(client, &queue) => publishing.await?,
    };
    if json {
        json_line(&json!({ "job": stored.job, "tasks": stored.tasks }))?;
    } else {
        writeln!(std::io::stdout().lock(), "{}", stored.job)?;
    }
    eprintln!("{} tasks stored in {:.2} s, job {}", stored.tasks, started.elapsed().as_secs_f64(), stored.job);
    client.close().await;
    Ok(ExitCode::SUCCESS)
}

/// The arguments of each task; an error ends them.
type MapInput = BoxStream<'static, Result<Bytes, String>>;

async fn open(args: &MapArgs) -> anyhow::Result<(MapInput, Option<u64>)> {
    if let Some(NumberRange { from, to }) = args.range {
        let total = u64::try_from(i128::from(to) - i128::from(from)).ok();
        return Ok((stream::iter((from..to).map(|n| Ok(Bytes::from(n.to_string())))).boxed(), total));
    }
    match args.input.as_deref() {
        None => bail!("there is no input: give a file, - for standard input, or --range"),
        Some(path) if path.as_os_str() == "-" => Ok((lines(BufReader::new(tokio::io::stdin())), None)),
        Some(path) => {
            let file = tokio::fs::File::open(path).await;
            let file = file.with_context(|| format!("cannot open {}", path.display()))?;
            Ok((lines(BufReader::new(file)), None))
        }
    }
}

/// The lines of a reader that are not blank. The first one that is not JSON is an error.
fn lines(reader: impl AsyncBufRead + Unpin + Send + 'static) -> MapInput {
    stream::unfold((reader.lines(), 0u64), |(mut lines, mut number)| async move {
        loop {
            number += 1;
            let value = match lines.next_line().await {
                Ok(None) => return None,
                Ok(Some(line)) if line.trim().is_empty() => continue,
                Ok(Some(line)) => {
                    let checked = arguments::parse(line.trim()).map_err(|e| format!("line {number}: {e}"));
                    checked.map(arguments::bytes)
                }
                Err(error) => Err(format!("line {number} cannot be read: {error}")),
            };
            return Some((value, (lines, number)));
        }
    })
    .boxed()
}

/// What the user sees of a map.
struct MapReport {
    out: BufWriter<std::io::Stdout>,
    bar: ProgressBar,
    json: bool,
    started: Instant,
    written: Instant,
    ended: u64,
    failed: u64,
}

impl MapReport {
    fn new(args: &MapArgs, total: Option<u64>) -> Self {
        let seen = std::io::stderr().is_terminal();
        let target = if seen { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(total, target);
        let style = "{bar:30} {human_pos}/{human_len} {per_sec} eta {eta} {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        let now = Instant::now();
        let out = BufWriter::with_capacity(256 * 1024, std::io::stdout());
        Self { out, bar, json: args.json, started: now, written: now, ended: 0, failed: 0 }
    }

    fn item(&mut self, item: MapItem, run: &MapRun) -> anyhow::Result<()> {
        let MapItem { index, end } = item;
        self.ended += 1;
        if let Err(no_result) = &end {
            self.failed += 1;
            // That the whole job was cancelled is printed once, at the end.
            if self.failed <= FAILURES_PRINTED_MAX && !run.was_cancelled() {
                let line = format!("millpond: item {index} {}", describe(no_result));
                self.bar.suspend(|| eprintln!("{line}"));
            }
        }
        if self.json {
            let id = run.task_id(index);
            let row = serde_json::to_string(&EndedTask::new(Some(index), &id, &end))?;
            writeln!(self.out, "{}", one_line(&row))?;
        } else {
            writeln!(self.out, "{}", one_line(end.as_ref().map_or("null", |value| value.get())))?;
        }
        if self.written.elapsed() >= WRITE_EVERY {
            self.flush(run)?;
        }
        Ok(())
    }

    fn flush(&mut self, run: &MapRun) -> anyhow::Result<()> {
        self.out.flush()?;
        self.written = Instant::now();
        if let Some(total) = run.total() {
            self.bar.set_length(total);
        }
        self.bar.set_position(self.ended);
        Ok(())
    }

    /// Prints the last line; returns how many items failed.
    fn end(self, run: &MapRun) -> u64 {
        self.bar.finish_and_clear();
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate for a person")]
        let rate = self.ended as f64 / seconds;
        let (ended, failed, job) = (self.ended, self.failed, run.job());
        let cancelled = if run.was_cancelled() { ", which was cancelled" } else { "" };
        eprintln!("{ended} tasks in {seconds:.2} s, {rate:.0}/s, {failed} failed, job {job}{cancelled}");
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<(i64, i64)>) {
        assert_eq!(range(text).ok().map(|r| (r.from, r.to)), expected, "{text}");
    }

    #[test]
    fn ranges() {
        check("1..10", Some((1, 10)));
        check("1..=10000", Some((1, 10001)));
        check("-3..3", Some((-3, 3)));
        check("5..5", Some((5, 5)));
        check("5..4", None);
        check("1-10", None);
        check("a..b", None);
    }
}

//! `map`: a kind over a range, a file or standard input; one JSON value a line on standard output, talk on standard error.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use millpond::chain::ChainStep;
use millpond::client::{BatchSize, IfJobExists, MapItem, MapRun, MapSpec};
use millpond::config::{ConnectArgs, SigningArgs, duration};
use millpond::limits::BATCH_ITEMS_MAX;
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};

use crate::EXIT_TASK_FAILED;
use crate::state::{Env, publisher};
use crate::submit::{check_json, describe, end_json};

/// Failures that are told one by one; the others are only counted.
const FAILURES_TOLD: u64 = 10;
/// Output that waits is written at least this often.
const WRITE_EVERY: Duration = Duration::from_millis(100);

/// What to run over what.
#[derive(clap::Args, Debug)]
pub struct MapArgs {
    /// Which handler runs it.
    kind: String,
    /// A file with one JSON value a line; `-` is standard input.
    #[arg(required_unless_present = "range", conflicts_with = "range")]
    input: Option<PathBuf>,
    /// Whole numbers instead of a file: 1..10 without the 10, 1..=10 with it.
    #[arg(long, value_parser = range, allow_hyphen_values = true)]
    range: Option<Range>,
    /// Tasks in one message: a number, or `auto` for as many as take about 50 ms together.
    #[arg(long, default_value = "auto", value_parser = batch)]
    batch: BatchSize,
    /// Print results as they come instead of in the order of the input.
    #[arg(long)]
    unordered: bool,
    /// Name of the job; drawn at random when absent. One that was begun before goes on where it was, with the same
    /// input: killed and started again, it prints the whole list all the same.
    #[arg(long)]
    job: Option<String>,
    /// Start anew under the name of a job that there is already.
    #[arg(long, requires = "job")]
    again: bool,
    /// Who runs it.
    #[arg(long, default_value = "default")]
    queue: String,
    /// Print an object per item, with its index and how it ended, instead of the bare result.
    #[arg(long)]
    json: bool,
    /// Return when the server has stored all of it, and print the job's name: `job wait` and `job results` find it.
    #[arg(long, conflicts_with = "unordered")]
    no_wait: bool,
    /// Timeout of one attempt, such as 30s.
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// Attempts before a task is a dead letter.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    attempts_max: Option<u32>,
    /// When all of it has ended, run this kind once, KIND or QUEUE.KIND, with the job's counts as its argument.
    #[arg(long, value_name = "KIND")]
    then: Option<ChainStep>,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Whole numbers, `to` not included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
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

fn range(text: &str) -> Result<Range, String> {
    let wrong = || format!("{text:?} is not a range such as 1..10 or 1..=10");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let (to, included) = to.strip_prefix('=').map_or((to, 0), |to| (to, 1));
    let from: i64 = from.trim().parse().map_err(|_| wrong())?;
    let to: i64 = to.trim().parse().map_err(|_| wrong())?;
    let to = to.checked_add(included).ok_or_else(wrong)?;
    if to < from { Err(format!("range {text} goes backwards")) } else { Ok(Range { from, to }) }
}

/// Runs the map.
///
/// # Errors
/// When the input cannot be read or a task cannot be published.
pub async fn run(args: MapArgs, env: &Env) -> anyhow::Result<ExitCode> {
    let (input, total) = open(&args).await?;
    let client = publisher(env, "map", args.connect.check()?, &args.signing).await?;
    let spec = MapSpec {
        queue: args.queue.clone(),
        kind: args.kind.clone(),
        job: args.job.clone(),
        if_exists: if args.again { IfJobExists::StartAnew } else { IfJobExists::GoOn },
        batch: args.batch,
        ordered: !args.unordered,
        timeout: args.timeout,
        attempts_max: args.attempts_max,
        then: args.then.clone(),
    };
    if args.no_wait {
        return crate::no_wait::run(&client, spec, input, args.json).await;
    }
    let mut run = client.map(spec, input).await?;
    let mut report = Report::new(&args, total);
    let mut hint = std::pin::pin!(crate::submit::hint(env, &args.queue, &args.kind));
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
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_TASK_FAILED) })
}

type Input = BoxStream<'static, Result<Bytes, String>>;

async fn open(args: &MapArgs) -> anyhow::Result<(Input, Option<u64>)> {
    if let Some(Range { from, to }) = args.range {
        let total = u64::try_from(i128::from(to) - i128::from(from)).ok();
        return Ok((stream::iter((from..to).map(|n| Ok(Bytes::from(n.to_string())))).boxed(), total));
    }
    match args.input.as_deref() {
        None => bail!("nothing to run it over: give a file, - for standard input, or --range"),
        Some(path) if path.as_os_str() == "-" => Ok((lines(BufReader::new(tokio::io::stdin())), None)),
        Some(path) => {
            let file = tokio::fs::File::open(path).await;
            let file = file.with_context(|| format!("cannot open {}", path.display()))?;
            Ok((lines(BufReader::new(file)), None))
        }
    }
}

/// The lines of a reader that are not blank, each checked to be JSON; the first that is not ends it.
fn lines(reader: impl AsyncBufRead + Unpin + Send + 'static) -> Input {
    stream::unfold((reader.lines(), 0u64), |(mut lines, mut number)| async move {
        loop {
            number += 1;
            let value = match lines.next_line().await {
                Ok(None) => return None,
                Ok(Some(line)) if line.trim().is_empty() => continue,
                Ok(Some(line)) => {
                    let checked = check_json(line.trim()).map_err(|e| format!("line {number}: {e}"));
                    checked.map(|()| Bytes::from(line.trim().to_owned()))
                }
                Err(error) => Err(format!("line {number} cannot be read: {error}")),
            };
            return Some((value, (lines, number)));
        }
    })
    .boxed()
}

/// What the user sees of it.
struct Report {
    out: BufWriter<std::io::Stdout>,
    bar: ProgressBar,
    json: bool,
    started: Instant,
    written: Instant,
    ended: u64,
    failed: u64,
}

impl Report {
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
            // That a whole job was cancelled is told once, at the end.
            if self.failed <= FAILURES_TOLD && !run.was_cancelled() {
                let told = format!("millpond: item {index} {}", describe(no_result));
                self.bar.suspend(|| eprintln!("{told}"));
            }
        }
        if self.json {
            let row = json!({ "index": index, "id": run.task_id(index) });
            writeln!(self.out, "{}", end_json(row, &end))?;
        } else {
            writeln!(self.out, "{}", end.as_ref().map_or("null", |value| value.get()))?;
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

    /// The last line; the number of items that failed.
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

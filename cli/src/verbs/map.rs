//! `map`: runs a kind over a range, a file or standard input; one JSON value per line on standard output, progress on
//! standard error.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use millpond::chain::ChainStep;
use millpond::client::{BatchSize, Client, IfJobExists, MapError, MapItem, MapRun, MapSpec};
use millpond::config::{ConnectArgs, SigningArgs};
use millpond::limits::BATCH_ITEMS_MAX;
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::sync::watch;

use super::interrupt::Interrupt;
use super::task_args::RunnerArgs;
use super::task_end::{EndedTask, describe};
use super::{arguments, hints, task_args};
use crate::cluster_env::ClusterEnv;
use crate::exit;
use crate::output::{Output, json_line, one_line, output};

/// Failures that are printed one by one; further ones are only counted.
const FAILURES_PRINTED_MAX: u64 = 10;
/// Buffered output is written at least this often.
const WRITE_EVERY: Duration = Duration::from_millis(100);

/// `map`.
#[derive(clap::Args, Debug)]
pub struct MapArgs {
    /// Kind of the tasks: which handler runs them.
    #[arg(value_parser = task_args::kind)]
    kind: String,
    /// File with one JSON value per line, the arguments of a task each; `-` is standard input.
    #[arg(required_unless_present = "range", conflicts_with = "range")]
    input: Option<PathBuf>,
    /// Run over whole numbers instead of a file: 1..10 is without the 10, 1..=10 with it.
    #[arg(long, value_parser = range, allow_hyphen_values = true)]
    range: Option<RangeArg>,
    /// How many tasks go into one message: a number, or `auto` for as many as take about 50 ms together.
    #[arg(long, default_value = "auto", value_parser = batch)]
    batch: BatchSize,
    /// Print results as they arrive instead of in the order of the input.
    #[arg(long)]
    unordered: bool,
    /// Name of the job; random by default. A job that was interrupted goes on where it stopped when it gets the same input
    /// again: killed and started again, the command still prints every result.
    #[arg(long, value_parser = task_args::job)]
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
    /// Do not print why nothing moves while waiting.
    #[arg(long)]
    quiet: bool,
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
struct RangeArg {
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

fn range(text: &str) -> Result<RangeArg, String> {
    let wrong = || format!("{text:?} is not a range such as 1..10 or 1..=10");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let (to, included) = to.strip_prefix('=').map_or((to, 0), |to| (to, 1));
    let from: i64 = from.trim().parse().map_err(|_| wrong())?;
    let to: i64 = to.trim().parse().map_err(|_| wrong())?;
    let to = to.checked_add(included).ok_or_else(wrong)?;
    if to < from { Err(format!("range {text} goes backwards")) } else { Ok(RangeArg { from, to }) }
}

/// Runs the kind over the input.
///
/// # Errors
/// When the input cannot be read or a task cannot be published.
pub async fn run(args: MapArgs, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let (input, total) = open(&args).await?;
    let interrupt = Interrupt::listen()?;
    let job = args.job.clone().unwrap_or_else(millpond::random_token);
    let spec = MapSpec {
        queue: args.runner.queue.clone(),
        kind: args.kind.clone(),
        job: Some(job.clone()),
        if_exists: if args.again { IfJobExists::StartAnew } else { IfJobExists::GoOn },
        batch: args.batch,
        ordered: !args.unordered,
        finish_broken_input: true,
        timeout: args.runner.timeout,
        attempts_max: args.runner.attempts_max,
        continuation: args.continuation.clone(),
    };
    let connecting = env.publisher("map", args.connect.check()?, &args.signing);
    let client = tokio::select! {
        client = connecting => client?,
        () = interrupt.pressed() => return Ok(exit::INTERRUPTED.into()),
    };
    let code = if args.no_wait {
        publish_only(&client, (spec, input), args.json, (&interrupt, &job)).await
    } else {
        let run = tokio::select! {
            run = client.map(spec, input) => run?,
            () = interrupt.pressed() => return Ok(exit::INTERRUPTED.into()),
        };
        follow((&client, run), &args, total, (env, &interrupt)).await
    };
    client.close().await;
    code
}

/// Prints the ends of the items as they come, until the last, or until Ctrl-C.
async fn follow(
    (client, mut run): (&Client, MapRun),
    args: &MapArgs,
    total: Option<u64>,
    (env, interrupt): (&ClusterEnv, &Interrupt),
) -> anyhow::Result<ExitCode> {
    let mut report = MapReport::new(args, total);
    let (awaited, awaited_id) = watch::channel(run.task_id(run.awaited()));
    let mut hint = std::pin::pin!(hints::why_waiting(env, client, (&args.runner.queue, &args.kind), awaited_id, None));
    let mut is_logged = false;
    let ended = loop {
        let item = tokio::select! {
            biased;
            () = interrupt.pressed() => {
                report.flush(&run)?;
                report.interrupted(&run);
                return Ok(exit::INTERRUPTED.into());
            }
            item = run.next() => item,
            () = &mut hint, if !args.quiet => continue,
            () = tokio::time::sleep(WRITE_EVERY) => {
                if let Err(error) = report.flush(&run) {
                    break Err(error);
                }
                if run.waits_for_reader() && !std::mem::replace(&mut is_logged, true) {
                    note!("millpond: nats-server allows no more readers of results now; waiting for one that ends");
                }
                continue;
            }
        };
        awaited.send_replace(run.task_id(run.awaited()));
        let Some(item) = item.transpose().map_err(|error| report.broken_off(error, &run))? else {
            break report.flush(&run);
        };
        if let Err(error) = report.item(item, &run) {
            break Err(error);
        }
    };
    match ended {
        // Failures that were seen count, whether or not somebody reads on.
        Err(error) if exit::is_broken_pipe(&error) => {}
        ended => {
            ended?;
            report.end(&run);
        }
    }
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { exit::TASK_FAILED.into() })
}

/// Publishes the whole input as one job, closes the job, and prints its name once the server has stored all of it.
///
/// # Errors
/// When the input cannot be read or a task cannot be published; the text says how much of it is stored.
async fn publish_only(
    client: &Client,
    (spec, input): (MapSpec, MapInput),
    json: bool,
    (interrupt, job): (&Interrupt, &str),
) -> anyhow::Result<ExitCode> {
    let (started, queue) = (Instant::now(), spec.queue.clone());
    let mut publishing = std::pin::pin!(client.publish_all(spec, input));
    let stored = tokio::select! {
        stored = &mut publishing => stored,
        () = interrupt.pressed() => {
            note!(
                "millpond: interrupted; what is stored of job {job} runs. The same command with --job {job} stores the rest, \
                 `millpond job cancel {job}` stops it"
            );
            return Ok(exit::INTERRUPTED.into());
        }
        () = hints::queue_full(client, &queue) => publishing.await,
    };
    let stored = stored.map_err(|error| match &error.error {
        MapError::InvalidValue { .. } => exit::usage(format!("{error}, job {job}; {}", how_to_go_on(job))),
        _ => anyhow::Error::from(error).context(format!("job {job}")),
    })?;
    if json {
        json_line(&json!({ "job": stored.job, "tasks": stored.tasks }))?;
    } else {
        writeln!(output(), "{}", stored.job)?;
    }
    note!("{} tasks stored in {:.2} s, job {}", stored.tasks, started.elapsed().as_secs_f64(), stored.job);
    Ok(ExitCode::SUCCESS)
}

/// What to do when a job stopped before the end of its input.
fn how_to_go_on(job: &str) -> String {
    format!(
        "correct the input and run the command again with --job {job}: what has ended is printed, and not run again"
    )
}

/// The arguments of each task; an error ends them.
type MapInput = BoxStream<'static, Result<Bytes, String>>;

async fn open(args: &MapArgs) -> anyhow::Result<(MapInput, Option<u64>)> {
    if let Some(RangeArg { from, to }) = args.range {
        let total = u64::try_from(i128::from(to) - i128::from(from)).ok();
        return Ok((stream::iter((from..to).map(|n| Ok(Bytes::from(n.to_string())))).boxed(), total));
    }
    match args.input.as_deref() {
        None => Err(exit::usage("there is no input: give a file, - for standard input, or --range")),
        Some(path) if path.as_os_str() == "-" => {
            arguments::tell_terminal("arguments, one JSON value a line,");
            Ok((lines(BufReader::new(tokio::io::stdin())), None))
        }
        Some(path) => Ok((lines(BufReader::new(arguments::open(path).await?)), None)),
    }
}

/// The lines of a reader that are not blank. The first one that is not JSON is an error.
fn lines(reader: impl AsyncBufRead + Unpin + Send + 'static) -> MapInput {
    stream::unfold((reader.lines(), 0u64), |(mut lines, mut number)| async move {
        loop {
            number += 1;
            let value = match lines.next_line().await {
                Ok(None) => return None,
                Ok(Some(line)) if line.trim_start_matches(arguments::MARK).trim().is_empty() => continue,
                Ok(Some(line)) => {
                    let checked = arguments::parse(&line).map_err(|e| format!("line {number}: {e}"));
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
    out: BufWriter<Output>,
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
        let out = BufWriter::with_capacity(256 * 1024, output());
        Self { out, bar, json: args.json, started: now, written: now, ended: 0, failed: 0 }
    }

    fn item(&mut self, item: MapItem, run: &MapRun) -> anyhow::Result<()> {
        let MapItem { index, end } = item;
        self.ended += 1;
        if let Err(no_result) = &end {
            self.failed += 1;
            // That the whole job was cancelled is printed once, at the end.
            if self.failed <= FAILURES_PRINTED_MAX && !run.was_cancelled() {
                let id = run.task_id(index);
                self.bar.suspend(|| note!("millpond: item {index} {}", describe(Some(&id), no_result)));
            }
        }
        if self.json {
            let id = run.task_id(index);
            let row = serde_json::to_string(&EndedTask::new(Some(index), &id, &end))?;
            writeln!(self.out, "{}", one_line(&row))?;
        } else {
            // An empty line stands for no result: it keeps the place of the item, and no JSON value is empty.
            writeln!(self.out, "{}", one_line(end.as_ref().map_or("", |value| value.get())))?;
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

    /// Prints the last line.
    fn end(&self, run: &MapRun) {
        self.bar.finish_and_clear();
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate for a person")]
        let rate = self.ended as f64 / seconds;
        let (ended, failed, job) = (self.ended, self.failed, run.job());
        let cancelled = if run.was_cancelled() { ", which was cancelled" } else { "" };
        note!("{ended} tasks in {seconds:.2} s, {rate:.0}/s, {failed} failed, job {job}{cancelled}");
    }

    /// Prints what Ctrl-C leaves behind, and what to do about it.
    fn interrupted(&self, run: &MapRun) {
        self.bar.finish_and_clear();
        let (ended, stored, job) = (self.ended, run.stored(), run.job());
        note!(
            "millpond: interrupted after {ended} tasks; job {job} is left as it is: {stored} tasks are stored, and those that \
             have not ended run on. The same command with --job {job} goes on with it, `millpond job cancel {job}` stops it"
        );
    }

    /// The error of a job that stopped before its end, with its name and what to do.
    fn broken_off(&mut self, error: MapError, run: &MapRun) -> anyhow::Error {
        // The results so far go first; that standard output is closed would be told by the next write.
        let _ = self.flush(run);
        self.end(run);
        let job = run.job();
        match error {
            MapError::InvalidValue { .. } => exit::usage(format!(
                "{error}; the {} tasks before it have ended, job {job}; {}",
                self.ended,
                how_to_go_on(&job)
            )),
            error => anyhow::Error::from(error)
                .context(format!("job {job} is not complete; the same command with --job {job} goes on with it")),
        }
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

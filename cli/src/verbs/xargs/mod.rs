//! `xargs`: runs a command for each line on workers that allow it, through the client's `map`: in order, and in bounded
//! memory. `template` makes the commands, `report` prints their output.

mod report;
mod template;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use clap::error::ErrorKind;
use futures_util::stream::{self, BoxStream, StreamExt};
use millpond::client::{BatchSize, MapSpec};
use millpond::config::{ConnectArgs, SigningArgs, duration};
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};

use super::hints;
use crate::cluster_env::ClusterEnv;
use report::XargsReport;
use template::{Template, quoted};

/// The kind that workers run commands under.
const KIND: &str = "xargs";
/// Separates the command from lines that stand on the command line instead of in a file.
const ARGUMENTS_FOLLOW: &str = ":::";
/// Buffered output is written at least this often.
const WRITE_EVERY: Duration = Duration::from_millis(100);

const AFTER_HELP: &str = "\
Replacement strings: {} the line, {.} without its extension, {/} its last part, {//} its folder, {/.} its last part \
without its extension, {#} the number of the command from 1. Without any, the line is appended.

No shell is between: what a line holds reaches the command as it is. Where a shell is wanted, name it:
  millpond xargs -- sh -c 'gzip < \"$1\" | wc -c' sh

Commands run on the workers' machines: paths, programs and the working directory are theirs. A worker runs what it was \
told to allow:
  millpond worker run --allow-xargs convert,wc

Exit code: 0 when all commands succeeded, 1 to 100 how many did not, 101 when more than 100 did not.

Examples:
  ls *.png | millpond xargs -- convert {} {.}.webp
  millpond xargs --tag wc -l ::: /etc/passwd /etc/hosts";

/// `xargs`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct XargsArgs {
    /// The command and its arguments. `:::` may follow, and then the lines, instead of standard input.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Read the lines from a file instead of standard input; blank lines are skipped.
    #[arg(short = 'a', long, value_name = "FILE")]
    arg_file: Option<PathBuf>,
    /// Lines end with a NUL byte, as `find -print0` writes them.
    #[arg(short = '0', long)]
    null: bool,
    /// How many lines go to one command; a word with a replacement string is repeated for each of them.
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_args: u32,
    /// Queue of the tasks: which workers run the commands.
    #[arg(long, default_value = "default")]
    queue: String,
    /// Name of the job, which must be new; random by default.
    #[arg(long)]
    job: Option<String>,
    /// How often a command that fails is tried in all.
    #[arg(long, default_value_t = 1, value_parser = millpond::retry::parse_attempts_max)]
    tries: u32,
    /// Timeout of one try, such as 30s.
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// Print output in the order of the lines; this is the default.
    #[arg(short = 'k', long, conflicts_with = "unordered")]
    keep_order: bool,
    /// Print output as soon as it arrives.
    #[arg(long)]
    unordered: bool,
    /// Begin each line of output with the input line that it belongs to, and a tab.
    #[arg(long, conflicts_with = "json")]
    tag: bool,
    /// Print an object per command: index, input, argv, exit_code, signal, stdout, stderr.
    #[arg(long)]
    json: bool,
    /// Write a line per command to this file, tab-separated: Seq, Host, JobRuntime, Exitval, Signal, Command.
    #[arg(long, value_name = "FILE")]
    joblog: Option<PathBuf>,
    /// Print the commands without running them.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// The lines of the commands that have not ended, by index. `map` bounds how many there are.
type PendingLines = Arc<Mutex<BTreeMap<u64, Vec<String>>>>;
/// The lines of each command; an error ends them.
type LineGroups = BoxStream<'static, Result<Vec<String>, String>>;

/// Runs the commands.
///
/// # Errors
/// When the input cannot be read or a task cannot be published.
pub async fn run(mut args: XargsArgs, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let lines = open(&mut args).await?;
    let template = Template::new(&args.command);
    if args.dry_run {
        return dry_run(&template, lines).await;
    }
    let mut report = XargsReport::new(args.joblog.as_deref(), template.clone(), args.json, args.tag)?;
    let client = env.publisher("xargs", args.connect.check()?, &args.signing).await?;
    let spec = MapSpec {
        queue: args.queue.clone(),
        kind: KIND.to_owned(),
        job: args.job.clone(),
        batch: BatchSize::Auto,
        ordered: !args.unordered,
        timeout: args.timeout,
        attempts_max: Some(args.tries),
        ..MapSpec::default()
    };
    let pending = PendingLines::default();
    let mut run = client.map(spec, tasks(lines, template, args.tries, pending.clone())).await?;
    let program = args.command.first().map_or("", String::as_str);
    let mut warning = std::pin::pin!(no_worker(env, &args.queue, program));
    let mut first = true;
    loop {
        let item = tokio::select! {
            biased;
            item = run.next() => item,
            () = &mut warning, if first => continue,
            () = tokio::time::sleep(WRITE_EVERY) => {
                report.flush()?;
                continue;
            }
        };
        let Some(item) = item.transpose()? else { break };
        first = false;
        let lines = pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&item.index).unwrap_or_default();
        report.item(&item, &lines)?;
    }
    let code = report.end(&run)?;
    client.close().await;
    Ok(code)
}

async fn open(args: &mut XargsArgs) -> anyhow::Result<LineGroups> {
    let at = args.command.iter().position(|word| word == ARGUMENTS_FOLLOW);
    let arguments = at.map(|at| args.command.split_off(at));
    if args.command.is_empty() {
        refuse("name a command before :::");
    }
    let end = if args.null { 0 } else { b'\n' };
    let lines = match (arguments, &args.arg_file) {
        (Some(_), Some(_)) => refuse("give the lines after ::: or in --arg-file, not both"),
        (Some(arguments), None) => stream::iter(arguments.into_iter().skip(1).map(Ok)).boxed(),
        (None, Some(path)) if path.as_os_str() != "-" => {
            let file = tokio::fs::File::open(path).await;
            read(BufReader::new(file.with_context(|| format!("cannot open {}", path.display()))?), end)
        }
        (None, _) => read(BufReader::new(tokio::io::stdin()), end),
    };
    Ok(grouped(lines, args.max_args as usize))
}

/// Ends the process as clap does when the command line is wrong.
fn refuse(reason: &str) -> ! {
    let command = clap::Command::new("millpond xargs");
    XargsArgs::augment_args(command).error(ErrorKind::ArgumentConflict, reason).exit()
}

/// The lines of a reader that are not blank. The first one that is not UTF-8 is an error.
fn read(reader: impl AsyncBufRead + Unpin + Send + 'static, end: u8) -> BoxStream<'static, Result<String, String>> {
    stream::unfold((reader.split(end), 0u64), |(mut lines, mut number)| async move {
        loop {
            number += 1;
            let line = match lines.next_segment().await {
                Ok(None) => return None,
                Ok(Some(line)) if line.trim_ascii().is_empty() => continue,
                Ok(Some(line)) => String::from_utf8(line)
                    .map_err(|_| format!("line {number} is not UTF-8, which arguments of a task must be")),
                Err(error) => Err(format!("line {number} cannot be read: {error}")),
            };
            return Some((line, (lines, number)));
        }
    })
    .boxed()
}

/// Groups lines, `size` for each command; the last command gets what is left.
fn grouped(lines: BoxStream<'static, Result<String, String>>, size: usize) -> LineGroups {
    if size == 1 {
        return lines.map(|line| line.map(|line| vec![line])).boxed();
    }
    lines.chunks(size).map(|group| group.into_iter().collect()).boxed()
}

/// The arguments of a task for each command.
fn tasks(
    lines: LineGroups,
    template: Template,
    tries: u32,
    pending: PendingLines,
) -> impl stream::Stream<Item = Result<Bytes, String>> + Send + 'static {
    lines.enumerate().map(move |(index, lines)| {
        let (lines, index) = (lines?, index as u64);
        let argv = template.argv(&lines, index + 1);
        pending.lock().unwrap_or_else(PoisonError::into_inner).insert(index, lines);
        Ok(Bytes::from(json!({ "argv": argv, "tries": tries }).to_string()))
    })
}

async fn dry_run(template: &Template, mut lines: LineGroups) -> anyhow::Result<ExitCode> {
    let mut number = 0;
    while let Some(lines) = lines.next().await {
        number += 1;
        let lines = match lines {
            Ok(lines) => lines,
            Err(reason) => bail!("{reason}"),
        };
        writeln!(std::io::stdout().lock(), "{}", quoted(&template.argv(&lines, number)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints at once, where the collector knows it, that no worker runs commands. Never ends.
async fn no_worker(env: &ClusterEnv, queue: &str, program: &str) {
    if hints::missing_worker(env, queue, KIND).await.is_some() {
        eprintln!(
            "millpond: no live worker of queue {queue} runs commands; start one with `millpond worker run --queues \
             {queue} --allow-xargs {program}`; waiting"
        );
    }
    std::future::pending::<()>().await;
}

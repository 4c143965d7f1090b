//! `xargs`: a command for each line, run by workers that allow it, through the client's `map`: in order, in bounded memory.
//! `template` makes the commands, `report` writes what they wrote.

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
use clap::CommandFactory;
use clap::error::ErrorKind;
use futures_util::stream::{self, BoxStream, StreamExt};
use millpond::client::{BatchSize, MapSpec};
use millpond::config::{ConnectArgs, SigningArgs, duration};
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};

use crate::state::{Env, publisher};
use report::Report;
use template::{Template, quoted};

/// The kind that workers run commands under.
const KIND: &str = "xargs";
/// Before the arguments that stand on the command line instead of in a file.
const ARGUMENTS_FOLLOW: &str = ":::";
/// Output that waits is written at least this often.
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

/// Which command over which lines.
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct XargsArgs {
    /// The command and its arguments; behind `:::` the lines, instead of standard input.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Read the lines from a file instead of standard input; blank ones are skipped.
    #[arg(short = 'a', long, value_name = "FILE")]
    arg_file: Option<PathBuf>,
    /// Lines end with a NUL, as `find -print0` writes them.
    #[arg(short = '0', long)]
    null: bool,
    /// Lines for one command; a word with a replacement string is repeated for each.
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_args: u32,
    /// Who runs it.
    #[arg(long, default_value = "default")]
    queue: String,
    /// Name of the job, new; drawn at random when absent.
    #[arg(long)]
    job: Option<String>,
    /// Tries before a command that fails has failed.
    #[arg(long, default_value_t = 1, value_parser = millpond::retry::parse_attempts_max)]
    tries: u32,
    /// Timeout of one try, such as 30s.
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// Print output in the order of the lines; that is how it is anyway.
    #[arg(short = 'k', long, conflicts_with = "unordered")]
    keep_order: bool,
    /// Print output as it comes instead.
    #[arg(long)]
    unordered: bool,
    /// Begin each line of output with the line it is for, and a tab.
    #[arg(long, conflicts_with = "json")]
    tag: bool,
    /// Print an object per command: index, input, argv, exit_code, signal, stdout, stderr.
    #[arg(long)]
    json: bool,
    /// Write a line per command to this file, tab-separated: Seq, Host, JobRuntime, Exitval, Signal, Command.
    #[arg(long, value_name = "FILE")]
    joblog: Option<PathBuf>,
    /// Print the commands and run nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// The lines of the commands that have not ended, by index; as many as `map` lets be under way.
type Waiting = Arc<Mutex<BTreeMap<u64, Vec<String>>>>;
type Lines = BoxStream<'static, Result<Vec<String>, String>>;

/// Runs the commands.
///
/// # Errors
/// When the input cannot be read or a task cannot be published.
pub async fn run(mut args: XargsArgs, env: &Env) -> anyhow::Result<ExitCode> {
    let lines = open(&mut args).await?;
    let template = Template::new(&args.command);
    if args.dry_run {
        return dry_run(&template, lines).await;
    }
    let mut report = Report::new(&args, template.clone())?;
    let client = publisher(env, "xargs", args.connect.check()?, &args.signing).await?;
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
    let waiting = Waiting::default();
    let mut run = client.map(spec, tasks(lines, template, args.tries, waiting.clone())).await?;
    let program = args.command.first().map_or("", String::as_str);
    let mut warning = std::pin::pin!(warn(env, &args.queue, program));
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
        let lines = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&item.index).unwrap_or_default();
        report.item(&item, &lines)?;
    }
    let code = report.end(&run)?;
    client.close().await;
    Ok(code)
}

async fn open(args: &mut XargsArgs) -> anyhow::Result<Lines> {
    let at = args.command.iter().position(|word| word == ARGUMENTS_FOLLOW);
    let arguments = at.map(|at| args.command.split_off(at));
    if args.command.is_empty() {
        wrong("name a command before :::");
    }
    let end = if args.null { 0 } else { b'\n' };
    let lines = match (arguments, &args.arg_file) {
        (Some(_), Some(_)) => wrong("the lines stand behind ::: or in --arg-file, not both"),
        (Some(arguments), None) => stream::iter(arguments.into_iter().skip(1).map(Ok)).boxed(),
        (None, Some(path)) if path.as_os_str() != "-" => {
            let file = tokio::fs::File::open(path).await;
            read(BufReader::new(file.with_context(|| format!("cannot open {}", path.display()))?), end)
        }
        (None, _) => read(BufReader::new(tokio::io::stdin()), end),
    };
    Ok(grouped(lines, args.max_args as usize))
}

/// As clap ends when the command line is wrong.
fn wrong(what: &str) -> ! {
    crate::Cli::command().error(ErrorKind::ArgumentConflict, what).exit()
}

/// The lines of a reader that are not blank; the first that is no text ends it.
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

/// So many lines for one command; the last gets what is left.
fn grouped(lines: BoxStream<'static, Result<String, String>>, size: usize) -> Lines {
    if size == 1 {
        return lines.map(|line| line.map(|line| vec![line])).boxed();
    }
    lines.chunks(size).map(|group| group.into_iter().collect()).boxed()
}

/// The arguments of a task for each command.
fn tasks(
    lines: Lines,
    template: Template,
    tries: u32,
    waiting: Waiting,
) -> impl stream::Stream<Item = Result<Bytes, String>> + Send + 'static {
    lines.enumerate().map(move |(index, lines)| {
        let (lines, index) = (lines?, index as u64);
        let argv = template.argv(&lines, index + 1);
        waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(index, lines);
        Ok(Bytes::from(json!({ "argv": argv, "tries": tries }).to_string()))
    })
}

async fn dry_run(template: &Template, mut lines: Lines) -> anyhow::Result<ExitCode> {
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

/// Says at once, where the collector knows it, that nobody runs commands; then never ends.
async fn warn(env: &Env, queue: &str, program: &str) {
    if crate::submit::nobody(env, queue, KIND).await.is_some() {
        eprintln!(
            "millpond: no live worker of queue {queue} runs commands; start one with `millpond worker run --queues \
             {queue} --allow-xargs {program}`; waiting"
        );
    }
    std::future::pending::<()>().await;
}

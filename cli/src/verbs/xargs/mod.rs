//! `xargs`: runs a command for each line on workers that allow it, through the client's `map`: in order, and in bounded
//! memory. `template` makes the commands, `report` prints their output.

mod report;
mod template;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use clap::error::ErrorKind;
use futures_util::stream::{self, BoxStream, StreamExt};
use millpond::client::{BatchSize, Client, MapRun, MapSpec, TaskState};
use millpond::config::{ConnectArgs, SigningArgs};
use millpond_api::jobs::JobCancelled;
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::sync::watch;

use super::interrupt::Interrupt;
use super::{arguments, hints, task_args};
use crate::api::{Api, NoBody};
use crate::cluster_env::ClusterEnv;
use crate::exit;
use crate::output::output;
use report::XargsReport;
use template::{Template, quoted};

/// The kind that workers run commands under.
const KIND: &str = "xargs";
/// Separates the command from lines that stand on the command line instead of in a file.
const ARGUMENTS_FOLLOW: &str = ":::";
/// Lines that cannot be taken are printed one by one up to this many; further ones are only counted.
const REFUSED_PRINTED_MAX: usize = 10;
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

Exit code: 0 when all commands succeeded, 1 to 100 how many did not, 101 when more than 100 did not. A command whose output was \
too long to be kept whole has failed, and so has one whose line is not UTF-8, which is not run. Ctrl-C cancels what has not ended.

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
    /// Do not print why nothing moves while waiting.
    #[arg(long)]
    quiet: bool,
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
    #[arg(long, default_value = "default", value_parser = task_args::queue)]
    queue: String,
    /// Name of the job, which must be new; random by default.
    #[arg(long, value_parser = task_args::job)]
    job: Option<String>,
    /// How often a command that fails is tried in all.
    #[arg(long, default_value_t = 1, value_parser = millpond::retry::parse_attempts_max)]
    tries: u32,
    /// Timeout of one try, such as 30s.
    #[arg(long, value_parser = task_args::timeout)]
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

/// What is known of the input.
#[derive(Default)]
struct Input {
    /// The lines of the commands that have not ended, by index. `map` bounds how many there are.
    pending: BTreeMap<u64, Vec<String>>,
    /// Why commands were not run, the first of them.
    refused: Vec<String>,
    /// How many were not run.
    refused_count: u64,
}

type SharedInput = Arc<Mutex<Input>>;
/// The lines of each command, or why it cannot be run.
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
    let interrupt = Interrupt::listen()?;
    let report = XargsReport::new(args.joblog.as_deref(), template.clone(), args.json, args.tag)?;
    let input = SharedInput::default();
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
    let begin = async {
        let client = env.publisher("xargs", args.connect.check()?, &args.signing).await?;
        let run = client.map(spec, tasks(lines, template, args.tries, input.clone())).await?;
        anyhow::Ok((client, run))
    };
    let (client, run) = tokio::select! {
        begun = begin => begun?,
        () = interrupt.pressed() => return Ok(exit::INTERRUPTED.into()),
    };
    let code = follow((&client, run), report, &input, &args, (env, &interrupt)).await;
    client.close().await;
    code
}

/// Prints what the commands write as they end, until the last, or until Ctrl-C.
async fn follow(
    (client, mut run): (&Client, MapRun),
    mut report: XargsReport,
    input: &SharedInput,
    args: &XargsArgs,
    (env, interrupt): (&ClusterEnv, &Interrupt),
) -> anyhow::Result<ExitCode> {
    let program = args.command.first().map_or("", String::as_str);
    let (awaited, awaited_id) = watch::channel(run.task_id(run.awaited()));
    let mut hint = std::pin::pin!(async {
        if args.quiet {
            return std::future::pending().await;
        }
        let known = no_worker(env, &args.queue, program).await.then_some(TaskState::NoWorker);
        hints::why_waiting(env, client, (&args.queue, KIND), awaited_id, known).await;
    });
    let ended = loop {
        let item = tokio::select! {
            biased;
            () = interrupt.pressed() => {
                report.flush()?;
                let ended = if args.unordered { None } else { Some(report.ended()) };
                cancel(env, &run.job(), run.stored(), ended).await;
                return Ok(exit::INTERRUPTED.into());
            }
            item = run.next() => item,
            () = &mut hint => continue,
            () = tokio::time::sleep(WRITE_EVERY) => {
                if let Err(error) = report.flush() {
                    break Err(error.into());
                }
                continue;
            }
        };
        awaited.send_replace(run.task_id(run.awaited()));
        let job = || format!("job {} is not complete; `millpond job cancel {0}` stops it", run.job());
        let Some(item) = item.transpose().with_context(job)? else { break report.flush().map_err(Into::into) };
        let lines = locked(input).pending.remove(&item.index).unwrap_or_default();
        if let Err(error) = report.item(&item, &run.task_id(item.index), &lines) {
            break Err(error);
        }
    };
    match ended {
        // Failures that were seen count, whether or not somebody reads on.
        Err(error) if exit::is_broken_pipe(&error) => Ok(report.code()),
        ended => {
            ended?;
            let Input { refused, refused_count, .. } = std::mem::take(&mut *locked(input));
            report.end(&run, &refused, refused_count);
            Ok(report.code())
        }
    }
}

/// Cancels the commands after Ctrl-C, where that can be done from here, and prints which have ended. With `ended` they have
/// ended in order.
async fn cancel(env: &ClusterEnv, job: &str, stored: u64, ended: Option<u64>) {
    let which = match ended {
        Some(0) => "none of its commands has ended".to_owned(),
        Some(ended) => format!("its first {ended} commands have ended"),
        None => "the commands whose output was printed have ended".to_owned(),
    };
    let cancelling = async {
        let cancelled: JobCancelled = Api::new(env)?.post(&format!("/api/v1/jobs/{job}/cancel"), &NoBody {}).await?;
        anyhow::Ok(cancelled)
    };
    match cancelling.await {
        Ok(_) => note!(
            "millpond: interrupted; job {job} is cancelled: {which}, those that run are stopped, the others will not start. To go \
             on, give the lines of the others to a new xargs"
        ),
        Err(error) => note!(
            "millpond: interrupted, but job {job} could not be cancelled ({error:#}): {which}, and the {stored} that are stored run on. \
             `millpond job cancel {job}` stops them, `millpond job wait {job}` waits for them"
        ),
    }
}

fn locked(input: &SharedInput) -> MutexGuard<'_, Input> {
    input.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn open(args: &mut XargsArgs) -> anyhow::Result<LineGroups> {
    let at = args.command.iter().position(|word| word == ARGUMENTS_FOLLOW);
    let inline = at.map(|at| args.command.split_off(at));
    if args.command.is_empty() {
        refuse("name a command before :::");
    }
    let end = if args.null { 0 } else { b'\n' };
    let lines = match (inline, &args.arg_file) {
        (Some(_), Some(_)) => refuse("give the lines after ::: or in --arg-file, not both"),
        (Some(inline), None) => stream::iter(inline.into_iter().skip(1).map(Ok)).boxed(),
        (None, Some(path)) if path.as_os_str() != "-" => read(BufReader::new(arguments::open(path).await?), end),
        (None, _) => {
            arguments::tell_terminal("lines");
            read(BufReader::new(tokio::io::stdin()), end)
        }
    };
    Ok(grouped(lines, args.max_args as usize))
}

/// Ends the process as clap does when the command line is wrong.
fn refuse(reason: &str) -> ! {
    let command = clap::Command::new("millpond xargs");
    XargsArgs::augment_args(command).error(ErrorKind::ArgumentConflict, reason).exit()
}

/// The lines of a reader, without blank ones; with NUL as their end each counts, as in GNU xargs. One that is not UTF-8 is an
/// error and others follow; one that cannot be read is the last.
fn read(reader: impl AsyncBufRead + Unpin + Send + 'static, end: u8) -> BoxStream<'static, Result<String, String>> {
    stream::unfold((Some(reader.split(end)), 0u64), move |(lines, mut number)| async move {
        let mut lines = lines?;
        loop {
            number += 1;
            let line = match lines.next_segment().await {
                Ok(None) => return None,
                Ok(Some(line)) if end == b'\n' && line.trim_ascii().is_empty() => continue,
                Ok(Some(line)) => String::from_utf8(line)
                    .map_err(|_| format!("line {number} is not UTF-8, which arguments of a task must be")),
                Err(error) => return Some((Err(format!("line {number} cannot be read: {error}")), (None, number))),
            };
            return Some((line, (Some(lines), number)));
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

/// The arguments of a task for each command that can be run; the others are noted.
fn tasks(
    lines: LineGroups,
    template: Template,
    tries: u32,
    input: SharedInput,
) -> impl stream::Stream<Item = Result<Bytes, String>> + Send + 'static {
    let mut index = 0;
    lines.filter_map(move |lines| {
        let mut input = locked(&input);
        let task = match lines {
            Ok(lines) => {
                let argv = template.argv(&lines, index + 1);
                input.pending.insert(index, lines);
                index += 1;
                Some(Ok(Bytes::from(json!({ "argv": argv, "tries": tries }).to_string())))
            }
            Err(reason) => {
                input.refused_count += 1;
                if input.refused.len() < REFUSED_PRINTED_MAX {
                    input.refused.push(reason);
                }
                None
            }
        };
        std::future::ready(task)
    })
}

async fn dry_run(template: &Template, mut lines: LineGroups) -> anyhow::Result<ExitCode> {
    let (mut number, mut refused) = (0, 0);
    while let Some(lines) = lines.next().await {
        match lines {
            Ok(lines) => {
                number += 1;
                writeln!(output(), "{}", quoted(&template.argv(&lines, number)))?;
            }
            Err(reason) => {
                refused += 1;
                note!("millpond: {reason}; its command would not run");
            }
        }
    }
    Ok(report::code(refused))
}

/// Prints at once, where the collector knows it, that no worker runs commands; whether it did.
async fn no_worker(env: &ClusterEnv, queue: &str, program: &str) -> bool {
    let Ok(api) = Api::new(env) else { return false };
    let is_missing = hints::missing_worker(&api, queue, KIND).await.is_some();
    if is_missing {
        note!(
            "millpond: no live worker of queue {queue} runs commands; start one with `millpond worker run --queues \
             {queue} --allow-xargs {program}`; waiting"
        );
    }
    is_missing
}

//! `handler try`: one task through `handlers.toml`, without a cluster.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use data_encoding::BASE64;
use millpond::batch;
use millpond::config::{ConnectArgs, SigningArgs, duration};
use millpond::payload::without_mark;
use millpond::signature::{Distrust, Signer};
use millpond::telemetry::TraceContext;
use millpond::visible::visible_json;
use millpond::wire::headers::{HEADER_TIMEOUT, HEADER_TRACEPARENT};
use millpond::wire::subject::TaskSubject;
use millpond_api::dead_letters::{DeadLetterContents, DeadLetterDetails};
use millpond_api::tasks::TaskIdQuery;
use millpond_worker::{Trial, TrialEnd, try_handler};
use nix::sys::signal::Signal;
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt;

use super::{arguments, dead, failure};
use crate::api::Api;
use crate::cluster_env::ClusterEnv;
use crate::exit;
use crate::output::output;

/// Timeout of a task, where neither it nor its kind has one.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);
/// Stands for the span of an attempt that was not exported.
const UNKNOWN_SPAN: &str = "0000000000000001";
/// Larger arguments are a file for a handler, in bytes.
const INLINE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// What to do with handlers.
#[derive(Subcommand, Debug)]
pub enum HandlerCommand {
    /// Run one task through handlers.toml on this machine, and print its answer, its log, its time and its memory. Nothing is
    /// stored or settled.
    Try(TryArgs),
}

/// `handler try`.
#[derive(Args, Debug)]
pub struct TryArgs {
    /// Kind of the task: a table of the file.
    kind: String,
    /// The arguments, one JSON value; `-` reads them from standard input.
    #[arg(required_unless_present = "task", conflicts_with = "task")]
    args: Option<String>,
    /// Take the arguments, large ones too, and the number of the attempt from this dead letter.
    #[arg(long, value_name = "ID")]
    task: Option<String>,
    /// Queue of the dead letter; needed when tasks of several queues have this id.
    #[arg(long, requires = "task")]
    queue: Option<String>,
    /// Kind of the dead letter; needed when tasks of several kinds have this id.
    #[arg(long, requires = "task", value_name = "KIND")]
    task_kind: Option<String>,
    /// The file with the handlers.
    #[arg(long, env = "MILLPOND_WORKER_HANDLERS", default_value = "handlers.toml")]
    handlers: PathBuf,
    /// Timeout of the task, such as 30s.
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// Leave the terminal with the handler, without timeouts: what you type goes to its standard input behind the task, and what it
    /// prints is shown as it comes, so that `breakpoint()` works. In `once`, a debugger finds the terminal at /dev/tty.
    #[arg(long)]
    debug: bool,
    /// With the keys of the workers, a dead letter is tried only when a worker that has one of them made it of a task that it believed.
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// # Errors
/// When the handler cannot start, or the dead letter cannot be had.
pub(crate) async fn run(command: HandlerCommand, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let HandlerCommand::Try(typed) = command;
    let TryArgs { kind, args, task, queue, task_kind, handlers, timeout, debug, signing, connect } = typed;
    let mut trial = Trial {
        handlers,
        kind,
        id: "try".to_owned(),
        attempt: 1,
        payload: Bytes::new(),
        file: None,
        trace: None,
        debug,
        timeout,
        timeout_default: TIMEOUT_DEFAULT,
    };
    // Removed when this returns.
    let mut fetched = None;
    match (args, task) {
        (Some(args), _) => trial.payload = arguments::bytes(arguments::read(&args)?),
        (None, Some(id)) => {
            let letter = dead::find(&Api::new(env)?, &TaskIdQuery { id, queue, kind: task_kind }).await?;
            check_trust(&letter, signing.signer()?.as_ref())?;
            fetched = take_dead_letter(&mut trial, letter, env, &connect).await?;
        }
        (None, None) => return Err(exit::usage("name the arguments, or a dead letter (--task)")),
    }
    // A file that was named and cannot be read was typed wrongly.
    arguments::open(&trial.handlers).await?;
    let TrialEnd { reply, took, start, rss_bytes_max } = try_handler(trial).await?;
    drop(fetched);
    note!(
        "took {took:.3?}, after {start:.3?} until it was ready; {}.{} MiB at the most",
        rss_bytes_max >> 20,
        ((rss_bytes_max & 0xf_ffff) * 10) >> 20
    );
    match reply {
        Ok(value) => {
            writeln!(output(), "{}", visible_json(value.get()))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(failed) => {
            // A standard error that is gone changes no exit code.
            let _ = failure::print_failure(&mut std::io::stderr().lock(), &failed);
            // Ctrl-C at a terminal that it shares ends the handler too, and that may be seen first.
            let signal = failed.child.as_ref().and_then(|child| child.signal);
            let is_interrupted = debug && signal == Some(Signal::SIGINT as i32);
            Ok(if is_interrupted { exit::INTERRUPTED } else { exit::TASK_FAILED }.into())
        }
    }
}

/// Checks that the dead letter's task is one that the workers would run.
///
/// # Errors
/// When they have refused it, or when none of them has signed what is known of it.
fn check_trust(letter: &DeadLetterDetails, signer: Option<&Signer>) -> anyhow::Result<()> {
    let DeadLetterDetails { row, contents } = letter;
    if Distrust::is_reason(&row.reason) {
        bail!("the signature of task {} was refused ({}): it is not run", row.id, row.reason);
    }
    let Some(signer) = signer else { return Ok(()) };
    let subject = TaskSubject::new(&row.queue, &row.kind, contents.evidence.job.clone())?;
    let subject = TaskSubject { unique: contents.evidence.unique.clone(), ..subject };
    if signer.verify(&subject.dead(), &contents.headers, &payload(contents)?.unwrap_or_default()).is_err() {
        bail!(
            "no worker that has one of these signing keys has made the dead letter of task {}: it is not run",
            row.id
        );
    }
    Ok(())
}

/// The payload of a dead letter's task, as it was published; none when it is not kept any more.
///
/// # Errors
/// When the collector's answer has it in no base64.
fn payload(contents: &DeadLetterContents) -> anyhow::Result<Option<Bytes>> {
    Ok(match (&contents.payload_text, &contents.payload, &contents.payload_base64) {
        (Some(text), ..) => Some(text.clone().into()),
        (None, Some(value), _) => Some(value.get().to_owned().into()),
        (None, None, Some(text)) => Some(BASE64.decode(text.as_bytes())?.into()),
        (None, None, None) => None,
    })
}

/// Gives the trial what a dead letter's task had; the file that holds its arguments, where they are large.
async fn take_dead_letter(
    trial: &mut Trial,
    DeadLetterDetails { row, contents }: DeadLetterDetails,
    env: &ClusterEnv,
    connect: &ConnectArgs,
) -> anyhow::Result<Option<tempfile::NamedTempFile>> {
    if row.kind != trial.kind {
        bail!("task {} is of kind {}, not {}", row.id, row.kind, trial.kind);
    }
    let header = |name: &str| contents.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    if trial.timeout.is_none() {
        trial.timeout = header(HEADER_TIMEOUT).and_then(|value| duration(value).ok());
    }
    // A worker gives each task a trace, also one that was published without.
    let of_attempt = contents.evidence.trace.as_ref().map(|trace| {
        let span = contents.evidence.span.as_deref().unwrap_or(UNKNOWN_SPAN);
        format!("00-{trace}-{span}-01")
    });
    trial.trace = header(HEADER_TRACEPARENT).or(of_attempt.as_deref()).and_then(TraceContext::parse);
    (trial.id, trial.attempt) = (row.id, row.attempt.max(1));
    if let Some(at) = &contents.stored_payload {
        let file = tempfile::NamedTempFile::new().context("no room for the arguments")?;
        let mut to = tokio::fs::File::create(file.path()).await?;
        env.client("handler", connect.check()?).await?.get_payload(at, &mut to).await?;
        to.flush().await?;
        // A worker gives its handler in a line what fits one.
        if at.size <= INLINE_BYTES_MAX {
            let arguments = Bytes::from(tokio::fs::read(file.path()).await?);
            if serde_json::from_slice::<&RawValue>(without_mark(&arguments)).is_ok() {
                trial.payload = arguments;
                return Ok(None);
            }
        }
        trial.file = Some(file.path().to_owned());
        return Ok(Some(file));
    }
    let Some(arguments) = payload(&contents)? else {
        bail!("the arguments of task {} are not kept any more", trial.id);
    };
    trial.payload = match contents.evidence.items {
        Some(items) if items.len == items.of => match batch::split(&arguments, items.len)?.as_slice() {
            [one] => one.get().to_owned().into(),
            many => bail!("task {} is a batch of {} items, and none of them has run", trial.id, many.len()),
        },
        _ => arguments,
    };
    Ok(None)
}

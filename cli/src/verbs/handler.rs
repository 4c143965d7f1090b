//! `handler try`: one task through `handlers.toml`, without a cluster.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use data_encoding::BASE64;
use millpond::config::{ConnectArgs, duration};
use millpond::signature::Distrust;
use millpond::visible::visible_json;
use millpond_api::dead_letters::DeadLetterDetails;
use millpond_api::tasks::TaskIdQuery;
use millpond_worker::{Trial, TrialEnd, try_handler};

use super::{arguments, dead, failure};
use crate::api::Api;
use crate::cluster_env::ClusterEnv;
use crate::exit;
use crate::output::output;

/// Timeout of a task, where neither it nor its kind has one.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);

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
    /// Queue of the dead letter; needed when several queues have this id.
    #[arg(long, requires = "task")]
    queue: Option<String>,
    /// The file with the handlers.
    #[arg(long, env = "MILLPOND_WORKER_HANDLERS", default_value = "handlers.toml")]
    handlers: PathBuf,
    /// Timeout of the task, such as 30s.
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// # Errors
/// When the handler cannot start, or the dead letter cannot be had.
pub(crate) async fn run(command: HandlerCommand, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let HandlerCommand::Try(TryArgs { kind, args, task, queue, handlers, timeout, connect }) = command;
    let mut trial = Trial {
        handlers,
        kind,
        id: "try".to_owned(),
        attempt: 1,
        payload: Bytes::new(),
        file: None,
        timeout,
        timeout_default: TIMEOUT_DEFAULT,
    };
    // Removed when this returns.
    let mut fetched = None;
    match (args, task) {
        (Some(args), _) => trial.payload = arguments::bytes(arguments::read(&args)?),
        (None, Some(id)) => fetched = take_dead_letter(&mut trial, TaskIdQuery { id, queue }, env, &connect).await?,
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
            Ok(exit::TASK_FAILED.into())
        }
    }
}

/// Gives the trial what a dead letter's task had; the file that holds its arguments, where they are large.
async fn take_dead_letter(
    trial: &mut Trial,
    task: TaskIdQuery,
    env: &ClusterEnv,
    connect: &ConnectArgs,
) -> anyhow::Result<Option<tempfile::NamedTempFile>> {
    let DeadLetterDetails { row, contents } = dead::find(&Api::new(env)?, &task).await?;
    if Distrust::is_reason(&row.reason) {
        bail!("the signature of task {} was refused ({}): it is not run", row.id, row.reason);
    }
    if row.kind != trial.kind {
        bail!("task {} is of kind {}, not {}", row.id, row.kind, trial.kind);
    }
    (trial.id, trial.attempt) = (row.id, row.attempt.max(1));
    if trial.timeout.is_none() {
        let asked = contents.headers.iter().find(|(name, _)| name == "Millpond-Timeout");
        trial.timeout = asked.and_then(|(_, value)| duration(value).ok());
    }
    if let Some(at) = &contents.stored_payload {
        let file = tempfile::NamedTempFile::new().context("no room for the arguments")?;
        let mut to = tokio::fs::File::create(file.path()).await?;
        env.client("handler", connect.check()?).await?.get_payload(at, &mut to).await?;
        trial.file = Some(file.path().to_owned());
        return Ok(Some(file));
    }
    trial.payload = match (contents.payload, contents.payload_base64) {
        (Some(value), _) => arguments::bytes(value),
        (None, Some(text)) => BASE64.decode(text.as_bytes())?.into(),
        (None, None) => bail!("the arguments of task {} are not kept any more", trial.id),
    };
    Ok(None)
}

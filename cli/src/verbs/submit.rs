//! `submit`: publishes one task; with `--wait`, prints its result.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use millpond::bus::publish::{PublishError, RetryDeadline};
use millpond::chain::{self, ChainStep};
use millpond::client::{Client, NewTask, SubmitError, TaskEnd, TaskHandle};
use millpond::config::{ConnectArgs, SigningArgs, duration};
use millpond::visible::visible_json;
use millpond::wire::bounds::parse_time;
use serde_json::json;
use tokio::sync::watch;

use super::arguments::ArgumentSource;
use super::interrupt::Interrupt;
use super::task_args::RunnerArgs;
use super::task_end::{EndedTask, describe};
use super::{arguments, hints, task_args};
use crate::cluster_env::ClusterEnv;
use crate::exit;
use crate::output::{json_line, output};

/// How long a person waits for the server to acknowledge the task.
const ACK_WITHIN: Duration = Duration::from_secs(30);

/// `submit`.
#[derive(clap::Args, Debug)]
pub struct SubmitArgs {
    /// Kind of the task: which handler runs it.
    #[arg(value_parser = task_args::kind)]
    kind: String,
    /// Arguments of the task, one JSON value; `-`, or nothing, reads them from standard input.
    #[arg(default_value = "-", allow_hyphen_values = true)]
    args: String,
    /// Read the arguments from a file of any size and format; `-` is standard input. Arguments that are large or not JSON
    /// go to the store of payloads, from which the handler gets them.
    #[arg(long, conflicts_with = "args")]
    file: Option<PathBuf>,
    #[command(flatten)]
    runner: RunnerArgs,
    /// Wait until the task has ended, and print its result.
    #[arg(long)]
    wait: bool,
    /// Do not print why nothing moves while waiting.
    #[arg(long, requires = "wait")]
    quiet: bool,
    /// How long to wait for capacity when the queue is limited and full; then give up with exit code 75. 0s does not wait
    /// at all. Default: wait as long as it takes.
    #[arg(long, value_parser = duration)]
    wait_capacity: Option<Duration>,
    /// Id of the task; a second task with the same id in the same queue is not stored. Default: a random one.
    #[arg(long, value_parser = task_args::task_id)]
    id: Option<String>,
    /// Start the task no earlier than this from now, such as 10s; until then it waits at the server.
    #[arg(long, value_parser = duration)]
    delay: Option<Duration>,
    /// Start the task no earlier than at this time, in RFC 3339, such as 2030-01-31T09:00:00Z or
    /// 2030-01-31T09:00:00+01:00.
    #[arg(long, value_parser = time, conflicts_with = "delay")]
    at: Option<jiff::Timestamp>,
    /// Start the task no later than this from now, such as 5m; after that it becomes a dead letter.
    #[arg(long, value_parser = duration)]
    expires: Option<Duration>,
    /// Also publish the end of the task on this subject, reply.<x>; `nats sub reply.<x>` receives it.
    #[arg(long, value_parser = reply_subject)]
    reply_to: Option<String>,
    /// When the task is done, run this kind with its result: KIND or QUEUE.KIND. Repeat it for further steps. --wait then
    /// waits for the last step, or for the one that ends the chain early.
    #[arg(long, value_name = "KIND")]
    continuation: Vec<ChainStep>,
    /// Allow one task with this key at a time: while another of this kind and queue waits or runs, refuse with exit code 1.
    #[arg(long, value_name = "KEY", value_parser = task_args::unique_key)]
    unique: Option<String>,
    /// Print a JSON object with the id of the task and how it ended.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

fn time(text: &str) -> Result<jiff::Timestamp, String> {
    let at = jiff::Timestamp::from_millisecond(parse_time(text)?);
    at.map_err(|e| format!("{e}; write a time such as 2030-01-31T09:00:00Z"))
}

fn reply_subject(text: &str) -> Result<String, String> {
    let fits = millpond::task::is_reply_subject(text);
    fits.then(|| text.to_owned()).ok_or_else(|| "must be reply.<x> without wildcards, such as reply.job1".to_owned())
}

impl SubmitArgs {
    /// The task as typed; without arguments when they come from a file.
    fn task(&self) -> anyhow::Result<NewTask> {
        let payload = match self.file {
            Some(_) => Bytes::new(),
            None => arguments::bytes(arguments::read(&self.args)?),
        };
        self.times()?;
        chain::check(&self.continuation).map_err(|wrong| exit::usage(format!("--continuation: {wrong}")))?;
        Ok(NewTask {
            queue: self.runner.queue.clone(),
            kind: self.kind.clone(),
            payload,
            id: Some(self.id.clone().unwrap_or_else(millpond::random_token)),
            timeout: self.runner.timeout,
            attempts_max: self.runner.attempts_max,
            reply_to: self.reply_to.clone(),
            continuation: self.continuation.clone(),
            unique: self.unique.clone(),
            ..Default::default()
        })
    }

    /// When it may start, and when it expires. The time is the server's once there is a connection.
    fn times(&self) -> anyhow::Result<(Option<jiff::Timestamp>, Option<jiff::Timestamp>)> {
        let after = |time: Duration| {
            let at =
                jiff::Timestamp::from_millisecond(millpond::now_ms()).ok().and_then(|now| now.checked_add(time).ok());
            at.ok_or_else(|| exit::usage(format!("{} from now is too far away", humantime::format_duration(time))))
        };
        let expires = self.expires.map(after).transpose()?;
        let at = self.delay.map(after).transpose()?.or(self.at);
        if let (Some(at), Some(expires)) = (at, expires)
            && expires <= at
        {
            return Err(exit::usage(
                "the task would expire before its time has come: make --expires longer than --delay",
            ));
        }
        Ok((at, expires))
    }
}

/// Publishes the task.
///
/// # Errors
/// When it cannot be published.
pub async fn run(args: SubmitArgs, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let mut task = args.task()?;
    // What was typed is checked before the server is reached.
    let source = match &args.file {
        Some(path) => Some(ArgumentSource::open(path).await?),
        None => None,
    };
    let client = env.publisher("submit", args.connect.check()?, &args.signing).await?;
    let (at, expires) = args.times()?;
    task.at_ms = at.map(jiff::Timestamp::as_millisecond);
    task.expires = expires.map(|at| at.to_string());
    if let Some(source) = source {
        source.attach(&mut task, &client, RetryDeadline::Unlimited).await?;
    }
    task.awaited = args.wait;
    let mut submitted = match store(&client, &task, args.wait_capacity).await {
        Err(refused @ SubmitError::UniqueKeyTaken { .. }) => return already_there(&refused, args.json),
        submitted => submitted?,
    };
    let code = if args.wait {
        let id = submitted.id.clone();
        let interrupt = Interrupt::listen()?;
        let mut waiting = std::pin::pin!(submitted.end());
        let (id, end) = tokio::select! {
            ended = &mut waiting => ended?,
            () = interrupt.pressed() => {
                note!(
                    "millpond: interrupted; task {id} goes on: `millpond why {id}` tells where it is, `millpond task cancel \
                     {id}` stops it"
                );
                return Ok(exit::INTERRUPTED.into());
            }
            () = why_waiting(env, &client, &args, &task, &id) => waiting.await?,
        };
        print_end(&id, &end, args.json)?
    } else {
        print_id(&submitted, args.json)?
    };
    client.close().await;
    Ok(code)
}

/// Prints why the task does not end. Never ends.
async fn why_waiting(env: &ClusterEnv, client: &Client, args: &SubmitArgs, task: &NewTask, id: &str) {
    if args.quiet {
        return std::future::pending().await;
    }
    // Nobody sends another id; while the sender is here, the cause is asked for again and again.
    let (_awaited, awaited_id) = watch::channel(id.to_owned());
    hints::why_waiting(env, client, (&task.queue, &task.kind), awaited_id, None).await;
}

fn print_id(submitted: &TaskHandle, json: bool) -> anyhow::Result<ExitCode> {
    let TaskHandle { id, duplicate, .. } = submitted;
    if json {
        json_line(&json!({ "id": id, "duplicate": duplicate }))?;
    } else {
        writeln!(output(), "{id}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reports that another task with the unique key waits or runs; nothing was published.
fn already_there(refused: &SubmitError, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        json_line(&json!({ "id": null, "already_there": true }))?;
    }
    note!("millpond: {refused}");
    Ok(exit::TASK_FAILED.into())
}

/// Publishes the task. For capacity in its queue it waits as long as it takes, or for `wait_capacity`.
async fn store(client: &Client, task: &NewTask, wait_capacity: Option<Duration>) -> Result<TaskHandle, SubmitError> {
    let deadline = RetryDeadline::Within(wait_capacity.unwrap_or(ACK_WITHIN));
    let mut storing = std::pin::pin!(async {
        loop {
            match client.submit(task, deadline).await {
                Err(SubmitError::Publish(PublishError::QueueFull { .. })) if wait_capacity.is_none() => {}
                ended => return ended,
            }
        }
    });
    tokio::select! {
        stored = &mut storing => stored,
        () = hints::queue_full(client, &task.queue) => storing.await,
    }
}

fn print_end(id: &str, end: &TaskEnd, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        json_line(&EndedTask::new(None, id, end))?;
    }
    match end {
        Ok(value) => {
            if !json {
                writeln!(output(), "{}", visible_json(value.get()))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(no_result) => {
            note!("millpond: task {id} {}", describe(None, no_result));
            Ok(exit::TASK_FAILED.into())
        }
    }
}

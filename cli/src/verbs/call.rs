//! `call`: calls a handler and prints its answer, which is not stored; with `--pipe`, holds a conversation with it, line
//! by line.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use millpond::bus::call::pipe::{PipeError, PipeReceiver, PipeSender};
use millpond::call::{CALL_TIMEOUT_DEFAULT, Code};
use millpond::client::{CallError, Client, TaskResult};
use millpond::config::ConnectArgs;
use millpond::limits::PIPE_MESSAGE_BYTES_MAX;
use millpond::outcome::Failure;
use millpond::visible::visible_json;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::interrupt::Interrupt;
use super::{arguments, task_args};
use crate::cluster_env::ClusterEnv;
use crate::exit;
use crate::output::{json_line, output};

/// `call`.
#[derive(clap::Args, Debug)]
pub struct CallArgs {
    /// Kind of the call: which handler answers it.
    #[arg(value_parser = task_args::kind)]
    kind: String,
    /// Arguments of the call, one JSON value; `-`, or nothing, reads them from standard input. With --pipe, nothing means
    /// null.
    #[arg(allow_hyphen_values = true)]
    args: Option<String>,
    /// Queue of the call: which workers answer it.
    #[arg(long, default_value = "default", value_parser = task_args::queue)]
    queue: String,
    /// How long the call may take in all, the wait for a free slot included; with --pipe, how long its opening may take.
    #[arg(long, default_value_t = humantime::Duration::from(CALL_TIMEOUT_DEFAULT), value_parser = call_timeout)]
    timeout: humantime::Duration,
    /// Hold a conversation: each line of standard input is a message to the handler, and each of its messages a line of
    /// standard output. Ctrl-D closes this side; the conversation ends when the handler ends it.
    #[arg(long, conflicts_with = "json")]
    pipe: bool,
    /// Print a JSON object that says how the call ended.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

fn call_timeout(typed: &str) -> Result<humantime::Duration, String> {
    task_args::timeout(typed).map(Into::into)
}

/// Makes the call.
///
/// # Errors
/// When it cannot be made.
pub async fn run(args: CallArgs, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let payload = payload(&args)?;
    let client = env.client("call", args.connect.check()?).await?;
    let timeout: Duration = args.timeout.into();
    let code = if args.pipe {
        open_pipe(&client, &args, payload, timeout).await
    } else {
        match client.call(&args.queue, &args.kind, payload, timeout).await {
            Ok(answer) => print(&answer, args.json),
            Err(error) => failed(error, args.json),
        }
    };
    client.close().await;
    code
}

fn payload(args: &CallArgs) -> anyhow::Result<Bytes> {
    let value = match args.args.as_deref() {
        None if args.pipe => RawValue::NULL.to_owned(),
        Some("-") if args.pipe => {
            return Err(exit::usage(
                "with --pipe standard input is for messages: give the arguments on the command line",
            ));
        }
        typed => arguments::read(typed.unwrap_or("-"))?,
    };
    Ok(arguments::bytes(value))
}

fn print(answer: &TaskResult, json: bool) -> anyhow::Result<ExitCode> {
    #[derive(Serialize)]
    struct Answered<'a> {
        result: &'a RawValue,
        /// The handler wrote bytes that are no JSON.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        result_is_bytes: bool,
        status: &'static str,
    }
    if json {
        json_line(&Answered { result: answer, result_is_bytes: answer.is_bytes, status: "done" })?;
    } else {
        writeln!(output(), "{}", visible_json(answer.get()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reports why there is no answer; an error when the call could not even be made.
fn failed(error: CallError, json: bool) -> anyhow::Result<ExitCode> {
    let code = match &error {
        CallError::Failed { code, .. } if code.has_not_run() => exit::UNREACHABLE,
        CallError::Failed { .. } => exit::TASK_FAILED,
        CallError::NoWorker { .. } | CallError::NoAnswer { .. } => exit::UNREACHABLE,
        _ => return Err(error.into()),
    };
    if json {
        let (number, failure) = match &error {
            CallError::Failed { code, failure } => (Some(code.number()), serde_json::to_value(failure)?),
            CallError::NoAnswer { .. } => (Some(Code::Timeout.number()), json!({ "message": error.to_string() })),
            _ => (None, json!({ "message": error.to_string() })),
        };
        json_line(&json!({ "status": "failed", "code": number, "failure": failure }))?;
    }
    note!("millpond: {error}");
    if let CallError::Failed { failure, .. } = &error {
        print_evidence(failure);
    }
    Ok(code.into())
}

/// Prints the evidence of a failure at once, because no dead letter keeps it.
fn print_evidence(failure: &Failure) {
    let log = failure.child.iter().flat_map(|child| child.log.iter().map(String::as_str));
    for line in failure.traceback.iter().flat_map(|text| text.lines()).chain(log) {
        note!("  {line}");
    }
}

async fn open_pipe(client: &Client, args: &CallArgs, payload: Bytes, timeout: Duration) -> anyhow::Result<ExitCode> {
    match client.pipe(&args.queue, &args.kind, payload, timeout).await {
        Ok(pipe) => {
            let (sender, receiver) = pipe.split();
            converse(sender, receiver).await
        }
        Err(error) => failed(error, false),
    }
}

async fn converse(sender: PipeSender, mut receiver: PipeReceiver) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::listen()?;
    let receiving = async {
        let mut out = output();
        while let Some(message) = receiver.recv().await? {
            out.write_all(&message)?;
            out.write_all(b"\n")?;
            out.flush()?;
        }
        anyhow::Ok(())
    };
    let sending = async {
        send_lines(&sender).await?;
        // The handler may go on sending until it ends the conversation.
        std::future::pending::<anyhow::Result<()>>().await
    };
    let ended = tokio::select! {
        biased;
        ended = receiving => ended,
        ended = sending => ended,
        () = interrupt.pressed() => return Ok(exit::INTERRUPTED.into()),
    };
    let Err(error) = ended else { return Ok(ExitCode::SUCCESS) };
    match error.downcast_ref() {
        Some(PipeError::Failed(failure)) => {
            note!("millpond: {error}");
            print_evidence(failure);
            Ok(exit::TASK_FAILED.into())
        }
        Some(PipeError::Lost) => {
            note!("millpond: {error}");
            Ok(exit::UNREACHABLE.into())
        }
        _ => Err(error),
    }
}

/// Sends each line of standard input, then closes this side.
async fn send_lines(sender: &PipeSender) -> anyhow::Result<()> {
    let mut input = BufReader::new(tokio::io::stdin());
    let most = u64::try_from(PIPE_MESSAGE_BYTES_MAX).unwrap_or(u64::MAX) + 2;
    loop {
        let mut line = Vec::new();
        (&mut input).take(most).read_until(b'\n', &mut line).await.context("cannot read standard input")?;
        if line.is_empty() {
            // The handler may have ended meanwhile; the receiving side learns that.
            let _ = sender.close().await;
            return Ok(());
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        match sender.send(line).await {
            Err(error @ PipeError::TooLong { .. }) => return Err(error.into()),
            // The receiving side learns of the end, with its reason.
            Err(_) => return Ok(()),
            Ok(()) => {}
        }
    }
}

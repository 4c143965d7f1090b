//! `call`: ask a handler and print its result, not stored; with `--pipe`, converse with it line by line.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use millpond::bus::call::pipe::{PipeError, PipeReceiver, PipeSender};
use millpond::call::Code;
use millpond::client::{CallError, Client};
use millpond::config::ConnectArgs;
use millpond::limits::{CALL_TIMEOUT_DEFAULT, PIPE_MESSAGE_BYTES_MAX};
use millpond::outcome::Failure;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::output::json_line;
use crate::state::{CLIENT_NATS_URL, Env};
use crate::submit::check_json;
use crate::{EXIT_TASK_FAILED, EXIT_UNREACHABLE};

/// As shells say that Ctrl-C ended something.
const EXIT_INTERRUPTED: u8 = 130;

/// What to call.
#[derive(clap::Args, Debug)]
pub struct CallArgs {
    /// Which handler runs it.
    kind: String,
    /// Its arguments, one JSON value; `-` or nothing reads standard input. With --pipe: null when absent.
    #[arg(allow_hyphen_values = true)]
    args: Option<String>,
    /// Who runs it.
    #[arg(long, default_value = "default")]
    queue: String,
    /// How long it may take in all, the wait for a slot included; with --pipe, how long the opening may take.
    #[arg(long, default_value_t = humantime::Duration::from(CALL_TIMEOUT_DEFAULT))]
    timeout: humantime::Duration,
    /// Converse: lines of standard input are messages to the handler, its messages are lines of standard output. Ctrl-D
    /// closes this side; it ends when the handler does.
    #[arg(long, conflicts_with = "json")]
    pipe: bool,
    /// Print a JSON object that says how it ended.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Makes the call.
///
/// # Errors
/// When it cannot be made.
pub async fn run(args: CallArgs, env: &Env) -> anyhow::Result<ExitCode> {
    let payload = arguments(&args)?;
    let client = Client::connect(&env.need(CLIENT_NATS_URL)?, "call", args.connect.check()?).await?;
    let timeout: Duration = args.timeout.into();
    let code = if args.pipe {
        match client.pipe(&args.queue, &args.kind, payload, timeout).await {
            Ok(pipe) => {
                let (sender, receiver) = pipe.split();
                converse(sender, receiver).await
            }
            Err(error) => told(error, false),
        }
    } else {
        match client.call(&args.queue, &args.kind, payload, timeout).await {
            Ok(value) if args.json => {
                let value: Value = serde_json::from_str(value.get()).unwrap_or_default();
                json_line(&json!({ "status": "done", "result": value })).map(|()| ExitCode::SUCCESS).map_err(Into::into)
            }
            Ok(value) => {
                writeln!(std::io::stdout().lock(), "{}", value.get()).map(|()| ExitCode::SUCCESS).map_err(Into::into)
            }
            Err(error) => told(error, args.json),
        }
    };
    client.close().await;
    code
}

fn arguments(args: &CallArgs) -> anyhow::Result<String> {
    let payload = match args.args.as_deref() {
        None if args.pipe => "null".to_owned(),
        Some("-") if args.pipe => {
            bail!("with --pipe standard input is for messages: give the arguments on the command line")
        }
        None | Some("-") => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text).context("cannot read the arguments")?;
            text.trim().to_owned()
        }
        Some(text) => text.to_owned(),
    };
    check_json(&payload)?;
    Ok(payload)
}

/// Says why there is no result; an error where the call could not even be made.
fn told(error: CallError, as_json: bool) -> anyhow::Result<ExitCode> {
    let code = match &error {
        CallError::Failed { code, .. } if code.has_not_run() => EXIT_UNREACHABLE,
        CallError::Failed { .. } => EXIT_TASK_FAILED,
        CallError::NoWorker { .. } | CallError::NoAnswer { .. } => EXIT_UNREACHABLE,
        _ => return Err(error.into()),
    };
    if as_json {
        let (number, failure) = match &error {
            CallError::Failed { code, failure } => (Some(code.number()), serde_json::to_value(failure)?),
            CallError::NoAnswer { .. } => (Some(Code::Timeout.number()), json!({ "message": error.to_string() })),
            _ => (None, json!({ "message": error.to_string() })),
        };
        json_line(&json!({ "status": "failed", "code": number, "failure": failure }))?;
    }
    eprintln!("millpond: {error}");
    if let CallError::Failed { failure, .. } = &error {
        evidence(failure);
    }
    Ok(ExitCode::from(code))
}

/// Nothing keeps it: so it is shown at once.
fn evidence(failure: &Failure) {
    let log = failure.child.iter().flat_map(|child| child.log.iter().map(String::as_str));
    for line in failure.traceback.iter().flat_map(|text| text.lines()).chain(log) {
        eprintln!("  {line}");
    }
}

async fn converse(sender: PipeSender, mut receiver: PipeReceiver) -> anyhow::Result<ExitCode> {
    let listening = async {
        let mut out = std::io::stdout();
        while let Some(message) = receiver.recv().await? {
            out.write_all(&message)?;
            out.write_all(b"\n")?;
            out.flush()?;
        }
        anyhow::Ok(())
    };
    let talking = async {
        speak(&sender).await?;
        // The other side goes on to its end.
        std::future::pending::<anyhow::Result<()>>().await
    };
    let ended = tokio::select! {
        biased;
        ended = listening => ended,
        ended = talking => ended,
        _ = tokio::signal::ctrl_c() => return Ok(ExitCode::from(EXIT_INTERRUPTED)),
    };
    let Err(error) = ended else { return Ok(ExitCode::SUCCESS) };
    match error.downcast_ref() {
        Some(PipeError::Failed(failure)) => {
            eprintln!("millpond: {error}");
            evidence(failure);
            Ok(ExitCode::from(EXIT_TASK_FAILED))
        }
        Some(PipeError::Lost) => {
            eprintln!("millpond: {error}");
            Ok(ExitCode::from(EXIT_UNREACHABLE))
        }
        _ => Err(error),
    }
}

/// Says each line of standard input, then closes.
async fn speak(sender: &PipeSender) -> anyhow::Result<()> {
    let mut input = BufReader::new(tokio::io::stdin());
    let most = u64::try_from(PIPE_MESSAGE_BYTES_MAX).unwrap_or(u64::MAX) + 2;
    loop {
        let mut line = Vec::new();
        (&mut input).take(most).read_until(b'\n', &mut line).await.context("cannot read standard input")?;
        if line.is_empty() {
            // The handler may have ended meanwhile, which is heard.
            let _ = sender.close().await;
            return Ok(());
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        match sender.send(line).await {
            Err(error @ PipeError::TooLong { .. }) => return Err(error.into()),
            // Its end is heard, with the reason.
            Err(_) => return Ok(()),
            Ok(()) => {}
        }
    }
}

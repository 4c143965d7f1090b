//! The other side of isolation in Rust: this program, started again as a child, runs one of its handlers on the lines
//! of standard input. Also where a guard begins.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::call::{Call, Reply};
use crate::handlers::{Handler, Handlers};
use crate::panics::{caught, in_handler, note_panics};
use crate::supervisor::{ENV_BUILT_IN, ENV_KIND};

/// The first line of `main` in a program that runs a worker: when this process was started as the guard or as the child of
/// one, it does that, and never comes back. Without it, no child starts.
///
/// A program with handlers of its own ([`crate::Worker::isolate`]) comes back from here and goes on to
/// [`crate::Worker::run`], which then runs the one handler that is asked for; its `main` should do nothing costly before.
pub fn child_main() {
    #[cfg(target_os = "linux")]
    {
        use crate::supervisor::guard;
        let mut arguments = std::env::args_os();
        if arguments.next().is_some_and(|name| name == guard::GUARD_NAME) {
            guard::run(arguments);
        }
    }
    let Some(kind) = asked("1") else { return };
    millpond::telemetry::start_in_child();
    note_panics();
    let result = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = result.context("cannot start the async runtime").and_then(|runtime| {
        let handlers = crate::handlers::built_in();
        runtime.block_on(serve(&kind, &handlers))
    });
    if let Err(error) = &result {
        eprintln!("{error:#}");
    }
    std::process::exit(i32::from(result.is_err()));
}

/// # Errors
/// When this process was started as a guard, and `main` did not begin as it must.
pub(crate) fn check_child_main() -> anyhow::Result<()> {
    #[cfg(target_os = "linux")]
    if std::env::args_os().next().is_some_and(|name| name == crate::supervisor::guard::GUARD_NAME) {
        bail!("the `main` of a program that runs a worker must begin with millpond_worker::child_main()");
    }
    Ok(())
}

/// The kind that this process is to run with a handler of the program's own.
pub(crate) fn asked_for() -> Option<String> {
    let kind = asked("0")?;
    millpond::telemetry::start_in_child();
    Some(kind)
}

fn asked(built_in: &str) -> Option<String> {
    let wanted = std::env::var(ENV_BUILT_IN).is_ok_and(|value| value == built_in);
    std::env::var(ENV_KIND).ok().filter(|_| wanted)
}

/// A line of input.
#[derive(Deserialize)]
struct Given<'a> {
    #[serde(default)]
    id: String,
    #[serde(default)]
    attempt: u32,
    #[serde(default, borrow)]
    args: Option<&'a RawValue>,
    #[serde(default)]
    file: Option<PathBuf>,
    #[serde(default)]
    shutdown: bool,
    #[serde(default)]
    traceparent: Option<String>,
}

/// Answers line by line until the input ends or says so.
///
/// # Errors
/// When there is no such handler, or the worker cannot be heard or told any more.
pub(crate) async fn serve(kind: &str, handlers: &Handlers) -> anyhow::Result<()> {
    let handler = handlers.get(kind).with_context(|| format!("no handler for kind {kind} in this program"))?;
    // Not locked for good: a lock cannot be held while a handler waits.
    let (input, mut output) = (std::io::stdin(), std::io::stdout());
    let mut line = String::new();
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let given: Given<'_> = serde_json::from_str(&line).context("the worker wrote a line that is not a task")?;
        if given.shutdown {
            return Ok(());
        }
        let call = Call {
            id: given.id,
            attempt: given.attempt,
            payload: match (given.args, &given.file) {
                (None, Some(_)) => Bytes::new(),
                (args, _) => Bytes::copy_from_slice(args.map_or("null", RawValue::get).as_bytes()),
            },
            file: given.file,
            trace: given.traceparent.as_deref().and_then(millpond::telemetry::TraceContext::parse),
            stop: CancellationToken::new(),
        };
        let reply = match handler {
            Handler::Async(handler) => caught(handler(call)).await,
            Handler::Blocking(handler) => in_handler(|| handler(&call)).unwrap_or_else(Err),
            Handler::Child(_) | Handler::Pipe(_) => bail!("kind {kind} has no handler in this program"),
        };
        output.write_all(answer(reply).as_bytes())?;
        output.flush()?;
    }
}

fn answer(reply: Reply) -> String {
    match reply {
        Ok(value) => format!("{{\"ok\":{}}}\n", value.get().replace(['\n', '\r'], " ")),
        Err(failure) => {
            let error = json!({ "type": failure.kind, "message": failure.message, "traceback": failure.traceback });
            format!("{}\n", json!({ "error": error, "retry": failure.retry }))
        }
    }
}

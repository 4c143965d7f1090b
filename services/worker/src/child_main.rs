//! Where this program begins when a worker has started it again: as the guard of a child, or as a child that runs one of
//! the program's own handlers on the lines of its standard input.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use millpond::telemetry::{Scope, TaskFields, TraceContext};
use serde_json::value::RawValue;
use tokio::runtime::Runtime;

use crate::call::{Call, ProgressSink};
use crate::handlers::{Handler, Handlers, built_in};
use crate::panics::{caught, in_handler, note_panics};
use crate::supervisor::child_process::{ENV_BUILT_IN, ENV_FD_OUT, ENV_KIND, ENV_SPANS, GUARD_NAME};
use crate::supervisor::line_protocol::{TaskLine, write_progress, write_reply, write_span};

/// The first line of `main` in a program that runs a worker: when this process was started as the guard or as the child of
/// a worker, it does that, and never returns. Without it, no child starts.
///
/// In a child for one of the program's own handlers ([`crate::WorkerBuilder::isolate`]) it returns, and [`crate::Worker::run`] then
/// runs that one handler; what `main` does before should cost little.
pub fn child_main() {
    #[cfg(target_os = "linux")]
    {
        let mut arguments = std::env::args_os();
        if arguments.next().is_some_and(|name| name == GUARD_NAME) {
            crate::supervisor::subreaper_guard::run(arguments);
        }
    }
    let Some(kind) = kind_of_child("1") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    std::process::exit(i32::from(serve(&kind, runtime, || Ok(built_in(false))).is_err()));
}

/// The whole of a child that runs one of the program's own handlers: where it has no telemetry of its own.
///
/// # Errors
/// When it cannot go on; the reason was written to standard error.
pub(crate) fn own_main(kind: &str, handlers: impl FnOnce() -> anyhow::Result<Handlers>) -> Result<(), ChildFailed> {
    serve(kind, Runtime::new(), handlers)
}

/// A child cannot go on, and has said why.
pub(crate) struct ChildFailed;

fn serve(
    kind: &str,
    runtime: std::io::Result<Runtime>,
    handlers: impl FnOnce() -> anyhow::Result<Handlers>,
) -> Result<(), ChildFailed> {
    note_panics();
    let served = runtime
        .context("cannot start the async runtime")
        .and_then(|runtime| runtime.block_on(async { serve_lines(kind, &handlers()?).await }));
    served.map_err(|error| {
        let _ = writeln!(std::io::stderr(), "{error:#}");
        ChildFailed
    })
}

/// # Errors
/// When this process was started as a guard, and `main` did not begin as it must.
pub(crate) fn check_child_main() -> anyhow::Result<()> {
    if std::env::args_os().next().is_some_and(|name| name == GUARD_NAME) {
        bail!("the `main` of a program that runs a worker must begin with millpond_worker::child_main()");
    }
    Ok(())
}

/// The kind whose handler of the program's own this process is to run, if it is a child.
pub(crate) fn own_kind() -> Option<String> {
    kind_of_child("0")
}

fn kind_of_child(built_in: &str) -> Option<String> {
    let is_meant = std::env::var(ENV_BUILT_IN).is_ok_and(|value| value == built_in);
    std::env::var(ENV_KIND).ok().filter(|_| is_meant)
}

/// What this process tells the worker, line by line.
type Answers = Arc<Mutex<Box<dyn Write + Send>>>;

fn write(answers: &Answers, line: &[u8]) -> std::io::Result<()> {
    let mut output = answers.lock().unwrap_or_else(PoisonError::into_inner);
    output.write_all(line)?;
    output.flush()
}

/// Tells the worker how far a task is. One that cannot be told any more is about to end this process.
fn progress_to(answers: &Answers) -> ProgressSink {
    let answers = answers.clone();
    ProgressSink::new(move |share, note| {
        let mut line = Vec::new();
        if write_progress(share, note, &mut line).is_ok() {
            let _ = write(&answers, &line);
        }
    })
}

/// Tells the worker each span of the handler, where it exports spans. One that cannot be told is lost.
fn tell_spans(answers: &Answers) -> Option<impl Fn(&[u8]) + Send + Sync + use<>> {
    let answers = answers.clone();
    std::env::var_os(ENV_SPANS).map(|_| {
        move |span: &[u8]| {
            let mut line = Vec::new();
            if write_span(span, &mut line).is_ok() {
                let _ = write(&answers, &line);
            }
        }
    })
}

/// How long the worker still waits for the answer; none where it has said nothing of it.
fn time_left(deadline_ms: i64) -> Option<Duration> {
    let left_ms = u64::try_from(deadline_ms.saturating_sub(millpond::now_ms())).unwrap_or(0);
    (deadline_ms > 0).then(|| Duration::from_millis(left_ms))
}

/// Where the answers go: what a handler prints is log then.
fn answers() -> Box<dyn Write + Send> {
    let own =
        std::env::var(ENV_FD_OUT).ok().and_then(|fd| File::options().write(true).open(format!("/dev/fd/{fd}")).ok());
    match own {
        Some(file) => Box::new(file),
        None => Box::new(std::io::stdout()),
    }
}

/// Answers line by line until the input ends or a line tells it to shut down.
///
/// # Errors
/// When there is no such handler, or the worker can be neither read from nor written to any more.
pub(crate) async fn serve_lines(kind: &str, handlers: &Handlers) -> anyhow::Result<()> {
    // Not locked for the whole loop: a lock cannot be held while a handler waits.
    let (input, output): (_, Answers) = (std::io::stdin(), Arc::new(Mutex::new(answers())));
    millpond::telemetry::start_in_child(tell_spans(&output));
    let handler = handlers.get(kind).with_context(|| format!("no handler for kind {kind} in this program"))?;
    let progress = progress_to(&output);
    let (mut line, mut answer) = (String::new(), Vec::new());
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let task: TaskLine<'_> = serde_json::from_str(&line).context("the worker wrote a line that is not a task")?;
        if task.shutdown {
            return Ok(());
        }
        let payload = match (task.args, &task.file) {
            (None, Some(_)) => Bytes::new(),
            (args, _) => Bytes::copy_from_slice(args.map_or("null", RawValue::get).as_bytes()),
        };
        let call = Call {
            attempt: task.attempt,
            file: task.file.map(|path| path.into_owned().into()),
            trace: task.traceparent.as_deref().and_then(TraceContext::parse),
            timeout: time_left(task.deadline_ms),
            progress: progress.clone(),
            ..Call::new(task.id, payload)
        };
        let fields =
            TaskFields { task_id: call.id.clone(), queue: None, kind: Some(kind.to_owned()), attempt: call.attempt };
        let scope = Scope::new(fields, call.trace);
        let reply = match handler {
            Handler::Async(handler) => scope.around(async { caught(handler(call)).await }).await,
            Handler::Blocking(handler) => {
                let _in = scope.enter();
                in_handler(|| handler(&call)).unwrap_or_else(Err)
            }
            Handler::Child(_) | Handler::Pipe(_) => bail!("kind {kind} has no handler in this program"),
        };
        answer.clear();
        write_reply(reply, &mut answer).map_err(|failure| anyhow::anyhow!(failure.message))?;
        write(&output, &answer)?;
    }
}

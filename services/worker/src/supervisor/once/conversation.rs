//! A process for one conversation: each message of the caller becomes a line on its standard input, each line of its
//! standard output becomes a message. Its input ends when the caller closes; its own end closes the worker's side.

use std::process::ExitStatus;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use millpond::bus::call::pipe::{Pipe, PipeReceiver, PipeSender};
use millpond::limits::PIPE_MESSAGE_BYTES_MAX;
use millpond::outcome::Failure;
use tokio::io::AsyncWriteExt;
use tokio::process::{ChildStdin, ChildStdout};
use tokio::time::Instant as Clock;
use tokio_util::sync::CancellationToken;

use crate::call::Call;
use crate::call_end::too_late;
use crate::supervisor::child_logs;
use crate::supervisor::child_process::{ChildProcess, StartError, task_environment};
use crate::supervisor::child_status::ChildStatus;
use crate::supervisor::handlers_toml::ChildSpec;
use crate::supervisor::line_reader::{LineReader, ReadLine};
use crate::supervisor::stop_times::END_WITHIN;

/// In the environment of a child that converses: the arguments of the call.
const ENV_ARGS: &str = "MILLPOND_ARGS";

/// Runs one conversation.
///
/// # Errors
/// [`StartError::CannotStart`]: there was no conversation.
pub(crate) async fn run(
    spec: &ChildSpec,
    status: &Arc<ChildStatus>,
    call: &Call,
    pipe: Pipe,
    stop: &CancellationToken,
) -> Result<Result<(), Failure>, StartError> {
    let mut env = task_environment(call);
    env.push((ENV_ARGS, String::from_utf8_lossy(&call.payload).into_owned()));
    let mut process = match ChildProcess::start(spec, status.clone(), None, &env) {
        Err(StartError::DoesNotFit(error)) => {
            let text =
                format!("the arguments do not fit into the environment of a command: {error}; send them as messages");
            return Ok(Err(Failure::fatal("bad_arguments", text)));
        }
        process => process?,
    };
    status.runs(call, true);
    let (exit, killed) = wait(&mut process, spec, pipe, stop).await;
    if let Some(reason) = process.never_started(exit) {
        return Err(StartError::CannotStart(reason));
    }
    if exit.success() && killed.is_none() {
        return Ok(Ok(()));
    }
    Ok(Err(process.failure(exit, spec.table.memory, killed).bounded()))
}

/// Carries lines until the process has ended and the caller has got all that it wrote; ends the process when it must.
/// Returns how the process ended, and why this worker has killed it.
async fn wait(
    process: &mut ChildProcess,
    spec: &ChildSpec,
    pipe: Pipe,
    stop: &CancellationToken,
) -> (ExitStatus, Option<Failure>) {
    let (sender, receiver) = pipe.split();
    let over = sender.over();
    let mut feeding = std::pin::pin!(feed(process.stdin.take(), receiver));
    let mut reading = std::pin::pin!(forward(process.stdout.take(), sender));
    let (mut fed, mut read, mut exit, mut killed) = (false, false, None, None::<Failure>);
    let start = Clock::now();
    let hard = spec.table.timeout.map(|after| (start + after, true));
    let mut step = spec.table.soft_timeout.map(|after| (start + after, false)).or(hard);
    while exit.is_none() || !read {
        let ChildProcess { handle, stderr, status, .. } = &mut *process;
        let log_ended = stderr.has_ended();
        let (at, end) = step.unwrap_or((start, true));
        let mut reason = None;
        // The branches are polled in random order, so that nothing that the process writes puts off its end.
        tokio::select! {
            line = stderr.next(), if !log_ended => if let ReadLine::Line(line) | ReadLine::TooLong(line) = line {
                child_logs::log(status, &line);
            },
            forwarded = &mut reading, if !read => { read = true; reason = forwarded.err(); }
            written = &mut feeding, if !fed => { fed = true; reason = written.err(); }
            // What the process wrote may wait for the caller as long as the caller lives and the kind's timeout allows.
            ended = handle.wait(), if exit.is_none() => exit = Some(ended),
            () = stop.cancelled(), if killed.is_none() => {
                reason = Some(Failure::new("draining", "its worker had to leave"));
            }
            () = over.cancelled(), if killed.is_none() => reason = Some(Failure::new("gone", "its caller is gone")),
            () = tokio::time::sleep_until(at), if step.is_some() => {
                if killed.is_none() {
                    killed = Some(too_late(at.duration_since(start)));
                    status.stopping();
                }
                if exit.is_some() {
                    break;
                }
                if end { handle.end_all() } else { handle.terminate() }
                step = hard.filter(|(hard, _)| !end && *hard > at).or(Some((Clock::now() + spec.table.grace(), true)));
            }
        }
        if let Some(reason) = reason.filter(|_| killed.is_none()) {
            killed = Some(reason);
            if exit.is_some() {
                break;
            }
            status.stopping();
            handle.terminate();
            step = Some((Clock::now() + spec.table.grace().min(END_WITHIN), true));
        }
    }
    process.last_lines(|_| {}).await;
    (exit.unwrap_or_default(), killed)
}

/// Writes each message as a line, until the caller has closed.
///
/// # Errors
/// A failure for a message that is more than one line.
async fn feed(mut stdin: Option<ChildStdin>, mut messages: PipeReceiver) -> Result<(), Failure> {
    // A pipe that is lost or has failed ends this loop; `wait` is notified of it too.
    while let Ok(Some(message)) = messages.recv().await {
        if message.contains(&b'\n') {
            let text = "a message to this kind is one line: it must not have a line end in it";
            return Err(Failure::fatal("bad_arguments", text));
        }
        let Some(input) = &mut stdin else { continue };
        let mut line = BytesMut::with_capacity(message.len() + 1);
        line.put(message);
        line.put_u8(b'\n');
        if input.write_all(&line).await.is_err() {
            // The process reads no more: further messages are dropped, as on any pipe.
            stdin = None;
        }
    }
    Ok(())
}

/// Sends each line that the process writes.
///
/// # Errors
/// A failure for a line that is too long.
async fn forward(stdout: Option<ChildStdout>, sender: PipeSender) -> Result<(), Failure> {
    let Some(stdout) = stdout else { return Ok(()) };
    let mut lines = LineReader::new(stdout, PIPE_MESSAGE_BYTES_MAX);
    loop {
        match lines.next().await {
            ReadLine::Line(line) => {
                if sender.send(line).await.is_err() {
                    return Ok(());
                }
            }
            ReadLine::TooLong(_) => {
                let text = format!("it wrote a line of more than {PIPE_MESSAGE_BYTES_MAX} bytes");
                return Err(Failure::new("result_too_large", text));
            }
            ReadLine::End => return Ok(()),
        }
    }
}

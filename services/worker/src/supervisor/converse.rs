//! A process for one conversation: each message is a line on its standard input, each line of its standard output is a
//! message. The end of its input says that the caller has closed, its own end closes the worker's side.

use std::io::ErrorKind;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Instant;

use bytes::{BufMut, BytesMut};
use millpond::bus::call::pipe::{Pipe, PipeReceiver, PipeSender};
use millpond::limits::{CHILD_END_WITHIN, PIPE_MESSAGE_BYTES_MAX};
use millpond::outcome::Failure;
use millpond::worker_record::ChildState;
use tokio::io::AsyncWriteExt;
use tokio::process::{ChildStdin, ChildStdout};
use tokio::time::Instant as Clock;
use tokio_util::sync::CancellationToken;

use super::lines::{Found, Lines};
use super::logs;
use super::once::environment;
use super::process::Process;
use super::spec::Spec;
use super::view::{Running, View};
use crate::call::Call;
use crate::call_end::too_late;

/// In a child that converses: the arguments of the call.
const ENV_ARGS: &str = "MILLPOND_ARGS";

/// Runs one conversation. An error when its command cannot be started.
pub(crate) async fn run(
    spec: &Spec,
    worker: &str,
    view: &Arc<View>,
    call: &Call,
    pipe: Pipe,
    stop: &CancellationToken,
) -> Result<Result<(), Failure>, String> {
    let mut env = environment(call);
    env.push((ENV_ARGS, String::from_utf8_lossy(&call.payload).into_owned()));
    let mut process = match Process::start(spec, worker, view.clone(), None, &env) {
        Ok(process) => process,
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::ArgumentListTooLong) => {
            let text =
                format!("the arguments do not fit into the environment of a command: {error}; send them as messages");
            return Ok(Err(Failure::fatal("bad_arguments", text)));
        }
        Err(error) => return Err(error.to_string()),
    };
    let (id, attempt, trace) = (call.id.clone(), call.attempt, call.trace);
    view.runs(Running { id, attempt, trace, since: Instant::now() }, true);
    let (status, killed) = wait(&mut process, spec, pipe, stop).await;
    if let Some(why) = process.never_started(status) {
        return Err(why);
    }
    if status.success() && killed.is_none() {
        return Ok(Ok(()));
    }
    Ok(Err(process.failure(status, spec.memory_max, killed).bounded()))
}

/// Carries lines until it has ended and all that it wrote was taken; ends it when it must. How it ended, and why we
/// ended it.
async fn wait(
    process: &mut Process,
    spec: &Spec,
    pipe: Pipe,
    stop: &CancellationToken,
) -> (ExitStatus, Option<Failure>) {
    let (sender, receiver) = pipe.split();
    let over = sender.over();
    let mut feeding = std::pin::pin!(feed(process.stdin.take(), receiver));
    let mut reading = std::pin::pin!(forward(process.stdout.take(), sender));
    let (mut fed, mut read, mut status, mut killed) = (false, false, None, None::<Failure>);
    let start = Clock::now();
    let hard = spec.timeout.map(|after| (start + after, true));
    let mut step = spec.soft_timeout.map(|after| (start + after, false)).or(hard);
    while status.is_none() || !read {
        let Process { handle, stderr, view, .. } = &mut *process;
        let log_ended = stderr.has_ended();
        let (at, end) = step.unwrap_or((start, true));
        let mut asked = None;
        // Not in this order: nothing that it writes puts off its end.
        tokio::select! {
            found = stderr.next(), if !log_ended => if let Found::Line(line) | Found::TooLong(line) = found {
                logs::line(view, &line);
            },
            how = &mut reading, if !read => { read = true; asked = how.err(); }
            how = &mut feeding, if !fed => { fed = true; asked = how.err(); }
            ended = handle.wait(), if status.is_none() => {
                // What it wrote may wait for the caller as long as that lives, and the kind's timeout allows.
                status = Some(ended);
            }
            () = stop.cancelled(), if killed.is_none() => asked = Some(Failure::new("draining", "its worker had to leave")),
            () = over.cancelled(), if killed.is_none() => asked = Some(Failure::new("gone", "its caller is gone")),
            () = tokio::time::sleep_until(at), if step.is_some() => {
                if killed.is_none() {
                    killed = Some(too_late(at.duration_since(start)));
                    view.be(ChildState::Stopping);
                }
                if status.is_some() {
                    break;
                }
                if end { handle.end_all() } else { handle.terminate() }
                step = hard.filter(|(hard, _)| !end && *hard > at).or(Some((Clock::now() + spec.grace, true)));
            }
        }
        if let Some(why) = asked.filter(|_| killed.is_none()) {
            killed = Some(why);
            if status.is_some() {
                break;
            }
            view.be(ChildState::Stopping);
            handle.terminate();
            step = Some((Clock::now() + spec.grace.min(CHILD_END_WITHIN), true));
        }
    }
    process.last_lines(|_| {}).await;
    (status.unwrap_or_default(), killed)
}

/// Writes each message as a line, until the caller has closed. An error for a message that is no line.
async fn feed(stdin: Option<ChildStdin>, mut messages: PipeReceiver) -> Result<(), Failure> {
    let mut stdin = stdin;
    // Lost or failed: the loop above hears it too.
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
            // It reads no more; what is said to it is lost on it, as on any pipe.
            stdin = None;
        }
    }
    Ok(())
}

/// Says each line that it writes. An error for one that is too long.
async fn forward(stdout: Option<ChildStdout>, sender: PipeSender) -> Result<(), Failure> {
    let Some(stdout) = stdout else { return Ok(()) };
    let mut lines = Lines::new(stdout, PIPE_MESSAGE_BYTES_MAX);
    loop {
        match lines.next().await {
            Found::Line(line) => {
                if sender.send(line).await.is_err() {
                    return Ok(());
                }
            }
            Found::TooLong(_) => {
                let text = format!("it wrote a line of more than {PIPE_MESSAGE_BYTES_MAX} bytes");
                return Err(Failure::new("result_too_large", text));
            }
            Found::End => return Ok(()),
        }
    }
}

//! A process for one task: arguments on standard input, result on standard output, the exit code decides.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millpond::limits::{CHILD_END_WITHIN, RESULT_BYTES_MAX};
use millpond::outcome::Failure;
use millpond::worker_record::ChildState;
use serde_json::value::RawValue;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::time::Instant as Clock;
use tokio_util::sync::CancellationToken;

use super::lines::Found;
use super::logs;
use super::order::{STOP_GRACE_MAX, Timeouts};
use super::process::Process;
use super::spec::{Program, Spec};
use super::view::{Running, View};
use super::xargs::{self, STDERR_BYTES_MAX, Written};
use crate::call::{Call, reply};
use crate::call_end::{CallEnd, too_late};

/// The exit code that says that the arguments are at fault, and trying again is of no use (`EX_DATAERR` of sysexits.h).
const EXIT_DATA: i32 = 65;

/// Bytes of a file that are in memory on their way to a process.
const POUR_BYTES: usize = 256 * 1024;

/// What a process gets on standard input.
enum Input {
    Bytes(Bytes),
    File(PathBuf),
}

/// What a process that has ended left behind.
struct Left {
    status: ExitStatus,
    written: Written,
    /// Why we ended it.
    killed: Option<Failure>,
    /// The worker had to leave before it ended.
    stopped: bool,
}

/// Runs one task. An error when its command cannot be started: the task has not run.
pub(crate) async fn run(
    spec: &Spec,
    worker: &str,
    view: &Arc<View>,
    call: &Call,
    timeouts: Timeouts,
    stop: &CancellationToken,
) -> Result<CallEnd, String> {
    let args = match &spec.program {
        Program::Xargs { allowed } => match xargs::read(call, allowed) {
            Ok(args) => Some(args),
            Err(failure) => return Ok(CallEnd::of(Err(failure))),
        },
        _ => None,
    };
    let argv = args.as_ref().map(|args| args.argv.as_slice());
    let input = match (&args, &call.file) {
        (Some(args), _) => Input::Bytes(Bytes::from(args.stdin.clone())),
        (None, Some(path)) => Input::File(path.clone()),
        (None, None) => Input::Bytes(call.payload.clone()),
    };
    let process = Process::start(spec, worker, view.clone(), argv, &environment(call));
    let mut process = match process {
        Ok(process) => process,
        // What the task brings does not fit into a command line.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::ArgumentListTooLong) => {
            let failure = Failure::fatal("bad_arguments", format!("no command can be made of it: {error}"));
            return Ok(CallEnd::of(Err(failure)));
        }
        Err(error) => return Err(error.to_string()),
    };
    let (id, attempt, trace) = (call.id.clone(), call.attempt, call.trace);
    view.runs(Running { id, attempt, trace, since: Instant::now() }, true);
    let left = wait(&mut process, input, timeouts, spec.grace, stop).await;
    if left.stopped {
        return Ok(CallEnd::NotRun);
    }
    Ok(match (&args, process.never_started(left.status)) {
        (Some(args), _) if left.killed.is_none() && process.view.over_memory().is_none() => {
            CallEnd::of(xargs::answer(args, call.attempt, left.status, left.written))
        }
        (None, Some(why)) => return Err(why),
        _ => judge(&process, left, spec.memory_max),
    })
}

/// What a process of one task or conversation learns of it.
pub(super) fn environment(call: &Call) -> Vec<(&'static str, String)> {
    let mut env = vec![("MILLPOND_TASK_ID", call.id.clone()), ("MILLPOND_ATTEMPT", call.attempt.to_string())];
    env.extend(call.trace.map(|trace| ("TRACEPARENT", trace.to_traceparent())));
    env
}

fn judge(process: &Process, left: Left, memory_max: Option<u64>) -> CallEnd {
    if left.status.success() && left.killed.is_none() {
        if left.written.cut {
            let text = format!("it wrote more than {RESULT_BYTES_MAX} bytes to standard output");
            return CallEnd::of(Err(Failure::fatal("result_too_large", text)));
        }
        return CallEnd::of(value(&left.written.stdout));
    }
    let mut failure = process.failure(left.status, memory_max, left.killed);
    failure.retry = left.status.code() != Some(EXIT_DATA);
    CallEnd::of(Err(failure))
}

/// The output as a result: JSON as it is, else its text without the line end at its end, nothing as null.
fn value(output: &[u8]) -> Result<Box<RawValue>, Failure> {
    let text = String::from_utf8_lossy(output);
    let text = text.trim_end_matches(['\n', '\r']);
    match serde_json::from_str::<&RawValue>(text) {
        Ok(value) => Ok(value.to_owned()),
        Err(_) if text.is_empty() => Ok(RawValue::NULL.to_owned()),
        Err(_) => reply(&text),
    }
}

/// Gives it its input, reads what it says, ends it when it takes too long; nothing of it is left then.
async fn wait(
    process: &mut Process,
    input: Input,
    timeouts: Timeouts,
    grace: Duration,
    stop: &CancellationToken,
) -> Left {
    let mut feeding = std::pin::pin!(feed(process.stdin.take(), input));
    let mut reading = std::pin::pin!(collect(process.stdout.take()));
    let (mut fed, mut output, mut status, mut killed, mut stopped) = (false, None, None, None, false);
    let mut kept = Vec::new();
    let start = Clock::now();
    let mut steps = steps(start, timeouts, grace);
    let mut step = steps.next();
    while status.is_none() || output.is_none() {
        let Process { handle, stderr, view, .. } = &mut *process;
        let (at, end) = step.unwrap_or((start, true));
        let log_ended = stderr.has_ended();
        // Not in this order: nothing that it writes puts off its end.
        tokio::select! {
            found = stderr.next(), if !log_ended => if let Found::Line(line) | Found::TooLong(line) = found {
                logs::line(view, &line);
                keep(&mut kept, &line);
            },
            read = &mut reading, if output.is_none() => output = Some(read),
            read = &mut feeding, if !fed => {
                fed = true;
                if let Err(error) = read {
                    killed.get_or_insert_with(|| Failure::new("error", format!("its input cannot be read: {error}")));
                    handle.end_all();
                }
            }
            ended = handle.wait(), if status.is_none() => {
                status = Some(ended);
                // Nothing below it is left that could write more; a moment for what it has written.
                step = Some((Clock::now() + CHILD_END_WITHIN, true));
            }
            () = stop.cancelled(), if !stopped && status.is_none() => {
                stopped = true;
                view.be(ChildState::Stopping);
                handle.terminate();
                step = Some((Clock::now() + grace.min(STOP_GRACE_MAX), true));
            }
            () = tokio::time::sleep_until(at) => {
                if status.is_some() {
                    let text = "its standard output did not end with it";
                    killed.get_or_insert_with(|| Failure::new("bad_output", text));
                    break;
                }
                view.be(ChildState::Stopping);
                killed.get_or_insert_with(|| too_late(at.duration_since(start)));
                if end { handle.end_all() } else { handle.terminate() }
                step = steps.next();
            }
        }
    }
    process.last_lines(|line| keep(&mut kept, line)).await;
    let (stdout, cut) = output.unwrap_or_default();
    Left { status: status.unwrap_or_default(), written: Written { stdout, stderr: kept, cut }, killed, stopped }
}

fn keep(kept: &mut Vec<u8>, line: &[u8]) {
    if kept.len() <= STDERR_BYTES_MAX {
        kept.extend_from_slice(line);
        kept.push(b'\n');
    }
}

/// When it is asked to end, and when it and all below it are ended.
fn steps(start: Clock, timeouts: Timeouts, grace: Duration) -> impl Iterator<Item = (Clock, bool)> {
    let soft = timeouts.soft.map(|soft| (start + soft, false));
    let hard = std::iter::once((start + timeouts.hard, true));
    let again = std::iter::repeat_with(move || (Clock::now() + grace, true));
    soft.into_iter().chain(hard).chain(again)
}

/// Writes its input, as far as it wants it: it need not read it. An error when a file cannot be read to its end.
async fn feed(stdin: Option<ChildStdin>, input: Input) -> std::io::Result<()> {
    let Some(mut stdin) = stdin else { return Ok(()) };
    let path = match input {
        Input::Bytes(bytes) => {
            let _ = stdin.write_all(&bytes).await;
            return Ok(());
        }
        Input::File(path) => path,
    };
    let mut file = BufReader::with_capacity(POUR_BYTES, File::open(path).await?);
    loop {
        let piece = file.fill_buf().await?;
        let bytes = piece.len();
        if bytes == 0 || stdin.write_all(piece).await.is_err() {
            return Ok(());
        }
        file.consume(bytes);
    }
}

/// What it writes, as far as it is kept, and whether there was more. All is read, so that it can end.
async fn collect(stdout: Option<ChildStdout>) -> (Vec<u8>, bool) {
    let Some(mut stdout) = stdout else { return Default::default() };
    let mut kept = Vec::new();
    let limit = u64::try_from(RESULT_BYTES_MAX).unwrap_or(u64::MAX);
    let _ = (&mut stdout).take(limit).read_to_end(&mut kept).await;
    let cut = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await.is_ok_and(|more| more > 0);
    (kept, cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(output: &str, expected: &str) {
        assert_eq!(value(output.as_bytes()).unwrap().get(), expected);
    }

    #[test]
    fn output_becomes_a_result() {
        check("144\n", "144");
        check("{\"a\": 1}\r\n", "{\"a\": 1}");
        check("two words\n", "\"two words\"");
        check("", "null");
        check("a\nb\n", "\"a\\nb\"");
    }
}

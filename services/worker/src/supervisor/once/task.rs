//! A process for one task: it finds the arguments on standard input, writes the result to standard output, and its exit
//! code decides.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millpond::limits::RESULT_BYTES_MAX;
use millpond::outcome::Failure;
use millpond::payload::without_mark;
use serde_json::value::RawValue;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::time::Instant as Clock;
use tokio_util::sync::CancellationToken;

use super::xargs::{self, ProcessOutput, STDERR_BYTES_MAX};
use crate::call::{Call, reply};
use crate::call_end::{CallEnd, too_late};
use crate::supervisor::child_logs;
use crate::supervisor::child_process::{ChildProcess, StartError, task_environment};
use crate::supervisor::child_status::ChildStatus;
use crate::supervisor::handlers_toml::{ChildProgram, ChildSpec};
use crate::supervisor::line_reader::ReadLine;
use crate::supervisor::stop_times::{END_WITHIN, STOP_GRACE_MAX, Timeouts};

/// The exit code that says that the arguments are at fault, and that another try is of no use (`EX_DATAERR` of sysexits.h).
const EXIT_DATA: i32 = 65;
/// Bytes of a file that are in memory on their way to a process.
const COPY_BYTES: usize = 256 * 1024;

/// What a process gets on standard input.
enum TaskInput {
    Bytes(Bytes),
    File(PathBuf),
}

/// How a process ended, and what it has left.
struct ProcessEnd {
    exit: ExitStatus,
    output: ProcessOutput,
    /// Why this worker has killed the process.
    killed: Option<Failure>,
    /// The task was cancelled, or the worker had to leave, before the process ended.
    stopped: bool,
}

/// Runs one task.
///
/// # Errors
/// [`StartError::CannotStart`]: the task has not run.
pub(crate) async fn run(
    spec: &ChildSpec,
    status: &Arc<ChildStatus>,
    call: &Call,
    timeouts: Timeouts,
    stop: &CancellationToken,
) -> Result<CallEnd, StartError> {
    let xargs = match &spec.program {
        ChildProgram::Xargs { allowed } => match xargs::parse(call, allowed) {
            Ok(task) => Some(task),
            Err(failure) => return Ok(CallEnd::of(Err(failure))),
        },
        _ => None,
    };
    let argv = xargs.as_ref().map(|task| task.argv.as_slice());
    let input = match (&xargs, &call.file) {
        (Some(task), _) => TaskInput::Bytes(Bytes::from(task.stdin.clone())),
        (None, Some(path)) => TaskInput::File(path.clone()),
        (None, None) => TaskInput::Bytes(call.payload.clone()),
    };
    let mut process = match ChildProcess::start(spec, status.clone(), argv, &task_environment(call)) {
        Err(StartError::DoesNotFit(error)) => {
            let failure = Failure::fatal("bad_arguments", format!("no command can be made of it: {error}"));
            return Ok(CallEnd::of(Err(failure)));
        }
        process => process?,
    };
    status.runs(call, true);
    let end = wait(&mut process, input, timeouts, spec.table.grace(), stop).await;
    if end.stopped {
        return Ok(CallEnd::NotRun);
    }
    Ok(match (&xargs, process.never_started(end.exit)) {
        (Some(task), _) if end.killed.is_none() && status.over_memory().is_none() => {
            CallEnd::of(xargs::result(task, call.attempt, end.exit, end.output))
        }
        (None, Some(reason)) => return Err(StartError::CannotStart(reason)),
        _ => call_end(&process, end, spec.table.memory),
    })
}

fn call_end(process: &ChildProcess, end: ProcessEnd, memory_max: Option<u64>) -> CallEnd {
    if end.exit.success() && end.killed.is_none() {
        if end.output.cut {
            let text = format!("it wrote more than {RESULT_BYTES_MAX} bytes to standard output");
            return CallEnd::of(Err(Failure::fatal("result_too_large", text)));
        }
        return result_of(&end.output.stdout);
    }
    let mut failure = process.failure(end.exit, memory_max, end.killed);
    failure.retry = end.exit.code() != Some(EXIT_DATA);
    CallEnd::of(Err(failure))
}

/// The output as a result: JSON as it is, other text without the line end at its end, no output as null, and what is no text
/// as bytes. A byte order mark at its start belongs to no value.
fn result_of(output: &[u8]) -> CallEnd {
    let Ok(text) = std::str::from_utf8(without_mark(output)) else { return CallEnd::of_bytes(output) };
    let text = text.trim_end_matches(['\n', '\r']);
    CallEnd::of(match serde_json::from_str::<&RawValue>(text) {
        Ok(value) => Ok(value.to_owned()),
        Err(_) if text.is_empty() => Ok(RawValue::NULL.to_owned()),
        Err(_) => reply(&text),
    })
}

/// Gives the process its input, reads what it writes, and ends it when it takes too long. No process of it is left then.
async fn wait(
    process: &mut ChildProcess,
    input: TaskInput,
    timeouts: Timeouts,
    grace: Duration,
    stop: &CancellationToken,
) -> ProcessEnd {
    let mut feeding = std::pin::pin!(feed(process.stdin.take(), input));
    let mut reading = std::pin::pin!(collect(process.stdout.take()));
    let (mut fed, mut output, mut exit, mut killed, mut stopped) = (false, None, None, None, false);
    let mut kept = Vec::new();
    let start = Clock::now();
    let mut steps = steps(start, timeouts, grace);
    let mut step = steps.next();
    while exit.is_none() || output.is_none() {
        let ChildProcess { handle, stderr, status, .. } = &mut *process;
        let (at, end) = step.unwrap_or((start, true));
        let log_ended = stderr.has_ended();
        // The branches are polled in random order, so that nothing that the process writes puts off its end.
        tokio::select! {
            line = stderr.next(), if !log_ended => if let ReadLine::Line(line) | ReadLine::TooLong(line) = line {
                child_logs::log(status, &line);
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
            ended = handle.wait(), if exit.is_none() => {
                exit = Some(ended);
                // No process is left that could write more; what was written is read within a moment.
                step = Some((Clock::now() + END_WITHIN, true));
            }
            () = stop.cancelled(), if !stopped && exit.is_none() => {
                stopped = true;
                status.stopping();
                handle.terminate();
                step = Some((Clock::now() + grace.min(STOP_GRACE_MAX), true));
            }
            () = tokio::time::sleep_until(at) => {
                if exit.is_some() {
                    let text = "its standard output did not end with it";
                    killed.get_or_insert_with(|| Failure::new("bad_output", text));
                    break;
                }
                status.stopping();
                killed.get_or_insert_with(|| too_late(at.duration_since(start)));
                if end { handle.end_all() } else { handle.terminate() }
                step = steps.next();
            }
        }
    }
    process.last_lines(|line| keep(&mut kept, line)).await;
    let (stdout, cut) = output.unwrap_or_default();
    let output = ProcessOutput { stdout, stderr: kept, cut };
    ProcessEnd { exit: exit.unwrap_or_default(), output, killed, stopped }
}

fn keep(kept: &mut Vec<u8>, line: &[u8]) {
    if kept.len() <= STDERR_BYTES_MAX {
        kept.extend_from_slice(line);
        kept.push(b'\n');
    }
}

/// The times of the steps against a process that takes too long: it is asked to end (`false`), then killed with all below
/// it (`true`).
fn steps(start: Clock, timeouts: Timeouts, grace: Duration) -> impl Iterator<Item = (Clock, bool)> {
    let soft = timeouts.soft.map(|soft| (start + soft, false));
    let hard = std::iter::once((start + timeouts.hard, true));
    let again = std::iter::repeat_with(move || (Clock::now() + grace, true));
    soft.into_iter().chain(hard).chain(again)
}

/// Writes the input until the process reads no more: it need not read its input.
///
/// # Errors
/// When a file cannot be read to its end.
async fn feed(stdin: Option<ChildStdin>, input: TaskInput) -> std::io::Result<()> {
    let Some(mut stdin) = stdin else { return Ok(()) };
    let path = match input {
        TaskInput::Bytes(bytes) => {
            let _ = stdin.write_all(&bytes).await;
            return Ok(());
        }
        TaskInput::File(path) => path,
    };
    let mut file = BufReader::with_capacity(COPY_BYTES, File::open(path).await?);
    loop {
        let piece = file.fill_buf().await?;
        let bytes = piece.len();
        if bytes == 0 || stdin.write_all(piece).await.is_err() {
            return Ok(());
        }
        file.consume(bytes);
    }
}

/// Reads all that the process writes, so that it can end. Returns as much as may be kept, and whether there was more.
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
        let CallEnd::Done(value) = result_of(output.as_bytes()) else { panic!("{output:?} is a result") };
        assert_eq!(value.get(), expected);
    }

    #[test]
    fn what_is_no_text_becomes_bytes() {
        for (output, expected) in
            [(&b"caf\xe9\n"[..], "Y2Fm6Qo="), (b"\"\xff\"", "Iv8i"), (b"\xef\xbb\xbf\xff", "77u//w==")]
        {
            let CallEnd::Bytes(value) = result_of(output) else { panic!("{output:?} is bytes") };
            assert_eq!(value.get(), format!(r#"{{"base64":"{expected}"}}"#));
        }
    }

    #[test]
    fn output_becomes_a_result() {
        check("144\n", "144");
        check("{\"a\": 1}\r\n", "{\"a\": 1}");
        check("two words\n", "\"two words\"");
        check("\u{feff}42", "42");
        check("\u{feff}two words", "\"two words\"");
        check("\u{feff}", "null");
        for exact in
            ["18446744073709551617", "1.0", "1e400", r#"{"a":1,"a":2}"#, r#""\ud800""#, "0.10000000000000000555"]
        {
            check(exact, exact);
        }
        check("", "null");
        check("a\nb\n", "\"a\\nb\"");
    }
}

//! A process for one task: it finds the arguments on standard input, writes the result to standard output, and its exit
//! code decides.

use std::fmt::Display;
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
use crate::supervisor::handlers_toml::{ChildProgram, ChildSpec, HandlerTable, ResultForm};
use crate::supervisor::line_reader::ReadLine;
use crate::supervisor::stop_times::{END_WITHIN, STOP_GRACE_MAX, Timeouts};

/// The exit code that says that the arguments are at fault, and that another try is of no use (`EX_DATAERR` of sysexits.h).
const EXIT_DATA: i32 = 65;
/// Bytes of an output that does not fit, in the failure.
const QUOTED_BYTES_MAX: usize = 200;
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
        _ => call_end(&process, end, &spec.table),
    })
}

fn call_end(process: &ChildProcess, end: ProcessEnd, table: &HandlerTable) -> CallEnd {
    if end.exit.success() && end.killed.is_none() {
        if end.output.cut {
            let text = format!("it wrote more than {RESULT_BYTES_MAX} bytes to standard output");
            return CallEnd::of(Err(Failure::fatal("result_too_large", text)));
        }
        return result_of(&end.output.stdout, table.result).unwrap_or_else(|failure| {
            let child = Some(process.status.evidence(Some(end.exit), false));
            CallEnd::of(Err(Failure { child, ..failure }))
        });
    }
    let mut failure = process.failure(end.exit, table.memory, end.killed);
    failure.retry = end.exit.code() != Some(EXIT_DATA);
    CallEnd::of(Err(failure))
}

/// The output as a result. Of no form in particular it is JSON when all of it is one value, a text without the line end at its
/// end when it is UTF-8, `null` when there is none, and else bytes.
fn result_of(output: &[u8], form: Option<ResultForm>) -> Result<CallEnd, Failure> {
    let text = std::str::from_utf8(without_mark(output));
    let value = match (form, text) {
        (Some(ResultForm::Bytes), _) | (None, Err(_)) => return Ok(CallEnd::of_bytes(output)),
        (Some(ResultForm::Json), Ok(text)) => serde_json::from_str::<&RawValue>(text)
            .map(ToOwned::to_owned)
            .map_err(|error| misfit("JSON", &error, output)),
        (Some(form), Err(error)) => Err(misfit(if form == ResultForm::Json { "JSON" } else { "text" }, &error, output)),
        (Some(ResultForm::Text), Ok(text)) => {
            let text = text.strip_suffix('\n').unwrap_or(text);
            reply(&text.strip_suffix('\r').unwrap_or(text))
        }
        (None, Ok(text)) => match (serde_json::from_str::<&RawValue>(text), text.trim_end_matches(['\n', '\r'])) {
            (Ok(value), _) => Ok(value.to_owned()),
            (Err(_), "") => Ok(RawValue::NULL.to_owned()),
            (Err(_), text) => reply(&text),
        },
    };
    Ok(CallEnd::of(Ok(value?)))
}

/// The failure of a process whose output is not of the form that its kind has.
fn misfit(form: &str, error: &dyn Display, output: &[u8]) -> Failure {
    let start = output.get(..QUOTED_BYTES_MAX).unwrap_or(output);
    let (bytes, start) = (output.len(), start.escape_ascii());
    Failure::new("bad_output", format!("its output is no {form} ({error}); its {bytes} bytes begin: {start}"))
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

    fn check(output: &[u8], form: Option<ResultForm>, expected: &str) {
        let result = result_of(output, form);
        let shown = match &result {
            Ok(CallEnd::Done(value) | CallEnd::Bytes(value)) => value.get(),
            Ok(_) => panic!("{} is a result", output.escape_ascii()),
            Err(failure) => failure.message.as_str(),
        };
        assert!(shown.starts_with(expected), "{}: {shown}", output.escape_ascii());
    }

    #[test]
    fn output_becomes_a_result() {
        check(b"144\n", None, "144");
        check(b"{\"a\": 1}\r\n", None, "{\"a\": 1}");
        check(b"two words\n", None, "\"two words\"");
        check(b"007", None, "\"007\"");
        check(b"1\n2\n", None, "\"1\\n2\"");
        check(b"", None, "null");
        check(b"a\nb\n", None, "\"a\\nb\"");
        check(b"\xef\xbb\xbf[1]", None, "[1]");
        check(b"\x89PNG\r\n\x1a\n", None, "{\"base64\":\"iVBORw0KGgo=\"}");
        check(b"caf\xe9\n", None, "{\"base64\":\"Y2Fm6Qo=\"}");
        check("\u{feff}two words".as_bytes(), None, "\"two words\"");
        check("\u{feff}".as_bytes(), None, "null");
        check(b"\"\xff\"", None, "{\"base64\":\"Iv8i\"}");
        check(b"\xef\xbb\xbf\xff", None, "{\"base64\":\"77u//w==\"}");
        for exact in
            ["18446744073709551617", "1.0", "1e400", r#"{"a":1,"a":2}"#, r#""\ud800""#, "0.10000000000000000555"]
        {
            check(exact.as_bytes(), None, exact);
        }
    }

    #[test]
    fn output_has_the_form_that_its_kind_has() {
        let (json, text, bytes) = (Some(ResultForm::Json), Some(ResultForm::Text), Some(ResultForm::Bytes));
        check(b"144\n", json, "144");
        check(b"144\n", text, "\"144\"");
        check(b"a\n\n", text, "\"a\\n\"");
        check(b"", text, "\"\"");
        check(b"144\n", bytes, "{\"base64\":\"MTQ0Cg==\"}");
        check(b"", bytes, "{\"base64\":\"\"}");
        check(b"two words\n", json, "its output is no JSON (expected");
        check(b"", json, "its output is no JSON (EOF");
        check(b"caf\xe9!", json, "its output is no JSON (invalid utf-8");
        check(
            b"caf\xe9!",
            text,
            "its output is no text (invalid utf-8 sequence of 1 bytes from index 3); its 5 bytes begin: caf\\xe9!",
        );
    }
}

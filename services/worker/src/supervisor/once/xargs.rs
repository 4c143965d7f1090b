//! The kind `xargs`: a task names a command, which runs without a shell when the worker allows it. The exit code and what
//! the command wrote are the result.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use data_encoding::BASE64;
use millpond::limits::RESULT_BYTES_MAX;
use millpond::outcome::Failure;
use serde::{Deserialize, Serialize};

use crate::call::{Call, Reply, reply};

/// The name of the kind.
pub(crate) const KIND: &str = "xargs";
/// Most standard error that a result holds, in bytes.
pub(super) const STDERR_BYTES_MAX: usize = 64 * 1024;
/// In place of a command's name: every command is allowed.
const ANY: &str = "*";

/// `{"argv": ["convert", "a.png", "a.webp"]}`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct XargsTask {
    pub(super) argv: Vec<String>,
    /// What the command gets on standard input.
    #[serde(default)]
    pub(super) stdin: String,
    /// Tries before an exit code other than 0 is the result.
    #[serde(default)]
    tries: u32,
}

/// What a process wrote, as far as it is kept.
#[derive(Debug, Default)]
pub(super) struct ProcessOutput {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    /// Whether the process wrote more to standard output.
    pub(super) cut: bool,
}

/// `{"exit_code", "signal", "stdout", "stderr", "cut"}`; bytes that are not text come as `stdout_base64`, `stderr_base64`.
#[derive(Serialize)]
struct XargsResult {
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_base64: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cut: bool,
}

/// Parses the arguments of a task.
///
/// # Errors
/// A failure when they do not fit, or when the command is not one of `allowed`.
pub(super) fn parse(call: &Call, allowed: &[String]) -> Result<XargsTask, Failure> {
    let task: XargsTask = call.args()?;
    let Some(program) = task.argv.first() else {
        return Err(Failure::fatal("bad_arguments", "argv is empty: name a command"));
    };
    if allowed.iter().any(|a| a == program || a == ANY) {
        return Ok(task);
    }
    let allowed = allowed.join(", ");
    let text = format!("this worker does not allow the command {program:?}; it allows {allowed} (--allow-xargs)");
    Err(Failure::fatal("not_allowed", text))
}

/// The result of a command that has ended.
///
/// # Errors
/// A failure when the command failed and there are tries left.
pub(super) fn result(task: &XargsTask, attempt: u32, exit: ExitStatus, output: ProcessOutput) -> Reply {
    let ProcessOutput { stdout, mut stderr, mut cut } = output;
    cut |= stderr.len() > STDERR_BYTES_MAX;
    stderr.truncate(STDERR_BYTES_MAX);
    let (stdout, stdout_base64) = text_or_base64(stdout);
    let (stderr, stderr_base64) = text_or_base64(stderr);
    if !exit.success() && attempt < task.tries {
        let last = stderr.as_deref().and_then(|text| text.lines().last()).unwrap_or_default();
        let program = task.argv.first().map_or("", String::as_str);
        return Err(Failure::new("exit", format!("{program} ended with {exit}: {last}")));
    }
    let (exit_code, signal) = (exit.code(), exit.signal());
    let mut result = XargsResult { exit_code, signal, stdout, stdout_base64, stderr, stderr_base64, cut };
    loop {
        let value = reply(&result)?;
        if value.get().len() <= RESULT_BYTES_MAX {
            return Ok(value);
        }
        // JSON is longer than the bytes that it holds: the first half is kept, then the first half of that.
        result.cut = true;
        for text in [&mut result.stdout, &mut result.stdout_base64].into_iter().flatten() {
            // Four characters of base64 are three bytes.
            text.truncate(text.floor_char_boundary(text.len() / 2 / 4 * 4));
        }
    }
}

fn text_or_base64(bytes: Vec<u8>) -> (Option<String>, Option<String>) {
    match String::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(error) => (None, Some(BASE64.encode(error.as_bytes()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_commands_run() {
        let call = Call::for_test("t", r#"{"argv": ["rm", "-rf", "x"]}"#);
        assert_eq!(parse(&call, &["ls".into(), "convert".into()]).unwrap_err().kind, "not_allowed");
        assert_eq!(parse(&call, &["rm".into()]).unwrap().argv.len(), 3);
        assert_eq!(parse(&call, &["*".into()]).unwrap().argv.len(), 3);
        assert_eq!(parse(&Call::for_test("t", r#"{"argv": []}"#), &["*".into()]).unwrap_err().kind, "bad_arguments");
    }

    #[test]
    fn bytes_that_are_no_text_come_as_base64() {
        let task = XargsTask { argv: vec!["x".into()], stdin: String::new(), tries: 0 };
        let output = ProcessOutput { stdout: b"a\n".to_vec(), stderr: vec![0xff], cut: false };
        let value = result(&task, 1, ExitStatus::from_raw(3 << 8), output).unwrap();
        assert_eq!(value.get(), r#"{"exit_code":3,"stdout":"a\n","stderr_base64":"/w=="}"#);
    }

    #[test]
    fn a_result_that_is_too_long_is_cut_and_marked() {
        let task = XargsTask { argv: vec!["x".into()], stdin: String::new(), tries: 0 };
        for line in [&b"a\n"[..], &[0xff, 0xff]] {
            let output = ProcessOutput {
                stdout: line.repeat(RESULT_BYTES_MAX / 2 + 1),
                stderr: b"\x01".repeat(70_000),
                cut: false,
            };
            let value = result(&task, 1, ExitStatus::from_raw(0), output).unwrap();
            assert!(value.get().len() <= RESULT_BYTES_MAX && value.get().ends_with(r#""cut":true}"#));
        }
    }

    #[test]
    fn tries_are_used_up_before_the_exit_code_is_the_result() {
        let task = XargsTask { argv: vec!["x".into()], stdin: String::new(), tries: 2 };
        let failed = |attempt| result(&task, attempt, ExitStatus::from_raw(1 << 8), ProcessOutput::default());
        assert_eq!(failed(1).unwrap_err().kind, "exit");
        assert!(failed(2).unwrap().get().contains(r#""exit_code":1"#));
    }
}

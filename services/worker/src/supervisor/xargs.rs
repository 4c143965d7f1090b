//! The kind `xargs`: a command that the worker allows, named by the task, run without a shell; what it wrote and its exit
//! code are the result.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use data_encoding::BASE64;
use millpond::limits::RESULT_BYTES_MAX;
use millpond::outcome::Failure;
use serde::{Deserialize, Serialize};

use crate::call::{Call, Reply, reply};

/// The kind.
pub(crate) const KIND: &str = "xargs";
/// Standard error that a result has at the most, in bytes.
pub(super) const STDERR_BYTES_MAX: usize = 64 * 1024;
/// Allows every command.
const ANY: &str = "*";

/// `{"argv": ["convert", "a.png", "a.webp"]}`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct Args {
    pub(super) argv: Vec<String>,
    /// What it gets on standard input.
    #[serde(default)]
    pub(super) stdin: String,
    /// Tries before an exit code other than 0 is the result.
    #[serde(default)]
    tries: u32,
}

/// What a process wrote, as far as it is kept.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    /// Whether there was more.
    pub(super) cut: bool,
}

/// `{"exit_code", "signal", "stdout", "stderr", "cut"}`; what is not text comes as `stdout_base64`, `stderr_base64`.
#[derive(Serialize)]
struct Output {
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

/// Reads the arguments; a failure when the command is not one of `allowed`.
pub(super) fn read(call: &Call, allowed: &[String]) -> Result<Args, Failure> {
    let args: Args = call.args()?;
    let Some(program) = args.argv.first() else {
        return Err(Failure::fatal("bad_arguments", "argv is empty: name a command"));
    };
    if allowed.iter().any(|a| a == program || a == ANY) {
        return Ok(args);
    }
    let allowed = allowed.join(", ");
    let text = format!("this worker does not allow the command {program:?}; it allows {allowed} (--allow-xargs)");
    Err(Failure::fatal("not_allowed", text))
}

/// The result; a failure while there are tries left.
pub(super) fn answer(args: &Args, attempt: u32, status: ExitStatus, written: Written) -> Reply {
    let Written { stdout, mut stderr, mut cut } = written;
    cut |= stderr.len() > STDERR_BYTES_MAX;
    stderr.truncate(STDERR_BYTES_MAX);
    let (stdout, stdout_base64) = text_or_base64(stdout);
    let (stderr, stderr_base64) = text_or_base64(stderr);
    if !status.success() && attempt < args.tries {
        let last = stderr.as_deref().and_then(|text| text.lines().last()).unwrap_or_default();
        let program = args.argv.first().map_or("", String::as_str);
        return Err(Failure::new("exit", format!("{program} ended with {status}: {last}")));
    }
    let (exit_code, signal) = (status.code(), status.signal());
    let mut output = Output { exit_code, signal, stdout, stdout_base64, stderr, stderr_base64, cut };
    loop {
        let value = reply(&output)?;
        if value.get().len() <= RESULT_BYTES_MAX {
            return Ok(value);
        }
        // As JSON it is longer than it was: the first half is kept, and the first half of that.
        output.cut = true;
        for text in [&mut output.stdout, &mut output.stdout_base64].into_iter().flatten() {
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
    fn only_what_is_allowed_is_run() {
        let call = Call::for_test("t", r#"{"argv": ["rm", "-rf", "x"]}"#);
        assert_eq!(read(&call, &["ls".into(), "convert".into()]).unwrap_err().kind, "not_allowed");
        assert_eq!(read(&call, &["rm".into()]).unwrap().argv.len(), 3);
        assert_eq!(read(&call, &["*".into()]).unwrap().argv.len(), 3);
        assert_eq!(read(&Call::for_test("t", r#"{"argv": []}"#), &["*".into()]).unwrap_err().kind, "bad_arguments");
    }

    #[test]
    fn what_is_no_text_comes_as_base64() {
        let args = Args { argv: vec!["x".into()], stdin: String::new(), tries: 0 };
        let written = Written { stdout: b"a\n".to_vec(), stderr: vec![0xff], cut: false };
        let value = answer(&args, 1, ExitStatus::from_raw(3 << 8), written).unwrap();
        assert_eq!(value.get(), r#"{"exit_code":3,"stdout":"a\n","stderr_base64":"/w=="}"#);
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        let args = Args { argv: vec!["x".into()], stdin: String::new(), tries: 0 };
        for line in [&b"a\n"[..], &[0xff, 0xff]] {
            let written =
                Written { stdout: line.repeat(RESULT_BYTES_MAX / 2 + 1), stderr: b"\x01".repeat(70_000), cut: false };
            let value = answer(&args, 1, ExitStatus::from_raw(0), written).unwrap();
            assert!(value.get().len() <= RESULT_BYTES_MAX && value.get().ends_with(r#""cut":true}"#));
        }
    }

    #[test]
    fn tries_are_used_up_before_the_exit_code_is_the_result() {
        let args = Args { argv: vec!["x".into()], stdin: String::new(), tries: 2 };
        let failed = |attempt| answer(&args, attempt, ExitStatus::from_raw(1 << 8), Written::default());
        assert_eq!(failed(1).unwrap_err().kind, "exit");
        assert!(failed(2).unwrap().get().contains(r#""exit_code":1"#));
    }
}

//! The output of commands and how they ended: their output byte for byte, a line of JSON, or a line of the job log.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use data_encoding::BASE64;
use millpond::client::{MapItem, MapRun, NoResult};
use millpond::outcome::Failure;
use serde::{Deserialize, Serialize};

use super::super::task_end::describe;
use super::template::{Template, quoted};
use crate::exit;
use crate::output::{Output, one_line, output};

/// Failures that are printed one by one; further ones are only counted.
const FAILURES_PRINTED_MAX: u64 = 10;

/// The result of a task of the kind `xargs`.
#[derive(Deserialize, Serialize, Default)]
struct CommandOutput {
    exit_code: Option<i32>,
    signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_base64: Option<String>,
    /// The command wrote more than is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    cut: bool,
}

/// A command and how it ended, as one JSON object.
#[derive(Serialize)]
struct CommandRow<'a> {
    index: u64,
    input: String,
    argv: &'a [String],
    #[serde(flatten)]
    output: CommandOutput,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<&'a Failure>,
}

/// What the user sees of the commands.
pub struct XargsReport {
    out: BufWriter<Output>,
    joblog: Option<BufWriter<File>>,
    template: Template,
    json: bool,
    tag: bool,
    ended: u64,
    failed: u64,
    /// How many of the failed ones have no exit code.
    dead: u64,
}

impl XargsReport {
    /// # Errors
    /// When the job log cannot be written.
    pub fn new(joblog: Option<&Path>, template: Template, json: bool, tag: bool) -> anyhow::Result<Self> {
        let joblog = match joblog {
            None => None,
            Some(path) => {
                let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
                let mut log = BufWriter::new(file);
                writeln!(log, "Seq\tHost\tJobRuntime\tExitval\tSignal\tCommand")?;
                Some(log)
            }
        };
        let out = BufWriter::with_capacity(256 * 1024, output());
        Ok(Self { out, joblog, template, json, tag, ended: 0, failed: 0, dead: 0 })
    }

    /// Prints how one command ended.
    ///
    /// # Errors
    /// When standard output is closed, or the job log cannot be written.
    pub fn item(&mut self, item: &MapItem, id: &str, lines: &[String]) -> anyhow::Result<()> {
        let number = item.index + 1;
        let argv = self.template.argv(lines, number);
        let (output, fault) = match &item.end {
            Ok(value) => match serde_json::from_str::<CommandOutput>(value.get()) {
                Ok(output) => (Some(output), None),
                Err(error) => (None, Some(format!("has a result that is not one of xargs: {error}"))),
            },
            Err(no_result) => (None, Some(reason(id, no_result, &argv))),
        };
        self.ended += 1;
        // Who reads on must not take the part of an output that is here for all of it.
        self.failed += u64::from(output.as_ref().is_none_or(|output| output.exit_code != Some(0) || output.cut));
        if let Some(log) = &mut self.joblog {
            let exit = output.as_ref().map_or(-1, |output| output.exit_code.unwrap_or(-1));
            let signal = output.as_ref().and_then(|output| output.signal).unwrap_or(0);
            writeln!(log, "{number}\t-\t-\t{exit}\t{signal}\t{}", quoted(&argv).replace(['\t', '\n'], " "))?;
        }
        let cut = output.as_ref().is_some_and(|output| output.cut);
        if self.json {
            let failure = match &item.end {
                Err(NoResult::Dead(failure)) => Some(failure),
                _ => None,
            };
            let row = CommandRow {
                index: item.index,
                input: lines.join(" "),
                argv: &argv,
                output: output.unwrap_or_default(),
                failure,
            };
            writeln!(self.out, "{}", one_line(&serde_json::to_string(&row)?))?;
        } else if let Some(output) = output {
            self.copy_output(output, &lines.join(" "))?;
        }
        if cut {
            let text = "wrote more than is kept of it, and counts as failed; let it write to a file";
            self.report(&format!("millpond: command {number} ({}) {text}", quoted(&argv)))?;
        }
        if let Some(fault) = fault {
            self.dead += 1;
            if self.dead <= FAILURES_PRINTED_MAX {
                self.report(&format!("millpond: command {number} ({}) {fault}", quoted(&argv)))?;
            }
        }
        Ok(())
    }

    /// Copies a command's standard output to ours, then its standard error to ours.
    fn copy_output(&mut self, output: CommandOutput, input: &str) -> anyhow::Result<()> {
        let stdout = bytes(output.stdout, output.stdout_base64)?;
        let stderr = bytes(output.stderr, output.stderr_base64)?;
        let tag = self.tag.then_some(input);
        self.out.write_all(&tagged(&stdout, tag))?;
        if !stderr.is_empty() {
            self.out.flush()?;
            // A standard error that is full or gone changes nothing of the rest.
            let _ = std::io::stderr().lock().write_all(&tagged(&stderr, tag));
        }
        Ok(())
    }

    /// Prints a line on standard error, after all output before it.
    fn report(&mut self, line: &str) -> std::io::Result<()> {
        self.out.flush()?;
        note!("{line}");
        Ok(())
    }

    /// Writes the buffered output.
    ///
    /// # Errors
    /// As [`XargsReport::item`].
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()?;
        self.joblog.as_mut().map_or(Ok(()), BufWriter::flush)
    }

    /// How many commands have ended.
    pub fn ended(&self) -> u64 {
        self.ended
    }

    /// Prints how many commands failed, and those that were not run because of their lines: some of them, and how many.
    pub fn end(&mut self, run: &MapRun, refused: &[String], refused_count: u64) {
        for reason in refused {
            note!("millpond: {reason}; its command was not run");
        }
        self.failed += refused_count;
        if self.failed > 0 {
            note!("millpond: {} of {} commands failed, job {}", self.failed, self.ended + refused_count, run.job());
        }
    }

    /// The exit code: how many commands failed.
    pub fn code(&self) -> ExitCode {
        code(self.failed)
    }
}

/// The exit code for so many failed commands.
pub fn code(failed: u64) -> ExitCode {
    ExitCode::from(u8::try_from(failed).unwrap_or(u8::MAX).min(exit::XARGS_FAILED_MAX + 1))
}

/// Why a command has no exit code, and what to do about it.
fn reason(id: &str, no_result: &NoResult, argv: &[String]) -> String {
    let what = describe(Some(id), no_result);
    let program = argv.first().map_or("", String::as_str);
    match no_result {
        NoResult::Dead(failure) if ["not_allowed", "unknown_kind"].contains(&failure.kind.as_str()) => {
            let allow = quoted(&["--allow-xargs".to_owned(), program.to_owned()]);
            format!("{what}; start a worker that allows it: `millpond worker run {allow}`")
        }
        _ => what,
    }
}

fn bytes(text: Option<String>, base64: Option<String>) -> anyhow::Result<Vec<u8>> {
    match base64 {
        Some(base64) => BASE64.decode(base64.as_bytes()).context("a result is not base64"),
        None => Ok(text.unwrap_or_default().into_bytes()),
    }
}

/// The output with the tag and a tab before each line.
fn tagged<'a>(written: &'a [u8], tag: Option<&str>) -> Cow<'a, [u8]> {
    let Some(tag) = tag else { return Cow::Borrowed(written) };
    let lines = written.split_inclusive(|byte| *byte == b'\n');
    Cow::Owned(lines.flat_map(|line| [tag.as_bytes(), b"\t", line].concat()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_stand_before_each_line() {
        assert_eq!(tagged(b"a\n\xff", Some("x")).as_ref(), b"x\ta\nx\t\xff");
        assert_eq!(tagged(b"a\nb", None).as_ref(), b"a\nb");
        assert_eq!(tagged(b"", Some("x")).as_ref(), b"");
    }

    #[test]
    fn rows_hold_what_is_known() {
        let output = r#"{"exit_code":3,"signal":null,"stdout":"a","stderr_base64":"/w=="}"#;
        let output = serde_json::from_str(output).unwrap();
        let row = CommandRow { index: 0, input: "x".into(), argv: &[], output, failure: None };
        let expected =
            r#"{"index":0,"input":"x","argv":[],"exit_code":3,"signal":null,"stdout":"a","stderr_base64":"/w=="}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), expected);
    }
}

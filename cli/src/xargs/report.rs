//! What commands wrote and how they ended: their output byte for byte, a line of JSON, a line of the job log.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::process::ExitCode;

use anyhow::Context;
use data_encoding::BASE64;
use millpond::client::{MapItem, MapRun, NoResult};
use serde::Deserialize;
use serde_json::{Value, json};

use super::XargsArgs;
use super::template::{Template, quoted};
use crate::submit::describe;

/// Failures that are told one by one; the others are only counted.
const FAILURES_TOLD: u64 = 10;
/// Most failures that an exit code counts, as GNU parallel does; one more says that there were more.
const FAILED_COUNTED_MAX: u8 = 100;

/// What the kind `xargs` answers.
#[derive(Deserialize, Default)]
struct Output {
    exit_code: Option<i32>,
    signal: Option<i32>,
    stdout: Option<String>,
    stdout_base64: Option<String>,
    stderr: Option<String>,
    stderr_base64: Option<String>,
    #[serde(default)]
    cut: bool,
}

/// What the user sees of it.
pub struct Report {
    out: BufWriter<std::io::Stdout>,
    joblog: Option<BufWriter<File>>,
    template: Template,
    json: bool,
    tag: bool,
    ended: u64,
    failed: u64,
    /// Of those, the ones that have no exit code.
    dead: u64,
}

impl Report {
    /// # Errors
    /// When the job log cannot be written.
    pub fn new(args: &XargsArgs, template: Template) -> anyhow::Result<Self> {
        let joblog = match &args.joblog {
            None => None,
            Some(path) => {
                let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
                let mut log = BufWriter::new(file);
                writeln!(log, "Seq\tHost\tJobRuntime\tExitval\tSignal\tCommand")?;
                Some(log)
            }
        };
        let out = BufWriter::with_capacity(256 * 1024, std::io::stdout());
        Ok(Self { out, joblog, template, json: args.json, tag: args.tag, ended: 0, failed: 0, dead: 0 })
    }

    /// Writes what one command wrote.
    ///
    /// # Errors
    /// When nobody reads it any more, or the job log cannot be written.
    pub fn item(&mut self, item: &MapItem, lines: &[String]) -> anyhow::Result<()> {
        let number = item.index + 1;
        let argv = self.template.argv(lines, number);
        let (output, fault) = match &item.end {
            Ok(value) => match serde_json::from_str::<Output>(value.get()) {
                Ok(output) => (Some(output), None),
                Err(error) => (None, Some(format!("has a result that is not one of xargs: {error}"))),
            },
            Err(no_result) => (None, Some(reason(no_result, &argv))),
        };
        self.ended += 1;
        self.failed += u64::from(output.as_ref().is_none_or(|output| output.exit_code != Some(0)));
        if let Some(log) = &mut self.joblog {
            let exit = output.as_ref().map_or(-1, |output| output.exit_code.unwrap_or(-1));
            let signal = output.as_ref().and_then(|output| output.signal).unwrap_or(0);
            writeln!(log, "{number}\t-\t-\t{exit}\t{signal}\t{}", quoted(&argv).replace(['\t', '\n'], " "))?;
        }
        let cut = output.as_ref().is_some_and(|output| output.cut);
        if self.json {
            let failure = match &item.end {
                Err(NoResult::Dead(failure)) => serde_json::to_value(failure)?,
                _ => Value::Null,
            };
            let row = json!({ "index": item.index, "input": lines.join(" "), "argv": argv });
            writeln!(self.out, "{}", filled(row, output.unwrap_or_default(), failure))?;
        } else if let Some(output) = output {
            self.pass_on(output, &lines.join(" "))?;
        }
        if cut {
            self.say(&format!("millpond: command {number} wrote more than is kept of it; let it write to a file"))?;
        }
        if let Some(fault) = fault {
            self.dead += 1;
            if self.dead <= FAILURES_TOLD {
                self.say(&format!("millpond: command {number} ({}) {fault}", quoted(&argv)))?;
            }
        }
        Ok(())
    }

    /// Standard output to ours, standard error to ours, in this order.
    fn pass_on(&mut self, output: Output, input: &str) -> anyhow::Result<()> {
        let stdout = bytes(output.stdout, output.stdout_base64)?;
        let stderr = bytes(output.stderr, output.stderr_base64)?;
        let tag = self.tag.then_some(input);
        self.out.write_all(&tagged(&stdout, tag))?;
        if !stderr.is_empty() {
            self.out.flush()?;
            std::io::stderr().lock().write_all(&tagged(&stderr, tag))?;
        }
        Ok(())
    }

    /// Talks, after what was written before.
    fn say(&mut self, line: &str) -> std::io::Result<()> {
        self.out.flush()?;
        eprintln!("{line}");
        Ok(())
    }

    /// Writes what waits to be written.
    ///
    /// # Errors
    /// As [`Report::item`].
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()?;
        self.joblog.as_mut().map_or(Ok(()), BufWriter::flush)
    }

    /// The exit code: how many commands failed.
    ///
    /// # Errors
    /// As [`Report::item`].
    pub fn end(mut self, run: &MapRun) -> anyhow::Result<ExitCode> {
        self.flush()?;
        if self.failed > 0 {
            eprintln!("millpond: {} of {} commands failed, job {}", self.failed, self.ended, run.job());
        }
        let counted = u8::try_from(self.failed).unwrap_or(u8::MAX).min(FAILED_COUNTED_MAX + 1);
        Ok(ExitCode::from(counted))
    }
}

/// Why a command has no exit code, and what to do.
fn reason(no_result: &NoResult, argv: &[String]) -> String {
    let what = describe(no_result);
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
        Some(base64) => BASE64.decode(base64.as_bytes()).context("a result holds what is not base64"),
        None => Ok(text.unwrap_or_default().into_bytes()),
    }
}

/// Each line with the tag and a tab before it.
fn tagged<'a>(written: &'a [u8], tag: Option<&str>) -> Cow<'a, [u8]> {
    let Some(tag) = tag else { return Cow::Borrowed(written) };
    let lines = written.split_inclusive(|byte| *byte == b'\n');
    Cow::Owned(lines.flat_map(|line| [tag.as_bytes(), b"\t", line].concat()).collect())
}

fn filled(mut row: Value, output: Output, failure: Value) -> Value {
    let Some(object) = row.as_object_mut() else { return row };
    object.insert("exit_code".to_owned(), json!(output.exit_code));
    object.insert("signal".to_owned(), json!(output.signal));
    for (name, text, base64) in
        [("stdout", output.stdout, output.stdout_base64), ("stderr", output.stderr, output.stderr_base64)]
    {
        match base64 {
            Some(base64) => object.insert(format!("{name}_base64"), json!(base64)),
            None => object.insert(name.to_owned(), json!(text)),
        };
    }
    if output.cut {
        object.insert("cut".to_owned(), json!(true));
    }
    if !failure.is_null() {
        object.insert("failure".to_owned(), failure);
    }
    row
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
    fn objects_say_what_is_known() {
        let output = Output {
            exit_code: Some(3),
            stdout: Some("a".into()),
            stderr_base64: Some("/w==".into()),
            ..Default::default()
        };
        let row = filled(json!({ "index": 0 }), output, Value::Null).to_string();
        assert_eq!(row, r#"{"exit_code":3,"index":0,"signal":null,"stderr_base64":"/w==","stdout":"a"}"#);
    }
}

//! The lines of JSON between a worker and a warm child: [`TaskLine`] goes to the child, [`ChildLine`] comes back. Both
//! sides are here: the worker's, and that of a Rust program that runs its own handler as a child. docs/handlers.md
//! explains the lines to those who write handlers.

use std::borrow::Cow;

use millpond::limits::RESULT_BYTES_MAX;
use millpond::outcome::Failure;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::call::{Call, Reply};

/// The line that tells a child to shut down, before anything that ends it.
pub(crate) const SHUTDOWN_LINE: &[u8] = b"{\"shutdown\":true}\n";
/// Longest line that a child may write to standard output, in bytes: a result and its frame.
pub(crate) const CHILD_LINE_BYTES_MAX: usize = RESULT_BYTES_MAX + 64 * 1024;
/// Bytes of a wrong line that the failure of its task repeats.
const QUOTED_BYTES_MAX: usize = 200;

/// One line of a child's standard input: a task, or the request to shut down.
#[derive(Serialize, Deserialize)]
pub(crate) struct TaskLine<'a> {
    #[serde(default, borrow)]
    pub(crate) id: Cow<'a, str>,
    #[serde(default, borrow)]
    kind: Cow<'a, str>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) args: Option<&'a RawValue>,
    /// Where the arguments are when they are not in `args`.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<Cow<'a, str>>,
    #[serde(default)]
    pub(crate) attempt: u32,
    #[serde(default)]
    deadline_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) traceparent: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) shutdown: bool,
}

/// One line of a child's standard output. Which fields are present decides what the line says.
#[derive(Default, Serialize, Deserialize)]
struct ChildLine<'a> {
    #[serde(default, borrow, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    ok: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<LineError>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry: Option<bool>,
    #[serde(default, skip_serializing)]
    ready: Option<bool>,
    #[serde(default, skip_serializing)]
    progress: Option<f64>,
    #[serde(default, borrow, skip_serializing)]
    note: Option<Cow<'a, str>>,
}

/// Reads a field that is there; `null` is a value too.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// An error of a handler, or just its message.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum LineError {
    Message(String),
    Full {
        #[serde(rename = "type", default)]
        kind: Option<String>,
        #[serde(default)]
        message: Option<String>,
        #[serde(default)]
        traceback: Option<String>,
    },
}

/// What a child says in one line.
#[derive(Debug)]
pub(crate) enum ChildMessage {
    /// The child has started.
    Ready,
    /// How far its task is, from 0 to 1, and a note.
    Progress(Option<f64>, Option<String>),
    /// How its task ended.
    Reply(Reply),
}

/// Parses a line of a child.
///
/// # Errors
/// A text that says what is wrong with the line.
pub(crate) fn parse(line: &[u8]) -> Result<ChildMessage, String> {
    let fields: ChildLine<'_> = serde_json::from_slice(line).map_err(|error| {
        let problem = if error.is_data() { "not an answer" } else { "no line of JSON" };
        format!("{:?} is {problem} ({error})", quoted(line))
    })?;
    if let Some(value) = fields.ok {
        return Ok(ChildMessage::Reply(Ok(value.to_owned())));
    }
    if let Some(error) = fields.error {
        let (kind, message, traceback) = match error {
            LineError::Message(message) => (None, Some(message), None),
            LineError::Full { kind, message, traceback } => (kind, message, traceback),
        };
        let mut failure = Failure::new(kind.unwrap_or_else(|| "error".to_owned()), message.unwrap_or_default());
        failure.retry = fields.retry.unwrap_or(true);
        failure.traceback = traceback;
        return Ok(ChildMessage::Reply(Err(failure)));
    }
    if fields.ready == Some(true) {
        return Ok(ChildMessage::Ready);
    }
    if fields.progress.is_some() || fields.note.is_some() {
        return Ok(ChildMessage::Progress(fields.progress, fields.note.map(Cow::into_owned)));
    }
    Err(format!("{:?} has none of ok, error, progress, ready", quoted(line)))
}

/// The start of a line, for the text of an error.
pub(crate) fn quoted(line: &[u8]) -> String {
    String::from_utf8_lossy(line.get(..QUOTED_BYTES_MAX).unwrap_or(line)).into_owned()
}

/// Appends the line that gives `call` to a child.
///
/// # Errors
/// A failure when the arguments are not JSON: a child never sees such arguments.
pub(crate) fn write_task(call: &Call, kind: &str, deadline_ms: i64, lines: &mut Vec<u8>) -> Result<(), Failure> {
    let task = TaskLine {
        id: call.id.as_str().into(),
        kind: kind.into(),
        args: if call.file.is_some() { None } else { Some(call.borrowed_args()?) },
        file: call.file.as_deref().map(|path| path.to_string_lossy()),
        attempt: call.attempt,
        deadline_ms,
        traceparent: call.trace.map(|trace| trace.to_traceparent()),
        shutdown: false,
    };
    write_line(&task, lines)
}

/// Appends the line that answers a task.
pub(crate) fn write_reply(reply: Reply, lines: &mut Vec<u8>) -> Result<(), Failure> {
    let (value, failure) = match reply {
        Ok(value) => (Some(value), None),
        Err(failure) => (None, Some(failure)),
    };
    let retry = failure.as_ref().map(|failure| failure.retry);
    let error = failure.map(|failure| LineError::Full {
        kind: Some(failure.kind),
        message: Some(failure.message),
        traceback: failure.traceback,
    });
    write_line(&ChildLine { ok: value.as_deref(), error, retry, ..ChildLine::default() }, lines)
}

fn write_line(fields: &impl Serialize, lines: &mut Vec<u8>) -> Result<(), Failure> {
    let start = lines.len();
    if let Err(error) = serde_json::to_writer(&mut *lines, fields) {
        lines.truncate(start);
        return Err(Failure::fatal("bad_arguments", format!("no line can be made of it: {error}")));
    }
    // A line end in raw JSON is white space between two tokens: within a string it cannot stand.
    for byte in lines.iter_mut().skip(start).filter(|byte| matches!(byte, b'\n' | b'\r')) {
        *byte = b' ';
    }
    lines.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: &str) {
        let parsed = match parse(line.as_bytes()) {
            Ok(ChildMessage::Reply(Ok(value))) => format!("ok {}", value.get()),
            Ok(ChildMessage::Reply(Err(f))) => {
                format!("error {} {} {} {}", f.kind, f.message, f.retry, f.traceback.unwrap_or_default())
            }
            Ok(message) => format!("{message:?}"),
            Err(wrong) => format!("wrong {wrong}"),
        };
        assert!(parsed.starts_with(expected), "{line}: {parsed}");
    }

    #[test]
    fn a_line_of_a_child_is_parsed() {
        check(r#"{"ok": {"a": 1e400}}"#, r#"ok {"a": 1e400}"#);
        check(r#"{"ok": null}"#, "ok null");
        check(r#"{"error": {"type": "E", "message": "m", "traceback": "t"}, "retry": false}"#, "error E m false t");
        check(r#"{"error": "m"}"#, "error error m true");
        check(r#"{"progress": 0.5, "note": "half\n"}"#, r#"Progress(Some(0.5), Some("half\n"))"#);
        check(r#"{"ready": true}"#, "Ready");
        check("hello", "wrong \"hello\" is no line of JSON");
        check(r#"{"progress": "half"}"#, "wrong \"{\\\"progress\\\": \\\"half\\\"}\" is not an answer (invalid type");
        check("{}", "wrong");
        check("\u{0}", "wrong");
    }

    #[test]
    fn a_reply_is_one_line_that_parses_back() {
        let mut line = Vec::new();
        write_reply(Ok(RawValue::from_string("[1,\n2]".to_owned()).unwrap()), &mut line).unwrap();
        assert_eq!(line, b"{\"ok\":[1, 2]}\n");
        line.clear();
        write_reply(Err(Failure::fatal("E", "m\n")), &mut line).unwrap();
        check(std::str::from_utf8(&line).unwrap(), "error E m\n false");
    }

    #[test]
    fn a_task_is_one_line() {
        let call = Call::for_test("a \"b\"", "{\n\"n\": [1,\r\n2]}");
        let mut line = Vec::new();
        write_task(&call, "resize", 9, &mut line).unwrap();
        let expected = r#"{"id":"a \"b\"","kind":"resize","args":{ "n": [1,  2]},"attempt":1,"deadline_ms":9}"#;
        assert_eq!(std::str::from_utf8(&line).unwrap(), format!("{expected}\n"));
        let large = Call { file: Some("/tmp/\"x".into()), ..Call::for_test("a", "") };
        line.clear();
        write_task(&large, "resize", 9, &mut line).unwrap();
        let task: TaskLine<'_> = serde_json::from_slice(&line).unwrap();
        assert_eq!((task.file.as_deref(), task.args.is_none()), (Some("/tmp/\"x"), true));
        assert_eq!(
            write_task(&Call::for_test("a", "{nope"), "resize", 9, &mut line).unwrap_err().kind,
            "bad_arguments"
        );
    }
}

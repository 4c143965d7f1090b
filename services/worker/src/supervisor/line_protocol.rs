//! The lines of JSON between a worker and a warm child: [`TaskLine`] goes to the child, [`ChildLine`] comes back. Both
//! sides are here: the worker's, and that of a Rust program that runs its own handler as a child. docs/handlers.md
//! explains the lines to those who write handlers.

use std::borrow::Cow;

use millpond::limits::RESULT_BYTES_MAX;
use millpond::outcome::Failure;
use millpond::payload::without_mark;
use serde::de::{Error, Visitor};
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
    #[serde(default, skip_serializing, deserialize_with = "share")]
    progress: Option<f64>,
    #[serde(default, skip_serializing)]
    note: Option<Text>,
}

/// Reads a field that is there; `null` is a value too.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// How far a task is, from 0 to 1, whatever number it is told by.
fn share<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    let said = <&RawValue>::deserialize(from)?.get();
    if said.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return Ok(said.parse().ok().map(|number: f64| number.clamp(0.0, 1.0)));
    }
    serde_json::from_str(said).map_err(D::Error::custom)
}

/// A text of a child. A lone surrogate, which Python and JavaScript write of a name that is no text or of half a character, becomes
/// U+FFFD.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct AnyText;
        impl Visitor<'_> for AnyText {
            type Value = Text;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text, E> {
                Ok(Text(String::from_utf8_lossy(bytes).into_owned()))
            }
        }
        // As bytes, the parser lets surrogates pass.
        from.deserialize_bytes(AnyText)
    }
}

/// An error of a handler.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct ErrorFields {
    #[serde(rename = "type")]
    kind: Option<Text>,
    message: Option<Text>,
    traceback: Option<Text>,
}

/// An error of a handler, or just its message.
#[derive(Serialize)]
#[serde(transparent)]
struct LineError(ErrorFields);

impl<'de> Deserialize<'de> for LineError {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let said = <&RawValue>::deserialize(from)?.get();
        let fields = if said.starts_with('"') {
            serde_json::from_str(said).map(|message| ErrorFields { message: Some(message), ..ErrorFields::default() })
        } else {
            serde_json::from_str(said)
        };
        fields.map(Self).map_err(D::Error::custom)
    }
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
    let line = without_mark(line);
    let fields: ChildLine<'_> = serde_json::from_slice(line).map_err(|error| {
        let problem = if error.is_data() { "not an answer" } else { "no line of JSON" };
        format!("{:?} is {problem} ({error})", quoted(line))
    })?;
    if let Some(value) = fields.ok {
        return Ok(ChildMessage::Reply(Ok(value.to_owned())));
    }
    if let Some(LineError(ErrorFields { kind, message, traceback })) = fields.error {
        let kind = kind.map_or_else(|| "error".to_owned(), |kind| kind.0);
        let mut failure = Failure::new(kind, message.unwrap_or_default().0);
        failure.retry = fields.retry.unwrap_or(true);
        failure.traceback = traceback.map(|text| text.0);
        return Ok(ChildMessage::Reply(Err(failure)));
    }
    if fields.ready == Some(true) {
        return Ok(ChildMessage::Ready);
    }
    if fields.progress.is_some() || fields.note.is_some() {
        return Ok(ChildMessage::Progress(fields.progress, fields.note.map(|text| text.0)));
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
    let error = failure.map(|failure| {
        LineError(ErrorFields {
            kind: Some(Text(failure.kind)),
            message: Some(Text(failure.message)),
            traceback: failure.traceback.map(Text),
        })
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
    use std::ops::Add;

    use bytes::Bytes;

    use super::*;
    use crate::supervisor::child_logs::log;
    use crate::supervisor::child_status::ChildStatus;

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
        check("\u{feff}{\"ok\": 1.0}", "ok 1.0");
        for exact in ["18446744073709551617", r#"{"a":1,"a":2}"#, r#""\ud800""#, &"[".repeat(200).add(&"]".repeat(200))]
        {
            check(&format!(r#"{{"ok":{exact}}}"#), &format!("ok {exact}"));
        }
        check(r#"{"error": {"type": "E", "message": "m", "traceback": "t"}, "retry": false}"#, "error E m false t");
        check(r#"{"error": "m"}"#, "error error m true");
        check(r#"{"progress": 0.5, "note": "half\n"}"#, r#"Progress(Some(0.5), Some("half\n"))"#);
        check(
            r#"{"error": {"type": "E\ud800", "message": "caf\udce9", "traceback": "t"}, "retry": false}"#,
            "error E\u{fffd}",
        );
        check(r#"{"error": "\udce9 no"}"#, "error error \u{fffd}");
        check(r#"{"progress": 1e400, "note": "\ud800"}"#, "Progress(Some(1.0)");
        check(r#"{"progress": null, "note": "n"}"#, "Progress(None, Some(\"n\"))");
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
    fn fuzz_lines() {
        let corpus = [
            r#"{"ok": {"a": 1e400}}"#,
            r#"{"error": {"type": "E", "message": "m", "traceback": "t"}, "retry": false}"#,
            r#"{"error": "m"}"#,
            r#"{"progress": 0.5, "note": "half\n"}"#,
            r#"{"ready": true}"#,
            r#"{"id":"a","kind":"k","args":{"n":1.0},"attempt":1,"deadline_ms":9,"traceparent":"00-t"}"#,
        ];
        crate::storm::storm("lines", &corpus, |input| {
            match parse(input) {
                Ok(ChildMessage::Reply(Ok(value))) => assert!(serde_json::from_str::<&RawValue>(value.get()).is_ok()),
                Ok(ChildMessage::Progress(progress, _)) => assert!(progress.is_none_or(f64::is_finite)),
                Ok(_) => {}
                Err(wrong) => assert!(wrong.len() < QUOTED_BYTES_MAX * 12 + 500, "{}", wrong.len()),
            }
            let _ = serde_json::from_slice::<TaskLine<'_>>(input);
            log(&ChildStatus::new("w", "k", 1, 0, 0), &Bytes::copy_from_slice(input));
        });
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

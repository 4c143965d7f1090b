//! The lines of JSON between a worker and a warm child: [`TaskLine`] goes to the child, [`ChildLine`] comes back. Both
//! sides are here: the worker's, and that of a Rust program that runs its own handler as a child. docs/handlers.md
//! explains the lines to those who write handlers.

use std::borrow::Cow;
use std::fmt;

use data_encoding::BASE64;
use millpond::limits::RESULT_BYTES_MAX;
use millpond::outcome::Failure;
use millpond::payload::without_mark;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::call::{Call, Reply, reply};

/// The line that tells a child to shut down, before anything that ends it.
pub(crate) const SHUTDOWN_LINE: &[u8] = b"{\"shutdown\":true}\n";
/// Longest line that a child may write to standard output, in bytes: a result and its frame.
pub(crate) const CHILD_LINE_BYTES_MAX: usize = RESULT_BYTES_MAX + 64 * 1024;
/// Bytes of a wrong line that the failure of its task repeats.
const QUOTED_BYTES_MAX: usize = 200;
/// A JSON object with one of these keys is said to the worker; any other line is one of the log.
const KEYS: [&str; 5] = ["ok", "error", "progress", "note", "ready"];

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
    pub(crate) deadline_ms: i64,
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
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    error: Option<Cow<'a, RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry: Option<bool>,
    #[serde(default, skip_serializing)]
    ready: Option<bool>,
    #[serde(default, skip_serializing, deserialize_with = "share")]
    progress: Option<f64>,
    #[serde(default, skip_serializing)]
    note: Option<LineText>,
    /// A span of its handler, OTLP in base64.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    otlp_span: Option<Cow<'a, str>>,
}

/// A text. What is no character in it (half of a surrogate pair, which Python and JavaScript write for a file name that is
/// not UTF-8 or a text that was cut) becomes U+FFFD: an error stays itself.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct LineText(String);

impl<'de> Deserialize<'de> for LineText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl Visitor<'_> for TextVisitor {
            type Value = LineText;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("a text")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<LineText, E> {
                Ok(LineText(lossy(bytes)))
            }
        }
        // Of bytes, serde_json does not ask that they are UTF-8.
        from.deserialize_bytes(TextVisitor)
    }
}

/// The bytes as text; each half of a surrogate pair, and all else that is not UTF-8, as U+FFFD.
fn lossy(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut surrogate_bytes = 0;
    for chunk in bytes.utf8_chunks() {
        if !chunk.valid().is_empty() {
            surrogate_bytes = 0;
        }
        text.push_str(chunk.valid());
        match chunk.invalid() {
            [] => {}
            // Half of a pair has three bytes, the first of which is 0xED. Each is a chunk of its own.
            [0xed] => {
                text.push(char::REPLACEMENT_CHARACTER);
                surrogate_bytes = 2;
            }
            [0x80..=0xbf] if surrogate_bytes > 0 => surrogate_bytes -= 1,
            _ => text.push(char::REPLACEMENT_CHARACTER),
        }
    }
    text
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

/// An error of a handler.
#[derive(Default, Serialize, Deserialize)]
struct LineError {
    #[serde(rename = "type", default)]
    kind: Option<LineText>,
    #[serde(default)]
    message: Option<LineText>,
    #[serde(default)]
    traceback: Option<LineText>,
}

impl LineError {
    /// Reads an error, or just its message.
    fn parse(error: &RawValue) -> Result<Self, serde_json::Error> {
        if error.get().starts_with('"') {
            return Ok(Self { message: Some(serde_json::from_str(error.get())?), ..Self::default() });
        }
        serde_json::from_str(error.get())
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
    /// A span of its handler, encoded.
    Span(Vec<u8>),
}

/// Parses a line of a child. None: it says nothing to the worker, and is a line of the log.
///
/// # Errors
/// A text that says what is wrong with a line that was meant for the worker.
pub(crate) fn parse(line: &[u8]) -> Result<Option<ChildMessage>, String> {
    let line = without_mark(line);
    if !line.trim_ascii_start().starts_with(b"{") {
        return Ok(None);
    }
    // Bytes that are not UTF-8 may stand in the text of an error.
    let text = String::from_utf8_lossy(line);
    let wrong = |error: serde_json::Error| {
        let problem = if error.is_data() { "not an answer" } else { "no line of JSON" };
        format!("{:?} is {problem} ({error})", quoted(line))
    };
    let fields: ChildLine<'_> = match serde_json::from_str(&text) {
        Ok(fields) => fields,
        Err(error) => return if has_key(&text) { Err(wrong(error)) } else { Ok(None) },
    };
    if let Some(value) = fields.ok {
        if matches!(text, Cow::Owned(_)) {
            return Err(format!("{:?} is no line of JSON (it is not UTF-8)", quoted(line)));
        }
        return Ok(Some(ChildMessage::Reply(Ok(value.to_owned()))));
    }
    if let Some(error) = fields.error {
        let LineError { kind, message, traceback } = LineError::parse(&error).map_err(wrong)?;
        let text_of = |text: Option<LineText>| text.map(|text| text.0);
        let kind = text_of(kind).unwrap_or_else(|| "error".to_owned());
        let mut failure = Failure::new(kind, text_of(message).unwrap_or_default());
        failure.retry = fields.retry.unwrap_or(true);
        failure.traceback = text_of(traceback);
        return Ok(Some(ChildMessage::Reply(Err(failure))));
    }
    if fields.ready == Some(true) {
        return Ok(Some(ChildMessage::Ready));
    }
    if fields.progress.is_some() || fields.note.is_some() {
        return Ok(Some(ChildMessage::Progress(fields.progress, fields.note.map(|note| note.0))));
    }
    if let Some(span) = fields.otlp_span.and_then(|text| BASE64.decode(text.as_bytes()).ok()) {
        return Ok(Some(ChildMessage::Span(span)));
    }
    if has_key(&text) { Err(format!("{:?} has none of ok, error, progress, ready", quoted(line))) } else { Ok(None) }
}

/// Whether a text that begins as a JSON object has one of the protocol's keys, also where it is not JSON to its end.
fn has_key(text: &str) -> bool {
    let (mut depth, mut rest) = (0_usize, text);
    while let Some(at) = rest.find(['{', '[', '}', ']', '"']) {
        let (found, after) = rest.split_at(at).1.split_at(1);
        rest = after;
        match found {
            "{" | "[" => depth += 1,
            "}" | "]" => depth = depth.saturating_sub(1),
            _ => {
                let Some(end) = end_of_string(rest) else { return false };
                let (string, after) = rest.split_at(end);
                rest = after.get(1..).unwrap_or_default();
                if depth == 1 && KEYS.contains(&string) && rest.trim_start().starts_with(':') {
                    return true;
                }
            }
        }
    }
    false
}

/// Where a string ends that began before `text`.
fn end_of_string(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// Whether the start of a line that is too long was meant for the worker.
pub(crate) fn is_for_worker(start: &[u8]) -> bool {
    let start = start.get(..QUOTED_BYTES_MAX).unwrap_or(start);
    start.trim_ascii_start().starts_with(b"{") && has_key(&String::from_utf8_lossy(start))
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

/// Appends the line that tells how far a task is: a share from 0 to 1, and a note.
pub(crate) fn write_progress(share: f64, note: &str, lines: &mut Vec<u8>) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct ProgressLine<'a> {
        progress: f64,
        note: &'a str,
    }
    write_line(&ProgressLine { progress: share, note }, lines)
}

/// Appends the line that tells a span of the handler.
pub(crate) fn write_span(span: &[u8], lines: &mut Vec<u8>) -> Result<(), Failure> {
    write_line(&ChildLine { otlp_span: Some(BASE64.encode(span).into()), ..ChildLine::default() }, lines)
}

/// Appends the line that answers a task.
pub(crate) fn write_reply(answer: Reply, lines: &mut Vec<u8>) -> Result<(), Failure> {
    let (value, failure) = match answer {
        Ok(value) => (Some(value), None),
        Err(failure) => (None, Some(failure)),
    };
    let retry = failure.as_ref().map(|failure| failure.retry);
    let error = failure.map(|failure| LineError {
        kind: Some(LineText(failure.kind)),
        message: Some(LineText(failure.message)),
        traceback: failure.traceback.map(LineText),
    });
    let error = error.map(|error| reply(&error)).transpose()?.map(Cow::Owned);
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
        check_bytes(line.as_bytes(), expected);
    }

    fn check_bytes(line: &[u8], expected: &str) {
        let parsed = match parse(line) {
            Ok(None) => "log".to_owned(),
            Ok(Some(ChildMessage::Reply(Ok(value)))) => format!("ok {}", value.get()),
            Ok(Some(ChildMessage::Reply(Err(f)))) => {
                format!("error {} {} {} {}", f.kind, f.message, f.retry, f.traceback.unwrap_or_default())
            }
            Ok(Some(message)) => format!("{message:?}"),
            Err(wrong) => format!("wrong {wrong}"),
        };
        assert!(parsed.starts_with(expected), "{}: {parsed}", line.escape_ascii());
    }

    #[test]
    fn a_line_of_a_child_is_parsed() {
        check(r#"{"ok": {"a": 1e400}}"#, r#"ok {"a": 1e400}"#);
        check(r#"{"ok": null}"#, "ok null");
        check("\u{feff}{\"ok\": 1.0}", "ok 1.0");
        for exact in ["18446744073709551617", r#"{"a":1,"a":2}"#, &"[".repeat(200).add(&"]".repeat(200))] {
            check(&format!(r#"{{"ok":{exact}}}"#), &format!("ok {exact}"));
        }
        check(r#"{"ok": "\ud83d"}"#, r#"ok "\ud83d""#);
        check(r#"{"error": {"type": "E", "message": "m", "traceback": "t"}, "retry": false}"#, "error E m false t");
        check(r#"{"error": "m"}"#, "error error m true");
        check(r#"{"progress": 0.5, "note": "half\n"}"#, r#"Progress(Some(0.5), Some("half\n"))"#);
        check(r#"{"progress": 1e400, "note": "\ud800"}"#, "Progress(Some(1.0)");
        check(r#"{"progress": null, "note": "n"}"#, "Progress(None, Some(\"n\"))");
        check(r#"{"ready": true}"#, "Ready");
        check(r#"{"otlp_span": "AQI="}"#, "Span([1, 2])");
        check(r#"{"progress": "half"}"#, "wrong \"{\\\"progress\\\": \\\"half\\\"}\" is not an answer (invalid type");
    }

    #[test]
    fn what_is_no_character_does_not_change_what_an_error_is() {
        let line = r#"{"error": {"type": "E", "message": "a \udce9 \ud83d\ude00 \ud83d!", "traceback": "\udce9"}, "retry": false}"#;
        check(line, "error E a \u{fffd} \u{1f600} \u{fffd}! false \u{fffd}");
        check(r#"{"progress": 1, "note": "\udce9"}"#, "Progress(Some(1.0), Some(\"\u{fffd}\"))");
        check_bytes(b"{\"error\": \"caf\xe9\"}", "error error caf\u{fffd} true");
        check_bytes(b"{\"ok\": \"caf\xe9\"}", "wrong");
    }

    #[test]
    fn a_line_that_is_not_for_the_worker_is_one_of_the_log() {
        for line in [
            "hello",
            "",
            "{}",
            r#"{"otlp_span": "no base64"}"#,
            "\u{0}",
            "12",
            "[1]",
            "{nope",
            "{\"level\": \"info\", \"message\": {\"ok\": 1}}",
        ] {
            check(line, "log");
        }
        for line in
            [r#"{"ok": NaN}"#, r#"{"id": "a\"", "ok": }"#, r#"{"error": 5}"#, r#"{"ready": false}"#, r#"{"ok": 1"#]
        {
            check(line, "wrong");
        }
        assert!(is_for_worker(br#" {"ok": "xxx"#) && !is_for_worker(b"xxx") && !is_for_worker(br#"{"x": {"ok": "#));
    }

    #[test]
    fn a_reply_is_one_line_that_parses_back() {
        let mut line = Vec::new();
        write_reply(Ok(RawValue::from_string("[1,\n2]".to_owned()).unwrap()), &mut line).unwrap();
        assert_eq!(line, b"{\"ok\":[1, 2]}\n");
        line.clear();
        write_span(&[1, 2], &mut line).unwrap();
        assert_eq!(line, b"{\"otlp_span\":\"AQI=\"}\n");
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
                Ok(Some(ChildMessage::Reply(Ok(value)))) => {
                    assert!(serde_json::from_str::<&RawValue>(value.get()).is_ok())
                }
                Ok(Some(ChildMessage::Progress(progress, _))) => assert!(progress.is_none_or(f64::is_finite)),
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

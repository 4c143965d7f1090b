//! The lines between the worker and a child: bounded reading, and what a line says. docs/handlers.md is the text for
//! those who write handlers.

use std::borrow::Cow;

use bytes::{Buf, Bytes, BytesMut};
use millpond::outcome::Failure;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::ChildStderr;

use crate::call::{Call, Reply};

/// Told to a child before anything that ends it.
pub(crate) const SHUTDOWN_LINE: &[u8] = b"{\"shutdown\":true}\n";
/// What one read takes.
const READ_BYTES: usize = 64 * 1024;
/// What a pipe holds (pipe(7)).
const PIPE_BYTES: usize = 64 * 1024;
/// What one read takes where most find nothing.
const PIECE_BYTES: usize = 4 * 1024;

/// What a reader found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A line without its end.
    Line(Bytes),
    /// The line is longer than allowed: these are its first bytes. The next piece follows.
    TooLong(Bytes),
    /// Nothing more comes.
    End,
}

/// Reads lines of bounded length.
pub(crate) struct Lines<R> {
    from: R,
    buffer: BytesMut,
    /// Bytes of `buffer` that hold no line end, as far as was looked.
    looked: usize,
    bytes_max: usize,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(from: R, bytes_max: usize) -> Self {
        Self { from, buffer: BytesMut::new(), looked: 0, bytes_max, ended: false }
    }

    /// The next line.
    ///
    /// # Cancel safety
    /// Safe: what was read stays in the buffer.
    pub(crate) async fn next(&mut self) -> Found {
        loop {
            if let Some(found) = self.buffered() {
                return found;
            }
            if self.ended {
                return self.rest();
            }
            self.buffer.reserve(READ_BYTES);
            if !matches!(self.from.read_buf(&mut self.buffer).await, Ok(n) if n > 0) {
                self.ended = true;
            }
        }
    }

    /// Whether nothing more comes.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended && self.buffer.is_empty()
    }

    /// A line that was read already.
    pub(crate) fn buffered(&mut self) -> Option<Found> {
        let end = self.buffer.get(self.looked..)?.iter().position(|b| *b == b'\n');
        let Some(end) = end.map(|n| n + self.looked).filter(|end| *end <= self.bytes_max) else {
            self.looked = self.buffer.len();
            if end.is_none() && self.buffer.len() <= self.bytes_max {
                return None;
            }
            self.looked = 0;
            return Some(Found::TooLong(self.buffer.split_to(self.bytes_max.min(self.buffer.len())).freeze()));
        };
        self.looked = 0;
        let line = self.buffer.split_to(end).freeze();
        self.buffer.advance(1);
        Some(Found::Line(line))
    }

    /// A last line without an end.
    fn rest(&mut self) -> Found {
        if self.buffer.is_empty() { Found::End } else { Found::Line(self.buffer.split().freeze()) }
    }
}

impl Lines<ChildStderr> {
    /// Reads what was written until now. The runtime may hear of it later than of what was written after it elsewhere.
    pub(crate) fn read_written(&mut self) {
        let mut piece = [0; PIECE_BYTES];
        for _ in 0..PIPE_BYTES / PIECE_BYTES {
            // Our end of the pipe does not block: where nothing is, that is an error. Its end is left to `next`.
            let Ok(bytes) = nix::unistd::read(&self.from, &mut piece) else { return };
            self.buffer.extend_from_slice(piece.get(..bytes).unwrap_or_default());
            if bytes < PIECE_BYTES {
                return;
            }
        }
    }
}

/// What a child says in one line.
#[derive(Debug)]
pub(crate) enum Said {
    /// It has started.
    Ready,
    /// How far its task is, from 0 to 1.
    Progress(Option<f64>, Option<String>),
    /// How its task ended.
    Answer(Reply),
}

/// A line as it comes.
#[derive(Deserialize)]
struct Spoken<'a> {
    #[serde(default, borrow, deserialize_with = "some_raw")]
    ok: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<SpokenError>,
    #[serde(default)]
    retry: Option<bool>,
    #[serde(default)]
    ready: Option<bool>,
    #[serde(default)]
    progress: Option<f64>,
    #[serde(default, borrow)]
    note: Option<Cow<'a, str>>,
}

/// `null` is a value too.
fn some_raw<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// An error, or just its message.
#[derive(Deserialize)]
#[serde(untagged)]
enum SpokenError {
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

/// Reads a line of a child; an error says what is wrong with it.
pub(crate) fn read(line: &[u8]) -> Result<Said, String> {
    let start = || String::from_utf8_lossy(line.get(..200).unwrap_or(line)).into_owned();
    let spoken: Spoken<'_> = serde_json::from_slice(line).map_err(|error| {
        let what = if error.is_data() { "not an answer" } else { "no line of JSON" };
        format!("{:?} is {what} ({error})", start())
    })?;
    if let Some(value) = spoken.ok {
        return Ok(Said::Answer(Ok(value.to_owned())));
    }
    if let Some(error) = spoken.error {
        let (kind, message, traceback) = match error {
            SpokenError::Message(message) => (None, Some(message), None),
            SpokenError::Full { kind, message, traceback } => (kind, message, traceback),
        };
        let mut failure = Failure::new(kind.unwrap_or_else(|| "error".to_owned()), message.unwrap_or_default());
        failure.retry = spoken.retry.unwrap_or(true);
        failure.traceback = traceback;
        return Ok(Said::Answer(Err(failure)));
    }
    if spoken.ready == Some(true) {
        return Ok(Said::Ready);
    }
    if spoken.progress.is_some() || spoken.note.is_some() {
        return Ok(Said::Progress(spoken.progress, spoken.note.map(Cow::into_owned)));
    }
    Err(format!("{:?} has none of ok, error, progress, ready", start()))
}

/// Appends the line that gives `call` to a child. An error when its arguments are not JSON: such are not given to one.
pub(crate) fn write(call: &Call, kind: &str, deadline_ms: i64, line: &mut Vec<u8>) -> Result<(), Failure> {
    let arguments = match &call.file {
        Some(_) => None,
        None => Some(call.borrowed_args::<&RawValue>()?),
    };
    let text = |value: &str| serde_json::to_string(value).unwrap_or_default();
    line.extend_from_slice(b"{\"id\":");
    line.extend_from_slice(text(&call.id).as_bytes());
    line.extend_from_slice(b",\"kind\":");
    line.extend_from_slice(text(kind).as_bytes());
    if let Some(arguments) = arguments {
        line.extend_from_slice(b",\"args\":");
        // Between the tokens of JSON a line end is white space; within a string it cannot stand.
        line.extend(arguments.get().bytes().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { b }));
    } else if let Some(file) = &call.file {
        line.extend_from_slice(b",\"file\":");
        line.extend_from_slice(text(&file.to_string_lossy()).as_bytes());
    }
    line.extend_from_slice(format!(",\"attempt\":{},\"deadline_ms\":{deadline_ms}", call.attempt).as_bytes());
    if let Some(trace) = call.trace {
        line.extend_from_slice(b",\"traceparent\":\"");
        line.extend_from_slice(trace.to_traceparent().as_bytes());
        line.push(b'"');
    }
    line.extend_from_slice(b"}\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(text: &[u8], bytes_max: usize) -> Vec<Found> {
        let mut lines = Lines::new(text, bytes_max);
        let mut found = Vec::new();
        while found.last() != Some(&Found::End) {
            found.push(lines.next().await);
        }
        found
    }

    #[tokio::test]
    async fn lines_are_bounded_and_none_is_lost() {
        let line = |text: &'static str| Found::Line(Bytes::from(text));
        let long = |text: &'static str| Found::TooLong(Bytes::from(text));
        assert_eq!(all(b"a\n\nbc\nd", 8).await, [line("a"), line(""), line("bc"), line("d"), Found::End]);
        assert_eq!(all(b"abcdefg\nh\n", 3).await, [long("abc"), long("def"), line("g"), line("h"), Found::End]);
        assert_eq!(all(b"abc\n", 3).await, [line("abc"), Found::End]);
    }

    fn check(line: &str, expected: &str) {
        let said = match read(line.as_bytes()) {
            Ok(Said::Answer(Ok(value))) => format!("ok {}", value.get()),
            Ok(Said::Answer(Err(f))) => {
                format!("error {} {} {} {}", f.kind, f.message, f.retry, f.traceback.unwrap_or_default())
            }
            Ok(said) => format!("{said:?}"),
            Err(wrong) => format!("wrong {wrong}"),
        };
        assert!(said.starts_with(expected), "{line}: {said}");
    }

    #[test]
    fn what_a_line_says() {
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
    fn a_task_is_one_line() {
        let call = Call::for_test("a \"b\"", "{\n\"n\": [1,\r\n2]}");
        let mut line = Vec::new();
        write(&call, "resize", 9, &mut line).unwrap();
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["args"]["n"], serde_json::json!([1, 2]));
        assert_eq!(
            (&value["id"], &value["kind"], &value["deadline_ms"]),
            (&"a \"b\"".into(), &"resize".into(), &9.into())
        );
        let large = Call { file: Some("/tmp/\"x".into()), ..Call::for_test("a", "") };
        line.clear();
        write(&large, "resize", 9, &mut line).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!((&value["file"], value.get("args")), (&"/tmp/\"x".into(), None));
        assert_eq!(write(&Call::for_test("a", "{nope"), "resize", 9, &mut line).unwrap_err().kind, "bad_arguments");
    }
}

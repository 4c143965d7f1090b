//! Reads the log lines of a child from its standard error. The lines of a traceback stay together: they are one event of the
//! log, so that those of another child do not come between them.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::process::ChildStderr;
use tokio::time::{Instant as Clock, sleep_until};

use super::child_logs::LOG_LINE_BYTES_MAX;
use super::line_reader::{LineReader, ReadLine};

/// How long a line that may begin a traceback waits for the next one.
const NEXT_LINE_WITHIN: Duration = Duration::from_millis(50);
/// The first line of a traceback of Python. Its last line is not indented.
const PYTHON: &[u8] = b"Traceback (most recent call last):";
/// Words of a line that may begin a traceback.
const BEGINNINGS: [&[u8]; 6] = [PYTHON, b"Error", b"Exception", b"panic", b"goroutine ", b"Caused by"];
/// Lines of a traceback that are not indented.
const BETWEEN: [&[u8]; 4] = [PYTHON, b"Caused by", b"During handling of the above", b"The above exception"];

/// A reader of log lines.
pub(crate) struct LogReader {
    lines: LineReader<ChildStderr>,
    /// The lines of a traceback so far.
    group: BytesMut,
    /// The traceback is of Python, and its last line has not come yet.
    is_python: bool,
    /// When the group is complete, whatever comes.
    until: Clock,
    /// The line behind the group.
    next: Option<ReadLine>,
}

impl LogReader {
    pub(crate) fn new(stderr: ChildStderr) -> Self {
        let lines = LineReader::new(stderr, LOG_LINE_BYTES_MAX);
        Self { lines, group: BytesMut::new(), is_python: false, until: Clock::now(), next: None }
    }

    /// Waits for the next line, or the next lines that belong together.
    ///
    /// # Cancel safety
    /// Safe: what was read is kept.
    pub(crate) async fn next(&mut self) -> ReadLine {
        loop {
            let line = match self.next.take() {
                Some(line) => line,
                None if self.group.is_empty() => self.lines.next().await,
                None => tokio::select! {
                    biased;
                    line = self.lines.next() => line,
                    () = sleep_until(self.until) => return self.take_group(),
                },
            };
            if let Some(line) = self.join(line) {
                return line;
            }
        }
    }

    /// Whether nothing more comes.
    pub(crate) fn has_ended(&self) -> bool {
        self.lines.has_ended() && self.group.is_empty() && self.next.is_none()
    }

    /// Reads what was written until now, without waiting.
    pub(crate) fn read_written(&mut self) {
        self.lines.read_written();
    }

    /// What was read already.
    pub(crate) fn buffered(&mut self) -> Option<ReadLine> {
        loop {
            match self.next.take().or_else(|| self.lines.buffered()) {
                Some(line) => {
                    if let Some(line) = self.join(line) {
                        return Some(line);
                    }
                }
                None if self.group.is_empty() => return None,
                None => return Some(self.take_group()),
            }
        }
    }

    /// Joins a line to the group; what is complete by that.
    fn join(&mut self, line: ReadLine) -> Option<ReadLine> {
        let ReadLine::Line(text) = &line else { return self.behind_group(line) };
        if self.group.is_empty() {
            // A line of JSON is whole, whatever it tells of.
            if text.starts_with(b"{") || !BEGINNINGS.iter().any(|word| contains(text, word)) {
                return Some(line);
            }
            self.until = Clock::now() + NEXT_LINE_WITHIN;
            self.add(text);
            return None;
        }
        if !self.continues(text) || self.group.len() + text.len() > LOG_LINE_BYTES_MAX {
            return self.behind_group(line);
        }
        self.add(text);
        None
    }

    fn continues(&self, line: &[u8]) -> bool {
        let is_indented = line.first().is_none_or(u8::is_ascii_whitespace);
        is_indented || self.is_python || BETWEEN.iter().any(|word| line.starts_with(word))
    }

    fn add(&mut self, line: &Bytes) {
        if !self.group.is_empty() {
            self.group.extend_from_slice(b"\n");
        }
        self.is_python = if contains(line, PYTHON) {
            true
        } else {
            self.is_python && line.first().is_none_or(u8::is_ascii_whitespace)
        };
        self.group.extend_from_slice(line);
    }

    /// Keeps what is not of the group until the group was taken.
    fn behind_group(&mut self, line: ReadLine) -> Option<ReadLine> {
        if self.group.is_empty() {
            return Some(line);
        }
        self.next = Some(line);
        Some(self.take_group())
    }

    fn take_group(&mut self) -> ReadLine {
        self.is_python = false;
        ReadLine::Line(self.group.split().freeze())
    }
}

fn contains(line: &[u8], word: &[u8]) -> bool {
    line.windows(word.len()).any(|window| window == word)
}

//! Reads lines of bounded length from a pipe, so that no child can fill the worker's memory with a line that never ends.

use std::os::fd::AsFd;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes that one read takes.
const READ_BYTES: usize = 64 * 1024;
/// Bytes that a pipe holds (pipe(7)).
const PIPE_BYTES: usize = 64 * 1024;
/// Bytes that one read takes where most reads find nothing.
const PIECE_BYTES: usize = 4 * 1024;

/// What one read of a line found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReadLine {
    /// A line without its line end.
    Line(Bytes),
    /// The first bytes of a line that is longer than allowed. Its next piece follows.
    TooLong(Bytes),
    /// The writer has closed its end, and everything was read.
    End,
}

/// A reader of lines.
pub(crate) struct LineReader<R> {
    from: R,
    buffer: BytesMut,
    /// The first bytes of `buffer` that were searched already and hold no line end.
    searched: usize,
    bytes_max: usize,
    ended: bool,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    pub(crate) fn new(from: R, bytes_max: usize) -> Self {
        Self { from, buffer: BytesMut::new(), searched: 0, bytes_max, ended: false }
    }

    /// Waits for the next line.
    ///
    /// # Cancel safety
    /// Safe: what was read stays in the buffer.
    pub(crate) async fn next(&mut self) -> ReadLine {
        loop {
            if let Some(line) = self.buffered() {
                return line;
            }
            if self.ended {
                return self.unended_line();
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

    /// Whether nothing is in the buffer.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// What is in the buffer, when no line ends in it.
    pub(crate) fn unfinished(&self) -> &[u8] {
        if self.searched == self.buffer.len() { &self.buffer } else { &[] }
    }

    /// A line that is in the buffer already.
    pub(crate) fn buffered(&mut self) -> Option<ReadLine> {
        let end = self.buffer.get(self.searched..)?.iter().position(|b| *b == b'\n');
        let Some(end) = end.map(|n| n + self.searched).filter(|end| *end <= self.bytes_max) else {
            self.searched = self.buffer.len();
            if end.is_none() && self.buffer.len() <= self.bytes_max {
                return None;
            }
            self.searched = 0;
            return Some(ReadLine::TooLong(self.buffer.split_to(self.bytes_max.min(self.buffer.len())).freeze()));
        };
        self.searched = 0;
        let line = self.buffer.split_to(end).freeze();
        self.buffer.advance(1);
        Some(ReadLine::Line(line))
    }

    /// The last line, when the writer did not end it.
    fn unended_line(&mut self) -> ReadLine {
        if self.buffer.is_empty() { ReadLine::End } else { ReadLine::Line(self.buffer.split().freeze()) }
    }
}

impl<R: AsFd> LineReader<R> {
    /// Reads what was written until now, without waiting. The runtime may be woken for this pipe later than for another
    /// pipe to which the child wrote afterwards.
    pub(crate) fn read_written(&mut self) {
        let mut piece = [0; PIECE_BYTES];
        for _ in 0..PIPE_BYTES / PIECE_BYTES {
            // This end of the pipe does not block: an empty pipe is an error. Its end is left to `next`.
            let Ok(bytes) = nix::unistd::read(&self.from, &mut piece) else { return };
            self.buffer.extend_from_slice(piece.get(..bytes).unwrap_or_default());
            if bytes < PIECE_BYTES {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(text: &[u8], bytes_max: usize) -> Vec<ReadLine> {
        let mut lines = LineReader::new(text, bytes_max);
        let mut read = Vec::new();
        while read.last() != Some(&ReadLine::End) {
            read.push(lines.next().await);
        }
        read
    }

    #[tokio::test]
    async fn lines_are_bounded_and_none_is_lost() {
        let line = |text: &'static str| ReadLine::Line(Bytes::from(text));
        let long = |text: &'static str| ReadLine::TooLong(Bytes::from(text));
        assert_eq!(all(b"a\n\nbc\nd", 8).await, [line("a"), line(""), line("bc"), line("d"), ReadLine::End]);
        assert_eq!(all(b"abcdefg\nh\n", 3).await, [long("abc"), long("def"), line("g"), line("h"), ReadLine::End]);
        assert_eq!(all(b"abc\n", 3).await, [line("abc"), ReadLine::End]);
    }
}

//! What a guard tells its worker beside its exit code, over a pipe of its own: that it can be asked, how much memory all below it
//! need for themselves (it is asked by [`MEASURE`]), and the most that one of them had. The guard reads it, because it runs as the
//! user of its child, and the worker may not look into processes of others.

use std::io::{self, PipeWriter};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::unix::pipe;

/// The signal that has a guard read the memory of all below it.
pub(super) const MEASURE: Signal = Signal::SIGUSR2;
/// How long a guard may take to answer: the kernel walks over all pages.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Bytes that are read at once.
const PIECE_BYTES: usize = 256;

/// A line of a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReportLine {
    /// It can be asked from now on.
    Ready,
    /// All below it need so many bytes for themselves.
    Memory(u64),
    /// One process below it, the largest, had so many bytes resident.
    Peak(u64),
}

impl ReportLine {
    pub(super) fn to_text(self) -> String {
        match self {
            Self::Ready => "ready\n".to_owned(),
            Self::Memory(bytes) => format!("memory {bytes}\n"),
            Self::Peak(bytes) => format!("peak {bytes}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            None => (line == "ready").then_some(Self::Ready),
            Some(("memory", bytes)) => bytes.parse().ok().map(Self::Memory),
            Some(("peak", bytes)) => bytes.parse().ok().map(Self::Peak),
            Some(_) => None,
        }
    }
}

/// The worker's end of the pipe.
pub(super) struct GuardReport {
    pipe: pipe::Receiver,
    told: Mutex<Told>,
    /// The other end, which the guard opens. It is kept, so that the pipe does not end.
    _writer: PipeWriter,
}

#[derive(Default)]
struct Told {
    unread: Vec<u8>,
    ready: bool,
    peak: u64,
}

impl GuardReport {
    /// A pipe, and the path under which a guard finds its other end.
    pub(super) fn open() -> Option<(Self, String)> {
        let (reader, writer) = io::pipe().ok()?;
        let pipe = pipe::Receiver::from_owned_fd(reader.into()).ok()?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), writer.as_raw_fd());
        Some((Self { pipe, told: Mutex::default(), _writer: writer }, path))
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what the guard has written; the memory that it has told last.
    fn read(&self) -> Option<u64> {
        let (mut told, mut memory, mut piece) = (self.told(), None, [0; PIECE_BYTES]);
        while let Ok(bytes @ 1..) = self.pipe.try_read(&mut piece) {
            told.unread.extend_from_slice(piece.get(..bytes).unwrap_or_default());
        }
        while let Some(end) = told.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = told.unread.drain(..=end).collect();
            match std::str::from_utf8(&line).ok().and_then(|line| ReportLine::parse(line.trim_end())) {
                Some(ReportLine::Ready) => told.ready = true,
                Some(ReportLine::Memory(bytes)) => memory = Some(bytes),
                Some(ReportLine::Peak(bytes)) => told.peak = bytes,
                None => {}
            }
        }
        memory
    }

    /// Asks the guard for the memory that all below it need for themselves, in bytes. None when it does not answer, or cannot be
    /// asked yet.
    ///
    /// # Cancel safety
    /// Safe: an answer that comes later is not taken for that of another question.
    pub(super) async fn memory(&self, guard: u32) -> Option<u64> {
        self.read();
        if !self.told().ready {
            return None;
        }
        kill(Pid::from_raw(guard.cast_signed()), MEASURE).ok()?;
        let answer = async {
            loop {
                self.pipe.readable().await.ok()?;
                if let Some(bytes) = self.read() {
                    return Some(bytes);
                }
            }
        };
        tokio::time::timeout(ANSWER_WITHIN, answer).await.ok()?
    }

    /// The most memory that one process below had resident, in bytes; 0 before the end.
    pub(super) fn peak(&self) -> u64 {
        self.read();
        self.told().peak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back() {
        for line in [ReportLine::Ready, ReportLine::Memory(7), ReportLine::Peak(u64::MAX)] {
            assert_eq!(ReportLine::parse(line.to_text().trim_end()), Some(line));
        }
        assert_eq!(ReportLine::parse("memory x"), None);
    }
}

//! What a warm child writes beside standard error: answers and log lines. They share standard output until the child writes
//! to the file descriptor that it was given for its answers; from then on all of its standard output is log. For a child that a
//! person sits before (`handler try --debug`) there is no log: what it prints is shown as it comes.

use std::future::pending;
use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use millpond::limits::RESULT_BYTES_MAX;
use millpond::outcome::Failure;
use tokio::net::unix::pipe;
use tokio::process::ChildStdout;

use crate::supervisor::child_process::{ChildProcess, ENV_FD_OUT};
use crate::supervisor::line_protocol::{CHILD_LINE_BYTES_MAX, ChildMessage, is_for_worker, parse, quoted};
use crate::supervisor::line_reader::{LineReader, ReadLine};

/// After what time a line without an end is shown to a person: it is a question.
const QUESTION_AFTER: Duration = Duration::from_millis(50);

/// What a child wrote.
pub(super) enum Output {
    /// A line for the worker.
    Message(ChildMessage),
    /// A line for the worker that is none of the protocol.
    Wrong(Failure),
    /// A line of the log.
    Log(Bytes),
    /// The child has closed its standard output, and has no other one.
    End,
}

/// Where a line was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LineOrigin {
    Stdout,
    Own,
}

/// The output of a warm child.
pub(super) struct ChildOutput {
    stdout: LineReader<ChildStdout>,
    /// The pipe for answers alone.
    own: Option<LineReader<pipe::Receiver>>,
    /// The child has written to it.
    moved: bool,
    /// What comes from standard output is the rest of a line that was too long.
    in_long_line: bool,
    /// A person sits before the child.
    attached: bool,
    /// Bytes of a line without an end that were shown.
    shown: usize,
}

impl ChildOutput {
    /// `None` when the process has no standard output to read.
    pub(super) fn of(process: &mut ChildProcess, attached: bool) -> Option<Self> {
        let stdout = LineReader::new(process.stdout.take()?, CHILD_LINE_BYTES_MAX);
        let own = process.fd_out.take().map(|own| LineReader::new(own, CHILD_LINE_BYTES_MAX));
        Some(Self { stdout, own, moved: false, in_long_line: false, attached, shown: 0 })
    }

    /// Whether nothing more comes.
    pub(super) fn has_ended(&self) -> bool {
        self.stdout.has_ended() && !self.moved
    }

    /// Waits for what the child writes next.
    ///
    /// # Cancel safety
    /// Safe: what was read stays in the buffers.
    pub(super) async fn next(&mut self) -> Output {
        loop {
            if let Some(output) = self.written() {
                return output;
            }
            let (stdout_ended, attached) = (self.stdout.has_ended(), self.attached);
            let own = async {
                match &mut self.own {
                    Some(own) => own.next().await,
                    None => pending().await,
                }
            };
            let read = tokio::select! {
                biased;
                line = own => Some((line, LineOrigin::Own)),
                line = self.stdout.next(), if !stdout_ended => Some((line, LineOrigin::Stdout)),
                () = tokio::time::sleep(QUESTION_AFTER), if attached => None,
            };
            let Some(read) = read else {
                self.show_question();
                continue;
            };
            if let Some(output) = self.take(read) {
                return output;
            }
        }
    }

    /// What is to be shown of a line without an end: not what may become an answer.
    fn question(&self) -> Option<&[u8]> {
        let line = self.stdout.unfinished();
        line.get(self.shown..).filter(|rest| !rest.is_empty() && !line.starts_with(b"{"))
    }

    fn show_question(&mut self) {
        let shown = self.question().map_or(0, |question| {
            show(question);
            question.len()
        });
        self.shown += shown;
    }

    /// Takes a line of a child that a person sits before, and shows what is no answer. An answer may follow a question on its line,
    /// because what is typed does not go through the child's output.
    fn take_attached(&mut self, line: &Bytes) -> Option<Output> {
        let shown = std::mem::take(&mut self.shown);
        let at_brace = |at: &usize| line.get(*at) == Some(&b'{');
        let answers = if self.has_moved() { 0 } else { line.len() };
        let answer = (0..answers).filter(at_brace).find_map(|at| match parse(&line.slice(at..)) {
            Ok(Some(message)) => Some((at, Output::Message(message))),
            Err(wrong) if at == 0 => Some((at, Output::Wrong(bad_output(&wrong)))),
            Ok(None) | Err(_) => None,
        });
        let text_ends = answer.as_ref().map_or(line.len(), |(at, _)| *at);
        show(line.get(shown..text_ends).unwrap_or_default());
        if shown > 0 || text_ends > 0 || answer.is_none() {
            show(b"\n");
        }
        answer.map(|(_, output)| output)
    }

    /// What the child has written until now, without waiting.
    pub(super) fn written(&mut self) -> Option<Output> {
        let line = self.own.as_mut().and_then(LineReader::buffered)?;
        self.take((line, LineOrigin::Own))
    }

    /// The next of what a child that has ended had written.
    pub(super) async fn rest(&mut self) -> Output {
        if let Some(own) = &mut self.own {
            own.read_written();
        }
        if let Some(output) = self.written() {
            return output;
        }
        loop {
            if self.stdout.has_ended() {
                return Output::End;
            }
            let line = self.stdout.next().await;
            if line == ReadLine::End {
                return Output::End;
            }
            if let Some(output) = self.take((line, LineOrigin::Stdout)) {
                return output;
            }
        }
    }

    /// What a line says; none where it says nothing.
    fn take(&mut self, (line, source): (ReadLine, LineOrigin)) -> Option<Output> {
        match source {
            LineOrigin::Own => self.take_own(line),
            LineOrigin::Stdout => self.take_stdout(line),
        }
    }

    fn take_own(&mut self, line: ReadLine) -> Option<Output> {
        match line {
            ReadLine::End => {
                self.own = None;
                None
            }
            ReadLine::TooLong(_) => {
                self.moved = true;
                Some(Output::Wrong(too_long()))
            }
            ReadLine::Line(line) => {
                self.moved = true;
                Some(match parse(&line) {
                    Ok(Some(message)) => Output::Message(message),
                    Ok(None) => Output::Wrong(bad_output(&format!("{:?} is no line for {ENV_FD_OUT}", quoted(&line)))),
                    Err(wrong) => Output::Wrong(bad_output(&wrong)),
                })
            }
        }
    }

    fn take_stdout(&mut self, line: ReadLine) -> Option<Output> {
        match line {
            // A child that answers elsewhere may close it.
            ReadLine::End => (!self.moved).then_some(Output::End),
            ReadLine::TooLong(piece) => {
                let begins = !std::mem::replace(&mut self.in_long_line, true);
                let answers = begins && !self.has_moved() && is_for_worker(&piece);
                Some(if answers { Output::Wrong(too_long()) } else { Output::Log(piece) })
            }
            ReadLine::Line(line) => {
                let ends_long_line = std::mem::take(&mut self.in_long_line);
                if self.attached && !ends_long_line {
                    return self.take_attached(&line);
                }
                if ends_long_line || self.has_moved() {
                    return Some(Output::Log(line));
                }
                Some(match parse(&line) {
                    Ok(Some(message)) => Output::Message(message),
                    Ok(None) => Output::Log(line),
                    Err(wrong) => Output::Wrong(bad_output(&wrong)),
                })
            }
        }
    }

    /// Whether the child answers elsewhere. What it wrote there before this line counts, although the runtime may not have
    /// noticed it yet.
    fn has_moved(&mut self) -> bool {
        if !self.moved
            && let Some(own) = &mut self.own
        {
            own.read_written();
            self.moved = !own.is_empty();
        }
        self.moved
    }

    /// What was written to standard output before an answer that came elsewhere.
    pub(super) fn log_before_answer(&mut self) -> Vec<Bytes> {
        let mut lines = Vec::new();
        if self.moved {
            self.stdout.read_written();
            while let Some(ReadLine::Line(line) | ReadLine::TooLong(line)) = self.stdout.buffered() {
                if self.attached {
                    self.take_attached(&line);
                } else {
                    lines.push(line);
                }
            }
        }
        lines
    }
}

/// Shows a person what the child prints. A terminal that is gone changes nothing.
fn show(text: &[u8]) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text).and_then(|()| stderr.flush());
}

fn too_long() -> Failure {
    let max = RESULT_BYTES_MAX;
    let text = format!("a line of more than {CHILD_LINE_BYTES_MAX} bytes; at most {max} of a result are kept");
    Failure::fatal("result_too_large", text)
}

fn bad_output(wrong: &str) -> Failure {
    Failure::new("bad_output", format!("{wrong}; an answer is one line of JSON with ok or error"))
}

//! A warm child between two assignments: its process, and what its answers so far have shown.

use std::future::pending;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::Stdin;
use tokio::sync::mpsc;
use tokio::time::{Instant as Clock, sleep_until};

use super::assignment::Assignment;
use super::output::{ChildOutput, Output};
use crate::supervisor::child_logs;
use crate::supervisor::child_process::ChildProcess;
use crate::supervisor::handlers_toml::ChildSpec;
use crate::supervisor::line_reader::ReadLine;

/// What happens to a child that has no task.
pub(super) enum ChildEvent {
    Ended(ExitStatus),
    /// None when the child is not needed any more.
    Assigned(Option<Assignment>),
    Log(ReadLine),
    Output(Output),
}

/// The process of a warm child, and what is known of it.
pub(super) struct WarmChild {
    pub(super) process: ChildProcess,
    pub(super) output: ChildOutput,
    pub(super) spec: Arc<ChildSpec>,
    /// Where what a person types comes from, when one sits before the child.
    pub(super) keyboard: Option<Stdin>,
    /// Mean time between two answers, in nanoseconds; 0 before the first answer. A slower answer counts at once, faster
    /// ones count by and by.
    pub(super) mean_answer_ns: u64,
    pub(super) answers: u64,
    pub(super) answers_since_log: u32,
    /// Bytes that were written to it so far.
    pub(super) given: u64,
    /// Bytes of them that it had not read when it closed its standard input.
    pub(super) left_unread: u64,
    /// It has said that it is ready.
    pub(super) ready: bool,
    pub(super) exit: Option<ExitStatus>,
    /// The child was told to shut down, or was killed: it gets no more assignments.
    pub(super) leaving: bool,
    /// Why the child ended although nobody told it to.
    pub(super) fault: Option<String>,
    /// Whether a task has failed for that fault.
    pub(super) blamed: bool,
}

impl WarmChild {
    /// `None` when the process has no standard output to read.
    pub(super) fn new(mut process: ChildProcess, spec: Arc<ChildSpec>) -> Option<Self> {
        let output = ChildOutput::of(&mut process, spec.attached)?;
        let keyboard = spec.attached.then(tokio::io::stdin);
        Some(Self {
            process,
            output,
            spec,
            keyboard,
            mean_answer_ns: 0,
            answers: 0,
            answers_since_log: 0,
            given: 0,
            left_unread: 0,
            ready: false,
            exit: None,
            leaving: false,
            fault: None,
            blamed: false,
        })
    }

    /// The next event while the child has no task. An assignment is taken only from `assignments`. The end of the process
    /// comes first, so that a dead child is given nothing, and log lines come after assignments, so that they put off none.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn next_event(&mut self, assignments: Option<&mut mpsc::Receiver<Assignment>>) -> ChildEvent {
        let Self { process: ChildProcess { handle, stderr, .. }, output, .. } = self;
        let (log_ended, output_ended) = (stderr.has_ended(), output.has_ended());
        let assigned = async {
            match assignments {
                Some(assignments) => assignments.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            exit = handle.wait() => ChildEvent::Ended(exit),
            assignment = assigned => ChildEvent::Assigned(assignment),
            line = stderr.next(), if !log_ended => ChildEvent::Log(line),
            output = output.next(), if !output_ended => ChildEvent::Output(output),
        }
    }

    /// Logs a line of standard error.
    pub(super) fn log(&mut self, line: ReadLine) {
        if let ReadLine::Line(line) | ReadLine::TooLong(line) = line {
            self.answers_since_log = 0;
            child_logs::log(&self.process.status, &line);
        }
    }

    /// Logs a line of standard output.
    pub(super) fn log_output(&mut self, line: &Bytes) {
        self.answers_since_log = 0;
        child_logs::log_stdout(&self.process.status, line);
    }

    /// Whether the child has read anything beyond the first `at` bytes that it was given: a task of which it has read nothing
    /// has not run. True where that is not known.
    pub(super) fn has_read_beyond(&self, at: u64) -> bool {
        let unread = if self.process.stdin.is_some() { self.process.unread() } else { Some(self.left_unread) };
        unread.is_none_or(|unread| self.given.saturating_sub(unread) > at)
    }

    /// Notes an answer that took `took`.
    pub(super) fn answered(&mut self, took: Duration) {
        self.answers += 1;
        self.process.status.answered();
        self.answers_since_log = self.answers_since_log.saturating_add(1);
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.mean_answer_ns = match self.mean_answer_ns {
            0 => took_ns,
            mean_ns if took_ns > mean_ns => took_ns,
            mean_ns => mean_ns - (mean_ns - took_ns) / 4,
        };
    }

    /// Notes that the process has ended by itself, logs its last lines, and returns the reason.
    pub(super) async fn ended_idle(&mut self, exit: ExitStatus) -> String {
        self.exit = Some(exit);
        self.process.last_lines(|_| {}).await;
        self.process.fault(exit)
    }

    /// Waits for the end of the process, and reads its pipes meanwhile, because it could not end while they are full.
    pub(super) async fn ends_within(&mut self, limit: Duration) {
        let deadline = Clock::now() + limit;
        // While lines flood in, the timer may fire late: the clock is read too.
        while self.exit.is_none() && Clock::now() < deadline {
            let event = tokio::select! {
                biased;
                () = sleep_until(deadline) => return,
                event = self.next_event(None) => event,
            };
            match event {
                ChildEvent::Log(line) => self.log(line),
                ChildEvent::Ended(exit) => self.exit = Some(exit),
                ChildEvent::Output(Output::Log(line)) => self.log_output(&line),
                ChildEvent::Output(_) | ChildEvent::Assigned(_) => {}
            }
        }
    }
}

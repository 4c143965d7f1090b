//! One assignment in progress: tasks are written to the child a little ahead of its answers, the answers are read in their
//! order, timeouts are kept, and the crash of the child is blamed on the one task that was next to be answered.

use std::collections::VecDeque;
use std::future::pending;
use std::process::ExitStatus;
use std::time::Duration;

use millpond::outcome::Failure;
use millpond::telemetry::record_of_child;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant as Clock, sleep_until, timeout};

use super::assignment::{Assignment, AssignmentReport};
use super::child::WarmChild;
use super::output::Output;
use crate::call_end::{CallEnd, too_late};
use crate::supervisor::child_process::ChildProcess;
use crate::supervisor::line_protocol::{ChildMessage, SHUTDOWN_LINE, write_task};
use crate::supervisor::line_reader::ReadLine;
use crate::supervisor::stop_times::{END_WITHIN, STOP_GRACE_MAX, Timeouts};

/// Work that is written ahead of its answers, as time: it hides the way through the pipe, and little waits behind a slow
/// task.
const AHEAD: Duration = Duration::from_millis(2);
/// Tasks that are written ahead at the most.
const AHEAD_TASKS_MAX: u32 = 256;
/// Bytes that wait to be written to a child at the most, beyond one line.
const AHEAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes that are taken at once of what a person types.
const TYPED_BYTES: usize = 4096;
/// Answers without a log line after which tasks are written ahead.
const QUIET_ANSWERS: u32 = 16;

/// How far a child has been pressed to end its task.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum StopStage {
    NotAsked,
    /// It was sent the line that tells it to shut down.
    Asked,
    /// It was sent SIGTERM.
    Terminated,
    Killed,
}

/// What happens while an assignment runs.
enum RunEvent {
    StepDue,
    StopRequested,
    Output(Output),
    Written(std::io::Result<usize>),
    Ended(ExitStatus),
    Log(ReadLine),
    /// A person has typed this; nothing, when the keyboard is gone.
    Typed(Vec<u8>),
}

/// A call that was claimed and has no end yet.
struct OpenCall {
    /// Why it was not written to the child.
    refused: Option<Failure>,
    /// Where its line begins in all that the child is given.
    at: u64,
}

/// One assignment in progress.
pub(super) struct AssignmentRun<'a> {
    child: &'a mut WarmChild,
    assignment: &'a Assignment,
    /// The oldest first.
    open: VecDeque<OpenCall>,
    ends: Vec<CallEnd>,
    claimed: usize,
    /// The next call to be written.
    next_call: usize,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that are written already.
    written: usize,
    /// When the oldest open call became the oldest.
    oldest_since: Clock,
    /// When the child was last pressed to end, or closed one of its pipes.
    step_since: Clock,
    stage: StopStage,
    /// The worker must leave, or the message was cancelled: nobody wants the answers any more.
    stop_requested: bool,
    /// Why this worker has killed the child.
    kill_reason: Option<Failure>,
    output_ended: bool,
    /// An earlier call is the reason why the child is pressed to end: the oldest open one is not to blame.
    excused: bool,
    /// The pipe that the child has closed first.
    closed_pipe: Option<&'static str>,
    /// The child wrote a line that is no answer: nothing that it writes from then on counts.
    output_ignored: bool,
}

impl<'a> AssignmentRun<'a> {
    pub(super) fn new(child: &'a mut WarmChild, assignment: &'a Assignment) -> Self {
        Self {
            child,
            assignment,
            open: VecDeque::new(),
            ends: Vec::new(),
            claimed: assignment.claimed,
            next_call: assignment.from,
            outgoing: Vec::new(),
            written: 0,
            oldest_since: Clock::now(),
            step_since: Clock::now(),
            stage: StopStage::NotAsked,
            stop_requested: false,
            kill_reason: None,
            output_ended: false,
            excused: false,
            closed_pipe: None,
            output_ignored: false,
        }
    }

    /// Runs the assignment as far as this child gets.
    pub(super) async fn run(mut self) -> AssignmentReport {
        loop {
            self.write_ahead();
            if self.open.is_empty() && self.outgoing.len() == self.written {
                break;
            }
            match self.next_event().await {
                RunEvent::Log(line) => self.child.log(line),
                RunEvent::Output(output) => self.output(output),
                RunEvent::Typed(typed) if typed.is_empty() => self.child.keyboard = None,
                RunEvent::Typed(typed) => self.outgoing.extend(typed),
                RunEvent::Written(Ok(bytes)) => {
                    self.written += bytes;
                    self.child.given += bytes as u64;
                }
                RunEvent::Written(Err(_)) => {
                    // The child reads no more: most likely it is about to end.
                    self.child.left_unread = self.child.process.unread().unwrap_or(0);
                    self.child.process.stdin = None;
                    self.pipe_closed("standard input");
                }
                RunEvent::StepDue => self.next_step(),
                RunEvent::StopRequested => {
                    self.stop_requested = true;
                    self.next_step();
                }
                RunEvent::Ended(exit) => {
                    self.ended(exit).await;
                    break;
                }
            }
        }
        let child = self.child;
        child.leaving |= self.stage > StopStage::NotAsked || child.process.stdin.is_none();
        child.leaving |= child.spec.table.tasks_per_child.is_some_and(|max| child.answers >= max);
        if child.exit.is_none() {
            child.process.status.waits();
        }
        let (alive, answered) = (!child.leaving && child.exit.is_none(), child.answers > 0);
        AssignmentReport { ends: self.ends, claimed: self.claimed, alive, answered }
    }

    /// How many calls may be open at once.
    fn open_max(&self) -> usize {
        let open = match self.child.mean_answer_ns {
            0 => 1,
            // The log lines of a child belong to the task that is next to be answered: a child that logs gets one at a time.
            _ if self.child.answers_since_log < QUIET_ANSWERS => 1,
            // One beside the one that runs, and more while they are tiny.
            mean_ns => match u32::try_from(AHEAD.as_nanos() / u128::from(mean_ns)) {
                Ok(0) => 1,
                Ok(fit) => fit.saturating_add(1),
                Err(_) => u32::MAX,
            },
        };
        open.clamp(1, AHEAD_TASKS_MAX) as usize
    }

    /// Claims and writes no more calls than are needed to hide the way through the pipe: a call that is written cannot be
    /// given to another worker.
    fn write_ahead(&mut self) {
        let (open_max, timeout) = (self.open_max(), self.assignment.timeouts.hard.as_millis());
        let tasks_max = self.child.spec.table.tasks_per_child.unwrap_or(u64::MAX);
        while self.open.len() < open_max && self.outgoing.len() - self.written <= AHEAD_BYTES_MAX {
            let used_up = self.child.answers + self.open.len() as u64 >= tasks_max;
            if self.stage > StopStage::NotAsked || used_up || self.assignment.stop.is_cancelled() {
                return;
            }
            let index =
                if self.next_call < self.claimed { Some(self.next_call) } else { self.assignment.cursor.claim(0) };
            let Some((index, call)) = index.and_then(|i| Some((i, self.assignment.calls.get(i)?))) else { return };
            (self.claimed, self.next_call) = (self.claimed.max(index + 1), index + 1);
            if self.written == self.outgoing.len() {
                self.outgoing.clear();
                self.written = 0;
            }
            let deadline_ms = millpond::now_ms().saturating_add(timeout.try_into().unwrap_or(i64::MAX));
            let at = self.child.given + (self.outgoing.len() - self.written) as u64;
            let refused = write_task(call, &self.child.spec.kind, deadline_ms, &mut self.outgoing).err();
            self.open.push_back(OpenCall { refused, at });
            if self.open.len() == 1 {
                self.next_oldest();
            }
        }
    }

    /// Ends the oldest calls as far as they were not written, and starts the clock of the one that is then the oldest.
    fn next_oldest(&mut self) {
        while let Some(Some(refused)) = self.open.front_mut().map(|call| call.refused.take()) {
            self.open.pop_front();
            self.ends.push(CallEnd::of(Err(refused)));
        }
        self.oldest_since = Clock::now();
        self.excused = self.stage > StopStage::NotAsked;
        if !self.excused {
            self.step_since = self.oldest_since;
        }
        if !self.open.is_empty()
            && let Some(call) = self.assignment.calls.get(self.assignment.from + self.ends.len())
        {
            // A call that was written ahead may have logged already: its lines stay.
            self.child.process.status.runs(call, self.open.len() == 1);
        }
    }

    /// The next event: time and stop come first, so that nothing that a child writes puts them off, and log lines come
    /// last, so that they put off nothing.
    async fn next_event(&mut self) -> RunEvent {
        let due = self.step_due();
        // While lines flood in, the timer may fire late: the clock is read too.
        if Clock::now() >= due {
            return RunEvent::StepDue;
        }
        let unwritten = self.outgoing.get(self.written..).unwrap_or_default();
        let WarmChild { process: ChildProcess { handle, stderr, stdin, .. }, output, keyboard, .. } = &mut *self.child;
        let log_ended = stderr.has_ended();
        let stdin = stdin.as_mut().filter(|_| !unwritten.is_empty());
        let writing = async {
            match stdin {
                Some(stdin) => stdin.write(unwritten).await,
                None => pending().await,
            }
        };
        let typing = async {
            let Some(keyboard) = keyboard else { return pending().await };
            let mut typed = Vec::with_capacity(TYPED_BYTES);
            let _ = keyboard.read_buf(&mut typed).await;
            typed
        };
        tokio::select! {
            biased;
            () = sleep_until(due) => RunEvent::StepDue,
            () = self.assignment.stop.cancelled(), if !self.stop_requested => RunEvent::StopRequested,
            output = output.next(), if !self.output_ended => RunEvent::Output(output),
            written = writing => RunEvent::Written(written),
            exit = handle.wait() => RunEvent::Ended(exit),
            line = stderr.next(), if !log_ended => RunEvent::Log(line),
            typed = typing => RunEvent::Typed(typed),
        }
    }

    /// Logs the lines that the child wrote before it wrote this answer.
    fn log_so_far(&mut self) {
        self.child.process.stderr.read_written();
        while let Some(line) = self.child.process.stderr.buffered() {
            self.child.log(line);
        }
        for line in self.child.output.log_before_answer() {
            self.child.log_output(&line);
        }
    }

    /// Takes what the child wrote.
    fn output(&mut self, output: Output) {
        if let Output::Log(line) = &output {
            return self.child.log_output(line);
        }
        self.log_so_far();
        match output {
            Output::Log(_) => {}
            Output::End => {
                self.output_ended = true;
                self.pipe_closed("standard output");
            }
            // After a line that is no answer it is not known which task a later line would answer.
            _ if self.output_ignored => {}
            Output::Wrong(failure) => self.wrong_output(failure),
            Output::Message(ChildMessage::Ready) => self.child.ready = true,
            Output::Message(ChildMessage::Progress(progress, note)) => {
                self.child.process.status.progressed(progress, note);
            }
            Output::Message(ChildMessage::Span(span)) => record_of_child(&span),
            Output::Message(ChildMessage::Reply(mut reply)) if !self.open.is_empty() => {
                if let Err(failure) = &mut reply {
                    failure.child = Some(self.child.process.status.evidence(None, false));
                }
                self.child.answered(self.oldest_since.elapsed());
                self.open.pop_front();
                self.ends.push(CallEnd::of(reply));
                self.next_oldest();
            }
            Output::Message(ChildMessage::Reply(_)) => {
                self.wrong_output(Failure::new("bad_output", "it answered more often than it was asked"));
            }
        }
    }

    fn wrong_output(&mut self, reason: Failure) {
        self.output_ignored = true;
        self.kill(reason);
    }

    /// Kills the child because of its task.
    fn kill(&mut self, reason: Failure) {
        self.kill_reason.get_or_insert(reason);
        self.stage = StopStage::Killed;
        self.child.process.status.stopping();
        self.child.process.handle.end_all();
    }

    fn pipe_closed(&mut self, pipe: &'static str) {
        self.closed_pipe.get_or_insert(pipe);
        self.step_since = Clock::now();
    }

    /// When the next step against the oldest open call is due; none is later than the hard timeout.
    fn step_due(&self) -> Clock {
        let Timeouts { soft, hard } = self.assignment.timeouts;
        let (grace, end) = (self.child.spec.table.grace(), self.oldest_since + hard);
        match self.stage {
            StopStage::Asked | StopStage::Terminated if self.stop_requested => {
                self.step_since + grace.min(STOP_GRACE_MAX)
            }
            StopStage::Killed => self.step_since + END_WITHIN,
            StopStage::NotAsked if self.closed_pipe.is_some() => (self.step_since + END_WITHIN).min(end),
            StopStage::NotAsked => self.oldest_since + soft.unwrap_or(hard),
            StopStage::Asked => (self.step_since + grace).min(end),
            StopStage::Terminated if self.excused => (self.step_since + grace).min(end),
            StopStage::Terminated => end,
        }
    }

    /// Takes the next step against a task that takes too long or that nobody wants any more.
    fn next_step(&mut self) {
        self.step_since = Clock::now();
        let hard = self.assignment.timeouts.hard;
        if let Some(pipe) = self.closed_pipe
            && self.stage == StopStage::NotAsked
            && !self.stop_requested
        {
            return self.kill(Failure::new("bad_output", format!("it closed its {pipe} and went on")));
        }
        match self.stage {
            _ if self.oldest_since.elapsed() >= hard && !self.stop_requested => self.kill(self.late(hard)),
            StopStage::NotAsked => {
                // The line comes before the signal, so that the child can close what it holds.
                self.outgoing.extend_from_slice(SHUTDOWN_LINE);
                self.stage = StopStage::Asked;
                self.child.process.status.stopping();
            }
            StopStage::Asked => {
                self.stage = StopStage::Terminated;
                self.child.process.handle.terminate();
            }
            StopStage::Terminated | StopStage::Killed => self.kill(self.late(hard)),
        }
    }

    /// The failure of a task that takes too long. It says so when the child has been silent all the while.
    fn late(&self, limit: Duration) -> Failure {
        let mut failure = too_late(limit);
        if let Some(hint) = self.child.process.status.silence().map(|_| self.child.spec.silence_hint()) {
            failure.message.push_str("; ");
            failure.message.push_str(&hint);
        }
        failure
    }

    /// The child has ended: the answers that it still wrote count, then its end is blamed on the oldest open call.
    async fn ended(&mut self, exit: ExitStatus) {
        self.child.exit = Some(exit);
        while !self.output_ended {
            match timeout(END_WITHIN, self.child.output.rest()).await {
                Ok(output) => self.output(output),
                Err(_) => self.output_ended = true,
            }
        }
        self.child.process.last_lines(|_| {}).await;
        // A child that has answered was started, whatever its first log line was.
        let never_started = self.child.process.never_started(exit).filter(|_| self.child.answers == 0);
        // A child may leave after a task: the next child runs the others.
        let left_in_order = exit.success() && self.child.answers > 0 && self.stage == StopStage::NotAsked;
        if self.stop_requested || left_in_order || self.excused {
            return;
        }
        let Timeouts { soft, hard } = self.assignment.timeouts;
        let asked = || self.late(soft.unwrap_or(hard));
        let reason = self.kill_reason.clone().or_else(|| (self.stage > StopStage::NotAsked).then(asked));
        let failure = self.child.process.failure(exit, self.child.spec.table.memory, reason);
        // A task of which nothing was read has not run: whatever ended the child, it was not this task.
        let has_begun = self.open.front().is_some_and(|call| self.child.has_read_beyond(call.at));
        if never_started.is_some() || !has_begun {
            let message = never_started.unwrap_or_else(|| self.child.process.before_a_task(exit, &failure));
            self.child.fault = Some(message);
            return;
        }
        self.child.fault = Some(failure.message.clone());
        self.open.pop_front();
        self.ends.push(CallEnd::of(Err(failure)));
        self.child.blamed = true;
    }
}

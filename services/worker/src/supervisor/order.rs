//! One order at work in a warm child: tasks written a little ahead, answers read in order, time kept, a crash blamed on
//! the one task that was next to be answered.

use std::collections::VecDeque;
use std::future::pending;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millpond::limits::{CHILD_AHEAD, CHILD_AHEAD_TASKS_MAX, CHILD_END_WITHIN, CHILD_LINE_BYTES_MAX, RESULT_BYTES_MAX};
use millpond::outcome::Failure;
use millpond::worker_record::ChildState;
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;
use tokio::time::{Instant as Clock, sleep_until};
use tokio_util::sync::CancellationToken;

use super::lines::{Found, SHUTDOWN_LINE, Said, read, write};
use super::logs;
use super::process::Process;
use super::spec::Spec;
use super::stream::{Event, Stream};
use super::view::Running;
use crate::call::Call;
use crate::call_end::{CallEnd, too_late};
use crate::run::work_cursor::WorkCursor;

/// Bytes that wait to be written to a child at the most, beyond one line.
const WRITE_AHEAD_BYTES: usize = 64 * 1024;

/// What each step's grace is at the most when the worker itself must leave, or its task was cancelled: nothing that was
/// cancelled runs a second later.
pub(super) const STOP_GRACE_MAX: Duration = Duration::from_millis(300);

/// Answers without a log line after which tasks are written ahead.
const QUIET_ANSWERS: u32 = 16;

/// When a task is asked to stop, and when it is killed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) soft: Option<Duration>,
    pub(crate) hard: Duration,
}

/// The calls of a message that a child is to run.
pub(crate) struct Order {
    pub(crate) calls: Arc<Vec<Call>>,
    pub(crate) cursor: Arc<WorkCursor>,
    /// The first call without an end.
    pub(crate) from: usize,
    /// Calls before this one are claimed.
    pub(crate) claimed: usize,
    pub(crate) timeouts: Timeouts,
    pub(crate) stop: CancellationToken,
    pub(crate) report: oneshot::Sender<Report>,
}

/// What became of an order.
#[derive(Debug)]
pub(crate) struct Report {
    /// The ends of the calls from `from` on, without gaps.
    pub(crate) ends: Vec<CallEnd>,
    /// Calls before this one are claimed; those without an end did not run.
    pub(crate) claimed: usize,
    /// Whether the child takes another order.
    pub(crate) alive: bool,
    /// Whether it has answered a task, of this order or before.
    pub(crate) answered: bool,
}

/// How far a task that takes too long, or that nobody wants any more, has been pressed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Pressed {
    No,
    Told,
    Terminated,
    Killed,
}

/// One order at work.
struct Work<'a> {
    order: &'a Order,
    /// What was claimed and has no end yet, the oldest first; a failure for what was not worth sending.
    open: VecDeque<Option<Failure>>,
    ends: Vec<CallEnd>,
    claimed: usize,
    /// The next call to be written.
    next: usize,
    out: Vec<u8>,
    written: usize,
    /// When the oldest open call became that.
    began: Clock,
    /// When the last step against it was taken, or it closed one of its ends.
    since: Clock,
    pressed: Pressed,
    /// Nobody wants the answers any more.
    stopped: bool,
    /// Why we killed it.
    killed: Option<Failure>,
    output_ended: bool,
    /// Whether the child was given anything of this order.
    wrote: bool,
    /// An earlier call is the reason why it is told to end.
    excused: bool,
    /// Which of its ends the child has closed.
    closed: Option<&'static str>,
    /// It wrote what is no answer: what it writes from then on counts for nothing.
    deaf: bool,
}

impl Stream {
    /// Runs an order as far as this child gets.
    pub(super) async fn run(&mut self, order: &Order) -> Report {
        let mut work = Work::new(order);
        loop {
            self.fill(&mut work);
            if work.open.is_empty() && work.out.len() == work.written {
                break;
            }
            let event = self.next_event(&mut work).await;
            match event {
                Event::Log(Found::Line(line) | Found::TooLong(line)) => {
                    self.quiet_for = 0;
                    logs::line(&self.process.view, &line);
                }
                Event::Log(Found::End) => {}
                Event::Output(found) => self.output(&mut work, found),
                Event::Written(Ok(bytes)) => {
                    work.written += bytes;
                    work.wrote = true;
                }
                Event::Written(Err(_)) => {
                    // It reads no more: most likely it is about to end.
                    self.process.stdin = None;
                    work.closes("standard input");
                }
                Event::Time => self.press(&mut work),
                Event::Stop => {
                    work.stopped = true;
                    self.press(&mut work);
                }
                Event::Ended(status) => {
                    self.died(&mut work, status).await;
                    break;
                }
            }
        }
        self.leaving |= work.pressed > Pressed::No || self.process.stdin.is_none();
        self.leaving |= self.spec.tasks_per_child.is_some_and(|max| self.total >= max);
        if self.ended.is_none() {
            self.process.view.waits();
        }
        let (alive, answered) = (!self.leaving && self.ended.is_none(), self.total > 0);
        Report { ends: work.ends, claimed: work.claimed, alive, answered }
    }

    /// PayloadFetcher and writes as many calls as hide the hop, and no more: what is written cannot be given to others.
    fn fill(&mut self, work: &mut Work<'_>) {
        let ahead = match self.pace_ns {
            0 => 1,
            // The log lines of one that writes some are told apart only when it has one task at a time.
            _ if self.quiet_for < QUIET_ANSWERS => 1,
            // One beside the one that runs, and more while they are tiny.
            pace => match u32::try_from(CHILD_AHEAD.as_nanos() / u128::from(pace)) {
                Ok(0) => 1,
                Ok(fit) => fit.saturating_add(1),
                Err(_) => u32::MAX,
            },
        };
        let ahead = ahead.clamp(1, CHILD_AHEAD_TASKS_MAX) as usize;
        while work.open.len() < ahead && work.out.len() - work.written <= WRITE_AHEAD_BYTES {
            let used_up = self.spec.tasks_per_child.is_some_and(|max| self.total + work.open.len() as u64 >= max);
            if work.pressed > Pressed::No || used_up || work.order.stop.is_cancelled() {
                return;
            }
            let index = if work.next < work.claimed { Some(work.next) } else { work.order.cursor.claim(0) };
            let Some((index, call)) = index.and_then(|i| Some((i, work.order.calls.get(i)?))) else { return };
            (work.claimed, work.next) = (work.claimed.max(index + 1), index + 1);
            if work.written == work.out.len() {
                work.out.clear();
                work.written = 0;
            }
            let deadline = work.order.timeouts.hard.as_millis().try_into().unwrap_or(i64::MAX);
            let deadline_ms = millpond::now_ms().saturating_add(deadline);
            let refused = write(call, &self.spec.kind, deadline_ms, &mut work.out).err();
            work.open.push_back(refused);
            if work.open.len() == 1 {
                self.next_open(work);
            }
        }
    }

    /// Ends what is not worth sending, and starts the clock of the oldest call that is open.
    fn next_open(&self, work: &mut Work<'_>) {
        while let Some(Some(refused)) = work.open.front_mut().map(Option::take) {
            work.open.pop_front();
            work.ends.push(CallEnd::of(Err(refused)));
        }
        work.began = Clock::now();
        // Told to end because of an earlier one: this one is not to blame for what follows.
        work.excused = work.pressed > Pressed::No;
        if !work.excused {
            work.since = work.began;
        }
        if !work.open.is_empty()
            && let Some(call) = work.order.calls.get(work.order.from + work.ends.len())
        {
            // What was written ahead may have logged already: those lines stay.
            let alone = work.open.len() == 1;
            let (id, attempt, trace) = (call.id.clone(), call.attempt, call.trace);
            self.process.view.runs(Running { id, attempt, trace, since: Instant::now() }, alone);
        }
    }

    /// Time and stop first, so that nothing a child writes puts them off; its log lines last, so that they put off nothing.
    async fn next_event(&mut self, work: &mut Work<'_>) -> Event {
        let unwritten = work.out.get(work.written..).unwrap_or_default();
        let due = work.due(&self.spec);
        // The timer may lag behind while lines flood in.
        if Clock::now() >= due {
            return Event::Time;
        }
        let Self { process: Process { handle, stderr, stdin, .. }, stdout, .. } = self;
        let log_ended = stderr.has_ended();
        let stdin = stdin.as_mut().filter(|_| !unwritten.is_empty());
        let writing = async {
            match stdin {
                Some(stdin) => stdin.write(unwritten).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = sleep_until(due) => Event::Time,
            () = work.order.stop.cancelled(), if !work.stopped => Event::Stop,
            found = stdout.next(), if !work.output_ended => Event::Output(found),
            written = writing => Event::Written(written),
            status = handle.wait() => Event::Ended(status),
            found = stderr.next(), if !log_ended => Event::Log(found),
        }
    }

    /// What it wrote to its log before what it says now is known with it.
    fn log_so_far(&mut self) {
        self.process.stderr.read_written();
        while let Some(Found::Line(line) | Found::TooLong(line)) = self.process.stderr.buffered() {
            self.quiet_for = 0;
            logs::line(&self.process.view, &line);
        }
    }

    fn output(&mut self, work: &mut Work<'_>, found: Found) {
        self.log_so_far();
        let line = match found {
            Found::End => {
                work.output_ended = true;
                return work.closes("standard output");
            }
            // After a line that is no answer nothing that follows can be told apart.
            _ if work.deaf => return,
            Found::Line(line) => line,
            Found::TooLong(_) => {
                let max = RESULT_BYTES_MAX;
                let text =
                    format!("a line of more than {CHILD_LINE_BYTES_MAX} bytes; at most {max} of a result are kept");
                work.deaf = true;
                return self.kill(work, Failure::fatal("result_too_large", text));
            }
        };
        match read(&line) {
            Ok(Said::Ready) => {}
            Ok(Said::Progress(progress, note)) => self.process.view.progressed(progress, note),
            Ok(Said::Answer(mut reply)) if !work.open.is_empty() => {
                if let Err(failure) = &mut reply {
                    failure.child = Some(self.process.view.evidence(None, false));
                }
                self.answered(work);
                work.open.pop_front();
                work.ends.push(CallEnd::of(reply));
                self.next_open(work);
            }
            Ok(Said::Answer(_)) => {
                work.deaf = true;
                self.kill(work, Failure::new("bad_output", "it answered more often than it was asked"))
            }
            Err(wrong) => {
                work.deaf = true;
                let text = format!("{wrong}; results go to standard output, everything else to standard error");
                self.kill(work, Failure::new("bad_output", text));
            }
        }
    }

    fn answered(&mut self, work: &Work<'_>) {
        self.total += 1;
        self.process.view.answered();
        self.quiet_for = self.quiet_for.saturating_add(1);
        let took = u64::try_from(work.began.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1);
        // Slower counts at once, faster by and by.
        self.pace_ns = match self.pace_ns {
            0 => took,
            before if took > before => took,
            before => before - (before - took) / 4,
        };
    }

    /// Ends it because of its task.
    fn kill(&mut self, work: &mut Work<'_>, why: Failure) {
        work.killed.get_or_insert(why);
        work.pressed = Pressed::Killed;
        self.process.view.be(ChildState::Stopping);
        self.process.handle.end_all();
    }

    /// The next step against a task that takes too long or is not wanted any more.
    fn press(&mut self, work: &mut Work<'_>) {
        work.since = Clock::now();
        let hard = work.order.timeouts.hard;
        if let Some(what) = work.closed
            && work.pressed == Pressed::No
            && !work.stopped
        {
            return self.kill(work, Failure::new("bad_output", format!("it closed its {what} and went on")));
        }
        match work.pressed {
            _ if work.began.elapsed() >= hard && !work.stopped => self.kill(work, too_late(hard)),
            Pressed::No => {
                // The line first, then the signal: it can close what it holds.
                work.out.extend_from_slice(SHUTDOWN_LINE);
                work.pressed = Pressed::Told;
                self.process.view.be(ChildState::Stopping);
            }
            Pressed::Told => {
                work.pressed = Pressed::Terminated;
                self.process.handle.terminate();
            }
            Pressed::Terminated | Pressed::Killed => self.kill(work, too_late(hard)),
        }
    }

    /// It has ended: its last words count, then its end is blamed on the oldest open call.
    async fn died(&mut self, work: &mut Work<'_>, status: ExitStatus) {
        self.ended = Some(status);
        while !work.output_ended {
            match tokio::time::timeout(CHILD_END_WITHIN, self.stdout.next()).await {
                Ok(found) => self.output(work, found),
                Err(_) => work.output_ended = true,
            }
        }
        self.process.last_lines(|_| {}).await;
        // One that has answered has started, whatever its first line was.
        let never_started = self.process.never_started(status).filter(|_| self.total == 0);
        // It may leave after a task; the next child runs the others. One that leaves at its first has not run it.
        let left_in_order = status.success() && self.total > 0 && work.pressed == Pressed::No;
        if work.stopped || left_in_order || work.excused {
            return;
        }
        let killed = work.killed.take().or_else(|| (work.pressed > Pressed::No).then(|| work.soft_failure()));
        let failure = self.process.failure(status, self.spec.memory_max, killed);
        let burns_none = work.open.is_empty() || never_started.is_some() || !work.wrote;
        self.fault = Some(never_started.unwrap_or_else(|| failure.message.clone()));
        if burns_none {
            return;
        }
        work.open.pop_front();
        work.ends.push(CallEnd::of(Err(failure)));
        self.blamed = true;
    }
}

impl<'a> Work<'a> {
    fn new(order: &'a Order) -> Self {
        Self {
            order,
            open: VecDeque::new(),
            ends: Vec::new(),
            claimed: order.claimed,
            next: order.from,
            out: Vec::new(),
            written: 0,
            began: Clock::now(),
            since: Clock::now(),
            pressed: Pressed::No,
            stopped: false,
            killed: None,
            output_ended: false,
            wrote: false,
            excused: false,
            closed: None,
            deaf: false,
        }
    }

    /// It closed one of its ends.
    fn closes(&mut self, what: &'static str) {
        self.closed.get_or_insert(what);
        self.since = Clock::now();
    }

    /// When the next step against the oldest open call is due; none is later than its hard timeout.
    fn due(&self, spec: &Spec) -> Clock {
        let Timeouts { soft, hard } = self.order.timeouts;
        let end = self.began + hard;
        match self.pressed {
            Pressed::Told | Pressed::Terminated if self.stopped => self.since + spec.grace.min(STOP_GRACE_MAX),
            Pressed::Killed => self.since + CHILD_END_WITHIN,
            Pressed::No if self.closed.is_some() => (self.since + CHILD_END_WITHIN).min(end),
            Pressed::No => self.began + soft.unwrap_or(hard),
            Pressed::Told => (self.since + spec.grace).min(end),
            Pressed::Terminated if self.excused => (self.since + spec.grace).min(end),
            Pressed::Terminated => end,
        }
    }

    fn soft_failure(&self) -> Failure {
        too_late(self.order.timeouts.soft.unwrap_or(self.order.timeouts.hard))
    }
}

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
use tokio::time::Instant as Clock;
use tokio_util::sync::CancellationToken;

use super::lines::{Found, SHUTDOWN_LINE, Said, read, write};
use super::logs;
use super::process::Process;
use super::spec::Spec;
use super::stream::{Event, Stream};
use super::view::Running;
use crate::call::Call;
use crate::share::{CallEnd, Share, too_late};

/// Bytes that wait to be written to a child at the most, beyond one line.
const WRITE_AHEAD_BYTES: usize = 64 * 1024;

/// What the grace is at the most when the worker itself must leave: all of it fits into the time to settle.
const STOP_GRACE_MAX: Duration = Duration::from_secs(1);

/// When a task is asked to stop, and when it is killed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) soft: Option<Duration>,
    pub(crate) hard: Duration,
}

/// The calls of a message that a child is to run.
pub(crate) struct Order {
    pub(crate) calls: Arc<Vec<Call>>,
    pub(crate) share: Arc<Share>,
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
    since: Clock,
    pressed: Pressed,
    /// Nobody wants the answers any more.
    stopped: bool,
    /// Why we killed it.
    killed: Option<Failure>,
    output_ended: bool,
    /// Whether the child was given anything of this order.
    wrote: bool,
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
            let event = self.next_event(&work).await;
            match event {
                Event::Log(Found::Line(line) | Found::TooLong(line)) => logs::line(&self.process.view, &line),
                Event::Log(Found::End) => {}
                Event::Output(found) => self.output(&mut work, found),
                Event::Written(Ok(bytes)) => {
                    work.written += bytes;
                    work.wrote = true;
                }
                // It does not read: it is about to end, or its timeout ends it.
                Event::Written(Err(_)) => self.process.stdin = None,
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
        Report { ends: work.ends, claimed: work.claimed, alive: !self.leaving && self.ended.is_none() }
    }

    /// Claims and writes as many calls as hide the hop, and no more: what is written cannot be given to others.
    fn fill(&mut self, work: &mut Work<'_>) {
        let ahead = match self.pace_ns {
            0 => 1,
            pace => u32::try_from(CHILD_AHEAD.as_nanos() / u128::from(pace)).unwrap_or(u32::MAX),
        };
        let ahead = ahead.clamp(1, CHILD_AHEAD_TASKS_MAX) as usize;
        while work.open.len() < ahead && work.out.len() - work.written <= WRITE_AHEAD_BYTES {
            let used_up = self.spec.tasks_per_child.is_some_and(|max| self.total + work.open.len() as u64 >= max);
            if work.pressed > Pressed::No || used_up || work.order.stop.is_cancelled() {
                return;
            }
            let index = if work.next < work.claimed { Some(work.next) } else { work.order.share.claim(0) };
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
        work.since = Clock::now();
        if !work.open.is_empty()
            && let Some(call) = work.order.calls.get(work.order.from + work.ends.len())
        {
            self.process.view.runs(Running {
                id: call.id.clone(),
                attempt: call.attempt,
                trace: call.trace.map(millpond::telemetry::TraceContext::trace_id),
                since: Instant::now(),
            });
        }
    }

    async fn next_event(&mut self, work: &Work<'_>) -> Event {
        let unwritten = work.out.get(work.written..).unwrap_or_default();
        let Process { handle, stderr, stdin, .. } = &mut self.process;
        let stdin = stdin.as_mut().filter(|_| !unwritten.is_empty());
        let writing = async {
            match stdin {
                Some(stdin) => stdin.write(unwritten).await,
                None => pending().await,
            }
        };
        let due = work.due(&self.spec);
        let log_ended = stderr.has_ended();
        // Log lines first: what a task wrote before its answer is then known with it.
        tokio::select! {
            biased;
            found = stderr.next(), if !log_ended => Event::Log(found),
            found = self.stdout.next(), if !work.output_ended => Event::Output(found),
            result = writing => Event::Written(result),
            status = handle.wait() => Event::Ended(status),
            () = work.order.stop.cancelled(), if !work.stopped => Event::Stop,
            () = tokio::time::sleep_until(due) => Event::Time,
        }
    }

    fn output(&mut self, work: &mut Work<'_>, found: Found) {
        let line = match found {
            Found::Line(line) => line,
            Found::TooLong(_) if work.pressed == Pressed::Killed => return,
            Found::TooLong(_) => {
                let max = RESULT_BYTES_MAX;
                let text =
                    format!("a line of more than {CHILD_LINE_BYTES_MAX} bytes; at most {max} of a result are kept");
                return self.kill(work, Failure::fatal("result_too_large", text));
            }
            Found::End => {
                work.output_ended = true;
                // An end by itself follows, or its timeout.
                work.since = Clock::now();
                return;
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
                self.kill(work, Failure::new("bad_output", "it answered more often than it was asked"))
            }
            Err(_) if work.pressed == Pressed::Killed => {}
            Err(wrong) => {
                let text = format!("{wrong}; results go to standard output, everything else to standard error");
                self.kill(work, Failure::new("bad_output", text));
            }
        }
    }

    fn answered(&mut self, work: &Work<'_>) {
        self.total += 1;
        self.process.view.answered();
        let took = u64::try_from(work.since.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1);
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
        if work.output_ended && work.pressed == Pressed::No && !work.stopped {
            return self.kill(work, Failure::new("bad_output", "it closed its standard output and went on"));
        }
        match work.pressed {
            Pressed::No if work.stopped || work.order.timeouts.soft.is_some() => {
                // The line first, then the signal: it can close what it holds.
                work.out.extend_from_slice(SHUTDOWN_LINE);
                work.pressed = Pressed::Told;
                self.process.view.be(ChildState::Stopping);
            }
            Pressed::Told => {
                work.pressed = Pressed::Terminated;
                self.process.handle.terminate();
            }
            Pressed::No | Pressed::Terminated | Pressed::Killed => {
                self.kill(work, too_late(work.order.timeouts.hard));
            }
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
        self.process.last_lines().await;
        let never_started = self.total == 0 && status.code() == Some(super::CANNOT_START);
        let left_in_order = status.success() && !work.ends.is_empty() && work.pressed == Pressed::No;
        if work.stopped || left_in_order {
            return;
        }
        let killed = work.killed.take().or_else(|| (work.pressed > Pressed::No).then(|| work.soft_failure()));
        let failure = self.process.failure(status, self.spec.memory_max, killed);
        self.fault = Some(failure.message.clone());
        if work.open.is_empty() || never_started || !work.wrote {
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
            since: Clock::now(),
            pressed: Pressed::No,
            stopped: false,
            killed: None,
            output_ended: false,
            wrote: false,
        }
    }

    /// When the next step against the oldest open call is due.
    fn due(&self, spec: &Spec) -> Clock {
        let Timeouts { soft, hard } = self.order.timeouts;
        let after = match self.pressed {
            Pressed::No if self.output_ended => CHILD_END_WITHIN,
            Pressed::No => soft.unwrap_or(hard),
            Pressed::Told | Pressed::Terminated if self.stopped => spec.grace.min(STOP_GRACE_MAX),
            Pressed::Told => spec.grace,
            Pressed::Terminated => hard.saturating_sub(soft.unwrap_or_default()).saturating_sub(spec.grace),
            Pressed::Killed => CHILD_END_WITHIN,
        };
        self.since + after
    }

    fn soft_failure(&self) -> Failure {
        too_late(self.order.timeouts.soft.unwrap_or(self.order.timeouts.hard))
    }
}

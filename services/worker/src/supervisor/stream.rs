//! A warm child: an actor that owns its process, gives it the tasks of one order after the other as lines of JSON, and
//! reads an answer for each, in order. A crash is blamed on the one task that was next to be answered.

use std::collections::VecDeque;
use std::future::pending;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millpond::limits::{CHILD_AHEAD, CHILD_AHEAD_TASKS_MAX, CHILD_END_WITHIN, CHILD_LINE_BYTES_MAX, RESULT_BYTES_MAX};
use millpond::outcome::Failure;
use millpond::worker_record::ChildState;
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdout;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant as Clock;
use tokio_util::sync::CancellationToken;

use super::lines::{Found, Lines, SHUTDOWN_LINE, Said, read, write};
use super::logs;
use super::process::Process;
use super::spec::Spec;
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

/// How a child's life ended.
#[derive(Debug, Default)]
pub(crate) struct Life {
    /// Whether it ever answered a task.
    pub(crate) answered: bool,
    /// Why it ended, when nobody told it to.
    pub(crate) fault: Option<String>,
    /// Whether a task has paid for that.
    pub(crate) blamed: bool,
    /// What is to be told of its last order once its end is noted: whoever hears it looks for another child.
    pub(crate) last: Option<(oneshot::Sender<Report>, Report)>,
}

impl Life {
    /// Of one that never came to be.
    pub(crate) fn unborn(why: &str) -> Self {
        Self { fault: Some(why.to_owned()), ..Self::default() }
    }
}

/// A child on its way, at rest.
pub(crate) struct Stream {
    process: Process,
    stdout: Lines<ChildStdout>,
    spec: Arc<Spec>,
    /// Mean time between two answers, of late, in nanoseconds; 0 before the first.
    pace_ns: u64,
    total: u64,
    ended: Option<ExitStatus>,
    /// It was told to shut down, or to end: no more orders.
    leaving: bool,
    /// Why it ended, when nobody told it to, and whether a task has paid for that.
    fault: Option<String>,
    blamed: bool,
}

/// What comes first.
enum Event {
    Log(Found),
    Output(Found),
    Written(std::io::Result<usize>),
    Ended(ExitStatus),
    Time,
    Stop,
}

/// How far a task that takes too long, or that nobody wants any more, has been pressed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Pressed {
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
    /// `None` when the process has no standard output to read.
    pub(crate) fn new(mut process: Process, spec: Arc<Spec>) -> Option<Self> {
        let stdout = Lines::new(process.stdout.take()?, CHILD_LINE_BYTES_MAX);
        Some(Self {
            process,
            stdout,
            spec,
            pace_ns: 0,
            total: 0,
            ended: None,
            leaving: false,
            fault: None,
            blamed: false,
        })
    }

    /// Lives until it is not wanted any more, or ends by itself. `ready` hears when it may be given an order.
    pub(crate) async fn live(
        mut self,
        mut orders: mpsc::Receiver<Order>,
        ready: oneshot::Sender<Result<(), String>>,
    ) -> Life {
        let mut last = None;
        let started = match self.spec.start_within {
            None => Ok(()),
            Some(within) => self.starts(within).await,
        };
        if let Err(why) = &started {
            self.fault = Some(why.clone());
            self.leaving = true;
            self.process.handle.end_all();
        } else {
            self.process.view.waits();
        }
        let _ = ready.send(started);
        while !self.leaving && self.ended.is_none() {
            match self.idle(&mut orders).await {
                Ok(Some(order)) => {
                    let report = self.run(&order).await;
                    if self.ended.is_some() {
                        last = Some((order.report, report));
                    } else {
                        let _ = order.report.send(report);
                    }
                }
                Ok(None) => break,
                Err(why) => self.fault = Some(why),
            }
        }
        // Whoever holds its other end must not wait for an order that nobody takes.
        drop(orders);
        self.leave().await;
        Life { answered: self.total > 0, fault: self.fault, blamed: self.blamed, last }
    }

    /// Waits for the line that says that it is ready.
    async fn starts(&mut self, within: Duration) -> Result<(), String> {
        let deadline = Clock::now() + within;
        loop {
            let found = tokio::select! {
                biased;
                found = self.process.stderr.next(), if !self.process.stderr.has_ended() => Event::Log(found),
                found = self.stdout.next(), if !self.stdout.has_ended() => Event::Output(found),
                status = self.process.handle.wait() => Event::Ended(status),
                () = tokio::time::sleep_until(deadline) => Event::Time,
            };
            match found {
                Event::Log(Found::Line(line) | Found::TooLong(line)) => logs::line(&self.process.view, &line),
                Event::Output(Found::Line(line)) => match read(&line) {
                    Ok(Said::Ready) => return Ok(()),
                    _ => return Err(format!("it said {:?} before it was ready", String::from_utf8_lossy(&line))),
                },
                Event::Ended(status) => {
                    self.ended = Some(status);
                    self.process.last_lines().await;
                    return Err(self.process.failure(status, None, None).message);
                }
                Event::Time => {
                    let within = humantime::format_duration(within);
                    return Err(format!("it did not say {{\"ready\":true}} within {within} (start_within)"));
                }
                _ => {}
            }
        }
    }

    /// The next order; none when it is not wanted any more; an error when it has ended, or is out of step.
    async fn idle(&mut self, orders: &mut mpsc::Receiver<Order>) -> Result<Option<Order>, String> {
        loop {
            let event = tokio::select! {
                biased;
                found = self.process.stderr.next(), if !self.process.stderr.has_ended() => Event::Log(found),
                found = self.stdout.next(), if !self.stdout.has_ended() => Event::Output(found),
                status = self.process.handle.wait() => Event::Ended(status),
                order = orders.recv() => return Ok(order),
            };
            match event {
                Event::Log(Found::Line(line) | Found::TooLong(line)) => logs::line(&self.process.view, &line),
                Event::Output(Found::Line(line)) if matches!(read(&line), Ok(Said::Ready)) => {}
                Event::Output(Found::Line(line) | Found::TooLong(line)) => {
                    self.leaving = true;
                    self.process.handle.end_all();
                    let start = String::from_utf8_lossy(line.get(..200).unwrap_or(&line)).into_owned();
                    return Err(format!("it wrote {start:?} to standard output without a task; log to standard error"));
                }
                Event::Output(Found::End) => {
                    // Most likely it is about to end.
                    self.ends_within(CHILD_END_WITHIN).await;
                    self.leaving = true;
                    let Some(status) = self.ended else { return Err("it closed its standard output".to_owned()) };
                    return Err(self.process.failure(status, None, None).message);
                }
                Event::Ended(status) => {
                    self.ended = Some(status);
                    self.process.last_lines().await;
                    return Err(self.process.failure(status, None, None).message);
                }
                _ => {}
            }
        }
    }

    /// Runs an order as far as this child gets.
    async fn run(&mut self, order: &Order) -> Report {
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

    /// Tells it to shut down, then asks, then ends it.
    async fn leave(&mut self) {
        self.process.view.be(ChildState::Stopping);
        let grace = self.spec.grace;
        for step in [Pressed::Told, Pressed::Terminated, Pressed::Killed] {
            if self.ended.is_some() {
                break;
            }
            match step {
                Pressed::Told => {
                    if let Some(mut stdin) = self.process.stdin.take() {
                        let _ = tokio::time::timeout(grace, stdin.write_all(SHUTDOWN_LINE)).await;
                    }
                }
                Pressed::Terminated => self.process.handle.terminate(),
                _ => self.process.handle.end_all(),
            }
            self.ends_within(grace).await;
        }
        self.process.last_lines().await;
    }

    /// Waits for its end, and reads meanwhile, so that it can end.
    async fn ends_within(&mut self, limit: Duration) {
        let deadline = Clock::now() + limit;
        while self.ended.is_none() {
            tokio::select! {
                biased;
                found = self.process.stderr.next(), if !self.process.stderr.has_ended() => {
                    if let Found::Line(line) | Found::TooLong(line) = found {
                        logs::line(&self.process.view, &line);
                    }
                }
                _ = self.stdout.next(), if !self.stdout.has_ended() => {}
                status = self.process.handle.wait() => self.ended = Some(status),
                () = tokio::time::sleep_until(deadline) => return,
            }
        }
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

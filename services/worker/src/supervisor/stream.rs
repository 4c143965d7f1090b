//! A warm child: an actor that owns its process, gives it one order after the other (`order`), reads its log lines, and
//! ends with it. This file is its life beside the orders.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use millpond::limits::{CHILD_END_WITHIN, CHILD_LINE_BYTES_MAX};
use millpond::worker_record::ChildState;
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdout;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant as Clock;

use super::lines::{Found, Lines, SHUTDOWN_LINE, Said, read};
use super::logs;
use super::order::{Order, Pressed, Report};
use super::process::Process;
use super::spec::Spec;

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
    /// Held until its end is noted, when it never was ready.
    pub(crate) unready: Option<oneshot::Sender<()>>,
}

impl Life {
    /// Of one that never came to be.
    pub(crate) fn unborn(why: &str) -> Self {
        Self { fault: Some(why.to_owned()), ..Self::default() }
    }
}

/// A child on its way, at rest.
pub(crate) struct Stream {
    pub(super) process: Process,
    pub(super) stdout: Lines<ChildStdout>,
    pub(super) spec: Arc<Spec>,
    /// Mean time between two answers, of late, in nanoseconds; 0 before the first.
    pub(super) pace_ns: u64,
    pub(super) total: u64,
    pub(super) ended: Option<ExitStatus>,
    /// It was told to shut down, or to end: no more orders.
    pub(super) leaving: bool,
    /// Why it ended, when nobody told it to, and whether a task has paid for that.
    pub(super) fault: Option<String>,
    pub(super) blamed: bool,
    /// Answers since the last log line.
    pub(super) quiet_for: u32,
    /// An order that came before it was ready.
    early: Option<Order>,
}

/// What comes first.
pub(super) enum Event {
    Log(Found),
    Output(Found),
    Written(std::io::Result<usize>),
    Ended(ExitStatus),
    Time,
    Stop,
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
            quiet_for: 0,
            early: None,
        })
    }

    /// Lives until it is not wanted any more, or ends by itself. `ready` hears when it may be given an order.
    pub(crate) async fn live(mut self, mut orders: mpsc::Receiver<Order>, ready: oneshot::Sender<()>) -> Life {
        let mut last = None;
        let started = match self.spec.start_within {
            None => Ok(()),
            Some(within) => self.starts(within, &mut orders).await,
        };
        if let Err(why) = &started {
            self.fault = Some(why.clone()).filter(|_| !orders.is_closed() || self.ended.is_some());
            self.leaving = true;
            self.process.handle.end_all();
        } else {
            self.process.view.waits();
        }
        // Of one that cannot start its end is heard first: whoever waits for it then looks for another in time.
        let unready = match started {
            Ok(()) => {
                let _ = ready.send(());
                None
            }
            Err(_) => Some(ready),
        };
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
        Life { answered: self.total > 0, fault: self.fault, blamed: self.blamed, last, unready }
    }

    /// Waits for the line that says that it is ready.
    async fn starts(&mut self, within: Duration, orders: &mut mpsc::Receiver<Order>) -> Result<(), String> {
        let deadline = Clock::now() + within;
        loop {
            let found = tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline) => Event::Time,
                order = orders.recv(), if self.early.is_none() => match order {
                    Some(order) => {
                        self.early = Some(order);
                        continue;
                    }
                    None => return Err("it is not wanted any more".to_owned()),
                },
                found = self.process.stderr.next(), if !self.process.stderr.has_ended() => Event::Log(found),
                found = self.stdout.next(), if !self.stdout.has_ended() => Event::Output(found),
                status = self.process.handle.wait() => Event::Ended(status),
            };
            match found {
                Event::Log(Found::Line(line) | Found::TooLong(line)) => logs::line(&self.process.view, &line),
                Event::Output(Found::Line(line)) => match read(&line) {
                    Ok(Said::Ready) => return Ok(()),
                    _ => return Err(format!("it said {:?} before it was ready", String::from_utf8_lossy(&line))),
                },
                Event::Ended(status) => {
                    self.ended = Some(status);
                    self.process.last_lines(|_| {}).await;
                    return Err(self.process.fault(status));
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
        if let Some(order) = self.early.take() {
            return Ok(Some(order));
        }
        loop {
            let event = tokio::select! {
                biased;
                status = self.process.handle.wait() => Event::Ended(status),
                order = orders.recv() => return Ok(order),
                found = self.process.stderr.next(), if !self.process.stderr.has_ended() => Event::Log(found),
                found = self.stdout.next(), if !self.stdout.has_ended() => Event::Output(found),
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
                    return Err(self.process.fault(status));
                }
                Event::Ended(status) => {
                    self.ended = Some(status);
                    self.process.last_lines(|_| {}).await;
                    return Err(self.process.fault(status));
                }
                _ => {}
            }
        }
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
        self.process.last_lines(|_| {}).await;
    }

    /// Waits for its end, and reads meanwhile, so that it can end.
    async fn ends_within(&mut self, limit: Duration) {
        let deadline = Clock::now() + limit;
        // The timer may lag behind while lines flood in.
        while self.ended.is_none() && Clock::now() < deadline {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline) => return,
                found = self.process.stderr.next(), if !self.process.stderr.has_ended() => {
                    if let Found::Line(line) | Found::TooLong(line) = found {
                        logs::line(&self.process.view, &line);
                    }
                }
                _ = self.stdout.next(), if !self.stdout.has_ended() => {}
                status = self.process.handle.wait() => self.ended = Some(status),
            }
        }
    }
}

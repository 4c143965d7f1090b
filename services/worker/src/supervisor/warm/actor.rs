//! The life of a warm child, as an actor: it starts with its process, runs one assignment after the other, reads log lines
//! between them, and ends with its process.

use std::sync::Arc;
use std::time::Duration;

use millpond::telemetry::record_of_child;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant as Clock, sleep_until, timeout};

use super::assignment::{Assignment, AssignmentReport};
use super::child::{ChildEvent, WarmChild};
use super::output::Output;
use super::run::AssignmentRun;
use crate::supervisor::child_process::ChildProcess;
use crate::supervisor::handlers_toml::ChildSpec;
use crate::supervisor::line_protocol::{ChildMessage, SHUTDOWN_LINE};
use crate::supervisor::stop_times::END_WITHIN;

/// How a child's life ended.
#[derive(Default)]
pub(crate) struct ChildEnd {
    /// Whether the child ever answered a task.
    pub(crate) answered: bool,
    /// Whether it took a task, or said that it is ready: its handler can start.
    pub(crate) started: bool,
    /// Why the child ended although nobody told it to.
    pub(crate) fault: Option<String>,
    /// The report on the last assignment. It is sent only after the end of the child was noted, because its receiver then
    /// takes another child.
    pub(crate) last_report: Option<(oneshot::Sender<AssignmentReport>, AssignmentReport)>,
    /// What a child that never became ready was still to answer. Like the report, it is dropped only after the end of the
    /// child was noted.
    pub(crate) never_ready: Option<(oneshot::Sender<()>, Option<Assignment>)>,
}

impl ChildEnd {
    /// The end of a child that could not be started.
    pub(crate) fn not_started(reason: String) -> Self {
        Self { fault: Some(reason), ..Self::default() }
    }
}

/// The actor.
pub(crate) struct WarmChildActor {
    child: WarmChild,
    assignments: mpsc::Receiver<Assignment>,
    /// An assignment that came before the child was ready.
    early: Option<Assignment>,
}

impl WarmChildActor {
    /// `None` when the process has no standard output to read.
    pub(crate) fn new(
        process: ChildProcess,
        spec: Arc<ChildSpec>,
        assignments: mpsc::Receiver<Assignment>,
    ) -> Option<Self> {
        Some(Self { child: WarmChild::new(process, spec)?, assignments, early: None })
    }

    /// Lives until the child gets no more assignments, or ends by itself. `ready` is notified when the child may be given
    /// its first assignment.
    pub(crate) async fn live(mut self, ready: oneshot::Sender<()>) -> ChildEnd {
        let started = match self.child.spec.table.start_within {
            None => Ok(()),
            Some(within) => self.becomes_ready(within).await,
        };
        let mut end = ChildEnd::default();
        match started {
            Ok(()) => {
                self.child.process.status.waits();
                let _ = ready.send(());
            }
            Err(reason) => {
                // A child that is not needed any more is not at fault.
                let needed = !self.assignments.is_closed() || self.child.exit.is_some();
                self.child.fault = Some(reason).filter(|_| needed);
                self.child.leaving = true;
                self.child.process.handle.end_all();
                end.never_ready = Some((ready, self.early.take()));
            }
        }
        while !self.child.leaving && self.child.exit.is_none() {
            match self.next_assignment().await {
                Ok(Some(assignment)) => {
                    let report = AssignmentRun::new(&mut self.child, &assignment).run().await;
                    if self.child.exit.is_some() {
                        end.last_report = Some((assignment.report, report));
                    } else {
                        let _ = assignment.report.send(report);
                    }
                }
                Ok(None) => break,
                Err(reason) => self.child.fault = Some(reason),
            }
        }
        // The receiver is dropped before the child leaves: nobody must wait for an assignment that is never taken.
        let Self { mut child, assignments, .. } = self;
        drop(assignments);
        leave(&mut child).await;
        let (answered, started) = (child.answers > 0, child.answers > 0 || child.blamed || child.ready);
        ChildEnd { answered, started, fault: child.fault, ..end }
    }

    /// Waits for the line `{"ready":true}`.
    async fn becomes_ready(&mut self, within: Duration) -> Result<(), String> {
        let deadline = Clock::now() + within;
        loop {
            let assignments = Some(&mut self.assignments).filter(|_| self.early.is_none());
            let event = tokio::select! {
                biased;
                () = sleep_until(deadline) => {
                    let within = humantime::format_duration(within);
                    return Err(format!("it did not say {{\"ready\":true}} within {within} (start_within)"));
                }
                event = self.child.next_event(assignments) => event,
            };
            match event {
                ChildEvent::Ended(exit) => return Err(self.child.ended_idle(exit).await),
                ChildEvent::Assigned(Some(assignment)) => self.early = Some(assignment),
                ChildEvent::Assigned(None) => return Err("it is not needed any more".to_owned()),
                ChildEvent::Log(line) => self.child.log(line),
                ChildEvent::Output(Output::Message(ChildMessage::Ready)) => {
                    self.child.ready = true;
                    return Ok(());
                }
                ChildEvent::Output(
                    Output::Message(ChildMessage::Progress(..) | ChildMessage::Span(_)) | Output::End,
                ) => {}
                ChildEvent::Output(Output::Message(ChildMessage::Reply(_))) => {
                    return Err("it wrote an answer before it was ready".to_owned());
                }
                ChildEvent::Output(Output::Wrong(wrong)) => return Err(wrong.message),
                ChildEvent::Output(Output::Log(line)) => self.child.log_output(&line),
            }
        }
    }

    /// The next assignment; none when the child is not needed any more.
    ///
    /// # Errors
    /// Why the child is of no use: it has ended, or has written a line without a task.
    async fn next_assignment(&mut self) -> Result<Option<Assignment>, String> {
        if let Some(assignment) = self.early.take() {
            return Ok(Some(assignment));
        }
        loop {
            match self.child.next_event(Some(&mut self.assignments)).await {
                ChildEvent::Ended(exit) => return Err(self.child.ended_idle(exit).await),
                ChildEvent::Assigned(assignment) => return Ok(assignment),
                ChildEvent::Log(line) => self.child.log(line),
                ChildEvent::Output(Output::Log(line)) => self.child.log_output(&line),
                ChildEvent::Output(Output::Message(ChildMessage::Ready)) => self.child.ready = true,
                ChildEvent::Output(Output::Message(ChildMessage::Progress(..))) => {}
                // Of what a handler left running.
                ChildEvent::Output(Output::Message(ChildMessage::Span(span))) => record_of_child(&span),
                ChildEvent::Output(Output::Message(ChildMessage::Reply(_)) | Output::Wrong(_)) => {
                    self.child.leaving = true;
                    self.child.process.handle.end_all();
                    return Err("it wrote an answer without a task".to_owned());
                }
                ChildEvent::Output(Output::End) => {
                    // Most likely the child is about to end.
                    self.child.ends_within(END_WITHIN).await;
                    self.child.leaving = true;
                    return Err(match self.child.exit {
                        Some(exit) => self.child.ended_idle(exit).await,
                        None => "it closed its standard output".to_owned(),
                    });
                }
            }
        }
    }
}

/// Ends the child in three steps: the request to shut down, SIGTERM, and the end of all its processes.
async fn leave(child: &mut WarmChild) {
    child.process.status.stopping();
    let grace = child.spec.table.grace();
    if child.exit.is_none() {
        if let Some(mut stdin) = child.process.stdin.take() {
            let _ = timeout(grace, stdin.write_all(SHUTDOWN_LINE)).await;
        }
        child.ends_within(grace).await;
    }
    if child.exit.is_none() {
        child.process.handle.terminate();
        child.ends_within(grace).await;
    }
    if child.exit.is_none() {
        child.process.handle.end_all();
        child.ends_within(grace).await;
    }
    child.process.last_lines(|_| {}).await;
}

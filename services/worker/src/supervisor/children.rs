//! The children of one kind: they are kept warm, given one message each, and started again when they end. A kind whose
//! children cannot be started is tried again later and later, and no attempt of a task is used up meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millpond::bus::call::pipe::Pipe;
use millpond::outcome::Failure;
use millpond::retry::RetryPolicy;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::child_process::{ChildProcess, StartError};
use super::child_status::ChildStatus;
use super::handlers_toml::{ChildMode, ChildSpec};
use super::once::{conversation, task};
use super::stop_times::Timeouts;
use super::warm::actor::{ChildEnd, WarmChildActor};
use super::warm::assignment::{Assignment, AssignmentReport};
use crate::call::Call;
use crate::call_end::CallEnd;
use crate::run::work_cursor::WorkCursor;

/// How long a message waits while no child may be started, before its task is released.
const TICKET_WITHIN: Duration = Duration::from_secs(1);
/// How long children may take to end when the worker leaves, unless three times their grace is longer.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);
/// When a child is started again whose predecessors died on their tasks: the input is at fault, not the handler. At once for
/// the first ones, and later and later for those that follow, so that bad input does not keep a machine busy with starts.
const CRASH_DELAYS: [(u32, Duration); 4] = [
    (8, Duration::ZERO),
    (32, Duration::from_millis(100)),
    (128, Duration::from_secs(1)),
    (u32::MAX, Duration::from_secs(2)),
];
/// When a child whose handler does not start is started again.
const START_RETRY: RetryPolicy = RetryPolicy {
    attempts_max: u32::MAX,
    delay: Duration::from_millis(500),
    delay_max: Duration::from_secs(60),
    jitter: 0.0,
};

/// The children of one kind.
pub(crate) struct Children {
    pub(crate) spec: Arc<ChildSpec>,
    worker: String,
    state: Mutex<ChildrenState>,
}

#[derive(Default)]
struct ChildrenState {
    idle: Vec<IdleChild>,
    /// The numbers in use, with the status of each child.
    statuses: BTreeMap<u32, Arc<ChildStatus>>,
    /// How many children have ended under each number.
    ended: BTreeMap<u32, u32>,
    /// How many children in a row have ended before they took a task.
    failures: u32,
    /// How many children in a row have died on a task without an answer of any.
    crashes: u32,
    /// When the next child may be started.
    not_before: Option<Instant>,
    /// Why children cannot be started.
    trouble: Option<String>,
    actors: JoinSet<()>,
    closed: bool,
}

impl ChildrenState {
    /// A child has answered: the handler is not broken.
    fn handler_works(&mut self) {
        (self.failures, self.crashes, self.not_before, self.trouble) = (0, 0, None, None);
    }

    /// A child has died on its task, or was ready for one: the handler can start. How long the next child waits.
    fn handler_crashed(&mut self) -> Duration {
        self.crashes = self.crashes.saturating_add(1);
        (self.failures, self.trouble) = (0, None);
        let crashes = self.crashes;
        let delay =
            CRASH_DELAYS.iter().find(|(up_to, _)| crashes <= *up_to).map_or(Duration::ZERO, |(_, delay)| *delay);
        self.not_before = Some(Instant::now() + delay);
        delay
    }
}

/// A warm child that waits for an assignment. It leaves when this is dropped.
struct IdleChild {
    assignments: mpsc::Sender<Assignment>,
    /// Notified when the child is ready; an error says that it has ended before. None once it is known to be ready.
    when_ready: Option<oneshot::Receiver<()>>,
}

/// The right to run one message in the children of a kind. A child that was not used is idle again when its ticket is
/// dropped.
pub(crate) struct ChildTicket {
    children: Arc<Children>,
    /// None where a process is started for each task.
    child: Option<IdleChild>,
}

/// No child can be had for now.
#[derive(Debug)]
pub(crate) struct ChildUnavailable {
    pub(crate) retry_after: Duration,
}

impl Drop for ChildTicket {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            self.children.put_back(child);
        }
    }
}

impl ChildTicket {
    /// Runs the calls of a message, by as many children one after the other as it takes. The ends come in the order of the
    /// calls without gaps, as far as the children got.
    pub(crate) async fn run(
        mut self,
        calls: Vec<Call>,
        cursor: Arc<WorkCursor>,
        timeouts: Timeouts,
        stop: &CancellationToken,
    ) -> Vec<CallEnd> {
        let children = self.children.clone();
        let Some(mut child) = self.child.take() else {
            return children.run_once(&calls, &cursor, timeouts, stop).await;
        };
        let calls = Arc::new(calls);
        let (mut ends, mut claimed) = (Vec::new(), 0);
        loop {
            let (report, reported) = oneshot::channel();
            let assignment = Assignment {
                calls: calls.clone(),
                cursor: cursor.clone(),
                from: ends.len(),
                claimed,
                timeouts,
                stop: stop.clone(),
                report,
            };
            let sent = child.assignments.send(assignment).await.is_ok();
            // A child that ended before it took the assignment has claimed nothing.
            let none = AssignmentReport { ends: Vec::new(), claimed, alive: false, answered: false };
            let report = if sent { reported.await.unwrap_or(none) } else { none };
            if report.answered {
                children.state().handler_works();
            }
            ends.extend(report.ends);
            claimed = claimed.max(report.claimed);
            if report.alive {
                children.put_back(child);
            }
            let done = ends.len() >= claimed && cursor.is_empty();
            if done || stop.is_cancelled() {
                return ends;
            }
            // Without another child, the calls that were not run go to other workers.
            let next = children.ticket().await.ok().and_then(|mut ticket| ticket.child.take());
            let Some(next) = next else { return ends };
            child = next;
        }
    }
}

impl Children {
    pub(crate) fn new(spec: ChildSpec, worker: &str) -> Arc<Self> {
        Arc::new(Self { spec: Arc::new(spec), worker: worker.to_owned(), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, ChildrenState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the children get their tasks as lines.
    pub(crate) fn takes_lines(&self) -> bool {
        self.spec.table.mode == ChildMode::Stream
    }

    /// Starts as many children as may be needed at once, so that they are warm; one where they share slots.
    pub(crate) fn warm_up(self: &Arc<Self>) {
        if self.takes_lines() {
            for _ in 0..self.spec.table.slots.unwrap_or(1) {
                if let Some(child) = self.start() {
                    self.put_back(child);
                }
            }
        }
    }

    /// Waits for a child for one message: while it starts, and a moment while none may be started.
    ///
    /// # Errors
    /// [`ChildUnavailable`] when none may be started for longer than that.
    ///
    /// # Cancel safety
    /// Safe: a child that is not fetched ends.
    pub(crate) async fn ticket(self: &Arc<Self>) -> Result<ChildTicket, ChildUnavailable> {
        let deadline = Instant::now() + TICKET_WITHIN;
        let ticket = |child| ChildTicket { children: self.clone(), child };
        loop {
            let (idle, not_before) = {
                let mut state = self.state();
                (state.idle.pop(), state.not_before)
            };
            if let Some(child) = idle {
                if let Some(child) = ready(child).await {
                    return Ok(ticket(Some(child)));
                }
                continue;
            }
            if let Some(at) = not_before.filter(|at| *at > Instant::now()) {
                // A slot is worth more than a long wait.
                if at > deadline {
                    return Err(ChildUnavailable { retry_after: at.saturating_duration_since(Instant::now()) });
                }
                tokio::time::sleep_until(at.into()).await;
            }
            if !self.takes_lines() {
                return Ok(ticket(None));
            }
            let Some(child) = self.start() else { continue };
            // A child that fails at its start has set `not_before` by then.
            if let Some(child) = ready(child).await {
                return Ok(ticket(Some(child)));
            }
        }
    }

    /// Runs calls one after the other, each in a process of its own.
    async fn run_once(
        &self,
        calls: &[Call],
        cursor: &WorkCursor,
        timeouts: Timeouts,
        stop: &CancellationToken,
    ) -> Vec<CallEnd> {
        let mut ends = Vec::new();
        while !stop.is_cancelled()
            && let Some(call) = cursor.claim(0).and_then(|next| calls.get(next))
        {
            let (number, status) = self.register();
            let ran = task::run(&self.spec, &status, call, timeouts, stop).await;
            match self.ended_once(number, ran) {
                Ok(CallEnd::NotRun) | Err(_) => return ends,
                Ok(end) => ends.push(end),
            }
        }
        ends
    }

    /// Starts a process that converses, and waits for its end.
    ///
    /// # Errors
    /// Why it failed, or could not be started.
    pub(crate) async fn converse(&self, call: &Call, pipe: Pipe, stop: &CancellationToken) -> Result<(), Failure> {
        let (number, status) = self.register();
        let ran = conversation::run(&self.spec, &status, call, pipe, stop).await;
        self.ended_once(number, ran).unwrap_or_else(|error| Err(Failure::new("cannot_start", error.to_string())))
    }

    /// The status of each child.
    pub(crate) fn statuses(&self) -> Vec<Arc<ChildStatus>> {
        self.state().statuses.values().cloned().collect()
    }

    /// Why children cannot be started, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.state().trouble.clone()
    }

    /// Ends all children, and waits until they have ended.
    pub(crate) async fn close(&self) {
        let mut actors = {
            let mut state = self.state();
            state.closed = true;
            state.idle.clear();
            std::mem::take(&mut state.actors)
        };
        let all = async { while actors.join_next().await.is_some() {} };
        let limit = CLOSE_WITHIN.max(self.spec.table.grace() * 3);
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!(kind = %self.spec.kind, "children did not end when they were asked, and are killed");
            // The guard of an actor that is dropped ends the child.
            actors.shutdown().await;
        }
    }

    fn put_back(&self, child: IdleChild) {
        let mut state = self.state();
        if !state.closed {
            state.idle.push(child);
        }
    }

    /// The least free number, and the status of a child under its name.
    fn register(&self) -> (u32, Arc<ChildStatus>) {
        let mut state = self.state();
        let number = (1..=u32::MAX).find(|n| !state.statuses.contains_key(n)).unwrap_or(u32::MAX);
        let ended = state.ended.get(&number).copied().unwrap_or(0);
        // A process of one use ends with its task: that is no restart.
        let (restarts, done) = if self.takes_lines() { (ended, 0) } else { (0, ended) };
        let status = Arc::new(ChildStatus::new(&self.worker, &self.spec.kind, number, restarts, done.into()));
        state.statuses.insert(number, status.clone());
        (number, status)
    }

    /// Starts a warm child.
    fn start(self: &Arc<Self>) -> Option<IdleChild> {
        let (number, status) = self.register();
        let (assignments, receiver) = mpsc::channel(1);
        let actor = ChildProcess::start(&self.spec, status, None, &[]).and_then(|process| {
            let actor = WarmChildActor::new(process, self.spec.clone(), receiver);
            actor.ok_or_else(|| StartError::CannotStart("it has no standard output".to_owned()))
        });
        let actor = match actor {
            Ok(actor) => actor,
            Err(error) => {
                self.ended(number, &ChildEnd::not_started(error.to_string()));
                return None;
            }
        };
        let (ready, when_ready) = oneshot::channel();
        let children = self.clone();
        let mut state = self.state();
        while state.actors.try_join_next().is_some() {}
        state.actors.spawn(async move {
            let end = actor.live(ready).await;
            children.ended(number, &end);
            drop(end.never_ready);
            if let Some((sender, report)) = end.last_report {
                let _ = sender.send(report);
            }
        });
        Some(IdleChild { assignments, when_ready: Some(when_ready).filter(|_| self.spec.table.start_within.is_some()) })
    }

    /// Notes the end of a process of one use, and passes on what became of it.
    fn ended_once<T>(&self, number: u32, ran: Result<T, StartError>) -> Result<T, StartError> {
        let end = match &ran {
            Ok(_) => ChildEnd { answered: true, started: true, ..ChildEnd::default() },
            Err(error) => ChildEnd::not_started(error.to_string()),
        };
        self.ended(number, &end);
        ran
    }

    /// Notes the end of a child: its number is free, and the next child may have to wait.
    fn ended(&self, number: u32, end: &ChildEnd) {
        let mut state = self.state();
        let name = state.statuses.remove(&number).map_or_else(String::new, |status| status.name.clone());
        *state.ended.entry(number).or_default() += 1;
        if end.answered {
            state.handler_works();
        }
        let (Some(fault), false) = (&end.fault, state.closed) else { return };
        if end.started {
            let delay = state.handler_crashed();
            tracing::warn!(
                child = %name, kind = %self.spec.kind, reason = %fault, ?delay,
                "a child ended; another takes its place"
            );
            return;
        }
        state.failures = state.failures.saturating_add(1);
        let delay = START_RETRY.delay(state.failures, 0.0);
        state.not_before = Some(Instant::now() + delay);
        state.trouble = Some(fault.clone());
        let again = humantime::format_duration(delay);
        tracing::error!(
            child = %name, kind = %self.spec.kind, reason = %fault,
            "a child cannot start: it ended before it took a task. The tasks of its kind wait, and it is tried again in {again}"
        );
    }
}

/// The child once it is ready; none when it has ended. A task is given to a ready child only: until then it has not started.
async fn ready(mut child: IdleChild) -> Option<IdleChild> {
    if let Some(when_ready) = &mut child.when_ready {
        when_ready.await.ok()?;
        child.when_ready = None;
    }
    (!child.assignments.is_closed()).then_some(child)
}

//! The children of one kind: kept warm, given one message each, started again when they end. One that cannot be started
//! is started later and later, and no task is burned on it meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millpond::bus::call::pipe::Pipe;
use millpond::limits::RELEASE_AFTER;
use millpond::outcome::Failure;
use millpond::retry::RetryPolicy;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::converse;
use super::once;
use super::order::{Order, Report, Timeouts};
use super::process::Process;
use super::spec::{Mode, Spec};
use super::stream::{Life, Stream};
use super::view::View;
use crate::call::Call;
use crate::call_end::CallEnd;
use crate::run::work_cursor::WorkCursor;

/// How long children may take to end when the worker leaves, or three times their grace.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);
/// Children in a row that may end on their first task before their handler is taken for broken.
const STRIKES_FREE: u32 = 3;
/// When children whose start failed are started again.
const START_RETRY: RetryPolicy = RetryPolicy {
    attempts_max: u32::MAX,
    delay: Duration::from_millis(500),
    delay_max: Duration::from_secs(60),
    jitter: 0.0,
};

/// The children of one kind.
pub(crate) struct Pool {
    pub(crate) spec: Arc<Spec>,
    worker: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    idle: Vec<Child>,
    /// Numbers in use, with what may be seen of each child.
    views: BTreeMap<u32, Arc<View>>,
    /// Children that ended under each number.
    ended: BTreeMap<u32, u32>,
    /// Children that ended one after the other without an answer, and when the next may be started.
    strikes: u32,
    not_before: Option<Instant>,
    trouble: Option<String>,
    actors: JoinSet<()>,
    closed: bool,
}

impl State {
    /// A child has answered: the handler is not broken.
    fn works(&mut self) {
        (self.strikes, self.not_before, self.trouble) = (0, None, None);
    }
}

/// A warm child that waits for an order.
pub(crate) struct Child {
    orders: mpsc::Sender<Order>,
}

/// What a message needs before it may start.
pub(crate) enum Ticket {
    /// A warm child.
    Warm(Child),
    /// A process is started for each task.
    Cold,
}

/// No child now: try again after this time.
#[derive(Debug)]
pub(crate) struct NotNow(pub(crate) Duration);

impl Pool {
    pub(crate) fn new(spec: Spec, worker: &str) -> Arc<Self> {
        Arc::new(Self { spec: Arc::new(spec), worker: worker.to_owned(), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its children get their tasks as lines.
    pub(crate) fn takes_lines(&self) -> bool {
        self.spec.mode == Mode::Stream
    }

    /// Starts as many children as may be needed at once, so that they are warm; one where they share slots.
    pub(crate) fn warm(self: &Arc<Self>) {
        if self.spec.mode == Mode::Stream {
            for _ in 0..self.spec.slots.unwrap_or(1) {
                if let Some((child, _)) = self.start() {
                    self.put_back(child);
                }
            }
        }
    }

    /// A child for one message. Waits while one starts, and a moment while none may be started.
    ///
    /// # Cancel safety
    /// Safe: a child that is not fetched ends.
    pub(crate) async fn ticket(self: &Arc<Self>) -> Result<Ticket, NotNow> {
        let patience = Instant::now() + RELEASE_AFTER;
        loop {
            let (idle, not_before) = {
                let mut state = self.state();
                (state.idle.pop(), state.not_before)
            };
            if let Some(child) = idle {
                if child.orders.is_closed() {
                    continue;
                }
                return Ok(Ticket::Warm(child));
            }
            if let Some(at) = not_before.filter(|at| *at > Instant::now()) {
                // Its slot is worth more than a long wait.
                if at > patience {
                    return Err(NotNow(at.saturating_duration_since(Instant::now())));
                }
                tokio::time::sleep_until(at.into()).await;
            }
            if self.spec.mode == Mode::Once {
                return Ok(Ticket::Cold);
            }
            let Some((child, ready)) = self.start() else { continue };
            // One that fails at its start has moved the time of the next.
            if self.spec.start_within.is_none() || ready.await.is_ok() {
                return Ok(Ticket::Warm(child));
            }
        }
    }

    /// Gives back a child that is not needed after all.
    pub(crate) fn give_back(&self, ticket: Ticket) {
        if let Ticket::Warm(child) = ticket {
            self.put_back(child);
        }
    }

    /// Runs the calls of a message, by as many children one after the other as it takes; the ends in order, without
    /// gaps, as far as it got.
    pub(crate) async fn run(
        self: &Arc<Self>,
        ticket: Ticket,
        calls: Vec<Call>,
        cursor: Arc<WorkCursor>,
        timeouts: Timeouts,
        stop: &CancellationToken,
    ) -> Vec<CallEnd> {
        let calls = Arc::new(calls);
        let Ticket::Warm(mut child) = ticket else { return self.one_by_one(&calls, &cursor, timeouts, stop).await };
        let (mut ends, mut claimed) = (Vec::new(), 0);
        loop {
            let (report, reported) = oneshot::channel();
            let order = Order {
                calls: calls.clone(),
                cursor: cursor.clone(),
                from: ends.len(),
                claimed,
                timeouts,
                stop: stop.clone(),
                report,
            };
            let sent = child.orders.send(order).await.is_ok();
            // A child that ended before it took the order has claimed nothing.
            let none = Report { ends: Vec::new(), claimed, alive: false, answered: false };
            let report = if sent { reported.await.unwrap_or(none) } else { none };
            if report.answered {
                self.state().works();
            }
            ends.extend(report.ends);
            claimed = claimed.max(report.claimed);
            if report.alive {
                self.put_back(child);
            }
            let done = ends.len() >= claimed && cursor.is_empty();
            if done || stop.is_cancelled() {
                return ends;
            }
            match self.ticket().await {
                Ok(Ticket::Warm(next)) => child = next,
                // What was not run goes to other workers.
                _ => return ends,
            }
        }
    }

    async fn one_by_one(
        self: &Arc<Self>,
        calls: &[Call],
        cursor: &WorkCursor,
        timeouts: Timeouts,
        stop: &CancellationToken,
    ) -> Vec<CallEnd> {
        let mut ends = Vec::new();
        while !stop.is_cancelled()
            && let Some(call) = cursor.claim(0).and_then(|next| calls.get(next))
        {
            let (number, view) = self.number();
            let ran = once::run(&self.spec, &self.worker, &view, call, timeouts, stop).await;
            let life = match &ran {
                Ok(_) => Life { answered: true, ..Life::default() },
                Err(why) => Life::unborn(why),
            };
            self.ended(number, &life);
            match ran {
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
    pub(crate) async fn converse(
        self: &Arc<Self>,
        call: &Call,
        pipe: Pipe,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let (number, view) = self.number();
        let ran = converse::run(&self.spec, &self.worker, &view, call, pipe, stop).await;
        let life = match &ran {
            Ok(_) => Life { answered: true, ..Life::default() },
            Err(why) => Life::unborn(why),
        };
        self.ended(number, &life);
        ran.unwrap_or_else(|why| Err(Failure::new("cannot_start", why)))
    }

    /// What may be seen of its children.
    pub(crate) fn views(&self) -> Vec<Arc<View>> {
        self.state().views.values().cloned().collect()
    }

    /// Why its children cannot be started, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.state().trouble.clone()
    }

    /// Ends all children, and waits for it.
    pub(crate) async fn close(&self) {
        let mut actors = {
            let mut state = self.state();
            state.closed = true;
            state.idle.clear();
            std::mem::take(&mut state.actors)
        };
        let all = async { while actors.join_next().await.is_some() {} };
        // What is left then is dropped, and its guards end it.
        let limit = CLOSE_WITHIN.max(self.spec.grace * 3);
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!(kind = %self.spec.kind, "children did not end when they were asked, and are killed");
            actors.shutdown().await;
        }
    }

    fn put_back(&self, child: Child) {
        let mut state = self.state();
        if !state.closed {
            state.idle.push(child);
        }
    }

    /// The least free number, and a view under its name.
    fn number(&self) -> (u32, Arc<View>) {
        let mut state = self.state();
        let number = (1..=u32::MAX).find(|n| !state.views.contains_key(n)).unwrap_or(u32::MAX);
        let before = state.ended.get(&number).copied().unwrap_or(0);
        // A process for each task ends with it: that is no restart.
        let (restarts, done) = if self.spec.mode == Mode::Once { (0, before) } else { (before, 0) };
        let view = Arc::new(View::new(&self.worker, &self.spec.kind, number, restarts, done.into()));
        state.views.insert(number, view.clone());
        (number, view)
    }

    /// Starts a child; the second hears when it is ready, or why not.
    fn start(self: &Arc<Self>) -> Option<(Child, oneshot::Receiver<()>)> {
        let (number, view) = self.number();
        let process = Process::start(&self.spec, &self.worker, view, None, &[]);
        let stream = process.map(|process| Stream::new(process, self.spec.clone()));
        let (orders, taken) = mpsc::channel(1);
        let (told, ready) = oneshot::channel();
        let stream = match stream {
            Ok(Some(stream)) => stream,
            Ok(None) => {
                self.ended(number, &Life::unborn("it has no standard output"));
                return None;
            }
            Err(error) => {
                self.ended(number, &Life::unborn(&error.to_string()));
                return None;
            }
        };
        let pool = self.clone();
        let mut state = self.state();
        while state.actors.try_join_next().is_some() {}
        state.actors.spawn(async move {
            let life = stream.live(taken, told).await;
            pool.ended(number, &life);
            drop(life.unready);
            if let Some((whom, report)) = life.last {
                let _ = whom.send(report);
            }
        });
        Some((Child { orders }, ready))
    }

    /// A child has ended: its number is free, and the next one may have to wait.
    fn ended(&self, number: u32, life: &Life) {
        let mut state = self.state();
        let name = state.views.remove(&number).map_or_else(String::new, |view| view.name.clone());
        *state.ended.entry(number).or_default() += 1;
        if life.answered {
            state.works();
        }
        let (Some(fault), false) = (&life.fault, state.closed) else { return };
        if !life.answered {
            state.strikes = state.strikes.saturating_add(1);
        }
        // The first tasks may be at fault themselves; when child after child ends on its first, it is the handler.
        if life.answered || life.blamed && state.strikes < STRIKES_FREE {
            tracing::warn!(child = %name, kind = %self.spec.kind, reason = %fault, "a child ended; another takes its place");
            return;
        }
        let delay = START_RETRY.delay(state.strikes, 0.0);
        state.not_before = Some(Instant::now() + delay);
        state.trouble = Some(fault.clone());
        let again = humantime::format_duration(delay);
        tracing::error!(
            child = %name, kind = %self.spec.kind, reason = %fault,
            "a child cannot start; its tasks wait, and it is tried again in {again}"
        );
    }
}

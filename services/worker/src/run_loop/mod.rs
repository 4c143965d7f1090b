//! Takes tasks from the bus, gives them slots and starts them; releases those that wait too long, and drains in the end.
//! `process.rs` shows what happens to a task that has a slot.

pub(crate) mod drain_requests;
mod first_poll;
pub(crate) mod intake;
pub(crate) mod pools;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use millpond::bus::consume::lease::Leases;
use millpond::bus::consume::pull::Puller;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::context::WorkerContext;
use crate::process::process;

use first_poll::FirstPolls;
use intake::Intake;

/// Outcomes of one worker between "executed" and "acknowledged" at once; slots wait beyond it.
const SETTLING_MAX: usize = 2048;
/// How long settlements may take after the drain's time is over.
const SETTLE_AFTER_DRAIN: Duration = Duration::from_secs(5);
/// How often the loop releases what waits too long, and checks whether the worker is idle.
const TICK: Duration = Duration::from_millis(100);
/// Tasks that are taken in before those with a slot are started, at the most.
const ARRIVALS_MAX: usize = 128;

/// The loop: what waits, and what runs.
pub(crate) struct RunLoop {
    context: Arc<WorkerContext>,
    leases: Leases,
    intake: Intake,
    running: JoinSet<()>,
    drain_time: Duration,
    idle_exit: Option<Duration>,
    busy_at: Instant,
}

impl RunLoop {
    pub(crate) fn new(settings: &Settings, context: &Arc<WorkerContext>, leases: &Leases) -> Self {
        Self {
            context: context.clone(),
            leases: leases.clone(),
            intake: Intake::new(&context.pools, &settings.queues),
            running: JoinSet::new(),
            drain_time: settings.drain_time,
            idle_exit: settings.idle_exit,
            busy_at: Instant::now(),
        }
    }

    /// Takes tasks until the shutdown, or until the worker was idle for as long as `--idle-exit` says.
    pub(crate) async fn take_tasks(&mut self, mut puller: Puller, shutdown: &CancellationToken) -> Puller {
        let context = self.context.clone();
        let mut tick = tokio::time::interval(TICK);
        loop {
            let blocked = self.start_tasks();
            puller.request(self.intake.capacity()).await;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return puller,
                lease = puller.next() => {
                    lease.into_iter().for_each(|lease| self.intake.push(lease));
                    // Takes what else has arrived: each turn of the loop has its own cost.
                    for _ in 1..ARRIVALS_MAX {
                        let Some(lease) = puller.next().now_or_never() else { break };
                        lease.into_iter().for_each(|lease| self.intake.push(lease));
                    }
                }
                // Behind the arrivals, so that they do not wait while tasks end one after the other. A slot that is free again is
                // also capacity to pull for.
                () = context.pools.freed() => {}
                Some(_) = self.running.join_next(), if blocked => {}
                () = context.batches.settled(), if blocked => {}
                // Always: a worker without work must pull again when its pulls have run out.
                _ = tick.tick() => {
                    self.release_late(&mut puller).await;
                    if self.is_idle() {
                        tracing::info!("idle for long enough, leaving");
                        return puller;
                    }
                }
            }
        }
    }

    /// Starts what has a slot. True when tasks with a slot wait for others to be settled.
    fn start_tasks(&mut self) -> bool {
        // Without a waker: the loop is not woken for each task that ends.
        while self.running.try_join_next().is_some() {}
        let first_polls = FirstPolls::new();
        loop {
            if self.running.len() + self.context.batches.settling() >= SETTLING_MAX + self.context.pools.size() {
                return self.intake.len() > 0;
            }
            let Some((lease, slot)) = self.intake.pop() else { return false };
            let stats = first_polls.fitting(&self.context, &lease);
            let mut task = Box::pin(process(self.context.clone(), lease, slot));
            if !stats.is_some_and(|stats| first_polls.has_ended(task.as_mut(), stats)) {
                self.running.spawn(task);
            }
        }
    }

    async fn release_late(&mut self, puller: &mut Puller) {
        let delay = self.intake.release_delay();
        for lease in self.intake.late() {
            puller.release(lease, delay).await;
        }
    }

    /// Whether the worker has had nothing to do for as long as `--idle-exit` says.
    fn is_idle(&mut self) -> bool {
        let called = self.context.called.swap(false, Ordering::Relaxed);
        if called || self.leases.held() > 0 || self.context.pools.running() > 0 {
            self.busy_at = Instant::now();
        }
        self.idle_exit.is_some_and(|limit| self.busy_at.elapsed() >= limit)
    }

    /// Releases what has not started, and lets what runs end; after the drain's time, publishes again what still runs.
    pub(crate) async fn drain(mut self, puller: Puller) {
        tracing::info!(running = self.running.len(), waiting = self.intake.len(), "draining");
        for lease in self.intake.drain().into_iter().chain(puller.stop().await) {
            lease.release(Duration::ZERO).await;
        }
        if tokio::time::timeout(self.drain_time, all_settled(&self.context, &mut self.running)).await.is_ok() {
            return self.leases.answered().await;
        }
        tracing::warn!(
            running = self.running.len(),
            "the drain's time is over; what still runs is stopped and published again"
        );
        self.context.stop.cancel();
        if tokio::time::timeout(SETTLE_AFTER_DRAIN, all_settled(&self.context, &mut self.running)).await.is_err() {
            let unsettled = self.running.len() + self.context.batches.settling();
            tracing::warn!(running = unsettled, "not all could be settled; those tasks will run again");
        }
        self.leases.answered().await;
    }
}

async fn all_settled(context: &WorkerContext, running: &mut JoinSet<()>) {
    while running.join_next().await.is_some() {}
    context.batches.all_settled().await;
}

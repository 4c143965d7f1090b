//! The worker: takes tasks, runs their handlers in slots, settles them. Also a library: [`Worker`] runs handlers of
//! your own. This file holds the loop: lease -> `work` (door, execute, settle); the parts do not know each other.
//! Not here: storage, any API but the tasks themselves.

mod cancels;
pub mod config;
mod execute;
mod handlers;
mod heartbeat;
mod kinds;
mod settle;
mod work;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use millpond::bus::lease::{Lease, Leases};
use millpond::bus::pack::Packer;
use millpond::bus::pull::Puller;
use millpond::bus::{Bus, Role};
use millpond::limits::{HAND_BACK_AFTER, LOOKAHEAD, LOOKAHEAD_TASKS_MAX, SETTLING_MAX};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Settings};
pub use handlers::{Call, Reply, reply};

use cancels::Cancels;
use handlers::{Handler, Handlers};
use heartbeat::Heartbeat;
use kinds::Kinds;
use settle::Settler;
use work::{Shop, Stats, work};

/// How long settlements may take after the drain's time is over.
const SETTLE_AFTER_DRAIN: Duration = Duration::from_secs(5);
/// How often the loop looks at what waits too long, and whether it is idle.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A worker with handlers.
///
/// ```no_run
/// use millpond_worker::{Call, Reply, Settings, Worker, reply};
///
/// async fn greet(call: Call) -> Reply {
///     let name: String = call.args()?;
///     reply(&format!("hello {name}"))
/// }
///
/// async fn start(settings: Settings) -> anyhow::Result<()> {
///     let shutdown = millpond::shutdown::on_signal()?;
///     Worker::new(settings).handle("greet", greet).run(shutdown).await
/// }
/// ```
pub struct Worker {
    settings: Settings,
    handlers: Handlers,
}

impl Worker {
    /// A worker that knows the built-in kinds.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, handlers: handlers::built_in() }
    }

    /// Adds a handler for work that waits; it must not compute for long.
    #[must_use]
    pub fn handle<F>(mut self, kind: impl Into<String>, handler: impl Fn(Call) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        self.handlers.insert(kind.into(), Handler::Async(Arc::new(move |call| Box::pin(handler(call)))));
        self
    }

    /// Adds a handler for work that computes; it runs on a thread.
    #[must_use]
    pub fn handle_blocking(
        mut self,
        kind: impl Into<String>,
        handler: impl Fn(&Call) -> Reply + Send + Sync + 'static,
    ) -> Self {
        self.handlers.insert(kind.into(), Handler::Blocking(Arc::new(handler)));
        self
    }

    /// Takes and runs tasks until `shutdown`, or until it was idle for as long as it was told; then drains.
    ///
    /// # Errors
    /// When NATS cannot be reached at the start, or setup has not run.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { settings, handlers } = self;
        execute::note_panics();
        let bus = Bus::connect(&settings.nats_url, Role::Worker, &settings.name, settings.connect_timeout).await?;
        let nonce = millpond::random_token();
        let mut background = JoinSet::new();
        let leases = Leases::start(&bus, &settings.name, &nonce, &mut background).await?;
        let puller = Puller::start(&bus, &leases, &settings.queues).await?;
        let (cancels, kinds) = (Cancels::load(&bus).await?, Kinds::new());
        background.spawn(cancels.clone().follow(bus.clone()));
        background.spawn(kinds.clone().follow(bus.clone()));
        let packer = Packer::new(&bus, &settings.name, &nonce);
        let (worker, backoff) = (settings.name.clone(), settings.backoff);
        let shop = Arc::new(Shop {
            settler: Settler { bus: bus.clone(), packer, worker, backoff, cancels },
            handlers,
            kinds,
            task_timeout: settings.task_timeout,
            unknown_kind_after: settings.unknown_kind_after,
            draining: CancellationToken::new(),
            stop: CancellationToken::new(),
            stats: Stats::default(),
            slots: Arc::new(Semaphore::new(settings.slots)),
            asking: Arc::new(Semaphore::new(settings.slots)),
        });
        let slots = shop.slots.clone();
        let draining = shop.draining.clone();
        let heartbeat = Heartbeat::new(&bus, &settings, &nonce, &shop, &leases, &slots, &draining);
        heartbeat.beat().await?;
        background.spawn(heartbeat.clone().beat_for_ever());
        tracing::info!(
            worker = %settings.name,
            nats = %millpond::bus::without_password(&settings.nats_url),
            queues = ?settings.queues,
            slots = settings.slots,
            drain_time = ?settings.drain_time,
            task_timeout = ?settings.task_timeout,
            idle_exit = ?settings.idle_exit,
            retry_delay = ?settings.backoff.base,
            kinds = ?shop.handlers.keys().collect::<Vec<_>>(),
            "worker ready"
        );
        let mut floor = Floor { settings, shop, leases, slots, ready: Ready::default(), running: JoinSet::new() };
        let puller = floor.take_tasks(puller, &shutdown).await;
        draining.cancel();
        heartbeat.beat().await.ok();
        floor.drain(puller).await;
        heartbeat.leave().await;
        background.shutdown().await;
        bus.close().await;
        tracing::info!("worker drained");
        Ok(())
    }
}

/// Runs a worker with the built-in kinds until `shutdown`.
///
/// # Errors
/// When NATS cannot be reached at the start, or setup has not run.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    Worker::new(settings).run(shutdown).await
}

/// What was delivered and waits for a slot; DUE goes first.
#[derive(Default)]
struct Ready {
    due: VecDeque<Lease>,
    tasks: VecDeque<Lease>,
}

impl Ready {
    fn push(&mut self, lease: Lease) {
        if lease.is_due() { self.due.push_back(lease) } else { self.tasks.push_back(lease) }
    }

    fn pop(&mut self) -> Option<Lease> {
        self.due.pop_front().or_else(|| self.tasks.pop_front())
    }

    fn len(&self) -> usize {
        self.due.len() + self.tasks.len()
    }

    /// Takes out what has waited for longer than `limit`.
    fn waited(&mut self, limit: Duration) -> Vec<Lease> {
        let mut late = Vec::new();
        for queue in [&mut self.due, &mut self.tasks] {
            while queue.front().is_some_and(|lease| lease.since().elapsed() > limit) {
                late.extend(queue.pop_front());
            }
        }
        late
    }
}

/// The shop floor: what waits, what runs.
struct Floor {
    settings: Settings,
    shop: Arc<Shop>,
    leases: Leases,
    slots: Arc<Semaphore>,
    ready: Ready,
    running: JoinSet<()>,
}

impl Floor {
    /// The loop. Ends at the shutdown, or when idle for as long as it was told.
    async fn take_tasks(&mut self, mut puller: Puller, shutdown: &CancellationToken) -> Puller {
        let settling = Arc::new(Semaphore::new(SETTLING_MAX));
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut busy_at = Instant::now();
        loop {
            puller.ask(self.room()).await;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return puller,
                Ok(slot) = self.slots.clone().acquire_owned(), if self.ready.len() > 0 => {
                    // Few wait here: it bounds what is executed and not yet acknowledged.
                    let Ok(permit) = settling.clone().acquire_owned().await else { return puller };
                    if let Some(lease) = self.ready.pop() {
                        let shop = self.shop.clone();
                        self.running.spawn(async move {
                            work(shop, lease, slot).await;
                            drop(permit);
                        });
                    }
                }
                lease = puller.next() => self.ready.push(lease),
                Some(_) = self.running.join_next() => {}
                _ = look.tick() => {
                    for lease in self.ready.waited(HAND_BACK_AFTER) {
                        lease.hand_back(Duration::ZERO).await;
                    }
                    if self.leases.held() > 0 {
                        busy_at = Instant::now();
                    } else if self.settings.idle_exit.is_some_and(|limit| busy_at.elapsed() >= limit) {
                        tracing::info!("idle for long enough, leaving");
                        return puller;
                    }
                }
            }
        }
    }

    /// How many more tasks may be held: one per free slot, and a little work ahead when tasks are tiny.
    fn room(&self) -> usize {
        let pace_ns = u128::from(self.shop.stats.pace_ns.load(Ordering::Relaxed));
        let ahead = match pace_ns {
            0 => 0,
            pace => (LOOKAHEAD.as_nanos() * self.settings.slots as u128 / pace).min(LOOKAHEAD_TASKS_MAX as u128),
        };
        // Less than a task per slot ahead is nothing ahead: long tasks are not hoarded.
        let ahead = usize::try_from(ahead).unwrap_or(0);
        let ahead = if ahead < self.settings.slots { 0 } else { ahead };
        let running = self.settings.slots.saturating_sub(self.slots.available_permits());
        (self.settings.slots + ahead).saturating_sub(running + self.ready.len())
    }

    /// Hands back what has not started, lets what runs end, and after the drain's time hands back the rest of it.
    async fn drain(mut self, puller: Puller) {
        tracing::info!(running = self.running.len(), waiting = self.ready.len(), "draining");
        for lease in puller.stop().await {
            self.ready.push(lease);
        }
        while let Some(lease) = self.ready.pop() {
            lease.hand_back(Duration::ZERO).await;
        }
        let all_ended = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(self.settings.drain_time, all_ended).await.is_ok() {
            return;
        }
        tracing::warn!(running = self.running.len(), "the drain's time is over, handing back what still runs");
        self.shop.stop.cancel();
        let all_settled = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(SETTLE_AFTER_DRAIN, all_settled).await.is_err() {
            tracing::warn!(running = self.running.len(), "not all could be settled; those tasks will run again");
        }
    }
}

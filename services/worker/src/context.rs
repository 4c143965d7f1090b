//! What all tasks of one worker share: its connection, handlers and slots, and what it knows of cancellations and kinds.
//! No stage keeps anything of its own between two tasks.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use millpond::bus::Bus;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admit::suspects::Suspects;
use crate::announced_kinds::AnnouncedKinds;
use crate::cancellations::Cancellations;
use crate::config::Settings;
use crate::handlers::Handlers;
use crate::outbox::result_batches::{ResultBatches, SoleOutcome};
use crate::prepare::payload_files::PayloadFiles;
use crate::prepare::payloads::PayloadFetcher;
use crate::report::failure_log::FailureLog;
use crate::report::stats::Stats;
use crate::run_loop::pools::SlotPools;
use crate::settle::retry_policies::RetryPolicies;
use crate::supervisor::{Children, Supervisor};

/// What every task of this worker shares.
pub(crate) struct WorkerContext {
    pub(crate) bus: Bus,
    /// Publishes outcomes, several in one message.
    pub(crate) batches: ResultBatches,
    /// The worker's name.
    pub(crate) worker: String,
    pub(crate) handlers: Handlers,
    pub(crate) kinds: AnnouncedKinds,
    pub(crate) cancellations: Cancellations,
    pub(crate) policies: RetryPolicies,
    /// The timeout of an attempt, where neither its task nor its kind has one.
    pub(crate) task_timeout: Duration,
    /// The longest timeout that a task may bring, where its kind says nothing of timeouts.
    pub(crate) task_timeout_max: Duration,
    /// When a task of a kind that no live worker knows is dead-lettered.
    pub(crate) unknown_kind_after: Duration,
    /// Cancelled when the drain begins.
    pub(crate) draining: CancellationToken,
    /// Cancelled when the drain's time is over.
    pub(crate) stop: CancellationToken,
    pub(crate) stats: Arc<Stats>,
    /// Says in the log what failed.
    pub(crate) failures: FailureLog,
    /// The slots of running tasks.
    pub(crate) pools: SlotPools,
    /// Fetches arguments that are not in the message.
    pub(crate) payloads: PayloadFetcher,
    /// Permits for leases that have given up their slot while other workers are asked who holds them.
    pub(crate) slotless: Arc<Semaphore>,
    /// Tasks that may have killed their workers: one of them runs at a time.
    pub(crate) suspects: Suspects,
    /// Set when a call has come: the worker is not idle.
    pub(crate) called: AtomicBool,
    /// Handlers in processes of their own.
    pub(crate) supervisor: Supervisor,
}

impl WorkerContext {
    /// Tasks whose outcome was refused come out of the receiver. Starts the children, and follows the kinds of other workers in `background`.
    pub(crate) fn start(
        bus: &Bus,
        settings: &Settings,
        nonce: &str,
        handlers: Handlers,
        children: Vec<Arc<Children>>,
        cancellations: Cancellations,
        background: &mut JoinSet<()>,
    ) -> (Arc<Self>, mpsc::Receiver<SoleOutcome>) {
        let kinds = AnnouncedKinds::new(settings.unknown_kind_after);
        background.spawn(kinds.clone().follow(bus.clone()));
        let pools = SlotPools::new(settings.slots, settings.io_slots, handlers.iter());
        let by_kind = children.iter().map(|of| (of.spec.kind.clone(), of.spec.table.retry()));
        let policies = RetryPolicies {
            default: settings.retry,
            by_queue: settings.queue_retry.iter().cloned().collect(),
            by_kind: by_kind.collect(),
        };
        let supervisor = Supervisor::start(children);
        background.spawn(supervisor.clone().watch());
        let stats = Arc::new(Stats::new(handlers.keys()));
        let (batches, refused) = ResultBatches::new(bus, &settings.name, nonce, &stats);
        let context = Arc::new(Self {
            bus: bus.clone(),
            batches,
            worker: settings.name.clone(),
            stats,
            failures: FailureLog::new(handlers.keys()),
            handlers,
            kinds,
            cancellations,
            policies,
            task_timeout: settings.task_timeout,
            task_timeout_max: settings.task_timeout_max,
            unknown_kind_after: settings.unknown_kind_after,
            draining: CancellationToken::new(),
            stop: CancellationToken::new(),
            payloads: PayloadFetcher::new(bus, PayloadFiles::new(settings.spool.clone())),
            slotless: Arc::new(Semaphore::new(pools.size())),
            suspects: Suspects::default(),
            called: AtomicBool::new(false),
            pools,
            supervisor,
        });
        let of_failures = context.clone();
        background.spawn(async move { of_failures.failures.count_anew_for_ever().await });
        (context, refused)
    }
}

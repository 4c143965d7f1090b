//! The worker's record: written every few seconds, and at once when it starts to drain; removed when it leaves.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use millpond::bus::Bus;
use millpond::bus::lease::Leases;
use millpond::bus::topology::TopologyError;
use millpond::limits::HEARTBEAT_EVERY;
use millpond::worker_record::WorkerRecord;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::{Settings, host};
use crate::work::Shop;

/// Writes the record. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Heartbeat {
    bus: Bus,
    first: WorkerRecord,
    shop: Arc<Shop>,
    leases: Leases,
    slots: Arc<Semaphore>,
    draining: CancellationToken,
}

impl Heartbeat {
    pub(crate) fn new(
        bus: &Bus,
        settings: &Settings,
        nonce: &str,
        shop: &Arc<Shop>,
        leases: &Leases,
        slots: &Arc<Semaphore>,
        draining: &CancellationToken,
    ) -> Self {
        let now = millpond::now_ms();
        let first = WorkerRecord {
            name: settings.name.clone(),
            nonce: nonce.to_owned(),
            host: host(),
            pid: std::process::id(),
            queues: settings.queues.clone(),
            kinds: shop.handlers.keys().cloned().collect(),
            slots: u32::try_from(settings.slots).unwrap_or(u32::MAX),
            running: 0,
            held: 0,
            draining: false,
            done: 0,
            failed: 0,
            unknown_kinds: Vec::new(),
            started_ms: now,
            heartbeat_ms: now,
        };
        let (shop, leases, slots) = (shop.clone(), leases.clone(), slots.clone());
        Self { bus: bus.clone(), first, shop, leases, slots, draining: draining.clone() }
    }

    /// Writes the record as it is now.
    ///
    /// # Errors
    /// [`TopologyError`] when the bucket cannot be written.
    pub(crate) async fn beat(&self) -> Result<(), TopologyError> {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let free = count(self.slots.available_permits());
        let record = WorkerRecord {
            running: self.first.slots.saturating_sub(free),
            held: count(self.leases.held()),
            draining: self.draining.is_cancelled(),
            done: self.shop.stats.done.load(Ordering::Relaxed),
            failed: self.shop.stats.failed.load(Ordering::Relaxed),
            unknown_kinds: self.shop.kinds.unknown(),
            heartbeat_ms: millpond::now_ms(),
            ..self.first.clone()
        };
        self.bus.put_worker(&record).await
    }

    pub(crate) async fn beat_for_ever(self) {
        loop {
            tokio::time::sleep(HEARTBEAT_EVERY).await;
            if let Err(error) = self.beat().await {
                tracing::debug!(%error, "record not written, will try again");
            }
        }
    }

    /// Removes the record: the worker leaves in good order.
    pub(crate) async fn leave(&self) {
        if let Err(error) = self.bus.remove_worker(&self.first.name).await {
            tracing::debug!(%error, "record stays until it is old");
        }
    }
}

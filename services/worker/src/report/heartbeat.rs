//! The worker's record in `millpond_workers`: written every few seconds, and at once when the worker starts to drain; removed
//! when the worker leaves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millpond::bus::Bus;
use millpond::bus::consume::lease::Leases;
use millpond::bus::error::BusError;
use millpond::wire::number::WIRE_NUMBER;
use millpond::wire::subject::worker_event;
use millpond::worker_record::{WORKER_HEARTBEAT_EVERY, WorkerRecord};

use crate::config::Settings;
use crate::context::WorkerContext;
use crate::supervisor::{ProcessUsage, usage};

/// Over less time a share of the CPU says nothing: the kernel counts in steps of 10 ms.
const COUNT_CPU_EVERY: Duration = Duration::from_millis(500);

/// Writes the record. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Heartbeat {
    bus: Bus,
    first: WorkerRecord,
    context: Arc<WorkerContext>,
    leases: Leases,
    /// When CPU time was counted, how much there was, and the share that came of it.
    counted: Arc<Mutex<(Instant, Duration, f64)>>,
}

impl Heartbeat {
    pub(crate) fn new(
        bus: &Bus,
        settings: &Settings,
        nonce: &str,
        context: &Arc<WorkerContext>,
        leases: &Leases,
        http: Option<SocketAddr>,
    ) -> Self {
        let now = millpond::now_ms();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let first = WorkerRecord {
            name: settings.name.clone(),
            nonce: nonce.to_owned(),
            wire: WIRE_NUMBER,
            host: millpond::host(),
            pid: std::process::id(),
            queues: settings.queues.clone(),
            kinds: context.handlers.keys().cloned().collect(),
            slots: count(settings.slots),
            io_slots: count(settings.io_slots),
            running: 0,
            held: 0,
            draining: false,
            signed_only: settings.signer.is_some(),
            done: 0,
            failed: 0,
            by_kind: BTreeMap::new(),
            cpu_percent: 0.0,
            rss_bytes: 0,
            children: Vec::new(),
            troubles: BTreeMap::new(),
            http: http.map(|address| address.to_string()),
            unknown_kinds: Vec::new(),
            unknown_kinds_more: 0,
            clock_ahead_ms: 0,
            started_ms: now,
            heartbeat_ms: now,
        };
        let counted = Arc::new(Mutex::new((Instant::now(), usage(&[first.pid]).cpu, 0.0)));
        Self { bus: bus.clone(), first, context: context.clone(), leases: leases.clone(), counted }
    }

    fn record(&self) -> WorkerRecord {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (total, usage) = (self.context.stats.total(), usage(&[self.first.pid]));
        let (unknown_kinds, unknown_kinds_more) = self.context.kinds.unknown();
        WorkerRecord {
            running: count(self.context.pools.running()),
            held: count(self.leases.held()),
            draining: self.context.draining.is_cancelled(),
            done: total.done,
            failed: total.failed,
            by_kind: self.context.stats.kinds(),
            cpu_percent: self.cpu_percent(usage),
            rss_bytes: usage.rss_bytes,
            children: self.context.supervisor.records(),
            troubles: self.context.supervisor.troubles(),
            unknown_kinds,
            unknown_kinds_more,
            clock_ahead_ms: millpond::clock::local_ahead_ms(),
            heartbeat_ms: millpond::now_ms(),
            ..self.first.clone()
        }
    }

    fn cpu_percent(&self, usage: ProcessUsage) -> f64 {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, cpu, _) = *counted;
        if at.elapsed() >= COUNT_CPU_EVERY {
            let share = usage.cpu.saturating_sub(cpu).as_secs_f64() / at.elapsed().as_secs_f64();
            *counted = (Instant::now(), usage.cpu, (share * 1000.0).round() / 10.0);
        }
        counted.2
    }

    /// Writes the record as it is now, and publishes it for whoever watches.
    ///
    /// # Errors
    /// [`BusError`] when the bucket cannot be written.
    pub(crate) async fn beat(&self) -> Result<(), BusError> {
        let record = self.record();
        let event = Bytes::from(serde_json::to_vec(&record).unwrap_or_default());
        self.bus.publish_core(&worker_event(&record.name), event).await;
        self.bus.put_worker(&record).await
    }

    /// Renews the record until it is aborted. After a restart of the server others wait for the record: it is written as soon
    /// as the worker is back, and not before the worker answers for the leases that it holds.
    pub(crate) async fn beat_for_ever(self) {
        let (mut connection, mut is_refused) = (self.bus.connection(), false);
        loop {
            if let Ok(Err(_)) = tokio::time::timeout(WORKER_HEARTBEAT_EVERY, connection.changed()).await {
                return;
            }
            self.leases.ready().await;
            connection.borrow_and_update();
            let mut lost = connection.clone();
            tokio::select! {
                written = self.beat() => match written {
                    Ok(()) => is_refused = false,
                    // The worker works on, and seems to be gone: somebody has to know why.
                    Err(error) if !error.is_passing() && !std::mem::replace(&mut is_refused, true) => {
                        tracing::error!(%error, "this worker's record cannot be written: it is shown as lost");
                    }
                    Err(error) => tracing::debug!(%error, "record not written, will try again"),
                },
                _ = lost.changed() => {}
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

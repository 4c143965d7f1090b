//! The one loop that moves what ended into the store: pull, merge, commit, acknowledge. Never acknowledges first.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use millpond::bus::Bus;
use millpond::bus::results::{Ended, EndedMessage, EndedReader};
use millpond::failpoint;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::store::Store;

/// How long to wait before a merge that failed is tried again.
const MERGE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often the streams are purged of what is stored for long enough.
const PURGE_EVERY: Duration = Duration::from_secs(30);

/// Collects from one stream. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Collect {
    bus: Bus,
    store: Store,
    from: Ended,
    keep: Duration,
}

impl Collect {
    pub(crate) fn new(bus: &Bus, store: &Store, from: Ended, keep: Duration) -> Self {
        Self { bus: bus.clone(), store: store.clone(), from, keep }
    }

    /// Collects until `shutdown`; what was pulled by then is stored and acknowledged.
    pub(crate) async fn collect(self, shutdown: CancellationToken) {
        let mut reader = EndedReader::new(self.bus.clone(), self.from);
        loop {
            let (messages, receipts) = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                messages = reader.next() => messages,
            };
            let span = tracing::info_span!(
                "store",
                otel.name = "store",
                otel.kind = "consumer",
                messaging.system = "nats",
                messaging.operation.name = "store",
                messaging.destination.name = self.from.stream(),
                messaging.batch.message_count = i64::try_from(messages.len()).unwrap_or(i64::MAX),
            );
            if !self.keep_all(&messages, &shutdown).instrument(span).await {
                return;
            }
            failpoint::hit("collector.committed");
            let count = messages.len() as u64;
            for receipt in receipts {
                reader.ack(receipt).await;
            }
            failpoint::hit("collector.acked");
            metrics::counter!("millpond_messages_collected_total", "stream" => self.from.stream()).increment(count);
        }
    }

    /// Stores them, and tries again while the store cannot; false when stopped meanwhile (they come again).
    async fn keep_all(&self, messages: &[EndedMessage], shutdown: &CancellationToken) -> bool {
        loop {
            match self.store.merge(self.from, messages).await {
                Ok(()) => return true,
                Err(error) => {
                    metrics::counter!("millpond_store_errors_total").increment(1);
                    tracing::error!(%error, "the store cannot be written; nothing is acknowledged, trying again");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(MERGE_AGAIN_AFTER) => {}
            }
        }
    }

    /// Removes from the stream what has been stored for as long as late readers are promised.
    pub(crate) async fn purge_for_ever(self) {
        let reader = EndedReader::new(self.bus.clone(), self.from);
        let mut floors: VecDeque<(Instant, u64)> = VecDeque::new();
        loop {
            tokio::time::sleep(PURGE_EVERY.min(self.keep)).await;
            let Ok(state) = reader.state().await else { continue };
            metrics::gauge!("millpond_messages_behind", "stream" => self.from.stream())
                .set(u32::try_from(state.pending + state.ack_pending).unwrap_or(u32::MAX));
            floors.push_back((Instant::now(), state.ack_floor));
            let mut through = None;
            while let Some((at, floor)) = floors.front().copied()
                && at.elapsed() >= self.keep
            {
                through = Some(floor);
                floors.pop_front();
            }
            if let Some(floor) = through.filter(|floor| *floor > 0)
                && let Err(error) = reader.purge_through(floor).await
            {
                tracing::warn!(%error, "what is stored cannot be purged from its stream, will try again");
            }
        }
    }
}

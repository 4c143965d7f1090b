//! How many spans and log records wait for their export, and what became of the others.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use opentelemetry_sdk::error::OTelSdkResult;

/// Spans, and as many log records, that wait to be exported; more are dropped. About 1 KiB each.
pub const TELEMETRY_QUEUE_MAX: usize = 8192;

/// Counts the spans, or the log records, that wait to be sent, that were sent, and that were lost. The queue behind it holds
/// as many as it lets in, so nothing is lost uncounted.
#[derive(Debug)]
pub(super) struct ExportGate {
    pub(super) signal: &'static str,
    waiting: AtomicUsize,
    sent: AtomicU64,
    dropped: AtomicU64,
    /// Whether the last export failed, which was logged.
    failing: AtomicBool,
}

/// Spans.
pub(super) static TRACES: ExportGate = ExportGate::new("traces");
/// Log records.
pub(super) static LOGS: ExportGate = ExportGate::new("logs");
/// Requests with all metrics.
#[cfg(feature = "metrics")]
pub(super) static METRICS: ExportGate = ExportGate::new("metrics");

/// The counts of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExportCounts {
    pub(super) waiting: usize,
    pub(super) sent: u64,
    pub(super) dropped: u64,
}

impl ExportGate {
    const fn new(signal: &'static str) -> Self {
        Self {
            signal,
            waiting: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            failing: AtomicBool::new(false),
        }
    }

    /// Whether there is capacity for one more; where there is none, that one counts as dropped.
    pub(super) fn lets_in(&self) -> bool {
        let more = |waiting| (waiting < TELEMETRY_QUEUE_MAX).then_some(waiting + 1);
        let has_capacity = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if !has_capacity {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        has_capacity
    }

    /// Notes that `count` have left the queue: sent, or dropped with an error.
    pub(super) fn left(&self, count: usize, result: &OTelSdkResult) {
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        let counter = if result.is_ok() { &self.sent } else { &self.dropped };
        counter.fetch_add(count as u64, Ordering::Relaxed);
        let was = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match result {
            Err(error) if !was => tracing::warn!(
                signal = self.signal,
                %error,
                "telemetry cannot be exported; it is dropped and counted, tasks go on"
            ),
            Ok(()) if was => {
                tracing::info!(signal = self.signal, dropped = self.counts().dropped, "telemetry is exported again");
            }
            _ => {}
        }
    }

    pub(super) fn counts(&self) -> ExportCounts {
        ExportCounts {
            waiting: self.waiting.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;

    #[test]
    fn nothing_is_lost_uncounted() {
        let gate = ExportGate::new("test");
        let beyond = 7;
        let let_in = (0..TELEMETRY_QUEUE_MAX + beyond).filter(|_| gate.lets_in()).count();
        assert_eq!(let_in, TELEMETRY_QUEUE_MAX);
        gate.left(10, &Ok(()));
        gate.left(5, &Err(OTelSdkError::InternalFailure("no".into())));
        let waiting = TELEMETRY_QUEUE_MAX - 15;
        assert_eq!(gate.counts(), ExportCounts { waiting, sent: 10, dropped: 5 + beyond as u64 });
    }
}

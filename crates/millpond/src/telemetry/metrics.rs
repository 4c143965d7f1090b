//! Metrics of this process as Prometheus reads them. docs/observability.md lists them all.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

#[cfg(feature = "telemetry")]
use super::export_counts::{LOGS, METRICS, TRACES};

/// A gauge that was not set for this long is not shown.
const GAUGE_IDLE: Duration = Duration::from_secs(10);
/// How often measured values are sorted into their buckets: until then each takes memory, also when nobody reads them.
const SORT_EVERY: Duration = Duration::from_secs(5);
/// Buckets of durations, in seconds: from a task that does nothing to one that runs for an hour.
pub(super) const SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0];

/// The metrics of this process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Starts recording with the first call.
    #[must_use]
    pub fn start() -> Self {
        static METRICS: OnceLock<Metrics> = OnceLock::new();
        METRICS.get_or_init(Self::record).clone()
    }

    fn record() -> Self {
        // The gauge of a child that is gone must not be shown for ever.
        let builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::GAUGE, Some(GAUGE_IDLE));
        let seconds = Matcher::Suffix("_seconds".to_owned());
        let recorder = match builder.set_buckets_for_metric(seconds, &SECONDS) {
            Ok(builder) => builder.build_recorder(),
            // Not reached: only an empty list of buckets is refused.
            Err(_) => PrometheusBuilder::new().build_recorder(),
        };
        let handle = recorder.handle();
        // A recorder that the program installed before stays; ours counts nothing then.
        let _ = metrics::set_global_recorder(recorder);
        let sorted = handle.clone();
        let sort = move || {
            loop {
                std::thread::park_timeout(SORT_EVERY);
                sorted.run_upkeep();
            }
        };
        let _ = std::thread::Builder::new().name("metrics".to_owned()).spawn(sort);
        Self(handle)
    }

    /// The metrics as text.
    #[must_use]
    pub fn render(&self) -> String {
        #[cfg(feature = "telemetry")]
        for gate in [&TRACES, &LOGS, &METRICS] {
            let (signal, counted) = (gate.signal, gate.counts());
            metrics::counter!("millpond_telemetry_sent_total", "signal" => signal).absolute(counted.sent);
            metrics::counter!("millpond_telemetry_dropped_total", "signal" => signal).absolute(counted.dropped);
            metrics::gauge!("millpond_telemetry_waiting", "signal" => signal).set(gauge(counted.waiting));
        }
        self.0.render()
    }
}

/// A count as the value of a gauge.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
#[must_use]
pub fn gauge(count: impl TryInto<u64>) -> f64 {
    count.try_into().map_or(f64::MAX, |count| count as f64)
}

/// Records a duration, in seconds, in the histogram of this name, which ends in `_seconds`.
pub fn took(name: &'static str, labels: &[(&'static str, &str)], time: Duration) {
    let labels: Vec<metrics::Label> =
        labels.iter().map(|(name, value)| metrics::Label::new(*name, (*value).to_owned())).collect();
    metrics::histogram!(name, labels).record(time.as_secs_f64());
}

//! Logs, spans and metrics. Without the feature `telemetry` only trace contexts are left: one that is given is passed on,
//! and nothing is exported.

#[cfg(all(feature = "telemetry", feature = "metrics"))]
mod exemplars;
#[cfg(feature = "telemetry")]
mod export;
#[cfg(feature = "telemetry")]
mod export_counts;
#[cfg(feature = "telemetry")]
mod fields;
#[cfg(feature = "telemetry")]
mod lines;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "telemetry")]
mod otlp;
#[cfg(feature = "telemetry")]
mod otlp_http;
#[cfg(all(feature = "telemetry", feature = "metrics"))]
mod otlp_metrics;
#[cfg(feature = "telemetry")]
mod sampling;
#[cfg(feature = "telemetry")]
mod scope;
#[cfg(feature = "telemetry")]
mod setup;
#[cfg(feature = "telemetry")]
mod span;
mod trace;

#[cfg(all(feature = "telemetry", feature = "metrics"))]
pub use exemplars::TracedHistogram;
#[cfg(feature = "telemetry")]
pub use export::{record, record_of_child};
#[cfg(feature = "telemetry")]
pub use export_counts::TELEMETRY_QUEUE_MAX;
#[cfg(feature = "telemetry")]
pub use fields::{FIELD_ATTEMPT, FIELD_JOB, FIELD_KIND, FIELD_QUEUE, FIELD_TASK_ID};
#[cfg(feature = "metrics")]
pub use metrics::{Metrics, gauge, took};
#[cfg(all(feature = "telemetry", feature = "metrics"))]
pub use otlp_metrics::MetricsExport;
#[cfg(feature = "telemetry")]
pub use sampling::is_exported;
#[cfg(feature = "telemetry")]
pub use scope::{LineFields, Scope, TaskFields};
#[cfg(feature = "telemetry")]
pub use setup::{Telemetry, TelemetryError, start, start_in_child};
#[cfg(feature = "telemetry")]
pub use span::{SPAN_LINKS_MAX, Span, SpanKind, time_of};
pub use trace::TraceContext;

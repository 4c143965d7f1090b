//! What is read of streams and buckets by others than a task's worker: the collector, a waiting client, an operator.

use std::time::Duration;

use async_nats::jetstream::consumer::{PullConsumer, pull};

use crate::bus::error::BusError;
use crate::limits::{COLLECT_BATCH_MAX, COLLECT_BYTES_MAX};

pub mod backlog;
pub mod buckets;
pub mod find;
pub mod inspect;
pub mod job_results;
pub mod jobs;
pub mod later;
pub mod outcomes;
pub mod raw;
pub mod standstill;

/// How long the server keeps one request for outcomes.
pub(in crate::bus) const PULL_EXPIRES_AFTER: Duration = Duration::from_secs(10);
/// How often the server says meanwhile that it is there.
const PULL_HEARTBEAT: Duration = Duration::from_secs(2);

/// Opens a pull that goes on by itself, for who reads outcomes.
///
/// # Errors
/// [`BusError`] about `what`.
pub(in crate::bus) async fn pull_outcomes(consumer: &PullConsumer, what: &str) -> Result<pull::Stream, BusError> {
    let stream = consumer
        .stream()
        .max_messages_per_batch(COLLECT_BATCH_MAX)
        .max_bytes_per_batch(COLLECT_BYTES_MAX)
        .expires(PULL_EXPIRES_AFTER)
        .heartbeat(PULL_HEARTBEAT)
        .messages()
        .await;
    stream.map_err(|e| BusError::new(what, &e))
}

/// Unix time in milliseconds of a server timestamp.
pub(in crate::bus) fn unix_ms(at: async_nats::datetime::DateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

//! What is read of streams and buckets by others than a task's worker: the collector, a waiting client, an operator.

pub mod backlog;
pub mod buckets;
pub mod find;
pub mod inspect;
pub mod job_results;
pub mod jobs;
pub mod outcomes;
pub mod raw;

/// Unix time in milliseconds of a server timestamp.
pub(in crate::bus) fn unix_ms(at: async_nats::datetime::DateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

//! Names of streams, buckets and durable consumers. `bus/topology.rs` makes them.

/// Tasks as they were published.
pub const STREAM_TASKS: &str = "TASKS";
/// Tasks with a time that clients and publishers have given them, until a producer service has moved them to DUE.
pub const STREAM_LATER: &str = "LATER";
/// Tasks that wait for their time, and tasks whose time has come.
pub const STREAM_DUE: &str = "DUE";
/// Result batches.
pub const STREAM_RESULTS: &str = "RESULTS";
/// Dead letters.
pub const STREAM_DEAD: &str = "DEAD";
/// Name of the collector's durable consumers on RESULTS and DEAD.
pub const DURABLE_COLLECTOR: &str = "collector";

/// Records of jobs.
pub const BUCKET_JOBS: &str = "millpond_jobs";
/// Records of live workers.
pub const BUCKET_WORKERS: &str = "millpond_workers";
/// Tombstones of cancelled tasks and jobs.
pub const BUCKET_CANCELS: &str = "millpond_cancels";
/// Records of purges.
pub const BUCKET_PURGES: &str = "millpond_purges";
/// Start records of redelivered tasks.
pub const BUCKET_STARTS: &str = "millpond_starts";
/// What each server process had stored when it was first seen.
pub const BUCKET_SERVERS: &str = "millpond_servers";
/// State that programs share.
pub const BUCKET_SHARED: &str = "millpond_shared";
/// Settings of queues.
pub const BUCKET_QUEUES: &str = "millpond_queues";
/// Payloads above the claim-check size.
pub const BUCKET_PAYLOADS: &str = "millpond_payloads";

/// Name of a queue's durable consumer, the same on TASKS and DUE.
#[must_use]
pub fn durable(queue: &str) -> String {
    format!("q-{queue}")
}

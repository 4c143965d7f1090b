//! What the answers look like, for the OpenAPI document: the store, the records and the bus make them. Nothing here is
//! ever made. tests/collector_http.rs holds what is served to it.
#![expect(dead_code, reason = "described, never made")]

use utoipa::ToSchema;

/// Why a task has no result.
#[derive(ToSchema)]
pub(super) struct Why {
    id: String,
    /// `done`, `dead`, `cancelled`, `running`, `scheduled`, `waiting`, `paused`, `no_worker` or `unknown`.
    state: String,
    /// For a person.
    sentence: String,
}

/// A job that is cancelled.
#[derive(ToSchema)]
pub(super) struct Cancelled {
    job: String,
    /// It, and all of its name before it; 0 for a job without a record.
    epoch: u32,
    /// Messages that waited and were removed.
    removed: u64,
}

/// What became of each letter, in the order asked.
#[derive(ToSchema)]
pub(super) struct Settled {
    rows: Vec<SettledRow>,
    /// Where to go on; null when that was all.
    next: Option<String>,
    /// How many there are in all: of the filter, or that were named.
    matched: u64,
}

/// What became of a letter.
#[derive(ToSchema)]
pub(super) struct SettledRow {
    queue: String,
    id: String,
    attempt: u32,
    ok: bool,
    /// Why it is not.
    error: Option<String>,
    /// It would be.
    #[schema(nullable = false)]
    dry_run: Option<bool>,
    /// The id of the new task, in another queue.
    #[schema(nullable = false)]
    new_id: Option<String>,
}

/// Whether a queue is paused now.
#[derive(ToSchema)]
pub(super) struct Paused {
    queue: String,
    paused: bool,
}

/// A worker that drains.
#[derive(ToSchema)]
pub(super) struct Draining {
    worker: String,
    draining: bool,
}

/// What a purge removed, for good: those tasks have no end in the store, they are covered by this record.
#[derive(ToSchema)]
pub(super) struct Purged {
    queue: String,
    /// Null or not there: all kinds.
    kind: Option<String>,
    /// What ran was ended too.
    running: bool,
    /// All of TASKS up to this sequence.
    tasks_up_to: u64,
    /// All of DUE up to this sequence.
    due_up_to: u64,
    /// Messages that were removed.
    count: Option<u64>,
    by: String,
    at_ms: i64,
}

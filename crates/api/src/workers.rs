//! Workers: rows of the list, and the order to drain.

use millpond::worker_record::WorkerRecord;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::named::named;

named! {
    /// Whether a worker is there.
    WorkerState {
        /// It takes tasks.
        Live = "live",
        /// It takes nothing more.
        Draining = "draining",
        /// Its record was not renewed for 8 s.
        Lost = "lost",
    }
}

/// A worker, as its last record has it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WorkerRow {
    /// Whether it is there.
    pub state: WorkerState,
    /// Its record.
    #[serde(flatten)]
    pub record: WorkerRecord,
    /// Its last five minutes, one entry for each record, oldest first.
    pub history: Vec<WorkerSample>,
}

/// How a worker and its children fared when a record was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkerSample {
    /// When the record was written, Unix time in milliseconds.
    pub at_ms: i64,
    /// CPU time of the worker and its children, in percent of one core.
    pub cpu_percent: f64,
    /// Resident memory of the worker and its children, in bytes.
    pub rss_bytes: u64,
    /// Tasks (or batches) that ran.
    pub running: u32,
}

/// A worker that drains.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WorkerDraining {
    /// Its name.
    pub worker: String,
    /// True.
    pub draining: bool,
}

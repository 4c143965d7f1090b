//! How everything stands now (`/overview`, `/problems`), over time (`/series`) and as it changes (`/events`).

use millpond::bus::operate::queues::UnlistedQueues;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::named::named;
use crate::queues::QueueRow;

/// How everything stands.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Overview {
    /// The moment that this describes, Unix time in milliseconds.
    pub at_ms: i64,
    /// Version of the collector.
    pub version: String,
    /// How the store fares.
    pub store: StoreHealth,
    /// Sums over all queues and workers.
    pub totals: Totals,
    /// How far the store is behind what has ended, in milliseconds.
    pub lag_ms: i64,
    /// Why the queues cannot be polled; their numbers are the last ones known.
    pub complaint: Option<String>,
    /// What is wrong, and what was mended lately.
    pub problems: Vec<Problem>,
}

/// How the store fares.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct StoreHealth {
    /// `sqlite` or `postgres`.
    pub kind: String,
    /// Bytes that it takes.
    pub bytes: u64,
    /// What is wrong with it; null when nothing is.
    pub complaint: Option<String>,
}

/// Sums over all queues and workers.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Totals {
    /// Messages that no worker has taken yet.
    pub waiting: u64,
    /// Messages that workers hold.
    pub held: u64,
    /// Messages that wait for their time.
    pub scheduled: u64,
    /// When the oldest message that waits was published, Unix time in milliseconds; null when none waits.
    pub oldest_ms: Option<i64>,
    /// Tasks that failed and wait for their next attempt.
    pub retrying: u64,
    /// Dead letters that wait for a person.
    pub dead: u64,
    /// Tasks (or batches) that run.
    pub running: u64,
    /// Workers by state.
    pub workers: WorkerTotals,
    /// Queues that no list names; what waits in them is counted above.
    pub unlisted: UnlistedQueues,
}

/// Workers by state.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct WorkerTotals {
    /// Workers that take tasks.
    pub live: u64,
    /// Workers that take nothing more.
    pub draining: u64,
    /// Workers whose record was not renewed for 8 s.
    pub lost: u64,
}

named! {
    /// What a problem is about.
    ProblemKind {
        /// Something waits, and no live worker runs it.
        NoWorker = "no_worker",
        /// Something waits in a queue that is paused.
        Paused = "paused",
        /// Messages were handed out, and no worker holds them.
        OrphanedLease = "orphaned_lease",
        /// Something waits and could be taken, and nothing moves.
        StuckConsumer = "stuck_consumer",
        /// The handler of a kind cannot start.
        BrokenKind = "broken_kind",
        /// Tasks with a time wait in LATER, and no producer service moves them.
        NoProducer = "no_producer",
        /// The producer of a job is gone before the end of its input.
        StalledJob = "stalled_job",
        /// The task that the end of a job starts is refused for good.
        Continuation = "continuation",
        /// A task should run again, and nothing of it waits or runs.
        LostTask = "lost_task",
        /// A worker's record was not renewed.
        WorkerLost = "worker_lost",
        /// The store cannot be written.
        Store = "store",
        /// Messages of RESULTS or DEAD cannot be read, and are kept as they are.
        Unreadable = "unreadable",
        /// A stream, a bucket or a consumer was deleted.
        Missing = "missing",
        /// A stream has no leader, or stores nothing any more.
        Standstill = "standstill",
        /// The clock of a machine differs from the server's.
        Clock = "clock",
        /// A schedule does not fire, or cannot be read.
        Schedule = "schedule",
    }
}

/// Something that is wrong, or was until lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What it is about.
    pub kind: ProblemKind,
    /// The name of a queue, a worker, a job, a schedule, a stream or a bucket.
    pub what: String,
    /// What is wrong, and what to do.
    pub sentence: String,
    /// Since when, Unix time in milliseconds.
    pub since_ms: i64,
    /// True when it is mended, and only reported.
    pub mended: bool,
}

/// Which part of the series.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct SeriesQuery {
    /// How far back; an hour where it is not said.
    #[param(example = "1h", nullable = false, inline)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Of this queue; of all where it is not said.
    #[param(example = "default", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
}

named! {
    /// How far back the series goes: in steps of ten seconds up to an hour, of five minutes beyond.
    Window {
        /// 15 minutes.
        Minutes15 = "15m",
        /// One hour.
        Hour = "1h",
        /// Six hours.
        Hours6 = "6h",
        /// A day.
        Day = "24h",
        /// A week.
        Week = "7d",
    }
}

impl Window {
    /// Its length, in milliseconds.
    #[must_use]
    pub fn length_ms(self) -> i64 {
        let minutes = match self {
            Self::Minutes15 => 15,
            Self::Hour => 60,
            Self::Hours6 => 6 * 60,
            Self::Day => 24 * 60,
            Self::Week => 7 * 24 * 60,
        };
        minutes * 60_000
    }
}

/// What ended when, and how the queues stood.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Series {
    /// Length of a step, in milliseconds.
    pub step_ms: i64,
    /// The start of the window, Unix time in milliseconds.
    pub from_ms: i64,
    /// Its end: now.
    pub to_ms: i64,
    /// The steps in which something was seen, oldest first.
    pub rows: Vec<SeriesStep>,
}

/// One step of the series, of all queues or of one.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SeriesStep {
    /// Its start, Unix time in milliseconds.
    pub at_ms: i64,
    /// Messages that TASKS took; null when nobody counted.
    pub published: Option<i64>,
    /// Tasks that got a result.
    pub done: i64,
    /// Attempts that failed and are tried again.
    pub failed: i64,
    /// Tasks that failed for good.
    pub dead: i64,
    /// Tasks that were cancelled one by one.
    pub cancelled: i64,
    /// Messages that waited, the most that were seen.
    pub waiting: Option<i64>,
    /// Age of the oldest message that waited, in milliseconds, the most that was seen.
    pub oldest_age_ms: Option<i64>,
    /// Median from published to ended of what got a result in this step, in milliseconds.
    pub p50_ms: Option<u64>,
    /// The same, 99 of 100.
    pub p99_ms: Option<u64>,
}

/// Per second, of late.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
pub struct Rates {
    /// Messages that TASKS took.
    pub published_per_s: f64,
    /// Tasks that got a result.
    pub done_per_s: f64,
    /// Attempts that failed and are tried again.
    pub failed_per_s: f64,
    /// Tasks that failed for good.
    pub dead_per_s: f64,
}

/// A version that differs from the one before means that the list has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListVersions {
    /// Version of `/tasks`.
    pub tasks: u64,
    /// Version of `/jobs`.
    pub jobs: u64,
    /// Version of `/dead`.
    pub dead: u64,
    /// Version of `/workers`.
    pub workers: u64,
    /// Version of `/schedules`.
    pub schedules: u64,
}

/// One event of `/events`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Tick {
    /// The moment that this describes, Unix time in milliseconds.
    pub at_ms: i64,
    /// How everything stands.
    pub overview: Overview,
    /// The queues by name.
    pub queues: Vec<QueueRow>,
    /// How fast tasks come and end.
    pub rates: Rates,
    /// Which lists have changed.
    pub versions: ListVersions,
}

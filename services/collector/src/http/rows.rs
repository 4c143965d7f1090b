//! What the answers look like, for the OpenAPI document: the store, the records and the bus make them. Nothing here is
//! ever made. tests/collector_http.rs holds what is served to it.
#![expect(dead_code, reason = "described, never made")]

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::filters::{JobStatus, TaskStatus};

/// One page of a list.
#[derive(Serialize, ToSchema)]
pub(super) struct Listed<T> {
    /// The newest first, where nothing else is said.
    pub(super) rows: Vec<T>,
    /// Give it back as `after` for the next page; null at the end.
    pub(super) next: Option<String>,
}

/// A task, an item of a batch, or a batch.
#[derive(ToSchema)]
pub(super) struct TaskRow {
    queue: String,
    /// Unique in its queue.
    id: String,
    kind: String,
    job: Option<String>,
    /// Its place in its job.
    index: Option<i64>,
    /// The batch that it is an item of.
    root: Option<String>,
    /// How many it has, for a batch.
    items: Option<i64>,
    /// How many of them, or 0 or 1 of a task, have a result.
    done: i64,
    status: TaskStatus,
    /// The last attempt that is known, from 1.
    attempt: i64,
    /// Whose attempt that was.
    worker: String,
    published_ms: i64,
    started_ms: Option<i64>,
    ended_ms: Option<i64>,
    /// When the collector heard of it last.
    stored_ms: i64,
    /// The W3C trace id.
    trace: Option<String>,
    /// Where its result went: `<queue>.<kind>` of the next step of its chain.
    then: Option<String>,
    /// What the handler returned, any JSON value; of a batch an array, with null where there is none yet.
    #[schema(value_type = Option<Value>)]
    result: Option<Value>,
    /// The same as text, where JSON parsers differ about it.
    #[schema(nullable = false)]
    result_text: Option<String>,
    /// Its size, where it is too large for a list.
    #[schema(nullable = false)]
    result_bytes: Option<u64>,
    /// Where it lies in the store of payloads.
    #[schema(value_type = Option<Object>, nullable = false)]
    r#ref: Option<Value>,
    /// The same by item, for a batch.
    #[schema(value_type = Option<Object>, nullable = false)]
    refs: Option<Value>,
}

/// A task with all that is known of it.
#[derive(ToSchema)]
pub(super) struct Task {
    #[serde(flatten)]
    row: TaskRow,
    /// In their order.
    attempts: Vec<Attempt>,
    /// Its dead letter, while it waits for a person.
    #[schema(value_type = Option<Object>)]
    dead: Option<Value>,
    /// The dead letters that it left behind because it was run again, the oldest first.
    replays: Vec<Replayed>,
    /// The dead letter of another queue that it was made of: `queue`, `id`, `attempt`.
    #[schema(value_type = Option<Object>)]
    replay_of: Option<Value>,
}

/// A dead letter that was run again.
#[derive(ToSchema)]
pub(super) struct Replayed {
    /// The attempt that it died in.
    attempt: i64,
    reason: String,
    buried_ms: i64,
    /// Who asked.
    by: String,
    at_ms: i64,
    /// With other arguments.
    arguments: bool,
    /// The queue that it was moved to.
    #[schema(nullable = false)]
    to_queue: Option<String>,
    /// The id of its task there.
    #[schema(nullable = false)]
    new_id: Option<String>,
}

/// One execution that ended.
#[derive(ToSchema)]
pub(super) struct Attempt {
    attempt: i64,
    worker: Option<String>,
    started_ms: Option<i64>,
    ended_ms: Option<i64>,
    /// `done`, `failed`, `cancelled`, `handed back` or `partly done`.
    status: Option<String>,
    /// The child process that it failed in.
    child: Option<String>,
    /// `type`, `message`, and what else is known.
    #[schema(value_type = Option<Object>)]
    failure: Option<Value>,
    trace: Option<String>,
}

/// Why a task has no result.
#[derive(ToSchema)]
pub(super) struct Why {
    id: String,
    /// `done`, `dead`, `cancelled`, `running`, `scheduled`, `waiting`, `paused`, `no_worker` or `unknown`.
    state: String,
    /// For a person.
    sentence: String,
}

/// A job and how far it is.
#[derive(ToSchema)]
pub(super) struct JobRow {
    job: String,
    state: JobStatus,
    queue: String,
    kind: String,
    /// How many tasks it has, once all are published.
    total: Option<u64>,
    /// How many are published; not for a session.
    #[schema(nullable = false)]
    published: Option<u64>,
    done: u64,
    retrying: u64,
    dead: u64,
    cancelled: u64,
    /// Removed by a purge of their queue before they had an end.
    purged: u64,
    created_ms: i64,
    #[schema(nullable = false)]
    heartbeat_ms: Option<i64>,
    /// Counts on when the name is used again.
    #[schema(nullable = false)]
    epoch: Option<u32>,
    /// What its end starts.
    #[schema(value_type = Option<Value>)]
    then: Option<Value>,
}

/// How a task of a job ended.
#[derive(ToSchema)]
pub(super) struct End {
    /// Its place in the job; null for a task that has none.
    index: Option<i64>,
    id: String,
    queue: String,
    status: TaskStatus,
    /// What the handler returned, any JSON value.
    #[schema(value_type = Option<Value>)]
    result: Option<Value>,
    /// The same as text, where JSON parsers differ about it.
    #[schema(nullable = false)]
    result_text: Option<String>,
    /// Where it lies in the store of payloads.
    #[schema(value_type = Option<Object>, nullable = false)]
    r#ref: Option<Value>,
    /// Why there is none.
    #[schema(value_type = Option<Object>, nullable = false)]
    failure: Option<Value>,
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

/// A dead letter.
#[derive(ToSchema)]
pub(super) struct DeadRow {
    queue: String,
    id: String,
    kind: String,
    job: Option<String>,
    index: Option<i64>,
    /// The attempt that was the last.
    attempt: i64,
    /// `exhausted`, `fatal`, `unknown_kind`, `kills_workers`, `expired`, …
    reason: String,
    /// `type`, `message`, and what else is known.
    #[schema(value_type = Option<Object>)]
    failure: Option<Value>,
    /// Who buried it.
    worker: Option<String>,
    trace: Option<String>,
    buried_ms: i64,
}

/// A dead letter with its evidence.
#[derive(ToSchema)]
pub(super) struct DeadLetter {
    #[serde(flatten)]
    row: DeadRow,
    /// Those of the attempts before, compact.
    #[schema(value_type = Vec<Object>)]
    failures: Vec<Value>,
    /// All that its worker knew (docs/protocol.md).
    #[schema(value_type = Object)]
    evidence: Value,
    /// Those of its message: pairs of name and value.
    headers: Vec<Vec<String>>,
    /// Its arguments, any JSON value.
    #[schema(value_type = Option<Value>)]
    payload: Option<Value>,
    /// The same, where they are no JSON.
    #[schema(nullable = false)]
    payload_base64: Option<String>,
    /// Where they lie in the store of payloads.
    #[schema(value_type = Option<Object>, nullable = false)]
    r#ref: Option<Value>,
}

/// A worker, as it said last.
#[derive(ToSchema)]
pub(super) struct WorkerRow {
    name: String,
    /// `live`, `draining`, or `lost`: not heard for 8 s.
    state: String,
    /// Tells two processes of one name apart.
    nonce: String,
    host: String,
    pid: u32,
    queues: Vec<String>,
    kinds: Vec<String>,
    /// Tasks at once that compute.
    slots: u32,
    /// Tasks at once that wait for something else.
    io_slots: u32,
    running: u32,
    held: u32,
    draining: bool,
    #[schema(nullable = false)]
    signed_only: Option<bool>,
    done: u64,
    failed: u64,
    /// Done and failed by kind.
    #[schema(value_type = Option<BTreeMap<String, Object>>, nullable = false)]
    by_kind: Option<BTreeMap<String, Value>>,
    /// Of itself, in percent of one core.
    cpu_percent: f64,
    rss_bytes: u64,
    /// Its child processes: `name`, `kind`, `pid`, `state`, `task`, `task_ms`, `progress`, `note`, …
    #[schema(value_type = Option<Vec<Object>>, nullable = false)]
    children: Option<Vec<Value>>,
    /// Kinds whose children cannot be started, and why.
    #[schema(nullable = false)]
    troubles: Option<BTreeMap<String, String>>,
    /// Where its health and metrics are.
    #[schema(nullable = false)]
    http: Option<String>,
    unknown_kinds: Vec<String>,
    started_ms: i64,
    heartbeat_ms: i64,
    /// The last five minutes, with its children: `at_ms`, `cpu_percent`, `rss_bytes`, `running`.
    #[schema(value_type = Vec<Object>)]
    history: Vec<Value>,
}

/// How a queue stands.
#[derive(ToSchema)]
pub(crate) struct QueueRow {
    queue: String,
    /// Messages that no worker has taken.
    waiting: u64,
    /// Messages that workers hold.
    held: u64,
    /// Messages that wait for their time.
    scheduled: u64,
    paused: bool,
    /// It goes on by itself after this long.
    #[schema(nullable = false)]
    paused_for_ms: Option<u64>,
    /// Tasks that may wait in it; null: any number.
    max_waiting: Option<u64>,
    /// When the oldest message that waits in it was published, Unix milliseconds; null when none waits.
    oldest_ms: Option<i64>,
    /// Live workers that serve it.
    workers: u64,
}

/// Names one dead letter: a later one of the same task is another.
#[derive(ToSchema)]
pub(super) struct LetterName {
    queue: String,
    id: String,
    attempt: u32,
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

/// A task that recurs.
#[derive(ToSchema)]
pub(super) struct ScheduleRow {
    name: String,
    queue: String,
    kind: String,
    /// Its arguments, any JSON value.
    #[schema(value_type = Option<Value>)]
    args: Option<Value>,
    /// An interval, or cron.
    schedule: String,
    zone: Option<String>,
    paused: bool,
    /// When it is published next.
    next_ms: Option<i64>,
    timeout_ms: Option<u64>,
    attempts_max: Option<u32>,
    by: String,
    since_ms: i64,
}

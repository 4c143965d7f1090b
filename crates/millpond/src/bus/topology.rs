//! Streams, consumers and buckets, as data. The one-shot setup role makes them, idempotently; workers add the two
//! durables of a new queue. Nobody else creates anything. docs/protocol.md says why each setting is as it is.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream;
use futures_util::StreamExt;
use rand::RngExt;
use tokio::time::Instant;

use super::consume::queue_records::ConsumerRecord;
use super::error::BusError;
use super::read::buckets;
use super::wait_log::WaitLog;
use super::{Bus, version_at_least};
use crate::limits::{LEASE_ACK_WAIT, LEASE_SETTLED_KEEP, PAYLOAD_RETENTION, PULL_BYTES_MAX, TASK_BYTES_MAX};
use crate::wire::number::{METADATA_WIRE_NUMBER, WIRE_NUMBER, WireMismatch, check_streams};
use crate::wire::streams::{
    BUCKET_CANCELS, BUCKET_JOBS, BUCKET_PAYLOADS, BUCKET_PURGES, BUCKET_QUEUES, BUCKET_SERVERS, BUCKET_SHARED,
    BUCKET_STARTS, BUCKET_WORKERS, DURABLE_COLLECTOR, STREAM_DEAD, STREAM_DUE, STREAM_LATER, STREAM_RESULTS,
    STREAM_TASKS, durable,
};
use crate::wire::subject::LATER_MOVED;

/// The server's dedupe window: it makes a resend cheap; nothing relies on it.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(30);

/// Tasks that all workers of a queue may hold together (`max_ack_pending`).
const ACK_PENDING_MAX: i64 = 100_000;
/// Consumers that a stream or a bucket may have: a server from 2.15 on allows 1000 where nothing is said, each queue has one on
/// TASKS and on DUE, and each program that watches a bucket has one there.
const CONSUMERS_MAX: i32 = 100_000;
/// How long the server waits for the collector's acks before it delivers again; longer than any commit.
const COLLECT_ACK_WAIT: Duration = Duration::from_secs(10);
/// Start records older than this are dropped by the server.
const START_RECORD_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// Error code of a server that has a consumer of this name with other settings (paused, say).
const CONSUMER_IS_THERE: u64 = 10148;
/// Key of a stream's epoch in its metadata: sequences repeat when a stream is made anew, epochs do not.
const METADATA_EPOCH: &str = "millpond-epoch";

/// How long another worker may take from its note that a queue is new to the queue's consumers.
const MADE_BY_ANOTHER_WITHIN: Duration = Duration::from_millis(500);
/// How often it is looked meanwhile whether they are there.
const MADE_BY_ANOTHER_POLL: Duration = Duration::from_millis(20);
/// Between the note that a queue's consumers are made again and the consumers: a worker whose runtime stood still for as long
/// notices that, and starts nothing; every other one knows the note by then.
const KNOWN_TO_ALL_AFTER: Duration = Duration::from_secs(3);

/// How often a program that waits for `setup` checks again.
const POLL_SETUP_EVERY: Duration = Duration::from_millis(200);

/// How much the streams may hold.
#[derive(Debug, Clone)]
pub struct StreamLimits {
    /// Messages in TASKS.
    pub tasks_max: i64,
    /// Bytes in TASKS.
    pub tasks_bytes_max: i64,
    /// Bytes in RESULTS.
    pub results_bytes_max: i64,
    /// Bytes in DEAD.
    pub dead_bytes_max: i64,
    /// Bytes of large payloads; -1 for as many as the server may store.
    pub payloads_bytes_max: i64,
    /// Copies of everything: 1, or 3 in a cluster.
    pub replicas: usize,
}

impl Default for StreamLimits {
    fn default() -> Self {
        const GIB: i64 = 1024 * 1024 * 1024;
        Self {
            tasks_max: 10_000_000,
            tasks_bytes_max: 4 * GIB,
            results_bytes_max: 4 * GIB,
            dead_bytes_max: GIB,
            payloads_bytes_max: -1,
            replicas: 1,
        }
    }
}

/// Makes all streams, buckets and the collector's consumers, or brings them up to date.
///
/// # Errors
/// [`BusError`] names the first thing that the server refused.
pub async fn setup(bus: &Bus, limits: &StreamLimits) -> Result<(), BusError> {
    let [tasks, others @ ..] = streams(limits);
    refuse_other_numbers(bus).await?;
    for config in others {
        make_stream(bus, config).await?;
    }
    for config in buckets(limits).into_iter().chain([payloads(limits)]) {
        put_stream(bus, config).await?;
    }
    for stream in [STREAM_RESULTS, STREAM_DEAD] {
        let before = bus.js.get_consumer_from_stream::<pull::Config, _, _>(DURABLE_COLLECTOR, stream).await;
        // The server never changes where a consumer starts.
        let start = before.map_or_else(|_| secret_start(), |consumer| consumer.cached_info().config.deliver_policy);
        let config = pull::Config { num_replicas: limits.replicas, ..collector_durable(stream, start) };
        bus.js.create_consumer_on_stream(config, stream).await.map_err(|e| BusError::new(stream, &e))?;
    }
    // Last, because it carries the wire number: a program that reads the number finds everything else in place.
    make_stream(bus, tasks).await
}

/// A start before all messages that nobody can guess. A client may ask for a consumer on RESULTS without a name in the subject, as
/// libraries do for their ordered ones, and the server takes a name in the body of that request for a change of the consumer that
/// has it. It refuses another start, so nobody changes the collector's.
fn secret_start() -> DeliverPolicy {
    /// Some 250 years.
    const NANOSECONDS: std::ops::Range<u64> = 1..8_000_000_000_000_000_000;
    let before = Duration::from_nanos(rand::rng().random_range(NANOSECONDS));
    let start = SystemTime::UNIX_EPOCH.checked_sub(before).unwrap_or(SystemTime::UNIX_EPOCH);
    DeliverPolicy::ByStartTime { start_time: start.into() }
}

fn collector_durable(stream: &str, start: DeliverPolicy) -> pull::Config {
    pull::Config {
        durable_name: Some(DURABLE_COLLECTOR.to_owned()),
        deliver_policy: start,
        ack_policy: AckPolicy::Explicit,
        ack_wait: COLLECT_ACK_WAIT,
        max_ack_pending: ACK_PENDING_MAX,
        filter_subject: if stream == STREAM_DEAD { "dead.>" } else { "results.>" }.to_owned(),
        ..Default::default()
    }
}

/// Makes the collector's consumer of a stream again, which somebody has deleted: what the stream still holds comes once more, and
/// changes nothing in the store.
///
/// # Errors
/// [`BusError`].
pub(in crate::bus) async fn make_collector_durable(bus: &Bus, stream: &str) -> Result<(), BusError> {
    let what = format!("the collector's consumer on {stream}");
    match bus.js.create_consumer_strict_on_stream(collector_durable(stream, secret_start()), stream).await {
        Err(error) if !is_there(&error) => Err(BusError::new(&what, &error)),
        _ => Ok(()),
    }
}

/// Streams and buckets that are not there, by their names.
///
/// # Errors
/// [`BusError`] when the server does not answer.
pub async fn missing_streams(bus: &Bus) -> Result<Vec<String>, BusError> {
    let mut names = bus.js.stream_names();
    let mut there = HashSet::new();
    while let Some(name) = names.next().await {
        there.insert(name.map_err(|e| BusError::new("the names of the streams", &e))?);
    }
    let limits = StreamLimits::default();
    let wanted = streams(&limits).map(|stream| stream.name).into_iter();
    let wanted = wanted.chain(buckets(&limits).map(|bucket| bucket.name));
    Ok(wanted.chain([payloads(&limits).name]).filter(|name| !there.contains(name)).collect())
}

/// Refuses to change the streams under programs that would misread them: streams of a newer number, and live workers
/// of any other number.
async fn refuse_other_numbers(bus: &Bus) -> Result<(), BusError> {
    let written = match stream_state(bus, STREAM_TASKS).await {
        Ok(state) => state.wire_number,
        // A new server: there is nothing to misread, and no bucket of workers.
        Err(BusError::Missing { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    match check_streams(written.as_deref()) {
        Err(WireMismatch::Streams { program, streams }) if streams > program => {
            return Err(WireMismatch::Streams { program, streams }.into());
        }
        _ => {}
    }
    for (worker, number) in buckets::live_workers(bus).await? {
        if number != WIRE_NUMBER {
            return Err(WireMismatch::Worker { program: WIRE_NUMBER, worker, number }.into());
        }
    }
    Ok(())
}

/// Makes TASKS where it is not there.
///
/// # Errors
/// [`BusError`].
pub(in crate::bus) async fn make_tasks(bus: &Bus, limits: &StreamLimits) -> Result<(), BusError> {
    let [tasks, ..] = streams(limits);
    make_stream(bus, tasks).await
}

async fn make_stream(bus: &Bus, mut config: stream::Config) -> Result<(), BusError> {
    let name = config.name.clone();
    let before = bus.js.get_stream(&name).await.ok();
    let epoch = before.and_then(|stream| stream.cached_info().config.metadata.get(METADATA_EPOCH).cloned());
    let epoch = epoch.unwrap_or_else(crate::random_token);
    config.metadata.insert(METADATA_EPOCH.to_owned(), epoch);
    if name == STREAM_TASKS {
        config.metadata.insert(METADATA_WIRE_NUMBER.to_owned(), WIRE_NUMBER.to_string());
    }
    put_stream(bus, config).await
}

async fn put_stream(bus: &Bus, mut config: stream::Config) -> Result<(), BusError> {
    let name = config.name.clone();
    if !version_at_least(&bus.client.server_info().version, 2, 15) {
        // An older server has no limit where nothing is said, and refuses to change one.
        config.max_consumers = -1;
    }
    bus.js.create_or_update_stream(config).await.map_err(|e| BusError::new(&name, &e))?;
    Ok(())
}

fn streams(limits: &StreamLimits) -> [stream::Config; 5] {
    let subjects = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    let base = || stream::Config {
        storage: stream::StorageType::File,
        num_replicas: limits.replicas,
        duplicate_window: DUPLICATE_WINDOW,
        metadata: HashMap::new(),
        max_messages: -1,
        max_bytes: -1,
        max_consumers: CONSUMERS_MAX,
        ..Default::default()
    };
    // What clients publish to: no schedules, TTL or rollup, with which any publisher could wipe the stream by a header. Direct reads,
    // so that `why` can read what waits without a consumer.
    let published = |name: &str, of: &[&str], retention| stream::Config {
        name: name.to_owned(),
        subjects: subjects(of),
        retention,
        discard: stream::DiscardPolicy::New,
        max_messages: limits.tasks_max,
        max_bytes: limits.tasks_bytes_max,
        max_message_size: i32::try_from(TASK_BYTES_MAX).unwrap_or(i32::MAX),
        allow_direct: true,
        ..base()
    };
    [
        published(STREAM_TASKS, &["tasks.*.*", "tasks.*.*.*"], stream::RetentionPolicy::WorkQueue),
        // Nobody consumes it; a producer service reads it and removes what it has moved.
        published(STREAM_LATER, &["later.*.*", "later.*.*.*"], stream::RetentionPolicy::Limits),
        // No limits, so that a full TASKS never blocks a retry.
        stream::Config {
            name: STREAM_DUE.to_owned(),
            subjects: subjects(&["sched.>", "due.*.*", "due.*.*.*", LATER_MOVED]),
            retention: stream::RetentionPolicy::WorkQueue,
            discard: stream::DiscardPolicy::Old,
            allow_direct: true,
            allow_message_schedules: true,
            allow_atomic_publish: true,
            // The server insists on rollup where schedules are on; only millpond's own roles publish here.
            allow_rollup: true,
            ..base()
        },
        stream::Config {
            name: STREAM_RESULTS.to_owned(),
            subjects: subjects(&["results.*.*.*"]),
            retention: stream::RetentionPolicy::Limits,
            discard: stream::DiscardPolicy::New,
            max_bytes: limits.results_bytes_max,
            ..base()
        },
        stream::Config {
            name: STREAM_DEAD.to_owned(),
            subjects: subjects(&["dead.*.*"]),
            retention: stream::RetentionPolicy::Limits,
            discard: stream::DiscardPolicy::New,
            max_bytes: limits.dead_bytes_max,
            ..base()
        },
    ]
}

/// The stream of an object store. Its age is what ends objects: a task that needs one expires earlier.
fn payloads(limits: &StreamLimits) -> stream::Config {
    stream::Config {
        name: format!("OBJ_{BUCKET_PAYLOADS}"),
        subjects: vec![format!("$O.{BUCKET_PAYLOADS}.C.>"), format!("$O.{BUCKET_PAYLOADS}.M.>")],
        storage: stream::StorageType::File,
        num_replicas: limits.replicas,
        discard: stream::DiscardPolicy::New,
        max_messages: -1,
        max_bytes: limits.payloads_bytes_max,
        max_age: PAYLOAD_RETENTION,
        duplicate_window: DUPLICATE_WINDOW,
        // No rollup: a header of whoever may put would remove all.
        allow_direct: true,
        max_consumers: CONSUMERS_MAX,
        ..Default::default()
    }
}

/// The streams of the buckets, as every client of key-value buckets makes them. The client's own way to make one has no limit of
/// consumers, and each program that watches a bucket is one.
fn buckets(limits: &StreamLimits) -> [stream::Config; 8] {
    let bucket = |name: &str, max_age: Duration| stream::Config {
        name: format!("KV_{name}"),
        subjects: vec![format!("$KV.{name}.>")],
        storage: stream::StorageType::File,
        num_replicas: limits.replicas,
        discard: stream::DiscardPolicy::New,
        max_messages_per_subject: 1,
        max_age,
        allow_rollup: true,
        allow_direct: true,
        deny_delete: true,
        // Removed keys leave a marker that goes by itself.
        allow_message_ttl: true,
        subject_delete_marker_ttl: Some(LEASE_SETTLED_KEEP),
        max_consumers: CONSUMERS_MAX,
        ..Default::default()
    };
    // Without rollup, which a header would remove all with: clients write these. The server forces it where removed keys leave markers.
    let of_clients = |name: &str| stream::Config {
        allow_rollup: false,
        subject_delete_marker_ttl: None,
        ..bucket(name, Duration::ZERO)
    };
    const DAY: Duration = Duration::from_secs(24 * 3600);
    [
        of_clients(BUCKET_JOBS),
        bucket(BUCKET_WORKERS, DAY),
        bucket(BUCKET_CANCELS, 30 * DAY),
        bucket(BUCKET_PURGES, Duration::ZERO),
        bucket(BUCKET_STARTS, START_RECORD_RETENTION),
        bucket(BUCKET_SERVERS, 30 * DAY),
        of_clients(BUCKET_SHARED),
        bucket(BUCKET_QUEUES, Duration::ZERO),
    ]
}

/// Waits until setup has made what a worker needs: the two may be started at the same time.
///
/// # Errors
/// [`BusError`] of the last poll, when there is nothing after `within`; [`BusError::Wire`] when the streams are of
/// another wire number.
pub async fn await_setup(bus: &Bus, within: Duration) -> Result<(), BusError> {
    let deadline = Instant::now() + within;
    let mut waiting = WaitLog::start();
    // The last one that setup makes.
    let state = loop {
        let error = match stream_state(bus, STREAM_TASKS).await {
            Ok(state) => break state,
            Err(error) => error,
        };
        if Instant::now() + POLL_SETUP_EVERY > deadline {
            return Err(error);
        }
        waiting.no_setup(&bus.address, &error.to_string());
        tokio::time::sleep(POLL_SETUP_EVERY).await;
    };
    Ok(check_streams(state.wire_number.as_deref())?)
}

/// Lets a program that starts wait while the servers do not answer, or elect a leader.
#[derive(Debug)]
pub struct ElectionWait {
    within: Duration,
    deadline: Instant,
    is_logged: bool,
}

impl ElectionWait {
    /// Waits for `within` at the longest, all waits together.
    #[must_use]
    pub fn new(within: Duration) -> Self {
        Self { within, deadline: Instant::now() + within, is_logged: false }
    }

    /// Returns when what has failed is to be tried again.
    ///
    /// # Errors
    /// The error itself, when the time is over, or when waiting would not help.
    pub async fn after(&mut self, error: BusError) -> Result<(), BusError> {
        if !error.is_passing() || Instant::now() + POLL_SETUP_EVERY > self.deadline {
            return Err(error);
        }
        if !std::mem::replace(&mut self.is_logged, true) {
            tracing::warn!(%error, within = ?self.within, "cannot start yet, will try again");
        }
        tokio::time::sleep(POLL_SETUP_EVERY).await;
        Ok(())
    }
}

/// Makes the two durables of a queue where they are not there. A worker's role may make these names with these filters and no
/// others. What is made again is known to every worker before it gives out anything (`consume/queue_records.rs`).
///
/// # Errors
/// [`BusError`]; most likely setup has not run yet.
pub async fn make_queue(bus: &Bus, queue: &str) -> Result<(), BusError> {
    let is_first = bus.note_first_consumer(queue).await?;
    if has_consumers(bus, queue).await? {
        return Ok(());
    }
    if !is_first {
        // Another worker may be about to make them for the first time.
        let deadline = Instant::now() + MADE_BY_ANOTHER_WITHIN;
        while Instant::now() < deadline {
            tokio::time::sleep(MADE_BY_ANOTHER_POLL).await;
            if has_consumers(bus, queue).await? {
                return Ok(());
            }
        }
        tracing::warn!(queue, "a consumer of the queue was deleted; it is made again");
        let tasks = stream_state(bus, STREAM_TASKS).await?.last_seq;
        let due = stream_state(bus, STREAM_DUE).await?.last_seq;
        bus.note_consumer_again(queue, ConsumerRecord { tasks, due }).await?;
        tokio::time::sleep(KNOWN_TO_ALL_AFTER).await;
    }
    let pause = bus.pause_record(queue).await?;
    let paused_until = pause.and_then(|pause| unix_time(pause.until_ms)).filter(|until| *until > SystemTime::now());
    for (stream, filter) in [(STREAM_TASKS, format!("tasks.{queue}.>")), (STREAM_DUE, format!("due.{queue}.>"))] {
        let config = pull::Config {
            durable_name: Some(durable(queue)),
            ack_policy: AckPolicy::Explicit,
            ack_wait: LEASE_ACK_WAIT,
            max_deliver: -1,
            max_ack_pending: ACK_PENDING_MAX,
            max_waiting: 4096,
            max_bytes: i64::try_from(PULL_BYTES_MAX).unwrap_or(i64::MAX),
            filter_subject: filter,
            pause_until: paused_until.map(Into::into),
            ..Default::default()
        };
        let what = format!("the consumer of queue {queue} on {stream}");
        // Only made, never updated: that would end a pause.
        match bus.js.create_consumer_strict_on_stream(config, stream).await {
            Err(error) if !is_there(&error) => return Err(BusError::new(&what, &error)),
            _ => {}
        }
    }
    Ok(())
}

/// Whether both durables of a queue are there.
async fn has_consumers(bus: &Bus, queue: &str) -> Result<bool, BusError> {
    for stream in [STREAM_TASKS, STREAM_DUE] {
        let found = bus.js.get_consumer_from_stream::<pull::Config, _, _>(durable(queue), stream).await;
        match found.map_err(|e| BusError::new(&format!("the consumer of queue {queue} on {stream}"), &e)) {
            Ok(_) => {}
            Err(BusError::Missing { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn unix_time(ms: i64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(ms).ok()?))
}

fn is_there(error: &stream::ConsumerCreateStrictError) -> bool {
    use stream::ConsumerCreateStrictErrorKind::{AlreadyExists, JetStream};
    match error.kind() {
        AlreadyExists => true,
        JetStream(reason) => reason.error_code().0 == CONSUMER_IS_THERE,
        _ => false,
    }
}

/// What a worker needs to know of TASKS or DUE.
#[derive(Debug, Clone)]
pub struct StreamState {
    /// Its epoch; part of the ids of tasks that bring none.
    pub epoch: String,
    /// The wire number in its metadata; only TASKS has one.
    pub wire_number: Option<String>,
    /// Oldest sequence that it holds.
    pub first_seq: u64,
    /// Newest sequence.
    pub last_seq: u64,
    /// Messages.
    pub messages: u64,
    /// Bytes.
    pub bytes: u64,
    /// StreamLimits: messages and bytes, when set.
    pub messages_max: Option<u64>,
    /// Limit in bytes, when set.
    pub bytes_max: Option<u64>,
}

/// Asks the server for the state of a stream.
///
/// # Errors
/// [`BusError`]; most likely setup has not run yet.
pub async fn stream_state(bus: &Bus, name: &str) -> Result<StreamState, BusError> {
    let what = format!("use of stream {name}");
    let stream = bus.js.get_stream(name).await.map_err(|e| BusError::new(&what, &e))?;
    let info = stream.cached_info();
    Ok(StreamState {
        epoch: info.config.metadata.get(METADATA_EPOCH).cloned().unwrap_or_default(),
        wire_number: info.config.metadata.get(METADATA_WIRE_NUMBER).cloned(),
        first_seq: info.state.first_sequence,
        last_seq: info.state.last_sequence,
        messages: info.state.messages,
        bytes: info.state.bytes,
        messages_max: u64::try_from(info.config.max_messages).ok(),
        bytes_max: u64::try_from(info.config.max_bytes).ok(),
    })
}

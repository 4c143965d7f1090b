//! Every bound of millpond, with its unit in its name and the reason beside it.
//! No I/O, no clock. Anything may read it; relations between bounds are checked at compile time below.

use std::time::Duration;

/// Longest queue, kind, job or unique key, in characters of `[A-Za-z0-9_-]`.
pub const TOKEN_CHARS_MAX: usize = 64;
/// Longest task id (a publisher's `Nats-Msg-Id`), in bytes.
pub const TASK_ID_BYTES_MAX: usize = 256;
/// Largest task as published, headers included, in bytes. The TASKS stream refuses more.
pub const TASK_BYTES_MAX: usize = 1024 * 1024;
/// `max_payload` that the server must allow, in bytes: room for a task and the evidence of its failures.
pub const SERVER_PAYLOAD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Arguments and results above this size go to the store of payloads, and a reference travels in their place, in bytes.
pub const CLAIM_CHECK_BYTES: usize = 256 * 1024;
/// Largest result of one task, in bytes of JSON: it is in memory once. A larger one fails with `result_too_large`.
pub const RESULT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Largest value of the input of a `map`, in bytes: it is in memory once.
pub const MAP_VALUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A result pack is sent when it holds this many bytes; more go into the next one.
pub const RESULT_BATCH_BYTES_MAX: usize = 512 * 1024;
/// How long a pack gathers under load; a lone outcome does not wait.
pub const RESULT_BATCH_GATHER: Duration = Duration::from_millis(1);
/// Outcomes in one pack at the most.
pub const RESULT_BATCH_OUTCOMES_MAX: usize = 512;
/// Tasks in one batch at the most.
pub const BATCH_ITEMS_MAX: u32 = 1000;

/// How long the store keeps a payload; a task and its payload end together.
pub const PAYLOAD_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// So much earlier must a task start that needs a payload: it takes time to fetch, and clocks differ.
pub const PAYLOAD_EXPIRY_MARGIN: Duration = Duration::from_secs(3600);
/// Bytes of one chunk of a stored payload: what other clients use.
pub const PAYLOAD_CHUNK_BYTES: usize = 128 * 1024;
/// Bytes of chunks that are asked for at once.
pub const PAYLOAD_PAGE_BYTES: usize = 4 * 1024 * 1024;
/// How long a fetch goes on without an answer of the server.
pub const PAYLOAD_STALLED_AFTER: Duration = Duration::from_secs(15);

/// Shortest key that signs tasks, in characters.
pub const SIGNING_KEY_CHARS_MIN: usize = 32;
/// Keys of a cluster at once: the new one, and older ones whose tasks still wait.
pub const SIGNING_KEYS_MAX: usize = 8;

/// Steps that a task's chain may have after it.
pub const CHAIN_STEPS_MAX: usize = 16;

/// Work that a batch that forms by itself aims at, as time.
pub const BATCH_AIM: Duration = Duration::from_millis(50);
/// Tasks in a batch that forms by itself, at the most.
pub const BATCH_AUTO_ITEMS_MAX: u32 = 256;
/// Bytes of arguments in a batch that forms by itself; a larger argument goes alone.
pub const BATCH_AUTO_BYTES_MAX: usize = 64 * 1024;
/// Messages that are published at each size of batch before results have shown that the next size is right.
pub const BATCH_PROBES_MAX: u64 = 64;
/// How many times larger the next batches may be than the largest that came back.
pub const BATCH_GROWTH: u32 = 4;

/// Compact failures that travel with a retry, in bytes; the oldest are dropped beyond it.
pub const FAILURES_BYTES_MAX: usize = 4 * 1024;
/// A failure's message, in bytes; what is longer is cut.
pub const FAILURE_MESSAGE_BYTES_MAX: usize = 2 * 1024;
/// A failure's traceback, in bytes; what is longer is cut.
pub const FAILURE_TRACEBACK_BYTES_MAX: usize = 8 * 1024;
/// A failure's type, in bytes; what is longer is cut.
pub const FAILURE_TYPE_BYTES_MAX: usize = 64;

/// How long the server waits for an ack or an extension before it gives a task to somebody else.
pub const LEASE_ACK_WAIT: Duration = Duration::from_secs(3);
/// How often a worker extends what it holds.
pub const LEASE_EXTEND_EVERY: Duration = Duration::from_secs(1);
/// How often a worker looks whether it was paused itself.
pub const PAUSE_TICK: Duration = Duration::from_millis(100);
/// A gap between two such looks that counts as a pause: an extension may be late.
pub const PAUSE_MIN: Duration = Duration::from_millis(1500);
/// How long `lease.who` waits when somebody listens but says nothing.
pub const LEASE_WHO_WAIT: Duration = Duration::from_millis(500);
/// Longest delay between two tries of a client to be connected again.
pub const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(500);
/// How long an unanswered ack is sent again, and `lease.who` answered `settled`.
pub const LEASE_SETTLED_KEEP: Duration = Duration::from_secs(60);
/// Settled ids that a worker remembers.
pub const SETTLED_IDS_MAX: usize = 16 * 1024;
/// Starts that ended in a death before a task is taken for a killer: the next delivery buries (or splits) it.
pub const STARTS_MAX: usize = 3;
/// Tasks held ahead of the slots, at the most.
pub const LOOKAHEAD_TASKS_MAX: usize = 512;
/// Bytes that one pull asks for at the most.
pub const PULL_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long one pull request waits at the server.
pub const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// A pull request that the server did not end this long after it expired is forgotten and made anew.
pub const PULL_WATCHDOG: Duration = Duration::from_secs(2);
/// Of so many tasks that a worker starts, one is of the queues behind the first that has work, as long as they have any.
pub const LATER_QUEUES_SHARE: usize = 10;
/// A queue whose pull is not answered for this long has nothing for now.
pub const QUEUE_IDLE_AFTER: Duration = Duration::from_millis(100);
/// Tasks that all workers of a queue may hold together (`max_ack_pending`).
pub const ACK_PENDING_MAX: i64 = 100_000;

/// Log lines of a child that are kept for the evidence of a failure.
pub const EVIDENCE_LINES_MAX: usize = 50;
/// Bytes of such lines in one evidence; the oldest go first.
pub const EVIDENCE_LOG_BYTES_MAX: usize = 8 * 1024;
/// Children that a worker's record lists, at the most.
pub const CHILDREN_LISTED_MAX: usize = 256;

/// How long the server may take to store that something was cancelled.
pub const CANCEL_STORE_WITHIN: Duration = Duration::from_secs(5);
/// How often a worker renews its record, and a producer program the record of its job.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(2);
/// A worker whose record is older is gone.
pub const HEARTBEAT_LOST_AFTER: Duration = Duration::from_secs(8);
/// Start records older than this are dropped by the server.
pub const START_RECORD_KEEP: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often start records of tasks that are gone are swept.
pub const START_SWEEP_EVERY: Duration = Duration::from_secs(600);

/// The server's dedupe window: it makes a resend cheap; nothing relies on it.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(30);
/// Publishes of one program that wait for their ack at once.
pub const PUBLISH_WINDOW: usize = 1000;
/// Bytes of arguments that one `map` has published and that wait for their ack.
pub const PUBLISH_WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// How long a publish waits for its ack before it is sent again with the same id.
pub const PUBLISH_ACK_WAIT: Duration = Duration::from_secs(5);
/// How long a publisher waits when the stream is full.
pub const STREAM_FULL_WAIT: Duration = Duration::from_millis(200);
/// Our clients stop at this share of the TASKS limit, in percent, so that others have room.
pub const STREAM_FILL_PERCENT_MAX: u64 = 90;
/// How often the record of a job is written at the most while its tasks are published.
pub const WATERMARK_EVERY: Duration = Duration::from_millis(500);
/// How long the last write of a job's record is tried.
pub const CLOSE_TRIED_FOR: Duration = Duration::from_secs(60);
/// Whoever resumes a job that was alive a moment ago looks again until nothing new was stored for this long: what its
/// killed producer had sent may still be on its way.
pub const RESUME_QUIET: Duration = Duration::from_millis(250);
/// Whoever reads the results of a job that goes on and hears nothing for this long asks what is left.
pub const BACKLOG_SILENCE: Duration = Duration::from_secs(2);
/// How long a collector may take to answer who resumes a job.
pub const HISTORY_WITHIN: Duration = Duration::from_secs(30);
/// Results that a collector hands to who resumes a job in one answer, in bytes, at the most (one is always handed).
pub const HISTORY_BYTES_MAX: usize = 512 * 1024;
/// How long a publisher believes what it knows of a queue's limit of waiting tasks before it asks again.
pub const QUEUE_LIMIT_KNOWN_FOR: Duration = Duration::from_secs(1);
/// First wait of a publisher for room in a bounded queue; it doubles.
pub const QUEUE_FULL_WAIT_MIN: Duration = Duration::from_millis(10);
/// Longest such wait.
pub const QUEUE_FULL_WAIT_MAX: Duration = Duration::from_millis(100);
/// Items between the oldest unprinted and the newest published one of an ordered `map`.
pub const MAP_WINDOW_ITEMS: u64 = 65_536;
/// Bytes of results that an ordered `map` holds back at the most before it stops publishing.
pub const MAP_WINDOW_BYTES: usize = 16 * 1024 * 1024;

/// Exports of one collector that are under way at once; each may hold a page.
pub const HTTP_EXPORTS_MAX: usize = 16;
/// How long a browser's session lasts.
pub const SESSION_LASTS: Duration = Duration::from_secs(12 * 3600);
/// Logins that may fail within [`LOGIN_FAILURES_WITHIN`], of all callers together; then none is tried.
pub const LOGIN_FAILURES_MAX: usize = 10;
/// How long a login that failed is counted.
pub const LOGIN_FAILURES_WITHIN: Duration = Duration::from_secs(60);
/// Bytes of result lines that are written to a caller at once.
pub const HTTP_CHUNK_BYTES: usize = 64 * 1024;
/// How long a call may take in all, from when a worker hears it, where its caller does not say.
pub const CALL_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Longest time that a caller may ask for; deploy/nats/roles.conf lets a worker answer for a little longer.
pub const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// How much longer than that a caller waits for the worker's own words.
pub const CALL_ANSWER_GRACE: Duration = Duration::from_secs(1);
/// Messages of one direction of a conversation that the other side has not taken yet, at the most.
pub const PIPE_WINDOW: u64 = 16;
/// Longest message of a conversation, in bytes.
pub const PIPE_MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Each side of a conversation says this often that it lives.
pub const PIPE_KEEP_ALIVE: Duration = Duration::from_secs(1);
/// A side that was not heard for this long is lost.
pub const PIPE_LOST_AFTER: Duration = Duration::from_secs(5);
/// What the other side has not got within this time is sent again.
pub const PIPE_RESEND_AFTER: Duration = Duration::from_secs(1);
/// How long it may wait to be told that a message was taken; what is sent meanwhile tells it too.
pub const PIPE_TELL_WITHIN: Duration = Duration::from_millis(5);

/// Largest value of a shared key, in bytes.
pub const SHARED_VALUE_BYTES_MAX: usize = 512 * 1024;

/// How long RESULTS and DEAD keep what the collector has stored, for clients that read late.
pub const RESULTS_KEEP: Duration = Duration::from_secs(600);
/// How long the server waits for the collector's acks before it delivers again; longer than any commit.
pub const COLLECT_ACK_WAIT: Duration = Duration::from_secs(10);
/// Messages in one transaction of the collector.
pub const COLLECT_BATCH_MAX: usize = 500;
/// Bytes that one pull of the collector, or of a waiting client, asks for; and that one transaction takes before it ends.
pub const COLLECT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long the collector waits for more before it commits.
pub const COLLECT_GATHER: Duration = Duration::from_millis(50);
/// Streams of events that are open at once.
pub const HTTP_WATCHERS_MAX: usize = 256;
/// How long the collector's store keeps what has ended.
pub const STORE_KEEP: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long it keeps dead letters that nobody has dealt with.
pub const STORE_KEEP_DEAD: Duration = Duration::from_secs(90 * 24 * 3600);
/// Rows of one page of the collector's API, at the most and when nothing is asked.
pub const PAGE_ROWS_MAX: u32 = 1000;
/// Rows of one page when the caller does not say.
pub const PAGE_ROWS_DEFAULT: u32 = 100;

const _: () = assert!(LEASE_EXTEND_EVERY.as_millis() * 3 <= LEASE_ACK_WAIT.as_millis());
const _: () = assert!(PAUSE_MIN.as_millis() + LEASE_EXTEND_EVERY.as_millis() < LEASE_ACK_WAIT.as_millis());
const _: () = assert!(HEARTBEAT_EVERY.as_millis() * 3 <= HEARTBEAT_LOST_AFTER.as_millis());
const _: () = assert!(PIPE_KEEP_ALIVE.as_millis() * 3 <= PIPE_LOST_AFTER.as_millis());
const _: () = assert!(PIPE_MESSAGE_BYTES_MAX < SERVER_PAYLOAD_BYTES_MAX);
const _: () = assert!(TASK_BYTES_MAX * 2 <= SERVER_PAYLOAD_BYTES_MAX);
const _: () = assert!(SERVER_PAYLOAD_BYTES_MAX <= COLLECT_BYTES_MAX);
const _: () = assert!(LATER_QUEUES_SHARE > 1);
const _: () = assert!(CLAIM_CHECK_BYTES + RESULT_BATCH_BYTES_MAX <= SERVER_PAYLOAD_BYTES_MAX);
const _: () = assert!(CLAIM_CHECK_BYTES * 2 <= TASK_BYTES_MAX);
const _: () = assert!(BATCH_AUTO_BYTES_MAX <= CLAIM_CHECK_BYTES);

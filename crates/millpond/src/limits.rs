//! Bounds that several rooms share, with their units in their names, and the relations between them, checked at compile time.
//! A bound or default of one file stands in that file. No I/O, no clock.

use std::time::Duration;

/// Longest task id (a publisher's `Nats-Msg-Id`), in bytes.
pub const TASK_ID_BYTES_MAX: usize = 256;
/// Largest task as published, headers included, in bytes. The TASKS stream refuses more.
pub const TASK_BYTES_MAX: usize = 1024 * 1024;
/// `max_payload` that the server must allow, in bytes: enough for a task and the evidence of its failures.
pub const SERVER_PAYLOAD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Arguments and results above this size, in bytes, go to the store of payloads, and a reference travels in their place.
pub const CLAIM_CHECK_BYTES: usize = 512 * 1024;
/// Largest result of one task, in bytes of JSON: it is in memory once. A larger one fails with `result_too_large`.
pub const RESULT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A result batch is sent when it has this many bytes; further outcomes go into the next one.
pub const RESULT_BATCH_BYTES_MAX: usize = 512 * 1024;
/// The largest `attempts_max` that anything may ask for, and so the last attempt of all.
pub const ATTEMPTS_MAX_MAX: u32 = 100;
/// Tasks in one batch at the most.
pub const BATCH_ITEMS_MAX: u32 = 1000;
/// How long the store keeps a payload; a task and its payload expire together.
pub const PAYLOAD_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// Publishes of one program that wait for their ack at once.
pub const PUBLISH_WINDOW: usize = 1000;

/// How long the server waits for an ack or a renewal before it delivers a task to another worker.
pub const LEASE_ACK_WAIT: Duration = Duration::from_secs(3);
/// Recorded starts of a task without an end before it is taken for a killer: with the first start, which is not recorded, as many
/// workers and one more have died with it.
pub const STARTS_MAX: usize = 3;
/// How long an unanswered ack is sent again, and an ownership query answered `settled`.
pub const LEASE_SETTLED_KEEP: Duration = Duration::from_secs(60);
/// Tasks held ahead of the slots, at the most.
pub const LOOKAHEAD_TASKS_MAX: usize = 512;
/// Bytes that one pull requests at the most.
pub const PULL_BYTES_MAX: usize = 8 * 1024 * 1024;
/// One in this many tasks that a worker starts is of the queues behind the first that has any, as long as they have some.
pub const LATER_QUEUES_SHARE: usize = 10;

/// Messages of one direction of a pipe that the other side has not taken yet, at the most.
pub const PIPE_WINDOW: u64 = 16;
/// Longest message of a pipe, in bytes.
pub const PIPE_MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// A side of a pipe that sent nothing for this long is lost.
pub const PIPE_LOST_AFTER: Duration = Duration::from_secs(5);

/// Messages in one transaction of the collector, and in one pull of results.
pub const COLLECT_BATCH_MAX: usize = 500;
/// Bytes of one pull of results, by a collector or a waiting client; and of one transaction of the collector.
pub const COLLECT_BYTES_MAX: usize = 8 * 1024 * 1024;

const _: () = assert!(PIPE_MESSAGE_BYTES_MAX < SERVER_PAYLOAD_BYTES_MAX);
const _: () = assert!(TASK_BYTES_MAX * 2 <= SERVER_PAYLOAD_BYTES_MAX);
const _: () = assert!(SERVER_PAYLOAD_BYTES_MAX <= COLLECT_BYTES_MAX);
const _: () = assert!(LATER_QUEUES_SHARE > 1);
const _: () = assert!(CLAIM_CHECK_BYTES + RESULT_BATCH_BYTES_MAX <= SERVER_PAYLOAD_BYTES_MAX);
const _: () = assert!(CLAIM_CHECK_BYTES * 2 <= TASK_BYTES_MAX);

//! Every header name, one home for all. docs/protocol.md says who may set which, and what a value looks like.

/// Header names and values, in order. The names of ours are canonical (`header_names`), those of others are as they came.
pub type Headers = Vec<(String, String)>;

/// The publisher's id of a message; the server dedupes by it for a while.
pub const HEADER_MSG_ID: &str = "Nats-Msg-Id";
/// When the server delivers a message that waits in DUE.
pub const HEADER_SCHEDULE: &str = "Nats-Schedule";
/// The subject that the server delivers a scheduled message to.
pub const HEADER_SCHEDULE_TARGET: &str = "Nats-Schedule-Target";
/// The time zone of a schedule's cron fields.
pub const HEADER_SCHEDULE_ZONE: &str = "Nats-Schedule-Time-Zone";
/// The message replaces those before it on the same subject.
pub const HEADER_ROLLUP: &str = "Nats-Rollup";
/// The last sequence that the message's subject may hold (0: none); otherwise the server refuses the message.
pub const HEADER_EXPECTED_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
/// The subjects that [`HEADER_EXPECTED_SEQUENCE`] means, where they are not the message's own.
pub const HEADER_EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// The payload is a JSON array of this many argument values.
pub const HEADER_BATCH: &str = "Millpond-Batch";
/// The task's place in its job (of the first item, for a batch), from 0.
pub const HEADER_INDEX: &str = "Millpond-Index";
/// Timeout of one attempt, such as `30s`.
pub const HEADER_TIMEOUT: &str = "Millpond-Timeout";
/// Attempts before the task becomes a dead letter.
pub const HEADER_ATTEMPTS_MAX: &str = "Millpond-Attempts-Max";
/// RFC 3339 time after which the task must not start.
pub const HEADER_EXPIRES: &str = "Millpond-Expires";
/// Subject `reply.<x>` that is notified of each end of the task, once the end is stored.
pub const HEADER_REPLY_TO: &str = "Millpond-Reply-To";
/// Where the payload lies, when it is not in the message: a `PayloadRef` as JSON.
pub const HEADER_REF: &str = "Millpond-Ref";
/// The steps that come after a task, in order: `<kind>` or `<queue>.<kind>`, separated by commas.
pub const HEADER_CONTINUATION: &str = "Millpond-Continuation";
/// Carries the signature of a task: `v1:<key id>:<HMAC-SHA256 in hex>`.
pub const HEADER_SIGNATURE: &str = "Millpond-Signature";
/// Points from a task back to the dead letter of another queue that it was made of: a `ReplayOf` as JSON.
pub const HEADER_REPLAY_OF: &str = "Millpond-Replay-Of";
/// Name of the schedule that a task comes from; on the schedule, and forwarded to each task, retry and dead letter.
pub const HEADER_SCHEDULE_NAME: &str = "Millpond-Schedule";
/// Who made a schedule.
pub const HEADER_SCHEDULE_BY: &str = "Millpond-Schedule-By";
/// What a paused schedule will fire by again; the server gets a time that nobody lives to see.
pub const HEADER_SCHEDULE_PAUSED: &str = "Millpond-Schedule-Paused";
/// The time zone of a paused schedule.
pub const HEADER_SCHEDULE_PAUSED_ZONE: &str = "Millpond-Schedule-Paused-Zone";

/// The id of a task, or the name of a job; of requests over HTTP only.
pub const HEADER_IDEMPOTENCY_KEY: &str = "Idempotency-Key";
/// How long a task waits at the server before it may start, from when it was stored; on `later.` and over HTTP.
pub const HEADER_DELAY: &str = "Millpond-Delay";
/// When a task may start, RFC 3339; on `later.` only.
pub const HEADER_AT: &str = "Millpond-At";
/// The unique key of a task; of requests over HTTP only.
pub const HEADER_UNIQUE: &str = "Millpond-Unique";

/// Number of this attempt, from 1; honoured only in DUE.
pub const HEADER_ATTEMPT: &str = "Millpond-Attempt";
/// Id of a task; it goes before that of the message (`Nats-Msg-Id`).
pub const HEADER_ID: &str = "Millpond-Id";
/// Id of the message first published; honoured only in DUE.
pub const HEADER_ORIGINAL_ID: &str = "Millpond-Original-Id";
/// `<from>+<len>/<of>`: the items of the original batch that this covers; honoured only in DUE.
pub const HEADER_ITEMS: &str = "Millpond-Items";
/// The attempts so far, JSON; honoured only in DUE.
pub const HEADER_FAILURES: &str = "Millpond-Failures";
/// How often the batch that an item was taken out of was started without an end; honoured only in DUE.
pub const HEADER_STARTS: &str = "Millpond-Starts";
/// When the original message was stored, Unix time in milliseconds; honoured only in DUE.
pub const HEADER_PUBLISHED: &str = "Millpond-Published";
/// The header block of a message whose headers cannot be read, base64, its first 16 KiB; on DEAD only.
pub const HEADER_RAW_HEADERS: &str = "Millpond-Raw-Headers";
/// Why a task died, as JSON; on DEAD only.
pub const HEADER_DEAD: &str = "Millpond-Dead";
/// W3C trace context.
pub const HEADER_TRACEPARENT: &str = "traceparent";
/// W3C trace state.
pub const HEADER_TRACESTATE: &str = "tracestate";

/// Name of the worker that answers: a call, or an ownership query.
pub const HEADER_WORKER: &str = "Millpond-Worker";
/// On the answer of an ownership query: the kinds of the tasks that are held, with commas.
pub const HEADER_KINDS: &str = "Millpond-Kinds";
/// On the answer of a call, `true`: the result is bytes that are no JSON, and the payload is `{"base64":"…"}`.
pub const HEADER_BYTES: &str = "Millpond-Bytes";
/// What went wrong with a call, in one line (NATS micro services, ADR-32).
pub const HEADER_CALL_ERROR: &str = "Nats-Service-Error";
/// The same as a number: see `call::Code`.
pub const HEADER_CALL_ERROR_CODE: &str = "Nats-Service-Error-Code";
/// On a call: it opens a pipe under this id, a token.
pub const HEADER_PIPE: &str = "Millpond-Pipe";
/// On a message of a pipe: its number, from 1, counted for each direction.
pub const HEADER_PIPE_SEQ: &str = "Millpond-Seq";
/// The sender has received every message up to this number.
pub const HEADER_PIPE_GOT: &str = "Millpond-Got";
/// The sender has capacity for messages up to this number.
pub const HEADER_PIPE_CAPACITY: &str = "Millpond-Pipe-Capacity";
/// The sender sends nothing more: [`PIPE_END_OK`], [`PIPE_END_FAILED`] or [`PIPE_END_GONE`].
pub const HEADER_PIPE_END: &str = "Millpond-End";
/// The sender has sent all that it had to send.
pub const PIPE_END_OK: &str = "ok";
/// The worker's side failed; the payload is the failure.
pub const PIPE_END_FAILED: &str = "failed";
/// The sender has left, or takes the other side for lost; the pipe is over. This message has no number.
pub const PIPE_END_GONE: &str = "gone";

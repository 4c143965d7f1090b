//! A task as a worker reads it from TASKS or DUE, and the headers of what it leads to: retries, remainders, next steps. No I/O,
//! no clock. A header that does not parse never loses a task: [`Task::parse`] always returns one, with a [`Defect`] that says why
//! it is dead-lettered.

use std::time::Duration;

use bytes::Bytes;

use crate::chain;
use crate::chain::ChainStep;
use crate::limits::{BATCH_ITEMS_MAX, STARTS_MAX, TASK_ID_BYTES_MAX};
use crate::outcome::{FailedAttempt, Items, cut, id_of};
use crate::payload;
use crate::payload::PayloadRef;
use crate::retry::{ATTEMPTS_MAX_MAX, parse_attempts_max};
use crate::signature::Distrust;
use crate::wire::bounds::{self, COUNT_MAX, TIME_MS_MAX};
use crate::wire::decode::decode;
use crate::wire::header_names::{self, Way};
use crate::wire::headers::{
    HEADER_ATTEMPT, HEADER_ATTEMPTS_MAX, HEADER_BATCH, HEADER_CONTINUATION, HEADER_DEAD, HEADER_EXPIRES,
    HEADER_FAILURES, HEADER_ID, HEADER_INDEX, HEADER_ITEMS, HEADER_MSG_ID, HEADER_ORIGINAL_ID, HEADER_PUBLISHED,
    HEADER_RAW_HEADERS, HEADER_REF, HEADER_REPLY_TO, HEADER_SCHEDULE, HEADER_SCHEDULE_TARGET, HEADER_SIGNATURE,
    HEADER_STARTS, HEADER_TIMEOUT, HEADER_TRACEPARENT, HEADER_TRACESTATE, Headers,
};
use crate::wire::subject::{SubjectError, TaskSubject};

/// Headers that only millpond itself may set, and only in DUE.
const REPUBLISHED: [&str; 9] = [
    HEADER_ATTEMPT,
    HEADER_ID,
    HEADER_ORIGINAL_ID,
    HEADER_ITEMS,
    HEADER_FAILURES,
    HEADER_PUBLISHED,
    HEADER_STARTS,
    // Of dead letters only: a publisher must not write the evidence of its task.
    HEADER_DEAD,
    HEADER_RAW_HEADERS,
];

/// Bytes of the headers that travel on with a task, names and values together: what is published of it has room for its evidence
/// beside them, below the 64 KiB of headers that the server takes.
pub const FORWARDED_BYTES_MAX: usize = 16 * 1024;

/// Headers of one message alone: what is published again has new ones, or none.
const OF_ONE_MESSAGE: [&str; 3] = [HEADER_INDEX, HEADER_BATCH, HEADER_SIGNATURE];

/// Headers that the next step of a chain has of the one before it. Timeout and attempts are those of its own kind.
const INHERITED: [&str; 3] = [HEADER_EXPIRES, HEADER_REPLY_TO, HEADER_TRACESTATE];

/// The failures that travel with a retry, in bytes of JSON; beyond it the oldest are dropped.
const FAILURES_BYTES_MAX: usize = 4 * 1024;

/// Bytes of a header's value that the reason of a dead letter repeats.
const HEADER_SHOWN_BYTES_MAX: usize = 256;

/// Which stream a message came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// TASKS: published by a client.
    Tasks,
    /// DUE: published again by millpond (a retry, a remainder, a half, a replay), or by a schedule that fired.
    Due,
}

/// Why a task cannot run: it becomes a dead letter with this reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defect {
    /// Short word, as in the dead letter.
    pub reason: &'static str,
    /// One line for a person: what is wrong and what would be right.
    pub message: String,
}

/// Where and when the server stored a message.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// The stream.
    pub origin: Origin,
    /// Epoch of the stream, from its metadata.
    pub epoch: &'a str,
    /// Sequence in the stream.
    pub seq: u64,
    /// When the server stored it, Unix time in milliseconds.
    pub stored_ms: i64,
}

/// One message of work: a task, or some items of a batch.
#[derive(Debug, Clone)]
pub struct Task {
    /// Queue, kind and job.
    pub subject: TaskSubject,
    /// Id of the message first published.
    pub original_id: String,
    /// The items of the original batch that this covers; none for a task published alone.
    pub items: Option<Items>,
    /// From 1.
    pub attempt: u32,
    /// Attempts before the task is dead-lettered; none means the worker's default.
    pub attempts_max: Option<u32>,
    /// Timeout of one attempt; none means the worker's default.
    pub timeout: Option<Duration>,
    /// Must not start after this, Unix time in milliseconds.
    pub expires_ms: Option<i64>,
    /// Place in the job of the first covered item.
    pub index: Option<u64>,
    /// The subject that is notified of its end as well.
    pub reply_to: Option<String>,
    /// The steps that run when it is done, in order.
    pub continuation: Vec<ChainStep>,
    /// When the original message was stored, Unix time in milliseconds.
    pub published_ms: i64,
    /// The attempts before this one, oldest first.
    pub failures: Vec<FailedAttempt>,
    /// How often the batch that it was taken out of was started without an end: as often its worker has died with it, and once more.
    pub starts_before: usize,
    /// Whether a header says its id.
    pub is_named: bool,
    /// Whether it was published again by millpond.
    pub republished: bool,
    /// The arguments: one value, or a JSON array of `items.len` values.
    pub payload: Bytes,
    /// Where the arguments lie instead: one value, or any bytes. The payload is empty then.
    pub payload_ref: Option<PayloadRef>,
    /// Headers that travel on: `Millpond-*` but those of [`REPUBLISHED`], and the trace context.
    pub forwarded: Headers,
    /// Set when it must be dead-lettered instead of run.
    pub defect: Option<Defect>,
}

impl Task {
    /// Parses a message. What does not fit becomes the `defect`; the id, queue and kind are always usable.
    #[must_use]
    pub fn parse(subject: &str, headers: &Headers, payload: Bytes, arrival: Arrival<'_>) -> Self {
        let mut defect = None;
        let subject = parse_subject(subject, &mut defect);
        let due = arrival.origin == Origin::Due;
        let get = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let own = |name: &str| get(name).filter(|_| due);
        let default_id = || format!("{}-{}", arrival.epoch, arrival.seq);
        // The id of a header of ours goes before that of the message, which may say more.
        let named = own(HEADER_ORIGINAL_ID)
            .or_else(|| get(HEADER_ID))
            .or_else(|| get(HEADER_MSG_ID))
            .filter(|id| !id.is_empty());
        let mut task = Self {
            subject,
            is_named: named.is_some(),
            original_id: named.map_or_else(default_id, str::to_owned),
            items: None,
            attempt: 1,
            attempts_max: None,
            timeout: None,
            expires_ms: None,
            index: None,
            reply_to: None,
            continuation: Vec::new(),
            published_ms: arrival.stored_ms,
            failures: Vec::new(),
            starts_before: 0,
            republished: own(HEADER_ID).is_some(),
            payload,
            payload_ref: None,
            forwarded: headers.iter().filter(|(name, _)| is_forwarded(name)).cloned().collect(),
            defect,
        };
        if task.original_id.len() > TASK_ID_BYTES_MAX {
            let message =
                format!("id is {} bytes long, at most {TASK_ID_BYTES_MAX} are allowed", task.original_id.len());
            task.original_id = default_id();
            task.refuse("bad_header", message);
        }
        if let Err(wrong) = header_names::check(headers, Way::Nats) {
            task.refuse("bad_header", wrong.to_string());
        }
        task.bound_forwarded();
        task.parse_values(&get);
        task.parse_own_values(&own);
        task.parse_items(&get, &own);
        if let Some(text) = get(HEADER_REF) {
            task.parse_ref(text);
        }
        task
    }

    /// Headers that are too large to travel on are left out, the largest first: the dead letter of this task must fit.
    fn bound_forwarded(&mut self) {
        let bytes = |headers: &Headers| headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        while bytes(&self.forwarded) > FORWARDED_BYTES_MAX {
            let largest = self.forwarded.iter().enumerate().max_by_key(|(_, (_, value))| value.len());
            let Some((place, (name, value))) = largest else { return };
            let message = format!(
                "header {name} has {} bytes: the headers that travel with a task have {FORWARDED_BYTES_MAX} at the most",
                value.len()
            );
            self.forwarded.remove(place);
            self.refuse("bad_header", message);
        }
    }

    fn parse_ref(&mut self, text: &str) {
        if self.is_batch() {
            let message = format!("{HEADER_REF} stands for one task's arguments; a batch has its own in the message");
            self.refuse("bad_header", message);
        } else if !self.payload.is_empty() {
            self.refuse("bad_header", format!("a task with {HEADER_REF} has an empty payload"));
        }
        match PayloadRef::parse(text) {
            Ok(at) => self.payload_ref = Some(at),
            Err(wrong) => self.refuse("bad_header", format!("header {HEADER_REF}: {wrong}")),
        }
    }

    fn parse_values<'h>(&mut self, get: &dyn Fn(&str) -> Option<&'h str>) {
        if let Some(text) = get(HEADER_ATTEMPTS_MAX) {
            match parse_attempts_max(text) {
                Ok(n) => self.attempts_max = Some(n),
                Err(_) => self.bad_header(HEADER_ATTEMPTS_MAX, text, &format!("a number from 1 to {ATTEMPTS_MAX_MAX}")),
            }
        }
        if let Some(text) = get(HEADER_TIMEOUT) {
            match bounds::parse_duration(text) {
                Ok(timeout) if !timeout.is_zero() => self.timeout = Some(timeout),
                _ => self.bad_header(HEADER_TIMEOUT, text, "a duration such as 30s, 5m or PT30S, a year at the most"),
            }
        }
        if let Some(text) = get(HEADER_EXPIRES) {
            match bounds::parse_expiry(text) {
                Ok(at) => self.expires_ms = at,
                Err(wrong) => {
                    let wrong = cut(wrong, HEADER_SHOWN_BYTES_MAX);
                    self.refuse("bad_header", format!("header {HEADER_EXPIRES}: {wrong}"));
                }
            }
        }
        if let Some(text) = get(HEADER_INDEX) {
            match text.parse::<u64>() {
                Ok(n) if n <= COUNT_MAX => self.index = Some(n),
                _ => self.bad_header(HEADER_INDEX, text, &format!("a number from 0 to {COUNT_MAX}")),
            }
        }
        if let Some(subject) = get(HEADER_REPLY_TO) {
            if is_reply_subject(subject) {
                self.reply_to = Some(subject.to_owned());
            } else {
                self.bad_header(HEADER_REPLY_TO, subject, "a subject reply.<x> without wildcards, such as reply.job1");
            }
        }
        match get(HEADER_CONTINUATION).map(chain::parse).transpose() {
            Ok(steps) => self.continuation = steps.unwrap_or_default(),
            Err(wrong) => self.refuse("bad_header", format!("header {HEADER_CONTINUATION}: {wrong}")),
        }
    }

    /// Values that only millpond sets, and only in DUE.
    fn parse_own_values<'h>(&mut self, own: &dyn Fn(&str) -> Option<&'h str>) {
        if let Some(text) = own(HEADER_ATTEMPT) {
            match parse_attempts_max(text) {
                Ok(n) => self.attempt = n,
                Err(_) => self.bad_header(HEADER_ATTEMPT, text, &format!("a number from 1 to {ATTEMPTS_MAX_MAX}")),
            }
        }
        if let Some(text) = own(HEADER_PUBLISHED) {
            match text.parse::<i64>() {
                Ok(ms) if bounds::time(HEADER_PUBLISHED, ms).is_ok() => self.published_ms = ms,
                _ => self.bad_header(HEADER_PUBLISHED, text, "Unix milliseconds"),
            }
        }
        if let Some(text) = own(HEADER_STARTS) {
            match text.parse() {
                Ok(n) if n <= STARTS_MAX => self.starts_before = n,
                _ => self.bad_header(HEADER_STARTS, text, &format!("a number from 0 to {STARTS_MAX}")),
            }
        }
        if let Some(text) = own(HEADER_FAILURES) {
            match decode(text.as_bytes()) {
                Ok(failures) if text.len() <= FAILURES_BYTES_MAX => self.failures = failures,
                _ => self.bad_header(HEADER_FAILURES, text, &format!("failures as JSON of {FAILURES_BYTES_MAX} bytes")),
            }
        }
    }

    fn parse_items<'h>(&mut self, get: &dyn Fn(&str) -> Option<&'h str>, own: &dyn Fn(&str) -> Option<&'h str>) {
        if let Some(text) = own(HEADER_ITEMS) {
            self.items = Items::parse(text);
            if self.items.is_none() {
                self.bad_header(
                    HEADER_ITEMS,
                    text,
                    &format!("<from>+<len>/<of>, of {BATCH_ITEMS_MAX} items at the most"),
                );
            }
        } else if let Some(text) = get(HEADER_BATCH) {
            match text.parse() {
                Ok(n) if (1..=BATCH_ITEMS_MAX).contains(&n) => self.items = Some(Items::whole(n)),
                _ => self.bad_header(HEADER_BATCH, text, &format!("a number from 1 to {BATCH_ITEMS_MAX}")),
            }
        }
    }

    fn bad_header(&mut self, name: &str, value: &str, wanted: &str) {
        let value = cut(value.to_owned(), HEADER_SHOWN_BYTES_MAX);
        self.refuse("bad_header", format!("header {name} is {value:?}, it must be {wanted}"));
    }

    /// Marks it as not fit to run; the first reason stays.
    pub fn refuse(&mut self, reason: &'static str, message: String) {
        self.defect.get_or_insert(Defect { reason, message });
    }

    /// Drops everything that the message claims to be. The task gets an id of its own, as a message without one does, so that its
    /// dead letter cannot take the place of the task that it claims to be. The dead letter keeps the headers.
    pub fn distrust(&mut self, distrust: Distrust, arrival: Arrival<'_>) {
        let message = format!("{}; it claims to be task {:?}", distrust.message(), self.id());
        self.subject = TaskSubject { job: None, unique: None, ..self.subject.clone() };
        self.original_id = format!("{}-{}", arrival.epoch, arrival.seq);
        self.published_ms = arrival.stored_ms;
        (self.attempt, self.failures, self.starts_before, self.republished) = (1, Vec::new(), 0, false);
        (self.items, self.index, self.reply_to, self.is_named) = (None, None, None, false);
        // This replaces any other defect: a dead letter with another reason may be run again.
        self.defect = Some(Defect { reason: distrust.reason(), message });
    }

    /// Its own id: the original id, or that of the items it covers.
    #[must_use]
    pub fn id(&self) -> String {
        id_of(&self.original_id, self.items)
    }

    /// Whether the payload is an array of arguments (also of one), rather than one argument.
    #[must_use]
    pub fn is_batch(&self) -> bool {
        self.items.is_some_and(|i| i.len > 1 || i.of == i.len)
    }

    /// How many items it covers; 1 for a task published alone.
    #[must_use]
    pub fn items_len(&self) -> u32 {
        self.items.map_or(1, |i| i.len)
    }

    /// The digest of the arguments that its publisher has given with an id, which tells whether the same id stands for the same
    /// task. None of a batch, nor of what has a place in a job: nobody but the job's publisher gives such ids.
    #[must_use]
    pub fn digest(&self) -> Option<String> {
        let is_asked_for = self.is_named && self.attempt == 1 && self.items.is_none() && self.index.is_none();
        is_asked_for
            .then(|| self.payload_ref.as_ref().map_or_else(|| payload::digest(&self.payload), PayloadRef::digest))
    }

    /// The headers under which `items` of it (all, when none) are published again as attempt `attempt`. `message_id` only makes a
    /// resend safe.
    #[must_use]
    pub fn republish_headers(
        &self,
        items: Option<Items>,
        attempt: u32,
        failures: &[FailedAttempt],
        message_id: String,
    ) -> Headers {
        let items = items.or(self.items);
        let mut headers: Headers =
            self.forwarded.iter().filter(|(n, _)| !OF_ONE_MESSAGE.contains(&n.as_str())).cloned().collect();
        let mut put = |name: &str, value: String| headers.push((name.to_owned(), value));
        put(HEADER_MSG_ID, message_id);
        put(HEADER_ID, id_of(&self.original_id, items));
        put(HEADER_ORIGINAL_ID, self.original_id.clone());
        put(HEADER_ATTEMPT, attempt.to_string());
        put(HEADER_PUBLISHED, self.published_ms.to_string());
        if let Some(i) = items {
            put(HEADER_ITEMS, i.to_string());
        }
        if let Some(index) = self.index_of(items.map_or(0, |i| i.from)) {
            put(HEADER_INDEX, index.to_string());
        }
        if !failures.is_empty() {
            put(HEADER_FAILURES, compact(failures));
        }
        headers
    }

    /// Where the step after this one runs; none when this is the last. The step belongs to no job: a job consists of the tasks
    /// that were submitted in it.
    #[must_use]
    pub fn next_step(&self) -> Option<TaskSubject> {
        chain::resolve(&self.subject.queue, &self.continuation).next()
    }

    /// The headers of the step after this one, for `items` of it that are done. Items keep their places, so that an item's next
    /// step has one id, whichever message it is in. `at_ms` is now, Unix time in milliseconds; `traceparent` is that of the
    /// attempt whose results the step gets.
    #[must_use]
    pub fn next_headers(&self, items: Option<Items>, at_ms: i64, traceparent: String) -> Headers {
        let original_id = chain::next_id(&self.subject, &self.original_id);
        let kept = self.forwarded.iter().filter(|(name, _)| INHERITED.contains(&name.as_str()));
        let mut headers: Headers = kept.cloned().collect();
        let mut put = |name: &str, value: String| headers.push((name.to_owned(), value));
        let id = id_of(&original_id, items);
        put(HEADER_MSG_ID, self.subject.message_id(&format!("t{}", self.attempt), &id));
        put(HEADER_ID, id);
        put(HEADER_ORIGINAL_ID, original_id);
        put(HEADER_ATTEMPT, "1".to_owned());
        put(HEADER_PUBLISHED, at_ms.to_string());
        put(HEADER_TRACEPARENT, traceparent);
        if let Some(i) = items {
            put(HEADER_ITEMS, i.to_string());
        }
        if let Some(rest) = self.continuation.get(1..).and_then(chain::text) {
            put(HEADER_CONTINUATION, rest);
        }
        headers
    }

    /// The place in its job of item `item` of the original batch.
    #[must_use]
    pub fn index_of(&self, item: u32) -> Option<u64> {
        let first = self.items.map_or(0, |i| i.from);
        self.index.map(|index| index + u64::from(item.saturating_sub(first)))
    }

    /// The W3C trace context that came with it.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.forwarded.iter().find(|(n, _)| n == HEADER_TRACEPARENT).map(|(_, v)| v.as_str())
    }
}

fn parse_subject(subject: &str, defect: &mut Option<Defect>) -> TaskSubject {
    TaskSubject::parse(subject).unwrap_or_else(|error: SubjectError| {
        *defect = Some(Defect { reason: "bad_subject", message: error.to_string() });
        let mut tokens = subject.split('.').skip(1);
        let mut token = || {
            let token = tokens.next().unwrap_or_default();
            match crate::wire::subject::check_token("token", token) {
                Ok(()) => token.to_owned(),
                Err(_) => "invalid".to_owned(),
            }
        };
        TaskSubject { queue: token(), kind: token(), job: None, unique: None }
    })
}

/// The headers with which the server holds a message of DUE until `at_ms` (Unix time in milliseconds) and then delivers it to
/// `target`. A time before `now_ms` means now; none when it is later than the server computes with.
#[must_use]
pub fn schedule_headers(at_ms: i64, now_ms: i64, target: String) -> Option<[(String, String); 2]> {
    let at_ms = Some(at_ms.max(now_ms)).filter(|ms| *ms <= TIME_MS_MAX)?;
    let at = jiff::Timestamp::from_millisecond(at_ms).ok()?;
    Some([(HEADER_SCHEDULE.to_owned(), format!("@at {at}")), (HEADER_SCHEDULE_TARGET.to_owned(), target)])
}

/// Why a text cannot be the id of a task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "task id {id:?} must have 1 to {TASK_ID_BYTES_MAX} bytes, no blanks at its ends, and no line break or NUL: a message could not carry it unchanged"
)]
pub struct TaskIdError {
    /// The beginning of the text.
    id: String,
}

/// Checks the id of a task: the server and the workers read it from a header, which cannot carry every text unchanged.
///
/// # Errors
/// [`TaskIdError`].
pub fn check_task_id(id: &str) -> Result<(), TaskIdError> {
    let fits = !id.is_empty() && id.len() <= TASK_ID_BYTES_MAX && id.trim() == id && !id.contains(['\r', '\n', '\0']);
    if fits { Ok(()) } else { Err(TaskIdError { id: id.chars().take(80).collect() }) }
}

/// Checks the id of a task, or of an item of a batch (`<id>/<i>`).
///
/// # Errors
/// [`TaskIdError`].
pub fn check_id(id: &str) -> Result<(), TaskIdError> {
    let item = id.rsplit_once('/').filter(|(_, item)| item.bytes().all(|b| b.is_ascii_digit()) && item.len() <= 10);
    check_task_id(item.map_or(id, |(batch, _)| batch)).map_err(|_| TaskIdError { id: id.chars().take(80).collect() })
}

/// Whether this subject may be notified of a task's end: `reply.` and tokens of visible characters.
#[must_use]
pub fn is_reply_subject(subject: &str) -> bool {
    let visible =
        |token: &str| !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic() && c != '*' && c != '>');
    subject.len() <= TASK_ID_BYTES_MAX && subject.strip_prefix("reply.").is_some_and(|x| x.split('.').all(visible))
}

pub(crate) fn is_forwarded(name: &str) -> bool {
    // Nobody but who writes a dead letter says what it is: a task cannot bring evidence.
    (header_names::is_ours(name) && !REPUBLISHED.contains(&name) && name != HEADER_DEAD)
        || name == HEADER_TRACEPARENT
        || name == HEADER_TRACESTATE
}

/// The failures as JSON of at most [`FAILURES_BYTES_MAX`], without the oldest where that is too long.
pub(crate) fn compact(failures: &[FailedAttempt]) -> String {
    let mut newest = failures;
    loop {
        let text = serde_json::to_string(newest).unwrap_or_else(|_| "[]".to_owned());
        match newest.split_first() {
            Some((_, tail)) if text.len() > FAILURES_BYTES_MAX => newest = tail,
            _ => return text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Failure;

    const ARRIVAL: Arrival<'_> = Arrival { origin: Origin::Tasks, epoch: "e", seq: 7, stored_ms: 5 };

    fn read(subject: &str, headers: &[(&str, &str)], origin: Origin) -> Task {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Task::parse(subject, &headers, Bytes::from_static(b"12"), Arrival { origin, ..ARRIVAL })
    }

    #[test]
    fn ids_that_a_header_changes_are_refused() {
        for bad in ["", " lead", "trail ", "tab\t", "a\nb", "a\rb", "a\0b", "\u{a0}x", &"x".repeat(257)] {
            assert!(check_task_id(bad).is_err() && check_id(bad).is_err(), "{bad:?}");
        }
        for good in ["x", "a b", "j.1/0", "\u{e9}\u{1b}", &"x".repeat(256)] {
            assert_eq!((check_task_id(good), check_id(&format!("{good}/4095"))), (Ok(()), Ok(())), "{good:?}");
        }
    }

    #[test]
    fn a_bare_message_is_a_whole_task() {
        let task = read("tasks.default.square", &[], Origin::Tasks);
        assert_eq!((task.id().as_str(), task.attempt, task.is_batch()), ("e-7", 1, false));
        assert_eq!(task.defect, None);
    }

    #[test]
    fn headers_of_millpond_count_only_in_due() {
        let republished =
            [(HEADER_ID, "x/3"), (HEADER_ORIGINAL_ID, "x"), (HEADER_ITEMS, "3+1/5"), (HEADER_ATTEMPT, "2")];
        let due = read("due.q.k", &republished, Origin::Due);
        assert_eq!((due.id().as_str(), due.attempt, due.is_batch(), due.republished), ("x/3", 2, false, true));
        let forged = read("tasks.q.k", &republished, Origin::Tasks);
        assert_eq!((forged.id().as_str(), forged.attempt, forged.republished), ("x/3", 1, false), "the id alone");
        assert!(forged.forwarded.is_empty());
    }

    #[test]
    fn bad_headers_are_defects() {
        for (name, value) in [
            (HEADER_BATCH, "0"),
            (HEADER_BATCH, "1001"),
            (HEADER_TIMEOUT, "soon"),
            (HEADER_TIMEOUT, "300y"),
            (HEADER_TIMEOUT, "18446744073709551615s"),
            (HEADER_EXPIRES, "2300-01-01T00:00:00Z"),
            (HEADER_INDEX, "9007199254740993"),
            ("Millpond-Note", "x".repeat(FORWARDED_BYTES_MAX).leak()),
            (HEADER_EXPIRES, "tomorrow"),
            (HEADER_ATTEMPTS_MAX, "0"),
            (HEADER_INDEX, "-1"),
            (HEADER_REPLY_TO, "results.x"),
            (HEADER_REPLY_TO, "reply.>"),
            (HEADER_REPLY_TO, "reply."),
            (HEADER_REF, "{}"),
            (HEADER_CONTINUATION, "a.b.c"),
        ] {
            let defect = read("tasks.q.k", &[(name, value)], Origin::Tasks).defect.unwrap();
            assert!(defect.reason == "bad_header" && defect.message.contains(name), "{defect:?}");
        }
        for (name, value) in [
            (HEADER_ITEMS, "0+1/4294967295"),
            (HEADER_ITEMS, "5+4/3"),
            (HEADER_ITEMS, "x"),
            (HEADER_ATTEMPT, "0"),
            (HEADER_ATTEMPT, "4294967295"),
            (HEADER_PUBLISHED, "9223372036854775807"),
            (HEADER_PUBLISHED, "now"),
            (HEADER_FAILURES, "[{}]"),
            (HEADER_FAILURES, &format!("[{}]", " ".repeat(FAILURES_BYTES_MAX))),
        ] {
            let task = read("due.q.k", &[(HEADER_ID, "a"), (name, value)], Origin::Due);
            let defect = task.defect.clone().unwrap();
            assert!(defect.reason == "bad_header" && defect.message.contains(name), "{defect:?}");
            assert!(task.items.is_none() && task.attempt == 1 && task.failures.is_empty(), "{task:?}");
            assert_eq!(read("tasks.q.k", &[(name, value)], Origin::Tasks).defect, None, "only in DUE");
        }
        assert_eq!(read("tasks.q.k.what", &[], Origin::Tasks).defect.unwrap().reason, "bad_subject");
    }

    #[test]
    fn an_expiry_that_means_never_is_none_and_evidence_is_not_brought_along() {
        for text in ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"] {
            let task = read("tasks.q.k", &[(HEADER_EXPIRES, text)], Origin::Tasks);
            assert_eq!((task.expires_ms, task.defect), (None, None), "{text}");
        }
        let task = read("tasks.q.k", &[(HEADER_DEAD, "{}"), ("Millpond-Note", "n")], Origin::Tasks);
        assert_eq!(task.forwarded, [("Millpond-Note".to_owned(), "n".to_owned())]);
    }

    #[test]
    fn a_time_in_the_past_means_now_and_one_beyond_the_server_is_none() {
        let at = |ms| schedule_headers(ms, 1000, "due.q.k".into()).map(|[(_, at), _]| at);
        assert_eq!(at(-62_135_596_800_000).as_deref(), Some("@at 1970-01-01T00:00:01Z"));
        assert_eq!(at(2000).as_deref(), Some("@at 1970-01-01T00:00:02Z"));
        assert_eq!((at(TIME_MS_MAX + 1), at(i64::MAX)), (None, None));
    }

    #[test]
    fn a_reference_stands_for_one_payload_and_travels_on() {
        let at = PayloadRef { object: "o".into(), size: 3, sha256: "0".repeat(64) };
        let text = at.to_json();
        let read = |more: &[(&str, &str)], payload: &'static [u8]| {
            let all = [&[(HEADER_REF, text.as_str())], more].concat();
            let headers = all.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            Task::parse("tasks.q.k", &headers, Bytes::from_static(payload), ARRIVAL)
        };
        let task = read(&[], b"");
        assert_eq!((&task.defect, &task.payload_ref), (&None, &Some(at.clone())));
        let headers = task.republish_headers(None, 2, &[], "m".into());
        let arrival = Arrival { origin: Origin::Due, ..ARRIVAL };
        assert_eq!(Task::parse("due.q.k", &headers, Bytes::new(), arrival).payload_ref, Some(at));
        for bad in [read(&[(HEADER_BATCH, "1")], b""), read(&[], b"1")] {
            assert!(bad.defect.is_some_and(|d| d.reason == "bad_header" && d.message.contains(HEADER_REF)));
        }
    }

    #[test]
    fn a_retry_of_an_item_reads_back() {
        let mut batch = read("tasks.q.k.j-j", &[(HEADER_BATCH, "5"), (HEADER_INDEX, "100")], Origin::Tasks);
        batch.forwarded.push(("Millpond-Timeout".into(), "5s".into()));
        let failed = FailedAttempt {
            attempt: 1,
            worker: "w".into(),
            started_ms: 1,
            ended_ms: 2,
            span: Some("b7ad6b7169203331".into()),
            failure: Failure::new("error", "no"),
        };
        let item = Items { of: 5, from: 3, len: 1 };
        let headers = batch.republish_headers(Some(item), 2, std::slice::from_ref(&failed), "m".into());
        let arrival = Arrival { origin: Origin::Due, epoch: "d", seq: 1, stored_ms: 99 };
        let again = Task::parse("due.q.k.j-j", &headers, Bytes::from_static(b"1"), arrival);
        assert_eq!((again.id(), again.attempt, again.index), ("e-7/3".into(), 2, Some(103)));
        assert_eq!((again.published_ms, &again.failures), (5, &vec![failed]));
        assert_eq!(again.timeout, Some(Duration::from_secs(5)));
        assert!(!again.is_batch());
    }

    #[test]
    fn the_next_step_has_one_id_and_what_it_inherits() {
        let given = [
            (HEADER_MSG_ID, "r"),
            (HEADER_CONTINUATION, "b,q2.c"),
            ("Millpond-Batch", "5"),
            ("Millpond-Index", "10"),
            ("Millpond-Timeout", "5s"),
            ("Millpond-Attempts-Max", "9"),
            (HEADER_REPLY_TO, "reply.x"),
            (HEADER_TRACEPARENT, "00-t"),
        ];
        let headers: Headers = given.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let arrival = Arrival { origin: Origin::Tasks, epoch: "e", seq: 1, stored_ms: 5 };
        let task = Task::parse("tasks.q.a.j-j", &headers, Bytes::from_static(b"[1,2,3,4,5]"), arrival);
        assert_eq!(task.next_step().unwrap().due(), "due.q.b");
        let next = task.next_headers(Some(Items { of: 5, from: 1, len: 2 }), 7, "00-u".into());
        let arrival = Arrival { origin: Origin::Due, ..arrival };
        let next = Task::parse("due.q.b", &next, Bytes::from_static(b"[1,2]"), arrival);
        assert_eq!(
            (next.id().as_str(), next.original_id.as_str(), next.items_len()),
            ("r/q.a/then/1+2", "r/q.a/then", 2)
        );
        assert_eq!((next.index, next.attempt, next.timeout, next.attempts_max), (None, 1, None, None));
        assert_eq!(
            (next.reply_to.as_deref(), next.traceparent(), next.published_ms),
            (Some("reply.x"), Some("00-u"), 7)
        );
        assert_eq!((next.next_step().unwrap().due(), next.defect.clone()), ("due.q2.c".into(), None));
        let last =
            Task::parse("due.q2.c", &next.next_headers(None, 8, "00-v".into()), Bytes::from_static(b"1"), arrival);
        assert_eq!((last.id().as_str(), last.next_step()), ("r/q.a/then/q.b/then", None));
    }
}

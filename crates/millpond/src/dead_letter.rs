//! Dead letters: tasks that do not run again until a person decides so. On DEAD the message's payload is the task's own, byte for
//! byte, and the evidence stands in the header `Millpond-Dead`, as JSON. No I/O, no clock.

use serde::{Deserialize, Serialize};

use crate::limits::TASK_ID_BYTES_MAX;
use crate::outcome::{FailedAttempt, Failure, Items};
use crate::retry::{ATTEMPTS_MAX_MAX, RetryPolicy};
use crate::signature::Distrust;
use crate::task::{compact, is_forwarded};
use crate::wire::bounds::{self, Bounded};
use crate::wire::headers::{
    HEADER_ATTEMPT, HEADER_ATTEMPTS_MAX, HEADER_BATCH, HEADER_DEAD, HEADER_EXPIRES, HEADER_FAILURES, HEADER_ID,
    HEADER_INDEX, HEADER_ITEMS, HEADER_MSG_ID, HEADER_ORIGINAL_ID, HEADER_PUBLISHED, HEADER_RAW_HEADERS,
    HEADER_REPLAY_OF, HEADER_SIGNATURE, Headers,
};
use crate::wire::subject::{TaskSubject, key};

/// Headers that a dead letter's task gets anew when it runs again, or does not get.
const REPLACED: [&str; 6] =
    [HEADER_ATTEMPTS_MAX, HEADER_EXPIRES, HEADER_INDEX, HEADER_BATCH, HEADER_DEAD, HEADER_SIGNATURE];

/// Reason of a task whose queue has a name that is not allowed.
pub const REASON_BAD_QUEUE: &str = "bad_queue";
/// Reason of a task with a time whose unique key another task had when it was to wait.
pub const REASON_UNIQUE_KEY_TAKEN: &str = "unique_key_taken";
/// Reason of a task with a time whose id stood for another task that waits.
pub const REASON_ID_TAKEN: &str = "id_taken";
/// Reason of what waited for a time that would never come, or where nobody would find it.
pub const REASON_BAD_SCHEDULE: &str = "bad_schedule";

/// The dead letter of another queue that a task was made from.
///
/// ```
/// let text = r#"{"queue":"default","kind":"square","id":"a1","attempt":3}"#;
/// let of: millpond::dead_letter::ReplayOf = serde_json::from_str(text).unwrap();
/// assert_eq!(serde_json::to_string(&of).unwrap(), text);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayOf {
    /// The queue of the dead letter.
    pub queue: String,
    /// Its kind there; none in what was written before ids had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its id there.
    pub id: String,
    /// Its last attempt.
    pub attempt: u32,
    /// The trace of that, 32 hex digits; with `span`, where it was exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Id of the span of that, 16 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<String>,
}

/// The id of the task that a dead letter of a queue becomes in another one. It is always the same, so that a second request adds
/// nothing; and it names the queue that it comes from, because tasks of several queues may have one id.
///
/// ```
/// assert_eq!(millpond::dead_letter::moved_id("a1", "default"), "a1@default");
/// ```
#[must_use]
pub fn moved_id(id: &str, from_queue: &str) -> String {
    let moved = format!("{id}@{from_queue}");
    if moved.len() <= TASK_ID_BYTES_MAX { moved } else { format!("{}@{from_queue}", key(id)) }
}

/// Why a dead letter's task cannot run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Its attempts are used up.
    #[error("it has had {attempts} attempts, and there are {ATTEMPTS_MAX_MAX} at the most")]
    NoAttemptsLeft {
        /// How many it had.
        attempts: u32,
    },
    /// It was dead-lettered for its signature.
    #[error("its signature was refused: publish the task again with the key, or throw this away")]
    SignatureRefused,
    /// Its headers could not be read: what it was meant to be is not known.
    #[error("its headers cannot be read: publish the task again, or throw this away")]
    HeadersUnreadable,
    /// It was taken out of a place where no worker looks.
    #[error(
        "no worker has looked at it, nor at its signature: publish the task again where it belongs, or throw this away"
    )]
    NeverLookedAt,
}

/// Why and when a task was dead-lettered, and its attempts before.
///
/// ```
/// let text = r#"{"v":1,"id":"a1","attempt":3,"reason":"exhausted","failure":{"type":"error","message":"no","retry":true},"worker":"w1","published_ms":1,"dead_lettered_ms":9}"#;
/// let evidence: millpond::dead_letter::Evidence = serde_json::from_str(text).unwrap();
/// assert_eq!(serde_json::to_string(&evidence).unwrap(), text);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Evidence {
    /// Version of this form; 1.
    pub v: u8,
    /// Id of the task, or `<original id>/<i>` of an item.
    pub id: String,
    /// Id of the message first published, where it is not `id`. `root` in what wire number 1 wrote.
    #[serde(alias = "root", default, skip_serializing_if = "Option::is_none")]
    pub original_id: Option<String>,
    /// The items covered; none for a task published alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<Items>,
    /// The job, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Its unique key, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique: Option<String>,
    /// Place in the job of the first covered item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The last attempt, from 1; 0 when it never ran.
    pub attempt: u32,
    /// `exhausted`, `fatal`, `undecodable`, `batch_count`, `expired`, `unknown_kind`, `kills_workers`, `bad_header`, …
    pub reason: String,
    /// The last failure.
    pub failure: Failure,
    /// The attempts before the last, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailedAttempt>,
    /// The worker that dead-lettered it.
    pub worker: String,
    /// When the task was stored by the server, Unix time in milliseconds.
    pub published_ms: i64,
    /// Start of the last attempt, Unix time in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<i64>,
    /// When it was dead-lettered, Unix time in milliseconds. `buried_ms` in what wire number 1 wrote.
    #[serde(alias = "buried_ms")]
    pub dead_lettered_ms: i64,
    /// W3C trace id, 32 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Id of the last attempt's span, 16 hex digits; none when it was not exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<String>,
}

impl Bounded for Evidence {
    fn check(&self) -> Result<(), String> {
        bounds::id("id", &self.id)?;
        self.original_id.as_deref().map_or(Ok(()), |id| bounds::id("original_id", id))?;
        self.items.map_or(Ok(()), |items| items.check())?;
        self.index.map_or(Ok(()), |index| bounds::count("index", index))?;
        bounds::attempt(self.attempt)?;
        self.failure.check()?;
        self.failures.check()?;
        bounds::time("published_ms", self.published_ms)?;
        self.started_ms.map_or(Ok(()), |ms| bounds::time("started_ms", ms))?;
        bounds::time("dead_lettered_ms", self.dead_lettered_ms)
    }
}

impl Evidence {
    /// The same without what it can do without, for a server that has refused the whole; `refused` are its words.
    #[must_use]
    pub fn small(&self, refused: &str) -> Self {
        Self { failure: self.failure.small(refused), failures: Vec::new(), ..self.clone() }
    }

    /// The headers under which its task runs again, as the next attempt, with as many attempts more as it first had. `headers` are
    /// those on DEAD.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn replay_headers(&self, subject: &TaskSubject, headers: &Headers) -> Result<Headers, ReplayError> {
        self.check(headers)?;
        let attempt = self.attempt.max(1) + 1;
        if attempt > ATTEMPTS_MAX_MAX {
            return Err(ReplayError::NoAttemptsLeft { attempts: self.attempt });
        }
        let first = self.attempts_first(headers).unwrap_or(RetryPolicy::DEFAULT.attempts_max);
        let attempts_max = (self.attempt + first).min(ATTEMPTS_MAX_MAX);
        let mut failures = self.failures.clone();
        failures.push(FailedAttempt {
            attempt: self.attempt,
            worker: self.worker.clone(),
            started_ms: self.started_ms.unwrap_or(self.dead_lettered_ms),
            ended_ms: self.dead_lettered_ms,
            span: self.span.clone(),
            failure: self.failure.clone(),
        });
        let mut replay = carried(headers);
        let mut put = |name: &str, value: String| replay.push((name.to_owned(), value));
        put(HEADER_MSG_ID, subject.message_id(&format!("r{attempt}"), &self.id));
        put(HEADER_ID, self.id.clone());
        put(HEADER_ORIGINAL_ID, self.original_id.clone().unwrap_or_else(|| self.id.clone()));
        put(HEADER_ATTEMPT, attempt.to_string());
        put(HEADER_ATTEMPTS_MAX, attempts_max.to_string());
        put(HEADER_PUBLISHED, self.published_ms.to_string());
        put(HEADER_FAILURES, compact(&failures));
        if let Some(i) = self.items {
            put(HEADER_ITEMS, i.to_string());
        }
        if let Some(index) = self.index {
            put(HEADER_INDEX, index.to_string());
        }
        Ok(replay)
    }

    /// The headers under which its task runs in another queue: a new task, first attempt, that points back. It has no unique key,
    /// and belongs to no job: a job consists of the tasks that were submitted in it.
    ///
    /// # Errors
    /// [`ReplayError::SignatureRefused`], [`ReplayError::HeadersUnreadable`].
    pub fn moved_headers(
        &self,
        subject: &TaskSubject,
        to_queue: &str,
        headers: &Headers,
    ) -> Result<Headers, ReplayError> {
        self.check(headers)?;
        let (mut moved, id) = (carried(headers), moved_id(&self.id, &subject.queue));
        let to = TaskSubject { queue: to_queue.to_owned(), ..subject.clone() };
        // The dead letter that this one was made from stands in its own header.
        moved.retain(|(name, _)| name != HEADER_REPLAY_OF);
        let of = ReplayOf {
            queue: subject.queue.clone(),
            kind: Some(subject.kind.clone()),
            id: self.id.clone(),
            attempt: self.attempt,
            trace: self.trace.clone().filter(|_| self.span.is_some()),
            span: self.span.clone(),
        };
        let mut put = |name: &str, value: String| moved.push((name.to_owned(), value));
        put(HEADER_MSG_ID, to.message_id("r1", &id));
        put(HEADER_ID, id);
        put(HEADER_REPLAY_OF, serde_json::to_string(&of).unwrap_or_default());
        if let Some(first) = self.attempts_first(headers) {
            put(HEADER_ATTEMPTS_MAX, first.to_string());
        }
        if self.is_batch_of_one() {
            put(HEADER_BATCH, "1".to_owned());
        }
        Ok(moved)
    }

    /// Whether its payload is an array of one argument rather than the argument.
    #[must_use]
    pub fn is_batch_of_one(&self) -> bool {
        self.items.is_some_and(|items| items.of == 1)
    }

    /// A replay would sign the task, whoever had published it; and of one whose headers nobody could read, nobody knows how
    /// it was to run, or whether it was signed.
    fn check(&self, headers: &Headers) -> Result<(), ReplayError> {
        if headers.iter().any(|(name, _)| name == HEADER_RAW_HEADERS) {
            return Err(ReplayError::HeadersUnreadable);
        }
        if [REASON_BAD_QUEUE, REASON_BAD_SCHEDULE].contains(&self.reason.as_str()) {
            return Err(ReplayError::NeverLookedAt);
        }
        if Distrust::is_reason(&self.reason) { Err(ReplayError::SignatureRefused) } else { Ok(()) }
    }

    /// How many attempts it first had, where the header says so. After a replay, the header has the sum.
    fn attempts_first(&self, headers: &Headers) -> Option<u32> {
        let had = headers.iter().find(|(n, _)| n == HEADER_ATTEMPTS_MAX).and_then(|(_, v)| v.parse::<u32>().ok())?;
        let first = if had > self.attempt { had - self.attempt } else { had };
        Some(first.clamp(1, ATTEMPTS_MAX_MAX))
    }
}

/// The headers that stay with the task.
fn carried(headers: &Headers) -> Headers {
    headers.iter().filter(|(n, _)| is_forwarded(n) && !REPLACED.contains(&n.as_str())).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::decode::decode;

    #[test]
    fn evidence_that_does_not_fit_is_refused() {
        let good = r#"{"v":1,"id":"b/3","items":{"of":5,"from":3,"len":1},"index":8,"attempt":2,"reason":"exhausted","failure":{"type":"error","message":"no"},"worker":"w1","published_ms":1,"dead_lettered_ms":9,"later":{}}"#;
        assert_eq!(decode::<Evidence>(good.as_bytes()).unwrap().attempt, 2);
        for (was, is) in [
            (r#""of":5"#, r#""of":4294967295"#),
            (r#""from":3"#, r#""from":4294967295"#),
            (r#""len":1"#, r#""len":0"#),
            (r#""index":8"#, r#""index":9223372036854775808"#),
            (r#""attempt":2"#, r#""attempt":101"#),
            (r#""published_ms":1"#, r#""published_ms":9223372036854775807"#),
            (r#""dead_lettered_ms":9"#, r#""dead_lettered_ms":-9223372036854775808"#),
        ] {
            assert!(decode::<Evidence>(good.replacen(was, is, 1).as_bytes()).is_err(), "{is}");
        }
    }

    #[test]
    fn a_replay_is_the_next_attempt_and_has_as_many_as_before() {
        let text = r#"{"v":1,"id":"b/3","original_id":"b","items":{"of":5,"from":3,"len":1},"index":8,"attempt":2,"reason":"exhausted",
            "failure":{"type":"error","message":"no","retry":true},"worker":"w1","published_ms":1,"dead_lettered_ms":9}"#;
        let evidence: Evidence = serde_json::from_str(text).unwrap();
        let had = [(HEADER_ATTEMPTS_MAX, "2"), (HEADER_EXPIRES, "2020-01-01T00:00:00Z"), ("Millpond-Timeout", "5s")];
        let had: Headers = had.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let subject = TaskSubject::new("q", "k", None).unwrap();
        let replay = evidence.replay_headers(&subject, &had).unwrap();
        let get = |name: &str| replay.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!((get(HEADER_ATTEMPT), get(HEADER_ATTEMPTS_MAX)), (Some("3"), Some("4")));
        assert_eq!(
            (get(HEADER_ID), get(HEADER_ORIGINAL_ID), get(HEADER_ITEMS)),
            (Some("b/3"), Some("b"), Some("3+1/5"))
        );
        assert_eq!((get(HEADER_MSG_ID), get(HEADER_EXPIRES)), (Some("millpond:q/k/r3/b/3"), None));
        assert_eq!((get(HEADER_INDEX), get("Millpond-Timeout")), (Some("8"), Some("5s")));
        let failures: Vec<FailedAttempt> = serde_json::from_str(get(HEADER_FAILURES).unwrap()).unwrap();
        assert_eq!((failures.len(), failures[0].attempt), (1, 2));
        let moved = evidence.moved_headers(&subject, "q2", &had).unwrap();
        let get = |name: &str| moved.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!((get(HEADER_ID), get(HEADER_MSG_ID)), (Some("b/3@q"), Some("millpond:q2/k/r1/b/3@q")));
        assert_eq!((get(HEADER_ATTEMPTS_MAX), get(HEADER_ATTEMPT), get(HEADER_ORIGINAL_ID)), (Some("2"), None, None));
        assert_eq!((get(HEADER_INDEX), get(HEADER_ITEMS), get("Millpond-Timeout")), (None, None, Some("5s")));
        assert_eq!(get(HEADER_REPLAY_OF), Some(r#"{"queue":"q","kind":"k","id":"b/3","attempt":2}"#));
        let long = moved_id(&"x".repeat(TASK_ID_BYTES_MAX), "q2");
        assert!(long.ends_with("@q2") && long.len() < TASK_ID_BYTES_MAX);
        let forged = Evidence { reason: "unsigned".into(), ..evidence.clone() };
        assert!(forged.replay_headers(&subject, &had).unwrap_err().to_string().contains("signature"));
        let raw: Headers = vec![(HEADER_RAW_HEADERS.to_owned(), "TkFUUw==".to_owned())];
        assert_eq!(evidence.replay_headers(&subject, &raw), Err(ReplayError::HeadersUnreadable));
        assert_eq!(evidence.moved_headers(&subject, "q2", &raw), Err(ReplayError::HeadersUnreadable));
        let misaddressed = Evidence { reason: REASON_BAD_QUEUE.into(), ..evidence.clone() };
        assert_eq!(misaddressed.moved_headers(&subject, "q2", &had), Err(ReplayError::NeverLookedAt));
        let worn = Evidence { attempt: ATTEMPTS_MAX_MAX, ..evidence };
        assert!(worn.replay_headers(&subject, &had).unwrap_err().to_string().contains("attempts"));
    }
}

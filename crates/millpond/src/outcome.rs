//! How attempts end, as RESULTS holds it: batches of outcomes of one subject. The worker writes them; the collector and waiting
//! clients read them. No I/O, no clock.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::limits::BATCH_ITEMS_MAX;
use crate::payload::PayloadRef;
use crate::wire::bounds::{self, Bounded};

/// Bytes of log lines in one evidence, as JSON has them; beyond it the oldest are dropped.
pub const EVIDENCE_LOG_BYTES_MAX: usize = 8 * 1024;
/// Longest log line in an evidence, in bytes of JSON; a longer one is cut.
pub const EVIDENCE_LINE_BYTES_MAX: usize = EVIDENCE_LOG_BYTES_MAX / 8;
/// Log lines of a child in the evidence of a failure.
pub const EVIDENCE_LINES_MAX: usize = 50;
/// A failure's type, in bytes of JSON; a longer one is cut.
const FAILURE_TYPE_BYTES_MAX: usize = 64;
/// A failure's traceback, in bytes of JSON; a longer one is cut.
const FAILURE_TRACEBACK_BYTES_MAX: usize = 8 * 1024;
/// A failure's message, in bytes of JSON; a longer one is cut.
const FAILURE_MESSAGE_BYTES_MAX: usize = 2 * 1024;
/// A failure's message where the whole was too large for the server, in bytes of JSON.
const FAILURE_SMALL_BYTES_MAX: usize = 512;
/// The name of a child in the evidence of a failure, in bytes of JSON.
const CHILD_NAME_BYTES_MAX: usize = 256;
/// Bytes that a character of text becomes in JSON at the most.
const ESCAPED_BYTES_MAX: usize = 6;

/// Which items of a batch a message or an outcome covers; a task published alone has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Items {
    /// Items in the batch as it was first published.
    pub of: u32,
    /// The first item covered, from 0.
    pub from: u32,
    /// How many are covered.
    pub len: u32,
}

impl std::fmt::Display for Items {
    /// As the header `Millpond-Items` has it: `<from>+<len>/<of>`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}/{}", self.from, self.len, self.of)
    }
}

impl Items {
    /// Parses the header `Millpond-Items`; none when it does not fit.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (range, of) = text.split_once('/')?;
        let (from, len) = range.split_once('+')?;
        let items = Self { of: of.parse().ok()?, from: from.parse().ok()?, len: len.parse().ok()? };
        items.check().ok().map(|()| items)
    }

    /// A whole batch.
    #[must_use]
    pub fn whole(of: u32) -> Self {
        Self { of, from: 0, len: of }
    }

    /// Whether two ranges of one batch share an item.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.from < other.from.saturating_add(other.len) && other.from < self.from.saturating_add(self.len)
    }
}

impl Bounded for Items {
    fn check(&self) -> Result<(), String> {
        let inside = self.from.checked_add(self.len).is_some_and(|end| end <= self.of);
        let fits = self.len > 0 && self.of <= BATCH_ITEMS_MAX && inside;
        fits.then_some(()).ok_or_else(|| {
            format!("items {self} are no part of a batch; it has 1 to {BATCH_ITEMS_MAX} of them, counted from 0")
        })
    }
}

/// The id of a message that covers `items` of `original_id`: the original id itself for all of them, `<original id>/<i>` for one,
/// `<original id>/<from>+<len>` for some.
#[must_use]
pub fn id_of(original_id: &str, items: Option<Items>) -> String {
    match items {
        None => original_id.to_owned(),
        Some(i) if i.len == i.of => original_id.to_owned(),
        Some(i) if i.len == 1 => format!("{original_id}/{}", i.from),
        Some(i) => format!("{original_id}/{}+{}", i.from, i.len),
    }
}

/// Why an attempt failed. `type` is a short word for code to branch on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Failure {
    /// `error`, `panic`, `timeout`, `bad_arguments`, `unknown_kind`, … (docs/protocol.md lists them).
    #[serde(rename = "type")]
    pub kind: String,
    /// One line for a person.
    pub message: String,
    /// Where it happened, when the handler knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceback: Option<String>,
    /// False when trying again cannot help: the task is dead-lettered at once.
    #[serde(default = "yes")]
    pub retry: bool,
    /// The evidence of the child process that ran the task, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<Box<ChildEvidence>>,
}

/// The evidence of a child process whose task failed.
///
/// ```
/// let text = r#"{"name":"w1/resize-2","signal":9,"oom":true,"rss_bytes":536870912,"log":["loading"]}"#;
/// let evidence: millpond::outcome::ChildEvidence = serde_json::from_str(text).unwrap();
/// assert_eq!(serde_json::to_string(&evidence).unwrap(), text);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ChildEvidence {
    /// `<worker>/<kind>-<n>`.
    pub name: String,
    /// Its exit code; none while it lives, or when a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether it was killed for its memory, by its limit or by the kernel.
    #[serde(default, skip_serializing_if = "is_false")]
    pub oom: bool,
    /// Resident memory of it and all processes below it when it was last measured, in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rss_bytes: u64,
    /// The last lines that it wrote to standard error during this task, oldest first; bounded by
    /// [`EVIDENCE_LINES_MAX`] and
    /// [`EVIDENCE_LOG_BYTES_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn yes() -> bool {
    true
}

/// Bytes of a character within a text of JSON.
fn escaped_bytes(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        c if c < ' ' => ESCAPED_BYTES_MAX,
        c => c.len_utf8(),
    }
}

/// Bytes of a text as JSON has it, without its quotes.
#[must_use]
pub fn json_bytes(text: &str) -> usize {
    text.chars().map(escaped_bytes).sum()
}

/// The text cut at the last whole character within the limit, with a mark where it was longer. The limit is one of bytes as JSON
/// has them: a control character becomes six there.
#[must_use]
pub fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() <= bytes_max / ESCAPED_BYTES_MAX {
        return text;
    }
    let mut bytes = 0;
    let end = text.char_indices().find_map(|(at, c)| {
        bytes += escaped_bytes(c);
        (bytes > bytes_max).then_some(at)
    });
    if let Some(end) = end {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl ChildEvidence {
    /// The same, cut to its bounds: of the log the newest lines stay.
    fn bounded(self) -> Self {
        let mut bytes = 0;
        let newest = self.log.into_iter().rev().take(EVIDENCE_LINES_MAX).map(|line| cut(line, EVIDENCE_LINE_BYTES_MAX));
        let mut log: Vec<String> = newest
            .take_while(|line| {
                bytes += json_bytes(line);
                bytes <= EVIDENCE_LOG_BYTES_MAX
            })
            .collect();
        log.reverse();
        Self { name: cut(self.name, CHILD_NAME_BYTES_MAX), log, ..self }
    }
}

impl Failure {
    /// A failure that may be tried again.
    #[must_use]
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        let message = cut(message.into(), FAILURE_MESSAGE_BYTES_MAX);
        Self { kind: kind.into(), message, traceback: None, retry: true, child: None }
    }

    /// The same, cut to the bounds of a header.
    #[must_use]
    pub fn bounded(self) -> Self {
        let kind = cut(self.kind, FAILURE_TYPE_BYTES_MAX);
        let message = cut(self.message, FAILURE_MESSAGE_BYTES_MAX);
        let traceback = self.traceback.map(|t| cut(t, FAILURE_TRACEBACK_BYTES_MAX));
        let child = self.child.map(|child| Box::new(child.bounded()));
        Self { kind, message, traceback, child, ..self }
    }

    /// The least of it, for a server that refuses the whole: its type, the start of its message, and why there is no more.
    #[must_use]
    pub fn small(&self, refused: &str) -> Self {
        let kind = cut(self.kind.clone(), FAILURE_TYPE_BYTES_MAX);
        let message = cut(self.message.clone(), FAILURE_SMALL_BYTES_MAX);
        let refused = cut(refused.to_owned(), FAILURE_SMALL_BYTES_MAX);
        let message = format!("{message} (the rest is not kept: {refused})");
        Self { kind, message, traceback: None, retry: self.retry, child: None }
    }

    /// The same as later attempts carry it: without the log lines, which stay with their own attempt.
    #[must_use]
    pub fn carried(&self) -> Self {
        let child = self.child.as_ref().map(|child| Box::new(ChildEvidence { log: Vec::new(), ..(**child).clone() }));
        Self { child, ..self.clone() }
    }

    /// A failure that trying again cannot mend.
    #[must_use]
    pub fn fatal(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self { retry: false, ..Self::new(kind, message) }
    }
}

impl Bounded for Failure {
    fn check(&self) -> Result<(), String> {
        self.child.as_ref().map_or(Ok(()), |child| bounds::count("rss_bytes", child.rss_bytes))
    }
}

/// A failed attempt, as retries, outcomes and dead letters carry it on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FailedAttempt {
    /// From 1.
    pub attempt: u32,
    /// The worker that ran it.
    pub worker: String,
    /// Start, Unix time in milliseconds.
    pub started_ms: i64,
    /// End, Unix time in milliseconds.
    pub ended_ms: i64,
    /// Id of its span, 16 hex digits; none when it was not exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<String>,
    /// Why.
    pub failure: Failure,
}

impl Bounded for FailedAttempt {
    fn check(&self) -> Result<(), String> {
        bounds::attempt(self.attempt)?;
        bounds::time("started_ms", self.started_ms)?;
        bounds::time("ended_ms", self.ended_ms)?;
        self.failure.check()
    }
}

/// The state of an item that has no result (yet).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotDoneState {
    /// Failed; a later attempt waits in DUE.
    Retry,
    /// Failed for good; a dead letter waits for a person.
    Dead,
    /// Cancelled before it ran.
    Cancelled,
    /// Not run by this attempt (drain); the remainder of the batch was published again.
    #[serde(rename = "rest")]
    Remainder,
}

/// An item without a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotDone {
    /// Place in the original batch, from 0; 0 for a task published alone.
    pub item: u32,
    /// Its state.
    pub end: NotDoneState,
    /// Why, for `retry` and `dead`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// When the retry is due, Unix time in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_ms: Option<i64>,
}

/// A result that lies in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredResult {
    /// Place in the original batch, from 0; 0 for a task published alone.
    pub item: u32,
    /// Where it lies.
    #[serde(flatten)]
    pub at: PayloadRef,
}

/// The result of one item.
#[derive(Debug, Clone, Copy)]
pub enum ItemResult<'a> {
    /// The result itself.
    Inline(&'a RawValue),
    /// The result is bytes that are no JSON, shown as `{"base64":"…"}`.
    Bytes(&'a RawValue),
    /// Where a large result lies in the store of payloads.
    Stored(&'a PayloadRef),
}

/// How one attempt of one message (a task, or some items of a batch) ended.
///
/// ```
/// let text = r#"{"id":"a1","attempt":1,"published_ms":1,"started_ms":2,"ended_ms":3,"results":[144]}"#;
/// let outcome: millpond::outcome::Outcome = serde_json::from_str(text).unwrap();
/// assert_eq!(outcome.results[0].get(), "144");
/// assert_eq!(serde_json::to_string(&outcome).unwrap(), text);
/// ```
///
/// # Guarantees
/// `results` has one entry per covered item, in order; an entry named in `not_done` or `refs` is `null` and means nothing.
/// Both are in the order of their items.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// Id of what ran: see [`id_of`].
    pub id: String,
    /// Id of the message first published, where it is not `id`. `root` on the wire of number 1.
    #[serde(alias = "root", default, skip_serializing_if = "Option::is_none")]
    pub original_id: Option<String>,
    /// The items covered; none for a task published alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<Items>,
    /// Place of the first covered item in its job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The digest of its arguments ([`crate::payload::digest`]), in the first attempt of a task whose publisher gave the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// From 1; attempts go on over replays.
    pub attempt: u32,
    /// When the original message was stored by the server, Unix time in milliseconds.
    pub published_ms: i64,
    /// Start of this attempt, Unix time in milliseconds.
    pub started_ms: i64,
    /// End of this attempt, Unix time in milliseconds.
    pub ended_ms: i64,
    /// How long its handler ran for the items that have a result or a failure, in microseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub busy_us: u64,
    /// W3C trace id, 32 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Id of the attempt's span, 16 hex digits; none when it was not exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<String>,
    /// Where the result goes next, `<queue>.<kind>`: the next step of its chain is stored.
    #[serde(alias = "then", default, skip_serializing_if = "Option::is_none")]
    pub continuation: Option<String>,
    /// One JSON value per covered item.
    pub results: Vec<Box<RawValue>>,
    /// Items whose result is not JSON but bytes, in order: their entry in `results` is `{"base64":"…"}`. The same entry of an
    /// item that is not named here is what its handler returned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bytes: Vec<u32>,
    /// Results that lie in the store instead, by item; their entry in `results` is `null`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refs: Vec<StoredResult>,
    /// Items without a result, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_done: Vec<NotDone>,
    /// The attempts before this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailedAttempt>,
}

impl Outcome {
    /// Id of the message first published.
    #[must_use]
    pub fn original_id(&self) -> &str {
        self.original_id.as_deref().unwrap_or(&self.id)
    }

    /// The first covered item's place in the original batch; 0 for a task published alone.
    #[must_use]
    pub fn first_item(&self) -> u32 {
        self.items.map_or(0, |i| i.from)
    }

    /// Each covered item in order: its place in the original batch, and its result or why it has none.
    pub fn ends(&self) -> impl Iterator<Item = (u32, Result<ItemResult<'_>, &NotDone>)> {
        let first = self.first_item();
        self.results.iter().enumerate().map(move |(k, result)| {
            let item = first + u32::try_from(k).unwrap_or(u32::MAX);
            if let Some(at) =
                self.not_done.binary_search_by_key(&item, |n| n.item).ok().and_then(|n| self.not_done.get(n))
            {
                return (item, Err(at));
            }
            let stored = self.refs.binary_search_by_key(&item, |r| r.item).ok().and_then(|n| self.refs.get(n));
            let result = match stored {
                Some(stored) => ItemResult::Stored(&stored.at),
                None if self.bytes.binary_search(&item).is_ok() => ItemResult::Bytes(result),
                None => ItemResult::Inline(result),
            };
            (item, Ok(result))
        })
    }

    /// How many of the covered items this attempt ran.
    #[must_use]
    pub fn items_run(&self) -> usize {
        let left =
            self.not_done.iter().filter(|n| matches!(n.end, NotDoneState::Remainder | NotDoneState::Cancelled)).count();
        self.results.len().saturating_sub(left)
    }
}

/// Whether items are among those that are covered, each once and in order.
fn in_order(what: &str, covered: Range<u32>, items: impl IntoIterator<Item = u32>) -> Result<(), String> {
    let mut next = covered.start;
    let fits = items.into_iter().all(|item| {
        let fits = item >= next && item < covered.end;
        next = item.saturating_add(1);
        fits
    });
    fits.then_some(()).ok_or_else(|| format!("{what} names items that it does not cover, or not in their order"))
}

impl Bounded for Outcome {
    fn check(&self) -> Result<(), String> {
        bounds::id("id", &self.id)?;
        self.original_id.as_deref().map_or(Ok(()), |id| bounds::id("original_id", id))?;
        self.items.map_or(Ok(()), |items| items.check())?;
        self.index.map_or(Ok(()), |index| bounds::count("index", index))?;
        self.digest.as_deref().map_or(Ok(()), |digest| bounds::id("digest", digest))?;
        bounds::attempt(self.attempt)?;
        bounds::time("published_ms", self.published_ms)?;
        bounds::time("started_ms", self.started_ms)?;
        bounds::time("ended_ms", self.ended_ms)?;
        bounds::count("busy_us", self.busy_us)?;
        self.failures.check()?;
        let (first, len) = self.items.map_or((0, 1), |items| (items.from, items.len));
        if self.results.len() != len as usize {
            return Err(format!("{} results for {len} items", self.results.len()));
        }
        let end = first.saturating_add(len);
        in_order("not_done", first..end, self.not_done.iter().map(|not_done| not_done.item))?;
        in_order("refs", first..end, self.refs.iter().map(|stored| stored.item))?;
        in_order("bytes", first..end, self.bytes.iter().copied())?;
        self.refs.iter().try_for_each(|stored| stored.at.check())?;
        self.not_done.iter().filter_map(|not_done| not_done.due_ms).try_for_each(|ms| bounds::time("due_ms", ms))?;
        self.not_done.iter().filter_map(|not_done| not_done.failure.as_ref()).try_for_each(Bounded::check)
    }
}

/// The notice of an item that ended, published on the subject of its `Millpond-Reply-To`.
#[derive(Debug, Serialize)]
pub struct EndNotice<'a> {
    /// Version of this form; 1.
    pub v: u8,
    /// Id of the item.
    pub id: String,
    /// Its place in its job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// `done`, `dead` or `cancelled`.
    pub status: &'static str,
    /// The attempt that ended it.
    pub attempt: u32,
    /// The worker that ran it.
    pub worker: &'a str,
    /// Its result, when done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<&'a RawValue>,
    /// The result is bytes that are no JSON: `{"base64":"…"}`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bytes: bool,
    /// Where its result lies, when it is large.
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub stored: Option<&'a PayloadRef>,
    /// Why it has none, when dead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<&'a Failure>,
}

impl Outcome {
    /// One notice for each item that ended for good.
    pub fn end_notices<'a>(&'a self, worker: &'a str) -> impl Iterator<Item = EndNotice<'a>> {
        let first = self.first_item();
        self.ends().filter_map(move |(item, end)| {
            let (status, result, stored, failure) = match end {
                Ok(ItemResult::Inline(result) | ItemResult::Bytes(result)) => ("done", Some(result), None, None),
                Ok(ItemResult::Stored(at)) => ("done", None, Some(at), None),
                Err(n) if n.end == NotDoneState::Dead => ("dead", None, None, n.failure.as_ref()),
                Err(n) if n.end == NotDoneState::Cancelled => ("cancelled", None, None, None),
                Err(_) => return None,
            };
            let id = match self.items {
                Some(items) if items.of == 1 => format!("{}/0", self.original_id()),
                items => id_of(self.original_id(), items.map(|i| Items { of: i.of, from: item, len: 1 })),
            };
            let index = self.index.map(|index| index + u64::from(item - first));
            let bytes = matches!(end, Ok(ItemResult::Bytes(_)));
            Some(EndNotice { v: 1, id, index, status, attempt: self.attempt, worker, result, bytes, stored, failure })
        })
    }
}

/// What a RESULTS message holds: outcomes of one subject by one worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResultBatch {
    /// Version of this form; 1.
    pub v: u8,
    /// The worker that ran them.
    pub worker: String,
    /// In the order in which they ended.
    pub outcomes: Vec<Outcome>,
    /// A job that was cancelled: all of its tasks that have no end before this in the stream end by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled: Option<CancelledJob>,
}

/// One record that ends what is left of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelledJob {
    /// Its name.
    pub job: String,
    /// The epochs up to this one; 0 for a job without a record.
    pub epoch: u32,
    /// Who asked for it.
    pub by: String,
    /// When, Unix time in milliseconds.
    pub at_ms: i64,
}

impl Bounded for ResultBatch {
    /// Its outcomes are checked one by one by whoever reads them: a bad one does not hide the others.
    fn check(&self) -> Result<(), String> {
        self.cancelled.as_ref().map_or(Ok(()), |cancelled| bounds::time("at_ms", cancelled.at_ms))
    }
}

impl ResultBatch {
    /// Takes out the outcomes that do not keep their bounds, and returns what is wrong with each.
    pub fn take_bad(&mut self) -> Vec<String> {
        let mut bad = Vec::new();
        self.outcomes.retain(|outcome| match outcome.check() {
            Ok(()) => true,
            Err(reason) => {
                bad.push(format!("outcome of {:?}: {reason}", cut(outcome.id.clone(), bounds::ID_BYTES_MAX)));
                false
            }
        });
        bad
    }
}

impl CancelledJob {
    /// Whether it ends the task of the job with this original id.
    #[must_use]
    pub fn covers(&self, original_id: &str) -> bool {
        crate::job::epoch_of(&self.job, original_id).is_none_or(|epoch| epoch <= self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        assert_eq!(id_of("r", None), "r");
        assert_eq!(id_of("r", Some(Items::whole(3))), "r");
        assert_eq!(id_of("r", Some(Items { of: 3, from: 2, len: 1 })), "r/2");
        assert_eq!(id_of("r", Some(Items { of: 3, from: 1, len: 2 })), "r/1+2");
    }

    #[test]
    fn large_results_are_notified_by_reference() {
        let text = format!(
            r#"{{"id":"b","items":{{"of":3,"from":0,"len":3}},"attempt":1,"published_ms":1,"started_ms":2,"ended_ms":3,"results":[1,null,null],"refs":[{{"item":1,"object":"o","size":9,"sha256":"{}"}}],"not_done":[{{"item":2,"end":"dead"}}]}}"#,
            "0".repeat(64)
        );
        let outcome: Outcome = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&outcome).unwrap(), text);
        let notices: Vec<_> = outcome
            .end_notices("w")
            .map(|t| (t.status, t.result.map(RawValue::get), t.stored.map(|s| s.size)))
            .collect();
        assert_eq!(notices, [("done", Some("1"), None), ("done", None, Some(9)), ("dead", None, None)]);
    }

    #[test]
    fn overlap() {
        let a = Items { of: 10, from: 2, len: 3 };
        let at = |from, len| Items { of: 10, from, len };
        assert!(a.overlaps(&at(4, 1)));
        assert!(!a.overlaps(&at(5, 2)));
        assert!(!a.overlaps(&at(0, 2)));
        assert!(a.overlaps(&Items::whole(10)));
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let failure = Failure::new("error", "ä".repeat(FAILURE_MESSAGE_BYTES_MAX));
        assert!(failure.message.len() <= FAILURE_MESSAGE_BYTES_MAX + '…'.len_utf8());
        assert_eq!(cut("äb".into(), 3), "äb");
        assert_eq!(cut("äbc".into(), 3), "äb…");
    }

    #[test]
    fn a_failure_is_bounded_by_its_size_as_json_whatever_its_characters() {
        for c in ["a", "\0", "\u{1b}", "\n", "\"", "\u{7f}", "ä", "🦀", "\u{2028}"] {
            let log = (0..200).map(|n| format!("{n} {}", c.repeat(2000))).collect();
            let child = Some(Box::new(ChildEvidence { name: c.repeat(9000), log, ..ChildEvidence::default() }));
            let failure =
                Failure { traceback: Some(c.repeat(90_000)), child, ..Failure::new(c.repeat(900), c.repeat(9000)) };
            let bounded = serde_json::to_string(&failure.bounded()).unwrap();
            assert!(bounded.len() < 20 * 1024 && bounded.contains("199 "), "{c:?}: {}", bounded.len());
            assert_eq!(json_bytes(c) + 2, serde_json::to_string(c).unwrap().len(), "{c:?}");
        }
    }

    #[test]
    fn an_outcome_that_does_not_fit_is_taken_out_and_the_others_stay() {
        let good = r#"{"id":"b","items":{"of":3,"from":0,"len":3},"attempt":1,"published_ms":1,"started_ms":2,"ended_ms":3,"results":[1,null,null],"bytes":[0],"not_done":[{"item":1,"end":"dead"},{"item":2,"end":"dead"}]}"#;
        let bad = [
            (r#""of":3"#, r#""of":4294967295"#),
            (r#""len":3"#, r#""len":4"#),
            (r#""from":0"#, r#""from":4294967295"#),
            (r#""item":1"#, r#""item":2"#),
            (r#""item":2"#, r#""item":3"#),
            (r#""bytes":[0]"#, r#""bytes":[3]"#),
            (r#""bytes":[0]"#, r#""bytes":[1,0]"#),
            (r#""attempt":1"#, r#""attempt":4294967295"#),
            (r#""started_ms":2"#, r#""started_ms":-9223372036854775808"#),
            (r#""ended_ms":3"#, r#""ended_ms":3,"busy_us":18446744073709551615"#),
            (r#""attempt":1"#, r#""attempt":1,"index":18446744073709551615"#),
            (r#""id":"b""#, r#""id":"""#),
            ("[1,null,null]", "[1]"),
        ];
        for (was, is) in bad {
            let pack = format!(r#"{{"v":1,"worker":"w","outcomes":[{good},{}],"later":1}}"#, good.replacen(was, is, 1));
            let mut pack: ResultBatch = crate::wire::decode::decode(pack.as_bytes()).unwrap();
            assert_eq!((pack.take_bad().len(), pack.outcomes.len()), (1, 1), "{is}");
        }
    }
}

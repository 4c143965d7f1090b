//! What is kept of a task that nobody runs again until a person decides.
//! On DEAD the message's payload is the task's own, byte for byte; this evidence travels in the header
//! `Millpond-Dead`, as JSON. No I/O, no clock.

use serde::{Deserialize, Serialize};

use crate::outcome::{FailedAttempt, Failure, Items};

/// Header that carries [`Evidence`] on DEAD.
pub const HEADER_DEAD: &str = "Millpond-Dead";

/// Why and when a task was buried, and what was tried before.
///
/// ```
/// let text = r#"{"v":1,"id":"a1","attempt":3,"reason":"exhausted","failure":{"type":"error","message":"no","retry":true},"worker":"w1","published_ms":1,"buried_ms":9}"#;
/// let evidence: millpond::dead_letter::Evidence = serde_json::from_str(text).unwrap();
/// assert_eq!(serde_json::to_string(&evidence).unwrap(), text);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Version of this form; 1.
    pub v: u8,
    /// Id of the task, or `<root>/<i>` of an item.
    pub id: String,
    /// Id of the message first published, where it is not `id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// The items covered; none for a task published alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<Items>,
    /// The job, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
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
    /// The worker that buried it.
    pub worker: String,
    /// When the task was stored by the server, Unix time in milliseconds.
    pub published_ms: i64,
    /// Start of the last attempt, Unix time in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<i64>,
    /// When it was buried, Unix time in milliseconds.
    pub buried_ms: i64,
    /// W3C trace id, 32 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

//! What only a collector still has: the ends that a resumed job reads before it publishes anything, and then the results that
//! RESULTS holds (docs/protocol.md has the order and its reasons); and the end of one task by its id.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::errors::MapError;
use super::payloads::KnownEnd;
use super::{Client, NewTask, NoResult, TaskResult};
use crate::bus::Bus;
use crate::bus::operate::control::{CTL_RESULTS, ControlReply};
use crate::outcome::Failure;
use crate::payload::PayloadRef;
use crate::wire::bounds::{self, Bounded};
use crate::wire::decode::decode;

/// How long a collector may take to answer.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a collector may take to tell what an id stands for; without an answer the publish goes on.
const STORED_TASK_TIMEOUT: Duration = Duration::from_secs(2);
/// The first delay between two requests for the end of a task that was published before; it doubles.
const REPEATED_POLL_MIN: Duration = Duration::from_millis(100);
/// The longest such delay.
const REPEATED_POLL_MAX: Duration = Duration::from_secs(2);
/// How long the end of a task is awaited on RESULTS alone before a collector is requested as well; the delay doubles.
const FIRST_POLL_AFTER: Duration = Duration::from_secs(10);
/// The longest such delay.
const FIRST_POLL_MAX: Duration = Duration::from_secs(60);

/// A request to a collector on `ctl.request.results`.
///
/// ```
/// use millpond::client::ResultsRequest;
///
/// let text = r#"{"queue":"default","kind":"square","id":"order-7"}"#;
/// let request: ResultsRequest = serde_json::from_str(text).unwrap();
/// assert!(matches!(request, ResultsRequest::OfTask { .. }));
/// assert_eq!(serde_json::to_string(&request).unwrap(), text);
/// assert!(matches!(serde_json::from_str(r#"{"job":"j1"}"#), Ok(ResultsRequest::Job { .. })));
/// assert!(matches!(serde_json::from_str(r#"{"job":"j1","epoch":1,"from":0}"#), Ok(ResultsRequest::OfJob(_))));
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ResultsRequest {
    /// The ends of a job's tasks.
    OfJob(HistoryRequest),
    /// The end of one task: a page of one row, or of none while it has not ended.
    OfTask {
        /// Its queue.
        queue: String,
        /// Its kind.
        kind: String,
        /// Its id.
        id: String,
    },
    /// How a job stands, with a record or without one: its row, or null where nobody knows it.
    Job {
        /// Its name.
        job: String,
    },
}

/// A request to a collector: the ends of a job's tasks from an index on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HistoryRequest {
    /// The job.
    pub job: String,
    /// Its epoch.
    pub epoch: u32,
    /// The first index.
    pub from: u64,
}

impl Bounded for ResultsRequest {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::OfJob(request) => request.check(),
            Self::OfTask { .. } | Self::Job { .. } => Ok(()),
        }
    }
}

impl Bounded for HistoryRequest {
    fn check(&self) -> Result<(), String> {
        bounds::count("from", self.from)
    }
}

/// The collector's answer: some ends, by index.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct HistoryPage<R> {
    /// The ends.
    pub rows: Vec<R>,
    /// The `from` of the next request; none when these were the last.
    pub next: Option<u64>,
}

/// The end of one task.
#[derive(Debug, Deserialize)]
pub(super) struct HistoryRow {
    index: Option<u64>,
    pub(super) status: String,
    #[serde(default)]
    pub(super) digest: Option<String>,
    #[serde(default, deserialize_with = "present")]
    result: Option<Box<RawValue>>,
    /// A result that some parsers would not read.
    result_text: Option<String>,
    /// The result is bytes that are no JSON.
    #[serde(default)]
    result_is_bytes: bool,
    failure: Option<Failure>,
    /// Where a large result lies.
    #[serde(rename = "ref")]
    stored: Option<PayloadRef>,
}

impl Bounded for HistoryPage<HistoryRow> {
    fn check(&self) -> Result<(), String> {
        self.next.map_or(Ok(()), |next| bounds::count("next", next))?;
        self.rows.iter().try_for_each(|row| {
            row.index.map_or(Ok(()), |index| bounds::count("index", index))?;
            row.failure.as_ref().map_or(Ok(()), Bounded::check)?;
            row.stored.as_ref().map_or(Ok(()), PayloadRef::check)
        })
    }
}

/// Reads a field that is there; `null` is a value too.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(from).map(Some)
}

impl HistoryRow {
    /// The index and the end; none for a task that has not ended.
    pub(super) fn end(self) -> Option<(u64, KnownEnd)> {
        Some((self.index?, self.item_end()?))
    }

    fn item_end(self) -> Option<KnownEnd> {
        let raw = |text: String| RawValue::from_string(text).ok();
        if let Some(at) = self.stored.filter(|_| self.status == "done") {
            return Some(KnownEnd::Stored(at));
        }
        let end = match self.status.as_str() {
            "done" => match self.result.or_else(|| raw(self.result_text?)) {
                Some(value) => Ok(TaskResult { value, is_bytes: self.result_is_bytes }),
                None => Err(NoResult::Lost("the collector has no result of it".to_owned())),
            },
            "dead" => Err(NoResult::Dead(self.failure.unwrap_or_else(|| Failure::new("error", "no reason kept")))),
            "cancelled" => Err(NoResult::Cancelled),
            _ => return None,
        };
        Some(KnownEnd::Inline(end))
    }
}

/// How far a resumed job has read what happened before.
pub(super) enum CatchUp {
    /// Reads what the collector has, page by page; then [`CatchUp::Backlog`].
    History {
        request: HistoryRequest,
        /// The request that is under way.
        answer: Option<BoxFuture<'static, Result<HistoryPage<HistoryRow>, MapError>>>,
    },
    /// Reads what RESULTS held when reading began.
    Backlog,
    /// Everything is read; a new job begins here.
    Done,
}

impl CatchUp {
    /// Notes whether some of what RESULTS held is left to read.
    pub(super) fn note_backlog(&mut self, is_left: bool) {
        if let (Self::Backlog, false) = (&*self, is_left) {
            *self = Self::Done;
        }
    }

    /// The next ends that the collector has; never returns when there is nothing to ask it for.
    ///
    /// # Cancel safety
    /// Safe: the request is kept.
    pub(super) async fn next_rows(&mut self, bus: &Bus) -> Result<Vec<HistoryRow>, MapError> {
        let Self::History { request, answer } = self else { return std::future::pending().await };
        let page = answer.get_or_insert_with(|| Box::pin(fetch_page(bus.clone(), request.clone()))).await;
        // Also after an error: a request that has ended must not be polled again.
        *answer = None;
        let page = page?;
        match page.next {
            Some(next) => request.from = next,
            None => *self = Self::Backlog,
        }
        Ok(page.rows)
    }
}

async fn fetch_page(bus: Bus, request: HistoryRequest) -> Result<HistoryPage<HistoryRow>, MapError> {
    let failed = |reason: String| MapError::HistoryUnavailable { job: request.job.clone(), reason };
    match bus.request(CTL_RESULTS, &request, HISTORY_TIMEOUT).await.map_err(|e| failed(e.to_string()))? {
        ControlReply::Error(reason) | ControlReply::Refused(reason) => Err(failed(reason)),
        ControlReply::Ok(page) => decode(page.get().as_bytes()).map_err(|e| failed(e.to_string())),
    }
}

impl Client {
    /// What a collector has stored of a task, by its queue, kind and id; `Err` where none tells it in time.
    pub(super) async fn stored_task(&self, task: &NewTask, id: &str) -> Result<Option<HistoryRow>, String> {
        let (queue, kind, id) = (task.queue.clone(), task.kind.clone(), id.to_owned());
        let request = ResultsRequest::OfTask { queue, kind, id };
        match self.bus.request(CTL_RESULTS, &request, STORED_TASK_TIMEOUT).await.map_err(|e| e.to_string())? {
            ControlReply::Ok(page) => {
                let page = decode::<HistoryPage<HistoryRow>>(page.get().as_bytes()).map_err(|e| e.to_string())?;
                Ok(page.rows.into_iter().next())
            }
            ControlReply::Error(reason) | ControlReply::Refused(reason) => Err(reason),
        }
    }

    /// The end of a task as a collector has it; returns once there is one. RESULTS does not tell it when the task was published
    /// before (`repeated`): then it may have ended long ago, or under another job. A dead letter of a task that was published anew
    /// is of its earlier run, and not waited for.
    pub(super) async fn stored_end(&self, queue: &str, kind: &str, id: &str, repeated: bool) -> KnownEnd {
        let (queue, kind, id) = (queue.to_owned(), kind.to_owned(), id.to_owned());
        let request = ResultsRequest::OfTask { queue, kind, id };
        let (mut delay, delay_max) =
            if repeated { (REPEATED_POLL_MIN, REPEATED_POLL_MAX) } else { (FIRST_POLL_AFTER, FIRST_POLL_MAX) };
        if !repeated {
            tokio::time::sleep(delay).await;
        }
        loop {
            match self.bus.request(CTL_RESULTS, &request, HISTORY_TIMEOUT).await {
                Ok(ControlReply::Ok(page)) => {
                    let page = decode::<HistoryPage<HistoryRow>>(page.get().as_bytes());
                    let rows = page.map(|page| page.rows).unwrap_or_default();
                    let counts = |row: &HistoryRow| repeated || row.status != "dead";
                    if let Some(end) = rows.into_iter().filter(counts).find_map(HistoryRow::item_end) {
                        return end;
                    }
                }
                // Without a collector, RESULTS alone tells the end.
                Ok(ControlReply::Error(reason) | ControlReply::Refused(reason)) => {
                    tracing::debug!(reason, "a collector cannot tell the end of a task")
                }
                Err(error) => tracing::debug!(%error, "no collector tells the end of a task"),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(delay_max);
        }
    }
}

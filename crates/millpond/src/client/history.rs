//! What a resumed job reads before it publishes anything: the ends that only a collector still has, then the results that
//! RESULTS holds. docs/protocol.md has the order and its reasons.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::NoResult;
use super::errors::MapError;
use super::payloads::ItemEnd;
use crate::bus::Bus;
use crate::bus::operate::control::{CTL_RESULTS, ControlReply};
use crate::outcome::Failure;
use crate::payload::PayloadRef;

/// How long a collector may take to answer.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(30);

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
    status: String,
    result: Option<Box<RawValue>>,
    /// A result that is no JSON for some parsers.
    result_text: Option<String>,
    failure: Option<Failure>,
    /// Where a large result lies.
    #[serde(rename = "ref")]
    stored: Option<PayloadRef>,
}

impl HistoryRow {
    /// The index and the end; none for a task that has not ended.
    pub(super) fn end(self) -> Option<(u64, ItemEnd)> {
        let raw = |text: String| RawValue::from_string(text).ok();
        if let Some(at) = self.stored.filter(|_| self.status == "done") {
            return Some((self.index?, ItemEnd::Stored(at)));
        }
        let end = match self.status.as_str() {
            // A result of `null` is parsed as none.
            "done" => Ok(self.result.or_else(|| raw(self.result_text?)).unwrap_or_else(|| RawValue::NULL.to_owned())),
            "dead" => Err(NoResult::Dead(self.failure.unwrap_or_else(|| Failure::new("error", "no reason kept")))),
            "cancelled" => Err(NoResult::Cancelled),
            _ => return None,
        };
        Some((self.index?, ItemEnd::Inline(end)))
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
    /// Notes how many messages of RESULTS are left to read.
    pub(super) fn note_backlog(&mut self, left: u64) {
        if let (Self::Backlog, 0) = (&*self, left) {
            *self = Self::Done;
        }
    }

    /// The next ends that the collector has; never returns when there is nothing to ask it for.
    ///
    /// # Cancel safety
    /// Safe: the request is kept.
    pub(super) async fn next_rows(&mut self, bus: &Bus) -> Result<Vec<HistoryRow>, MapError> {
        let Self::History { request, answer } = self else { return std::future::pending().await };
        let page = answer.get_or_insert_with(|| Box::pin(fetch_page(bus.clone(), request.clone()))).await?;
        *answer = None;
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
        ControlReply::Error(reason) => Err(failed(reason)),
        ControlReply::Ok(page) => serde_json::from_str(page.get()).map_err(|e| failed(e.to_string())),
    }
}

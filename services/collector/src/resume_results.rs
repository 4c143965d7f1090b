//! Results of a job that the store has, for a client that resumes the job: requested on `ctl.request.results`, answered in
//! pages that fit a message.

use anyhow::Context;
use millpond::bus::Bus;
use millpond::bus::error::BusError;
use millpond::bus::operate::control::{CTL_RESULTS, ControlReply, ControlRequests};
use millpond::client::{HistoryPage, HistoryRequest};
use millpond_api::list::PAGE_ROWS_MAX;
use serde_json::value::{RawValue, to_raw_value};

use crate::store::{ResultCursor, Store};

/// Results in one answer to a client that resumes a job, in bytes, at the most; one result is always sent.
const PAGE_BYTES_MAX: usize = 512 * 1024;

/// Listens; of several collectors one answers.
///
/// # Errors
/// When the connection is closed.
pub(crate) async fn listen(bus: &Bus) -> Result<ControlRequests, BusError> {
    bus.serve(CTL_RESULTS, "collector").await
}

/// Answers for ever.
pub(crate) async fn serve(store: Store, mut requests: ControlRequests) {
    while let Some(request) = requests.next().await {
        let answer = match page(&store, &request.payload).await {
            Ok(page) => ControlReply::Ok(page),
            Err(error) => ControlReply::Error(format!("{error:#}")),
        };
        request.answer(&answer).await;
    }
}

async fn page(store: &Store, request: &[u8]) -> anyhow::Result<Box<RawValue>> {
    let request: HistoryRequest = serde_json::from_slice(request).context("not a request for results")?;
    let after = i64::try_from(request.from).ok().and_then(|from| from.checked_sub(1)).map(ResultCursor::behind);
    let (rows, next) = store.job_results(&request.job, request.epoch, PAGE_ROWS_MAX, after).await?;
    let mut page: HistoryPage<Box<RawValue>> = HistoryPage::default();
    let (mut bytes, mut all) = (0, next.is_none());
    for row in rows {
        // Tasks without an index come last, and no client resumes them.
        let Some(index) = row.index.and_then(|index| u64::try_from(index).ok()) else { break };
        let row = to_raw_value(&row)?;
        bytes += row.get().len();
        if !page.rows.is_empty() && bytes > PAGE_BYTES_MAX {
            (page.next, all) = (Some(index), false);
            break;
        }
        page.rows.push(row);
    }
    if !all && page.next.is_none() {
        page.next = next.and_then(ResultCursor::next_index);
    }
    Ok(to_raw_value(&page)?)
}

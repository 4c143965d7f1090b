//! Results that the store has, for clients: of a job that is resumed, in pages that fit a message, and of one task that is
//! awaited by its id; and how a job stands. Requested on `ctl.request.results`.

use anyhow::Context;
use millpond::bus::Bus;
use millpond::bus::error::BusError;
use millpond::bus::operate::control::{CTL_RESULTS, ControlReply, ControlRequests};
use millpond::client::{HistoryPage, HistoryRequest, ResultsRequest};
use millpond::wire::decode::decode;
use millpond_api::jobs::JobResult;
use millpond_api::list::PAGE_ROWS_MAX;
use millpond_api::tasks::TaskDetails;
use serde_json::value::{RawValue, to_raw_value};

use crate::known_job::known_job;
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
pub(crate) async fn serve(bus: Bus, store: Store, mut requests: ControlRequests) {
    while let Some(request) = requests.next().await {
        let answer = match page(&bus, &store, &request.payload).await {
            Ok(page) => ControlReply::Ok(page),
            Err(error) => ControlReply::Error(format!("{error:#}")),
        };
        request.answer(&answer).await;
    }
}

async fn page(bus: &Bus, store: &Store, request: &[u8]) -> anyhow::Result<Box<RawValue>> {
    match decode(request).context("not a request for results")? {
        ResultsRequest::OfJob(request) => page_of_job(store, &request).await,
        ResultsRequest::OfTask { queue, kind, id } => {
            let rows = store.task(&id, Some(&queue), Some(&kind)).await?.into_iter().map(end_of).collect();
            Ok(to_raw_value(&HistoryPage { rows, next: None })?)
        }
        ResultsRequest::Job { job } => Ok(to_raw_value(&known_job(bus, store, &job).await?)?),
    }
}

/// A task as the row of its end.
fn end_of(TaskDetails { row, history }: TaskDetails) -> JobResult {
    let dead = history.dead.map(|dead| dead.row.failure);
    let failure = dead.or_else(|| history.attempts.into_iter().rev().find_map(|attempt| attempt.failure));
    JobResult {
        index: row.index,
        id: row.id,
        queue: row.queue,
        kind: row.kind,
        status: row.status,
        digest: row.digest,
        result: row.result,
        result_text: row.result_text,
        result_is_bytes: row.result_is_bytes,
        stored_result: row.stored_result,
        failure,
    }
}

async fn page_of_job(store: &Store, request: &HistoryRequest) -> anyhow::Result<Box<RawValue>> {
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

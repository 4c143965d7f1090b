//! Rows of `tasks` and `dead` as the API shows them. Results are passed on as the text that came: parsing and printing
//! them again would round large numbers, sort keys and drop double ones. No queries here.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use millpond::dead_letter::Evidence;
use millpond::payload::PayloadRef;
use millpond::wire::headers::{HEADER_REF, Headers};
use millpond_api::dead_letters::{DeadLetterContents, DeadLetterDetails, DeadLetterRow};
pub(super) use millpond_api::raw::shown as shown_result;
use millpond_api::tasks::{TaskRow, TaskStatus};
use serde_json::value::RawValue;

use super::error::Result;
use super::items::has_bit;
use super::sql::Row;

/// Results up to this many bytes are shown in lists.
const LISTED_RESULT_BYTES_MAX: usize = 4096;

/// Where the large results of a batch lie, by item.
pub(super) fn stored_results(batch: &Row) -> Result<BTreeMap<u32, PayloadRef>> {
    Ok(batch.optional_json("ref")?.unwrap_or_default())
}

/// The items of a batch whose result is bytes that are no JSON.
pub(super) fn bytes_items(batch: &Row) -> Result<Vec<u32>> {
    Ok(batch.optional_json("base64")?.unwrap_or_default())
}

/// A task without its result.
fn bare_task(row: &Row) -> Result<TaskRow> {
    Ok(TaskRow {
        queue: row.get("queue")?,
        id: row.get("id")?,
        kind: row.get("kind")?,
        job: row.get("job")?,
        index: row.get("idx")?,
        original_id: row.get("root")?,
        items: row.get("items")?,
        done: row.get("done")?,
        status: row.get("status")?,
        attempt: row.get("attempt")?,
        worker: row.get("worker")?,
        published_ms: row.get("published_ms")?,
        started_ms: row.get("started_ms")?,
        ended_ms: row.get("ended_ms")?,
        stored_ms: row.get("stored_ms")?,
        trace: row.get("trace")?,
        continuation: row.get("continuation")?,
        digest: row.get("digest")?,
        result: None,
        result_text: None,
        result_is_bytes: false,
        result_bytes: None,
        stored_result: None,
        stored_results: None,
        bytes_items: None,
    })
}

/// A task with its result.
pub(super) fn whole_task(row: &Row) -> Result<TaskRow> {
    let mut task = bare_task(row)?;
    if let Some(result) = row.optional_json("result")? {
        (task.result, task.result_text) = shown_result(result);
    }
    if task.items.is_some() {
        task.stored_results = row.optional_json::<&RawValue>("ref")?.map(ToOwned::to_owned);
        task.bytes_items = row.optional_json("base64")?;
    } else {
        task.result_is_bytes = row.get::<Option<&str>>("base64")?.is_some();
        task.stored_result = row.optional_json("ref")?;
    }
    Ok(task)
}

/// A task as a list shows it: of a large result only the size.
pub(super) fn listed_task(row: &Row) -> Result<TaskRow> {
    let bytes = row.get::<Option<&str>>("result")?.map_or(0, str::len);
    if bytes <= LISTED_RESULT_BYTES_MAX {
        return whole_task(row);
    }
    Ok(TaskRow { result_bytes: Some(bytes as u64), ..bare_task(row)? })
}

/// One item of a batch that has no row of its own; none when the row is no batch, or has no such item.
pub(super) fn item_of(batch: &Row, id: &str, item: u32) -> Result<Option<TaskRow>> {
    let task = bare_task(batch)?;
    if task.items.is_none_or(|items| i64::from(item) >= items) {
        return Ok(None);
    }
    // An item that failed has a row of its own: one that has neither a row nor a result has not ended an attempt.
    let done = has_bit(batch.get("bitmap")?, item);
    let mut task = TaskRow {
        id: id.to_owned(),
        original_id: Some(task.id),
        items: None,
        index: task.index.map(|index| index + i64::from(item)),
        done: done.into(),
        status: match task.status {
            _ if done => TaskStatus::Done,
            TaskStatus::Cancelled => TaskStatus::Cancelled,
            _ => TaskStatus::Partial,
        },
        ..task
    };
    if done {
        task.stored_result = stored_results(batch)?.remove(&item);
        let results: Vec<&RawValue> = batch.json("result")?;
        if let Some(result) = results.get(item as usize).filter(|_| task.stored_result.is_none()) {
            (task.result, task.result_text) = shown_result(result);
            task.result_is_bytes = bytes_items(batch)?.contains(&item);
        }
    }
    Ok(Some(task))
}

/// A dead letter as a list shows it.
pub(super) fn listed_dead_letter(row: &Row) -> Result<DeadLetterRow> {
    Ok(dead_letter(row)?.0)
}

fn dead_letter(row: &Row) -> Result<(DeadLetterRow, Evidence)> {
    let evidence: Evidence = row.json("evidence")?;
    let shown = DeadLetterRow {
        queue: row.get("queue")?,
        id: row.get("id")?,
        kind: row.get("kind")?,
        job: row.get("job")?,
        index: row.get("idx")?,
        attempt: row.get("attempt")?,
        reason: row.get("reason")?,
        failure: evidence.failure.clone(),
        worker: evidence.worker.clone(),
        trace: evidence.trace.clone(),
        dead_lettered_ms: row.get("dead_lettered_ms")?,
    };
    Ok((shown, evidence))
}

/// A dead letter with its evidence, headers and arguments.
pub(super) fn whole_dead_letter(row: &Row) -> Result<DeadLetterDetails> {
    let (shown, evidence) = dead_letter(row)?;
    let headers: Headers = row.json("headers")?;
    // A header as its publisher wrote it: where it is no reference, the payload is all there is to show.
    let reference = headers.iter().find(|(name, _)| name == HEADER_REF);
    let stored_payload: Option<PayloadRef> = reference.and_then(|(_, at)| serde_json::from_str(at).ok());
    let (mut payload, mut payload_text, mut payload_base64) = (None, None, None);
    if stored_payload.is_none() {
        let bytes: &[u8] = row.get("payload")?;
        match serde_json::from_slice::<&RawValue>(bytes) {
            Ok(json) => (payload, payload_text) = shown_result(json),
            Err(_) => payload_base64 = Some(BASE64.encode(bytes)),
        }
    }
    let failures = evidence.failures.clone();
    let contents =
        DeadLetterContents { failures, evidence, headers, payload, payload_text, payload_base64, stored_payload };
    Ok(DeadLetterDetails { row: shown, contents })
}

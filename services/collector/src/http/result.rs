//! `GET /task/result`: the bytes of one result, of any size: those that lie in the store of payloads are streamed from there, page by
//! page and no faster than the caller takes them.

use std::ops::Range;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use data_encoding::HEXLOWER;
use futures_util::stream;
use millpond::bus::publish::payloads::{GetError, PayloadReader};
use millpond::payload::{PayloadRef, json_to_bytes};
use millpond_api::error::ErrorBody;
use millpond_api::tasks::{TaskIdQuery, TaskRow, TaskStatus};
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::representation::{BYTES, Representation};
use millpond_service::request::PathAndQuery;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use super::App;
use super::export::{EXPORTS_MAX, RETRY_AFTER_S};
use super::read::one;

const JSON: &str = "application/json";

/// Download the result of a task, whole or a range of its bytes.
///
/// The bytes are what the handler returned. A result that lies in the store of payloads may be JSON or not, and is
/// `application/octet-stream`; so is a part of any. It is there for 7 days.
#[utoipa::path(get, path = "/task/result", tag = "read", params(TaskIdQuery,
    ("Range" = inline(Option<String>), Header, nullable = false, description = "One range of bytes; several are answered with all", example = "bytes=0-", pattern = "^bytes=[0-9]{1,9}-[0-9]{0,9}$"),
    ("If-None-Match" = inline(Option<String>), Header, nullable = false, description = "The ETag of what the caller has", example = "\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"")),
    responses(
    (status = 200, description = "All of it. What ends early is not the whole: `Content-Length` says how much it is",
        content((serde_json::Value = "application/json", example = json!(144)), (String = "application/octet-stream", example = json!("any bytes"))),
        headers(("ETag" = String, description = "Its SHA-256 in hex"), ("Repr-Digest" = String, description = "The same (RFC 9530)"), ("Accept-Ranges" = String, description = "`bytes`"))),
    (status = 206, description = "The range", body = String, content_type = "application/octet-stream",
        headers(("Content-Range" = String, description = "Which bytes of how many"), ("ETag" = String, description = "The SHA-256 of the whole in hex"), ("Repr-Digest" = String, description = "The same (RFC 9530)")), example = json!("any by")),
    (status = 304, description = "The caller has it"),
    (status = 404, description = "It has no result, or none yet", body = ErrorBody, example = json!({"error": "the task has no result: it is dead; GET /api/v1/task says why"})),
    (status = 409, description = "Several queues have this id, or it is a batch with large results", body = ErrorBody, example = json!({"error": "several tasks have this id, name one with &queue= and &kind=: default.square, high.square"})),
    (status = 410, description = "What was stored is gone or damaged", body = ErrorBody, example = json!({"error": "object k5x2 is not in the bucket millpond_payloads; it was deleted, or is older than 7days"})),
    (status = 412, description = "It is not what If-Match names", body = ErrorBody, example = json!({"error": "the result is another one than If-Match names"})),
    (status = 416, description = "The range has nothing of it", body = ErrorBody, headers(("Content-Range" = String, description = "How many bytes there are")), example = json!({"error": "the range has none of the 3 bytes"})),
    (status = 429, description = "Too many downloads at once", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "16 exports are under way already: come again"}))))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    PathAndQuery((), query): PathAndQuery<(), TaskIdQuery>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ErrorAnswer> {
    app.caught_up().await;
    let found = app.store.task(&query.id, query.queue.as_deref(), query.kind.as_deref()).await;
    let task = one(found, "task", |task| (&task.row.queue, &task.row.kind))?.0.row;
    match &task.stored_result {
        Some(at) => stored(&app, at, &method, &headers).await,
        None => inline(&task, &method, &headers),
    }
}

/// A result that the collector has.
fn inline(task: &TaskRow, method: &Method, headers: &HeaderMap) -> Result<Response, ErrorAnswer> {
    if task.stored_results.is_some() {
        let text = format!("the task is a batch with large results: name one item, such as {}/0", task.id);
        return Err(ErrorAnswer::conflict(text));
    }
    // What JSON parsers differ about is kept as text.
    let text = task.result.as_deref().map(RawValue::get).or(task.result_text.as_deref());
    let Some(text) = text.filter(|_| task.status == TaskStatus::Done) else {
        let text = format!("the task has no result: it is {}; GET /api/v1/task says more", task.status);
        return Err(ErrorAnswer::not_found(text));
    };
    let bytes = task.result.as_deref().filter(|_| task.result_is_bytes).and_then(json_to_bytes);
    let media = if bytes.is_some() { BYTES } else { JSON };
    let bytes = Bytes::from(bytes.unwrap_or_else(|| text.as_bytes().to_vec()));
    let known = Representation { size: bytes.len() as u64, sha256: Sha256::digest(&bytes).into() };
    let part = match known.wanted(method, headers) {
        Ok(part) => part,
        Err(without) => return Ok(*without),
    };
    Ok(known.answer(&part, media, Body::from(clipped(bytes, &part))))
}

/// A result in the store of payloads.
async fn stored(app: &App, at: &PayloadRef, method: &Method, headers: &HeaderMap) -> Result<Response, ErrorAnswer> {
    let sha256 = HEXLOWER.decode(at.sha256.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    let known = Representation { size: at.size, sha256: sha256.unwrap_or_default() };
    let part = match known.wanted(method, headers) {
        Ok(part) => part,
        Err(without) => return Ok(*without),
    };
    let Ok(permit) = app.exports.clone().try_acquire_owned() else {
        let text = format!("{EXPORTS_MAX} exports are under way already: come again");
        return Err(ErrorAnswer::busy(RETRY_AFTER_S, text));
    };
    let reader = app.bus.read_payload(at).await.map_err(|fault| gone(&fault))?;
    let download = Download { reader, at: 0, part: part.clone(), _permit: permit };
    let chunks = stream::try_unfold(download, async |mut download| match download.chunk().await {
        Ok(chunk) => Ok(chunk.map(|chunk| (chunk, download))),
        Err(fault) => {
            tracing::error!(error = %fault, "a result is cut off: the store of payloads does not give it");
            Err(fault)
        }
    });
    Ok(known.answer(&part, BYTES, Body::from_stream(chunks)))
}

fn gone(fault: &GetError) -> ErrorAnswer {
    match fault {
        GetError::Missing { .. } | GetError::Damaged { .. } => ErrorAnswer::new(StatusCode::GONE, fault.to_string()),
        _ => ErrorAnswer::bad_gateway(fault),
    }
}

/// One download under way. Dropped when its caller is gone.
struct Download {
    reader: PayloadReader,
    /// How many bytes were read.
    at: u64,
    part: Range<u64>,
    _permit: OwnedSemaphorePermit,
}

impl Download {
    /// The next bytes of the part; none at its end. A chunk has no place of its own in the store: what lies before the part is read
    /// and thrown away.
    async fn chunk(&mut self) -> Result<Option<Bytes>, GetError> {
        while self.at < self.part.end {
            let Some(chunk) = self.reader.chunk().await? else { break };
            let here = |at: u64| at.saturating_sub(self.at).min(chunk.len() as u64);
            let part = here(self.part.start)..here(self.part.end);
            self.at += chunk.len() as u64;
            if part.start < part.end {
                return Ok(Some(clipped(chunk, &part)));
            }
        }
        Ok(None)
    }
}

/// These of the bytes.
fn clipped(bytes: Bytes, part: &Range<u64>) -> Bytes {
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(place(part.start)..place(part.end))
}

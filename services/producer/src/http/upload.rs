//! The arguments of one task over HTTP: a small body goes into its message, a large one straight to the store, never
//! whole in memory.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use futures_util::TryStreamExt;
use millpond::bus::publish::RetryDeadline;
use millpond::bus::publish::payloads::PutError;
use millpond::client::{Client, NewTask, SubmitError};
use millpond::limits::CLAIM_CHECK_BYTES;
use millpond::payload::without_mark;
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::request::BROKEN_OFF;
use serde_json::value::RawValue;
use tokio::io::AsyncReadExt;
use tokio_util::io::StreamReader;

use super::submit_error;

/// With this type the body is any bytes; with all others it is one JSON value.
const BYTES: &str = "application/octet-stream";

/// Reads the body as the arguments of `task`. Only a small body is checked to be JSON: of a large one that is not, the
/// dead letter tells.
///
/// # Errors
/// The body cannot be read, is no JSON, or is not stored.
pub(super) async fn arguments(
    client: &Client,
    mut task: NewTask,
    headers: &HeaderMap,
    body: Body,
    deadline: RetryDeadline,
) -> Result<NewTask, ErrorAnswer> {
    let mut from = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    let mut start = Vec::new();
    let read = (&mut from).take(CLAIM_CHECK_BYTES as u64 + 1).read_to_end(&mut start).await;
    read.map_err(|_| unreadable())?;
    let checked = serde_json::from_slice::<&RawValue>(without_mark(&start)).map(drop);
    let any_bytes = headers.get(header::CONTENT_TYPE).is_some_and(|given| given.as_bytes() == BYTES.as_bytes());
    match checked {
        Ok(_) if start.len() <= CLAIM_CHECK_BYTES => {
            task.payload = Bytes::copy_from_slice(without_mark(&start));
            return Ok(task);
        }
        Err(wrong) if start.len() <= CLAIM_CHECK_BYTES && !any_bytes => {
            let text = format!(
                "the body is the task's arguments, one JSON value: {wrong}; POST /v1/jobs/… takes many; bytes of any kind come with Content-Type: {BYTES}"
            );
            return Err(ErrorAnswer::bad_request(text));
        }
        _ => {}
    }
    match client.put_payload(&mut start.as_slice().chain(from), deadline).await {
        Ok(stored) => Ok(NewTask { stored: Some(stored), ..task }),
        Err(PutError::Read(_)) => Err(unreadable()),
        Err(refused) => Err(submit_error(&SubmitError::Payload(refused))),
    }
}

/// The body was not read to its end. What the library says of it names its own parts.
pub(super) fn unreadable() -> ErrorAnswer {
    ErrorAnswer::bad_request(format!("the body could not be read to its end: {BROKEN_OFF}"))
}

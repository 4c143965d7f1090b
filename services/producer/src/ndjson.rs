//! Many tasks in one request: newline-delimited JSON, one argument a line, read no faster than the server stores.
//! The request becomes a job; the answer comes when all of it is stored, or says how far it came.

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use millpond::bus::publish::PublishError;
use millpond::bus::subject::check_token;
use millpond::client::{Batch, ClientError, MapSpec, PublishAllError};
use millpond::limits::{BATCH_ITEMS_MAX, TASK_BYTES_MAX};
use millpond::task::HEADER_BATCH;
use serde_json::json;
use serde_json::value::RawValue;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use crate::http::{App, error};

/// Media types of newline-delimited JSON that are in use.
const TYPES: [&str; 4] = ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"];

/// Whether the request's body is newline-delimited JSON.
pub(crate) fn is_ndjson(headers: &HeaderMap) -> bool {
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let given = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    TYPES.contains(&given.as_str())
}

/// Publishes the lines of the body as one job. `key` makes a repeated request go on where the first one ended.
pub(crate) async fn publish(
    app: &App,
    mut spec: MapSpec,
    key: Option<String>,
    headers: &HeaderMap,
    body: Body,
) -> Response {
    let resume = key.is_some();
    if let Some(key) = key {
        if spec.job.is_some() {
            return error(StatusCode::BAD_REQUEST, "give either ?job= or an Idempotency-Key: the key names the job");
        }
        if let Err(refused) = check_token("Idempotency-Key of many tasks (it names their job)", &key) {
            return error(StatusCode::BAD_REQUEST, &refused.to_string());
        }
        spec.job = Some(key);
    }
    match batch(headers, resume) {
        Ok(batch) => spec.batch = batch,
        Err(text) => return error(StatusCode::BAD_REQUEST, &text),
    }
    let named = spec.job.clone();
    if let (Some(job), false) = (&named, resume)
        && matches!(app.bus.job(job).await, Ok(Some(_)))
    {
        return error(StatusCode::CONFLICT, &format!("there is a job {job} already; choose another name for ?job="));
    }
    let done = app.client.publish_all(spec, resume, lines(body)).await;
    let stored = done.as_ref().map_or_else(|e| e.stored, |all| if all.duplicate { 0 } else { all.tasks });
    metrics::counter!("millpond_tasks_published_total", "stored" => "yes").increment(stored);
    match done {
        Ok(all) => {
            let answer = json!({
                "job": all.job, "tasks": all.tasks, "first_id": format!("{}.{}/0", all.job, all.epoch),
                "duplicate": all.duplicate,
            });
            (StatusCode::ACCEPTED, Json(answer)).into_response()
        }
        Err(failed) => answer_error(&failed, named.as_deref()),
    }
}

fn answer_error(failed: &PublishAllError, job: Option<&str>) -> Response {
    let status = match &failed.error {
        ClientError::Input { .. } | ClientError::Subject(_) | ClientError::BatchInBoundedQueue { .. } => {
            StatusCode::BAD_REQUEST
        }
        ClientError::Publish(PublishError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let answer = json!({ "error": failed.error.to_string(), "stored": failed.stored, "job": job });
    (status, Json(answer)).into_response()
}

/// With a key, batches of a fixed size: the tasks of a repeated request must have the same ids.
fn batch(headers: &HeaderMap, keyed: bool) -> Result<Batch, String> {
    match headers.get(HEADER_BATCH).map(|v| v.to_str().ok().and_then(|text| text.parse::<u32>().ok())) {
        None if keyed => Ok(Batch::Fixed(1)),
        None => Ok(Batch::Auto),
        Some(Some(items)) if (1..=BATCH_ITEMS_MAX).contains(&items) => Ok(Batch::Fixed(items)),
        Some(_) => Err(format!("{HEADER_BATCH} must be a number from 1 to {BATCH_ITEMS_MAX}")),
    }
}

/// The lines that are not blank, each one JSON value; the first that is not ends it.
fn lines(body: Body) -> impl Stream<Item = Result<Bytes, String>> + Send + 'static {
    let reader = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    let lines = FramedRead::new(reader, LinesCodec::new_with_max_length(TASK_BYTES_MAX));
    lines.zip(futures_util::stream::iter(1u64..)).filter_map(async |(line, number)| match line {
        Ok(line) if line.trim().is_empty() => None,
        Ok(line) => match serde_json::from_str::<&RawValue>(&line) {
            Ok(value) => Some(Ok(Bytes::from(value.get().to_owned()))),
            Err(wrong) => Some(Err(format!("line {number} is not one JSON value: {wrong}"))),
        },
        Err(wrong) => Some(Err(format!("line {number} cannot be read: {wrong}"))),
    })
}

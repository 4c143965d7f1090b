//! `POST /v1/tasks/{queue}/{kind}`: one task, its arguments the body. Answered after the server has stored it, or, with
//! `wait`, when it has ended.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use millpond::bus::publish::RetryDeadline;
use millpond::client::{NewTask, NoResult, SubmitError, TaskEnd, TaskHandle};
use millpond::config::duration;
use millpond::outcome::Failure;
use millpond_api::error::ErrorBody;
use millpond_api::publish::{FinalStatus, PublishTaskQuery, TaskEnded, TaskEnding, TaskPublished};
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::request::{PathAndQuery, media_type};

use super::{App, busy, submit_error, task_headers, unavailable, upload};
use crate::ndjson;

/// Requests that wait for the end of a task at once.
pub(super) const WAITERS_MAX: usize = 1000;
/// How long such a request may wait.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// How long a publish may wait for capacity or for the server before the caller is sent away to come again.
pub(super) const STORE_WITHIN: Duration = Duration::from_secs(10);
/// The same from outside: the client reports a full queue itself, in time, but waits for a full stream without an end.
const GIVE_UP_AFTER: Duration = Duration::from_secs(11);

/// How a task ended, as callers get it.
pub(super) fn ending(end: TaskEnd) -> TaskEnding {
    let result_is_bytes = end.as_ref().is_ok_and(|result| result.is_bytes);
    let (status, result, failure) = match end {
        Ok(result) => (FinalStatus::Done, Some(result.value), None),
        Err(NoResult::Dead(failure)) => (FinalStatus::Dead, None, Some(failure)),
        Err(NoResult::Cancelled) => (FinalStatus::Cancelled, None, None),
        Err(NoResult::Lost(reason)) => (FinalStatus::Done, None, Some(Failure::new("result_lost", reason))),
    };
    TaskEnding { status, result, result_is_bytes, failure }
}

/// Publish one task.
///
/// The body is its arguments, one JSON value, or any bytes with `Content-Type: application/octet-stream`. A large one is
/// streamed to the store of payloads.
#[utoipa::path(post, path = "/v1/tasks/{queue}/{kind}", tag = "publish", security(("bearer" = [])),
    params(
        ("queue" = String, Path, description = "The queue that it is published to", example = "default", pattern = "^[A-Za-z0-9_-]{1,64}$"),
        ("kind" = String, Path, description = "Which handler runs it", example = "square", pattern = "^[A-Za-z0-9_-]{1,64}$"),
        PublishTaskQuery,
        ("Idempotency-Key" = inline(Option<String>), Header, nullable = false, description = "Its id, unique in its queue and kind: the same again within 30 s is stored once, and its end is kept once; with another body it is refused (409)", example = "order-7", max_length = 256),
        ("Millpond-Timeout" = inline(Option<String>), Header, nullable = false, description = "Timeout of one attempt", example = "30s", pattern = "^([1-9][0-9]{0,3}(ms|s|m|h)|PT[1-9][0-9]{0,3}S)$"),
        ("Millpond-Attempts-Max" = inline(Option<u32>), Header, nullable = false, description = "Attempts before it is a dead letter", example = 3, minimum = 1, maximum = 100),
        ("Millpond-Delay" = inline(Option<String>), Header, nullable = false, description = "It waits at the server for this long", example = "1s", pattern = "^([0-9]{1,4}(ms|s|m|h)|PT[0-9]{1,4}S)$"),
        ("Millpond-Expires" = inline(Option<String>), Header, nullable = false, description = "It must not start later", example = "2100-01-31T12:00:00Z", format = "date-time"),
        ("Millpond-Reply-To" = inline(Option<String>), Header, nullable = false, description = "NATS subject on which its end is published too", example = "reply.order-7", pattern = "^reply\\.[A-Za-z0-9_-]{1,64}$"),
        ("Millpond-Continuation" = inline(Option<String>), Header, nullable = false, description = "What runs next, with its result: kinds or queue.kind, separated by commas", example = "report", pattern = "^[A-Za-z0-9_-]{1,64}$"),
        ("Millpond-Unique" = inline(Option<String>), Header, nullable = false, description = "Refused (409) while another task of this key, kind and queue waits or runs; not with `job`", example = "nightly", pattern = "^[A-Za-z0-9_-]{1,64}$"),
        ("traceparent" = inline(Option<String>), Header, nullable = false, description = "W3C trace context that it continues", example = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ),
    request_body(content = serde_json::Value, content_type = "application/json", description = "The arguments", example = json!(12)),
    responses(
        (status = 200, description = "It has ended (only with `wait`)", body = TaskEnded, examples(
            ("done" = (value = json!({"id": "order-7", "status": "done", "result": 144}))),
            ("dead" = (value = json!({"id": "order-7", "status": "dead", "failure": {"type": "error", "message": "no", "retry": true}}))),
            ("cancelled" = (value = json!({"id": "order-7", "status": "cancelled"}))))),
        (status = 202, description = "It is stored; with `wait`, it has not ended in time and goes on", body = TaskPublished,
            example = json!({"id": "order-7", "queue": "default", "kind": "square", "job": null, "duplicate": false})),
        (status = 400, description = "The request does not fit", body = ErrorBody, example = json!({"error": "Millpond-Timeout: expected number at 0; write a duration such as 30s or 5m"})),
        (status = 401, description = "No token, or another", body = ErrorBody, example = json!({"error": "send the header `Authorization: Bearer TOKEN` with the producer's token (MILLPOND_TOKEN)"})),
        (status = 409, description = "Another task of its unique key waits or runs, or its Idempotency-Key stands for one with other arguments in this queue and kind", body = ErrorBody, example = json!({"error": "a task with the unique key nightly waits or runs already"})),
        (status = 413, description = "It is too large", body = ErrorBody, example = json!({"error": "the body has more than 1048576 bytes; a task may not be larger"})),
        (status = 415, description = "The body is of another type", body = ErrorBody, example = json!({"error": "a task's arguments are one JSON value (application/json)"})),
        (status = 429, description = "No room now; `Retry-After` says when to come again, with the same Idempotency-Key", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "no room for more tasks now: come again, with the same Idempotency-Key"})),
        (status = 503, description = "NATS does not answer; come again, with the same Idempotency-Key", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "NATS does not answer: come again, with the same Idempotency-Key"})),
    ))]
pub(super) async fn publish(
    State(app): State<Arc<App>>,
    PathAndQuery((queue, kind), query): PathAndQuery<(String, String), PublishTaskQuery>,
    request: Request,
) -> Result<Response, ErrorAnswer> {
    let headers = request.headers().clone();
    let task = task_headers::task(queue, kind, query.job, &headers)?;
    let wait = query.wait.as_deref().map(wait_time).transpose()?;
    check_type(&headers)?;
    let task = upload::arguments(&app.client, task, &headers, request.into_body(), RetryDeadline::Within(STORE_WITHIN))
        .await?;
    if let Some(key) = &task.id {
        app.client.check_arguments(&task, key).await.map_err(|taken| submit_error(&taken))?;
    }
    match wait {
        None => {
            let storing = app.client.submit(&task, RetryDeadline::Within(STORE_WITHIN));
            let stored = counted(&app, tokio::time::timeout(GIVE_UP_AFTER, storing).await)?;
            Ok(accepted(&task, stored))
        }
        Some(wait) => wait_for(&app, task, wait).await,
    }
}

fn wait_time(text: &str) -> Result<Duration, ErrorAnswer> {
    let wait = duration(text).map_err(|wrong| ErrorAnswer::bad_request(format!("wait: {wrong}")))?;
    let fits = wait <= WAIT_MAX;
    let text = || format!("wait must be {} minutes at the most", WAIT_MAX.as_secs() / 60);
    fits.then_some(wait).ok_or_else(|| ErrorAnswer::bad_request(text()))
}

fn check_type(headers: &HeaderMap) -> Result<(), ErrorAnswer> {
    match media_type(headers) {
        Some(given) if ndjson::TYPES.contains(&given.as_str()) || given.starts_with("multipart/") => {
            let text = format!(
                "a task's arguments are one JSON value (application/json), not {given}; POST /v1/jobs/{{queue}}/{{kind}} takes many, a line each"
            );
            Err(ErrorAnswer::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text))
        }
        _ => Ok(()),
    }
}

/// What came of a publish, within the time that it may take.
type Tried = Result<Result<TaskHandle, SubmitError>, tokio::time::error::Elapsed>;

fn counted(app: &App, tried: Tried) -> Result<TaskHandle, ErrorAnswer> {
    let stored = if matches!(tried, Ok(Ok(_))) { "yes" } else { "no" };
    metrics::counter!("millpond_tasks_published_total", "stored" => stored).increment(1);
    match tried {
        Ok(Ok(stored)) => Ok(stored),
        Ok(Err(refused)) => Err(submit_error(&refused)),
        Err(_) if app.bus.is_connected() => {
            Err(busy("no room for more tasks now: come again, with the same Idempotency-Key"))
        }
        Err(_) => Err(unavailable("NATS does not answer: come again, with the same Idempotency-Key")),
    }
}

fn accepted(task: &NewTask, stored: TaskHandle) -> Response {
    let (queue, kind, job) = (task.queue.clone(), task.kind.clone(), stored.job().map(str::to_owned));
    let TaskHandle { id, duplicate, .. } = stored;
    (StatusCode::ACCEPTED, Json(TaskPublished { id, queue, kind, job, duplicate })).into_response()
}

/// Publishes the task and answers when it has ended, or after `wait`. A caller that goes away meanwhile changes nothing:
/// the task runs on.
async fn wait_for(app: &App, mut task: NewTask, wait: Duration) -> Result<Response, ErrorAnswer> {
    let Ok(_permit) = app.waiters.try_acquire() else {
        let text = format!("{WAITERS_MAX} requests wait already: come again, or leave out `wait`");
        return Err(busy(text));
    };
    // A key always gets the same job, so that a caller who repeats the request after a broken connection gets what came
    // meanwhile.
    task.awaited = true;
    let storing = app.client.submit(&task, RetryDeadline::Within(STORE_WITHIN));
    let mut stored = counted(app, tokio::time::timeout(GIVE_UP_AFTER, storing).await)?;
    let ended = tokio::select! {
        ended = stored.end() => Some(ended.map_err(|fault| unavailable(fault.to_string()))?),
        () = tokio::time::sleep(wait) => None,
        () = app.shutdown.cancelled() => None,
    };
    match ended {
        // Of a chain, the end of its last step, or of the one that ended it.
        Some((id, end)) => Ok(Json(TaskEnded { id, ending: ending(end) }).into_response()),
        None => Ok(accepted(&task, stored)),
    }
}

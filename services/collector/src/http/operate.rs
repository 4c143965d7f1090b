//! What an operator does over HTTP with queues and workers. Each request is answered when it is done.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;

use millpond::bus::operate::control::{ControlError, ControlReply, drain_subject};
use millpond::bus::operate::queues::{PauseError, PurgeRecord};
use millpond::bus::publish::queue_limits::QueueSettings;
use millpond::wire::bounds::DURATION_MAX;
use millpond_api::error::ErrorBody;
use millpond_api::queues::{PauseQueue, PurgeQueue, QueueLimit, QueuePaused, QueueRemoved, SetQueueLimit};
use millpond_api::workers::WorkerDraining;
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::request::{JsonBody, NoQuery, PathAndQuery, check_name};
use serde_json::json;

use super::App;
use super::cancel::OPERATOR;
use crate::queues::RemoveError;

/// How long a worker may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

type AppState = State<Arc<App>>;
type OfOne = PathAndQuery<String, NoQuery>;

fn not_paused(fault: &PauseError) -> ErrorAnswer {
    match fault {
        PauseError::NoSuchQueue { .. } => ErrorAnswer::not_found(fault.to_string()),
        PauseError::Topology(_) => ErrorAnswer::bad_gateway(fault),
    }
}

/// Pause a queue: nothing of it is handed out; what workers hold goes on.
#[utoipa::path(post, path = "/queues/{queue}/pause", tag = "act", request_body(content = PauseQueue, example = json!({"for_ms": 600_000})),
    params(("queue" = String, Path, description = "Its name", example = "low", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses((status = 200, description = "It is paused", body = QueuePaused, example = json!({"queue": "low", "paused": true})),
        (status = 404, description = "No worker has served it yet", body = ErrorBody, example = json!({"error": "there is no queue low: its workers make it, and none has served it yet"}))))]
pub(super) async fn pause(
    State(app): AppState,
    PathAndQuery(queue, NoQuery {}): OfOne,
    JsonBody(request): JsonBody<PauseQueue>,
) -> Result<Json<QueuePaused>, ErrorAnswer> {
    check_name("queue", &queue)?;
    let how_long = request.for_ms.map(Duration::from_millis);
    if how_long.is_some_and(|long| long > DURATION_MAX) {
        return Err(ErrorAnswer::bad_request("for_ms is longer than a year; without it the pause has no end"));
    }
    let paused = app.bus.pause_queue(&queue, how_long).await;
    paused.map_err(|fault| not_paused(&fault))?;
    Ok(Json(QueuePaused { queue, paused: true }))
}

/// End the pause of a queue.
#[utoipa::path(post, path = "/queues/{queue}/resume", tag = "act", params(("queue" = String, Path, description = "Its name", example = "low", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses((status = 200, description = "It goes on", body = QueuePaused, example = json!({"queue": "low", "paused": false})),
        (status = 404, description = "No worker has served it yet", body = ErrorBody, example = json!({"error": "there is no queue low: its workers make it, and none has served it yet"}))))]
pub(super) async fn resume(
    State(app): AppState,
    PathAndQuery(queue, NoQuery {}): OfOne,
) -> Result<Json<QueuePaused>, ErrorAnswer> {
    check_name("queue", &queue)?;
    app.bus.resume_queue(&queue).await.map_err(|fault| not_paused(&fault))?;
    Ok(Json(QueuePaused { queue, paused: false }))
}

/// Remove what waits in a queue, and end what runs of it.
#[utoipa::path(post, path = "/queues/{queue}/purge", tag = "act", request_body(content = PurgeQueue, example = json!({"kind": "square", "keep_running": true})),
    params(("queue" = String, Path, description = "Its name", example = "low", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses((status = 200, description = "It is done, and recorded", body = PurgeRecord, example = json!({"queue": "low", "kind": "square", "running": false, "later_up_to": 0, "tasks_up_to": 41, "due_up_to": 7, "count": 3, "by": "operator", "at_ms": 1_800_000_000_000_i64}))))]
pub(super) async fn purge(
    State(app): AppState,
    PathAndQuery(queue, NoQuery {}): OfOne,
    JsonBody(request): JsonBody<PurgeQueue>,
) -> Result<Json<PurgeRecord>, ErrorAnswer> {
    check_name("queue", &queue)?;
    if let Some(kind) = &request.kind {
        check_name("kind", kind)?;
    }
    let purged = app.bus.purge_queue(&queue, request.kind.as_deref(), !request.keep_running, OPERATOR).await;
    purged.map(Json).map_err(ErrorAnswer::bad_gateway)
}

/// Set how many tasks may wait in a queue, or remove the limit. Publishers keep to it (`millpond::bus`).
#[utoipa::path(post, path = "/queues/{queue}/set", tag = "act", request_body(content = SetQueueLimit, example = json!({"max_waiting": 100})),
    params(("queue" = String, Path, description = "Its name", example = "low", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses((status = 200, description = "It holds", body = QueueLimit, example = json!({"queue": "low", "max_waiting": 100}))))]
pub(super) async fn set(
    State(app): AppState,
    PathAndQuery(queue, NoQuery {}): OfOne,
    JsonBody(SetQueueLimit { max_waiting }): JsonBody<SetQueueLimit>,
) -> Result<Json<QueueLimit>, ErrorAnswer> {
    check_name("queue", &queue)?;
    let set = app.bus.set_queue(&queue, QueueSettings { max_waiting }).await;
    set.map_err(ErrorAnswer::bad_gateway)?;
    Ok(Json(QueueLimit { queue, max_waiting }))
}

/// Remove a queue that has nothing any more: no tasks, schedules, limit, pause or workers. A worker that serves it later, and a
/// task that is published to it, make it anew.
#[utoipa::path(post, path = "/queues/{queue}/remove", tag = "act", params(("queue" = String, Path, description = "Its name", example = "low", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses((status = 200, description = "It is gone", body = QueueRemoved, example = json!({"queue": "low", "removed": true})),
        (status = 404, description = "There is none", body = ErrorBody, example = json!({"error": "there is no queue low; `millpond queue ls` lists them"})),
        (status = 409, description = "It is in use; the text says by what", body = ErrorBody, example = json!({"error": "queue low is in use and was not removed: 3 messages wait (`millpond queue purge` removes them)"}))))]
pub(super) async fn remove(
    State(app): AppState,
    PathAndQuery(queue, NoQuery {}): OfOne,
) -> Result<Json<QueueRemoved>, ErrorAnswer> {
    check_name("queue", &queue)?;
    match app.queues.remove(&queue).await {
        Ok(()) => Ok(Json(QueueRemoved { queue, removed: true })),
        Err(fault @ RemoveError::NoSuchQueue { .. }) => Err(ErrorAnswer::not_found(fault.to_string())),
        Err(fault @ RemoveError::InUse { .. }) => Err(ErrorAnswer::conflict(fault.to_string())),
        Err(RemoveError::Bus(fault)) => Err(ErrorAnswer::bad_gateway(fault)),
    }
}

/// Order a worker to drain: it takes nothing more, finishes what runs, and leaves.
#[utoipa::path(post, path = "/workers/{worker}/drain", tag = "act", params(("worker" = String, Path, description = "Its name", example = "w9", pattern = "^[A-Za-z0-9_-]{1,64}$")), responses(
    (status = 200, description = "It does", body = WorkerDraining, example = json!({"worker": "w9", "draining": true})),
    (status = 404, description = "It is not connected", body = ErrorBody, example = json!({"error": "no worker of the name w9 is connected"}))))]
pub(super) async fn drain(
    State(app): AppState,
    PathAndQuery(worker, NoQuery {}): OfOne,
) -> Result<Json<WorkerDraining>, ErrorAnswer> {
    check_name("worker", &worker)?;
    match app.bus.request(&drain_subject(&worker), &json!({}), ANSWER_WITHIN).await {
        Ok(ControlReply::Ok(_)) => Ok(Json(WorkerDraining { worker, draining: true })),
        Ok(ControlReply::Error(text) | ControlReply::Refused(text)) => Err(ErrorAnswer::bad_gateway(text)),
        Err(ControlError::Nobody(_)) => {
            Err(ErrorAnswer::not_found(format!("no worker of the name {worker} is connected")))
        }
        Err(fault) => Err(ErrorAnswer::bad_gateway(fault)),
    }
}

//! What an operator may do over HTTP with queues and workers. Each answers when it is done.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use millpond::bus::operate::control::{ControlError, ControlReply, drain_subject};
use millpond::bus::operate::queues::PauseError;
use millpond::bus::topology::TopologyError;
use millpond::wire::subject::check_token;
use millpond_api::list::List;
use millpond_api::queues::QueueRow;
use serde::Deserialize;
use serde_json::json;

use super::cancel::OPERATOR;
use utoipa::ToSchema;

use super::asked::{Asked, Said};
use super::filters::NoQuery;
use super::refusal::Refusal;
use super::rows::{Draining, Paused, Purged};
use super::{App, error};

/// How long a worker may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

type AppState = State<Arc<App>>;

fn refused(fault: &TopologyError) -> Response {
    error(StatusCode::BAD_GATEWAY, &fault.to_string())
}

/// List queues by name: those that workers have served, those where something waits for a first worker, and those with a
/// limit.
#[utoipa::path(get, path = "/queues", tag = "read", responses((status = 200, description = "All of them", body = List<QueueRow>,
    example = json!({"rows": [{"queue": "default", "waiting": 12, "held": 8, "scheduled": 1, "paused": false, "max_waiting": null, "oldest_ms": 1_800_000_000_000_i64, "workers": 2}], "next": null}))))]
pub(super) async fn queues(State(app): AppState, Asked((), NoQuery {}): Asked<(), NoQuery>) -> Response {
    match app.queues.statuses().await {
        Ok(statuses) => Json(List::whole(statuses.iter().map(|status| status.row()).collect())).into_response(),
        Err(fault) => refused(&fault),
    }
}

fn not_paused(fault: &PauseError) -> Response {
    let status = match fault {
        PauseError::NoSuchQueue { .. } => StatusCode::NOT_FOUND,
        PauseError::Topology(_) => StatusCode::BAD_GATEWAY,
    };
    error(status, &fault.to_string())
}

/// How long a pause lasts.
#[derive(Deserialize, Default, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Pause {
    /// It goes on by itself after this long; null: only when it is told to.
    for_ms: Option<u64>,
}

/// Pause a queue: nothing of it is handed out; what workers hold goes on.
#[utoipa::path(post, path = "/queues/{queue}/pause", tag = "act", request_body(content = Pause, example = json!({"for_ms": 600_000})),
    params(("queue" = String, Path, description = "Its name", example = "low", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses((status = 200, description = "It is paused", body = Paused, example = json!({"queue": "low", "paused": true})),
        (status = 404, description = "No worker has served it yet", body = Refusal, example = json!({"error": "there is no queue low: its workers make it, and none has served it yet"}))))]
pub(super) async fn pause(
    State(app): AppState,
    Asked(queue, NoQuery {}): Asked<String, NoQuery>,
    Said(asked): Said<Pause>,
) -> Response {
    if let Err(wrong) = check_token("queue", &queue) {
        return error(StatusCode::BAD_REQUEST, &wrong.to_string());
    }
    let paused = app.bus.pause_queue(&queue, asked.for_ms.map(Duration::from_millis)).await;
    match paused {
        Ok(()) => Json(json!({ "queue": queue, "paused": true })).into_response(),
        Err(fault) => not_paused(&fault),
    }
}

/// End the pause of a queue.
#[utoipa::path(post, path = "/queues/{queue}/resume", tag = "act", params(("queue" = String, Path, description = "Its name", example = "low", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses((status = 200, description = "It goes on", body = Paused, example = json!({"queue": "low", "paused": false})),
        (status = 404, description = "No worker has served it yet", body = Refusal, example = json!({"error": "there is no queue low: its workers make it, and none has served it yet"}))))]
pub(super) async fn resume(State(app): AppState, Asked(queue, NoQuery {}): Asked<String, NoQuery>) -> Response {
    if let Err(wrong) = check_token("queue", &queue) {
        return error(StatusCode::BAD_REQUEST, &wrong.to_string());
    }
    let resumed = app.bus.resume_queue(&queue).await;
    match resumed {
        Ok(()) => Json(json!({ "queue": queue, "paused": false })).into_response(),
        Err(fault) => not_paused(&fault),
    }
}

/// Ask a worker to drain: it takes nothing more, finishes what runs, and leaves.
#[utoipa::path(post, path = "/workers/{worker}/drain", tag = "act", params(("worker" = String, Path, description = "Its name", example = "w9", pattern = "^[A-Za-z0-9_-]{1,64}$")), responses(
    (status = 200, description = "It does", body = Draining, example = json!({"worker": "w9", "draining": true})),
    (status = 404, description = "It is not connected", body = Refusal, example = json!({"error": "no worker of the name w9 is connected"}))))]
pub(super) async fn drain(State(app): AppState, Asked(worker, NoQuery {}): Asked<String, NoQuery>) -> Response {
    if let Err(wrong) = check_token("worker", &worker) {
        return error(StatusCode::BAD_REQUEST, &wrong.to_string());
    }
    match app.bus.request(&drain_subject(&worker), &json!({}), ANSWER_WITHIN).await {
        Ok(ControlReply::Ok(_)) => Json(json!({ "worker": worker, "draining": true })).into_response(),
        Ok(ControlReply::Error(text)) => error(StatusCode::BAD_GATEWAY, &text),
        Err(ControlError::Nobody(_)) => {
            error(StatusCode::NOT_FOUND, &format!("no worker of the name {worker} is connected"))
        }
        Err(fault) => error(StatusCode::BAD_GATEWAY, &fault.to_string()),
    }
}

/// What to remove.
#[derive(Deserialize, Default, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Purge {
    /// Of this kind only.
    kind: Option<String>,
    /// What runs of it is not ended.
    keep_running: bool,
}

/// Remove what waits in a queue, and end what runs of it.
#[utoipa::path(post, path = "/queues/{queue}/purge", tag = "act", request_body(content = Purge, example = json!({"kind": "square", "keep_running": true})),
    params(("queue" = String, Path, description = "Its name", example = "low", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses((status = 200, description = "It is done, and recorded", body = Purged, example = json!({"queue": "low", "kind": "square", "running": false, "tasks_up_to": 41, "due_up_to": 7, "count": 3, "by": "operator", "at_ms": 1_800_000_000_000_i64}))))]
pub(super) async fn purge(
    State(app): AppState,
    Asked(queue, NoQuery {}): Asked<String, NoQuery>,
    Said(asked): Said<Purge>,
) -> Response {
    let names = [("queue", Some(&queue)), ("kind", asked.kind.as_ref())];
    for (what, name) in names.iter().filter_map(|(what, name)| Some((*what, (*name)?))) {
        if let Err(wrong) = check_token(what, name) {
            return error(StatusCode::BAD_REQUEST, &wrong.to_string());
        }
    }
    let purged = app.bus.purge_queue(&queue, asked.kind.as_deref(), !asked.keep_running, OPERATOR).await;
    match purged {
        Ok(record) => Json(json!(record)).into_response(),
        Err(fault) => refused(&fault),
    }
}

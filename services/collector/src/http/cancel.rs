//! What an operator cancels over HTTP: a job, a task. What waits is removed; what runs is ended by its worker.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use millpond::bus::operate::cancel::CancelError;
use millpond::wire::subject::{TaskSubject, check_token};
use millpond_api::jobs::JobStatus;
use millpond_api::tasks::TaskStatus;
use serde::{Deserialize, Serialize};
use serde_json::json;

use utoipa::ToSchema;

use super::asked::{Asked, Said};
use super::filters::NoQuery;
use super::refusal::Refusal;
use super::rows::Cancelled;
use super::{App, error};

type AppState = State<Arc<App>>;

/// Who asks, as the records tell it.
pub(super) const OPERATOR: &str = "operator";

/// Cancel a job: what waits is removed, what runs is ended.
#[utoipa::path(post, path = "/jobs/{job}/cancel", tag = "act", params(("job" = String, Path, description = "Its name", example = "report-7", pattern = "^[A-Za-z0-9_-]{1,64}$")), responses(
    (status = 200, description = "It is cancelled", body = Cancelled, example = json!({"job": "report-7", "epoch": 1, "removed": 3})),
    (status = 404, description = "There is none", body = Refusal, example = json!({"error": "no job report-7 is known"})),
    (status = 409, description = "It has ended", body = Refusal, example = json!({"error": "job report-7 has ended: it is finished"}))))]
pub(super) async fn job(State(app): AppState, Asked(job, NoQuery {}): Asked<String, NoQuery>) -> Response {
    if let Err(wrong) = check_token("job", &job) {
        return error(StatusCode::BAD_REQUEST, &wrong.to_string());
    }
    let (stored, record) = match (app.store.job(&job).await, app.bus.job(&job).await) {
        (Ok(stored), Ok(record)) => (stored, record),
        (Err(fault), _) => return error(StatusCode::INTERNAL_SERVER_ERROR, &format!("{fault:#}")),
        (_, Err(fault)) => return error(StatusCode::BAD_GATEWAY, &fault.to_string()),
    };
    if stored.as_ref().is_some_and(|stored| stored.state == JobStatus::Finished) {
        return error(StatusCode::CONFLICT, &format!("job {job} has ended: it is finished"));
    }
    let subject = match (&record, &stored) {
        (Some(entry), _) => TaskSubject::new(&entry.record.queue, &entry.record.kind, None),
        (None, Some(stored)) => TaskSubject::new(&stored.queue, &stored.kind, None),
        (None, None) => return error(StatusCode::NOT_FOUND, &format!("no job {job} is known")),
    };
    let cancelled = match subject {
        Ok(subject) => app.bus.cancel_job(&job, &subject, OPERATOR).await,
        Err(wrong) => return error(StatusCode::INTERNAL_SERVER_ERROR, &wrong.to_string()),
    };
    match cancelled {
        Ok(cancelled) => Json(json!(cancelled)).into_response(),
        Err(fault) => failed(&fault),
    }
}

/// Which task.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OneTask {
    /// Its id; `<id>/<i>` for an item of a batch.
    id: String,
    /// Its queue, where several have this id, or where it is still to come.
    queue: Option<String>,
}

/// A task that is cancelled.
#[derive(Serialize, ToSchema)]
pub(super) struct TaskCancelled {
    id: String,
    queue: String,
    /// It has ended already; else its worker ends it, or the one that gets it.
    ended: bool,
}

/// Cancel a task: what waits for its time is removed, what runs is ended, what waits for a worker ends at its door.
#[utoipa::path(post, path = "/task/cancel", tag = "act", request_body(content = OneTask, example = json!({"id": "order-7", "queue": "default"})), responses(
    (status = 200, description = "It is cancelled", body = TaskCancelled, example = json!({"id": "order-7", "queue": "default", "ended": false})),
    (status = 404, description = "It neither waits nor runs", body = Refusal, example = json!({"error": "no task order-7 waits or runs; if it is still to come, name its queue"})),
    (status = 409, description = "It has ended, or several queues have this id", body = Refusal, example = json!({"error": "task order-7 has ended: it is done"}))))]
pub(super) async fn task(
    State(app): AppState,
    Asked((), NoQuery {}): Asked<(), NoQuery>,
    Said(asked): Said<OneTask>,
) -> Response {
    // Not every store takes one.
    if asked.id.contains('\0') {
        return error(StatusCode::BAD_REQUEST, "no id has a NUL character");
    }
    let stored = match app.store.task(&asked.id, asked.queue.as_deref()).await {
        Ok(stored) => stored,
        Err(fault) => return error(StatusCode::INTERNAL_SERVER_ERROR, &format!("{fault:#}")),
    };
    if stored.len() > 1 {
        let queues: Vec<&str> = stored.iter().map(|task| task.row.queue.as_str()).collect();
        let text = format!("several queues have this id, name one (queue): {}", queues.join(", "));
        return error(StatusCode::CONFLICT, &text);
    }
    let stored = stored.into_iter().next().map(|task| task.row);
    match stored.as_ref().map(|task| task.status) {
        Some(status @ (TaskStatus::Done | TaskStatus::Cancelled)) => {
            return error(StatusCode::CONFLICT, &format!("task {} has ended: it is {status}", asked.id));
        }
        Some(TaskStatus::Dead) => {
            let text = format!("task {} is a dead letter already; `dead purge` throws it away", asked.id);
            return error(StatusCode::CONFLICT, &text);
        }
        _ => {}
    }
    // An item of a job may be known by its place in its batch.
    let id = stored.as_ref().map_or_else(|| asked.id.clone(), |task| task.id.clone());
    let queue = match asked.queue.clone().or_else(|| stored.map(|task| task.queue)) {
        Some(queue) => queue,
        None => match app.bus.find(&id, None).await {
            Ok(found) => match found.queue() {
                Some(queue) => queue.to_owned(),
                None => {
                    let text = format!("no task {} waits or runs; if it is still to come, name its queue", asked.id);
                    return error(StatusCode::NOT_FOUND, &text);
                }
            },
            Err(fault) => return error(StatusCode::BAD_GATEWAY, &fault.to_string()),
        },
    };
    if let Err(wrong) = check_token("queue", &queue) {
        return error(StatusCode::BAD_REQUEST, &wrong.to_string());
    }
    match app.bus.cancel_task(&queue, &id, OPERATOR).await {
        Ok(ended) => Json(TaskCancelled { id, queue, ended }).into_response(),
        Err(fault) => failed(&fault),
    }
}

fn failed(fault: &CancelError) -> Response {
    error(StatusCode::BAD_GATEWAY, &format!("{fault}; it is safe to try again"))
}

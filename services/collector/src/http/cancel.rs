//! What an operator cancels over HTTP: a job, a task. What waits is removed; what runs is ended by its worker.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use millpond::bus::operate::cancel::CancelError;
use millpond::wire::subject::TaskSubject;
use millpond_api::error::ErrorBody;
use millpond_api::jobs::{JobCancelled, JobStatus};
use millpond_api::tasks::{CancelTask, TaskCancelled, TaskRow, TaskStatus};
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::request::{JsonBody, NoQuery, PathAndQuery, check_name};

use super::read::several;
use super::{App, store_error};
use crate::known_job::known_job;

type AppState = State<Arc<App>>;

/// The role that acts, in records.
pub(super) const OPERATOR: &str = "operator";

/// Cancel a job: what waits is removed, what runs is ended.
#[utoipa::path(post, path = "/jobs/{job}/cancel", tag = "act", params(("job" = String, Path, description = "Its name", example = "report-7", pattern = "^[A-Za-z0-9_-]{1,64}$")), responses(
    (status = 200, description = "It is cancelled", body = JobCancelled, example = json!({"job": "report-7", "epoch": 1, "removed": 3})),
    (status = 404, description = "There is none", body = ErrorBody, example = json!({"error": "no job report-7 is known"})),
    (status = 409, description = "It has ended", body = ErrorBody, example = json!({"error": "job report-7 has ended: it is finished"}))))]
pub(super) async fn job(
    State(app): AppState,
    PathAndQuery(job, NoQuery {}): PathAndQuery<String, NoQuery>,
) -> Result<Json<JobCancelled>, ErrorAnswer> {
    cancel_job(&app, job, OPERATOR).await.map(Json)
}

/// The same for whoever acts without HTTP.
pub(super) async fn cancel_job(app: &App, job: String, by: &str) -> Result<JobCancelled, ErrorAnswer> {
    check_name("job", &job)?;
    let stored = known_job(&app.bus, &app.store, &job).await.map_err(|fault| store_error(&fault))?;
    let record = app.bus.job(&job).await.map_err(ErrorAnswer::bad_gateway)?;
    if stored.as_ref().is_some_and(|stored| stored.state == JobStatus::Finished) {
        return Err(ErrorAnswer::conflict(format!("job {job} has ended: it is finished")));
    }
    let subject = match (&record, &stored) {
        (Some(entry), _) => TaskSubject::new(&entry.record.queue, &entry.record.kind, None),
        (None, Some(stored)) => TaskSubject::new(&stored.queue, &stored.kind, None),
        (None, None) => return Err(ErrorAnswer::not_found(format!("no job {job} is known"))),
    };
    let subject = subject.map_err(|wrong| ErrorAnswer::new(StatusCode::INTERNAL_SERVER_ERROR, wrong.to_string()))?;
    let cancelled = app.bus.cancel_job(&job, &subject, by).await.map_err(|fault| failed(&fault))?;
    Ok(JobCancelled { job: cancelled.job, epoch: cancelled.epoch, removed: cancelled.removed })
}

/// Cancel a task: what waits for its time is removed, what runs is ended, what waits for a worker ends when one takes it.
#[utoipa::path(post, path = "/task/cancel", tag = "act", request_body(content = CancelTask, example = json!({"id": "order-7", "queue": "default"})), responses(
    (status = 200, description = "It is cancelled", body = TaskCancelled, example = json!({"id": "order-7", "queue": "default", "kind": "square", "ended": false})),
    (status = 404, description = "It neither waits nor runs", body = ErrorBody, example = json!({"error": "no task order-7 waits or runs; if it is still to come, name its queue"})),
    (status = 409, description = "It has ended, or tasks of several queues or kinds have this id", body = ErrorBody, example = json!({"error": "task order-7 has ended: it is done"}))))]
pub(super) async fn task(
    State(app): AppState,
    PathAndQuery((), NoQuery {}): PathAndQuery<(), NoQuery>,
    JsonBody(task): JsonBody<CancelTask>,
) -> Result<Json<TaskCancelled>, ErrorAnswer> {
    cancel_task(&app, task, OPERATOR).await.map(Json)
}

/// The same for whoever acts without HTTP.
pub(super) async fn cancel_task(app: &App, task: CancelTask, by: &str) -> Result<TaskCancelled, ErrorAnswer> {
    let CancelTask { id, queue, kind } = place(app, task).await?;
    let queue = queue.unwrap_or_default();
    check_name("queue", &queue)?;
    if let Some(kind) = &kind {
        check_name("kind", kind)?;
    }
    let cancelled = app.bus.cancel_task(&queue, kind.as_deref(), &id, by).await;
    let ended = cancelled.map_err(|fault| failed(&fault))?;
    Ok(TaskCancelled { id, queue, kind, ended })
}

/// The task that is meant, by its queue and kind: of those that have its id one that has not ended. Without a kind it is still to
/// come.
async fn place(app: &App, task: CancelTask) -> Result<CancelTask, ErrorAnswer> {
    let CancelTask { id, queue, kind } = &task;
    let stored = app.store.task(id, queue.as_deref(), kind.as_deref()).await.map_err(|fault| store_error(&fault))?;
    let (open, ended): (Vec<TaskRow>, Vec<TaskRow>) =
        stored.into_iter().map(|task| task.row).partition(|row| check_not_ended(id, row).is_ok());
    // An item of a job may be known by its place in its batch.
    let named = |row: TaskRow| CancelTask { id: row.id, queue: Some(row.queue), kind: Some(row.kind) };
    if queue.is_some() && kind.is_some() {
        return match (open.into_iter().next(), ended.first()) {
            (Some(row), _) => Ok(named(row)),
            (None, Some(row)) => check_not_ended(id, row).map(|()| task),
            (None, None) => Ok(task),
        };
    }
    let found = app.bus.find(id, queue.as_deref(), kind.as_deref()).await.map_err(ErrorAnswer::bad_gateway)?;
    let mut places: BTreeMap<(String, String), CancelTask> = BTreeMap::new();
    for row in open {
        places.insert((row.queue.clone(), row.kind.clone()), named(row));
    }
    for (queue, kind) in found.found.into_keys() {
        // What is stored as ended may be delivered once more: it is not to be cancelled.
        if !ended.iter().any(|row| row.queue == queue && row.kind == kind) {
            let task = CancelTask { id: id.clone(), queue: Some(queue.clone()), kind: Some(kind.clone()) };
            places.entry((queue, kind)).or_insert(task);
        }
    }
    match (places.len(), ended.first()) {
        (0, Some(row)) => check_not_ended(id, row).map(|()| task),
        (0, None) if queue.is_some() => Ok(task),
        (0, None) => {
            Err(ErrorAnswer::not_found(format!("no task {id} waits or runs; if it is still to come, name its queue")))
        }
        (1, _) => Ok(places.into_values().next().unwrap_or(task)),
        _ => Err(several(places.keys().map(|(queue, kind)| (queue.as_str(), kind.as_str())))),
    }
}

fn check_not_ended(id: &str, stored: &TaskRow) -> Result<(), ErrorAnswer> {
    match stored.status {
        status @ (TaskStatus::Done | TaskStatus::Cancelled) => {
            Err(ErrorAnswer::conflict(format!("task {id} has ended: it is {status}")))
        }
        TaskStatus::Dead => {
            let text = format!("task {id} is a dead letter already; `dead purge` throws it away");
            Err(ErrorAnswer::conflict(text))
        }
        TaskStatus::Partial | TaskStatus::Retrying => Ok(()),
    }
}

fn failed(fault: &CancelError) -> ErrorAnswer {
    ErrorAnswer::bad_gateway(format!("{fault}; it is safe to try again"))
}

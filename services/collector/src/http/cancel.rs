//! What an operator cancels over HTTP: a job, a task. What waits is removed; what runs is ended by its worker.

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
    let cancelled = app.bus.cancel_job(&job, &subject, OPERATOR).await.map_err(|fault| failed(&fault))?;
    Ok(Json(JobCancelled { job: cancelled.job, epoch: cancelled.epoch, removed: cancelled.removed }))
}

/// Cancel a task: what waits for its time is removed, what runs is ended, what waits for a worker ends when one takes it.
#[utoipa::path(post, path = "/task/cancel", tag = "act", request_body(content = CancelTask, example = json!({"id": "order-7", "queue": "default"})), responses(
    (status = 200, description = "It is cancelled", body = TaskCancelled, example = json!({"id": "order-7", "queue": "default", "ended": false})),
    (status = 404, description = "It neither waits nor runs", body = ErrorBody, example = json!({"error": "no task order-7 waits or runs; if it is still to come, name its queue"})),
    (status = 409, description = "It has ended, or several queues have this id", body = ErrorBody, example = json!({"error": "task order-7 has ended: it is done"}))))]
pub(super) async fn task(
    State(app): AppState,
    PathAndQuery((), NoQuery {}): PathAndQuery<(), NoQuery>,
    JsonBody(CancelTask { id: given, queue }): JsonBody<CancelTask>,
) -> Result<Json<TaskCancelled>, ErrorAnswer> {
    let stored = app.store.task(&given, queue.as_deref()).await.map_err(|fault| store_error(&fault))?;
    if stored.len() > 1 {
        let queues: Vec<&str> = stored.iter().map(|task| task.row.queue.as_str()).collect();
        let text = format!("several queues have this id, name one (queue): {}", queues.join(", "));
        return Err(ErrorAnswer::conflict(text));
    }
    let stored = stored.into_iter().next().map(|task| task.row);
    check_not_ended(&given, stored.as_ref())?;
    // An item of a job may be known by its place in its batch.
    let id = stored.as_ref().map_or_else(|| given.clone(), |task| task.id.clone());
    let queue = match queue.or_else(|| stored.map(|task| task.queue)) {
        Some(queue) => queue,
        None => {
            let found = app.bus.find(&id, None).await.map_err(ErrorAnswer::bad_gateway)?;
            let none = || format!("no task {given} waits or runs; if it is still to come, name its queue");
            found.queue().ok_or_else(|| ErrorAnswer::not_found(none()))?.to_owned()
        }
    };
    check_name("queue", &queue)?;
    let ended = app.bus.cancel_task(&queue, &id, OPERATOR).await.map_err(|fault| failed(&fault))?;
    Ok(Json(TaskCancelled { id, queue, ended }))
}

fn check_not_ended(id: &str, stored: Option<&TaskRow>) -> Result<(), ErrorAnswer> {
    match stored.map(|task| task.status) {
        Some(status @ (TaskStatus::Done | TaskStatus::Cancelled)) => {
            Err(ErrorAnswer::conflict(format!("task {id} has ended: it is {status}")))
        }
        Some(TaskStatus::Dead) => {
            let text = format!("task {id} is a dead letter already; `dead purge` throws it away");
            Err(ErrorAnswer::conflict(text))
        }
        _ => Ok(()),
    }
}

fn failed(fault: &CancelError) -> ErrorAnswer {
    ErrorAnswer::bad_gateway(format!("{fault}; it is safe to try again"))
}

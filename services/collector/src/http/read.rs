//! What is read of the store, of the workers' records and of the bus. Lists answer `{"rows": […], "next": cursor or null}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use millpond_api::dead_letters::{DeadLetterDetails, DeadLetterQuery, DeadLetterRow};
use millpond_api::jobs::{JobQuery, JobResult, JobRow};
use millpond_api::list::{List, PageQuery};
use millpond_api::tasks::{TaskDetails, TaskIdQuery, TaskQuery, TaskRow};
use millpond_api::workers::WorkerRow;

use millpond_api::error::ErrorBody;
use millpond_api::queues::QueueList;
use millpond_api::schedules::ScheduleRow;
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::request::{NoQuery, Paged, PathAndQuery, check_name, cursor};

use super::{App, store_error};
use crate::known_job::known_job;
use crate::store::{ListCursor, Page, ResultCursor, StoreError};

type AppState = State<Arc<App>>;
type Answer<T> = Result<Json<T>, ErrorAnswer>;

/// `timed`: whether the list is in the order of times.
fn page(query: &PageQuery, timed: bool) -> Result<Page, ErrorAnswer> {
    let parse = |text: &str| text.parse().ok().filter(|after: &ListCursor| after.at_ms.is_some() == timed);
    Ok(Page { limit: query.limit, after: cursor(query.after.as_deref(), parse)? })
}

/// What follows the first page was there before it.
async fn first_page_caught_up(app: &App, query: &PageQuery) {
    if query.after.is_none() {
        app.caught_up().await;
    }
}

fn listed<T>(found: Result<(Vec<T>, Option<ListCursor>), StoreError>) -> Answer<List<T>> {
    let (rows, next) = found.map_err(|fault| store_error(&fault))?;
    Ok(Json(List { rows, next: next.map(|n| n.to_string()) }))
}

pub(super) fn one<T>(found: Result<Vec<T>, StoreError>, what: &str, place: impl Fn(&T) -> (&str, &str)) -> Answer<T> {
    let mut found = found.map_err(|fault| store_error(&fault))?;
    match found.pop() {
        None => Err(ErrorAnswer::not_found(format!("no such {what} is stored (yet)"))),
        Some(only) if found.is_empty() => Ok(Json(only)),
        Some(last) => Err(several(found.iter().chain([&last]).map(place))),
    }
}

/// The answer where tasks of several queues or kinds, which are these, have the id that was given.
pub(super) fn several<'a>(places: impl Iterator<Item = (&'a str, &'a str)>) -> ErrorAnswer {
    let places: Vec<String> = places.map(|(queue, kind)| format!("{queue}.{kind}")).collect();
    let places = places.join(", ");
    ErrorAnswer::conflict(format!(
        "tasks of several queues or kinds have this id, name one with queue and kind (--queue, --kind): {places}"
    ))
}

/// List tasks and batches that have ended an attempt.
#[utoipa::path(get, path = "/tasks", tag = "read", params(TaskQuery, PageQuery), responses((status = 200, description = "A page", body = List<TaskRow>,
    example = json!({"rows": [{"queue": "default", "id": "order-7", "kind": "square", "job": null, "index": null, "original_id": null, "items": null, "done": 1, "status": "done", "attempt": 1, "worker": "w1", "published_ms": 1_800_000_000_000_i64, "started_ms": 1_800_000_000_001_i64, "ended_ms": 1_800_000_000_002_i64, "stored_ms": 1_800_000_000_060_i64, "trace": null, "continuation": null, "result": 144}], "next": "1800000000000.41"}))))]
pub(super) async fn tasks(State(app): AppState, Paged((), query, at): Paged<(), TaskQuery>) -> Answer<List<TaskRow>> {
    let page = page(&at, true)?;
    first_page_caught_up(&app, &at).await;
    listed(app.store.tasks(&query, page).await)
}

/// Show a task with its attempts and its dead letter.
#[utoipa::path(get, path = "/task", tag = "read", params(TaskIdQuery), responses(
    (status = 200, description = "The task", body = TaskDetails,
        example = json!({"queue": "default", "id": "order-7", "kind": "square", "done": 0, "status": "retrying", "attempt": 1, "worker": "w1", "published_ms": 1_800_000_000_000_i64, "stored_ms": 1_800_000_000_060_i64, "attempts": [{"attempt": 1, "worker": "w1", "started_ms": 1_800_000_000_001_i64, "ended_ms": 1_800_000_000_002_i64, "status": "failed", "child": null, "failure": {"type": "error", "message": "no", "retry": true}, "trace": null}], "dead": null, "replays": [], "replay_of": null})),
    (status = 404, description = "It has not ended an attempt, or never was", body = ErrorBody, example = json!({"error": "no such task is stored (yet)"})),
    (status = 409, description = "Tasks of several queues or kinds have this id", body = ErrorBody, example = json!({"error": "tasks of several queues or kinds have this id, name one with queue and kind (--queue, --kind): default.square, high.square"}))))]
pub(super) async fn task(
    State(app): AppState,
    PathAndQuery((), query): PathAndQuery<(), TaskIdQuery>,
) -> Answer<TaskDetails> {
    app.caught_up().await;
    let found = app.store.task(&query.id, query.queue.as_deref(), query.kind.as_deref()).await;
    one(found, "task", |task| (&task.row.queue, &task.row.kind))
}

/// List jobs with their progress, and sessions: jobs without a record, known from their tasks.
#[utoipa::path(get, path = "/jobs", tag = "read", params(JobQuery, PageQuery), responses((status = 200, description = "A page", body = List<JobRow>,
    example = json!({"rows": [{"job": "report-7", "state": "closed", "queue": "default", "kind": "square", "total": 100, "published": 100, "done": 97, "retrying": 1, "dead": 1, "cancelled": 0, "purged": 0, "created_ms": 1_800_000_000_000_i64, "heartbeat_ms": 1_800_000_002_000_i64, "epoch": 1, "continuation": null}], "next": null}))))]
pub(super) async fn jobs(State(app): AppState, Paged((), query, at): Paged<(), JobQuery>) -> Answer<List<JobRow>> {
    let page = page(&at, false)?;
    first_page_caught_up(&app, &at).await;
    listed(app.store.jobs(&query, page).await)
}

/// Show a job.
#[utoipa::path(get, path = "/jobs/{job}", tag = "read", params(("job" = String, Path, description = "Its name", example = "report-7", pattern = "^[A-Za-z0-9_-]{1,64}$")), responses(
    (status = 200, description = "The job", body = JobRow,
        example = json!({"job": "report-7", "state": "finished", "queue": "default", "kind": "square", "total": 100, "published": 100, "done": 100, "retrying": 0, "dead": 0, "cancelled": 0, "purged": 0, "created_ms": 1_800_000_000_000_i64, "heartbeat_ms": 1_800_000_002_000_i64, "epoch": 1, "continuation": null})),
    (status = 404, description = "There is none", body = ErrorBody, example = json!({"error": "no such job is stored (yet)"}))))]
pub(super) async fn job(
    State(app): AppState,
    PathAndQuery(job, NoQuery {}): PathAndQuery<String, NoQuery>,
) -> Answer<JobRow> {
    job_row(&app, job).await
}

/// The same for whoever asks without HTTP.
pub(super) async fn job_row(app: &App, job: String) -> Answer<JobRow> {
    check_name("job", &job)?;
    app.caught_up().await;
    let found = known_job(&app.bus, &app.store, &job).await;
    one(found.map(|found| found.into_iter().collect()), "job", |job| (&job.queue, &job.kind))
}

/// List how the tasks of a job ended, by their index; what has not ended is left out.
#[utoipa::path(get, path = "/jobs/{job}/results", tag = "read", params(("job" = String, Path, description = "Its name", example = "report-7", pattern = "^[A-Za-z0-9_-]{1,64}$"), PageQuery),
    responses((status = 200, description = "A page; empty when there is no such job", body = List<JobResult>,
        example = json!({"rows": [{"index": 0, "id": "report-7.1/0", "queue": "default", "kind": "square", "status": "done", "result": 0}], "next": "0.17.0"}))))]
pub(super) async fn job_results(
    State(app): AppState,
    Paged(job, NoQuery {}, at): Paged<String, NoQuery>,
) -> Answer<List<JobResult>> {
    check_name("job", &job)?;
    let after = cursor(at.after.as_deref(), ResultCursor::parse)?;
    first_page_caught_up(&app, &at).await;
    let found = app.store.job_results(&job, 0, at.limit, after).await;
    let (rows, next) = found.map_err(|fault| store_error(&fault))?;
    Ok(Json(List { rows, next: next.map(ResultCursor::text) }))
}

/// List workers by name: those that live, and those that were lost within the last ten minutes.
#[utoipa::path(get, path = "/workers", tag = "read", responses((status = 200, description = "All of them", body = List<WorkerRow>,
    example = json!({"rows": [{"name": "w1", "state": "live", "nonce": "mzxw6ytboi", "host": "here", "pid": 4711, "queues": ["default"], "kinds": ["square"], "slots": 8, "io_slots": 64, "running": 1, "held": 2, "draining": false, "done": 97, "failed": 1, "cpu_percent": 12.5, "rss_bytes": 20_000_000, "unknown_kinds": [], "started_ms": 1_800_000_000_000_i64, "heartbeat_ms": 1_800_000_002_000_i64, "history": []}], "next": null}))))]
pub(super) async fn workers(
    State(app): AppState,
    PathAndQuery((), NoQuery {}): PathAndQuery<(), NoQuery>,
) -> Json<List<WorkerRow>> {
    Json(List::whole(app.workers.rows()))
}

/// List dead letters that wait for a person.
#[utoipa::path(get, path = "/dead", tag = "read", params(DeadLetterQuery, PageQuery), responses((status = 200, description = "A page", body = List<DeadLetterRow>,
    example = json!({"rows": [{"queue": "default", "id": "order-7", "kind": "square", "job": null, "index": null, "attempt": 3, "reason": "exhausted", "failure": {"type": "error", "message": "no", "retry": true}, "worker": "w1", "trace": null, "dead_lettered_ms": 1_800_000_000_000_i64}], "next": null}))))]
pub(super) async fn dead(
    State(app): AppState,
    Paged((), query, at): Paged<(), DeadLetterQuery>,
) -> Answer<List<DeadLetterRow>> {
    let page = page(&at, false)?;
    first_page_caught_up(&app, &at).await;
    listed(app.store.dead_letters(&query, page).await)
}

/// Show a dead letter with its evidence, its headers and its arguments.
#[utoipa::path(get, path = "/dead_letter", tag = "read", params(TaskIdQuery), responses(
    (status = 200, description = "The dead letter", body = DeadLetterDetails,
        example = json!({"queue": "default", "id": "order-7", "kind": "square", "job": null, "index": null, "attempt": 1, "reason": "fatal", "failure": {"type": "bad_arguments", "message": "no number", "retry": false}, "worker": "w1", "trace": null, "dead_lettered_ms": 1_800_000_000_000_i64, "failures": [], "evidence": {"v": 1}, "headers": [["Nats-Msg-Id", "order-7"]], "payload": "twelve"})),
    (status = 404, description = "None waits", body = ErrorBody, example = json!({"error": "no such dead letter is stored (yet)"})),
    (status = 409, description = "Tasks of several queues or kinds have this id", body = ErrorBody, example = json!({"error": "tasks of several queues or kinds have this id, name one with queue and kind (--queue, --kind): default.square, high.square"}))))]
pub(super) async fn dead_letter(
    State(app): AppState,
    PathAndQuery((), query): PathAndQuery<(), TaskIdQuery>,
) -> Answer<DeadLetterDetails> {
    app.caught_up().await;
    let found = app.store.dead_letter(&query.id, query.queue.as_deref(), query.kind.as_deref()).await;
    one(found, "dead letter", |letter| (&letter.row.queue, &letter.row.kind))
}

/// List queues by name: those that workers have served, those with a limit, and those where something waits for a first worker:
/// of these the 100 with most messages, the others are counted.
#[utoipa::path(get, path = "/queues", tag = "read", responses((status = 200, description = "All of them", body = QueueList,
    example = json!({"rows": [{"queue": "default", "waiting": 12, "held": 8, "scheduled": 1, "paused": false, "max_waiting": null, "oldest_ms": 1_800_000_000_000_i64, "workers": 2}], "next": null, "unlisted": {"queues": 0, "waiting": 0}}))))]
pub(super) async fn queues(
    State(app): AppState,
    PathAndQuery((), NoQuery {}): PathAndQuery<(), NoQuery>,
) -> Answer<QueueList> {
    let statuses = app.queues.statuses().await.map_err(ErrorAnswer::bad_gateway)?;
    let rows = statuses.listed.iter().map(|status| status.row()).collect();
    Ok(Json(QueueList { rows, next: None, unlisted: statuses.unlisted }))
}

/// List schedules by name, as the server keeps them. Only clients change them.
#[utoipa::path(get, path = "/schedules", tag = "read", responses((status = 200, description = "All of them", body = List<ScheduleRow>,
    example = json!({"rows": [{"name": "report", "queue": "default", "kind": "square", "args": 12, "schedule": "@every 10s", "zone": null, "paused": false, "next_ms": 1_800_000_010_000_i64, "defect": null, "remarks": [], "timeout_ms": null, "attempts_max": null, "by": "client", "since_ms": 1_800_000_000_000_i64}], "next": null}))))]
pub(super) async fn schedules(
    State(app): AppState,
    PathAndQuery((), NoQuery {}): PathAndQuery<(), NoQuery>,
) -> Answer<List<ScheduleRow>> {
    let now_ms = millpond::now_ms();
    let schedules = app.bus.schedules().await.map_err(ErrorAnswer::bad_gateway)?;
    let refusals = app.bus.schedule_refusals(&schedules).await.map_err(ErrorAnswer::bad_gateway)?;
    Ok(Json(List::whole(schedules.iter().map(|record| ScheduleRow::new(record, &refusals, now_ms)).collect())))
}

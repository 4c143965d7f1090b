//! The paths under /api/v1. Lists answer `{"rows": […], "next": cursor or null}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use millpond::limits::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{App, error};
use crate::store::{Page, TaskFilter};

/// What may be asked of a list.
#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct Asked {
    job: Option<String>,
    queue: Option<String>,
    kind: Option<String>,
    status: Option<String>,
    worker: Option<String>,
    reason: Option<String>,
    id: Option<String>,
    after: Option<String>,
    limit: Option<String>,
}

impl Asked {
    fn page(&self) -> Result<Page, Box<Response>> {
        let bad = |text: &str| Box::new(error(StatusCode::BAD_REQUEST, text));
        let limit = self.limit.as_ref().map_or(Ok(PAGE_ROWS_DEFAULT), |text| text.parse());
        let limit = limit.ok().filter(|n| (1..=PAGE_ROWS_MAX).contains(n));
        let limit = limit.ok_or_else(|| bad(&format!("limit must be a number from 1 to {PAGE_ROWS_MAX}")))?;
        let after = self.after.as_ref().map(|text| text.parse::<i64>()).transpose();
        let after = after.map_err(|_| bad("after must be the `next` of the page before, unchanged"))?;
        Ok(Page { limit, after })
    }

    fn filter(&self) -> TaskFilter {
        TaskFilter {
            job: self.job.clone(),
            queue: self.queue.clone(),
            kind: self.kind.clone(),
            status: self.status.clone(),
            worker: self.worker.clone(),
        }
    }
}

type AppState = State<Arc<App>>;

fn rows(found: anyhow::Result<(Vec<Value>, Option<i64>)>) -> Response {
    match found {
        Ok((rows, next)) => Json(json!({ "rows": rows, "next": next.map(|n| n.to_string()) })).into_response(),
        Err(fault) => failed(&fault),
    }
}

fn failed(fault: &anyhow::Error) -> Response {
    tracing::error!(error = %format!("{fault:#}"), "the store cannot be read");
    error(StatusCode::INTERNAL_SERVER_ERROR, "the store cannot be read; the collector's log has the reason")
}

fn one(found: anyhow::Result<Vec<Value>>, what: &str) -> Response {
    match found {
        Err(fault) => failed(&fault),
        Ok(found) => match found.as_slice() {
            [] => error(StatusCode::NOT_FOUND, &format!("no such {what} is stored (yet)")),
            [only] => Json(only).into_response(),
            several => {
                let queues: Vec<&str> = several.iter().filter_map(|t| t.get("queue")?.as_str()).collect();
                let text = format!("several queues have this id, name one with &queue=: {}", queues.join(", "));
                error(StatusCode::CONFLICT, &text)
            }
        },
    }
}

pub(super) async fn tasks(State(app): AppState, Query(asked): Query<Asked>) -> Response {
    match asked.page() {
        Ok(page) => rows(app.store.tasks(&asked.filter(), page).await),
        Err(response) => *response,
    }
}

pub(super) async fn task(State(app): AppState, Query(asked): Query<Asked>) -> Response {
    let Some(id) = &asked.id else { return error(StatusCode::BAD_REQUEST, "name the task: ?id=…") };
    one(app.store.task(id, asked.queue.as_deref()).await, "task")
}

pub(super) async fn jobs(State(app): AppState, Query(asked): Query<Asked>) -> Response {
    match asked.page() {
        Ok(page) => rows(app.store.jobs(page).await),
        Err(response) => *response,
    }
}

pub(super) async fn job(State(app): AppState, Path(job): Path<String>) -> Response {
    one(app.store.job(&job).await.map(|found| found.into_iter().collect()), "job")
}

pub(super) async fn job_results(State(app): AppState, Path(job): Path<String>, Query(asked): Query<Asked>) -> Response {
    match asked.page() {
        Ok(page) => rows(app.store.job_results(&job, page).await),
        Err(response) => *response,
    }
}

pub(super) async fn workers(State(app): AppState) -> Response {
    rows(Ok((app.workers.rows(), None)))
}

pub(super) async fn dead(State(app): AppState, Query(asked): Query<Asked>) -> Response {
    match asked.page() {
        Ok(page) => rows(app.store.dead(&asked.filter(), asked.reason.as_deref(), page).await),
        Err(response) => *response,
    }
}

pub(super) async fn dead_letter(State(app): AppState, Query(asked): Query<Asked>) -> Response {
    let Some(id) = &asked.id else { return error(StatusCode::BAD_REQUEST, "name the task: ?id=…") };
    one(app.store.dead_letter(id, asked.queue.as_deref()).await, "dead letter")
}

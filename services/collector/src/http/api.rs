//! The paths under /api/v1. Lists answer `{"rows": […], "next": cursor or null}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use millpond::limits::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX};
use serde::{Deserialize, Serialize};

use super::{App, error};
use crate::store::{Ends, JobFilter, Page, Place, Rows, Shown, TaskFilter};

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
    error: Option<String>,
    since: Option<String>,
    until: Option<String>,
    id: Option<String>,
    after: Option<String>,
    limit: Option<String>,
}

impl Asked {
    fn limit(&self) -> Result<u32, Box<Response>> {
        let limit = self.limit.as_ref().map_or(Ok(PAGE_ROWS_DEFAULT), |text| text.parse());
        let limit = limit.ok().filter(|n| (1..=PAGE_ROWS_MAX).contains(n));
        limit.ok_or_else(|| bad(&format!("limit must be a number from 1 to {PAGE_ROWS_MAX}")))
    }

    fn after<T>(&self, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Box<Response>> {
        let Some(text) = &self.after else { return Ok(None) };
        parse(text).map(Some).ok_or_else(|| bad("after must be the `next` of the page before, unchanged"))
    }

    fn page(&self) -> Result<Page, Box<Response>> {
        Ok(Page { limit: self.limit()?, after: self.after(|text| text.parse().ok())? })
    }

    fn filter(&self) -> Result<TaskFilter, Box<Response>> {
        let names = crate::store::STATUS_NAMES;
        if self.status.as_ref().is_some_and(|status| !names.contains(&status.as_str())) {
            return Err(bad(&format!("status must be one of {}", names.join(", "))));
        }
        Ok(TaskFilter {
            job: self.job.clone(),
            queue: self.queue.clone(),
            kind: self.kind.clone(),
            status: self.status.clone(),
            worker: self.worker.clone(),
            error: self.error.clone().filter(|text| !text.is_empty()),
            since_ms: time("since", self.since.as_deref())?,
            until_ms: time("until", self.until.as_deref())?,
        })
    }
}

/// A time as it is asked for: RFC 3339, or Unix time in milliseconds.
pub(super) fn time(name: &str, text: Option<&str>) -> Result<Option<i64>, Box<Response>> {
    let Some(text) = text else { return Ok(None) };
    let read = text.parse().ok().or_else(|| Some(text.parse::<jiff::Timestamp>().ok()?.as_millisecond()));
    let wanted = "an RFC 3339 time such as 2026-01-31T12:00:00Z, or Unix time in milliseconds";
    read.map(Some).ok_or_else(|| bad(&format!("{name} must be {wanted}")))
}

pub(super) fn bad(text: &str) -> Box<Response> {
    Box::new(error(StatusCode::BAD_REQUEST, text))
}

type AppState = State<Arc<App>>;

/// One page of a list.
#[derive(Serialize)]
struct Listed<T> {
    rows: Vec<T>,
    next: Option<String>,
}

fn rows(found: anyhow::Result<Rows>) -> Response {
    match found {
        Ok((rows, next)) => Json(Listed { rows, next: next.map(|n| n.to_string()) }).into_response(),
        Err(fault) => failed(&fault),
    }
}

fn ends(found: anyhow::Result<Ends>) -> Response {
    match found {
        Ok((rows, next)) => Json(Listed { rows, next: next.map(Place::cursor) }).into_response(),
        Err(fault) => failed(&fault),
    }
}

fn failed(fault: &anyhow::Error) -> Response {
    tracing::error!(error = %format!("{fault:#}"), "the store cannot be read");
    error(StatusCode::INTERNAL_SERVER_ERROR, "the store cannot be read; the collector's log has the reason")
}

fn one(found: anyhow::Result<Vec<Shown>>, what: &str) -> Response {
    match found {
        Err(fault) => failed(&fault),
        Ok(found) => match found.as_slice() {
            [] => error(StatusCode::NOT_FOUND, &format!("no such {what} is stored (yet)")),
            [only] => Json(only).into_response(),
            several => {
                let queues: Vec<&str> = several.iter().filter_map(|t| t.text("queue")).collect();
                let text = format!("several queues have this id, name one with &queue=: {}", queues.join(", "));
                error(StatusCode::CONFLICT, &text)
            }
        },
    }
}

pub(super) async fn tasks(State(app): AppState, Query(asked): Query<Asked>) -> Response {
    match (asked.page(), asked.filter()) {
        (Ok(page), Ok(filter)) => rows(app.store.tasks(&filter, page).await),
        (Err(response), _) | (_, Err(response)) => *response,
    }
}

pub(super) async fn task(State(app): AppState, Query(asked): Query<Asked>) -> Response {
    let Some(id) = &asked.id else { return error(StatusCode::BAD_REQUEST, "name the task: ?id=…") };
    one(app.store.task(id, asked.queue.as_deref()).await, "task")
}

pub(super) async fn jobs(State(app): AppState, Query(asked): Query<Asked>) -> Response {
    match asked.page() {
        Ok(page) => rows(app.store.jobs(&JobFilter::default(), page).await),
        Err(response) => *response,
    }
}

pub(super) async fn job(State(app): AppState, Path(job): Path<String>) -> Response {
    one(app.store.job(&job).await.map(|found| found.into_iter().collect()), "job")
}

pub(super) async fn job_results(State(app): AppState, Path(job): Path<String>, Query(asked): Query<Asked>) -> Response {
    match (asked.limit(), asked.after(Place::parse)) {
        (Ok(limit), Ok(after)) => ends(app.store.job_results(&job, 0, limit, after).await),
        (Err(response), _) | (_, Err(response)) => *response,
    }
}

pub(super) async fn workers(State(app): AppState) -> Response {
    Json(Listed { rows: app.workers.rows(), next: None }).into_response()
}

pub(super) async fn dead(State(app): AppState, Query(asked): Query<Asked>) -> Response {
    match (asked.page(), asked.filter()) {
        (Ok(page), Ok(filter)) => rows(app.store.dead(&filter, asked.reason.as_deref(), page).await),
        (Err(response), _) | (_, Err(response)) => *response,
    }
}

pub(super) async fn dead_letter(State(app): AppState, Query(asked): Query<Asked>) -> Response {
    let Some(id) = &asked.id else { return error(StatusCode::BAD_REQUEST, "name the task: ?id=…") };
    one(app.store.dead_letter(id, asked.queue.as_deref()).await, "dead letter")
}

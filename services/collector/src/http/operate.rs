//! What an operator may do over HTTP with queues and workers. Each answers when it is done.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use millpond::bus::ctl::{Answer, AskError, drain_subject};
use millpond::bus::subject::check_token;
use millpond::bus::topology::TopologyError;
use serde::Deserialize;
use serde_json::json;

use super::cancel::OPERATOR;
use super::{App, error};

/// How long a worker may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

type AppState = State<Arc<App>>;

fn refused(fault: &TopologyError) -> Response {
    error(StatusCode::BAD_GATEWAY, &fault.to_string())
}

/// How long a pause lasts.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Pause {
    for_ms: Option<u64>,
}

pub(super) async fn pause(State(app): AppState, Path(queue): Path<String>, Json(asked): Json<Pause>) -> Response {
    let paused = app.bus.pause_queue(&queue, asked.for_ms.map(Duration::from_millis)).await;
    app.queues.forget().await;
    match paused {
        Ok(()) => Json(json!({ "queue": queue, "paused": true })).into_response(),
        Err(fault) => refused(&fault),
    }
}

pub(super) async fn resume(State(app): AppState, Path(queue): Path<String>) -> Response {
    let resumed = app.bus.resume_queue(&queue).await;
    app.queues.forget().await;
    match resumed {
        Ok(()) => Json(json!({ "queue": queue, "paused": false })).into_response(),
        Err(fault) => refused(&fault),
    }
}

/// Asks a worker to drain: it takes nothing more, finishes what runs, and leaves.
pub(super) async fn drain(State(app): AppState, Path(worker): Path<String>) -> Response {
    if let Err(wrong) = check_token("worker", &worker) {
        return error(StatusCode::BAD_REQUEST, &wrong.to_string());
    }
    match app.bus.ask(&drain_subject(&worker), &json!({}), ANSWER_WITHIN).await {
        Ok(Answer::Ok(_)) => Json(json!({ "worker": worker, "draining": true })).into_response(),
        Ok(Answer::Error(text)) => error(StatusCode::BAD_GATEWAY, &text),
        Err(AskError::Nobody(_)) => {
            error(StatusCode::NOT_FOUND, &format!("no worker of the name {worker} is connected"))
        }
        Err(fault) => error(StatusCode::BAD_GATEWAY, &fault.to_string()),
    }
}

/// What to remove.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Purge {
    kind: Option<String>,
    keep_running: bool,
}

pub(super) async fn purge(State(app): AppState, Path(queue): Path<String>, Json(asked): Json<Purge>) -> Response {
    let names = [("queue", Some(&queue)), ("kind", asked.kind.as_ref())];
    for (what, name) in names.iter().filter_map(|(what, name)| Some((*what, (*name)?))) {
        if let Err(wrong) = check_token(what, name) {
            return error(StatusCode::BAD_REQUEST, &wrong.to_string());
        }
    }
    let purged = app.bus.purge_queue(&queue, asked.kind.as_deref(), !asked.keep_running, OPERATOR).await;
    app.queues.forget().await;
    match purged {
        Ok(record) => Json(json!(record)).into_response(),
        Err(fault) => refused(&fault),
    }
}

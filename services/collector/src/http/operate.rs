//! What an operator may do over HTTP: dead letters, queues. Each answers when it is done.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use millpond::bus::ctl::{Answer, AskError, CTL_REPLAY, drain_subject};
use millpond::bus::subject::check_token;
use millpond::bus::topology::TopologyError;
use serde::Deserialize;
use serde_json::{Value, json};

use super::cancel::OPERATOR;
use super::{App, error};
use crate::store::Letter;

/// Letters of one request at the most.
const LETTERS_MAX: usize = 1000;
/// How long a worker may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long one replay may take.
const REPLAY_WITHIN: Duration = Duration::from_secs(10);

type AppState = State<Arc<App>>;

/// Dead letters to do something with.
#[derive(Deserialize)]
pub(super) struct Letters {
    letters: Vec<Letter>,
}

impl Letters {
    fn check(&self) -> Result<(), Box<Response>> {
        let fits = self.letters.len() <= LETTERS_MAX;
        let text = format!("at most {LETTERS_MAX} letters at once; send the others in another request");
        if fits { Ok(()) } else { Err(Box::new(error(StatusCode::BAD_REQUEST, &text))) }
    }
}

fn told(letter: &Letter, done: Result<(), String>) -> Value {
    let (ok, error) = (done.is_ok(), done.err());
    json!({ "queue": letter.queue, "id": letter.id, "attempt": letter.attempt, "ok": ok, "error": error })
}

/// Runs each again, one after the other; one that fails does not stop the others.
pub(super) async fn retry(State(app): AppState, Json(asked): Json<Letters>) -> Response {
    if let Err(refused) = asked.check() {
        return *refused;
    }
    let mut rows = Vec::with_capacity(asked.letters.len());
    for letter in &asked.letters {
        rows.push(told(letter, replay(&app, letter).await));
    }
    Json(json!({ "rows": rows })).into_response()
}

/// First the next attempt, stored; then that letter goes, and none later.
async fn replay(app: &App, letter: &Letter) -> Result<(), String> {
    let found = app.store.letter(letter).await.map_err(|e| format!("the store cannot be read: {e:#}"))?;
    let Some(replay) = found else { return Err("it does not wait (any more)".to_owned()) };
    match app.bus.ask(CTL_REPLAY, &replay, REPLAY_WITHIN).await {
        Ok(Answer::Ok(_)) => {}
        Ok(Answer::Error(text)) => return Err(text),
        Err(fault @ AskError::Nobody(_)) => {
            return Err(format!("{fault}; is a producer running (`millpond producer run`)?"));
        }
        Err(fault) => return Err(fault.to_string()),
    }
    app.store.replayed(letter).await.map_err(|e| format!("it runs again, but the store cannot be written: {e:#}"))
}

pub(super) async fn purge_letters(State(app): AppState, Json(asked): Json<Letters>) -> Response {
    if let Err(refused) = asked.check() {
        return *refused;
    }
    let mut rows = Vec::with_capacity(asked.letters.len());
    for letter in &asked.letters {
        let done = match app.store.purge_letter(letter).await {
            Ok(true) => Ok(()),
            Ok(false) => Err("it does not wait (any more)".to_owned()),
            Err(fault) => Err(format!("the store cannot be written: {fault:#}")),
        };
        rows.push(told(letter, done));
    }
    Json(json!({ "rows": rows })).into_response()
}

fn refused(fault: &TopologyError) -> Response {
    error(StatusCode::BAD_GATEWAY, &fault.to_string())
}

pub(super) async fn queues(State(app): AppState) -> Response {
    match app.bus.queues_with_limits().await {
        Ok(rows) => Json(json!({ "rows": rows, "next": null })).into_response(),
        Err(fault) => refused(&fault),
    }
}

/// How long a pause lasts.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Pause {
    for_ms: Option<u64>,
}

pub(super) async fn pause(State(app): AppState, Path(queue): Path<String>, Json(asked): Json<Pause>) -> Response {
    match app.bus.pause_queue(&queue, asked.for_ms.map(Duration::from_millis)).await {
        Ok(()) => Json(json!({ "queue": queue, "paused": true })).into_response(),
        Err(fault) => refused(&fault),
    }
}

pub(super) async fn resume(State(app): AppState, Path(queue): Path<String>) -> Response {
    match app.bus.resume_queue(&queue).await {
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
    match app.bus.purge_queue(&queue, asked.kind.as_deref(), !asked.keep_running, OPERATOR).await {
        Ok(record) => Json(json!(record)).into_response(),
        Err(fault) => refused(&fault),
    }
}

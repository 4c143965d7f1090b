//! Why has this task no result? One sentence, from what is stored and where the bus has it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use millpond::bus::read::find::TaskLocation;
use millpond_api::tasks::TaskIdQuery;
use serde_json::{Value, json};

use super::asked::Asked;
use super::{App, error};
use crate::store::PURGED;

/// A state and the sentence that explains it.
type Why = (&'static str, String);

/// Why a task has no result: one sentence.
#[utoipa::path(get, path = "/why", tag = "read", params(TaskIdQuery), responses((status = 200, description = "It", body = super::rows::Why,
    example = json!({"id": "order-7", "state": "paused", "sentence": "queue default is paused; `millpond queue resume default` goes on"}))))]
pub(super) async fn why(State(app): State<Arc<App>>, Asked((), asked): Asked<(), TaskIdQuery>) -> Response {
    let TaskIdQuery { id, queue } = asked;
    let stored = match app.store.task(&id, queue.as_deref()).await {
        Ok(stored) => stored.into_iter().next().and_then(|task| serde_json::to_value(task).ok()),
        Err(fault) => return error(StatusCode::INTERNAL_SERVER_ERROR, &format!("the store cannot be read: {fault}")),
    };
    let (state, sentence) = match stored.as_ref().and_then(ended) {
        Some(why) => why,
        None => match now(&app, &id, queue.as_deref(), stored.as_ref()).await {
            Ok(why) => why,
            Err(fault) => return error(StatusCode::BAD_GATEWAY, &fault),
        },
    };
    Json(json!({ "id": id, "state": state, "sentence": sentence })).into_response()
}

fn text(value: &Value, field: &str) -> String {
    match value.get(field) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// `type: message` of a failure.
fn failure(of: &Value) -> String {
    let failure = of.get("failure").cloned().unwrap_or_default();
    format!("{}: {}", text(&failure, "type"), text(&failure, "message"))
}

fn ended(task: &Value) -> Option<Why> {
    let attempt = text(task, "attempt");
    match text(task, "status").as_str() {
        "done" => Some(("done", format!("it is done: attempt {attempt} on {}", text(task, "worker")))),
        "cancelled" => {
            let last = task.get("attempts").and_then(Value::as_array).and_then(|attempts| attempts.last());
            let purged = last.and_then(|last| last.get("failure")).filter(|failure| failure["type"] == PURGED);
            let how = purged.map_or_else(|| "cancelled".to_owned(), |failure| text(failure, "message"));
            Some(("cancelled", format!("it was {how}")))
        }
        "dead" => {
            let last = task.get("replays").and_then(Value::as_array).and_then(|replays| replays.last());
            if let Some(moved) = last.filter(|last| last.get("new_id").is_some() && !task["dead"].is_object()) {
                let (to, id) = (text(moved, "to_queue"), text(moved, "new_id"));
                let sentence =
                    format!("it failed for good in attempt {attempt}, and was moved to queue {to}: see {id}");
                return Some(("dead", sentence));
            }
            let dead = task.get("dead").filter(|dead| dead.is_object());
            let why = dead.map_or_else(String::new, |dead| format!(" ({}), {}", text(dead, "reason"), failure(dead)));
            Some(("dead", format!("it failed for good in attempt {attempt}{why}; `millpond dead retry` runs it again")))
        }
        _ => None,
    }
}

async fn now(app: &App, id: &str, queue: Option<&str>, stored: Option<&Value>) -> Result<Why, String> {
    let queue = queue.map(str::to_owned).or_else(|| stored.map(|task| text(task, "queue")));
    let found = app.bus.find(id, queue.as_deref()).await.map_err(|e| e.to_string())?;
    let last = stored.and_then(|task| task.get("attempts")?.as_array()?.last()).filter(|a| a["failure"].is_object());
    let last = last.map_or_else(String::new, |a| format!(" (attempt {} failed, {})", text(a, "attempt"), failure(a)));
    Ok(match found {
        TaskLocation::Held { worker, .. } => ("running", format!("it runs on {worker}{last}")),
        TaskLocation::Scheduled { attempt, at, .. } => {
            ("scheduled", format!("it waits until {at} for attempt {attempt}{last}"))
        }
        TaskLocation::Stored { queue, kind, ahead } => waits(app, &queue, &kind, ahead).await?,
        TaskLocation::Nowhere { .. } if stored.is_some() => {
            match text(&stored.cloned().unwrap_or_default(), "status") {
                status if status == "partial" => {
                    ("running", "some items of its batch have ended, this one is under way".to_owned())
                }
                _ => ("running", format!("its next attempt is under way{last}")),
            }
        }
        TaskLocation::Nowhere { looked_at_all: true } => (
            "unknown",
            "no such task waits, runs or has ended: it was never accepted, a purge removed it, or its id is another"
                .to_owned(),
        ),
        TaskLocation::Nowhere { looked_at_all: false } => {
            ("unknown", "it has not ended; more waits than can be looked through, so it may wait far back".to_owned())
        }
    })
}

/// Why it is not taken.
async fn waits(app: &App, queue: &str, kind: &str, ahead: Option<u64>) -> Result<Why, String> {
    let paused = app.bus.queues().await.map_err(|e| e.to_string())?;
    if paused.iter().any(|q| q.queue == queue && q.paused) {
        return Ok(("paused", format!("queue {queue} is paused; `millpond queue resume {queue}` goes on")));
    }
    let live: Vec<Value> = app.workers.rows().iter().map(|row| json!(row)).filter(|w| w["state"] == "live").collect();
    let has = |w: &Value, field: &str, wanted: &str| w[field].as_array().is_some_and(|a| a.iter().any(|v| v == wanted));
    let serving: Vec<&Value> = live.iter().filter(|w| has(w, "queues", queue)).collect();
    if serving.is_empty() {
        let text = format!("no live worker serves queue {queue}; `millpond worker run --queues {queue}` starts one");
        return Ok(("no_worker", text));
    }
    if !serving.iter().any(|w| has(w, "kinds", kind)) {
        return Ok((
            "no_worker",
            format!("none of the {} live workers of queue {queue} knows kind {kind}", serving.len()),
        ));
    }
    let trouble = |w: &&&Value| w["troubles"].get(kind).is_some();
    let known = serving.iter().filter(|w| has(w, "kinds", kind));
    if known.clone().all(|w| trouble(&w))
        && let Some(worker) = known.clone().next()
    {
        let (name, why) = (text(worker, "name"), text(&worker["troubles"], kind));
        return Ok(("no_worker", format!("it waits: the handler of kind {kind} cannot start on {name}: {why}")));
    }
    // Which slots its kind takes is the worker's to know: with as many running as the fewer ones it may have to wait.
    let slots = |w: &Value| w["slots"].as_u64().min(w["io_slots"].as_u64());
    let free = serving.iter().any(|w| w["running"].as_u64() < slots(w));
    Ok(match ahead {
        None if !free => {
            ("waiting", format!("it waits in queue {queue} for a slot; all of {} live workers are busy", serving.len()))
        }
        None => ("running", "it was given to a worker a moment ago".to_owned()),
        Some(ahead) => {
            let text =
                format!("it waits in queue {queue} behind {ahead} others; {} live workers serve it", serving.len());
            ("waiting", text)
        }
    })
}

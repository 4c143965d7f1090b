//! How many tasks may wait in a queue: set by an operator, held to by publishers (`millpond::bus::admit`).

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use millpond::bus::bounds::QueueSettings;
use millpond::bus::subject::check_token;
use serde_json::{Map, Value, json};

use super::{App, error};

const SHAPE: &str = "send {\"max_waiting\": N} with a whole number from 1, or {\"max_waiting\": null} for no limit";

/// Sets the limit, or removes it.
pub(super) async fn set(
    State(app): State<Arc<App>>,
    Path(queue): Path<String>,
    Json(asked): Json<Map<String, Value>>,
) -> Response {
    if let Err(wrong) = check_token("queue", &queue) {
        return error(StatusCode::BAD_REQUEST, &wrong.to_string());
    }
    let max_waiting = match asked.get("max_waiting") {
        Some(Value::Null) => None,
        Some(value) if value.as_u64().is_some_and(|n| n > 0) => value.as_u64(),
        _ => return error(StatusCode::BAD_REQUEST, SHAPE),
    };
    let set = app.bus.set_queue(&queue, QueueSettings { max_waiting }).await;
    app.queues.forget().await;
    match set {
        Ok(()) => Json(json!({ "queue": queue, "max_waiting": max_waiting })).into_response(),
        Err(fault) => error(StatusCode::BAD_GATEWAY, &fault.to_string()),
    }
}

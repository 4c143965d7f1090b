//! What there is now: the queues with what waits longest in them, and what is wrong.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::{App, error};

pub(super) async fn queues(State(app): State<Arc<App>>) -> Response {
    match app.queues.rows().await {
        Ok(rows) => Json(json!({ "rows": rows, "next": null })).into_response(),
        Err(fault) => error(StatusCode::BAD_GATEWAY, &fault.to_string()),
    }
}

pub(super) async fn problems(State(app): State<Arc<App>>) -> Response {
    Json(json!({ "rows": app.problems.rows() })).into_response()
}

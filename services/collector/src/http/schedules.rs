//! The schedules, as the server keeps them: read here, so that whoever has the token can see what will be published.
//! Writing them is for the client role.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use millpond::client::shown;
use serde_json::{Value, json};

use super::{App, error};

pub(super) async fn list(State(app): State<Arc<App>>) -> Response {
    match app.bus.schedules().await {
        Ok(schedules) => {
            let rows: Vec<Value> = schedules.iter().map(shown).collect();
            Json(json!({ "rows": rows, "next": null })).into_response()
        }
        Err(fault) => error(StatusCode::BAD_GATEWAY, &fault.to_string()),
    }
}

//! The schedules, as the server keeps them: read here, so that whoever has the token can see what will be published.
//! Writing them is for the client role.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use millpond::client::shown;
use serde_json::Value;

use super::App;
use super::asked::Asked;
use super::filters::NoQuery;
use super::refusal::Refusal;
use super::rows::{Listed, ScheduleRow};

/// List schedules by name.
#[utoipa::path(get, path = "/schedules", tag = "read", responses((status = 200, description = "All of them", body = Listed<ScheduleRow>,
    example = json!({"rows": [{"name": "report", "queue": "default", "kind": "square", "args": 12, "schedule": "every 10s", "zone": null, "paused": false, "next_ms": 1_800_000_010_000_i64, "timeout_ms": null, "attempts_max": null, "by": "client", "since_ms": 1_800_000_000_000_i64}], "next": null}))))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Asked((), NoQuery {}): Asked<(), NoQuery>,
) -> Result<Json<Listed<Value>>, Refusal> {
    let schedules = app.bus.schedules().await;
    let schedules = schedules.map_err(|fault| Refusal::new(StatusCode::BAD_GATEWAY, fault.to_string()))?;
    Ok(Json(Listed { rows: schedules.iter().map(shown).collect(), next: None }))
}

//! The schedules, as the server keeps them: read here, so that whoever has the token can see what will be published.
//! Writing them is for the client role.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use millpond_api::list::List;
use millpond_api::schedules::ScheduleRow;

use super::App;
use super::asked::Asked;
use super::filters::NoQuery;
use super::refusal::Refusal;

/// List schedules by name.
#[utoipa::path(get, path = "/schedules", tag = "read", responses((status = 200, description = "All of them", body = List<ScheduleRow>,
    example = json!({"rows": [{"name": "report", "queue": "default", "kind": "square", "args": 12, "schedule": "every 10s", "zone": null, "paused": false, "next_ms": 1_800_000_010_000_i64, "timeout_ms": null, "attempts_max": null, "by": "client", "since_ms": 1_800_000_000_000_i64}], "next": null}))))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Asked((), NoQuery {}): Asked<(), NoQuery>,
) -> Result<Json<List<ScheduleRow>>, Refusal> {
    let schedules = app.bus.schedules().await;
    let schedules = schedules.map_err(|fault| Refusal::new(StatusCode::BAD_GATEWAY, fault.to_string()))?;
    let now_ms = millpond::now_ms();
    Ok(Json(List::whole(schedules.iter().map(|schedule| ScheduleRow::new(schedule, now_ms)).collect())))
}

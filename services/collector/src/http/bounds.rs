//! How many tasks may wait in a queue: set by an operator, held to by publishers (`millpond::bus::publish::bounded`).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use millpond::bus::publish::queue_limits::QueueSettings;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::App;
use super::asked::{Asked, Said};
use super::filters::{NoQuery, check_name};
use super::refusal::Refusal;

/// How many tasks may wait.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    /// A whole number from 1, or null for no limit.
    #[serde(deserialize_with = "max_waiting")]
    #[schema(required, minimum = 1)]
    max_waiting: Option<u64>,
}

/// Null has to be said: what is left out is a mistake.
fn max_waiting<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let shape = "max_waiting must be a whole number from 1, or null for no limit";
    let given = Option::<u64>::deserialize(from).map_err(|_| serde::de::Error::custom(shape))?;
    if given == Some(0) { Err(serde::de::Error::custom(shape)) } else { Ok(given) }
}

/// The limit that holds now.
#[derive(Serialize, ToSchema)]
pub(super) struct Bounded {
    queue: String,
    max_waiting: Option<u64>,
}

/// Set how many tasks may wait in a queue, or remove the limit.
#[utoipa::path(post, path = "/queues/{queue}/set", tag = "act", request_body(content = Limit, example = json!({"max_waiting": 100})),
    params(("queue" = String, Path, description = "Its name", example = "low", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses((status = 200, description = "It holds", body = Bounded, example = json!({"queue": "low", "max_waiting": 100}))))]
pub(super) async fn set(
    State(app): State<Arc<App>>,
    Asked(queue, NoQuery {}): Asked<String, NoQuery>,
    Said(Limit { max_waiting }): Said<Limit>,
) -> Result<Json<Bounded>, Refusal> {
    check_name("queue", &queue)?;
    let set = app.bus.set_queue(&queue, QueueSettings { max_waiting }).await;
    set.map_err(|fault| Refusal::new(StatusCode::BAD_GATEWAY, fault.to_string()))?;
    Ok(Json(Bounded { queue, max_waiting }))
}

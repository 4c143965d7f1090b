//! `/v1/schedules/{name}`: recurring tasks, which are made, paused, resumed and removed. Answered after the server has stored the
//! change. The collector lists them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use millpond::bus::operate::control::ScheduleToAdd;
use millpond::bus::publish::{PublishError, RetryDeadline};
use millpond::client::ScheduleChangeError;
use millpond_api::error::ErrorBody;
use millpond_api::schedules::{NewSchedule, ScheduleChanged};
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::request::{JsonBody, NoQuery, PathAndQuery};

use super::tasks::STORE_WITHIN;
use super::{App, unavailable};

/// Who makes a schedule here, in the list of schedules.
const BY_HTTP: &str = "http";
const DEADLINE: RetryDeadline = RetryDeadline::Within(STORE_WITHIN);

type AppState = State<Arc<App>>;
type OfOne = PathAndQuery<String, NoQuery>;

/// The answer for a change that was not made.
fn schedule_error(error: &ScheduleChangeError) -> ErrorAnswer {
    let status = match error {
        ScheduleChangeError::NotFound { .. } => StatusCode::NOT_FOUND,
        ScheduleChangeError::Publish(PublishError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
        error if error.is_passing() => return unavailable(error.to_string()),
        ScheduleChangeError::Unreadable { .. } | ScheduleChangeError::NotSigned { .. } => StatusCode::CONFLICT,
        _ => StatusCode::BAD_REQUEST,
    };
    ErrorAnswer::new(status, error.to_string())
}

/// Make a schedule, which fires from now on.
///
/// One of the same name is replaced, even if it was paused.
#[utoipa::path(put, path = "/v1/schedules/{name}", tag = "schedules", security(("bearer" = [])),
    params(("name" = String, Path, description = "Its name", example = "report", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    request_body(content = NewSchedule, example = json!({"queue": "default", "kind": "square", "schedule": "0 30 4 * * *", "zone": "Europe/Berlin", "args": 12})),
    responses(
        (status = 200, description = "It is stored", body = ScheduleChanged, example = json!({"name": "report", "paused": false})),
        (status = 400, description = "It cannot be, or nats-server would never fire it", body = ErrorBody, example = json!({"error": "the body cannot be read: missing field `schedule`"})),
        (status = 401, description = "No token, or another", body = ErrorBody, example = json!({"error": "send the header `Authorization: Bearer TOKEN` with the producer's token (MILLPOND_TOKEN)"})),
        (status = 413, description = "It is too large", body = ErrorBody, example = json!({"error": "the body has more than 2097152 bytes, which are the most that is read here"})),
        (status = 415, description = "The body is of another type", body = ErrorBody, example = json!({"error": "the body is JSON: send it with Content-Type: application/json"})),
        (status = 429, description = "Too many wrong tokens from this address; `Retry-After` says when to come again", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "10 wrong tokens have come from this address within a minute: come again"})),
        (status = 503, description = "NATS does not answer; come again", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "NATS does not answer: come again"})),
    ))]
pub(super) async fn put(
    State(app): AppState,
    PathAndQuery(name, NoQuery {}): OfOne,
    JsonBody(new): JsonBody<NewSchedule>,
) -> Result<Json<ScheduleChanged>, ErrorAnswer> {
    let NewSchedule { queue, kind, schedule, zone, args, timeout, attempts_max } = new;
    let by = BY_HTTP.to_owned();
    let (args_base64, signature) = (None, None);
    let new =
        ScheduleToAdd { name, queue, kind, schedule, zone, args, args_base64, timeout, attempts_max, by, signature };
    let (schedule, _) = new.schedule().map_err(ErrorAnswer::bad_request)?;
    app.client.add_schedule(&schedule, DEADLINE).await.map_err(|error| schedule_error(&error))?;
    Ok(Json(ScheduleChanged { name: schedule.name, paused: false }))
}

/// Pause a schedule: it does not fire until it is resumed.
#[utoipa::path(post, path = "/v1/schedules/{name}/pause", tag = "schedules", security(("bearer" = [])),
    params(("name" = String, Path, description = "Its name", example = "report", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses(
        (status = 200, description = "It is paused", body = ScheduleChanged, example = json!({"name": "report", "paused": true})),
        (status = 400, description = "The request does not fit", body = ErrorBody, example = json!({"error": "schedule \"a b\" is not a name: letters, digits, - and _, 64 at the most"})),
        (status = 401, description = "No token, or another", body = ErrorBody, example = json!({"error": "send the header `Authorization: Bearer TOKEN` with the producer's token (MILLPOND_TOKEN)"})),
        (status = 404, description = "There is none", body = ErrorBody, example = json!({"error": "there is no schedule report; `millpond schedule ls` lists them"})),
        (status = 409, description = "It cannot be read, or there are keys and nobody who has one has made it", body = ErrorBody, example = json!({"error": "nobody who has a signing key has made schedule report: add it anew with MILLPOND_SIGNING_KEY, or remove it"})),
        (status = 429, description = "Too many wrong tokens from this address; `Retry-After` says when to come again", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "10 wrong tokens have come from this address within a minute: come again"})),
        (status = 503, description = "NATS does not answer; come again", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "NATS does not answer: come again"})),
    ))]
pub(super) async fn pause(
    State(app): AppState,
    PathAndQuery(name, NoQuery {}): OfOne,
) -> Result<Json<ScheduleChanged>, ErrorAnswer> {
    set_paused(&app, name, true).await
}

/// Resume a schedule.
#[utoipa::path(post, path = "/v1/schedules/{name}/resume", tag = "schedules", security(("bearer" = [])),
    params(("name" = String, Path, description = "Its name", example = "report", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses(
        (status = 200, description = "It fires again", body = ScheduleChanged, example = json!({"name": "report", "paused": false})),
        (status = 400, description = "The request does not fit, or nats-server would never fire it", body = ErrorBody, example = json!({"error": "schedule \"a b\" is not a name: letters, digits, - and _, 64 at the most"})),
        (status = 401, description = "No token, or another", body = ErrorBody, example = json!({"error": "send the header `Authorization: Bearer TOKEN` with the producer's token (MILLPOND_TOKEN)"})),
        (status = 404, description = "There is none", body = ErrorBody, example = json!({"error": "there is no schedule report; `millpond schedule ls` lists them"})),
        (status = 409, description = "It cannot be read, or there are keys and nobody who has one has made it", body = ErrorBody, example = json!({"error": "nobody who has a signing key has made schedule report: add it anew with MILLPOND_SIGNING_KEY, or remove it"})),
        (status = 429, description = "Too many wrong tokens from this address; `Retry-After` says when to come again", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "10 wrong tokens have come from this address within a minute: come again"})),
        (status = 503, description = "NATS does not answer; come again", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "NATS does not answer: come again"})),
    ))]
pub(super) async fn resume(
    State(app): AppState,
    PathAndQuery(name, NoQuery {}): OfOne,
) -> Result<Json<ScheduleChanged>, ErrorAnswer> {
    set_paused(&app, name, false).await
}

async fn set_paused(app: &App, name: String, paused: bool) -> Result<Json<ScheduleChanged>, ErrorAnswer> {
    let changed = app.client.pause_schedule(&name, paused, DEADLINE).await.map_err(|error| schedule_error(&error))?;
    Ok(Json(ScheduleChanged { name: changed.name, paused: changed.paused }))
}

/// Remove a schedule. Tasks that it has published already run.
#[utoipa::path(delete, path = "/v1/schedules/{name}", tag = "schedules", security(("bearer" = [])),
    params(("name" = String, Path, description = "Its name", example = "report", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 400, description = "The request does not fit", body = ErrorBody, example = json!({"error": "schedule \"a b\" is not a name: letters, digits, - and _, 64 at the most"})),
        (status = 401, description = "No token, or another", body = ErrorBody, example = json!({"error": "send the header `Authorization: Bearer TOKEN` with the producer's token (MILLPOND_TOKEN)"})),
        (status = 404, description = "There is none", body = ErrorBody, example = json!({"error": "there is no schedule report; `millpond schedule ls` lists them"})),
        (status = 429, description = "Too many wrong tokens from this address; `Retry-After` says when to come again", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "10 wrong tokens have come from this address within a minute: come again"})),
        (status = 503, description = "NATS does not answer; come again", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "NATS does not answer: come again"})),
    ))]
pub(super) async fn delete(
    State(app): AppState,
    PathAndQuery(name, NoQuery {}): OfOne,
) -> Result<StatusCode, ErrorAnswer> {
    app.client.remove_schedule(&name, DEADLINE).await.map_err(|error| schedule_error(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

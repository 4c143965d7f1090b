//! What paths and bodies name, checked.

use axum::http::StatusCode;
use millpond::wire::subject::check_token;
use serde::Deserialize;

use super::refusal::Refusal;

/// A query without fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoQuery {}

/// A name in a path or a body.
pub(super) fn check_name(what: &'static str, name: &str) -> Result<(), Refusal> {
    check_token(what, name).map_err(|wrong| Refusal::new(StatusCode::BAD_REQUEST, wrong.to_string()))
}

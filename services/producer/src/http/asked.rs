//! What a request says: path, query and headers, checked. What does not fit is answered as JSON, like every error.

use std::time::Duration;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use millpond::chain::parse;
use millpond::client::NewTask;
use millpond::config::duration;
use millpond::limits::TASK_ID_BYTES_MAX;
use millpond::retry::parse_attempts_max;
use millpond::task::is_reply_subject;
use millpond::wire::headers::{HEADER_ATTEMPTS_MAX, HEADER_EXPIRES, HEADER_REPLY_TO, HEADER_THEN, HEADER_TIMEOUT, HEADER_TRACEPARENT};
use serde::de::DeserializeOwned;

use super::Refusal;

/// On a request: its task's unique key.
pub(super) const HEADER_UNIQUE: &str = "Millpond-Unique";
/// Names a task, and makes a repeated request harmless.
pub(super) const HEADER_KEY: &str = "Idempotency-Key";
/// How long a task waits at the server before it may start.
const HEADER_DELAY: &str = "Millpond-Delay";

/// Path and query of a request.
pub(super) struct Asked<P, Q>(pub(super) P, pub(super) Q);

impl<S: Send + Sync, P: DeserializeOwned + Send, Q: DeserializeOwned> FromRequestParts<S> for Asked<P, Q> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path: Result<Path<P>, PathRejection> = Path::from_request_parts(parts, state).await;
        let Path(path) = path.map_err(|wrong| Refusal::bad(format!("the path cannot be read: {wrong}")))?;
        let query: Result<Query<Q>, QueryRejection> = Query::from_request_parts(parts, state).await;
        let Query(query) = query.map_err(|wrong| Refusal::bad(format!("the query cannot be read: {wrong}")))?;
        Ok(Self(path, query))
    }
}

/// The media type of the body, without its parameters; none when nothing is said.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let given = headers.get(header::CONTENT_TYPE)?.to_str().unwrap_or("unreadable");
    Some(given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// A header as text.
fn text<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, Refusal> {
    let value = headers.get(name).map(|value| value.to_str());
    value.transpose().map_err(|_| Refusal::bad(format!("{name} must have visible ASCII characters only")))
}

fn time(headers: &HeaderMap, name: &str) -> Result<Option<Duration>, Refusal> {
    let given = text(headers, name)?.map(duration).transpose();
    given.map_err(|wrong| Refusal::bad(format!("{name}: {wrong}")))
}

/// The task that the headers describe; its payload is not there yet.
pub(super) fn task(queue: String, kind: String, job: Option<String>, headers: &HeaderMap) -> Result<NewTask, Refusal> {
    let id = text(headers, HEADER_KEY)?;
    if id.is_some_and(|id| id.is_empty() || id.len() > TASK_ID_BYTES_MAX) {
        return Err(Refusal::bad(format!("{HEADER_KEY} must have 1 to {TASK_ID_BYTES_MAX} bytes")));
    }
    let timeout = time(headers, HEADER_TIMEOUT)?;
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err(Refusal::bad(format!("{HEADER_TIMEOUT} must be longer than nothing, such as 30s")));
    }
    let attempts_max = text(headers, HEADER_ATTEMPTS_MAX)?.map(parse_attempts_max).transpose();
    let attempts_max = attempts_max.map_err(|wrong| Refusal::bad(format!("{HEADER_ATTEMPTS_MAX} {wrong}")))?;
    let at_ms = time(headers, HEADER_DELAY)?.map(after).transpose()?;
    let expires = text(headers, HEADER_EXPIRES)?;
    if expires.is_some_and(|at| at.parse::<jiff::Timestamp>().is_err()) {
        let text = format!("{HEADER_EXPIRES} must be an RFC 3339 time such as 2030-01-31T12:00:00Z");
        return Err(Refusal::bad(text));
    }
    let reply_to = text(headers, HEADER_REPLY_TO)?;
    if reply_to.is_some_and(|subject| !is_reply_subject(subject)) {
        return Err(Refusal::bad(format!("{HEADER_REPLY_TO} must be a subject reply.<x> without wildcards")));
    }
    let then = text(headers, HEADER_THEN)?.map(parse).transpose();
    let then = then.map_err(|wanted| Refusal::bad(format!("{HEADER_THEN} must be {wanted}")))?.unwrap_or_default();
    Ok(NewTask {
        queue,
        kind,
        then,
        unique: text(headers, HEADER_UNIQUE)?.map(str::to_owned),
        id: id.map(str::to_owned),
        job,
        timeout,
        attempts_max,
        expires: expires.map(str::to_owned),
        at_ms,
        traceparent: text(headers, HEADER_TRACEPARENT)?.map(str::to_owned),
        reply_to: reply_to.map(str::to_owned),
        ..Default::default()
    })
}

/// Unix time in milliseconds, this long from now.
fn after(delay: Duration) -> Result<i64, Refusal> {
    let ms = i64::try_from(delay.as_millis()).ok().and_then(|ms| millpond::now_ms().checked_add(ms));
    ms.ok_or_else(|| Refusal::bad(format!("{HEADER_DELAY}: too far away")))
}

/// Many tasks cannot have what is for one.
pub(super) fn check_many(task: &NewTask) -> Result<(), Refusal> {
    let alone = task.unique.is_some() || !task.then.is_empty();
    if alone || task.expires.is_some() || task.reply_to.is_some() || task.at_ms.is_some() {
        let text = format!(
            "{HEADER_EXPIRES}, {HEADER_DELAY}, {HEADER_REPLY_TO}, {HEADER_UNIQUE} and {HEADER_THEN} are for one task (POST /v1/tasks/…); a job cannot have them"
        );
        return Err(Refusal::bad(text));
    }
    Ok(())
}

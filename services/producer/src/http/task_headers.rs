//! The headers of a request that describe a task, checked.

use std::time::Duration;

use axum::http::HeaderMap;
use millpond::chain::parse;
use millpond::client::NewTask;
use millpond::config::duration;
use millpond::retry::parse_attempts_max;
use millpond::task::{check_task_id, is_reply_subject};
use millpond::wire::bounds::parse_expiry;
use millpond::wire::header_names::{self, Way};
use millpond::wire::headers::{
    HEADER_ATTEMPTS_MAX, HEADER_CONTINUATION, HEADER_DELAY, HEADER_EXPIRES, HEADER_IDEMPOTENCY_KEY, HEADER_REPLY_TO,
    HEADER_TIMEOUT, HEADER_TRACEPARENT, HEADER_UNIQUE,
};
use millpond_service::error_answer::ErrorAnswer;

/// A header as text.
fn text<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, ErrorAnswer> {
    let value = headers.get(name).map(|value| value.to_str());
    value.transpose().map_err(|_| ErrorAnswer::bad_request(format!("{name} must have visible ASCII characters only")))
}

fn time(headers: &HeaderMap, name: &str) -> Result<Option<Duration>, ErrorAnswer> {
    let given = text(headers, name)?.map(duration).transpose();
    given.map_err(|wrong| ErrorAnswer::bad_request(format!("{name}: {wrong}")))
}

/// Refuses a header that looks like ours and means nothing here, and one that says two things.
fn check_names(headers: &HeaderMap) -> Result<(), ErrorAnswer> {
    let texts: Vec<(&str, String)> = headers
        .iter()
        .map(|(name, value)| {
            (header_names::canonical(name.as_str()), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect();
    let given: Vec<(&str, &str)> = texts.iter().map(|(name, value)| (*name, value.as_str())).collect();
    header_names::check(&given, Way::Http).map_err(|wrong| ErrorAnswer::bad_request(wrong.to_string()))
}

/// The task that the headers describe; its payload is not there yet.
pub(super) fn task(
    queue: String,
    kind: String,
    job: Option<String>,
    headers: &HeaderMap,
) -> Result<NewTask, ErrorAnswer> {
    check_names(headers)?;
    let id = text(headers, HEADER_IDEMPOTENCY_KEY)?;
    if let Some(Err(wrong)) = id.map(check_task_id) {
        return Err(ErrorAnswer::bad_request(format!("{HEADER_IDEMPOTENCY_KEY}: {wrong}")));
    }
    let timeout = time(headers, HEADER_TIMEOUT)?;
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err(ErrorAnswer::bad_request(format!("{HEADER_TIMEOUT} must be longer than nothing, such as 30s")));
    }
    let attempts_max = text(headers, HEADER_ATTEMPTS_MAX)?.map(parse_attempts_max).transpose();
    let attempts_max =
        attempts_max.map_err(|wrong| ErrorAnswer::bad_request(format!("{HEADER_ATTEMPTS_MAX} {wrong}")))?;
    let at_ms = time(headers, HEADER_DELAY)?.map(after).transpose()?;
    let expires = text(headers, HEADER_EXPIRES)?;
    if let Some(wrong) = expires.and_then(|at| parse_expiry(at).err()) {
        return Err(ErrorAnswer::bad_request(format!("{HEADER_EXPIRES}: {wrong}")));
    }
    let reply_to = text(headers, HEADER_REPLY_TO)?;
    if reply_to.is_some_and(|subject| !is_reply_subject(subject)) {
        return Err(ErrorAnswer::bad_request(format!(
            "{HEADER_REPLY_TO} must be a subject reply.<x> without wildcards"
        )));
    }
    let continuation = text(headers, HEADER_CONTINUATION)?.map(parse).transpose();
    let continuation = continuation
        .map_err(|wrong| ErrorAnswer::bad_request(format!("{HEADER_CONTINUATION}: {wrong}")))?
        .unwrap_or_default();
    Ok(NewTask {
        queue,
        kind,
        continuation,
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
fn after(delay: Duration) -> Result<i64, ErrorAnswer> {
    let ms = i64::try_from(delay.as_millis()).ok().and_then(|ms| millpond::now_ms().checked_add(ms));
    ms.ok_or_else(|| ErrorAnswer::bad_request(format!("{HEADER_DELAY}: too far away")))
}

/// Many tasks cannot have what is for one.
pub(super) fn check_many(task: &NewTask) -> Result<(), ErrorAnswer> {
    let alone = task.unique.is_some() || !task.continuation.is_empty();
    if alone || task.expires.is_some() || task.reply_to.is_some() || task.at_ms.is_some() {
        let text = format!(
            "{HEADER_EXPIRES}, {HEADER_DELAY}, {HEADER_REPLY_TO}, {HEADER_UNIQUE} and {HEADER_CONTINUATION} are for one task (POST /v1/tasks/…); a job cannot have them"
        );
        return Err(ErrorAnswer::bad_request(text));
    }
    Ok(())
}

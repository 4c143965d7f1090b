//! `POST /v1/tasks/{queue}/{kind}`: one task, its arguments the body; or many, a line each (`ndjson`). Answered only
//! after the server has stored them. Health and metrics need no token.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use millpond::bus::Bus;
use millpond::bus::publish::{Patience, PublishError};
use millpond::chain::{HEADER_THEN, parse};
use millpond::client::{Batch, Client, ClientError, MapSpec, NewTask};
use millpond::limits::{ATTEMPTS_MAX_MAX, TASK_BYTES_MAX, TASK_ID_BYTES_MAX};
use millpond::task::{
    HEADER_ATTEMPTS_MAX, HEADER_EXPIRES, HEADER_REPLY_TO, HEADER_TIMEOUT, HEADER_TRACEPARENT, is_reply_subject,
};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use subtle::ConstantTimeEq;

use crate::ndjson;

/// On a request: how long its task waits at the server before it may start.
const HEADER_DELAY: &str = "Millpond-Delay";
/// On a request: its task's unique key.
const HEADER_UNIQUE: &str = "Millpond-Unique";
/// How long a publish may wait for room or for the server before the caller is told to come again.
const STORE_WITHIN: Duration = Duration::from_secs(10);
/// When the caller should come again, in seconds.
const RETRY_AFTER_S: &str = "1";

/// What every request may use.
pub(crate) struct App {
    pub(crate) client: Client,
    pub(crate) bus: Bus,
    pub(crate) token: Arc<str>,
    pub(crate) metrics: PrometheusHandle,
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let tasks =
        Router::new().route("/tasks/{queue}/{kind}", post(publish)).layer(from_fn_with_state(app.clone(), with_token));
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(async |State(app): State<Arc<App>>| app.metrics.render()))
        .nest("/v1", tasks)
        .fallback(async || error(StatusCode::NOT_FOUND, "no such path; publish with POST /v1/tasks/{queue}/{kind}"))
        .with_state(app)
}

/// An error as every caller gets it.
pub(crate) fn error(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
}

async fn with_token(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let given = given.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default();
    if bool::from(given.as_bytes().ct_eq(app.token.as_bytes())) {
        next.run(request).await
    } else {
        error(
            StatusCode::UNAUTHORIZED,
            "send the header `Authorization: Bearer TOKEN` with the producer's token (MILLPOND_TOKEN)",
        )
    }
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    if app.bus.is_connected() {
        "ready\n".into_response()
    } else {
        error(StatusCode::SERVICE_UNAVAILABLE, "not connected to NATS")
    }
}

/// What may be said in the query.
#[derive(Deserialize)]
struct Asked {
    job: Option<String>,
}

async fn publish(
    State(app): State<Arc<App>>,
    Path((queue, kind)): Path<(String, String)>,
    Query(asked): Query<Asked>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let task = match read(queue, kind, asked.job, &parts.headers) {
        Ok(task) => task,
        Err(text) => return error(StatusCode::BAD_REQUEST, &text),
    };
    if ndjson::is_ndjson(&parts.headers) {
        return many(&app, task, &parts.headers, body).await;
    }
    let Ok(body) = axum::body::to_bytes(body, TASK_BYTES_MAX).await else {
        let text = format!("the body could not be read to its end, or has more than {TASK_BYTES_MAX} bytes");
        return error(StatusCode::PAYLOAD_TOO_LARGE, &text);
    };
    if let Err(wrong) = serde_json::from_slice::<&RawValue>(&body) {
        let text = format!(
            "the body is the task's arguments, one JSON value: {wrong}; many tasks are a line each, with Content-Type: application/x-ndjson"
        );
        return error(StatusCode::BAD_REQUEST, &text);
    }
    one(&app, NewTask { payload: body, ..task }).await
}

async fn many(app: &App, task: NewTask, headers: &HeaderMap, body: Body) -> Response {
    let alone = task.unique.is_some() || !task.then.is_empty();
    if alone || task.expires.is_some() || task.reply_to.is_some() || task.at_ms.is_some() {
        let text = format!(
            "{HEADER_EXPIRES}, {HEADER_DELAY}, {HEADER_REPLY_TO}, {HEADER_UNIQUE} and {HEADER_THEN} are for one task; many tasks cannot have them"
        );
        return error(StatusCode::BAD_REQUEST, &text);
    }
    let spec = MapSpec {
        queue: task.queue,
        kind: task.kind,
        job: task.job,
        batch: Batch::Auto,
        ordered: false,
        timeout: task.timeout,
        attempts_max: task.attempts_max,
        then: None,
    };
    ndjson::publish(app, spec, task.id, headers, body).await
}

async fn one(app: &App, task: NewTask) -> Response {
    let stored = tokio::time::timeout(STORE_WITHIN, app.client.submit(&task, Patience::Within(STORE_WITHIN))).await;
    metrics::counter!("millpond_tasks_published_total", "stored" => if matches!(stored, Ok(Ok(_))) { "yes" } else { "no" })
        .increment(1);
    match stored {
        Ok(Ok(stored)) => {
            let answer = json!({ "id": stored.id, "queue": task.queue, "kind": task.kind, "job": task.job, "duplicate": stored.duplicate });
            (StatusCode::ACCEPTED, Json(answer)).into_response()
        }
        Ok(Err(refused)) => answer_error(&refused),
        Err(_) if app.bus.is_connected() => {
            let text = "no room for more tasks now: come again, with the same Idempotency-Key";
            (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, RETRY_AFTER_S)], Json(json!({ "error": text })))
                .into_response()
        }
        Err(_) => {
            error(StatusCode::SERVICE_UNAVAILABLE, "NATS does not answer: come again, with the same Idempotency-Key")
        }
    }
}

fn answer_error(refused: &ClientError) -> Response {
    let status = match refused {
        ClientError::AlreadyThere { .. } => StatusCode::CONFLICT,
        ClientError::Subject(_) | ClientError::NoSuchTime { .. } | ClientError::NotAlone => StatusCode::BAD_REQUEST,
        ClientError::Publish(PublishError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    error(status, &refused.to_string())
}

fn read(queue: String, kind: String, job: Option<String>, headers: &HeaderMap) -> Result<NewTask, String> {
    let get = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let id = get("Idempotency-Key");
    if id.as_ref().is_some_and(|id| id.is_empty() || id.len() > TASK_ID_BYTES_MAX) {
        return Err(format!("Idempotency-Key must have 1 to {TASK_ID_BYTES_MAX} bytes"));
    }
    let timeout = get(HEADER_TIMEOUT).map(|text| millpond::config::duration(&text)).transpose();
    let attempts_max = get(HEADER_ATTEMPTS_MAX).map(|text| text.parse::<u32>()).transpose();
    let attempts_max = attempts_max.ok().filter(|n| n.is_none_or(|n| (1..=ATTEMPTS_MAX_MAX).contains(&n)));
    let delay = get(HEADER_DELAY).map(|text| millpond::config::duration(&text)).transpose();
    let delay_ms = delay.map_err(|e| format!("{HEADER_DELAY}: {e}"))?.map(|delay| delay.as_millis());
    let after = |ms: u128| i64::try_from(ms).ok().and_then(|ms| millpond::now_ms().checked_add(ms));
    let at_ms = delay_ms.map(|ms| after(ms).ok_or_else(|| format!("{HEADER_DELAY}: too far away"))).transpose()?;
    let then = get(HEADER_THEN).map(|text| parse(&text)).transpose();
    let reply_to = get(HEADER_REPLY_TO);
    if reply_to.as_ref().is_some_and(|subject| !is_reply_subject(subject)) {
        return Err(format!("{HEADER_REPLY_TO} must be a subject reply.<x> without wildcards"));
    }
    Ok(NewTask {
        queue,
        kind,
        id,
        job,
        timeout: timeout.map_err(|e| format!("{HEADER_TIMEOUT}: {e}"))?,
        attempts_max: attempts_max
            .ok_or_else(|| format!("{HEADER_ATTEMPTS_MAX} must be from 1 to {ATTEMPTS_MAX_MAX}"))?,
        expires: get(HEADER_EXPIRES),
        at_ms,
        traceparent: get(HEADER_TRACEPARENT),
        reply_to,
        unique: get(HEADER_UNIQUE),
        then: then.map_err(|wanted| format!("{HEADER_THEN} must be {wanted}"))?.unwrap_or_default(),
        ..Default::default()
    })
}

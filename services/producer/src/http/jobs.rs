//! `POST /v1/jobs/{queue}/{kind}`: a job, one task a line, read no faster than the server stores. Answered when all is
//! stored; or, with `wait=true`, by its results as they come, while the lines are still being read. Then nobody may
//! take a cut connection for the end: the last line is a summary, or an error.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use millpond::bus::subject::check_token;
use millpond::chain::Step;
use millpond::client::{Batch, Begin, MapItem, MapRun, MapSpec};
use millpond::job::{JobRecord, JobState};
use millpond::limits::{BATCH_ITEMS_MAX, HEARTBEAT_LOST_AFTER, HTTP_CHUNK_BYTES, HTTP_JOBS_MAX};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use super::asked::{self, Asked, HEADER_KEY};
use super::tasks::{End, Status};
use super::{App, Refusal};
use crate::ndjson;

/// What curl and others say of a body when they are told nothing.
const TYPES_TAKEN_TOO: [&str; 3] = ["application/x-www-form-urlencoded", "application/octet-stream", "text/plain"];

/// What may be said in the query.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct JobQuery {
    /// Its name, a new one; drawn at random when none.
    #[param(example = "report-7", pattern = "^[A-Za-z0-9_-]{1,64}$", nullable = false)]
    job: Option<String>,
    /// Answer with the results as they come, a line each, while the body is still being read.
    #[param(example = true, nullable = false)]
    wait: Option<bool>,
    /// With `wait`: in the order of the input instead of as they come.
    #[param(example = true, nullable = false)]
    ordered: Option<bool>,
    /// Tasks in one message: a number from 1 to 1000, or `auto`: batches form by what the tasks take.
    #[param(example = "auto", pattern = "^(auto|[1-9][0-9]{0,2}|1000)$", nullable = false)]
    batch: Option<String>,
    /// When all of it has ended, run this kind (or `queue.kind`) with the counts as its argument.
    #[param(example = "report", value_type = Option<String>, nullable = false, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    #[serde(default, deserialize_with = "step")]
    then: Option<Step>,
}

fn step<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Step>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| text.parse().map_err(|why| serde::de::Error::custom(format!("then must be {why}")))).transpose()
}

/// A job that is stored.
#[derive(Serialize, ToSchema)]
pub(super) struct StoredJob {
    /// Its name.
    job: String,
    /// How many tasks it has.
    tasks: u64,
    /// The id of the first; the others count on.
    first_id: String,
    /// It was stored before, under this Idempotency-Key: nothing was published.
    duplicate: bool,
}

/// Publish a job: the body has one task's arguments a line (newline-delimited JSON).
///
/// The body is read no faster than the server stores. With `wait=true` the answer begins at once: a line for each task
/// that ended, `{"index", "id", "status", "result" or "failure"}`, and at last a summary
/// `{"job", "total", "done", "dead", "cancelled"}`, or `{"error", "stored", "job"}`. Without one of these the
/// connection was cut. Read while you write: results that nobody reads stop the lines from being read. Who goes away
/// leaves what is stored to run; the job stays open, and is soon shown as stalled.
#[utoipa::path(post, path = "/v1/jobs/{queue}/{kind}", tag = "publish", security(("bearer" = [])),
    params(
        ("queue" = String, Path, description = "Who runs it", example = "default", pattern = "^[A-Za-z0-9_-]{1,64}$"),
        ("kind" = String, Path, description = "Which handler runs it", example = "square", pattern = "^[A-Za-z0-9_-]{1,64}$"),
        JobQuery,
        ("Idempotency-Key" = inline(Option<String>), Header, nullable = false, description = "Names the job instead of `job`: the same request again goes on where it ended", example = "order-7", pattern = "^[A-Za-z0-9_-]{1,64}$"),
        ("Millpond-Timeout" = inline(Option<String>), Header, nullable = false, description = "Timeout of one attempt", example = "30s", pattern = "^[1-9][0-9]{0,3}(ms|s|m|h)$"),
        ("Millpond-Attempts-Max" = inline(Option<u32>), Header, nullable = false, description = "Attempts before a task is a dead letter", example = 3, minimum = 1, maximum = 100),
    ),
    request_body(content = String, content_type = "application/x-ndjson", description = "A task's arguments a line", example = json!("1\n2\n3\n")),
    responses(
        (status = 200, description = "Results as they come (only with `wait=true`)", body = String, content_type = "application/x-ndjson",
            example = json!("{\"index\":0,\"id\":\"report-7.1/0\",\"status\":\"done\",\"result\":1}\n{\"job\":\"report-7\",\"total\":1,\"done\":1,\"dead\":0,\"cancelled\":0}\n")),
        (status = 202, description = "All is stored", body = StoredJob, example = json!({"job": "report-7", "tasks": 3, "first_id": "report-7.1/0", "duplicate": false})),
        (status = 400, description = "Something said does not fit; what stands before a bad line is stored", body = Refusal, example = json!({"error": "item 2 of the input: line 3 is not one JSON value: expected value at line 1 column 1", "stored": 2, "job": "report-7"})),
        (status = 401, description = "No token, or another", body = Refusal, example = json!({"error": "send the header `Authorization: Bearer TOKEN` with the producer's token (MILLPOND_TOKEN)"})),
        (status = 409, description = "There is a job of this name, or it was begun with other lines", body = Refusal, example = json!({"error": "there is a job report-7 already; choose another name"})),
        (status = 413, description = "A task is too large", body = Refusal, example = json!({"error": "message of 2000000 bytes for tasks.default.square is too large: message size exceeds maximum allowed", "stored": 0, "job": "report-7"})),
        (status = 415, description = "The body is of another type", body = Refusal, example = json!({"error": "a job's tasks are a line each, application/x-ndjson, not application/json"})),
        (status = 429, description = "Too many jobs at once; `Retry-After` says when to come again", body = Refusal, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "64 jobs are being read already: come again"})),
        (status = 503, description = "NATS does not answer; with an Idempotency-Key the same request goes on later", body = Refusal, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "no answer from nats-server", "stored": 2, "job": "report-7"})),
    ))]
pub(super) async fn publish(
    State(app): State<Arc<App>>,
    Asked((queue, kind), query): Asked<(String, String), JobQuery>,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    check_type(&parts.headers)?;
    let task = asked::task(queue, kind, None, &parts.headers)?;
    asked::check_many(&task)?;
    let wait = query.wait == Some(true);
    if query.ordered.is_some() && !wait {
        return Err(Refusal::bad("ordered says how results come: it goes with wait=true"));
    }
    let key = task.id;
    if let Some(key) = &key {
        check_key(key, &query)?;
    }
    let spec = MapSpec {
        queue: task.queue,
        kind: task.kind,
        batch: batch(query.batch.as_deref())?,
        begin: if key.is_some() { Begin::GoOn } else { Begin::New },
        job: key.clone().or(query.job),
        ordered: query.ordered == Some(true),
        timeout: task.timeout,
        attempts_max: task.attempts_max,
        then: query.then,
    };
    if wait { stream(app, spec, body).await } else { store(&app, spec, body).await }
}

fn check_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(given) = asked::media_type(headers) else { return Ok(()) };
    let taken = ndjson::TYPES.contains(&given.as_str()) || TYPES_TAKEN_TOO.contains(&given.as_str());
    let text = || format!("a job's tasks are a line each, {}, not {given}; POST /v1/tasks/… takes one", ndjson::TYPE);
    taken.then_some(()).ok_or_else(|| Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text()))
}

/// A key names the job: what is sent again goes on where it ended.
fn check_key(key: &str, query: &JobQuery) -> Result<(), Refusal> {
    if query.job.is_some() {
        return Err(Refusal::bad(format!("give either ?job= or an {HEADER_KEY}: the key names the job")));
    }
    check_token("Idempotency-Key of a job (it names it)", key).map_err(|wrong| Refusal::bad(wrong.to_string()))
}

fn batch(asked: Option<&str>) -> Result<Batch, Refusal> {
    match asked {
        None | Some("auto") => Ok(Batch::Auto),
        Some(text) => match text.parse() {
            Ok(items) if (1..=BATCH_ITEMS_MAX).contains(&items) => Ok(Batch::Fixed(items)),
            _ => Err(Refusal::bad(format!("batch must be auto, or a number from 1 to {BATCH_ITEMS_MAX}"))),
        },
    }
}

fn busy() -> Refusal {
    Refusal::busy(format!("{HTTP_JOBS_MAX} jobs are being read already: come again"))
}

/// Stores all of it, and says so.
async fn store(app: &App, spec: MapSpec, body: Body) -> Result<Response, Refusal> {
    let Ok(_permit) = app.jobs.try_acquire() else { return Err(busy()) };
    let named = spec.job.clone();
    let done = app.client.publish_all(spec, ndjson::lines(body)).await;
    let stored = done.as_ref().map_or_else(|e| e.stored, |all| if all.duplicate { 0 } else { all.tasks });
    count(stored);
    match done {
        Ok(all) => {
            let first_id = format!("{}.{}/0", all.job, all.epoch);
            let answer = StoredJob { job: all.job, tasks: all.tasks, first_id, duplicate: all.duplicate };
            Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
        }
        Err(failed) => Err(Refusal::from(&failed.error).of_job(failed.stored, named)),
    }
}

fn count(stored: u64) {
    metrics::counter!("millpond_tasks_published_total", "stored" => "yes").increment(stored);
}

/// Stores it and writes each end as it comes.
async fn stream(app: Arc<App>, spec: MapSpec, body: Body) -> Result<Response, Refusal> {
    let Ok(permit) = app.jobs.clone().try_acquire_owned() else { return Err(busy()) };
    let run = app.client.map(spec, ndjson::lines(body)).await.map_err(|fault| Refusal::from(&fault))?;
    let results = Results { app, run, ended: [0; 3], over: false, _permit: permit };
    let lines = futures_util::stream::unfold(results, async |mut results| {
        let chunk = results.chunk().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), results))
    });
    Ok(([(header::CONTENT_TYPE, ndjson::TYPE)], Body::from_stream(lines)).into_response())
}

/// A job's results on their way to the caller. Dropped when the caller is gone: then the job's producer is gone too.
struct Results {
    app: Arc<App>,
    run: MapRun,
    /// Tasks that are done, dead and cancelled.
    ended: [u64; 3],
    /// The last line is written.
    over: bool,
    _permit: OwnedSemaphorePermit,
}

/// A task of the job that ended.
#[derive(Serialize)]
struct ItemLine {
    index: u64,
    id: String,
    #[serde(flatten)]
    end: End,
}

impl Results {
    /// The next lines: what is there, at least one; none after the last.
    async fn chunk(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let shutdown = self.app.shutdown.clone();
        let mut next = tokio::select! {
            next = self.run.next() => next,
            () = shutdown.cancelled() => {
                let line = json!({ "error": "the producer service stops; what is stored runs on", "stored": self.run.stored(), "job": self.run.job() });
                return Some(self.last(&line));
            }
        };
        let mut lines = Vec::new();
        loop {
            match next {
                Some(Ok(item)) => self.item(item, &mut lines),
                Some(Err(fault)) => {
                    let line =
                        json!({ "error": fault.to_string(), "stored": self.run.stored(), "job": self.run.job() });
                    lines.extend(self.last(&line));
                    return Some(lines.into());
                }
                None => {
                    let [done, dead, cancelled] = self.ended;
                    let total = self.run.read();
                    let line = json!({ "job": self.run.job(), "total": total, "done": done, "dead": dead, "cancelled": cancelled });
                    lines.extend(self.last(&line));
                    return Some(lines.into());
                }
            }
            if lines.len() >= HTTP_CHUNK_BYTES {
                return Some(lines.into());
            }
            match self.run.next().now_or_never() {
                Some(more) => next = more,
                None => return Some(lines.into()),
            }
        }
    }

    fn item(&mut self, item: MapItem, lines: &mut Vec<u8>) {
        let end = End::from(item.end);
        let place = match end.status {
            Status::Done => 0,
            Status::Dead => 1,
            Status::Cancelled => 2,
        };
        if let Some(count) = self.ended.get_mut(place) {
            *count += 1;
        }
        let id = self.run.task_id(item.index);
        let line = ItemLine { index: item.index, id, end };
        // Nothing in it can fail to be written.
        let _ = serde_json::to_writer(&mut *lines, &line);
        lines.push(b'\n');
    }

    fn last(&mut self, line: &serde_json::Value) -> Bytes {
        self.over = true;
        Bytes::from(format!("{line}\n"))
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        count(self.run.stored());
    }
}

/// Where a job stands.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Standing {
    /// Its producer still adds tasks.
    Open,
    /// Its producer is gone before all was published.
    Stalled,
    /// All its tasks are published.
    Closed,
    /// It was cancelled.
    Cancelled,
}

/// A job, as its record tells.
#[derive(Serialize, ToSchema)]
pub(super) struct Job {
    /// Its name.
    job: String,
    queue: String,
    kind: String,
    state: Standing,
    /// Tasks that the server has stored, without a gap from the first.
    published: u64,
    /// How many tasks it has; null until its producer has come to the end.
    total: Option<u64>,
    /// When it was made, Unix time in milliseconds.
    created_ms: i64,
    /// When its producer last said that it lives, Unix time in milliseconds.
    heartbeat_ms: i64,
}

impl From<JobRecord> for Job {
    fn from(record: JobRecord) -> Self {
        let silent_ms = u128::try_from(millpond::now_ms().saturating_sub(record.heartbeat_ms)).unwrap_or(0);
        let state = match record.state {
            JobState::Closed => Standing::Closed,
            JobState::Cancelled => Standing::Cancelled,
            JobState::Open if silent_ms > HEARTBEAT_LOST_AFTER.as_millis() => Standing::Stalled,
            JobState::Open => Standing::Open,
        };
        let JobRecord { job, queue, kind, published, total, created_ms, heartbeat_ms, .. } = record;
        Self { job, queue, kind, state, published, total, created_ms, heartbeat_ms }
    }
}

/// How far the publishing of a job has come.
///
/// What became of its tasks is asked of the collector.
#[utoipa::path(get, path = "/v1/jobs/{job}", tag = "publish", security(("bearer" = [])),
    params(("job" = String, Path, description = "Its name", example = "report-7", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses(
        (status = 200, description = "Its record", body = Job, example = json!({"job": "report-7", "queue": "default", "kind": "square", "state": "closed", "published": 3, "total": 3, "created_ms": 1_764_000_000_000_u64, "heartbeat_ms": 1_764_000_000_100_u64})),
        (status = 400, description = "That is no name of a job", body = Refusal, example = json!({"error": "job \"a.b\" must be 1 to 64 characters of A-Z a-z 0-9 _ - and not a lone '-'"})),
        (status = 401, description = "No token, or another", body = Refusal, example = json!({"error": "send the header `Authorization: Bearer TOKEN` with the producer's token (MILLPOND_TOKEN)"})),
        (status = 404, description = "There is no such job", body = Refusal, example = json!({"error": "there is no job report-7"})),
        (status = 503, description = "NATS does not answer", body = Refusal, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "nats refused millpond_jobs: timed out"})),
    ))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Asked(job, Nothing {}): Asked<String, Nothing>,
) -> Result<Json<Job>, Refusal> {
    check_token("job", &job).map_err(|wrong| Refusal::bad(wrong.to_string()))?;
    match app.bus.job(&job).await {
        Ok(Some(entry)) => Ok(Json(entry.record.into())),
        Ok(None) => Err(Refusal::new(StatusCode::NOT_FOUND, format!("there is no job {job}"))),
        Err(fault) => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, fault.to_string())),
    }
}

/// A query that may say nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

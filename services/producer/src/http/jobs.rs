//! `POST /v1/jobs/{queue}/{kind}`: a job, one task a line, read no faster than the server stores. Answered when all is
//! stored; or, with `wait=true`, by its results as they come, while the lines are still being read. Then nobody may
//! take a cut connection for the end: the last line is a summary, or an error.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use millpond::bus::operate::control::{CTL_RESULTS, ControlReply};
use millpond::chain::ChainStep;
use millpond::client::{BatchSize, IfJobExists, MapItem, MapRun, MapSpec, ResultsRequest};
use millpond::job::{JobRecord, JobState};
use millpond::limits::BATCH_ITEMS_MAX;
use millpond::wire::bounds::Bounded;
use millpond::wire::decode::decode;
use millpond::wire::headers::HEADER_IDEMPOTENCY_KEY;
use millpond_api::error::ErrorBody;
use millpond_api::jobs::{JobRow, JobStatus};
use millpond_api::publish::{FinalStatus, JobProgress, JobPublished, JobSummary, JobTaskEnded, PublishJobQuery};
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::request::{NoQuery, PathAndQuery, check_name, media_type};
use millpond_service::server::CHUNK_BYTES;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::tasks::ending;
use super::{App, busy, map_error, task_headers, unavailable};
use crate::ndjson;

/// Jobs whose lines are read, or whose results are written, at once; each may hold 8 MiB of
/// arguments and 16 MiB of results.
pub(super) const JOBS_MAX: usize = 64;

/// How long a collector may take to tell of a job.
const COLLECTOR_WITHIN: Duration = Duration::from_secs(10);

/// Media types that curl and others send for a body where the caller names none.
const TYPES_TAKEN_TOO: [&str; 3] = ["application/x-www-form-urlencoded", "application/octet-stream", "text/plain"];

/// Publish a job: the body has one task's arguments a line (newline-delimited JSON).
///
/// The body is read no faster than the server stores. With `wait=true` the answer begins at once: a line for each task
/// that ended, `{"index", "id", "status", "result" or "failure"}`, and at last a summary
/// `{"job", "total", "done", "dead", "cancelled"}`, or `{"error", "stored", "job"}`. Without one of these the
/// connection was cut. Read while you write: results that nobody reads stop the lines from being read. A caller that goes
/// away leaves what is stored to run; the job stays open, and soon counts as stalled.
#[utoipa::path(post, path = "/v1/jobs/{queue}/{kind}", tag = "publish", security(("bearer" = [])),
    params(
        ("queue" = String, Path, description = "The queue of its tasks", example = "default", pattern = "^[A-Za-z0-9_-]{1,64}$"),
        ("kind" = String, Path, description = "Which handler runs it", example = "square", pattern = "^[A-Za-z0-9_-]{1,64}$"),
        PublishJobQuery,
        ("Idempotency-Key" = inline(Option<String>), Header, nullable = false, description = "Names the job instead of `job`: the same request again goes on where it ended", example = "order-7", pattern = "^[A-Za-z0-9_-]{1,64}$"),
        ("Millpond-Timeout" = inline(Option<String>), Header, nullable = false, description = "Timeout of one attempt", example = "30s", pattern = "^([1-9][0-9]{0,3}(ms|s|m|h)|PT[1-9][0-9]{0,3}S)$"),
        ("Millpond-Attempts-Max" = inline(Option<u32>), Header, nullable = false, description = "Attempts before a task is a dead letter", example = 3, minimum = 1, maximum = 100),
    ),
    request_body(content = String, content_type = "application/x-ndjson", description = "A task's arguments a line", example = json!("1\n2\n3\n")),
    responses(
        (status = 200, description = "Results as they come (only with `wait=true`)", body = String, content_type = "application/x-ndjson",
            example = json!("{\"index\":0,\"id\":\"report-7.1/0\",\"status\":\"done\",\"result\":1}\n{\"job\":\"report-7\",\"total\":1,\"done\":1,\"dead\":0,\"cancelled\":0}\n")),
        (status = 202, description = "All is stored", body = JobPublished, example = json!({"job": "report-7", "tasks": 3, "first_id": "report-7.1/0", "duplicate": false})),
        (status = 400, description = "The request does not fit; what stands before a bad line is stored", body = ErrorBody, example = json!({"error": "item 2 of the input: line 3 is not one JSON value: expected value at line 1 column 1", "stored": 2, "job": "report-7"})),
        (status = 401, description = "No token, or another", body = ErrorBody, example = json!({"error": "send the header `Authorization: Bearer TOKEN` with the producer's token (MILLPOND_TOKEN)"})),
        (status = 409, description = "There is a job of this name, or it was begun with other lines", body = ErrorBody, example = json!({"error": "there is a job report-7 already; choose another name"})),
        (status = 413, description = "A task is too large", body = ErrorBody, example = json!({"error": "message of 2000000 bytes for tasks.default.square is too large: message size exceeds maximum allowed", "stored": 0, "job": "report-7"})),
        (status = 415, description = "The body is of another type", body = ErrorBody, example = json!({"error": "a job's tasks are a line each, application/x-ndjson, not application/json"})),
        (status = 429, description = "Too many jobs at once; `Retry-After` says when to come again", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "64 jobs are being read already: come again"})),
        (status = 503, description = "NATS does not answer; with an Idempotency-Key the same request goes on later", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "no answer from nats-server", "stored": 2, "job": "report-7"})),
    ))]
pub(super) async fn publish(
    State(app): State<Arc<App>>,
    PathAndQuery((queue, kind), query): PathAndQuery<(String, String), PublishJobQuery>,
    request: Request,
) -> Result<Response, ErrorAnswer> {
    let (parts, body) = request.into_parts();
    check_type(&parts.headers)?;
    let task = task_headers::task(queue, kind, None, &parts.headers)?;
    task_headers::check_many(&task)?;
    let wait = query.wait == Some(true);
    if query.ordered.is_some() && !wait {
        return Err(ErrorAnswer::bad_request("ordered says how results come: it goes with wait=true"));
    }
    let key = task.id;
    if let Some(key) = &key {
        check_key(key, &query)?;
    }
    let spec = MapSpec {
        queue: task.queue,
        kind: task.kind,
        batch: batch(query.batch.as_deref())?,
        if_exists: if key.is_some() { IfJobExists::GoOn } else { IfJobExists::Refuse },
        job: key.clone().or(query.job),
        ordered: query.ordered == Some(true),
        finish_broken_input: false,
        timeout: task.timeout,
        attempts_max: task.attempts_max,
        continuation: query.continuation.as_deref().map(step).transpose()?,
    };
    if wait { stream(app, spec, body).await } else { store(&app, spec, body).await }
}

fn check_type(headers: &HeaderMap) -> Result<(), ErrorAnswer> {
    let Some(given) = media_type(headers) else { return Ok(()) };
    let taken = ndjson::TYPES.contains(&given.as_str()) || TYPES_TAKEN_TOO.contains(&given.as_str());
    let text = || format!("a job's tasks are a line each, {}, not {given}; POST /v1/tasks/… takes one", ndjson::TYPE);
    taken.then_some(()).ok_or_else(|| ErrorAnswer::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text()))
}

/// A key names the job: a repeated request goes on where the one before ended.
fn check_key(key: &str, query: &PublishJobQuery) -> Result<(), ErrorAnswer> {
    if query.job.is_some() {
        return Err(ErrorAnswer::bad_request(format!(
            "give either ?job= or an {HEADER_IDEMPOTENCY_KEY}: the key names the job"
        )));
    }
    check_name("Idempotency-Key of a job (it names it)", key)
}

fn step(text: &str) -> Result<ChainStep, ErrorAnswer> {
    text.parse().map_err(|why| ErrorAnswer::bad_request(format!("continuation must be {why}")))
}

fn batch(given: Option<&str>) -> Result<BatchSize, ErrorAnswer> {
    match given {
        None | Some("auto") => Ok(BatchSize::Auto),
        Some(text) => match text.parse() {
            Ok(items) if (1..=BATCH_ITEMS_MAX).contains(&items) => Ok(BatchSize::Fixed(items)),
            _ => Err(ErrorAnswer::bad_request(format!("batch must be auto, or a number from 1 to {BATCH_ITEMS_MAX}"))),
        },
    }
}

fn too_many() -> ErrorAnswer {
    busy(format!("{JOBS_MAX} jobs are being read already: come again"))
}

/// Stores all of it, then answers.
async fn store(app: &App, spec: MapSpec, body: Body) -> Result<Response, ErrorAnswer> {
    let Ok(_permit) = app.jobs.try_acquire() else { return Err(too_many()) };
    let named = spec.job.clone();
    let done = app.client.publish_all(spec, ndjson::lines(body)).await;
    let stored = done.as_ref().map_or_else(|e| e.stored, |all| if all.duplicate { 0 } else { all.tasks });
    count(stored);
    match done {
        Ok(all) => {
            let first_id = format!("{}.{}/0", all.job, all.epoch);
            let answer = JobPublished { job: all.job, tasks: all.tasks, first_id, duplicate: all.duplicate };
            Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
        }
        Err(failed) => Err(map_error(&failed.error).of_job(failed.stored, failed.job.or(named))),
    }
}

fn count(stored: u64) {
    metrics::counter!("millpond_tasks_published_total", "stored" => "yes").increment(stored);
}

/// Stores it and writes each end as it comes.
async fn stream(app: Arc<App>, spec: MapSpec, body: Body) -> Result<Response, ErrorAnswer> {
    let Ok(permit) = app.jobs.clone().try_acquire_owned() else { return Err(too_many()) };
    let run = app.client.map(spec, ndjson::lines(body)).await.map_err(|fault| map_error(&fault))?;
    let results = Results { app, run, done: 0, dead: 0, cancelled: 0, over: false, _permit: permit };
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
    done: u64,
    dead: u64,
    cancelled: u64,
    /// The last line is written.
    over: bool,
    _permit: OwnedSemaphorePermit,
}

impl Results {
    /// The next lines: all that are there, at least one; none after the last.
    async fn chunk(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let shutdown = self.app.shutdown.clone();
        let mut next = tokio::select! {
            next = self.run.next() => next,
            () = shutdown.cancelled() => {
                let mut line = Vec::new();
                self.fail("the producer service stops; what is stored runs on", &mut line);
                return Some(line.into());
            }
        };
        let mut lines = Vec::new();
        loop {
            match next {
                Some(Ok(item)) => self.item(item, &mut lines),
                Some(Err(fault)) => self.fail(fault.to_string(), &mut lines),
                None => self.finish(&mut lines),
            }
            if self.over || lines.len() >= CHUNK_BYTES {
                return Some(lines.into());
            }
            match self.run.next().now_or_never() {
                Some(more) => next = more,
                None => return Some(lines.into()),
            }
        }
    }

    fn item(&mut self, item: MapItem, lines: &mut Vec<u8>) {
        let ending = ending(item.end);
        match ending.status {
            FinalStatus::Done => self.done += 1,
            FinalStatus::Dead => self.dead += 1,
            FinalStatus::Cancelled => self.cancelled += 1,
        }
        write_line(&JobTaskEnded { index: item.index, id: self.run.task_id(item.index), ending }, lines);
    }

    /// The last line of a job that failed.
    fn fail(&mut self, error: impl Into<String>, lines: &mut Vec<u8>) {
        self.over = true;
        let (stored, job) = (Some(self.run.stored()), Some(self.run.job().to_owned()));
        write_line(&ErrorBody { error: error.into(), stored, job }, lines);
    }

    /// The last line of a job that has ended.
    fn finish(&mut self, lines: &mut Vec<u8>) {
        self.over = true;
        let Self { done, dead, cancelled, .. } = *self;
        let job = self.run.job().to_owned();
        write_line(&JobSummary { job, total: self.run.read(), done, dead, cancelled }, lines);
    }
}

fn write_line(line: &impl Serialize, lines: &mut Vec<u8>) {
    // Nothing in these lines can fail to be written: their maps have text as keys, and memory takes all bytes.
    let _ = serde_json::to_writer(&mut *lines, line);
    lines.push(b'\n');
}

impl Drop for Results {
    fn drop(&mut self) {
        count(self.run.stored());
    }
}

fn progress(record: JobRecord) -> JobProgress {
    let state = match record.state {
        JobState::Closed => JobStatus::Closed,
        JobState::Cancelled => JobStatus::Cancelled,
        JobState::Open if record.is_stalled(millpond::now_ms()) => JobStatus::Stalled,
        JobState::Open => JobStatus::Open,
    };
    let JobRecord { job, queue, kind, published, total, created_ms, heartbeat_ms, .. } = record;
    JobProgress { job, queue, kind, state, published, total, created_ms, heartbeat_ms: Some(heartbeat_ms) }
}

/// The row of a job, as a collector answers it; null where nobody knows the job.
#[derive(Deserialize)]
#[serde(transparent)]
struct KnownJob(Option<JobRow>);

impl Bounded for KnownJob {}

/// A job without a record: a collector knows it by its tasks.
async fn session(app: &App, job: &str) -> Result<JobProgress, ErrorAnswer> {
    let unknown =
        |why: String| unavailable(format!("job {job} has no record, and no collector tells of its tasks: {why}"));
    let request = ResultsRequest::Job { job: job.to_owned() };
    let row = match app.bus.request(CTL_RESULTS, &request, COLLECTOR_WITHIN).await {
        Ok(ControlReply::Ok(row)) => {
            decode::<KnownJob>(row.get().as_bytes()).map_err(|wrong| unknown(wrong.to_string()))?
        }
        Ok(ControlReply::Error(why) | ControlReply::Refused(why)) => return Err(unknown(why)),
        Err(error) => return Err(unknown(error.to_string())),
    };
    let row = row.0.ok_or_else(|| ErrorAnswer::not_found(format!("there is no job {job}")))?;
    let JobRow { job, queue, kind, state, total, created_ms, heartbeat_ms, .. } = row;
    let published = row.published.unwrap_or(row.done + row.retrying + row.dead + row.cancelled + row.purged);
    Ok(JobProgress { job, queue, kind, state, published, total, created_ms, heartbeat_ms })
}

/// How far the publishing of a job has come.
///
/// The collector knows what became of its tasks. A job that was made by publishing to subjects that name it is a `session`.
#[utoipa::path(get, path = "/v1/jobs/{job}", tag = "publish", security(("bearer" = [])),
    params(("job" = String, Path, description = "Its name", example = "report-7", pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses(
        (status = 200, description = "Its record", body = JobProgress, example = json!({"job": "report-7", "queue": "default", "kind": "square", "state": "closed", "published": 3, "total": 3, "created_ms": 1_764_000_000_000_u64, "heartbeat_ms": 1_764_000_000_100_u64})),
        (status = 400, description = "The path has no name of a job", body = ErrorBody, example = json!({"error": "job \"a.b\" must be 1 to 64 characters of A-Z a-z 0-9 _ - and not a lone '-'"})),
        (status = 401, description = "No token, or another", body = ErrorBody, example = json!({"error": "send the header `Authorization: Bearer TOKEN` with the producer's token (MILLPOND_TOKEN)"})),
        (status = 404, description = "There is no such job", body = ErrorBody, example = json!({"error": "there is no job report-7"})),
        (status = 429, description = "Too many wrong tokens from this address; `Retry-After` says when to come again", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "10 wrong tokens have come from this address within a minute: come again"})),
        (status = 503, description = "NATS does not answer, or no collector where the job has no record", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "nats refused millpond_jobs: timed out"})),
    ))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    PathAndQuery(job, NoQuery {}): PathAndQuery<String, NoQuery>,
) -> Result<Json<JobProgress>, ErrorAnswer> {
    check_name("job", &job)?;
    match app.bus.job(&job).await {
        Ok(Some(entry)) => Ok(Json(progress(entry.record))),
        Ok(None) => session(&app, &job).await.map(Json),
        Err(fault) => Err(unavailable(fault.to_string())),
    }
}

//! Lists as downloads: all rows, a JSON object a line, read from the store page by page and no faster than the caller
//! takes them. A store that fails on the way cuts the answer off, so that nobody takes it for the whole.

use std::sync::Arc;
use std::vec;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use millpond_api::dead_letters::DeadLetterQuery;
use millpond_api::error::ErrorBody;
use millpond_api::list::PAGE_ROWS_MAX;
use millpond_api::tasks::TaskQuery;
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::request::{NoQuery, PathAndQuery, check_name};
use millpond_service::server::CHUNK_BYTES;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::{App, store_error};
use crate::store::{Page, ResultCursor, StoreError};

/// Exports that are under way at once; each may hold a page.
pub(crate) const EXPORTS_MAX: usize = 16;
/// The media type of newline-delimited JSON.
const NDJSON: &str = "application/x-ndjson";
/// When a caller who was refused may come again, in seconds.
pub(super) const RETRY_AFTER_S: u64 = 5;

type AppState = State<Arc<App>>;

/// Which list, and which of its rows.
enum Selection {
    Tasks(TaskQuery),
    DeadLetters(DeadLetterQuery),
    Results(String),
}

impl Selection {
    /// A page, a line for each row, and where the next one starts: the cursors of the lists.
    async fn page(&self, app: &App, after: Option<&str>) -> anyhow::Result<(Vec<Vec<u8>>, Option<String>)> {
        let page = Page { limit: PAGE_ROWS_MAX, after: after.and_then(|text| text.parse().ok()) };
        match self {
            Self::Tasks(query) => lines(app.store.tasks(query, page).await, |next| next.to_string()),
            Self::DeadLetters(query) => lines(app.store.dead_letters(query, page).await, |next| next.to_string()),
            Self::Results(job) => {
                let after = after.and_then(ResultCursor::parse);
                lines(app.store.job_results(job, 0, PAGE_ROWS_MAX, after).await, ResultCursor::text)
            }
        }
    }
}

fn lines<T: Serialize, C>(
    found: Result<(Vec<T>, Option<C>), StoreError>,
    cursor: impl Fn(C) -> String,
) -> anyhow::Result<(Vec<Vec<u8>>, Option<String>)> {
    let (rows, next) = found?;
    let line = |row: &T| {
        let mut line = serde_json::to_vec(row)?;
        line.push(b'\n');
        Ok(line)
    };
    Ok((rows.iter().map(line).collect::<anyhow::Result<_>>()?, next.map(cursor)))
}

/// One download under way. Dropped when its caller is gone.
struct Export {
    app: Arc<App>,
    selection: Selection,
    /// What was read and not yet written.
    rows: vec::IntoIter<Vec<u8>>,
    next: Option<String>,
    _permit: OwnedSemaphorePermit,
}

impl Export {
    async fn begin(app: Arc<App>, selection: Selection) -> Result<Self, ErrorAnswer> {
        let Ok(permit) = app.exports.clone().try_acquire_owned() else {
            let text = format!("{EXPORTS_MAX} exports are under way already: come again");
            return Err(ErrorAnswer::busy(RETRY_AFTER_S, text));
        };
        app.caught_up().await;
        let (rows, next) = selection.page(&app, None).await.map_err(|fault| store_error(&fault))?;
        Ok(Self { app, selection, rows: rows.into_iter(), next, _permit: permit })
    }

    /// The next lines; none at the end.
    async fn chunk(&mut self) -> anyhow::Result<Option<Bytes>> {
        let mut lines = Vec::new();
        while lines.len() < CHUNK_BYTES {
            if let Some(line) = self.rows.next() {
                lines.extend_from_slice(&line);
                continue;
            }
            let Some(after) = self.next.take() else { break };
            let (rows, next) = self.selection.page(&self.app, Some(&after)).await?;
            (self.rows, self.next) = (rows.into_iter(), next);
        }
        Ok((!lines.is_empty()).then(|| Bytes::from(lines)))
    }

    fn answer(self, name: &str) -> Response {
        let chunks = stream::try_unfold(self, async |mut export| match export.chunk().await {
            Ok(chunk) => Ok(chunk.map(|chunk| (chunk, export))),
            Err(fault) => {
                tracing::error!(error = %format!("{fault:#}"), "an export is cut off: the store cannot be read");
                Err(fault)
            }
        });
        let disposition = format!("attachment; filename=\"{name}.ndjson\"");
        let headers = [(header::CONTENT_TYPE, NDJSON), (header::CONTENT_DISPOSITION, disposition.as_str())];
        (headers, Body::from_stream(chunks)).into_response()
    }
}

/// Download tasks: a row of the list a line.
#[utoipa::path(get, path = "/tasks.ndjson", tag = "read", params(TaskQuery), responses(
    (status = 200, description = "All of them, the newest first; what is cut off is not the whole", body = String, content_type = "application/x-ndjson",
        headers(("Content-Disposition" = String, description = "A name for the file")),
        example = json!("{\"queue\":\"default\",\"id\":\"order-7\",\"kind\":\"square\",\"status\":\"done\",\"result\":144}\n")),
    (status = 429, description = "Too many exports at once", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "16 exports are under way already: come again"}))))]
pub(super) async fn tasks(
    State(app): AppState,
    PathAndQuery((), query): PathAndQuery<(), TaskQuery>,
) -> Result<Response, ErrorAnswer> {
    Ok(Export::begin(app, Selection::Tasks(query)).await?.answer("tasks"))
}

/// Download dead letters: a row of the list a line.
#[utoipa::path(get, path = "/dead.ndjson", tag = "read", params(DeadLetterQuery), responses(
    (status = 200, description = "All of them, the newest first; what is cut off is not the whole", body = String, content_type = "application/x-ndjson",
        headers(("Content-Disposition" = String, description = "A name for the file")),
        example = json!("{\"queue\":\"default\",\"id\":\"order-7\",\"kind\":\"square\",\"attempt\":3,\"reason\":\"exhausted\"}\n")),
    (status = 429, description = "Too many exports at once", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "16 exports are under way already: come again"}))))]
pub(super) async fn dead(
    State(app): AppState,
    PathAndQuery((), query): PathAndQuery<(), DeadLetterQuery>,
) -> Result<Response, ErrorAnswer> {
    Ok(Export::begin(app, Selection::DeadLetters(query)).await?.answer("dead"))
}

/// Download how the tasks of a job ended, by their index: a row of the list a line.
#[utoipa::path(get, path = "/jobs/{job}/results.ndjson", tag = "read",
    params(("job" = String, Path, description = "Its name", example = "report-7", pattern = "^[A-Za-z0-9_-]{1,64}$")), responses(
    (status = 200, description = "All of them; what is cut off is not the whole", body = String, content_type = "application/x-ndjson",
        headers(("Content-Disposition" = String, description = "A name for the file")),
        example = json!("{\"index\":0,\"id\":\"report-7.1/0\",\"queue\":\"default\",\"status\":\"done\",\"result\":0}\n")),
    (status = 429, description = "Too many exports at once", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "16 exports are under way already: come again"}))))]
pub(super) async fn job_results(
    State(app): AppState,
    PathAndQuery(job, NoQuery {}): PathAndQuery<String, NoQuery>,
) -> Result<Response, ErrorAnswer> {
    check_name("job", &job)?;
    Ok(Export::begin(app, Selection::Results(job.clone())).await?.answer(&job))
}

//! Dead letters run again or thrown away over HTTP: some by name, or all that a filter has, page by page. The pace is kept
//! here; a request that would take too long stops early and says where to go on.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use millpond::bus::subject::check_token;
use millpond::limits::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX, TASK_BYTES_MAX};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};

use super::api::{bad, time};
use super::cancel::OPERATOR;
use super::{App, error};
use crate::replays::{Done, How};
use crate::store::{Cursor, Letter, Page, TaskFilter};

/// Letters of one request at the most.
const LETTERS_MAX: usize = PAGE_ROWS_MAX as usize;
/// Letters a second, when nothing else is said.
const RATE_DEFAULT: u32 = 1000;
/// Letters a second at the most.
const RATE_MAX: u32 = 100_000;
/// Letters that are done together.
const TOGETHER_MAX: usize = 100;
/// Such steps in a second, where the rate allows.
const STEPS_PER_SECOND: u32 = 10;
/// No step begins later than this in a request; one may take 10 s itself. Whoever asks waits for 30 s.
const STEPS_FOR: Duration = Duration::from_secs(10);

/// What is asked.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Asked {
    letters: Option<Vec<Letter>>,
    filter: Option<Filter>,
    limit: Option<u32>,
    after: Option<String>,
    dry_run: bool,
    rate: Option<u32>,
    queue: Option<String>,
    arguments: Option<Box<RawValue>>,
}

/// Which letters: a name that is not known here must not mean all of them.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Filter {
    queue: Option<String>,
    kind: Option<String>,
    job: Option<String>,
    reason: Option<String>,
    worker: Option<String>,
    error: Option<String>,
    since: Option<Value>,
    until: Option<Value>,
}

/// What is done with letters.
#[derive(Clone)]
enum Verb {
    Retry(How),
    Purge,
}

/// The letters of one request.
struct Chosen {
    /// Each with the cursor behind it.
    letters: Vec<(String, Letter)>,
    /// There are more behind them.
    more: bool,
    matched: u64,
}

type AppState = State<Arc<App>>;
type Refused = Box<Response>;

/// Runs each again; one that fails does not stop the others.
pub(super) async fn retry(State(app): AppState, Json(asked): Json<Asked>) -> Response {
    let how = How { to_queue: asked.queue.clone(), arguments: asked.arguments.clone(), by: OPERATOR.to_owned() };
    act(&app, &asked, Verb::Retry(how)).await.unwrap_or_else(|refused| *refused)
}

/// Throws each away.
pub(super) async fn purge(State(app): AppState, Json(asked): Json<Asked>) -> Response {
    if asked.queue.is_some() || asked.arguments.is_some() {
        return *bad("queue and arguments are for dead/retry; in a purge the queue belongs into the filter");
    }
    act(&app, &asked, Verb::Purge).await.unwrap_or_else(|refused| *refused)
}

async fn act(app: &App, asked: &Asked, verb: Verb) -> Result<Response, Refused> {
    let rate = asked.rate.unwrap_or(RATE_DEFAULT);
    if !(1..=RATE_MAX).contains(&rate) {
        return Err(bad(&format!("rate must be a number from 1 to {RATE_MAX}, in letters a second")));
    }
    if let Some(queue) = &asked.queue {
        check_token("queue", queue).map_err(|wrong| bad(&wrong.to_string()))?;
    }
    check_arguments(asked)?;
    let chosen = choose(app, asked).await?;
    let mut rows = Vec::with_capacity(chosen.letters.len());
    let share = (rate.div_ceil(STEPS_PER_SECOND) as usize).min(TOGETHER_MAX);
    let mut pace = tokio::time::interval(Duration::from_secs_f64(share as f64 / f64::from(rate)));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let until = Instant::now() + STEPS_FOR;
    for some in chosen.letters.chunks(if asked.dry_run { LETTERS_MAX } else { share }) {
        if !asked.dry_run {
            pace.tick().await;
            if Instant::now() > until {
                break;
            }
        }
        let letters: Vec<Letter> = some.iter().map(|(_, letter)| letter.clone()).collect();
        let done = step(app, &letters, &verb, asked.dry_run).await;
        rows.extend(letters.iter().zip(done).map(|(letter, done)| told(letter, done, asked.dry_run)));
    }
    let last = rows.len().checked_sub(1).and_then(|last| chosen.letters.get(last));
    let is_cut = rows.len() < chosen.letters.len();
    let next = last.map(|(cursor, _)| cursor).filter(|_| is_cut || chosen.more);
    if next.is_some() && !asked.dry_run {
        // Whoever goes on at once keeps the pace too.
        pace.tick().await;
    }
    Ok(Json(json!({ "rows": rows, "next": next, "matched": chosen.matched })).into_response())
}

async fn step(app: &App, letters: &[Letter], verb: &Verb, dry_run: bool) -> Vec<Done> {
    match verb {
        Verb::Retry(how) if dry_run => app.replays.would(letters, how).await,
        Verb::Retry(how) => app.replays.run(letters, how).await,
        Verb::Purge if dry_run => {
            let would = app.replays.would(letters, &How::default()).await;
            would.into_iter().map(|done| done.map(|_| None)).collect()
        }
        Verb::Purge => match app.store.purge_letters(letters).await {
            Ok(purged) => {
                let gone = || Err("it does not wait (any more)".to_owned());
                purged.into_iter().map(|was_there| if was_there { Ok(None) } else { gone() }).collect()
            }
            Err(fault) => letters.iter().map(|_| Err(format!("the store cannot be written: {fault:#}"))).collect(),
        },
    }
}

fn told(letter: &Letter, done: Done, dry_run: bool) -> Value {
    let mut row = json!({ "queue": letter.queue, "id": letter.id, "attempt": letter.attempt, "ok": done.is_ok() });
    if let Some(fields) = row.as_object_mut() {
        if dry_run {
            fields.insert("dry_run".to_owned(), json!(true));
        }
        if let Ok(Some(id)) = &done {
            fields.insert("new_id".to_owned(), json!(id));
        }
        fields.insert("error".to_owned(), json!(done.err()));
    }
    row
}

/// Other arguments are meant for one task.
fn check_arguments(asked: &Asked) -> Result<(), Refused> {
    let Some(arguments) = &asked.arguments else { return Ok(()) };
    if asked.letters.as_ref().is_none_or(|letters| letters.len() != 1) {
        return Err(bad("other arguments go with exactly one letter: name it in letters"));
    }
    let bytes = arguments.get().len();
    if bytes > TASK_BYTES_MAX {
        let text =
            format!("arguments of {bytes} bytes: {TASK_BYTES_MAX} at the most; publish a new task with larger ones");
        return Err(bad(&text));
    }
    Ok(())
}

async fn choose(app: &App, asked: &Asked) -> Result<Chosen, Refused> {
    match (&asked.letters, &asked.filter) {
        (Some(letters), None) => {
            if letters.len() > LETTERS_MAX {
                return Err(bad(&format!("at most {LETTERS_MAX} letters at once; send the others in another request")));
            }
            let skip = asked.after.as_ref().map_or(Some(0), |after| after.parse().ok());
            let skip = skip.ok_or_else(|| bad("after must be the `next` of the answer before, unchanged"))?;
            let named = letters.iter().cloned().enumerate().skip(skip);
            let letters = named.map(|(at, letter)| ((at + 1).to_string(), letter)).collect::<Vec<_>>();
            Ok(Chosen { matched: (letters.len() + skip) as u64, letters, more: false })
        }
        (None, Some(filter)) => by_filter(app, asked, filter).await,
        _ => Err(bad("name the letters ({\"letters\": [{queue, id, attempt}]}) or a filter ({\"filter\": {…}})")),
    }
}

async fn by_filter(app: &App, asked: &Asked, filter: &Filter) -> Result<Chosen, Refused> {
    let limit = asked.limit.unwrap_or(PAGE_ROWS_DEFAULT);
    if !(1..=PAGE_ROWS_MAX).contains(&limit) {
        return Err(bad(&format!("limit must be a number from 1 to {PAGE_ROWS_MAX}")));
    }
    let after = asked.after.as_ref().map(|after| after.parse::<Cursor>()).transpose();
    let after = after.map_err(|_| bad("after must be the `next` of the answer before, unchanged"))?;
    let said = |value: &Option<Value>| value.as_ref().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
    let (since, until) = (said(&filter.since), said(&filter.until));
    let tasks = TaskFilter {
        job: filter.job.clone(),
        queue: filter.queue.clone(),
        kind: filter.kind.clone(),
        status: None,
        worker: filter.worker.clone(),
        error: filter.error.clone().filter(|text| !text.is_empty()),
        since_ms: time("since", since.as_deref())?,
        until_ms: time("until", until.as_deref())?,
    };
    let reason = filter.reason.as_deref();
    let unreadable = |fault: anyhow::Error| {
        Box::new(error(StatusCode::INTERNAL_SERVER_ERROR, &format!("the store cannot be read: {fault:#}")))
    };
    let matched = app.store.count_letters(&tasks, reason).await.map_err(unreadable)?;
    let (found, more) = app.store.letters(&tasks, reason, Page { limit, after }).await.map_err(unreadable)?;
    let letters = found.into_iter().map(|(n, letter)| (n.to_string(), letter)).collect();
    Ok(Chosen { letters, more, matched })
}

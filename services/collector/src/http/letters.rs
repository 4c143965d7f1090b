//! Dead letters run again or thrown away over HTTP: some by name, or all that a filter has, page by page. The pace is kept
//! here; a request that would take too long stops early and says where to go on.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use millpond::limits::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX, TASK_BYTES_MAX};
use millpond_api::dead_letters::{DeadLetterId, DeadLetterQuery};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};

use utoipa::ToSchema;

use super::App;
use super::asked::{Asked as Query, Said, time};
use super::cancel::OPERATOR;
use super::filters::{NoQuery, check_name};
use super::refusal::Refusal;
use super::rows::Settled;
use crate::replays::{ReplayEnd, ReplayOptions};
use crate::store::{ListCursor, Page, StoreError};

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

/// Which letters, and how: `letters` or a `filter`.
#[derive(Deserialize, Default, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Letters {
    /// These, 1000 at the most.
    #[schema(value_type = Option<Vec<DeadLetterId>>, max_items = 1000)]
    letters: Option<Vec<DeadLetterId>>,
    /// All that wait and fit.
    filter: Option<Filter>,
    /// With a filter: so many at the most.
    #[schema(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// The `next` of the answer before, unchanged.
    after: Option<String>,
    /// Only tell what would be done.
    dry_run: bool,
    /// So many a second at the most.
    #[schema(minimum = 1, maximum = 100_000, default = 1000)]
    rate: Option<u32>,
    /// Retry only: in this queue, as new tasks.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    queue: Option<String>,
    /// Retry of one letter only: with these arguments.
    #[schema(value_type = Option<serde_json::Value>)]
    arguments: Option<Box<RawValue>>,
}

/// Which letters: a name that is not known here must not mean all of them.
#[derive(Serialize, Deserialize, Default, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Filter {
    queue: Option<String>,
    kind: Option<String>,
    job: Option<String>,
    reason: Option<String>,
    worker: Option<String>,
    /// Text in the type or the message of the failure.
    error: Option<String>,
    /// Buried then or later: RFC 3339, or Unix time in milliseconds.
    #[schema(value_type = Option<String>, format = "date-time")]
    since: Option<Value>,
    /// Buried before then.
    #[schema(value_type = Option<String>, format = "date-time")]
    until: Option<Value>,
}

/// What is done with letters.
#[derive(Clone)]
enum Verb {
    Retry(ReplayOptions),
    Purge,
}

/// The letters of one request.
struct Chosen {
    /// Each with the cursor behind it.
    letters: Vec<(String, DeadLetterId)>,
    /// There are more behind them.
    more: bool,
    matched: u64,
}

type AppState = State<Arc<App>>;
type Answer = Result<Json<Value>, Refusal>;

/// Run dead letters again, at a pace; one that fails does not stop the others.
#[utoipa::path(post, path = "/dead/retry", tag = "act", request_body(content = Letters, example = json!({"letters": [{"queue": "default", "id": "order-7", "attempt": 3}]})),
    responses((status = 200, description = "What became of each; go on with `next` as `after`", body = Settled,
        example = json!({"rows": [{"queue": "default", "id": "order-7", "attempt": 3, "ok": true, "error": null}], "next": null, "matched": 1}))))]
pub(super) async fn retry(
    State(app): AppState,
    Query((), NoQuery {}): Query<(), NoQuery>,
    Said(asked): Said<Letters>,
) -> Answer {
    let how =
        ReplayOptions { to_queue: asked.queue.clone(), arguments: asked.arguments.clone(), by: OPERATOR.to_owned() };
    act(&app, &asked, Verb::Retry(how)).await
}

/// Throw dead letters away, at a pace; their tasks stay dead.
#[utoipa::path(post, path = "/dead/purge", tag = "act", request_body(content = Letters, example = json!({"letters": [{"queue": "default", "id": "order-7", "attempt": 3}]})),
    responses((status = 200, description = "What became of each; go on with `next` as `after`", body = Settled,
        example = json!({"rows": [{"queue": "default", "id": "order-7", "attempt": 3, "ok": true, "error": null}], "next": null, "matched": 1}))))]
pub(super) async fn purge(
    State(app): AppState,
    Query((), NoQuery {}): Query<(), NoQuery>,
    Said(asked): Said<Letters>,
) -> Answer {
    if asked.queue.is_some() || asked.arguments.is_some() {
        return Err(Refusal::bad(
            "queue and arguments are for dead/retry; in a purge the queue belongs into the filter",
        ));
    }
    act(&app, &asked, Verb::Purge).await
}

async fn act(app: &App, asked: &Letters, verb: Verb) -> Answer {
    let rate = asked.rate.unwrap_or(RATE_DEFAULT);
    if !(1..=RATE_MAX).contains(&rate) {
        return Err(Refusal::bad(format!("rate must be a number from 1 to {RATE_MAX}, in letters a second")));
    }
    if let Some(queue) = &asked.queue {
        check_name("queue", queue)?;
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
        let letters: Vec<DeadLetterId> = some.iter().map(|(_, letter)| letter.clone()).collect();
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
    Ok(Json(json!({ "rows": rows, "next": next, "matched": chosen.matched })))
}

async fn step(app: &App, letters: &[DeadLetterId], verb: &Verb, dry_run: bool) -> Vec<ReplayEnd> {
    match verb {
        Verb::Retry(how) if dry_run => app.replays.would(letters, how).await,
        Verb::Retry(how) => app.replays.run(letters, how).await,
        Verb::Purge if dry_run => {
            let would = app.replays.would(letters, &ReplayOptions::default()).await;
            would.into_iter().map(|done| done.map(|_| None)).collect()
        }
        Verb::Purge => match app.store.purge_dead_letters(letters).await {
            Ok(purged) => {
                let gone = || Err("it does not wait (any more)".to_owned());
                purged.into_iter().map(|was_there| if was_there { Ok(None) } else { gone() }).collect()
            }
            Err(fault) => letters.iter().map(|_| Err(format!("the store cannot be written: {fault}"))).collect(),
        },
    }
}

fn told(letter: &DeadLetterId, done: ReplayEnd, dry_run: bool) -> Value {
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
fn check_arguments(asked: &Letters) -> Result<(), Refusal> {
    let Some(arguments) = &asked.arguments else { return Ok(()) };
    if asked.letters.as_ref().is_none_or(|letters| letters.len() != 1) {
        return Err(Refusal::bad("other arguments go with exactly one letter: name it in letters"));
    }
    let bytes = arguments.get().len();
    if bytes > TASK_BYTES_MAX {
        let text =
            format!("arguments of {bytes} bytes: {TASK_BYTES_MAX} at the most; publish a new task with larger ones");
        return Err(Refusal::bad(text));
    }
    Ok(())
}

async fn choose(app: &App, asked: &Letters) -> Result<Chosen, Refusal> {
    match (&asked.letters, &asked.filter) {
        (Some(letters), None) => {
            if letters.len() > LETTERS_MAX {
                return Err(Refusal::bad(format!(
                    "at most {LETTERS_MAX} letters at once; send the others in another request"
                )));
            }
            let skip = asked.after.as_ref().map_or(Some(0), |after| after.parse().ok());
            let skip = skip.ok_or_else(|| Refusal::bad("after must be the `next` of the answer before, unchanged"))?;
            let named = letters.iter().cloned().enumerate().skip(skip);
            let letters = named.map(|(at, letter)| ((at + 1).to_string(), letter)).collect::<Vec<_>>();
            Ok(Chosen { matched: (letters.len() + skip) as u64, letters, more: false })
        }
        (None, Some(filter)) => by_filter(app, asked, filter).await,
        _ => Err(Refusal::bad(
            "name the letters ({\"letters\": [{queue, id, attempt}]}) or a filter ({\"filter\": {…}})",
        )),
    }
}

async fn by_filter(app: &App, asked: &Letters, filter: &Filter) -> Result<Chosen, Refusal> {
    let limit = asked.limit.unwrap_or(PAGE_ROWS_DEFAULT);
    if !(1..=PAGE_ROWS_MAX).contains(&limit) {
        return Err(Refusal::bad(format!("limit must be a number from 1 to {PAGE_ROWS_MAX}")));
    }
    let after = asked.after.as_ref().map(|after| after.parse::<ListCursor>()).transpose();
    let after = after.map_err(|_| Refusal::bad("after must be the `next` of the answer before, unchanged"))?;
    let said = |value: &Option<Value>| value.as_ref().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
    let (since, until) = (said(&filter.since), said(&filter.until));
    let query = DeadLetterQuery {
        queue: filter.queue.clone(),
        kind: filter.kind.clone(),
        job: filter.job.clone(),
        reason: filter.reason.clone(),
        worker: filter.worker.clone(),
        error: filter.error.clone(),
        since: since.as_deref().map(time).transpose().map_err(Refusal::bad)?,
        until: until.as_deref().map(time).transpose().map_err(Refusal::bad)?,
    };
    let unreadable = |fault: StoreError| Refusal::of_store(&fault);
    let matched = app.store.count_dead_letters(&query).await.map_err(unreadable)?;
    let (found, more) = app.store.dead_letter_ids(&query, Page { limit, after }).await.map_err(unreadable)?;
    let letters = found.into_iter().map(|(cursor, id)| (cursor.to_string(), id)).collect();
    Ok(Chosen { letters, more, matched })
}

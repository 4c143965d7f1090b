//! Dead letters run again or thrown away over HTTP: some by name, or all that a filter has, page by page. A request is
//! done at a limited rate; one that would take too long stops early and says where to go on.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use millpond::limits::TASK_BYTES_MAX;
use millpond_api::dead_letters::{
    ActOnDeadLetters, DEAD_LETTERS_MAX, DEAD_LETTERS_PER_SECOND, DEAD_LETTERS_PER_SECOND_MAX, DeadLetterActedOn,
    DeadLetterId, DeadLetterQuery, DeadLettersActedOn,
};
use millpond_api::list::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX};
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::request::{JsonBody, NoQuery, PathAndQuery, check_name, cursor};
use tokio::time::{Instant, MissedTickBehavior};

use super::cancel::OPERATOR;
use super::read::several;
use super::{App, store_error};
use crate::replays::{ReplayEnd, ReplayOptions};
use crate::store::Page;

/// Dead letters that are acted on together.
const STEP_MAX: usize = 100;
/// Such steps in a second, where the rate allows.
const STEPS_PER_SECOND: u32 = 10;
/// No step begins later than this in a request; one may take 10 s itself. Callers wait for 30 s.
const STEPS_FOR: Duration = Duration::from_secs(10);

/// What is done with dead letters.
#[derive(Clone)]
enum Verb {
    Retry(ReplayOptions),
    Purge,
}

/// The dead letters of one request.
struct Chosen {
    /// Each with the cursor behind it.
    dead_letters: Vec<(String, DeadLetterId)>,
    /// There are more behind them.
    more: bool,
    /// How many there are in all.
    matched: u64,
}

type AppState = State<Arc<App>>;
type Answer = Result<Json<DeadLettersActedOn>, ErrorAnswer>;

/// Run dead letters again, at a limited rate; one that fails does not stop the others.
#[utoipa::path(post, path = "/dead/retry", tag = "act", request_body(content = ActOnDeadLetters, example = json!({"dead_letters": [{"queue": "default", "kind": "square", "id": "order-7", "attempt": 3}]})),
    responses((status = 200, description = "What became of each; go on with `next` as `after`", body = DeadLettersActedOn,
        example = json!({"rows": [{"queue": "default", "kind": "square", "id": "order-7", "attempt": 3, "ok": true, "error": null}], "next": null, "matched": 1}))))]
pub(super) async fn retry(
    State(app): AppState,
    PathAndQuery((), NoQuery {}): PathAndQuery<(), NoQuery>,
    JsonBody(request): JsonBody<ActOnDeadLetters>,
) -> Answer {
    let (to_queue, arguments) = (request.queue.clone(), request.arguments.clone());
    let options = ReplayOptions { to_queue, arguments, by: OPERATOR.to_owned() };
    act(&app, &request, Verb::Retry(options)).await
}

/// Throw dead letters away, at a limited rate; their tasks stay dead.
#[utoipa::path(post, path = "/dead/purge", tag = "act", request_body(content = ActOnDeadLetters, example = json!({"dead_letters": [{"queue": "default", "kind": "square", "id": "order-7", "attempt": 3}]})),
    responses((status = 200, description = "What became of each; go on with `next` as `after`", body = DeadLettersActedOn,
        example = json!({"rows": [{"queue": "default", "kind": "square", "id": "order-7", "attempt": 3, "ok": true, "error": null}], "next": null, "matched": 1}))))]
pub(super) async fn purge(
    State(app): AppState,
    PathAndQuery((), NoQuery {}): PathAndQuery<(), NoQuery>,
    JsonBody(request): JsonBody<ActOnDeadLetters>,
) -> Answer {
    if request.queue.is_some() || request.arguments.is_some() {
        let text = "queue and arguments are for dead/retry; in a purge the queue belongs into the filter";
        return Err(ErrorAnswer::bad_request(text));
    }
    act(&app, &request, Verb::Purge).await
}

async fn act(app: &App, request: &ActOnDeadLetters, verb: Verb) -> Answer {
    let rate = request.rate.unwrap_or(DEAD_LETTERS_PER_SECOND);
    if !(1..=DEAD_LETTERS_PER_SECOND_MAX).contains(&rate) {
        let text = format!("rate must be a number from 1 to {DEAD_LETTERS_PER_SECOND_MAX}, in dead letters a second");
        return Err(ErrorAnswer::bad_request(text));
    }
    if let Some(queue) = &request.queue {
        check_name("queue", queue)?;
    }
    check_arguments(request)?;
    let chosen = choose(app, request).await?;
    let mut rows = Vec::with_capacity(chosen.dead_letters.len());
    let step_size = (rate.div_ceil(STEPS_PER_SECOND) as usize).min(STEP_MAX);
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(step_size as f64 / f64::from(rate)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let until = Instant::now() + STEPS_FOR;
    for some in chosen.dead_letters.chunks(if request.dry_run { DEAD_LETTERS_MAX } else { step_size }) {
        if !request.dry_run {
            ticks.tick().await;
            if Instant::now() > until {
                break;
            }
        }
        let ids: Vec<DeadLetterId> = some.iter().map(|(_, id)| id.clone()).collect();
        let ends = step(app, &ids, &verb, request.dry_run).await;
        rows.extend(ids.into_iter().zip(ends).map(|(id, end)| row(id, end, request.dry_run)));
    }
    let last = rows.len().checked_sub(1).and_then(|last| chosen.dead_letters.get(last));
    let is_cut = rows.len() < chosen.dead_letters.len();
    let next = last.map(|(cursor, _)| cursor.clone()).filter(|_| is_cut || chosen.more);
    if next.is_some() && !request.dry_run {
        // A caller that goes on at once must keep the rate too.
        ticks.tick().await;
    }
    Ok(Json(DeadLettersActedOn { rows, next, matched: chosen.matched }))
}

async fn step(app: &App, ids: &[DeadLetterId], verb: &Verb, dry_run: bool) -> Vec<ReplayEnd> {
    match verb {
        Verb::Retry(options) if dry_run => app.replays.would(ids, options).await,
        Verb::Retry(options) => app.replays.run(ids, options).await,
        Verb::Purge if dry_run => {
            let would = app.replays.would(ids, &ReplayOptions::default()).await;
            would.into_iter().map(|end| end.map(|_| None)).collect()
        }
        Verb::Purge => match app.store.purge_dead_letters(ids).await {
            Ok(purged) => {
                let gone = || Err("it does not wait (any more)".to_owned());
                purged.into_iter().map(|was_there| if was_there { Ok(None) } else { gone() }).collect()
            }
            Err(fault) => ids.iter().map(|_| Err(format!("the store cannot be written: {fault}"))).collect(),
        },
    }
}

fn row(id: DeadLetterId, end: ReplayEnd, dry_run: bool) -> DeadLetterActedOn {
    let DeadLetterId { queue, kind, id, attempt } = id;
    let (ok, new_id, error) = match end {
        Ok(new_id) => (true, new_id, None),
        Err(error) => (false, None, Some(error)),
    };
    DeadLetterActedOn { queue, kind, id, attempt, ok, dry_run, new_id, error }
}

/// Other arguments are meant for one task.
fn check_arguments(request: &ActOnDeadLetters) -> Result<(), ErrorAnswer> {
    let Some(arguments) = &request.arguments else { return Ok(()) };
    if request.dead_letters.as_ref().is_none_or(|ids| ids.len() != 1) {
        return Err(ErrorAnswer::bad_request(
            "other arguments go with exactly one dead letter: name it in dead_letters",
        ));
    }
    let bytes = arguments.get().len();
    if bytes > TASK_BYTES_MAX {
        let text =
            format!("arguments of {bytes} bytes: {TASK_BYTES_MAX} at the most; publish a new task with larger ones");
        return Err(ErrorAnswer::bad_request(text));
    }
    Ok(())
}

async fn choose(app: &App, request: &ActOnDeadLetters) -> Result<Chosen, ErrorAnswer> {
    match (&request.dead_letters, &request.filter) {
        (Some(ids), None) => by_id(app, request, ids).await,
        (None, Some(filter)) => by_filter(app, request, filter).await,
        _ => Err(ErrorAnswer::bad_request(
            "name the dead letters ({\"dead_letters\": [{queue, kind, id, attempt}]}) or a filter ({\"filter\": {…}})",
        )),
    }
}

async fn by_id(app: &App, request: &ActOnDeadLetters, ids: &[DeadLetterId]) -> Result<Chosen, ErrorAnswer> {
    if ids.len() > DEAD_LETTERS_MAX {
        let text = format!("at most {DEAD_LETTERS_MAX} dead letters at once; send the others in another request");
        return Err(ErrorAnswer::bad_request(text));
    }
    let skip = cursor(request.after.as_deref(), |after| after.parse().ok())?.unwrap_or(0);
    let mut dead_letters = Vec::with_capacity(ids.len());
    for (at, id) in ids.iter().enumerate().skip(skip) {
        dead_letters.push(((at + 1).to_string(), with_kind(app, id.clone()).await?));
    }
    Ok(Chosen { matched: (dead_letters.len() + skip) as u64, dead_letters, more: false })
}

/// The same with its kind, where it was named without one and waits.
async fn with_kind(app: &App, mut id: DeadLetterId) -> Result<DeadLetterId, ErrorAnswer> {
    if id.kind.is_none() {
        let mut kinds = app.store.kinds_of_dead_letter(&id).await.map_err(|fault| store_error(&fault))?;
        if kinds.len() > 1 {
            return Err(several(kinds.iter().map(|kind| (id.queue.as_str(), kind.as_str()))));
        }
        id.kind = kinds.pop();
    }
    Ok(id)
}

async fn by_filter(app: &App, request: &ActOnDeadLetters, filter: &DeadLetterQuery) -> Result<Chosen, ErrorAnswer> {
    let limit = request.limit.unwrap_or(PAGE_ROWS_DEFAULT);
    if !(1..=PAGE_ROWS_MAX).contains(&limit) {
        return Err(ErrorAnswer::bad_request(format!("limit must be a number from 1 to {PAGE_ROWS_MAX}")));
    }
    let after = cursor(request.after.as_deref(), |after| after.parse().ok())?;
    if after.is_none() {
        app.caught_up().await;
    }
    let matched = app.store.count_dead_letters(filter).await.map_err(|fault| store_error(&fault))?;
    let found = app.store.dead_letter_ids(filter, Page { limit, after }).await;
    let (found, more) = found.map_err(|fault| store_error(&fault))?;
    let dead_letters = found.into_iter().map(|(cursor, id)| (cursor.to_string(), id)).collect();
    Ok(Chosen { dead_letters, more, matched })
}

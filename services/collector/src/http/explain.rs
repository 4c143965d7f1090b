//! Why a task has no result: one sentence, from what is stored and from where the bus has the task.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use millpond::bus::read::find::{TaskLocation, TaskLocations};
use millpond::outcome::Failure;
use millpond::worker_record::{ChildRecord, WorkerRecord, built_in_hint};
use millpond_api::error::ErrorBody;
use millpond_api::tasks::{Explanation, TaskDetails, TaskIdQuery, TaskState, TaskStatus};
use millpond_api::workers::WorkerState;
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::request::PathAndQuery;

use super::read::several;
use super::{App, store_error};
use crate::store::PURGED;

/// How long a child may write nothing before that is said.
const SILENT_AFTER: Duration = Duration::from_secs(10);

/// Where a task is, and the sentence that explains it.
type Reason = (TaskState, String);

/// Why a task has no result: one sentence.
#[utoipa::path(get, path = "/why", tag = "read", params(TaskIdQuery), responses((status = 200, description = "The reason", body = Explanation,
    example = json!({"id": "order-7", "queue": "default", "kind": "square", "state": "paused", "sentence": "queue default is paused; `millpond queue resume default` goes on"})),
    (status = 409, description = "Tasks of several queues or kinds have this id", body = ErrorBody, example = json!({"error": "tasks of several queues or kinds have this id, name one with queue and kind (--queue, --kind): default.square, high.square"}))))]
pub(super) async fn explain(
    State(app): State<Arc<App>>,
    PathAndQuery((), query): PathAndQuery<(), TaskIdQuery>,
) -> Result<Json<Explanation>, ErrorAnswer> {
    explanation(&app, query).await.map(Json)
}

/// The same for whoever asks without HTTP.
pub(super) async fn explanation(app: &App, query: TaskIdQuery) -> Result<Explanation, ErrorAnswer> {
    app.caught_up().await;
    let TaskIdQuery { id, queue, kind } = query;
    let stored = app.store.task(&id, queue.as_deref(), kind.as_deref()).await.map_err(|fault| store_error(&fault))?;
    let mut found = TaskLocations { looked_at_all: true, ..TaskLocations::default() };
    // Another task of the id, which is not stored yet, may be meant as well.
    let is_one = queue.is_some() && kind.is_some();
    if !is_one || stored.iter().all(|task| ended(task).is_none()) {
        found = app.bus.find(&id, queue.as_deref(), kind.as_deref()).await.map_err(ErrorAnswer::bad_gateway)?;
    }
    let places = stored.iter().map(|task| (task.row.queue.clone(), task.row.kind.clone()));
    let places: BTreeSet<(String, String)> = places.chain(found.found.keys().cloned()).collect();
    if places.len() > 1 {
        return Err(several(places.iter().map(|(queue, kind)| (queue.as_str(), kind.as_str()))));
    }
    let stored = stored.into_iter().next();
    let (state, sentence) = match stored.as_ref().and_then(ended) {
        Some(reason) => reason,
        None => under_way(app, &id, found, stored.as_ref()).await?,
    };
    let (queue, kind) = places.into_iter().next().unzip();
    Ok(Explanation { id, queue, kind, state, sentence })
}

fn text(failure: &Failure) -> String {
    format!("{}: {}", failure.kind, failure.message)
}

/// Why nothing more happens to a task by itself; none when something will.
fn ended(task: &TaskDetails) -> Option<Reason> {
    let TaskDetails { row, history } = task;
    let (id, attempt) = (&row.id, row.attempt);
    match row.status {
        TaskStatus::Done => Some((TaskState::Done, format!("it is done: attempt {attempt} on {}", row.worker))),
        TaskStatus::Cancelled => {
            let failure = history.attempts.last().and_then(|last| last.failure.as_ref());
            let purged = failure.filter(|failure| failure.kind == PURGED);
            let how = purged.map_or("cancelled", |failure| failure.message.as_str());
            Some((TaskState::Cancelled, format!("it was {how}")))
        }
        TaskStatus::Dead => {
            let moved = history.replays.last().filter(|_| history.dead.is_none());
            let moved = moved.and_then(|last| last.to_queue.as_ref().zip(last.new_id.as_ref()));
            if let Some((to, id)) = moved {
                let sentence =
                    format!("it failed for good in attempt {attempt}, and was moved to queue {to}: see {id}");
                return Some((TaskState::Dead, sentence));
            }
            let dead = history.dead.as_ref().map(|dead| &dead.row);
            let why = dead.map_or_else(String::new, |dead| format!(" ({}), {}", dead.reason, text(&dead.failure)));
            let sentence =
                format!("it failed for good in attempt {attempt}{why}; `millpond dead retry {id}` runs it again");
            Some((TaskState::Dead, sentence))
        }
        TaskStatus::Partial | TaskStatus::Retrying => None,
    }
}

/// Where a task is that has not ended.
async fn under_way(
    app: &App,
    id: &str,
    locations: TaskLocations,
    stored: Option<&TaskDetails>,
) -> Result<Reason, ErrorAnswer> {
    let TaskLocations { found, looked_at_all } = locations;
    let last = stored.and_then(|task| task.history.attempts.last());
    let last =
        last.and_then(|last| Some(format!(" (attempt {} failed, {})", last.attempt, text(last.failure.as_ref()?))));
    let last = last.unwrap_or_default();
    Ok(match (found.into_values().next(), stored.map(|task| task.row.status)) {
        (Some(TaskLocation::Held { kind, worker, .. }), _) => {
            let silent = silent(app, &kind, id, &worker).unwrap_or_default();
            (TaskState::Running, format!("it runs on {worker}{silent}{last}"))
        }
        (Some(TaskLocation::Scheduled { attempt, at, .. }), _) => {
            (TaskState::Scheduled, format!("it waits until {at} for attempt {attempt}{last}"))
        }
        (Some(TaskLocation::Stored { queue, kind, ahead }), _) => waits(app, &queue, &kind, ahead).await?,
        (None, Some(TaskStatus::Partial)) => {
            (TaskState::Running, "some items of its batch have ended, this one is under way".to_owned())
        }
        (None, Some(_)) => (TaskState::Running, format!("its next attempt is under way{last}")),
        (None, None) if looked_at_all => {
            let sentence = "no such task waits, runs or has ended: it was never accepted, a purge removed it, or its id is another";
            (TaskState::Unknown, sentence.to_owned())
        }
        (None, None) => {
            let sentence = "it has not ended; more waits than can be looked through, so it may wait far back";
            (TaskState::Unknown, sentence.to_owned())
        }
    })
}

/// What is said of a task whose child has written nothing for long.
fn silent(app: &App, kind: &str, id: &str, worker: &str) -> Option<String> {
    let workers = app.workers.records();
    let (record, _) = workers.iter().find(|(record, _)| record.name == worker)?;
    let is_of = |child: &&ChildRecord| child.silent && child.kind == kind && child.task.as_deref() == Some(id);
    let child = record.children.iter().find(is_of)?;
    let silent_ms = child.task_ms.filter(|ms| u128::from(*ms) >= SILENT_AFTER.as_millis())?;
    let (name, seconds) = (&child.name, silent_ms / 1000);
    Some(format!(
        "; its child {name} was given it {seconds} s ago and has written nothing since: if it should have answered, does it flush its output (Python: print(…, flush=True))?"
    ))
}

/// Why no worker takes what waits.
async fn waits(app: &App, queue: &str, kind: &str, ahead: Option<u64>) -> Result<Reason, ErrorAnswer> {
    let queues = app.bus.standing().await.map_err(ErrorAnswer::bad_gateway)?;
    if queues.listed.iter().any(|q| q.queue == queue && q.paused) {
        let sentence = format!("queue {queue} is paused; `millpond queue resume {queue}` goes on");
        return Ok((TaskState::Paused, sentence));
    }
    let workers = app.workers.records();
    let live = workers.iter().filter(|(_, state)| *state == WorkerState::Live).map(|(worker, _)| worker);
    let serving: Vec<&WorkerRecord> =
        live.filter(|worker| worker.queues.iter().any(|served| served == queue)).collect();
    let count = serving.len();
    if count == 0 {
        let sentence =
            format!("no live worker serves queue {queue}; `millpond worker run --queues {queue}` starts one");
        return Ok((TaskState::NoWorker, sentence));
    }
    let knows = |worker: &&&WorkerRecord| worker.kinds.iter().any(|known| known == kind);
    let mut knowing = serving.iter().filter(knows).peekable();
    if knowing.peek().is_none() {
        let sentence =
            format!("none of the {count} live workers of queue {queue} knows kind {kind}{}", built_in_hint(kind));
        return Ok((TaskState::NoWorker, sentence));
    }
    // Only where all of them are in trouble can the kind start nowhere.
    let troubles: Option<Vec<_>> = knowing.map(|worker| Some((&worker.name, worker.troubles.get(kind)?))).collect();
    if let Some((name, why)) = troubles.as_deref().and_then(<[_]>::first) {
        let sentence = format!("it waits: the handler of kind {kind} cannot start on {name}: {why}");
        return Ok((TaskState::NoWorker, sentence));
    }
    Ok(match ahead {
        Some(ahead) => {
            let sentence = format!("it waits in queue {queue} behind {ahead} others; {count} live workers serve it");
            (TaskState::Waiting, sentence)
        }
        // Only the worker knows which slots the kind takes: when as many tasks run as there are of the fewer slots, this
        // one may have to wait.
        None if serving.iter().all(|worker| worker.running >= worker.slots.min(worker.io_slots)) => {
            let sentence = format!("it waits in queue {queue} for a slot; all of {count} live workers are busy");
            (TaskState::Waiting, sentence)
        }
        None => (TaskState::Running, "it was given to a worker a moment ago".to_owned()),
    })
}

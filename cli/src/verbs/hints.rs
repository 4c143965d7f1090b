//! What a waiting verb prints on standard error: why the task that it waits for does not end, or that its queue is full.

use std::time::Duration;

use millpond::bus::publish::queue_limits::QueueFill;
use millpond::client::{Client, RequestError, TaskStanding, TaskState};
use millpond::worker_record::{WorkerRecord, built_in_hint};
use millpond_api::queues::QueueList;
use millpond_api::workers::{WorkerRow, WorkerState};
use tokio::sync::watch;

use super::worker::list::list;
use crate::api::Api;
use crate::cluster_env::{ClusterEnv, SIGNING_KEY};

/// How long nothing may move at the start of a verb before it asks why: what is known then is printed within two seconds.
const ASK_FIRST_AFTER: Duration = Duration::from_secs(1);
/// The same later, and how often it asks.
const ASK_AFTER: Duration = Duration::from_secs(3);

/// Prints why the awaited task, whose id may become another one, does not end: each cause once, and again when it has changed. The
/// reason `known` was printed before. Never ends.
pub(super) async fn why_waiting(
    env: &ClusterEnv,
    client: &Client,
    (queue, kind): (&str, &str),
    mut awaited: watch::Receiver<String>,
    known: Option<TaskState>,
) {
    let (mut pause, mut printed, mut is_first) = (ASK_FIRST_AFTER, String::new(), true);
    loop {
        match tokio::time::timeout(pause, awaited.changed()).await {
            // It moves.
            Ok(Ok(())) => {
                pause = ASK_AFTER;
                continue;
            }
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => pause = ASK_AFTER,
        }
        let id = awaited.borrow().clone();
        let cause = match client.task(queue, kind, &*id).status().await {
            Ok(standing) if known == Some(standing.state) => None,
            Ok(standing) if standing.state == TaskState::Unknown && is_first => unsigned(env, queue).await,
            Ok(standing) => cause(&standing).map(|cause| format!("task {id}: {cause} (`millpond why {id}`)")),
            Err(RequestError::NoCollector) => {
                Some("the collector does not answer, the cause is not known (`millpond doctor` looks at it)".to_owned())
            }
            Err(error @ RequestError::Failed { .. }) => Some(format!("the cause is not known: {error}")),
            Err(RequestError::Refused { .. }) => None,
        };
        is_first = false;
        let Some(cause) = cause else { continue };
        // Numbers of the same cause change all the time: how many are ahead, or the id.
        let key: String = cause.chars().filter(|c| !c.is_ascii_digit()).collect();
        if key != printed {
            note!("millpond: still waiting: {cause}");
        }
        printed = key;
    }
}

/// What keeps a task from its end, in the words of the collector; none when it runs, or has ended a moment ago.
fn cause(standing: &TaskStanding) -> Option<&str> {
    let sentence = standing.sentence.as_str();
    match standing.state {
        TaskState::Paused | TaskState::NoWorker | TaskState::Waiting | TaskState::Scheduled => Some(sentence),
        // An attempt of it failed before.
        TaskState::Running if sentence.contains(" failed, ") => Some(sentence),
        TaskState::Running | TaskState::Done | TaskState::Dead | TaskState::Cancelled | TaskState::Unknown => None,
    }
}

/// Why nothing of a queue and kind starts, for who knows no task by its id; none when something does, or nobody tells.
pub(super) async fn why_nothing_starts(api: &Api, queue: &str, kind: &str) -> Option<String> {
    let queues: QueueList = api.get("/api/v1/queues", &()).await.ok()?;
    if queues.rows.iter().any(|row| row.queue == queue && row.paused) {
        return Some(format!("queue {queue} is paused; `millpond queue resume {queue}` goes on"));
    }
    missing_worker(api, queue, kind).await
}

/// Prints once that a queue is full, when it is. Never ends.
pub(super) async fn queue_full(client: &Client, queue: &str) {
    loop {
        tokio::time::sleep(ASK_AFTER).await;
        if let Ok(Some(QueueFill { waiting, max_waiting })) = client.fill(queue).await
            && waiting >= max_waiting
        {
            note!(
                "millpond: queue {queue} is full: {waiting} tasks wait of at most {max_waiting}; waiting for capacity \
                 (`millpond queue ls` shows it)"
            );
            return std::future::pending().await;
        }
    }
}

/// The live workers of a queue.
async fn serving(api: &Api, queue: &str) -> Option<Vec<WorkerRecord>> {
    let serves = |row: &WorkerRow| row.state == WorkerState::Live && row.record.queues.iter().any(|q| q == queue);
    Some(list(api).await.ok()?.into_iter().filter(serves).map(|row| row.record).collect())
}

/// That the workers of a queue take no task of who has no key.
async fn unsigned(env: &ClusterEnv, queue: &str) -> Option<String> {
    let serving = serving(&Api::new(env).ok()?, queue).await?;
    let refuse = !serving.is_empty() && serving.iter().all(|worker| worker.signed_only);
    (refuse && env.get(SIGNING_KEY).is_none()).then(|| {
        format!(
            "the workers of queue {queue} run signed tasks only: set {SIGNING_KEY} as they do; \
             `millpond dead ls --reason unsigned` shows what they refused"
        )
    })
}

/// Why no live worker takes tasks of a kind; none when one does, or when the collector does not answer.
pub(super) async fn missing_worker(api: &Api, queue: &str, kind: &str) -> Option<String> {
    let serving = serving(api, queue).await?;
    let Some(first) = serving.first() else {
        return Some(format!(
            "no live worker serves queue {queue}; start one with `millpond worker run --queues {queue}`"
        ));
    };
    let knows = |worker: &WorkerRecord| worker.kinds.iter().any(|known| known == kind);
    let known = || first.kinds.join(", ");
    (!serving.iter().any(knows)).then(|| {
        format!("no live worker of queue {queue} knows kind {kind}; known kinds: {}{}", known(), built_in_hint(kind))
    })
}

//! How everything stands now, over time, and as it changes: server-sent events, one a second, the same for all watchers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::{Extension, Json};
use futures_util::{Stream, StreamExt, stream};
use millpond_api::error::ErrorBody;
use millpond_api::list::List;
use millpond_api::overview::{Overview, Problem, Series, SeriesQuery, Tick, Window};
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::request::{NoQuery, PathAndQuery};

use super::caller::Caller;
use super::{App, store_error};

/// Streams of events that are open at once.
pub(crate) const WATCHERS_MAX: usize = 256;
/// How long one stream of events lasts: the watcher connects again, and its token is checked again.
const WATCH_FOR: Duration = Duration::from_secs(3600);
/// How long a watcher that lost the stream waits before it connects again.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);

type AppState = State<Arc<App>>;

/// Show how everything stands: sums, problems, the store.
#[utoipa::path(get, path = "/overview", tag = "read", responses((status = 200, description = "How it stands", body = Overview,
    example = json!({"at_ms": 1_800_000_000_000_i64, "version": "0.1.0", "store": {"kind": "sqlite", "bytes": 81920, "complaint": null}, "totals": {"waiting": 12, "held": 4, "scheduled": 0, "oldest_ms": 1_799_999_998_000_i64, "retrying": 1, "dead": 0, "running": 4, "workers": {"live": 2, "draining": 0, "lost": 0}}, "lag_ms": 52, "complaint": null, "problems": []}))))]
pub(super) async fn overview(
    State(app): AppState,
    PathAndQuery((), NoQuery {}): PathAndQuery<(), NoQuery>,
) -> Json<Overview> {
    Json(app.overview.poll().await.tick.overview.clone())
}

/// List what is wrong, since when, and what to do; and what was mended lately.
#[utoipa::path(get, path = "/problems", tag = "read", responses((status = 200, description = "All of it", body = List<Problem>,
    example = json!({"rows": [{"kind": "no_worker", "what": "mail", "sentence": "18 messages wait in queue mail, and no live worker serves it; `millpond worker run --queues mail` starts one", "since_ms": 1_800_000_000_000_i64, "mended": false}], "next": null}))))]
pub(super) async fn problems(
    State(app): AppState,
    PathAndQuery((), NoQuery {}): PathAndQuery<(), NoQuery>,
) -> Json<List<Problem>> {
    Json(List::whole(app.problems.rows()))
}

/// Show what ended over time, and how the queues stood.
#[utoipa::path(get, path = "/series", tag = "read", params(SeriesQuery), responses((status = 200, description = "Step by step", body = Series,
    example = json!({"step_ms": 10000, "from_ms": 1_799_996_400_000_i64, "to_ms": 1_800_000_000_000_i64, "rows": [{"at_ms": 1_799_999_990_000_i64, "published": 120, "done": 118, "failed": 1, "dead": 0, "cancelled": 0, "waiting": 3, "oldest_age_ms": 40, "p50_ms": 12, "p99_ms": 88}]}))))]
pub(super) async fn series(
    State(app): AppState,
    PathAndQuery((), query): PathAndQuery<(), SeriesQuery>,
) -> Result<Json<Series>, ErrorAnswer> {
    let back_ms = query.window.unwrap_or(Window::Hour).length_ms();
    let found = app.store.series(back_ms, query.queue.as_deref()).await;
    let (step_ms, rows) = found.map_err(|fault| store_error(&fault))?;
    let to_ms = millpond::now_ms();
    Ok(Json(Series { step_ms, from_ms: to_ms - back_ms, to_ms, rows }))
}

/// Watch everything: an event `tick` a second.
///
/// Each has the overview, the queues, rates, and versions of the lists: a number that differs from the one before means
/// that the list has changed.
#[utoipa::path(get, path = "/events", tag = "read", responses(
    (status = 200, description = "Server-sent events, each the data of a tick", body = Tick, content_type = "text/event-stream",
        example = "event: tick\ndata: {\"at_ms\":1800000000000}\n\n"),
    (status = 503, description = "Too many watch", body = ErrorBody, example = json!({"error": "too many watch already, come again later"}))))]
pub(super) async fn events(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    PathAndQuery((), NoQuery {}): PathAndQuery<(), NoQuery>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ErrorAnswer> {
    let permit = app
        .watchers
        .clone()
        .try_acquire_owned()
        .map_err(|_| ErrorAnswer::unavailable(format!("{WATCHERS_MAX} watch already, come again later")))?;
    let (now, ticks, shutdown) = (app.overview.poll().await, app.overview.watch(), app.shutdown.clone());
    let later = stream::unfold((ticks, permit), async |(mut ticks, permit)| {
        ticks.changed().await.ok()?;
        let tick = ticks.borrow_and_update().clone();
        Some((tick, (ticks, permit)))
    });
    let left_ms = caller.expires_ms.map(|at| at.saturating_sub(millpond::now_ms()));
    let left = left_ms.map(|left| Duration::from_millis(u64::try_from(left).unwrap_or(0)));
    let watch_for = left.unwrap_or(WATCH_FOR).min(WATCH_FOR);
    let ends = async move {
        tokio::select! {
            () = shutdown.cancelled_owned() => {}
            () = tokio::time::sleep(watch_for) => {}
        }
    };
    let events = stream::iter([now]).chain(later).take_until(Box::pin(ends)).map(|polled| {
        let event = Event::default().event("tick").retry(RECONNECT_AFTER);
        Ok(event.data(&polled.json))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

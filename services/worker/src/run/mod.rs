//! Runs a prepared task: its calls in its slot, while cancellations are watched, and what a batch has not started is
//! published again. Not here: handlers (`execute.rs` calls them), and what becomes of the results.

pub(crate) mod execute;
mod remainder;
pub(crate) mod work_cursor;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use millpond::bus::consume::lease::Lease;
use millpond::failpoint;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::attempt::{AttemptTime, Finished, Prepared};
use crate::call_end::CallEnd;
use crate::cancellations::CancelledPart;
use crate::context::WorkerContext;
use crate::report::spans::AttemptSpans;

use execute::execute;
use remainder::Remainder;
use work_cursor::WorkCursor;

/// Runs a task to its end. Its slot is free again when this returns, unless a large result still needs it.
pub(crate) async fn run(context: &WorkerContext, prepared: Prepared) -> Finished {
    failpoint::hit("run.started");
    // What was fetched is kept to the end of this function.
    let Prepared {
        lease,
        slot,
        handler,
        arguments,
        calls,
        fetched: _fetched,
        mut cancellations,
        timeouts,
        stop,
        mut spans,
    } = prepared;
    let (started, started_ms, started_at) = (Instant::now(), millpond::now_ms(), SystemTime::now());
    let scope = spans.scope(&lease.task);
    spans.started(&lease, started_at);
    let stats = context.stats.of(&lease.task.subject.kind);
    stats.starts(AttemptSpans::waited_since(&lease), started_at, spans.attempt);
    let cursor = Arc::new(WorkCursor::new(calls.len()));
    let ((ends, busy), republished) = {
        let running = pin!(async {
            // Boxed inside the block, so only once it is polled: most tasks end before that.
            let watch =
                async { Box::pin(stop_when_cancelled(context, &lease, &mut cancellations, &cursor, &stop)).await };
            tokio::select! {
                biased;
                ends = scope.around(execute(handler, calls, cursor.clone(), timeouts, &stop)) => (ends, started.elapsed()),
                never = watch => match never {},
            }
        });
        match lease.task.items.filter(|items| items.len > 1) {
            None => (running.await, None),
            Some(items) => {
                let remainder =
                    Remainder { context, lease: &lease, items, arguments: &arguments, cursor: &cursor, started_ms };
                Box::pin(remainder.publish_beside(running)).await
            }
        }
    };
    slot.note(busy);
    if !lease.task.is_batch() {
        stats.pace.note(busy);
    }
    let is_cancelled = ends.iter().any(|end| !end.is_done()) && context.cancellations.of(&lease).is_some();
    spans.ran(&lease.task, started_at, &ends, is_cancelled);
    // The slot is freed here, unless a result is large.
    let slot = ends.iter().any(CallEnd::is_large).then_some(slot);
    let time = AttemptTime { started_ms, ended_ms: millpond::now_ms(), busy };
    Finished { lease, arguments, ends, republished, time, spans, scope, slot }
}

/// Cancels `stop` when the task is cancelled while it runs, or when the drain's time is up. Never returns: the calls that
/// it runs beside end once they are stopped.
async fn stop_when_cancelled(
    context: &WorkerContext,
    lease: &Lease,
    cancellations: &mut watch::Receiver<()>,
    cursor: &WorkCursor,
    stop: &CancellationToken,
) -> Infallible {
    loop {
        tokio::select! {
            () = context.stop.cancelled() => stop.cancel(),
            Ok(()) = cancellations.changed() => match context.cancellations.of(lease) {
                None => continue,
                Some(CancelledPart::Whole) => stop.cancel(),
                Some(CancelledPart::Items(items)) => {
                    cursor.take_rest();
                    // What runs is the last that was claimed; the others of the batch are published again.
                    let first = lease.task.items.map_or(0, |items| items.from);
                    let running = u32::try_from(cursor.claimed()).ok().and_then(|n| n.checked_sub(1)).map(|n| first + n);
                    if !running.is_some_and(|item| items.contains(&item)) {
                        continue;
                    }
                    stop.cancel();
                }
            },
        }
        return std::future::pending().await;
    }
}

//! Gets an admitted task all that it needs to start: arguments that are not in its message, and a child process where its
//! kind runs in one. The last look at cancellations and at the lease is here, right before the start.

pub(crate) mod payload_files;
pub(crate) mod payloads;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use millpond::bus::consume::lease::Lease;
use millpond::failpoint;
use millpond::outcome::{Items, id_of};
use millpond::payload::PayloadRef;
use millpond::task::Task;
use millpond::telemetry::TraceContext;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admit::judge;
use crate::attempt::{Admitted, Arguments, Disposition, Prepared, TurnedAway};
use crate::call::Call;
use crate::context::WorkerContext;
use crate::handlers::{Handler, ReadyHandler};
use crate::report::spans::AttemptSpans;
use crate::run_loop::pools::LongTask;
use crate::supervisor::ChildUnavailable;

use payloads::{FetchFailure, FetchedPayload};

/// How long until a task comes again that asks for more than the usual time, while as many run as may.
const LONG_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long until a task comes again whose arguments could not be fetched.
const FETCH_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Readies an admitted task for its start, while its slot waits for it.
pub(crate) async fn prepare(context: &WorkerContext, admitted: Admitted) -> Result<Prepared, TurnedAway> {
    let Admitted { mut lease, mut slot, handler, arguments, cancellations } = admitted;
    let arguments = match arguments {
        Ok(arguments) => arguments,
        Err(error) => {
            let disposition = Disposition::DeadLetter("bad_batch", error.to_string());
            return Err(TurnedAway { lease, arguments: None, disposition });
        }
    };
    let mut timeouts = handler.timeouts(lease.task.timeout, context.task_timeout);
    let usual = handler.usual_timeout(context.task_timeout);
    if timeouts.hard > usual {
        match slot.for_long_task() {
            LongTask::Fits => {}
            LongTask::TooMany => {
                let disposition = Disposition::Release(LONG_AGAIN_AFTER);
                return Err(TurnedAway { lease, arguments: Some(arguments), disposition });
            }
            LongTask::OneSlot => {
                tracing::warn!(
                    task_id = %lease.task.id(), asked = ?timeouts.hard, cut_to = ?usual,
                    "the timeout of a task is cut to that of its kind, because its worker has one slot for it"
                );
                timeouts = handler.timeouts(Some(usual), usual);
            }
        }
    }
    match ready(context, &mut lease, &arguments, &handler, &cancellations).await {
        Err(disposition) => Err(TurnedAway { lease, arguments: Some(arguments), disposition }),
        Ok((handler, fetched)) => {
            let (spans, stop) = (AttemptSpans::new(&lease), CancellationToken::new());
            let calls = calls(&lease.task, &arguments, fetched.as_ref(), spans.attempt, &stop);
            Ok(Prepared { lease, slot, handler, arguments, calls, fetched, cancellations, timeouts, stop, spans })
        }
    }
}

/// Gets what the task needs and, as the last step, starts its lease. The error is how the lease ends instead: when
/// something cannot be had now or ever, or the task must no longer start.
async fn ready(
    context: &WorkerContext,
    lease: &mut Lease,
    arguments: &Arguments,
    handler: &Handler,
    cancellations: &watch::Receiver<()>,
) -> Result<(ReadyHandler, Option<FetchedPayload>), Disposition> {
    let fetched = match &lease.task.payload_ref {
        Some(at) => Some(Box::pin(fetch(context, lease, at, handler)).await?),
        None => None,
    };
    let handler = tokio::select! {
        biased;
        // Boxed within, where a child is waited for.
        ready = handler.ready() => ready,
        () = context.draining.cancelled() => Err(ChildUnavailable { retry_after: Duration::ZERO }),
    };
    let handler = handler.map_err(|error| Disposition::Release(error.retry_after))?;
    // Boxed: most messages come for the first time.
    if lease.must_record_start() {
        let recorded = Box::pin(lease.record_start()).await;
        if let Some(disposition) = judge(recorded, lease, Some(arguments)) {
            return Err(disposition);
        }
    }
    // The task may have been cancelled while it waited.
    if cancellations.has_changed().unwrap_or(false)
        && let Some(cancelled) = context.cancellations.of(lease)
    {
        return Err(Disposition::Cancel(cancelled));
    }
    // Last of all: this process may have been paused, or cut off, while the task waited.
    if lease.start() { Ok((handler, fetched)) } else { Err(Disposition::Abandon) }
}

/// Fetches what the task's `Millpond-Ref` names.
async fn fetch(
    context: &WorkerContext,
    lease: &Lease,
    at: &PayloadRef,
    handler: &Handler,
) -> Result<FetchedPayload, Disposition> {
    let fetched = tokio::select! {
        biased;
        fetched = context.payloads.fetch(at, handler.takes_lines()) => fetched,
        () = context.draining.cancelled() => Err(FetchFailure::NotNow("the worker is leaving".to_owned())),
    };
    match fetched {
        Ok(fetched) => {
            if let Some(file) = fetched.file()
                && let Err(error) = handler.give(file)
            {
                let message = format!("the file of its arguments cannot be given to the user of its kind: {error}");
                return Err(Disposition::DeadLetter("error", message));
            }
            failpoint::hit("prepare.fetched");
            Ok(fetched)
        }
        Err(FetchFailure::Never(reason, message)) => Err(Disposition::DeadLetter(reason, message)),
        Err(FetchFailure::NotNow(reason)) => {
            tracing::warn!(task_id = %lease.task.id(), reason, "large arguments cannot be fetched now; the task waits");
            let delay = if context.draining.is_cancelled() { Duration::ZERO } else { FETCH_AGAIN_AFTER };
            Err(Disposition::Release(delay))
        }
    }
}

/// The calls of a message, one for each covered item.
fn calls(
    task: &Task,
    arguments: &Arguments,
    fetched: Option<&FetchedPayload>,
    trace: TraceContext,
    stop: &CancellationToken,
) -> Vec<Call> {
    let (arguments, first) = (arguments.as_slice(), task.items.map_or(0, |items| items.from));
    let id = |item: u32| match task.items {
        Some(items) if items.of == 1 => format!("{}/0", task.original_id),
        items => id_of(&task.original_id, items.map(|items| Items { of: items.of, from: item, len: 1 })),
    };
    let call = |(payload, item): (&Bytes, u32)| Call {
        attempt: task.attempt,
        file: fetched.and_then(FetchedPayload::file).map(Path::to_owned),
        trace: Some(trace),
        // A single call has the task's token; of several, each has its own, so that one can time out by itself.
        stop: if arguments.len() == 1 { stop.clone() } else { CancellationToken::new() },
        // Only a task alone has arguments outside of its message.
        ..Call::new(id(item), fetched.map_or_else(|| payload.clone(), FetchedPayload::payload))
    };
    arguments.iter().zip(first..).map(call).collect()
}

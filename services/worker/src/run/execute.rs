//! Runs calls by the handler of their kind: deadline, panic, drain. Tasks and calls run by the same code. Knows handlers, not
//! NATS, and nothing of settling.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use millpond::telemetry::Scope;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::call::{Call, Reply};
use crate::call_end::{CallEnd, too_late};
use crate::handlers::ReadyHandler;
use crate::panics::{caught, in_handler};
use crate::run::work_cursor::WorkCursor;
use crate::supervisor::Timeouts;

/// Runs the calls that the cursor gives, one after the other; the ends come in the order of the calls, [`CallEnd::NotRun`]
/// for those that were taken out. `stop` ends it early.
pub(crate) async fn execute(
    handler: ReadyHandler,
    mut calls: Vec<Call>,
    cursor: Arc<WorkCursor>,
    timeouts: Timeouts,
    stop: &CancellationToken,
) -> Vec<CallEnd> {
    let (count, timeout) = (calls.len(), timeouts.hard);
    calls.iter_mut().for_each(|call| call.timeout = Some(timeout));
    let mut ends = match handler {
        ReadyHandler::Async(handler) => on_runtime(&handler, calls, &cursor, timeout, stop).await,
        // Boxed: each task moves its whole future, and these are large.
        ReadyHandler::Blocking(handler) => {
            Box::pin(on_threads(&handler, Arc::new(calls), &cursor, timeout, stop)).await
        }
        ReadyHandler::Child(ticket) => Box::pin(ticket.run(calls, cursor, timeouts, stop)).await,
    };
    ends.resize_with(count, || CallEnd::NotRun);
    ends
}

type Async = Arc<dyn Fn(Call) -> BoxFuture<'static, Reply> + Send + Sync>;

async fn on_runtime(
    handler: &Async,
    calls: Vec<Call>,
    cursor: &WorkCursor,
    timeout: Duration,
    stop: &CancellationToken,
) -> Vec<CallEnd> {
    let mut ends = Vec::with_capacity(calls.len());
    for call in calls {
        if (stop.is_cancelled() && !ends.is_empty()) || cursor.claim(0).is_none() {
            break;
        }
        let abandoned = call.stop.clone();
        let mut answer = pin!(tokio::time::timeout(timeout, caught(handler(call))));
        let end = tokio::select! {
            biased;
            answer = &mut answer => judge(answer.ok(), timeout),
            () = stop.cancelled() => {
                abandoned.cancel();
                // A handler that watches for it has a last moment to end by itself.
                answer.now_or_never().map_or(CallEnd::NotRun, |answer| judge(answer.ok(), timeout))
            }
        };
        abandoned.cancel();
        ends.push(end);
    }
    ends
}

type Blocking = Arc<dyn Fn(&Call) -> Reply + Send + Sync>;

/// A thread runs the calls and sends each reply. When one takes too long the thread is left to itself (nothing can end
/// it) and another goes on with the next call.
async fn on_threads(
    handler: &Blocking,
    calls: Arc<Vec<Call>>,
    cursor: &Arc<WorkCursor>,
    timeout: Duration,
    stop: &CancellationToken,
) -> Vec<CallEnd> {
    let mut ends = Vec::with_capacity(calls.len());
    while !cursor.is_empty() && (ends.is_empty() || !stop.is_cancelled()) {
        let mut replies = start_thread(handler.clone(), calls.clone(), cursor.clone());
        loop {
            let answer = tokio::select! {
                biased;
                answer = tokio::time::timeout(timeout, replies.recv()) => answer,
                () = stop.cancelled() => Ok(None),
            };
            match answer {
                Ok(Some(reply)) => ends.push(judge(Some(reply), timeout)),
                // All were answered, or the drain's time is over.
                Ok(None) => break,
                Err(_) => {
                    // Before anything else: the late thread must not go on with the next call.
                    let thread = cursor.next_thread();
                    if cursor.claimed() == ends.len() {
                        // The late thread never came to start it: the call fails, and is not run later either.
                        cursor.claim(thread);
                    }
                    if let Ok(reply) = replies.try_recv() {
                        // It came at the last moment; a call that was claimed by then is still awaited.
                        ends.push(judge(Some(reply), timeout));
                        continue;
                    }
                    if let Some(late) = calls.get(ends.len()) {
                        late.stop.cancel();
                        ends.push(judge(None, timeout));
                    }
                    break;
                }
            }
        }
        if stop.is_cancelled() {
            cursor.take_rest();
            calls.iter().for_each(|call| call.stop.cancel());
            break;
        }
    }
    ends
}

fn start_thread(handler: Blocking, calls: Arc<Vec<Call>>, cursor: Arc<WorkCursor>) -> mpsc::Receiver<Reply> {
    let (sender, receiver) = mpsc::channel(64);
    let (thread, scope) = (cursor.next_thread(), Scope::current());
    tokio::task::spawn_blocking(move || {
        let _in = scope.enter();
        while let Some(call) = cursor.claim(thread).and_then(|next| calls.get(next)) {
            let reply = in_handler(|| handler(call)).unwrap_or_else(Err);
            if sender.blocking_send(reply).is_err() {
                return;
            }
        }
    });
    receiver
}

fn judge(answer: Option<Reply>, timeout: Duration) -> CallEnd {
    CallEnd::of(answer.unwrap_or_else(|| Err(too_late(timeout))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(payload: &str) -> Call {
        Call::for_test("t", payload)
    }

    async fn ready(kind: &str) -> ReadyHandler {
        crate::panics::note_panics();
        crate::handlers::built_in(false)[kind]
            .ready()
            .await
            .unwrap_or_else(|_| panic!("built-in kinds are always ready"))
    }

    fn within(hard: Duration) -> Timeouts {
        Timeouts { soft: None, hard }
    }

    async fn run(kind: &str, payloads: &[&str], timeout: Duration, stop: &CancellationToken) -> Vec<CallEnd> {
        let cursor = Arc::new(WorkCursor::new(payloads.len()));
        execute(ready(kind).await, payloads.iter().map(|p| call(p)).collect(), cursor, within(timeout), stop).await
    }

    fn kind(end: &CallEnd) -> &str {
        match end {
            CallEnd::Done(_) | CallEnd::Bytes(_) => "done",
            CallEnd::Failed(failure) => &failure.kind,
            CallEnd::NotRun => "not_run",
        }
    }

    async fn check(handler: &str, payloads: &[&str], timeout: Duration, expected: &[&str]) {
        let ends = run(handler, payloads, timeout, &CancellationToken::new()).await;
        assert_eq!(ends.iter().map(kind).collect::<Vec<_>>(), expected, "{handler} {payloads:?}");
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn one_bad_call_leaves_the_others_alone() {
        check("square", &["3", "\"x\"", "4"], LONG, &["done", "bad_arguments", "done"]).await;
        check("is_prime", &["3", "x", "4"], LONG, &["done", "bad_arguments", "done"]).await;
        check("fail", &[r#"{"how":"panic"}"#, r#"{"how":"never"}"#], LONG, &["panic", "done"]).await;
    }

    #[tokio::test]
    async fn a_call_that_takes_too_long_fails_alone() {
        let short = Duration::from_millis(50);
        check("fail", &[r#"{"how":"hang"}"#, "\"no\""], short, &["timeout", "error"]).await;
        check("spin", &["0", "30", "0"], short, &["done", "timeout", "done"]).await;
    }

    #[tokio::test]
    async fn the_end_of_the_drain_ends_what_runs() {
        let stop = CancellationToken::new();
        stop.cancel();
        for handler in ["sleep", "spin"] {
            let ends = run(handler, &["30", "0"], LONG, &stop).await;
            assert_eq!(ends.iter().map(kind).collect::<Vec<_>>(), ["not_run", "not_run"], "{handler}");
        }
    }

    #[tokio::test]
    async fn a_handler_that_watches_for_the_stop_may_end_by_itself() {
        let (calls, stop) = (vec![call("1")], CancellationToken::new());
        let watching: Async = Arc::new(|call| {
            Box::pin(async move {
                call.stop.cancelled().await;
                crate::call::reply(&"stopped")
            })
        });
        let running = execute(ReadyHandler::Async(watching), calls, Arc::new(WorkCursor::new(1)), within(LONG), &stop);
        let (ends, ()) = tokio::join!(running, async { stop.cancel() });
        assert_eq!(kind(&ends[0]), "done");
    }

    #[tokio::test]
    async fn what_is_taken_out_is_not_run() {
        for handler in ["sleep", "spin"] {
            let calls: Vec<Call> = ["0.2", "0", "0"].into_iter().map(call).collect();
            let (cursor, stop) = (Arc::new(WorkCursor::new(3)), CancellationToken::new());
            let running = execute(ready(handler).await, calls, cursor.clone(), within(LONG), &stop);
            let taking = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                cursor.take_rest()
            };
            let (ends, rest) = tokio::join!(running, taking);
            assert_eq!((ends.iter().map(kind).collect::<Vec<_>>(), rest), (vec!["done", "not_run", "not_run"], 1..3));
        }
    }

    #[tokio::test]
    async fn a_panic_tells_where() {
        let ends = run("fail", &[r#"{"how":"panic","message":"boom"}"#], LONG, &CancellationToken::new()).await;
        let CallEnd::Failed(failure) = &ends[0] else { panic!("it must fail") };
        assert_eq!(failure.message, "boom");
        assert!(failure.traceback.as_ref().unwrap().contains("fail.rs"));
    }
}

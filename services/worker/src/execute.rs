//! Runs a message's calls in one slot: deadline, panic, drain. Knows handlers, not NATS, and nothing of settling.
//! [`Share`] says which of the calls are this slot's; the others can be taken out of it while it runs.

use std::any::Any;
use std::cell::RefCell;
use std::future::poll_fn;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millpond::limits::RESULT_BYTES_MAX;
use millpond::outcome::Failure;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::handlers::{Call, Handler, Reply};

/// How one call ended.
#[derive(Debug)]
pub(crate) enum CallEnd {
    /// With a value.
    Done(Box<RawValue>),
    /// Without one.
    Failed(Failure),
    /// It was not run to its end: the drain's time was over.
    NotRun,
}

/// Which calls of a message this slot runs: those from the next one on, unless they were taken out.
pub(crate) struct Share {
    inner: Mutex<Claims>,
}

struct Claims {
    next: usize,
    end: usize,
    /// Counts the threads of a slot: one that was left to itself claims nothing more.
    thread: usize,
}

impl Share {
    pub(crate) fn new(calls: usize) -> Self {
        Self { inner: Mutex::new(Claims { next: 0, end: calls, thread: 0 }) }
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next call to run; none when all are claimed or were taken out.
    fn claim(&self, thread: usize) -> Option<usize> {
        let mut claims = self.claims();
        if claims.thread != thread || claims.next >= claims.end {
            return None;
        }
        claims.next += 1;
        Some(claims.next - 1)
    }

    /// A new thread claims from here on, whatever an older one still does.
    fn next_thread(&self) -> usize {
        let mut claims = self.claims();
        claims.thread += 1;
        claims.thread
    }

    /// Takes out all calls that are not claimed yet.
    pub(crate) fn take_rest(&self) -> Range<usize> {
        let mut claims = self.claims();
        let rest = claims.next..claims.end;
        claims.end = claims.next;
        rest
    }

    fn is_empty(&self) -> bool {
        let claims = self.claims();
        claims.next >= claims.end
    }
}

/// Runs the calls of its share one after the other; the ends come in the order of the calls, [`CallEnd::NotRun`] for
/// those that were taken out. `stop` ends it early.
pub(crate) async fn execute(
    handler: &Handler,
    calls: Vec<Call>,
    share: Arc<Share>,
    timeout: Duration,
    stop: &CancellationToken,
) -> Vec<CallEnd> {
    let count = calls.len();
    let mut ends = match handler {
        Handler::Async(handler) => {
            let mut ends = Vec::with_capacity(count);
            for call in calls {
                if (stop.is_cancelled() && !ends.is_empty()) || share.claim(0).is_none() {
                    break;
                }
                let abandon = call.stop.clone();
                let answer = tokio::time::timeout(timeout, caught(handler(call)));
                let end = tokio::select! {
                    biased;
                    answer = answer => judge(answer.ok(), timeout),
                    () = stop.cancelled() => CallEnd::NotRun,
                };
                abandon.cancel();
                ends.push(end);
            }
            ends
        }
        Handler::Blocking(handler) => on_threads(handler, Arc::new(calls), &share, timeout, stop).await,
    };
    ends.resize_with(count, || CallEnd::NotRun);
    ends
}

type Blocking = Arc<dyn Fn(&Call) -> Reply + Send + Sync>;

/// A thread runs the calls and sends each reply. When one takes too long the thread is left to itself (nothing can end
/// it) and another goes on with the next call.
async fn on_threads(
    handler: &Blocking,
    calls: Arc<Vec<Call>>,
    share: &Arc<Share>,
    timeout: Duration,
    stop: &CancellationToken,
) -> Vec<CallEnd> {
    let mut ends = Vec::with_capacity(calls.len());
    while !share.is_empty() && (ends.is_empty() || !stop.is_cancelled()) {
        let mut replies = start_thread(handler.clone(), calls.clone(), share.clone());
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
                    share.next_thread();
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
            share.take_rest();
            calls.iter().for_each(|call| call.stop.cancel());
            break;
        }
    }
    ends
}

fn start_thread(handler: Blocking, calls: Arc<Vec<Call>>, share: Arc<Share>) -> mpsc::Receiver<Result<Reply, Failure>> {
    let (sender, receiver) = mpsc::channel(64);
    let thread = share.next_thread();
    tokio::task::spawn_blocking(move || {
        while let Some(call) = share.claim(thread).and_then(|next| calls.get(next)) {
            let reply = in_handler(|| handler(call));
            if sender.blocking_send(reply).is_err() {
                return;
            }
        }
    });
    receiver
}

fn judge(answer: Option<Result<Reply, Failure>>, timeout: Duration) -> CallEnd {
    match answer {
        None => {
            CallEnd::Failed(Failure::new("timeout", format!("no end within {}", humantime::format_duration(timeout))))
        }
        Some(Err(panic)) => CallEnd::Failed(panic.bounded()),
        Some(Ok(Err(failure))) => CallEnd::Failed(failure.bounded()),
        Some(Ok(Ok(value))) if value.get().len() > RESULT_BYTES_MAX => CallEnd::Failed(Failure::fatal(
            "result_too_large",
            format!("the result has {} bytes, at most {RESULT_BYTES_MAX} are kept", value.get().len()),
        )),
        Some(Ok(Ok(value))) => CallEnd::Done(value),
    }
}

/// Polls a handler's future; a panic is its end.
async fn caught(future: impl Future<Output = Reply>) -> Result<Reply, Failure> {
    let mut future = pin!(future);
    poll_fn(move |context| match in_handler(|| future.as_mut().poll(context)) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => std::task::Poll::Ready(Err(panic)),
    })
    .await
}

thread_local! {
    /// Where the last panic inside a handler happened on this thread; none outside of handlers.
    static PANIC_AT: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn in_handler<T>(run: impl FnOnce() -> T) -> Result<T, Failure> {
    PANIC_AT.with_borrow_mut(|at| *at = Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(run));
    let at = PANIC_AT.with_borrow_mut(Option::take);
    result.map_err(|payload| {
        let mut failure = Failure::new("panic", text_of(payload.as_ref()));
        failure.traceback = at.filter(|at| !at.is_empty());
        failure
    })
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

/// Keeps the place of a handler's panic for its failure, instead of writing it to standard error.
pub(crate) fn note_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let noted = PANIC_AT.with_borrow_mut(|at| {
                at.as_mut().map(|at| *at = info.location().map(ToString::to_string).unwrap_or_default()).is_some()
            });
            if !noted {
                before(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn call(payload: &str) -> Call {
        Call { id: "t".into(), attempt: 1, payload: Bytes::from(payload.to_owned()), stop: CancellationToken::new() }
    }

    async fn run(kind: &str, payloads: &[&str], timeout: Duration, stop: &CancellationToken) -> Vec<CallEnd> {
        note_panics();
        let handlers = crate::handlers::built_in();
        let share = Arc::new(Share::new(payloads.len()));
        execute(&handlers[kind], payloads.iter().map(|p| call(p)).collect(), share, timeout, stop).await
    }

    fn kind(end: &CallEnd) -> &str {
        match end {
            CallEnd::Done(_) => "done",
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
    async fn what_is_taken_out_is_not_run() {
        for handler in ["sleep", "spin"] {
            let calls: Vec<Call> = ["0.2", "0", "0"].into_iter().map(call).collect();
            let (share, stop) = (Arc::new(Share::new(3)), CancellationToken::new());
            let handlers = crate::handlers::built_in();
            let running = execute(&handlers[handler], calls, share.clone(), LONG, &stop);
            let taking = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                share.take_rest()
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

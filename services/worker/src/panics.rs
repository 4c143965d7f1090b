//! Catches the panic of a handler, so that it ends the task and not the worker, and notes the place where it happened.

use std::any::Any;
use std::cell::RefCell;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;

use millpond::outcome::Failure;

use crate::call::Reply;

thread_local! {
    /// Where a handler has panicked on this thread: none while no handler runs, empty while it has not panicked.
    static PANIC_AT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Polls a handler's future until it ends; a panic ends it with a failure.
pub(crate) async fn caught(future: impl Future<Output = Reply>) -> Reply {
    let mut future = pin!(future);
    poll_fn(move |context| match in_handler(|| future.as_mut().poll(context)) {
        Ok(poll) => poll,
        Err(panic) => std::task::Poll::Ready(Err(panic)),
    })
    .await
}

/// Runs a handler, or polls it once; a panic becomes a failure.
pub(crate) fn in_handler<T>(run: impl FnOnce() -> T) -> Result<T, Failure> {
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

/// From now on the place of a handler's panic goes into its failure instead of to standard error.
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

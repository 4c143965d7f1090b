//! Which of a message's calls are a slot's own, and how each ended. The others can be taken out while it runs.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millpond::limits::RESULT_BYTES_MAX;
use millpond::outcome::Failure;
use serde_json::value::RawValue;

use crate::call::Reply;

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

impl CallEnd {
    /// The end of a call whose handler answered.
    pub(crate) fn of(reply: Reply) -> Self {
        match reply {
            Err(failure) => Self::Failed(failure.bounded()),
            Ok(value) if value.get().len() > RESULT_BYTES_MAX => Self::Failed(Failure::fatal(
                "result_too_large",
                format!("the result has {} bytes, at most {RESULT_BYTES_MAX} are kept", value.get().len()),
            )),
            Ok(value) => Self::Done(value),
        }
    }
}

impl CallEnd {
    /// Whether its result goes to the store.
    pub(crate) fn is_large(&self) -> bool {
        matches!(self, Self::Done(value) if crate::large::is_large(value))
    }
}

/// Why a call that took too long failed.
pub(crate) fn too_late(timeout: Duration) -> Failure {
    Failure::new("timeout", format!("no end within {}", humantime::format_duration(timeout)))
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
    pub(crate) fn claim(&self, thread: usize) -> Option<usize> {
        let mut claims = self.claims();
        if claims.thread != thread || claims.next >= claims.end {
            return None;
        }
        claims.next += 1;
        Some(claims.next - 1)
    }

    /// Calls that are claimed so far.
    pub(crate) fn claimed(&self) -> usize {
        self.claims().next
    }

    /// A new thread claims from here on, whatever an older one still does.
    pub(crate) fn next_thread(&self) -> usize {
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

    pub(crate) fn is_empty(&self) -> bool {
        let claims = self.claims();
        claims.next >= claims.end
    }
}

//! Which of a message's calls a slot runs. The others can be taken out while it runs.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which calls of a message its slot still runs: those from the next one on, unless they were taken out.
pub(crate) struct WorkCursor {
    inner: Mutex<Unclaimed>,
}

struct Unclaimed {
    next: usize,
    end: usize,
    /// Counts the threads of a slot: a thread that was left to itself claims nothing more.
    thread: usize,
}

impl WorkCursor {
    pub(crate) fn new(calls: usize) -> Self {
        Self { inner: Mutex::new(Unclaimed { next: 0, end: calls, thread: 0 }) }
    }

    fn claims(&self) -> MutexGuard<'_, Unclaimed> {
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

//! Polls tasks once where they were taken. A task of a fast asynchronous handler ends in that poll: it costs no task of the runtime
//! and no wake-up. What is pending goes on elsewhere. All stages and their order are those of any other task (`process.rs`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use millpond::bus::consume::lease::Lease;
use nix::time::{ClockId, clock_gettime};

use crate::context::WorkerContext;
use crate::handlers::Handler;
use crate::report::stats::KindStats;

/// The loop polls tasks for this long in one turn at the most: meanwhile it takes none and pulls none.
const TURN_MAX: Duration = Duration::from_millis(2);
/// A poll that took as long is suspicious; one that computed for as long keeps its kind away for a while.
const SLOW_POLL: Duration = Duration::from_micros(200);

/// The polls of one turn of the loop.
pub(super) struct FirstPolls {
    began: Instant,
}

impl FirstPolls {
    /// Begins a turn.
    pub(super) fn new() -> Self {
        Self { began: Instant::now() }
    }

    /// The counts of its kind where a task is most likely to end in its first poll, and may be polled here.
    pub(super) fn fitting<'a>(&self, context: &'a WorkerContext, lease: &Lease) -> Option<&'a KindStats> {
        let kind = &lease.task.subject.kind;
        let stats = context.stats.of(kind);
        let fits = !lease.task.is_batch()
            && matches!(context.handlers.get(kind), Some(Handler::Async(_)))
            && stats.pace.is_fast()
            && self.began.elapsed() < TURN_MAX;
        fits.then_some(stats)
    }

    /// Polls a task of a kind; whether it has ended.
    pub(super) fn has_ended<F: Future<Output = ()>>(&self, task: Pin<&mut F>, stats: &KindStats) -> bool {
        // A poll may also take long because this thread did not run: only the next ones tell.
        let computed_before = stats.pace.is_watched().then(thread_time);
        let began = Instant::now();
        // What of it is pending is polled again, by who can wake it. The budget is that of the loop, not of its tasks.
        let poll = || tokio::task::coop::unconstrained(task).now_or_never().is_some();
        // As a task of the runtime would: a panic ends this task, whose lease is dropped, and not the loop.
        let has_ended = catch_unwind(AssertUnwindSafe(poll)).unwrap_or(true);
        match computed_before {
            Some(before) if thread_time().saturating_sub(before) >= SLOW_POLL => stats.pace.note_slow_poll(),
            None if began.elapsed() >= SLOW_POLL => stats.pace.watch(),
            _ => {}
        }
        has_ended
    }
}

/// CPU time of this thread.
fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

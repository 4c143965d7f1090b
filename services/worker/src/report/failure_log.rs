//! A log line for each attempt that failed and for each dead letter, so that they are found where people look first, with or
//! without traces. A kind whose tasks all fail has a bounded number of lines in a while, and then one with the count of the others.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use millpond::outcome::Failure;
use millpond::task::Task;
use millpond::telemetry::{Scope, TaskFields, TraceContext};

/// Lines of a kind in [`WINDOW`].
const LINES_MAX: u32 = 20;
/// How often the lines are counted anew.
const WINDOW: Duration = Duration::from_secs(10);

/// An item whose attempt failed, or that is a dead letter without one.
pub(crate) struct FailedItem {
    /// The task's id.
    pub(crate) id: String,
    pub(crate) failure: Failure,
    pub(crate) consequence: Consequence,
}

/// What becomes of an item that failed.
pub(crate) enum Consequence {
    /// It is tried again after that long.
    Retry(Duration),
    /// It is a dead letter for this reason.
    DeadLetter(String),
}

/// Writes the lines.
pub(crate) struct FailureLog {
    /// Lines of each kind in this window, and those that were left out.
    by_kind: Mutex<BTreeMap<String, (u32, u64)>>,
}

impl FailureLog {
    /// For a worker of these kinds. All others are counted together: anybody may publish under any name.
    pub(crate) fn new<'a>(kinds: impl Iterator<Item = &'a String>) -> Self {
        let of_others = [String::new()];
        Self { by_kind: Mutex::new(kinds.cloned().chain(of_others).map(|kind| (kind, (0, 0))).collect()) }
    }

    /// Writes a line for each item of a task that failed, as far as its kind may have more.
    pub(crate) fn write(&self, task: &Task, trace: TraceContext, failed: Vec<FailedItem>) {
        let (queue, kind) = (&task.subject.queue, &task.subject.kind);
        for FailedItem { id, failure, consequence } in failed {
            if !self.allows(kind) {
                continue;
            }
            let fields =
                TaskFields { task_id: id, queue: Some(queue.clone()), kind: Some(kind.clone()), attempt: task.attempt };
            let scope = Scope::new(fields, Some(trace));
            let _in = scope.enter();
            let (job, kind, message) = (task.subject.job.as_deref(), failure.kind, failure.message);
            match consequence {
                Consequence::Retry(again_in) => {
                    tracing::warn!(
                        name: "millpond.attempt.failed",
                        job,
                        "exception.type" = kind,
                        "exception.message" = message,
                        ?again_in,
                        "an attempt failed; the task is tried again"
                    );
                }
                Consequence::DeadLetter(reason) => {
                    tracing::error!(
                        name: "millpond.task.dead_letter",
                        job,
                        "exception.type" = kind,
                        "exception.message" = message,
                        reason,
                        "a task is a dead letter"
                    );
                }
            }
        }
    }

    fn allows(&self, kind: &str) -> bool {
        let mut by_kind = self.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
        let known = if by_kind.contains_key(kind) { kind } else { "" };
        let Some((lines, left_out)) = by_kind.get_mut(known) else { return false };
        if *lines < LINES_MAX {
            *lines += 1;
            return true;
        }
        *left_out += 1;
        false
    }

    /// Ends a window: says of each kind how many had no line.
    pub(crate) fn count_anew(&self) {
        let mut by_kind = self.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, (lines, left_out)) in by_kind.iter_mut() {
            let more = std::mem::take(left_out);
            *lines = 0;
            if more > 0 && kind.is_empty() {
                tracing::warn!(more, "more attempts failed, of kinds without a handler here, than have a line");
            } else if more > 0 {
                tracing::warn!(kind, more, "more attempts failed than have a line");
            }
        }
    }

    /// Ends each window, until it is aborted.
    pub(crate) async fn count_anew_for_ever(&self) {
        loop {
            tokio::time::sleep(WINDOW).await;
            self.count_anew();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_kind_are_bounded_and_those_of_another_stay() {
        let log = FailureLog::new(["resize".to_owned()].iter());
        let written = |kind: &str| (0..100).filter(|_| log.allows(kind)).count();
        assert_eq!(written("resize"), 20);
        assert_eq!((written("made_up_1"), written("made_up_2")), (20, 0), "names that others make up count together");
        let left_out: Vec<u64> = log.by_kind.lock().unwrap().values().map(|(_, left_out)| *left_out).collect();
        assert_eq!(left_out, [180, 80]);
        log.count_anew();
        assert_eq!(written("resize"), 20);
    }
}

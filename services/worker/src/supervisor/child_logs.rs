//! Makes each line of a child's standard error a log event of the worker, with the child, its kind, its task and its trace.

use bytes::Bytes;
use millpond::telemetry::{Scope, TaskFields};
use tracing::{debug, error, info, trace, warn};

use super::child_status::{ChildStatus, LOG_BURST_BYTES, LOG_BYTES_PER_S, LogAllowance};
use super::log_line::{self, LogLevel, LogLine};

/// Longest log line of a child, in bytes; a longer one comes as several.
pub(crate) const LOG_LINE_BYTES_MAX: usize = 16 * 1024;
/// The event name of such a line.
const CHILD_LINE: &str = "millpond.child.line";

/// Logs a line of standard output that is no answer, and keeps it for the evidence of a failure.
pub(crate) fn log_stdout(status: &ChildStatus, line: &Bytes) {
    let text = text_of(line.get(..LOG_LINE_BYTES_MAX).unwrap_or(line));
    if text.is_empty() {
        return;
    }
    status.logged(&text);
    if !is_within_allowance(status, &text) {
        return;
    }
    let scope = scope(status);
    let _in = scope.as_ref().map(Scope::enter);
    let (worker, child, kind) = (status.worker.as_str(), status.name.as_str(), status.kind.as_str());
    info!(name: CHILD_LINE, worker, child, kind, stream = "stdout", "{text}");
}

/// What a child has written, without line end and colours; where nothing else is in it, as it is.
fn text_of(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches('\r');
    let stripped = anstream::adapter::strip_str(text).to_string();
    if stripped.is_empty() { text.to_owned() } else { stripped }
}

/// Where the lines of a child belong now.
fn scope(status: &ChildStatus) -> Option<Scope> {
    status.running().map(|running| {
        let task = TaskFields { task_id: running.id, queue: None, kind: None, attempt: running.attempt };
        Scope::new(task, running.trace)
    })
}

/// Whether a line may go to the log: a task that floods it has its share and no more, and is said to have been cut.
fn is_within_allowance(status: &ChildStatus, text: &str) -> bool {
    let scope = scope(status);
    let _in = scope.as_ref().map(Scope::enter);
    let (worker, child, kind) = (status.worker.as_str(), status.name.as_str(), status.kind.as_str());
    match status.allow_log(text.len()) {
        LogAllowance::Within => true,
        LogAllowance::Again { lines } => {
            warn!(worker, child, kind, lines, "log lines of a child were left out, because there were too many");
            true
        }
        LogAllowance::Begins => {
            let (burst, rate) = (LOG_BURST_BYTES >> 10, LOG_BYTES_PER_S >> 10);
            warn!(
                worker,
                child,
                kind,
                "a task logs too much: from here on lines are left out beyond {burst} KiB and {rate} KiB a second"
            );
            false
        }
        LogAllowance::Beyond => false,
    }
}

/// Logs a line, or lines that belong together, and keeps them for the evidence of a failure.
pub(crate) fn log(status: &ChildStatus, line: &Bytes) {
    let text = text_of(line);
    if text.is_empty() {
        return;
    }
    text.lines().for_each(|line| status.logged(line));
    if !is_within_allowance(status, &text) {
        return;
    }
    let LogLine { level, message, more } = log_line::read(&text);
    let scope = scope(status).unwrap_or_else(Scope::current).with_line(more);
    let _in = scope.enter();
    let (worker, child, kind) = (status.worker.as_str(), status.name.as_str(), status.kind.as_str());
    // Each level needs a call of its own: `tracing` takes it at compile time.
    match level {
        LogLevel::Trace => trace!(name: CHILD_LINE, worker, child, kind, "{message}"),
        LogLevel::Debug => debug!(name: CHILD_LINE, worker, child, kind, "{message}"),
        LogLevel::Info => info!(name: CHILD_LINE, worker, child, kind, "{message}"),
        LogLevel::Warn => warn!(name: CHILD_LINE, worker, child, kind, "{message}"),
        LogLevel::Error => error!(name: CHILD_LINE, worker, child, kind, "{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_evidence() {
        let status = ChildStatus::new("w", "k", 1, 0, 0);
        log(&status, &Bytes::from_static(b"one\r"));
        log(&status, &Bytes::from_static(b""));
        log(&status, &Bytes::from_static(b"\xff \x1b[31mtwo\x1b[0m"));
        log(&status, &Bytes::from_static(b"\x1b\x1b"));
        assert_eq!(status.evidence(None, false).log, ["one", "\u{fffd} two", "\u{1b}\u{1b}"]);
    }
}

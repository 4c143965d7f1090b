//! Makes each line of a child's standard error a log event of the worker, with the child, its kind, its task and its trace.

use bytes::Bytes;
use millpond::telemetry::{Scope, TaskFields};
use serde::Deserialize;
use tracing::{debug, error, info, trace, warn};

use super::child_status::{ChildStatus, LOG_BURST_BYTES, LOG_BYTES_PER_S, LogAllowance};

/// Longest log line of a child, in bytes; a longer one comes as several.
pub(crate) const LOG_LINE_BYTES_MAX: usize = 16 * 1024;

/// A line that is JSON, as the common loggers write it.
#[derive(Deserialize)]
struct JsonLogLine {
    #[serde(alias = "levelname", alias = "severity", alias = "lvl", alias = "log.level")]
    level: Option<LogLineLevel>,
    #[serde(alias = "msg", alias = "event")]
    message: Option<String>,
}

/// A level by its name, or by its number in pino and bunyan.
#[derive(Deserialize)]
#[serde(untagged)]
enum LogLineLevel {
    Name(String),
    Number(u64),
}

impl LogLineLevel {
    /// The first letter of the level's name.
    fn letter(&self) -> u8 {
        match self {
            Self::Name(name) => name.bytes().next().map_or(b'i', |b| b.to_ascii_lowercase()),
            Self::Number(0..20) => b't',
            Self::Number(20..30) => b'd',
            Self::Number(30..40) => b'i',
            Self::Number(40..50) => b'w',
            Self::Number(_) => b'e',
        }
    }
}

/// Logs a line of standard output that is no answer, and keeps it for the evidence of a failure.
pub(crate) fn log_stdout(status: &ChildStatus, line: &Bytes) {
    let text = String::from_utf8_lossy(line.get(..LOG_LINE_BYTES_MAX).unwrap_or(line));
    let text = text.trim_end_matches('\r');
    if text.is_empty() {
        return;
    }
    status.logged(text);
    let scope = scope(status);
    let _in = scope.as_ref().map(Scope::enter);
    if !is_within_allowance(status, text) {
        return;
    }
    let (worker, child, kind) = (status.worker.as_str(), status.name.as_str(), status.kind.as_str());
    info!(worker, child, kind, stream = "stdout", "{text}");
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
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches('\r');
    if text.is_empty() {
        return;
    }
    text.lines().for_each(|line| status.logged(line));
    let json = text.starts_with('{').then(|| serde_json::from_str::<JsonLogLine>(text).ok()).flatten();
    let level = json.as_ref().and_then(|json| json.level.as_ref()).map_or(b'i', LogLineLevel::letter);
    let message = json.and_then(|json| json.message);
    let message = message.as_deref().unwrap_or(text);
    let scope = scope(status);
    let _in = scope.as_ref().map(Scope::enter);
    if !is_within_allowance(status, text) {
        return;
    }
    let (worker, child, kind) = (status.worker.as_str(), status.name.as_str(), status.kind.as_str());
    // Each level needs a call of its own: `tracing` takes it at compile time.
    match level {
        b't' => trace!(worker, child, kind, "{message}"),
        b'd' => debug!(worker, child, kind, "{message}"),
        b'w' => warn!(worker, child, kind, "{message}"),
        b'e' | b'f' | b'c' | b'p' => error!(worker, child, kind, "{message}"),
        _ => info!(worker, child, kind, "{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, level: u8, message: Option<&str>) {
        let json: JsonLogLine = serde_json::from_str(line).unwrap();
        assert_eq!(json.level.as_ref().map(LogLineLevel::letter), Some(level), "{line}");
        assert_eq!(json.message.as_deref(), message, "{line}");
    }

    #[test]
    fn levels_of_common_loggers() {
        check(r#"{"level":"WARNING","message":"m"}"#, b'w', Some("m"));
        check(r#"{"levelname":"ERROR","msg":"m"}"#, b'e', Some("m"));
        check(r#"{"level":50,"msg":"m"}"#, b'e', Some("m"));
        check(r#"{"severity":"debug"}"#, b'd', None);
        check(r#"{"log.level":"Critical","message":"m"}"#, b'c', Some("m"));
    }

    #[test]
    fn a_line_becomes_evidence() {
        let status = ChildStatus::new("w", "k", 1, 0, 0);
        log(&status, &Bytes::from_static(b"one\r"));
        log(&status, &Bytes::from_static(b""));
        log(&status, &Bytes::from_static(b"\xff two"));
        assert_eq!(status.evidence(None, false).log, ["one", "\u{fffd} two"]);
    }
}

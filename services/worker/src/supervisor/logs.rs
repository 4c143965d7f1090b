//! A child's standard error, line by line, as log events of the worker with the child, its kind, its task and its trace.

use bytes::Bytes;
use millpond::telemetry::{Scope, TaskFields};
use serde::Deserialize;
use tracing::{debug, error, info, trace, warn};

use super::view::View;

/// A line that is JSON, as the common loggers write it.
#[derive(Deserialize)]
struct Structured {
    #[serde(alias = "levelname", alias = "severity", alias = "lvl", alias = "log.level")]
    level: Option<Level>,
    #[serde(alias = "msg", alias = "event")]
    message: Option<String>,
}

/// A name, or a number as pino and bunyan write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Level {
    Name(String),
    Number(u64),
}

impl Level {
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

/// Keeps a line for the evidence and makes it a log event.
pub(crate) fn line(view: &View, line: &Bytes) {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches('\r');
    if text.is_empty() {
        return;
    }
    view.logged(text);
    let structured = text.starts_with('{').then(|| serde_json::from_str::<Structured>(text).ok()).flatten();
    let level = structured.as_ref().and_then(|s| s.level.as_ref()).map_or(b'i', Level::letter);
    let message = structured.and_then(|s| s.message);
    let message = message.as_deref().unwrap_or(text);
    let scope = view.running().map(|running| {
        let about = TaskFields { task_id: running.id, queue: None, kind: None, attempt: running.attempt };
        Scope::new(about, running.trace)
    });
    let _in = scope.as_ref().map(Scope::enter);
    let (worker, child, kind) = (view.worker.as_str(), view.name.as_str(), view.kind.as_str());
    // The level of an event is part of its place in the code.
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
        let structured: Structured = serde_json::from_str(line).unwrap();
        assert_eq!(structured.level.as_ref().map(Level::letter), Some(level), "{line}");
        assert_eq!(structured.message.as_deref(), message, "{line}");
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
        let view = View::new("w", "k", 1, 0, 0);
        line(&view, &Bytes::from_static(b"one\r"));
        line(&view, &Bytes::from_static(b""));
        line(&view, &Bytes::from_static(b"\xff two"));
        assert_eq!(view.evidence(None, false).log, ["one", "\u{fffd} two"]);
    }
}

//! What a log line of a child says: its level, its message, its fields, and the exception that it tells of, in the formats of the
//! common loggers of Python, Node, Go, Java and Ruby. No I/O.

use std::collections::BTreeMap;

use millpond::outcome::cut;
use millpond::telemetry::LineFields;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// Fields of one line that are kept; of more the first ones by name.
const FIELDS_MAX: usize = 32;
/// Longest value of a field, in bytes of JSON; a longer one is cut, as text.
const FIELD_BYTES_MAX: usize = 1024;
/// Fields within fields are read up to here; what lies deeper is kept as text.
const DEPTH_MAX: usize = 16;
/// Digits that a number with a fraction or an exponent may have: so many come back from 64 bits as they were.
const DIGITS_MAX: usize = 15;
/// Words of a plain line that are looked at for a level.
const LEVEL_WORDS_MAX: usize = 6;

/// The names of these in the common loggers.
const LEVELS: [&str; 5] = ["level", "levelname", "severity", "lvl", "log.level"];
const MESSAGES: [&str; 3] = ["message", "msg", "event"];
/// Texts of exceptions, with their stacks.
const STACKS: [&str; 6] = ["exc_info", "exception", "stack", "stack_trace", "stacktrace", "error.stack_trace"];
/// What the line has already.
const LEFT_OUT: [&str; 6] = ["time", "timestamp", "@timestamp", "ts", "asctime", "v"];

/// How a line that begins a stack looks.
const PYTHON: &str = "Traceback (most recent call last):";
const STACK_BEGINNINGS: [&str; 4] = ["Exception in thread ", "goroutine ", "Caused by: ", "panic: "];

/// The level of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// A line, read.
#[derive(Debug)]
pub(super) struct LogLine {
    pub(super) level: LogLevel,
    pub(super) message: String,
    pub(super) more: LineFields,
}

/// Reads a line, or lines that belong together. Colours must be gone already.
pub(super) fn read(text: &str) -> LogLine {
    let object =
        text.starts_with('{').then(|| serde_json::from_str::<BTreeMap<String, &RawValue>>(text).ok()).flatten();
    match object {
        Some(object) => {
            of_object(object.into_iter().map(|(name, value)| (name, value_of(value, DEPTH_MAX))).collect(), text)
        }
        None => of_text(text),
    }
}

/// A value of JSON, of which nothing changes: a number that 64 bits do not hold becomes the text that was written, and so does what
/// lies too deep.
fn value_of(value: &RawValue, depth: usize) -> Value {
    let text = value.get();
    let read: Option<Value> = match text.bytes().next() {
        Some(b'[' | b'{') if depth == 0 => None,
        Some(b'[') => serde_json::from_str::<Vec<&RawValue>>(text)
            .ok()
            .map(|values| values.into_iter().map(|value| value_of(value, depth - 1)).collect()),
        Some(b'{') => serde_json::from_str::<BTreeMap<String, &RawValue>>(text)
            .ok()
            .map(|object| object.into_iter().map(|(name, value)| (name, value_of(value, depth - 1))).collect()),
        Some(b'-' | b'0'..=b'9') => serde_json::from_str(text).ok().filter(|number| holds(number, text)),
        _ => serde_json::from_str(text).ok(),
    };
    read.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Whether a number is the one that was written.
fn holds(number: &Value, text: &str) -> bool {
    if number.is_i64() || number.is_u64() {
        return true;
    }
    let digits = text.split(['e', 'E']).next().unwrap_or_default().bytes().filter(u8::is_ascii_digit);
    // An integer that has become one with a fraction had more than 64 bits.
    text.contains(['.', 'e', 'E']) && digits.skip_while(|digit| *digit == b'0').count() <= DIGITS_MAX
}

fn of_object(mut object: Map<String, Value>, text: &str) -> LogLine {
    let level = LEVELS.iter().find_map(|name| level_of(&object.remove(*name)?));
    // A field of this name that is no text stays a field.
    let mut take_text = |names: &[&str]| {
        let name = names.iter().find(|name| object.get(**name).is_some_and(Value::is_string))?;
        object.remove(*name).and_then(|value| value.as_str().map(str::to_owned))
    };
    let message = take_text(&MESSAGES);
    let mut stacktrace = take_text(&STACKS);
    let mut exception_type = None;
    // As pino and bunyan have it: {"type", "message", "stack"}.
    for name in ["err", "error"] {
        let Some(Value::Object(error)) = object.get(name) else { continue };
        let of_error = |name: &str| error.get(name).and_then(Value::as_str).map(str::to_owned);
        exception_type = of_error("type").or_else(|| of_error("name"));
        stacktrace = stacktrace.or_else(|| of_error("stack"));
    }
    object.retain(|name, value| !LEFT_OUT.contains(&name.as_str()) && !value.is_null());
    let fields = object.into_iter().take(FIELDS_MAX).map(|(name, value)| (name, bounded(value))).collect();
    let exception_type = exception_type.or_else(|| type_in(stacktrace.as_deref()?));
    LogLine {
        level: level.unwrap_or(LogLevel::Info),
        message: message.unwrap_or_else(|| text.to_owned()),
        more: LineFields { fields, exception_type, stacktrace },
    }
}

fn bounded(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(cut(text, FIELD_BYTES_MAX)),
        Value::Array(_) | Value::Object(_) => {
            let text = value.to_string();
            if text.len() <= FIELD_BYTES_MAX { value } else { Value::String(cut(text, FIELD_BYTES_MAX)) }
        }
        value => value,
    }
}

fn of_text(text: &str) -> LogLine {
    let is_stack = text.contains(PYTHON) || STACK_BEGINNINGS.iter().any(|start| text.starts_with(start));
    if !is_stack {
        return LogLine {
            level: level_in(text).unwrap_or(LogLevel::Info),
            message: text.to_owned(),
            more: LineFields::default(),
        };
    }
    // What was logged above the traceback is the message; else the traceback's own last line.
    let (above, stack) = text.split_once(PYTHON).map_or(("", text), |(above, _)| (above.trim(), text));
    let last = stack.lines().last().unwrap_or_default();
    let message = match above.lines().next() {
        Some(line) => line,
        None if text.contains(PYTHON) => last,
        None => stack.lines().next().unwrap_or_default(),
    };
    let more =
        LineFields { exception_type: type_in(stack), stacktrace: Some(stack.to_owned()), ..LineFields::default() };
    LogLine { level: LogLevel::Error, message: message.to_owned(), more }
}

/// The type of the exception in a stack: Python has it in front of the last line, others of the first.
fn type_in(stack: &str) -> Option<String> {
    let line = if stack.contains(PYTHON) { stack.lines().last()? } else { stack.lines().next()? };
    let line = line.strip_prefix("Exception in thread ").map_or(line, |rest| rest.rsplit("\" ").next().unwrap_or(rest));
    let name = line.split(':').next()?.trim();
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '$'));
    (is_name && name.chars().any(char::is_uppercase)).then(|| name.to_owned())
}

/// A level by its name, or by its number in pino and bunyan.
fn level_of(value: &Value) -> Option<LogLevel> {
    match value {
        Value::String(name) => level_named(name),
        Value::Number(number) => number.as_u64().map(|number| match number {
            0..20 => LogLevel::Trace,
            20..30 => LogLevel::Debug,
            30..40 => LogLevel::Info,
            40..50 => LogLevel::Warn,
            _ => LogLevel::Error,
        }),
        _ => None,
    }
}

fn level_named(name: &str) -> Option<LogLevel> {
    Some(match name.to_ascii_lowercase().as_str() {
        "trace" | "verbose" | "silly" | "finest" | "finer" => LogLevel::Trace,
        "debug" | "fine" | "dbg" => LogLevel::Debug,
        "info" | "notice" | "information" | "informational" | "config" | "inf" => LogLevel::Info,
        "warn" | "warning" | "wrn" => LogLevel::Warn,
        "error" | "err" | "critical" | "fatal" | "severe" | "panic" | "alert" | "emergency" | "emerg" | "crit" => {
            LogLevel::Error
        }
        _ => return None,
    })
}

/// The level in a plain line: one of the first words, in capital letters, alone or before a colon (`WARNING:root:text`,
/// `2026-01-31 12:00:00,123 ERROR com.example - text`, `[WARN] text`, `level=warn msg=text`).
fn level_in(text: &str) -> Option<LogLevel> {
    text.split_whitespace().take(LEVEL_WORDS_MAX).find_map(|word| {
        if let Some(level) = word.strip_prefix("level=") {
            return level_named(level.trim_matches('"'));
        }
        let word = word.trim_start_matches(['[', '(', '<', '|']);
        let name = word.split([']', ')', '>', ':', '|', ',']).next()?;
        (name.len() > 2 && name.bytes().all(|b| b.is_ascii_uppercase())).then(|| level_named(name)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn levels_and_messages_of_common_loggers() {
        use LogLevel::{Debug, Error, Info, Trace, Warn};
        for (line, level, message) in [
            (r#"{"level":"WARNING","message":"m"}"#, Warn, "m"),
            (r#"{"levelname":"ERROR","msg":"m"}"#, Error, "m"),
            (r#"{"level":50,"msg":"m"}"#, Error, "m"),
            (r#"{"level":10,"msg":"m"}"#, Trace, "m"),
            (r#"{"severity":"debug"}"#, Debug, r#"{"severity":"debug"}"#),
            (r#"{"log.level":"Critical","message":"m"}"#, Error, "m"),
            (r#"{"level":"info","event":"structlog"}"#, Info, "structlog"),
            (r#"{"message":{"a":1}}"#, Info, r#"{"message":{"a":1}}"#),
            ("WARNING:root:disk is nearly full", Warn, "WARNING:root:disk is nearly full"),
            (
                "2026-01-31 12:00:00,123 ERROR com.example.Main - no",
                Error,
                "2026-01-31 12:00:00,123 ERROR com.example.Main - no",
            ),
            ("SEVERE: x", Error, "SEVERE: x"),
            ("[DEBUG] x", Debug, "[DEBUG] x"),
            ("2026-01-31T12:00:00Z INFO [main] x", Info, "2026-01-31T12:00:00Z INFO [main] x"),
            ("time=2026 level=warn msg=x", Warn, "time=2026 level=warn msg=x"),
            (
                "Jan 31, 2026 12:00:00 PM com.example.Main run SEVERE: x",
                Info,
                "Jan 31, 2026 12:00:00 PM com.example.Main run SEVERE: x",
            ),
            ("an error is not one", Info, "an error is not one"),
            ("INFORMATION is what I want", Info, "INFORMATION is what I want"),
            ("", Info, ""),
        ] {
            let read = read(line);
            assert_eq!((read.level, read.message.as_str()), (level, message), "{line}");
        }
    }

    #[test]
    fn fields_are_kept_within_bounds() {
        let line = json!({"level": "info", "msg": "m", "user": 7, "path": "x".repeat(9000), "at": {"a": [1, null]}, "ts": 1, "no": null});
        let fields = read(&line.to_string()).more.fields;
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["at", "path", "user"]);
        assert_eq!((&fields["user"], &fields["at"]), (&json!(7), &json!({"a": [1, null]})));
        assert_eq!(fields["path"], "x".repeat(FIELD_BYTES_MAX) + "…");
        let many: Map<String, Value> = (0..100).map(|n| (format!("f{n}"), json!(n))).collect();
        assert_eq!(read(&Value::Object(many).to_string()).more.fields.len(), FIELDS_MAX);
    }

    #[test]
    fn no_number_is_changed() {
        for (written, kept) in [
            ("18446744073709551615", json!(u64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("1.5", json!(1.5)),
            ("1e3", json!(1e3)),
            ("0.00012345678901234", json!(0.000_123_456_789_012_34)),
            ("12345678901234567890123", json!("12345678901234567890123")),
            ("-9223372036854775809", json!("-9223372036854775809")),
            ("1e400", json!("1e400")),
            ("0.1234567890123456789", json!("0.1234567890123456789")),
            ("[12345678901234567890123,{\"a\":-1e999}]", json!(["12345678901234567890123", {"a": "-1e999"}])),
        ] {
            let read = read(&format!(r#"{{"level":"info","msg":"m","n":{written}}}"#));
            assert_eq!((read.message.as_str(), &read.more.fields["n"]), ("m", &kept), "{written}");
        }
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        let fields = read(&format!(r#"{{"msg":"m","deep":{deep}}}"#)).more.fields;
        assert!(fields["deep"].as_str().is_some_and(|text| text.starts_with("[[[[")), "it is kept as text");
    }

    #[test]
    fn exceptions_are_found_in_lines_and_in_plain_tracebacks() {
        let python = "Traceback (most recent call last):\n  File \"x.py\", line 1, in f\nValueError: no such user";
        for (line, message, name) in [
            (json!({"level": "error", "event": "failed", "exception": python}).to_string(), "failed", "ValueError"),
            (json!({"levelname": "ERROR", "message": "failed", "exc_info": python}).to_string(), "failed", "ValueError"),
            (json!({"level": 50, "msg": "failed", "err": {"type": "TypeError", "message": "no", "stack": "TypeError: no\n    at f (x.js:1:1)"}}).to_string(), "failed", "TypeError"),
            (json!({"level": "ERROR", "message": "failed", "stack_trace": "java.lang.IllegalStateException: no\n\tat x.Main"}).to_string(), "failed", "java.lang.IllegalStateException"),
            (python.to_owned(), "ValueError: no such user", "ValueError"),
            (format!("ERROR:root:failed\n{python}"), "ERROR:root:failed", "ValueError"),
            ("Exception in thread \"main\" java.lang.Error: no\n\tat x.Main".to_owned(), "Exception in thread \"main\" java.lang.Error: no", "java.lang.Error"),
        ] {
            let LogLine { level, message: said, more } = read(&line);
            assert_eq!((level, said.as_str()), (LogLevel::Error, message), "{line}");
            assert_eq!(more.exception_type.as_deref(), Some(name), "{line}");
            assert!(more.stacktrace.is_some_and(|stack| stack.contains('\n')), "{line}");
        }
        assert_eq!(read("panic: runtime error").more.exception_type, None);
    }
}

//! Calls: their bounds, and the codes of their failures. `bus/call` answers calls and carries pipes, `client` makes both. No I/O, no
//! clock.

use std::time::Duration;

use serde_json::value::RawValue;

use crate::outcome::{Failure, cut};
use crate::payload::{json_to_bytes, without_mark};
use crate::wire::decode::{DecodeError, decode};

/// Longest timeout of a call; deploy/nats/roles.conf lets a worker answer for a little longer.
pub const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// How long a call may take from its arrival at a worker, where its caller does not say.
pub const CALL_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Longest text of the header `Nats-Service-Error`, in bytes.
const ERROR_LINE_BYTES_MAX: usize = 512;

/// Why a call has no result, with the number of the HTTP status that is closest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The arguments or the headers are at fault, or the kind wants a pipe, or none.
    Bad,
    /// The handler ran, and did not end within the caller's time.
    Timeout,
    /// No slot came free within the caller's time. The handler has not run.
    NoSlot,
    /// The handler failed.
    Failed,
    /// The worker drains. The handler has not run; another call goes to another worker.
    Draining,
}

impl Code {
    /// Its number.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Bad => 400,
            Self::Timeout => 408,
            Self::NoSlot => 429,
            Self::Failed => 500,
            Self::Draining => 503,
        }
    }

    /// The code with this number; an unknown number counts as [`Code::Failed`].
    #[must_use]
    pub fn of(number: &str) -> Self {
        let all = [Self::Bad, Self::Timeout, Self::NoSlot, Self::Draining];
        all.into_iter().find(|code| code.number().to_string() == number).unwrap_or(Self::Failed)
    }

    /// The code of a handler's failure: never one that means that the handler has not run.
    #[must_use]
    pub fn of_failure(failure: &Failure) -> Self {
        match failure.kind.as_str() {
            "bad_arguments" => Self::Bad,
            "timeout" => Self::Timeout,
            _ => Self::Failed,
        }
    }

    /// Whether the handler never saw the call.
    #[must_use]
    pub fn has_not_run(self) -> bool {
        matches!(self, Self::NoSlot | Self::Draining)
    }
}

/// The failure that an error answer or the end of a pipe carries, cut to the bounds of every failure: another program wrote it.
///
/// # Errors
/// [`DecodeError`].
pub fn read_failure(payload: &[u8]) -> Result<Failure, DecodeError> {
    decode::<Failure>(payload).map(Failure::bounded)
}

/// The result that an answer carries; `is_bytes`: it is marked as bytes that are no JSON.
///
/// # Errors
/// A text that says what is wrong.
pub fn read_result(payload: &[u8], is_bytes: bool) -> Result<Box<RawValue>, String> {
    let value: Box<RawValue> = decode(without_mark(payload)).map_err(|e| format!("the result is not JSON: {e}"))?;
    if is_bytes && json_to_bytes(&value).is_none() {
        return Err(r#"the result is marked as bytes, and is not {"base64":"…"}"#.to_owned());
    }
    Ok(value)
}

/// A failure in one line.
#[must_use]
pub fn error_line(failure: &Failure) -> String {
    let line = format!("{}: {}", failure.kind, failure.message).replace(['\r', '\n'], " ");
    cut(line, ERROR_LINE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_parse_back() {
        for code in [Code::Bad, Code::Timeout, Code::NoSlot, Code::Failed, Code::Draining] {
            assert_eq!(Code::of(&code.number().to_string()), code);
        }
        assert_eq!(Code::of("418"), Code::Failed);
    }

    #[test]
    fn no_failure_of_a_handler_means_that_it_has_not_run() {
        for kind in ["draining", "no_slot", "503", "error"] {
            assert!(!Code::of_failure(&Failure::new(kind, "")).has_not_run(), "{kind}");
        }
    }

    #[test]
    fn what_an_answer_carries_is_checked_and_cut() {
        let long = format!(r#"{{"type":"{0}","message":"{0}","traceback":"{0}"}}"#, "x".repeat(20_000));
        assert!(serde_json::to_string(&read_failure(long.as_bytes()).unwrap()).unwrap().len() < 12_000);
        for bad in
            ["", "{}", "null", r#"{"type":"e","message":"m","child":{"name":"c","rss_bytes":18446744073709551615}}"#]
        {
            assert!(read_failure(bad.as_bytes()).is_err(), "{bad}");
        }
        let shown = r#"{"base64":"6Q=="}"#;
        for is_bytes in [true, false] {
            assert_eq!(read_result(shown.as_bytes(), is_bytes).unwrap().get(), shown);
        }
        assert_eq!(read_result("\u{feff}1.0".as_bytes(), false).unwrap().get(), "1.0");
        for (bad, is_bytes) in [("1", true), (r#"{"base64":"?"}"#, true), ("1 2", false), ("", false)] {
            assert!(read_result(bad.as_bytes(), is_bytes).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_is_one_line() {
        let failure = Failure::new("error", format!("a\r\nb{}", "x".repeat(1000)));
        let line = error_line(&failure);
        assert!(line.starts_with("error: a  bx") && line.len() < 520 && !line.contains('\n'), "{line}");
    }
}

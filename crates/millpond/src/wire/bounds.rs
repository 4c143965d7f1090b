//! The bounds of what comes over the wire: times, durations, counts and attempts. Every decoder checks by these; whoever says a
//! duration or a date is refused by the same ones. No I/O, no clock.

use std::time::Duration;

use crate::limits::{ATTEMPTS_MAX_MAX, TASK_ID_BYTES_MAX};

/// Longest duration that may be said: a year, as humantime has it.
pub const DURATION_MAX: Duration = Duration::from_secs(31_557_600);
/// The server computes times as nanoseconds in 64 bits: 1677-09-21 to 2262-04-11. In Unix milliseconds.
pub const TIME_MS_MAX: i64 = i64::MAX / 1_000_000;
/// Largest count, index or size: whole numbers up to here are exact in every program that reads JSON.
pub const COUNT_MAX: u64 = 1 << 53;
/// Longest id in bytes: that of a message, with the items that it covers behind it.
pub const ID_BYTES_MAX: usize = TASK_ID_BYTES_MAX + 32;
/// Instants that programs write where they mean that something never expires: the zero time of Go, and the last second of
/// a four-digit year, with or without a fraction.
const NEVER: [&str; 2] = ["0001-01-01T00:00:00", "9999-12-31T23:59:59"];

/// What the decoder checks of a value after its form: numbers within their bounds, and parts that fit together.
pub trait Bounded {
    /// Whether it keeps its bounds.
    ///
    /// # Errors
    /// A text that names what does not.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

impl<T: Bounded> Bounded for Vec<T> {
    fn check(&self) -> Result<(), String> {
        self.iter().try_for_each(Bounded::check)
    }
}

/// Checks a time, in Unix milliseconds.
///
/// # Errors
/// When the server could not compute with it.
pub fn time(what: &str, ms: i64) -> Result<(), String> {
    let fits = (-TIME_MS_MAX..=TIME_MS_MAX).contains(&ms);
    fits.then_some(())
        .ok_or_else(|| format!("{what} is {ms}, which is no time from the year 1677 to 2262 in milliseconds"))
}

/// Checks a count, an index or a size.
///
/// # Errors
/// When it is larger than [`COUNT_MAX`].
pub fn count(what: &str, count: u64) -> Result<(), String> {
    (count <= COUNT_MAX).then_some(()).ok_or_else(|| format!("{what} is {count}, at most {COUNT_MAX} is read"))
}

/// Reads a count as a header says it; none when it is no number, or larger than [`COUNT_MAX`].
#[must_use]
pub fn parse_count(text: &str) -> Option<u64> {
    text.parse().ok().filter(|count| *count <= COUNT_MAX)
}

/// Checks the number of an attempt; 0 stands for none.
///
/// # Errors
/// When it is larger than [`ATTEMPTS_MAX_MAX`].
pub fn attempt(attempt: u32) -> Result<(), String> {
    let fits = attempt <= ATTEMPTS_MAX_MAX;
    fits.then_some(()).ok_or_else(|| format!("attempt is {attempt}, there are {ATTEMPTS_MAX_MAX} at the most"))
}

/// Checks an id.
///
/// # Errors
/// When it is empty or longer than [`ID_BYTES_MAX`].
pub fn id(what: &str, id: &str) -> Result<(), String> {
    let fits = (1..=ID_BYTES_MAX).contains(&id.len());
    fits.then_some(()).ok_or_else(|| format!("{what} has {} bytes, it must have 1 to {ID_BYTES_MAX}", id.len()))
}

/// Checks a share or a load: a number that is not negative and that sums of stay finite.
///
/// # Errors
/// When it is negative, or far beyond what any machine has.
pub fn load(what: &str, number: f64) -> Result<(), String> {
    let fits = (0.0..=1e9).contains(&number);
    fits.then_some(()).ok_or_else(|| format!("{what} is {number}, which cannot be"))
}

/// Parses a duration as a person or a header says it: `30s`, `5m`, `1h30m`, or in ISO 8601 `PT30S`; [`DURATION_MAX`] at the most.
///
/// # Errors
/// A text that says what is wrong.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    match parse_any_duration(text) {
        Ok(duration) if duration <= DURATION_MAX => Ok(duration),
        Ok(_) => Err(format!("{text} is longer than a year; write a duration of at most 1y, such as 30s or 5m")),
        Err(error) => Err(format!("{error}; write a duration such as 30s, 5m or PT30S")),
    }
}

/// Parses a duration of any length, for settings with bounds of their own.
///
/// # Errors
/// A text that says what is wrong.
pub fn parse_any_duration(text: &str) -> Result<Duration, String> {
    if !text.starts_with(['P', 'p']) {
        return humantime::parse_duration(text).map_err(|error| error.to_string());
    }
    let span: jiff::Span = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(format!("{text} has years or months, which are of no fixed length"));
    }
    let duration = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|error| error.to_string())?;
    Duration::try_from(duration).map_err(|_| format!("{text} is negative"))
}

/// Parses a time in RFC 3339, as Unix milliseconds. The server could compute with it.
///
/// # Errors
/// A text that says what is wrong.
pub fn parse_time(text: &str) -> Result<i64, String> {
    let at: jiff::Timestamp = text.parse().map_err(|error| {
        let reason = match text.parse::<jiff::civil::DateTime>() {
            Ok(_) => format!("{text} has no time zone: end it with Z, or with an offset such as +01:00"),
            Err(_) => format!("{error}"),
        };
        format!("{reason}; write an RFC 3339 time from the year 1677 to 2262, such as 2030-01-31T12:00:00Z")
    })?;
    let ms = at.as_millisecond();
    time("it", ms).map_err(|_| format!("{text} is beyond what the server computes with, the years 1677 to 2262"))?;
    Ok(ms)
}

/// Parses a time at which something expires, as Unix milliseconds; none when it never does. The zero time of Go and the last
/// second of the year 9999 stand for that.
///
/// # Errors
/// As [`parse_time`].
pub fn parse_expiry(text: &str) -> Result<Option<i64>, String> {
    if NEVER.iter().any(|never| is_never(text, never)) { Ok(None) } else { parse_time(text).map(Some) }
}

/// Whether a time is this instant, whatever its fraction, in UTC or an offset of zero.
fn is_never(text: &str, never: &str) -> bool {
    let starts = text.get(..never.len()).is_some_and(|start| start.eq_ignore_ascii_case(never));
    let rest = text.get(never.len()..).filter(|_| starts);
    rest.is_some_and(|rest| {
        let zone = rest.strip_prefix('.').map_or(rest, |more| more.trim_start_matches(|c: char| c.is_ascii_digit()));
        matches!(zone, "Z" | "z" | "+00:00" | "-00:00")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_more_than_a_year_are_refused() {
        assert_eq!(parse_duration("1y"), Ok(DURATION_MAX));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        for (text, ms) in
            [("PT30S", 30_000), ("pt1m", 60_000), ("PT0.25S", 250), ("P1DT2H", 93_600_000), ("P1W", 604_800_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["-PT1S", "PT-1S", "P1Y", "P1M", "PT8767H", "P", "PT", "PT1", "P999999999W"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        for text in [
            "300y",
            "2y",
            "18446744073709551615s",
            "18446744073709551616s",
            "999999999999999999999y",
            "1e9s",
            "-1s",
            "",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn dates_that_the_server_cannot_compute_with_are_refused_and_some_mean_never() {
        assert_eq!(parse_time("2262-04-11T23:47:16Z"), Ok(9_223_372_036_000));
        for text in [
            "1970-01-01T00:00:01Z",
            "1970-01-01T00:00:01.000000Z",
            "1970-01-01T01:00:01+01:00",
            "1970-01-01T01:00:01.0004+01:00",
            "1970-01-01t00:00:01z",
        ] {
            assert_eq!(parse_time(text), Ok(1000), "{text}");
        }
        for text in ["2030-01-01T00:00:00", "2030-01-01T00:00:00.123456", "2030-01-01 00:00:00"] {
            let refused = parse_time(text).unwrap_err();
            assert!(refused.contains("has no time zone") && parse_expiry(text) == Err(refused.clone()), "{refused}");
        }
        assert!(parse_time("2026-01-31 12:00:00 +0000 UTC m=+0.1").is_err());
        for text in [
            "2262-04-12T00:00:00Z",
            "1600-01-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
            "10000-01-01T00:00:00Z",
            "2030-01-01",
            "x",
        ] {
            assert!(parse_time(text).is_err(), "{text}");
        }
        for text in [
            "0001-01-01T00:00:00Z",
            "0001-01-01T00:00:00+00:00",
            "9999-12-31T23:59:59Z",
            "9999-12-31T23:59:59.9999999Z",
            "9999-12-31t23:59:59.999999+00:00",
        ] {
            assert_eq!(parse_expiry(text), Ok(None), "{text}");
        }
        assert_eq!(parse_expiry("1970-01-01T00:00:01Z"), Ok(Some(1000)));
        for text in ["9999-12-31T23:59:58Z", "0001-01-01T00:00:00", "2300-01-01T00:00:00Z", "9999-12-31T23:59:59x"] {
            assert!(parse_expiry(text).is_err(), "{text}");
        }
    }
}

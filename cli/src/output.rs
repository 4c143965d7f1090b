//! How results look: aligned columns, times that a person reads, or JSON lines. Results go to standard output, and what a
//! person is told beside them to standard error (`note!`). What others named or wrote is shown with its control characters
//! escaped (`millpond::visible`).

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use millpond::visible::{visible, visible_json};
use serde::Serialize;

/// Prints a line on standard error, for a person.
macro_rules! note {
    ($($argument:tt)*) => { $crate::output::note(format_args!($($argument)*)) };
}

/// Prints a line on standard error. A standard error that is full or gone changes neither results nor exit codes.
pub(crate) fn note(line: fmt::Arguments<'_>) {
    let line = line.to_string();
    let _ = io::stderr().lock().write_all(format!("{}\n", visible(&line)).as_bytes());
}

/// Standard output cannot be written. It is an error of its own, so that its broken pipe is told from that of others.
#[derive(Debug)]
pub(crate) struct StandardOutputError(io::Error);

impl StandardOutputError {
    pub(crate) fn wrap(error: io::Error) -> io::Error {
        io::Error::new(error.kind(), Self(error))
    }
}

impl fmt::Display for StandardOutputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl std::error::Error for StandardOutputError {}

/// Standard output, whose errors are [`StandardOutputError`].
pub(crate) struct Output(io::Stdout);

/// Standard output.
pub(crate) fn output() -> Output {
    Output(io::stdout())
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(StandardOutputError::wrap)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).map_err(StandardOutputError::wrap)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(StandardOutputError::wrap)
    }
}

/// Rows under headings, with columns as wide as their longest cell.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row. Cells beyond the last heading are left out; control characters in them are escaped.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| visible(cell).into_owned()).collect());
    }

    /// The table as aligned lines, the headings first.
    pub fn lines(&self) -> Vec<String> {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |c: usize| self.rows.iter().filter_map(|r| r.get(c)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            cells.join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }

    /// Prints the table; prints `none` on standard error when it has no rows.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn print(&self, none: &str) -> io::Result<()> {
        if self.rows.len() == 1 {
            note!("{none}");
            return Ok(());
        }
        let mut out = output();
        self.lines().iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}

/// Prints a value as one line of JSON.
///
/// # Errors
/// When standard output is closed.
pub fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string(value)?;
    Ok(writeln!(output(), "{}", one_line(&text))?)
}

/// JSON on one line. Line breaks between its tokens become blanks, and control characters in its strings are escaped: the
/// value stays the same.
pub fn one_line(json: &str) -> Cow<'_, str> {
    match visible_json(json) {
        json if json.contains(['\n', '\r']) => json.replace(['\n', '\r'], " ").into(),
        json => json,
    }
}

/// A Unix time in milliseconds as local time; empty when there is none.
#[must_use]
pub fn time(unix_ms: impl Into<Option<i64>>) -> String {
    let at = unix_ms.into().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(String::new, |at| {
        at.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
    })
}

/// The time between two Unix times in milliseconds, such as `1.25s` or `38ms`; empty when one of them is not known.
#[must_use]
pub fn took(from_ms: Option<i64>, to_ms: Option<i64>) -> String {
    from_ms.zip(to_ms).map_or_else(String::new, |(from, to)| milliseconds(to - from))
}

/// A number of milliseconds as a person reads it.
#[must_use]
pub fn milliseconds(ms: i64) -> String {
    let seconds = Duration::from_millis(u64::try_from(ms).unwrap_or(0)).as_secs_f64();
    match ms {
        ..1000 => format!("{}ms", ms.max(0)),
        1000..120_000 => format!("{seconds:.2}s"),
        _ => format!("{}m{:02}s", ms / 60_000, ms / 1000 % 60),
    }
}

/// A number that may be missing; empty then.
pub fn optional(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// The first characters of a text, on one line.
#[must_use]
pub fn short(text: &str, chars_max: usize) -> String {
    let whole = text.replace('\n', " ");
    match whole.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", whole.get(..end).unwrap_or_default()),
        None => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(milliseconds(38), "38ms");
        assert_eq!(milliseconds(1250), "1.25s");
        assert_eq!(milliseconds(125_000), "2m05s");
    }
}

//! How results look: aligned columns, times that a person reads, or JSON lines. Results go to standard output.

use std::borrow::Cow;
use std::io::Write;
use std::time::Duration;

use serde::Serialize;

/// Rows under headings, with columns as wide as their longest cell.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row. Cells beyond the last heading are left out.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
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
    pub fn print(&self, none: &str) -> std::io::Result<()> {
        if self.rows.len() == 1 {
            eprintln!("{none}");
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        self.lines().iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}

/// Prints a value as one line of JSON.
///
/// # Errors
/// When standard output is closed.
pub fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string(value)?;
    Ok(writeln!(std::io::stdout().lock(), "{}", one_line(&text))?)
}

/// JSON on one line. Only line breaks between its tokens change, because those within strings are escaped.
pub fn one_line(json: &str) -> Cow<'_, str> {
    if json.contains(['\n', '\r']) { json.replace(['\n', '\r'], " ").into() } else { json.into() }
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

//! How results look: aligned columns, times a person reads, or JSON lines. Results go to standard output.

use std::io::Write;

use serde_json::Value;

use crate::api::text;

/// Rows with a heading, columns as wide as their longest cell.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Writes it; `none` when it has no rows.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn print(&self, none: &str) -> std::io::Result<()> {
        if self.rows.len() == 1 {
            eprintln!("{none}");
            return Ok(());
        }
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |c: usize| self.rows.iter().filter_map(|r| r.get(c)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
        let mut out = std::io::stdout().lock();
        for row in &self.rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            writeln!(out, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Writes one JSON value as a line.
///
/// # Errors
/// When standard output is closed.
pub fn json_line(value: &Value) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{value}")
}

/// A Unix time in milliseconds as local time, to the millisecond; empty when there is none.
#[must_use]
pub fn time(value: &Value, field: &str) -> String {
    let at = value.get(field).and_then(Value::as_i64).and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(String::new, |at| {
        at.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
    })
}

/// The time between two fields, such as `1.25s` or `38ms`.
#[must_use]
pub fn took(value: &Value, from: &str, to: &str) -> String {
    let ms = |field| value.get(field).and_then(Value::as_i64);
    match (ms(from), ms(to)) {
        (Some(from), Some(to)) => milliseconds(to - from),
        _ => String::new(),
    }
}

/// A number of milliseconds, as a person reads it.
#[must_use]
pub fn milliseconds(ms: i64) -> String {
    let seconds = std::time::Duration::from_millis(u64::try_from(ms).unwrap_or(0)).as_secs_f64();
    match ms {
        ..1000 => format!("{}ms", ms.max(0)),
        1000..120_000 => format!("{seconds:.2}s"),
        _ => format!("{}m{:02}s", ms / 60_000, ms / 1000 % 60),
    }
}

/// The first characters of a field, on one line.
#[must_use]
pub fn short(value: &Value, field: &str, chars: usize) -> String {
    let whole = text(value, field).replace('\n', " ");
    match whole.char_indices().nth(chars) {
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

//! Lists of the collector: what their filters mean, and the rows as a table for a person or as JSON, one object per line.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use millpond::wire::bounds::{parse_any_duration, parse_time};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::Api;
use crate::output::{Table, json_line};

/// How a list is read and shown.
pub(super) struct Listing<T> {
    /// Where the collector serves the list.
    pub(super) path: &'static str,
    pub(super) headings: &'static [&'static str],
    /// The cells of a row, as many as there are headings.
    pub(super) cells: fn(&T) -> Vec<String>,
    /// What is printed when there are no rows.
    pub(super) empty: &'static str,
}

impl<T: Serialize + DeserializeOwned> Listing<T> {
    /// Prints the rows that a query leaves.
    ///
    /// # Errors
    /// When the collector does not answer, or standard output is closed.
    pub(super) async fn print(&self, api: &Api, query: &impl Serialize, json: bool) -> anyhow::Result<()> {
        let mut table = Table::new(self.headings);
        api.each(self.path, query, async |row: T| self.add(&mut table, &row, json)).await?;
        self.end(&table, json)
    }

    /// Prints these rows.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(super) fn print_rows(&self, rows: &[T], json: bool) -> anyhow::Result<()> {
        let mut table = Table::new(self.headings);
        rows.iter().try_for_each(|row| self.add(&mut table, row, json))?;
        self.end(&table, json)
    }

    fn add(&self, table: &mut Table, row: &T, json: bool) -> anyhow::Result<()> {
        if json {
            return json_line(row);
        }
        table.row((self.cells)(row));
        Ok(())
    }

    fn end(&self, table: &Table, json: bool) -> anyhow::Result<()> {
        if !json {
            table.print(self.empty)?;
        }
        Ok(())
    }
}

/// Parses one of the names of an enum, and lists them in `--help`.
pub(super) fn one_of<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let names = PossibleValuesParser::new(all.iter().map(|value| name(*value)));
    names.try_map(move |text| all.iter().copied().find(|value| name(*value) == text).ok_or(text))
}

/// A time as typed, as Unix time in milliseconds.
///
/// # Errors
/// When the text is not a time.
pub(super) fn time_ms(typed: &str) -> Result<i64, String> {
    let ago = parse_any_duration(typed).ok().and_then(|ago| i64::try_from(ago.as_millis()).ok());
    let at = typed.parse().ok().or_else(|| ago.map(|ago| millpond::now_ms().saturating_sub(ago)));
    at.map_or_else(|| parse_time(typed), Ok).map_err(|wrong| {
        format!("{wrong}; type 2026-01-31T12:00:00Z, Unix time in milliseconds, or an age such as 2h or PT2H")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time_ms("2020-01-01T01:00:00+01:00"), Ok(1_577_836_800_000));
        assert_eq!(time_ms("1577836800000"), Ok(1_577_836_800_000));
        for written in ["1h", "PT1H"] {
            let before = millpond::now_ms();
            let time = time_ms(written).unwrap() + 3_600_000;
            assert!((before..=millpond::now_ms()).contains(&time), "{written}: {time}");
        }
        assert!(time_ms("noon").is_err() && time_ms("2020-01-01T01:00:00").unwrap_err().contains("no time zone"));
    }
}

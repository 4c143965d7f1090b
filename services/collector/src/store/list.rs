//! Lists and their pages: which rows, how many, and where the next page starts.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use super::error::Result;
use super::sql::Row;

/// Where a page ended: the row's number, and its time where the list is ordered by time, as that of tasks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListCursor {
    pub(crate) n: i64,
    pub(crate) at_ms: Option<i64>,
}

impl FromStr for ListCursor {
    type Err = ParseIntError;

    fn from_str(text: &str) -> std::result::Result<Self, ParseIntError> {
        match text.split_once('.') {
            None => Ok(Self { n: text.parse()?, at_ms: None }),
            Some((at, n)) => Ok(Self { n: n.parse()?, at_ms: Some(at.parse()?) }),
        }
    }
}

impl fmt::Display for ListCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at_ms {
            None => write!(f, "{}", self.n),
            Some(at) => write!(f, "{at}.{}", self.n),
        }
    }
}

/// Which rows of a list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    /// Rows at the most.
    pub(crate) limit: u32,
    /// After the row with this cursor; none for the first page.
    pub(crate) after: Option<ListCursor>,
}

/// Of rows that were read with one more than the limit: those of the page as `shown`, and where the next page starts.
pub(super) fn paged<T>(
    rows: &[Row],
    limit: u32,
    shown: impl Fn(&Row) -> Result<T>,
) -> Result<(Vec<T>, Option<ListCursor>)> {
    let page = rows.get(..limit as usize).unwrap_or(rows);
    let next = match page.last().filter(|_| rows.len() > page.len()) {
        Some(last) => Some(ListCursor { n: last.get("n")?, at_ms: None }),
        None => None,
    };
    Ok((page.iter().map(shown).collect::<Result<_>>()?, next))
}

//! What the store needs of a database: a small trait that SQLite and Postgres implement. Statements are written once, in
//! the SQL that both understand, with `?` for each value; everything that differs is behind the trait. No tables here.

use std::borrow::Cow;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::error::{Result, StoreError};

/// A value that is bound. It has a type even where it is null, because Postgres wants one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Value<'a> {
    Int(Option<i64>),
    Text(Option<Cow<'a, str>>),
    Blob(Option<Cow<'a, [u8]>>),
}

impl From<i64> for Value<'_> {
    fn from(n: i64) -> Self {
        Self::Int(Some(n))
    }
}

impl From<u32> for Value<'_> {
    fn from(n: u32) -> Self {
        Self::Int(Some(n.into()))
    }
}

impl From<bool> for Value<'_> {
    fn from(yes: bool) -> Self {
        Self::Int(Some(yes.into()))
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(n: Option<i64>) -> Self {
        Self::Int(n)
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Text(Some(Cow::Owned(text)))
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Some(Cow::Borrowed(text)))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(Some(Cow::Borrowed(text)))
    }
}

impl From<Option<String>> for Value<'_> {
    fn from(text: Option<String>) -> Self {
        Self::Text(text.map(Cow::Owned))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(text: Option<&'a str>) -> Self {
        Self::Text(text.map(Cow::Borrowed))
    }
}

impl<'a> From<Cow<'a, str>> for Value<'a> {
    fn from(text: Cow<'a, str>) -> Self {
        Self::Text(Some(text))
    }
}

impl<'a> From<Option<Cow<'a, str>>> for Value<'a> {
    fn from(text: Option<Cow<'a, str>>) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Blob(Some(Cow::Borrowed(bytes)))
    }
}

impl From<Vec<u8>> for Value<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Blob(Some(Cow::Owned(bytes)))
    }
}

/// A statement and its values.
#[derive(Debug, Clone)]
pub(super) struct Sql<'a> {
    pub(super) text: Cow<'a, str>,
    pub(super) values: Vec<Value<'a>>,
}

impl<'a> Sql<'a> {
    /// A statement with a `?` for each value that is bound.
    pub(super) fn new(text: impl Into<Cow<'a, str>>) -> Self {
        Self { text: text.into(), values: Vec::new() }
    }

    /// The value of the next `?`.
    pub(super) fn bind(mut self, value: impl Into<Value<'a>>) -> Self {
        self.values.push(value.into());
        self
    }

    /// More of the statement, with one `?` in it and its value.
    pub(super) fn push(&mut self, text: &str, value: impl Into<Value<'a>>) {
        self.text.to_mut().push_str(text);
        self.values.push(value.into());
    }

    /// More of the statement.
    pub(super) fn push_text(&mut self, text: &str) {
        self.text.to_mut().push_str(text);
    }
}

/// Rows to be written into one table by as few statements as the database allows.
pub(super) struct Insert<'a> {
    pub(super) table: &'static str,
    pub(super) columns: &'static [(&'static str, Type)],
    /// The columns that make a row's key, by place: Postgres refuses two rows of one key in one statement.
    pub(super) key: &'static [usize],
    pub(super) rows: Vec<Vec<Value<'a>>>,
    /// What follows the values: `ON CONFLICT …`.
    pub(super) on_conflict: &'static str,
}

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Int,
    Text,
}

/// A column of a row that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    Null,
    Int(i64),
    Text(String),
    Blob(Vec<u8>),
}

/// A row that was read.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) names: Arc<[Box<str>]>,
    pub(super) cells: Vec<Cell>,
}

impl Row {
    /// The value of a column. `Option` where it may be null; a number that does not fit the type is an error too.
    pub(super) fn get<'r, T: FromCell<'r>>(&'r self, column: &'static str) -> Result<T> {
        let cell = self.names.iter().position(|name| **name == *column).and_then(|at| self.cells.get(at));
        let found = match cell {
            Some(cell) => match T::from_cell(cell) {
                Some(value) => return Ok(value),
                None => cell.type_name(),
            },
            None => "nothing",
        };
        Err(StoreError::Column { column, wanted: T::WANTED, found })
    }

    /// A column of JSON.
    pub(super) fn json<'r, T: Deserialize<'r>>(&'r self, column: &'static str) -> Result<T> {
        from_json(column, self.get(column)?)
    }

    /// A column of JSON that may be null.
    pub(super) fn optional_json<'r, T: Deserialize<'r>>(&'r self, column: &'static str) -> Result<Option<T>> {
        self.get::<Option<&str>>(column)?.map(|text| from_json(column, text)).transpose()
    }
}

fn from_json<'r, T: Deserialize<'r>>(column: &'static str, text: &'r str) -> Result<T> {
    serde_json::from_str(text).map_err(|reason| StoreError::Json { column, reason })
}

impl Cell {
    fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Int(_) => "another number",
            Self::Text(_) => "text",
            Self::Blob(_) => "bytes",
        }
    }
}

/// A type that a column is read as.
pub(super) trait FromCell<'r>: Sized {
    /// What the column must hold.
    const WANTED: &'static str;

    /// The value; none when the column holds something else.
    fn from_cell(cell: &'r Cell) -> Option<Self>;
}

macro_rules! whole_number {
    ($($number:ty: $wanted:literal),*) => {$(
        impl FromCell<'_> for $number {
            const WANTED: &'static str = $wanted;

            fn from_cell(cell: &Cell) -> Option<Self> {
                if let Cell::Int(n) = cell { Self::try_from(*n).ok() } else { None }
            }
        }
    )*};
}

whole_number!(i64: "a whole number", u64: "a count", u32: "a count");

impl FromCell<'_> for bool {
    const WANTED: &'static str = "0 or 1";

    fn from_cell(cell: &Cell) -> Option<Self> {
        match cell {
            Cell::Int(0) => Some(false),
            Cell::Int(1) => Some(true),
            _ => None,
        }
    }
}

impl<'r> FromCell<'r> for &'r str {
    const WANTED: &'static str = "text";

    fn from_cell(cell: &'r Cell) -> Option<Self> {
        if let Cell::Text(text) = cell { Some(text) } else { None }
    }
}

impl<'r> FromCell<'r> for String {
    const WANTED: &'static str = "text";

    fn from_cell(cell: &'r Cell) -> Option<Self> {
        <&str>::from_cell(cell).map(str::to_owned)
    }
}

impl<'r> FromCell<'r> for &'r [u8] {
    const WANTED: &'static str = "bytes";

    fn from_cell(cell: &'r Cell) -> Option<Self> {
        if let Cell::Blob(bytes) = cell { Some(bytes) } else { None }
    }
}

impl<'r, T: FromCell<'r>> FromCell<'r> for Option<T> {
    const WANTED: &'static str = T::WANTED;

    fn from_cell(cell: &'r Cell) -> Option<Self> {
        if *cell == Cell::Null { Some(None) } else { T::from_cell(cell).map(Some) }
    }
}

/// One of the two databases.
pub(super) trait Database: Send + Sync {
    /// `sqlite` or `postgres`.
    fn kind(&self) -> &'static str;

    /// The rows of a statement that reads, on a connection of its own.
    fn read<'a>(&'a self, sql: Sql<'a>) -> BoxFuture<'a, Result<Vec<Row>>>;

    /// Reads row by row until `more` returns false; the rows behind that one are not fetched.
    fn read_while<'a>(
        &'a self,
        sql: Sql<'a>,
        more: &'a mut (dyn FnMut(Row) -> Result<bool> + Send),
    ) -> BoxFuture<'a, Result<()>>;

    /// A transaction that writes. One runs at a time, also among several collectors, so that each sees all before it.
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn Transaction>>>;

    /// Adds the condition on `tasks` that its error contains this text, in small or capital letters.
    fn error_contains(&self, sql: &mut Sql<'_>, text: &str);

    /// Bytes that the database takes, without the space that is free inside its files.
    fn bytes(&self) -> BoxFuture<'_, Result<u64>>;

    /// Gives some free space back to the file system, between two transactions. True when there is more of it.
    fn vacuum(&self) -> BoxFuture<'_, Result<bool>>;

    /// Waits until another collector has committed a change; for ever where there can be no other collector.
    fn changed_elsewhere(&self) -> BoxFuture<'_, ()>;

    /// Closes its connections.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A transaction. Dropped without [`commit`](Transaction::commit) it changes nothing.
pub(super) trait Transaction: Send {
    /// Runs a statement; how many rows it changed.
    fn run<'a>(&'a mut self, sql: Sql<'a>) -> BoxFuture<'a, Result<u64>>;

    /// The rows of a statement.
    fn rows<'a>(&'a mut self, sql: Sql<'a>) -> BoxFuture<'a, Result<Vec<Row>>>;

    /// Writes rows; how many were changed.
    fn insert<'a>(&'a mut self, insert: Insert<'a>) -> BoxFuture<'a, Result<u64>>;

    /// Commits.
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<()>>;
}

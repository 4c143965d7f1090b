//! What the store asks of a database: a small trait that SQLite and Postgres implement. Statements are written once, in
//! what both understand, with `?` for each value; everything that differs is behind the trait. No tables here.

use std::borrow::Cow;
use std::sync::Arc;

use futures_util::future::BoxFuture;

/// A value, of a type even where it is null: Postgres asks for it.
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
    pub(super) then: &'static str,
}

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Int,
    Text,
}

/// A row that was read.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) names: Arc<[Box<str>]>,
    pub(super) values: Vec<Value<'static>>,
}

impl Row {
    fn get(&self, name: &str) -> Option<&Value<'static>> {
        let at = self.names.iter().position(|known| **known == *name)?;
        self.values.get(at)
    }

    /// A column of whole numbers; none when it is null.
    pub(super) fn int(&self, name: &str) -> Option<i64> {
        match self.get(name)? {
            Value::Int(n) => *n,
            _ => None,
        }
    }

    /// The same, counted from 0.
    pub(super) fn count(&self, name: &str) -> u64 {
        self.int(name).and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
    }

    /// A column of text; none when it is null.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Value::Text(text) => text.as_deref(),
            _ => None,
        }
    }

    /// The same; empty when it is null.
    pub(super) fn string(&self, name: &str) -> String {
        self.text(name).unwrap_or_default().to_owned()
    }

    /// A column of bytes; empty when it is null.
    pub(super) fn blob(&self, name: &str) -> &[u8] {
        match self.get(name) {
            Some(Value::Blob(Some(bytes))) => bytes,
            _ => &[],
        }
    }
}

/// One of the two databases.
pub(super) trait Database: Send + Sync {
    /// `sqlite` or `postgres`.
    fn kind(&self) -> &'static str;

    /// The rows of a statement that reads, on a connection of its own.
    fn read<'a>(&'a self, sql: Sql<'a>) -> BoxFuture<'a, sqlx::Result<Vec<Row>>>;

    /// The same row by row until `more` says that it is enough; what is left is not fetched.
    fn read_while<'a>(
        &'a self,
        sql: Sql<'a>,
        more: &'a mut (dyn FnMut(Row) -> bool + Send),
    ) -> BoxFuture<'a, sqlx::Result<()>>;

    /// A transaction that writes. One at a time, also over several collectors: each sees all before it.
    fn begin(&self) -> BoxFuture<'_, sqlx::Result<Box<dyn Transaction>>>;

    /// The condition on `tasks` that the text of its error contains this, whatever the case.
    fn error_contains(&self, sql: &mut Sql<'_>, text: &str);

    /// Bytes that it takes, without what is free inside.
    fn bytes(&self) -> BoxFuture<'_, sqlx::Result<u64>>;

    /// Gives back to the system what is free, a little at a time, between transactions. True when there is more.
    fn vacuum(&self) -> BoxFuture<'_, sqlx::Result<bool>>;

    /// Waits until another collector has changed something that this one keeps in memory; for ever where there is none.
    fn changed_elsewhere(&self) -> BoxFuture<'_, ()>;

    /// Closes its connections.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A transaction. Dropped without [`commit`](Transaction::commit) it changes nothing.
pub(super) trait Transaction: Send {
    /// Runs a statement; how many rows it changed.
    fn run<'a>(&'a mut self, sql: Sql<'a>) -> BoxFuture<'a, sqlx::Result<u64>>;

    /// The rows of a statement.
    fn rows<'a>(&'a mut self, sql: Sql<'a>) -> BoxFuture<'a, sqlx::Result<Vec<Row>>>;

    /// Writes rows; how many were changed.
    fn insert<'a>(&'a mut self, insert: Insert<'a>) -> BoxFuture<'a, sqlx::Result<u64>>;

    /// Makes it last.
    fn commit(self: Box<Self>) -> BoxFuture<'static, sqlx::Result<()>>;
}

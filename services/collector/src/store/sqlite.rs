//! The store in one SQLite file: one writer, readers that see the last commit (WAL). Commits are synced to disk, because an
//! acknowledgement follows. Only what is SQLite's own.

use std::borrow::Cow;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use millpond_service::unwritable::with_reason;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteArguments, SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Column, ConnectOptions, Row as _, Sqlite, TypeInfo, ValueRef};

use super::error::Result;
use super::migrations::{SqliteMigrations, migrator};
use super::sql::{Cell, Database, Insert, Row, Sql, Transaction, Value};

/// Connections that read at once.
const READERS_MAX: u32 = 4;
/// How long a statement waits for a lock: a backup may hold one.
const BUSY_WAIT: Duration = Duration::from_secs(10);
/// How long one waits for the writer: as long as the writers before it take.
const WRITER_WAIT: Duration = Duration::from_secs(600);
/// Rows of one statement; few sizes, so that each is prepared once.
const ROWS_OF_ONE_STATEMENT: [usize; 4] = [512, 64, 8, 1];
/// Pages that one step of a vacuum gives back: 4 MiB.
const VACUUM_PAGES: u32 = 1024;
/// Bytes that the write-ahead log keeps after a checkpoint.
const WAL_BYTES_KEPT: &str = "67108864";
/// Shortest text that the index of errors can find, in characters.
const INDEXED_CHARS_MIN: usize = 3;

/// The file.
pub(super) struct SqliteDatabase {
    writer: SqlitePool,
    readers: SqlitePool,
}

/// Takes a store of before from the eyes of others. The file of another user stays as it is; new ones are made by the process's umask, and
/// SQLite gives its log the mode of the store.
fn keep_private(store: &Path) {
    for ending in ["", "-wal", "-shm"] {
        let mut file = store.as_os_str().to_owned();
        file.push(ending);
        let _ = std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600));
    }
}

impl SqliteDatabase {
    /// Opens the file, makes it when it is not there, and brings its tables up to date.
    pub(super) async fn open(path: &Path) -> anyhow::Result<Self> {
        keep_private(path);
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_WAIT)
            .pragma("journal_size_limit", WAL_BYTES_KEPT)
            .disable_statement_logging();
        let one = SqlitePoolOptions::new().max_connections(1).acquire_timeout(WRITER_WAIT).test_before_acquire(false);
        // What a statement would undo, a few pages, is kept in memory instead of in a file.
        let writing = options.clone().auto_vacuum(SqliteAutoVacuum::Incremental).pragma("temp_store", "MEMORY");
        let writer = one.idle_timeout(None).max_lifetime(None).connect_with(writing).await;
        let writer = writer.with_context(|| with_reason(format!("cannot open the store {}", path.display()), path))?;
        let migrated = migrator::<SqliteMigrations>()?.run(&writer).await;
        migrated.with_context(|| {
            with_reason(format!("the tables of the store {} cannot be brought up to date", path.display()), path)
        })?;
        shrinkable(&writer).await?;
        let readers = SqlitePoolOptions::new().max_connections(READERS_MAX).test_before_acquire(false);
        let readers = readers.connect_with(options.read_only(true)).await?;
        Ok(Self { writer, readers })
    }

    async fn pragma(&self, name: &str) -> sqlx::Result<u64> {
        let found: i64 = sqlx::query_scalar(AssertSqlSafe(format!("PRAGMA {name}"))).fetch_one(&self.readers).await?;
        Ok(u64::try_from(found).unwrap_or(0))
    }
}

/// A file of before that cannot give back what is free is written anew, once.
async fn shrinkable(writer: &SqlitePool) -> anyhow::Result<()> {
    let mode: i64 = sqlx::query_scalar("PRAGMA auto_vacuum").fetch_one(writer).await?;
    if mode == 0 {
        tracing::info!("the store is written anew, so that its file can shrink; this happens once");
        sqlx::raw_sql("PRAGMA temp_store = FILE; PRAGMA auto_vacuum = INCREMENTAL; VACUUM; PRAGMA temp_store = MEMORY")
            .execute(writer)
            .await?;
    }
    Ok(())
}

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

fn bound<'q>(query: Query<'q>, value: Value<'_>) -> Query<'q> {
    match value {
        Value::Int(n) => query.bind(n),
        Value::Text(text) => query.bind(text.map(Cow::into_owned)),
        Value::Blob(bytes) => query.bind(bytes.map(Cow::into_owned)),
    }
}

fn query(sql: Sql<'_>) -> Query<'static> {
    sql.values.into_iter().fold(sqlx::query(AssertSqlSafe(sql.text.into_owned())), bound)
}

/// One row; `names` are those of the row before, which are mostly the same.
fn row(found: &SqliteRow, names: &mut Option<Arc<[Box<str>]>>) -> sqlx::Result<Row> {
    let names = names.get_or_insert_with(|| found.columns().iter().map(|c| c.name().into()).collect());
    let cell = |at| {
        let raw = found.try_get_raw(at)?;
        if raw.is_null() {
            return Ok(Cell::Null);
        }
        Ok(match raw.type_info().name() {
            "TEXT" => Cell::Text(found.try_get(at)?),
            "BLOB" => Cell::Blob(found.try_get(at)?),
            // Of what is left only whole numbers are read: anything else is an error.
            _ => Cell::Int(found.try_get(at)?),
        })
    };
    Ok(Row { names: names.clone(), cells: (0..found.len()).map(cell).collect::<sqlx::Result<_>>()? })
}

fn rows(found: &[SqliteRow]) -> sqlx::Result<Vec<Row>> {
    let mut names = None;
    found.iter().map(|one| row(one, &mut names)).collect()
}

impl Database for SqliteDatabase {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn read<'a>(&'a self, sql: Sql<'a>) -> BoxFuture<'a, Result<Vec<Row>>> {
        Box::pin(async move { Ok(rows(&query(sql).fetch_all(&self.readers).await?)?) })
    }

    fn read_while<'a>(
        &'a self,
        sql: Sql<'a>,
        more: &'a mut (dyn FnMut(Row) -> Result<bool> + Send),
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let (mut found, mut names) = (query(sql).fetch(&self.readers), None);
            while let Some(one) = found.try_next().await? {
                if !more(row(&one, &mut names)?)? {
                    break;
                }
            }
            Ok(())
        })
    }

    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn Transaction>>> {
        Box::pin(async move {
            let mut connection = self.writer.acquire().await?;
            sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
            Ok(Box::new(SqliteTransaction { connection, committed: false }) as Box<dyn Transaction>)
        })
    }

    fn error_contains(&self, sql: &mut Sql<'_>, text: &str) {
        if text.chars().count() < INDEXED_CHARS_MIN {
            sql.push(" AND instr(lower(tasks.error), lower(?)) > 0", text.to_owned());
        } else {
            // One phrase of the index's language: its trigrams in a row.
            let phrase = format!("\"{}\"", text.replace('"', "\"\""));
            sql.push(" AND tasks.n IN (SELECT rowid FROM task_errors WHERE error MATCH ?)", phrase);
        }
    }

    fn bytes(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let (pages, free) = (self.pragma("page_count").await?, self.pragma("freelist_count").await?);
            Ok((pages - free.min(pages)) * self.pragma("page_size").await?)
        })
    }

    fn vacuum(&self) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async move {
            let free = self.pragma("freelist_count").await?;
            if free == 0 {
                return Ok(false);
            }
            let step = sqlx::query(AssertSqlSafe(format!("PRAGMA incremental_vacuum({VACUUM_PAGES})")));
            step.fetch_all(&self.writer).await?;
            Ok(free > u64::from(VACUUM_PAGES) && self.pragma("freelist_count").await? < free)
        })
    }

    fn changed_elsewhere(&self) -> BoxFuture<'_, ()> {
        // A file has one collector.
        Box::pin(std::future::pending())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.readers.close().await;
            self.writer.close().await;
        })
    }
}

struct SqliteTransaction {
    connection: PoolConnection<Sqlite>,
    committed: bool,
}

impl Drop for SqliteTransaction {
    /// A full disk may have rolled it back already, or not: whatever it is, it goes with its connection.
    fn drop(&mut self) {
        if !self.committed {
            self.connection.close_on_drop();
        }
    }
}

impl Transaction for SqliteTransaction {
    fn run<'a>(&'a mut self, sql: Sql<'a>) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async move { Ok(query(sql).execute(&mut *self.connection).await?.rows_affected()) })
    }

    fn rows<'a>(&'a mut self, sql: Sql<'a>) -> BoxFuture<'a, Result<Vec<Row>>> {
        Box::pin(async move { Ok(rows(&query(sql).fetch_all(&mut *self.connection).await?)?) })
    }

    fn insert<'a>(&'a mut self, insert: Insert<'a>) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async move {
            let names: Vec<&str> = insert.columns.iter().map(|(name, _)| *name).collect();
            let head = format!("INSERT INTO {} ({}) VALUES ", insert.table, names.join(","));
            let one = format!("({})", vec!["?"; names.len()].join(","));
            let (mut rows, mut changed) = (insert.rows.into_iter(), 0);
            while let Some(count) = ROWS_OF_ONE_STATEMENT.into_iter().find(|count| *count <= rows.len()) {
                let text = format!("{head}{} {}", vec![one.as_str(); count].join(","), insert.on_conflict);
                let statement = sqlx::query(AssertSqlSafe(text));
                let statement = rows.by_ref().take(count).flatten().fold(statement, bound);
                changed += statement.execute(&mut *self.connection).await?.rows_affected();
            }
            Ok(changed)
        })
    }

    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            sqlx::query("COMMIT").execute(&mut *self.connection).await?;
            self.committed = true;
            Ok(())
        })
    }
}

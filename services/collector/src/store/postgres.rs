//! The store in Postgres: several collectors may share it. One transaction writes at a time (an advisory lock), so that
//! the rules of `merge` hold as they do for one writer; the others hear of each commit. The lock is part of the transaction:
//! a collector that hangs loses both at once, and can write nothing when it goes on. Only what is Postgres' own.

use std::borrow::Cow;
use std::collections::HashSet;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgListener, PgPool, PgPoolOptions, PgRow, Postgres};
use sqlx::{AssertSqlSafe, Column, ConnectOptions, Row as _, TypeInfo};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::error::Result;
use super::migrations::{PostgresMigrations, migrator};
use super::sql::{Cell, Database, Insert, Row, Sql, Transaction, Type, Value};

/// Connections at once: one writes, the others read.
const CONNECTIONS_MAX: u32 = 8;
/// How long one waits for a connection.
const ACQUIRE_WAIT: Duration = Duration::from_secs(10);
/// How long a writer waits for its turn among those of its collector, and how long for the lock among the collectors. One that
/// waits longer gives up and tries again.
const WRITER_WAIT: Duration = Duration::from_secs(60);
/// How long the server waits for the next statement of a transaction, and for a client to take what it is sent; then it ends
/// the session, and a collector that hangs stops the others no longer. A collector takes milliseconds, and tries again.
const SILENT_MAX: &str = "4s";
/// Rows that are fetched at once where the end is not known.
const FETCH_ROWS: usize = 256;
/// The advisory lock of the writers: the first eight letters of the name.
const WRITER_LOCK: i64 = i64::from_be_bytes(*b"millpond");
/// What each commit notifies.
const CHANNEL: &str = "millpond_changed";
/// When a lost listener is made again.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Rows of a sample.
const SAMPLE_ROWS: u64 = 10_000;
/// The tables that grow: the columns that are wide as they are stored, and the bytes of the others with their indexes.
const TABLES: [(&str, &str, u64); 3] = [
    ("tasks", "coalesce(pg_column_size(result), 0) + coalesce(pg_column_size(bitmap), 0)", 600),
    ("attempts", "coalesce(pg_column_size(failure), 0)", 300),
    ("dead_letters", "pg_column_size(payload) + pg_column_size(evidence) + pg_column_size(headers)", 200),
];

/// The database.
pub(super) struct PostgresDatabase {
    pool: PgPool,
    /// One of a collector's writers has its turn at a time. Were there several in line for the lock, each of them would get
    /// it while the collector hangs, and keep it for as long as one may.
    turn: Arc<Mutex<()>>,
    listener: Mutex<Option<PgListener>>,
}

impl PostgresDatabase {
    /// Connects, and brings the tables up to date; of several collectors one does it.
    pub(super) async fn open(url: &str) -> anyhow::Result<Self> {
        let options = PgConnectOptions::from_str(url)
            .context("the store's url cannot be read: postgres://user:password@host:5432/database")?;
        let lock_timeout = format!("{}s", WRITER_WAIT.as_secs());
        // A plan that was made while the tables were small would be kept, and read them whole when they are large.
        let options = options.options([
            ("plan_cache_mode", "force_custom_plan"),
            ("lock_timeout", lock_timeout.as_str()),
            ("idle_in_transaction_session_timeout", SILENT_MAX),
            ("tcp_user_timeout", SILENT_MAX),
        ]);
        let options = options.application_name("millpond-collector").disable_statement_logging();
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS_MAX).acquire_timeout(ACQUIRE_WAIT);
        let pool = pool
            .connect_with(options)
            .await
            .context("cannot connect to the store (--store, MILLPOND_COLLECTOR_STORE)")?;
        let migrated = migrator::<PostgresMigrations>()?.run(&pool).await;
        migrated.context("the store's tables cannot be brought up to date")?;
        Ok(Self { pool, turn: Arc::default(), listener: Mutex::default() })
    }
}

type Query<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

/// Postgres has no text with a zero in it.
fn without_zero(text: Cow<'_, str>) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text.into_owned() }
}

fn bound<'q>(query: Query<'q>, value: Value<'_>) -> Query<'q> {
    match value {
        Value::Int(n) => query.bind(n),
        Value::Text(text) => query.bind(text.map(without_zero)),
        Value::Blob(bytes) => query.bind(bytes.map(Cow::into_owned)),
    }
}

/// `?` as `$1`, `$2`, ….
fn numbered(text: &str) -> String {
    let mut parts = text.split('?');
    let mut numbered = parts.next().unwrap_or_default().to_owned();
    for (at, part) in parts.enumerate() {
        numbered.push_str(&format!("${}", at + 1));
        numbered.push_str(part);
    }
    numbered
}

fn query(sql: Sql<'_>) -> Query<'static> {
    sql.values.into_iter().fold(sqlx::query(AssertSqlSafe(numbered(&sql.text))), bound)
}

fn rows(found: &[PgRow]) -> sqlx::Result<Vec<Row>> {
    let mut names: Option<Arc<[Box<str>]>> = None;
    let row = |row: &PgRow| {
        let names = names.get_or_insert_with(|| row.columns().iter().map(|c| c.name().into()).collect());
        let cells = row.columns().iter().enumerate().map(|(at, column)| {
            let cell = match column.type_info().name() {
                "TEXT" => row.try_get::<Option<String>, _>(at)?.map(Cell::Text),
                "BYTEA" => row.try_get::<Option<Vec<u8>>, _>(at)?.map(Cell::Blob),
                "INT4" => row.try_get::<Option<i32>, _>(at)?.map(|n| Cell::Int(n.into())),
                _ => row.try_get::<Option<i64>, _>(at)?.map(Cell::Int),
            };
            Ok(cell.unwrap_or(Cell::Null))
        });
        Ok(Row { names: names.clone(), cells: cells.collect::<sqlx::Result<_>>()? })
    };
    found.iter().map(row).collect()
}

impl Database for PostgresDatabase {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn read<'a>(&'a self, sql: Sql<'a>) -> BoxFuture<'a, Result<Vec<Row>>> {
        Box::pin(async move { Ok(rows(&query(sql).fetch_all(&self.pool).await?)?) })
    }

    fn read_while<'a>(
        &'a self,
        sql: Sql<'a>,
        more: &'a mut (dyn FnMut(Row) -> Result<bool> + Send),
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            // A cursor: rows that nobody wants any more are never sent.
            let mut transaction = self.pool.begin().await?;
            let declared = Sql { text: format!("DECLARE page NO SCROLL CURSOR FOR {}", sql.text).into(), ..sql };
            query(declared).execute(&mut *transaction).await?;
            loop {
                let fetch = sqlx::query(AssertSqlSafe(format!("FETCH {FETCH_ROWS} FROM page"))).persistent(false);
                let some = rows(&fetch.fetch_all(&mut *transaction).await?)?;
                let last = some.len() < FETCH_ROWS;
                for row in some {
                    if !more(row)? {
                        return Ok(transaction.rollback().await?);
                    }
                }
                if last {
                    return Ok(transaction.rollback().await?);
                }
            }
        })
    }

    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn Transaction>>> {
        Box::pin(async move {
            let turn = tokio::time::timeout(WRITER_WAIT, self.turn.clone().lock_owned()).await;
            let turn = turn.map_err(|_| sqlx::Error::PoolTimedOut)?;
            let mut transaction = self.pool.begin().await?;
            query(Sql::new("SELECT pg_advisory_xact_lock(?)").bind(WRITER_LOCK)).execute(&mut *transaction).await?;
            Ok(Box::new(PostgresTransaction { open: transaction, _turn: turn }) as Box<dyn Transaction>)
        })
    }

    fn error_contains(&self, sql: &mut Sql<'_>, text: &str) {
        let mut pattern = String::from("%");
        for character in text.chars() {
            if matches!(character, '%' | '_' | '\\') {
                pattern.push('\\');
            }
            pattern.push(character);
        }
        pattern.push('%');
        sql.push(" AND tasks.error IS NOT NULL AND tasks.error ILIKE ?", pattern);
    }

    fn bytes(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            // A file does not shrink when rows go, it keeps room for others: what is live is reckoned from a sample of rows.
            let mut bytes = 0;
            for (table, wide, narrow) in TABLES {
                let rows = format!(
                    "SELECT n_live_tup AS number, pg_total_relation_size(relid) AS bytes FROM pg_stat_user_tables
                     WHERE relname = '{table}'"
                );
                // A table that the server's statistics do not have yet is empty.
                let found = self.read(Sql::new(rows)).await?;
                let Some(row) = found.first() else { continue };
                let (number, total): (u64, u64) = (row.get("number")?, row.get("bytes")?);
                let percent = (SAMPLE_ROWS * 100).div_ceil(number.max(1)).min(100);
                let width = format!(
                    "SELECT CAST(coalesce(avg({wide}), 0) AS BIGINT) AS bytes FROM {table} TABLESAMPLE SYSTEM ({percent})"
                );
                let width: u64 = self.read(Sql::new(width)).await?.first().map_or(Ok(0), |row| row.get("bytes"))?;
                bytes += total.min(number * (width + narrow));
            }
            Ok(bytes)
        })
    }

    fn vacuum(&self) -> BoxFuture<'_, Result<bool>> {
        // The server's autovacuum does it; this updates the number of rows that it knows.
        Box::pin(async move {
            for table in ["tasks", "attempts", "dead_letters"] {
                sqlx::query(AssertSqlSafe(format!("ANALYZE {table}"))).execute(&self.pool).await?;
            }
            Ok(false)
        })
    }

    fn changed_elsewhere(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut kept = self.listener.lock().await;
            loop {
                let heard = match &mut *kept {
                    // None: the connection was lost, and something may have been missed.
                    Some(listener) => listener.try_recv().await.map(drop),
                    None => match PgListener::connect_with(&self.pool).await {
                        Ok(mut listener) => match listener.listen(CHANNEL).await {
                            Ok(()) => {
                                *kept = Some(listener);
                                return;
                            }
                            Err(error) => Err(error),
                        },
                        Err(error) => Err(error),
                    },
                };
                match heard {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::debug!(%error, "changes of other collectors cannot be heard, will try again");
                        *kept = None;
                        tokio::time::sleep(LISTEN_AGAIN_AFTER).await;
                    }
                }
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // It holds a connection, and the pool waits for all.
            drop(self.listener.lock().await.take());
            self.pool.close().await;
        })
    }
}

struct PostgresTransaction {
    open: sqlx::Transaction<'static, Postgres>,
    _turn: OwnedMutexGuard<()>,
}

/// The rows by column, as arrays: one short statement for any number of rows.
async fn insert_some(
    transaction: &mut sqlx::Transaction<'static, Postgres>,
    insert: &Insert<'_>,
    text: &str,
    rows: &[Vec<Value<'_>>],
) -> sqlx::Result<u64> {
    let mut statement = sqlx::query(AssertSqlSafe(text));
    for (at, (_, kind)) in insert.columns.iter().enumerate() {
        let column = rows.iter().map(|row| row.get(at));
        statement = match kind {
            Type::Int => statement.bind(column.map(int).collect::<Vec<_>>()),
            Type::Text => statement.bind(column.map(text_of).collect::<Vec<_>>()),
        };
    }
    Ok(statement.execute(&mut **transaction).await?.rows_affected())
}

fn int(value: Option<&Value<'_>>) -> Option<i64> {
    match value {
        Some(Value::Int(n)) => *n,
        _ => None,
    }
}

fn text_of(value: Option<&Value<'_>>) -> Option<String> {
    match value {
        Some(Value::Text(Some(text))) => Some(without_zero(Cow::Borrowed(text))),
        _ => None,
    }
}

impl Transaction for PostgresTransaction {
    fn run<'a>(&'a mut self, sql: Sql<'a>) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async move { Ok(query(sql).execute(&mut *self.open).await?.rows_affected()) })
    }

    fn rows<'a>(&'a mut self, sql: Sql<'a>) -> BoxFuture<'a, Result<Vec<Row>>> {
        Box::pin(async move { Ok(rows(&query(sql).fetch_all(&mut *self.open).await?)?) })
    }

    fn insert<'a>(&'a mut self, insert: Insert<'a>) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async move {
            let names: Vec<&str> = insert.columns.iter().map(|(name, _)| *name).collect();
            let arrays: Vec<String> = insert
                .columns
                .iter()
                .enumerate()
                .map(|(at, (_, kind))| match kind {
                    Type::Int => format!("${}::bigint[]", at + 1),
                    Type::Text => format!("${}::text[]", at + 1),
                })
                .collect();
            let text = format!(
                "INSERT INTO {} ({}) SELECT * FROM UNNEST ({}) {}",
                insert.table,
                names.join(","),
                arrays.join(","),
                insert.on_conflict
            );
            let (mut changed, mut start, mut keys) = (0, 0, HashSet::new());
            for (at, row) in insert.rows.iter().enumerate() {
                let key: Vec<&Value<'_>> = insert.key.iter().filter_map(|column| row.get(*column)).collect();
                if !keys.insert(key.clone()) {
                    changed +=
                        insert_some(&mut self.open, &insert, &text, insert.rows.get(start..at).unwrap_or_default())
                            .await?;
                    keys = HashSet::from([key]);
                    start = at;
                }
            }
            changed +=
                insert_some(&mut self.open, &insert, &text, insert.rows.get(start..).unwrap_or_default()).await?;
            Ok(changed)
        })
    }

    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            // Heard by all with the commit, by this collector too.
            sqlx::query(AssertSqlSafe(format!("NOTIFY {CHANNEL}"))).execute(&mut *self.open).await?;
            Ok(self.open.commit().await?)
        })
    }
}

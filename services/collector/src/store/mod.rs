//! The store: SQLite in one file. `merge` takes what ended, `read` answers the API. One writer at a time; readers see
//! the last commit (WAL). Commits are synced to disk, because an acknowledgement follows: what is acknowledged is kept.

mod batch;
mod cancels;
mod jobs;
mod letters;
mod merge;
mod read;
mod reconcile;
mod shown;
#[cfg(test)]
mod tests;
mod thens;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use millpond::job::JobRecord;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::sync::Mutex;

use cancels::{JobCancels, job_key};

pub(crate) use jobs::{Ends, Place};
pub(crate) use letters::{Again, Letter};
pub(crate) use read::{Page, Rows, TaskFilter};
pub(crate) use reconcile::{PURGED, Standing, Unended};
pub(crate) use shown::Shown;

/// Connections that read at once.
const READERS_MAX: u32 = 4;

/// A batch with items that have not ended.
const PARTIAL: i64 = 0;
/// Failed; a later attempt waits.
const RETRYING: i64 = 1;
/// A dead letter waits for a person.
const DEAD: i64 = 2;
/// It has a result; never changes.
const DONE: i64 = 3;
/// It was cancelled; never changes.
const CANCELLED: i64 = 4;

/// Names of the statuses, by number.
pub(crate) const STATUS_NAMES: [&str; 5] = ["partial", "retrying", "dead", "done", "cancelled"];

/// The store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Store {
    writer: Arc<Mutex<SqliteConnection>>,
    readers: SqlitePool,
    cancelled: JobCancels,
    watch: Arc<thens::Watch>,
}

impl Store {
    /// Opens the file, makes it when it is not there, and brings its tables up to date.
    pub(crate) async fn open(path: &Path) -> anyhow::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(std::time::Duration::from_secs(10))
            .disable_statement_logging();
        let opened = SqliteConnection::connect_with(&options).await;
        let mut writer = opened.with_context(|| format!("cannot open the store {}", path.display()))?;
        sqlx::migrate!().run(&mut writer).await.context("the store's tables cannot be brought up to date")?;
        let readers =
            SqlitePoolOptions::new().max_connections(READERS_MAX).connect_with(options.read_only(true)).await?;
        let cancelled = JobCancels::load(&mut writer).await?;
        Ok(Self { writer: Arc::new(Mutex::new(writer)), readers, cancelled, watch: Arc::default() })
    }

    /// Whether it can be written, as far as can be told without writing.
    pub(crate) async fn is_usable(&self) -> bool {
        sqlx::query("SELECT 1 FROM tasks LIMIT 1").fetch_optional(&self.readers).await.is_ok()
    }

    /// Keeps the record of a job.
    pub(crate) async fn put_job(&self, record: &JobRecord) -> anyhow::Result<()> {
        let text = serde_json::to_string(record)?;
        let job = job_key(&record.job, record.epoch);
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin().await?;
        sqlx::query(
            "INSERT INTO jobs (job, record, created_ms) VALUES (?, ?, ?)
             ON CONFLICT (job) DO UPDATE SET record = excluded.record, created_ms = excluded.created_ms",
        )
        .bind(job.as_ref())
        .bind(text)
        .bind(record.created_ms)
        .execute(&mut *transaction)
        .await?;
        // The list of jobs is read from there.
        sqlx::query(
            "INSERT INTO job_counts (job, queue, kind, created_ms) VALUES (?, ?, ?, ?) ON CONFLICT (job) DO NOTHING",
        )
        .bind(job.as_ref())
        .bind(&record.queue)
        .bind(&record.kind)
        .bind(record.created_ms)
        .execute(&mut *transaction)
        .await?;
        let noted = thens::note(&mut transaction, record).await?;
        transaction.commit().await?;
        if noted {
            self.watch.job_written();
        }
        Ok(())
    }

    /// Closes the readers; the writer closes with the last clone.
    pub(crate) async fn close(&self) {
        self.readers.close().await;
    }
}

//! The store: what ended, for good. `merge` adds what ended, `tasks`, `jobs` and `dead_letters` answer the API, `retention`
//! deletes what is old. `sql` is what the store needs of a database, which `sqlite` and `postgres` are; all else is written
//! once for both.

mod batch;
mod cancelled_jobs;
mod continuations;
mod dead_letters;
mod dropped_schedules;
mod error;
mod items;
mod job_names;
mod job_results;
mod jobs;
mod latency;
mod list;
mod merge;
mod migrations;
mod pending_rows;
mod postgres;
mod replays;
mod retention;
mod rows;
mod series;
mod sql;
mod sqlite;
mod status;
mod tasks;
#[cfg(test)]
mod tests;
mod unended;
mod unused_queues;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millpond::job::{JobRecord, JobState};

use cancelled_jobs::CancelledJobs;
use continuations::{ContinuationSignal, store_continuation};
use error::{Result, saturated, to_json};
use job_names::{job_key, list_job};
use sql::{Database, Sql, Transaction};

pub(crate) use continuations::{ContinuationEnd, RefusedContinuation};
pub(crate) use error::StoreError;
pub(crate) use job_results::ResultCursor;
pub(crate) use list::{ListCursor, Page};
pub(crate) use merge::UnreadableMessages;
pub(crate) use replays::PlannedReplay;
pub(crate) use retention::Retention;
pub(crate) use series::{EndedPerStep, QueueSample, STEP_MS};
pub(crate) use unended::{OpenJob, PURGED, UnendedTask};

/// Stands for the worker of a task that never ran.
const NO_WORKER: &str = "-";

/// Where the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreAt {
    /// A file of SQLite.
    File(PathBuf),
    /// A database of Postgres, by its url.
    Postgres(String),
}

impl FromStr for StoreAt {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text.split_once("://") {
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(text.to_owned())),
            Some(("sqlite", path)) => Ok(Self::File(path.into())),
            Some((other, _)) => {
                Err(format!("{other}:// is no store: a path (SQLite), or postgres://user:password@host:5432/database"))
            }
            // Taken for the name of a file it would be shown, and it may have a password.
            None if text.starts_with("postgres") && text.contains(['@', ':', '=']) || text.contains("password=") => {
                Err("an address of Postgres is written postgres://user:password@host:5432/database".to_owned())
            }
            None if text.is_empty() => Err("no store: a path (SQLite), or postgres://…".to_owned()),
            None => Ok(Self::File(text.into())),
        }
    }
}

impl fmt::Display for StoreAt {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Postgres(url) => millpond::bus::without_password(url).fmt(f),
        }
    }
}

/// How often lists have changed: a number that differs means that the list does.
#[derive(Debug, Default)]
pub(crate) struct Versions {
    tasks: AtomicU64,
    jobs: AtomicU64,
    dead: AtomicU64,
}

impl Versions {
    /// Of tasks, jobs, and dead letters.
    pub(crate) fn now(&self) -> [u64; 3] {
        [&self.tasks, &self.jobs, &self.dead].map(|version| version.load(Ordering::Relaxed))
    }

    fn merged(&self, died: bool) {
        self.tasks.fetch_add(1, Ordering::Relaxed);
        self.jobs.fetch_add(1, Ordering::Relaxed);
        if died {
            self.dead.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn all(&self) {
        for version in [&self.tasks, &self.jobs, &self.dead] {
            version.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Store {
    db: Arc<dyn Database>,
    cancelled: CancelledJobs,
    continuations: Arc<ContinuationSignal>,
    pub(crate) versions: Arc<Versions>,
}

impl Store {
    /// Opens it, makes it when it is not there, and brings its tables up to date.
    pub(crate) async fn open(at: &StoreAt) -> anyhow::Result<Self> {
        let db: Arc<dyn Database> = match at {
            StoreAt::File(path) => Arc::new(sqlite::SqliteDatabase::open(path).await?),
            StoreAt::Postgres(url) => Arc::new(postgres::PostgresDatabase::open(url).await?),
        };
        let cancelled = CancelledJobs::default();
        cancelled.refresh(&*db).await?;
        Ok(Self { db, cancelled, continuations: Arc::default(), versions: Arc::default() })
    }

    /// `sqlite` or `postgres`.
    pub(crate) fn kind(&self) -> &'static str {
        self.db.kind()
    }

    /// Whether the database answers.
    pub(crate) async fn is_usable(&self) -> bool {
        self.db.read(Sql::new("SELECT n FROM tasks LIMIT 1")).await.is_ok()
    }

    /// Follows what other collectors change in the same store, for ever.
    pub(crate) async fn follow(self) {
        loop {
            self.db.changed_elsewhere().await;
            if let Err(error) = self.cancelled.refresh(&*self.db).await {
                tracing::warn!(%error, "cancelled jobs cannot be read from the store; the next change reads them");
            }
            self.versions.all();
            self.continuations.job_written();
        }
    }

    /// Stores the record of a job; `recorded_ms`: when the bus stored it. An older record changes nothing.
    pub(crate) async fn put_job(&self, record: &JobRecord, recorded_ms: i64) -> Result<()> {
        self.put_jobs(&[(record.clone(), recorded_ms)]).await
    }

    /// Stores the records of jobs in one transaction, each with when the bus stored it.
    pub(crate) async fn put_jobs(&self, records: &[(JobRecord, i64)]) -> Result<()> {
        let (mut transaction, mut has_continuation) = (self.db.begin().await?, false);
        for (record, recorded_ms) in records {
            has_continuation |= put_record(&mut *transaction, record, *recorded_ms).await?;
        }
        transaction.commit().await?;
        self.versions.jobs.fetch_add(1, Ordering::Relaxed);
        if has_continuation {
            self.continuations.job_written();
        }
        Ok(())
    }

    /// Bytes that it takes, without what is free inside.
    pub(crate) async fn bytes(&self) -> Result<u64> {
        self.db.bytes().await
    }

    /// Closes it.
    pub(crate) async fn close(&self) {
        self.db.close().await;
    }
}

/// Stores one record of a job; whether it is of a closed job with a continuation.
async fn put_record(transaction: &mut dyn Transaction, record: &JobRecord, recorded_ms: i64) -> Result<bool> {
    let job = job_key(&record.job, record.epoch);
    let state = match record.state {
        JobState::Open => "open",
        JobState::Closed => "closed",
        JobState::Cancelled => "cancelled",
    };
    // First, so that the triggers of the record find its row.
    list_job(transaction, &job, (&record.queue, &record.kind), record.created_ms).await?;
    let put = Sql::new(
        "INSERT INTO jobs (job, record, created_ms, state, total, heartbeat_ms, recorded_ms) VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (job) DO UPDATE SET record = excluded.record, created_ms = excluded.created_ms,
            state = excluded.state, total = excluded.total, heartbeat_ms = excluded.heartbeat_ms,
            recorded_ms = excluded.recorded_ms
         WHERE excluded.recorded_ms >= jobs.recorded_ms",
    );
    let put = put.bind(&*job).bind(to_json("record", record)?).bind(record.created_ms).bind(state);
    let put = put.bind(record.total.map(saturated)).bind(record.heartbeat_ms);
    transaction.run(put.bind(recorded_ms)).await?;
    store_continuation(transaction, record).await
}

//! The store: what ended, for good. `merge` takes what ended, `read` and `jobs` answer the API, `keep` forgets what is old.
//! `sql` is what is asked of the database, `sqlite` and `postgres` are the two; all else is written once.

mod batch;
mod cancels;
mod jobs;
mod keep;
mod latency;
mod letters;
mod merge;
mod migrations;
mod postgres;
mod read;
mod reconcile;
mod series;
mod shown;
mod sql;
mod sqlite;
#[cfg(test)]
mod tests;
mod thens;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millpond::job::{JobRecord, JobState};

use cancels::{JobCancels, job_key};
use sql::{Database, Sql};

pub(crate) use jobs::{JobFilter, Place};
pub(crate) use keep::Keep;
pub(crate) use letters::{Again, Letter};
pub(crate) use read::{Cursor, Page, Rows, TaskFilter};
pub(crate) use reconcile::{PURGED, Standing, Unended};
pub(crate) use series::{Ended, STEP_MS, Sample, Step};
pub(crate) use shown::Shown;

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

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once("://") {
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(text.to_owned())),
            Some(("sqlite", path)) => Ok(Self::File(path.into())),
            Some((other, _)) => {
                Err(format!("{other}:// is no store: a path (SQLite), or postgres://user:password@host:5432/database"))
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
    cancelled: JobCancels,
    watch: Arc<thens::Watch>,
    pub(crate) versions: Arc<Versions>,
}

impl Store {
    /// Opens it, makes it when it is not there, and brings its tables up to date.
    pub(crate) async fn open(at: &StoreAt) -> anyhow::Result<Self> {
        let db: Arc<dyn Database> = match at {
            StoreAt::File(path) => Arc::new(sqlite::SqliteDatabase::open(path).await?),
            StoreAt::Postgres(url) => Arc::new(postgres::PostgresDatabase::open(url).await?),
        };
        let cancelled = JobCancels::default();
        cancelled.refresh(&*db).await?;
        Ok(Self { db, cancelled, watch: Arc::default(), versions: Arc::default() })
    }

    /// `sqlite` or `postgres`.
    pub(crate) fn kind(&self) -> &'static str {
        self.db.kind()
    }

    /// Whether it can be written, as far as can be told without writing.
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
            self.watch.job_written();
        }
    }

    /// Keeps the record of a job; `told_ms`: when the bus stored it; an older one changes nothing.
    pub(crate) async fn put_job(&self, record: &JobRecord, told_ms: i64) -> anyhow::Result<()> {
        let job = job_key(&record.job, record.epoch);
        let state = match record.state {
            JobState::Open => "open",
            JobState::Closed => "closed",
            JobState::Cancelled => "cancelled",
        };
        let mut transaction = self.db.begin().await?;
        // The list of jobs is read from there. First, so that the record finds it, whoever makes it.
        let listed = Sql::new(
            "INSERT INTO job_counts (job, queue, kind, created_ms) VALUES (?, ?, ?, ?) ON CONFLICT (job) DO NOTHING",
        );
        let listed = listed.bind(&*job).bind(&record.queue).bind(&record.kind).bind(record.created_ms);
        transaction.run(listed).await?;
        let put = Sql::new(
            "INSERT INTO jobs (job, record, created_ms, state, total, heartbeat_ms, told_ms) VALUES (?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (job) DO UPDATE SET record = excluded.record, created_ms = excluded.created_ms,
                state = excluded.state, total = excluded.total, heartbeat_ms = excluded.heartbeat_ms,
                told_ms = excluded.told_ms
             WHERE excluded.told_ms >= jobs.told_ms",
        );
        let put = put.bind(&*job).bind(serde_json::to_string(record)?).bind(record.created_ms).bind(state);
        let put = put.bind(record.total.and_then(|n| i64::try_from(n).ok())).bind(record.heartbeat_ms);
        transaction.run(put.bind(told_ms)).await?;
        let noted = thens::note(&mut *transaction, record).await?;
        transaction.commit().await?;
        self.versions.jobs.fetch_add(1, Ordering::Relaxed);
        if noted {
            self.watch.job_written();
        }
        Ok(())
    }

    /// Bytes that it takes, without what is free inside.
    pub(crate) async fn bytes(&self) -> anyhow::Result<u64> {
        Ok(self.db.bytes().await?)
    }

    /// Closes it.
    pub(crate) async fn close(&self) {
        self.db.close().await;
    }
}

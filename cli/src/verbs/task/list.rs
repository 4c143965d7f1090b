//! `task ls|export`: tasks that fit a filter.

use clap::Args;
use millpond_api::list::List;
use millpond_api::tasks::{TaskQuery, TaskRow, TaskStatus};
use serde::Serialize;

use super::super::listing::{one_of, time_ms};
use super::super::task_args;
use crate::api::Api;
use crate::output::{Table, json_line, output, time, took};

/// Which tasks.
#[derive(Args, Debug, Clone)]
pub struct TaskFilterArgs {
    /// Only tasks of this job.
    #[arg(long, value_parser = task_args::job)]
    job: Option<String>,
    /// Only tasks of this queue.
    #[arg(long, value_parser = task_args::queue)]
    queue: Option<String>,
    /// Only tasks of this kind.
    #[arg(long, value_parser = task_args::kind)]
    kind: Option<String>,
    /// Only tasks with this status.
    #[arg(long, value_parser = one_of(TaskStatus::ALL, TaskStatus::name))]
    status: Option<TaskStatus>,
    /// Only tasks whose last attempt ran on this worker.
    #[arg(long, value_parser = task_args::worker)]
    worker: Option<String>,
    /// Only tasks published at this time or later: an RFC 3339 time, Unix time in milliseconds, or an age such as 2h.
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    since: Option<i64>,
    /// Only tasks published before this time.
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    until: Option<i64>,
    /// Only tasks with this text in the type or the message of a failure.
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
}

impl From<TaskFilterArgs> for TaskQuery {
    fn from(typed: TaskFilterArgs) -> Self {
        let TaskFilterArgs { job, queue, kind, status, worker, since, until, error } = typed;
        Self { job, queue, kind, status, worker, since, until, error }
    }
}

/// Lists the newest tasks.
///
/// # Errors
/// When the collector does not answer.
pub(super) async fn ls(api: &Api, filter: TaskFilterArgs, limit: u32, json: bool) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct FirstPage {
        #[serde(flatten)]
        filter: TaskQuery,
        limit: u32,
    }
    let page: List<TaskRow> = api.get("/api/v1/tasks", &FirstPage { filter: filter.into(), limit }).await?;
    let mut table = Table::new(&["ID", "QUEUE", "KIND", "JOB", "STATUS", "ATTEMPT", "WORKER", "PUBLISHED", "TOOK"]);
    for task in page.rows {
        if json {
            json_line(&task)?;
            continue;
        }
        let TaskRow { id, queue, kind, job, status, attempt, worker, published_ms, started_ms, ended_ms, .. } = task;
        let (status, attempt) = (status.to_string(), attempt.to_string());
        let (published, took) = (time(published_ms), took(started_ms, ended_ms));
        table.row(vec![id, queue, kind, job.unwrap_or_default(), status, attempt, worker, published, took]);
    }
    if !json {
        table.print("no such tasks")?;
    }
    if page.next.is_some() {
        note!("there are more than these {limit}: --limit shows more, `millpond task export` prints all");
    }
    Ok(())
}

/// Prints all tasks, as the collector writes them.
///
/// # Errors
/// As [`ls`], when the collector is cut off on the way, and when standard output is closed.
pub(super) async fn export(api: &Api, filter: TaskFilterArgs) -> anyhow::Result<()> {
    api.download("/api/v1/tasks.ndjson", &TaskQuery::from(filter), &mut output()).await
}

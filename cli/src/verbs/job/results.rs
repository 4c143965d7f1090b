//! `job results`, and the results of single tasks that lie in the store of payloads.

use std::io::Write;
use std::process::ExitCode;

use millpond::client::{Client, TaskResult};
use millpond::payload::PayloadRef;
use millpond_api::jobs::JobResult;
use millpond_api::list::PAGE_ROWS_MAX;
use millpond_api::tasks::TaskStatus;

use crate::api::Api;
use crate::cluster_env::{self, ClusterEnv};
use crate::exit;
use crate::output::{one_line, output};

/// Fetches results from the store of payloads; connects to NATS when the first is fetched.
pub(in crate::verbs) struct StoredResults<'a> {
    env: &'a ClusterEnv,
    client: Option<Client>,
}

impl<'a> StoredResults<'a> {
    /// Those of this environment's cluster.
    pub(in crate::verbs) fn new(env: &'a ClusterEnv) -> Self {
        Self { env, client: None }
    }

    /// The result that a row of the collector refers to; none when it refers to none.
    ///
    /// # Errors
    /// When the result is missing or damaged, or NATS does not answer.
    pub(in crate::verbs) async fn fetch(&mut self, at: Option<&PayloadRef>) -> anyhow::Result<Option<TaskResult>> {
        let Some(at) = at else { return Ok(None) };
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.env.client("results", cluster_env::access()?).await?,
        };
        self.client = Some(client.clone());
        Ok(Some(client.get_result(at).await?))
    }
}

/// Prints the results of a job in the order of its tasks, one per line, which is empty for a task without one. A stored result that cannot be fetched is reported
/// on standard error.
///
/// # Errors
/// When the collector does not answer, or standard output is closed.
pub(super) async fn print(api: &Api, job: &str, json: bool, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let mut out = std::io::BufWriter::new(output());
    let (mut stored, mut lost) = (StoredResults::new(env), 0u64);
    let path = format!("/api/v1/jobs/{job}/results");
    api.each(&path, &[("limit", PAGE_ROWS_MAX)], async |mut row: JobResult| {
        match stored.fetch(row.stored_result.as_ref()).await {
            Ok(None) => {}
            Ok(Some(fetched)) => (row.result, row.result_is_bytes) = (Some(fetched.value), fetched.is_bytes),
            Err(error) => {
                lost += 1;
                note!("millpond: task {}: {error:#}", row.id);
            }
        }
        let line = match (json, &row.result) {
            (true, _) => serde_json::to_string(&row)?,
            // An item without a result is an empty line, as for `map`: null is a result.
            (false, _) if row.status != TaskStatus::Done => String::new(),
            (false, Some(value)) => value.get().to_owned(),
            // As text where some parsers would not read it.
            (false, None) => row.result_text.clone().unwrap_or_default(),
        };
        Ok(writeln!(out, "{}", one_line(&line))?)
    })
    .await?;
    out.flush()?;
    Ok(if lost == 0 { ExitCode::SUCCESS } else { exit::TASK_FAILED.into() })
}

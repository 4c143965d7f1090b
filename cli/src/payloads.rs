//! Payloads that do not fit a message: a file as arguments, and results that lie in the store.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use bytes::Bytes;
use millpond::bus::publish::RetryDeadline;
use millpond::client::{Client, NewTask};
use millpond::limits::{CLAIM_CHECK_BYTES, PAGE_ROWS_MAX};
use millpond::payload::PayloadRef;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::api::Api;
use crate::state::{CLIENT_NATS_URL, Env};
use crate::{EXIT_TASK_FAILED, state};

/// Gives a task the bytes of a file, or of standard input for `-`, as its arguments: in the message when they are JSON
/// and small, else from the store, so that a handler gets small and large files of one kind in one way.
///
/// # Errors
/// When it cannot be read, or not stored.
pub async fn attach(task: &mut NewTask, path: &Path, client: &Client, deadline: RetryDeadline) -> anyhow::Result<()> {
    let mut from: Box<dyn AsyncRead + Unpin + Send> = match path.to_str() {
        Some("-") => Box::new(tokio::io::stdin()),
        _ => Box::new(tokio::fs::File::open(path).await.with_context(|| format!("cannot open {}", path.display()))?),
    };
    let mut start = Vec::new();
    let read = (&mut from).take(CLAIM_CHECK_BYTES as u64 + 1).read_to_end(&mut start).await;
    read.with_context(|| format!("cannot read {}", path.display()))?;
    if start.len() <= CLAIM_CHECK_BYTES && serde_json::from_slice::<&RawValue>(&start).is_ok() {
        task.payload = Bytes::from(start);
    } else {
        task.stored = Some(client.put_payload(&mut start.as_slice().chain(from), deadline).await?);
    }
    Ok(())
}

/// Fetches results; connects when the first is asked for.
pub struct Results<'a> {
    env: &'a Env,
    client: Option<Client>,
}

impl<'a> Results<'a> {
    /// From the cluster of this environment.
    pub fn new(env: &'a Env) -> Self {
        Self { env, client: None }
    }

    /// The result that a row of the collector refers to; none when it refers to none.
    ///
    /// # Errors
    /// When it cannot be had: it is missing, damaged, or NATS does not answer.
    pub async fn of(&mut self, row: &Value) -> anyhow::Result<Option<Box<RawValue>>> {
        let Some(at) = row.get("ref").filter(|at| at.is_object()) else { return Ok(None) };
        let at: PayloadRef = serde_json::from_value(at.clone()).context("the collector's reference cannot be read")?;
        let client = match &self.client {
            Some(client) => client.clone(),
            None => Client::connect(&self.env.need(CLIENT_NATS_URL)?, "results", state::access()?).await?,
        };
        self.client = Some(client.clone());
        Ok(Some(client.get_result(&at).await?))
    }
}

/// Prints the results of a job in the order of its tasks, a line each; what cannot be had any more is told.
///
/// # Errors
/// When the collector does not answer, or standard output is closed.
pub async fn print_results(api: &Api, job: &str, json: bool, env: &Env) -> anyhow::Result<ExitCode> {
    let mut out = std::io::BufWriter::new(std::io::stdout());
    let (mut results, mut lost, mut after) = (Results::new(env), 0u64, None);
    loop {
        let mut query = vec![("limit", PAGE_ROWS_MAX.to_string())];
        query.extend(after.take().map(|cursor| ("after", cursor)));
        let Some(mut page) = api.get(&format!("/api/v1/jobs/{job}/results"), &query).await? else { break };
        for row in page.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
            let fetched = results.of(row).await.unwrap_or_else(|error| {
                lost += 1;
                eprintln!("millpond: task {}: {error:#}", crate::api::text(row, "id"));
                None
            });
            match (fetched, json) {
                (Some(value), true) => {
                    row["result"] = serde_json::from_str(value.get())?;
                    writeln!(out, "{row}")?;
                }
                (None, true) => writeln!(out, "{row}")?,
                (Some(value), false) => writeln!(out, "{}", value.get().replace(['\n', '\r'], " "))?,
                (None, false) => writeln!(out, "{}", row.get("result").unwrap_or(&Value::Null))?,
            }
        }
        match page.get("next").and_then(Value::as_str) {
            Some(next) => after = Some(next.to_owned()),
            None => break,
        }
    }
    out.flush()?;
    Ok(if lost == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_TASK_FAILED) })
}

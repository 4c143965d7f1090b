//! `map --no-wait`: what a pure producer does. Its input is one job, which is closed when the input ends.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use bytes::Bytes;
use futures_util::Stream;
use millpond::client::{Client, MapSpec};
use serde_json::json;

use crate::output::json_line;

/// Publishes all of the input, and prints the job's name once the server has stored it.
///
/// # Errors
/// When the input cannot be read or a task cannot be published; tells how much of it is stored.
pub async fn run(
    client: &Client,
    spec: MapSpec,
    input: impl Stream<Item = Result<Bytes, String>> + Send + 'static,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let (started, queue) = (Instant::now(), spec.queue.clone());
    let mut publishing = std::pin::pin!(client.publish_all(spec, input));
    let stored = tokio::select! {
        stored = &mut publishing => stored,
        () = crate::submit::hint_full(client, &queue) => publishing.await,
    };
    let all = stored?;
    if json {
        json_line(&json!({ "job": all.job, "tasks": all.tasks }))?;
    } else {
        writeln!(std::io::stdout().lock(), "{}", all.job)?;
    }
    eprintln!("{} tasks stored in {:.2} s, job {}", all.tasks, started.elapsed().as_secs_f64(), all.job);
    client.close().await;
    Ok(ExitCode::SUCCESS)
}

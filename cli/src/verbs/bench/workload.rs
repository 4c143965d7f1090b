//! The tasks that are measured, every result checked.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use millpond::bus::publish::RetryDeadline;
use millpond::client::{BatchSize, Client, MapSpec, NewTask};
use millpond_api::jobs::JobRow;

use crate::api::Api;
use crate::cluster_env::ClusterEnv;

/// How many tasks a round with batches has for each task of one without, so that it lasts.
pub(super) const BATCHED_FACTOR: u64 = 20;
/// How long the collector may take to store a round after its last result.
const STORED_WITHIN: Duration = Duration::from_secs(120);
/// How often the collector is polled.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// What the kind `square` returns.
pub(super) fn square(n: u64) -> u64 {
    n * n
}

/// Runs `kind` over `count` numbers and checks the results. Returns the time from the first publish to the last result, and
/// the job.
pub(super) async fn map(
    client: &Client,
    kind: &str,
    batch: BatchSize,
    count: u64,
    expected: impl Fn(u64) -> u64,
) -> anyhow::Result<(Duration, String)> {
    let spec =
        MapSpec { queue: "default".to_owned(), kind: kind.to_owned(), batch, ordered: true, ..MapSpec::default() };
    let numbers = futures_util::stream::iter((0..count).map(|n| Ok(Bytes::from(n.to_string()))));
    let started = Instant::now();
    let mut run = client.map(spec, numbers).await?;
    let job = run.job();
    for n in 0..count {
        let item = run.next().await.context("a map ended early")??;
        let right = item.end.as_ref().is_ok_and(|end| end.get().parse() == Ok(expected(n)));
        if item.index != n || !right {
            bail!("item {n} of a map ended as {item:?}");
        }
    }
    let took = started.elapsed();
    if run.next().await.is_some() {
        bail!("a map returned more than was requested");
    }
    Ok((took, job))
}

/// Runs single tasks one after the other and checks each result. Returns how long each took, and the job of their session.
pub(super) async fn lone(client: &Client, count: u64) -> anyhow::Result<(Vec<Duration>, String)> {
    let mut session = client.session(None).await?;
    let job = session.job().to_owned();
    let mut took = Vec::new();
    for n in 0..count {
        let task = NewTask {
            queue: "default".to_owned(),
            kind: "square".to_owned(),
            payload: Bytes::from(n.to_string()),
            ..Default::default()
        };
        let started = Instant::now();
        let (_, end) = session.run(task, RetryDeadline::Unlimited, |_| {}).await?;
        took.push(started.elapsed());
        if !end.as_ref().is_ok_and(|end| end.get().parse() == Ok(n * n)) {
            bail!("lone task {n} ended as {end:?}");
        }
    }
    Ok((took, job))
}

/// Waits until the collector has stored a job, and returns how long that took: its CPU time belongs to the round, and it must
/// not burden the next one.
pub(super) async fn all_stored(env: &ClusterEnv, job: &str, tasks: u64) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let api = Api::new(env)?;
    loop {
        let found: Option<JobRow> = api.find(&format!("/api/v1/jobs/{job}"), &()).await?;
        let done = found.map_or(0, |job| job.done);
        let took = started.elapsed();
        if done >= tasks {
            return Ok(took);
        }
        if took > STORED_WITHIN {
            bail!("the collector has stored {done} of {tasks} tasks of {job} after {} s", took.as_secs());
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

//! Runs one task through `handlers.toml` without a cluster, for `millpond handler try`: a failure is seen where it can be mended.
//! Nothing of it is stored or settled.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use millpond::telemetry::TraceContext;
use tokio_util::sync::CancellationToken;

use crate::call::{Call, Reply};
use crate::call_end::CallEnd;
use crate::handlers::Handler;
use crate::run::execute::execute;
use crate::run::work_cursor::WorkCursor;
use crate::supervisor::{ChildUser, Children, Supervisor, Timeouts, read_handlers_toml};

/// How often the memory of the child is read.
const MEMORY_EVERY: Duration = Duration::from_millis(20);

/// The timeout of a task whose handler is debugged: a person thinks.
const DEBUG_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// A task to try.
pub struct Trial {
    /// The file `handlers.toml`.
    pub handlers: PathBuf,
    /// The kind: one of its tables.
    pub kind: String,
    /// Id of the task.
    pub id: String,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The arguments as published; empty when they are in a file.
    pub payload: Bytes,
    /// A file with the arguments.
    pub file: Option<PathBuf>,
    /// Its trace, as it was published.
    pub trace: Option<TraceContext>,
    /// The terminal stays attached to the child, which has all the time it needs.
    pub debug: bool,
    /// The task's own timeout.
    pub timeout: Option<Duration>,
    /// The timeout of a task whose kind has none.
    pub timeout_default: Duration,
}

/// What came of it.
pub struct TrialEnd {
    /// Its result, or why it failed.
    pub reply: Reply,
    /// How long it ran, from when its child was ready.
    pub took: Duration,
    /// How long its child took to become ready.
    pub start: Duration,
    /// The most memory that was resident while it ran, in bytes.
    pub rss_bytes_max: u64,
}

/// Runs a task as a worker would.
///
/// # Errors
/// When the file has no such kind, or its handler cannot start: then the task has not run.
pub async fn try_handler(trial: Trial) -> anyhow::Result<TrialEnd> {
    let Trial { handlers, kind, id, attempt, payload, file, trace, debug, timeout, timeout_default } = trial;
    let mut specs = read_handlers_toml(&handlers)?;
    let known = specs.keys().cloned().collect::<Vec<_>>().join(", ");
    let mut spec =
        specs.remove(&kind).with_context(|| format!("{} has no kind {kind}; it has {known}", handlers.display()))?;
    if spec.table.pipe {
        bail!("kind {kind} converses: `millpond call {kind} --pipe` talks to it");
    }
    // One child is enough for one task.
    spec.table.slots = Some(1);
    spec.attached = debug;
    if debug {
        spec.table.start_within = spec.table.start_within.map(|_| DEBUG_TIMEOUT);
    }
    if let Some(Err(refused)) = spec.user.as_ref().map(ChildUser::check_allowed) {
        tracing::warn!("{refused}. Here it runs as you");
        spec.user = None;
    }
    let children = Children::new(spec, "try");
    let supervisor = Supervisor::start(vec![children.clone()]);
    let handler = Handler::Child(children.clone());
    let timeouts = match debug {
        true => Timeouts { soft: None, hard: DEBUG_TIMEOUT },
        false => handler.timeouts(timeout, timeout_default),
    };
    if let Some(file) = &file {
        handler.give(file).context("the file of its arguments cannot be given to the user of its kind")?;
    }
    let mut watching = tokio::task::JoinSet::new();
    watching.spawn(supervisor.clone().watch());
    let waiting = Instant::now();
    let Ok(ready) = handler.ready().await else {
        supervisor.close().await;
        bail!("the handler of kind {kind} cannot start: {}", children.trouble().unwrap_or_default());
    };
    let (start, started) = (waiting.elapsed(), Instant::now());
    let call = Call { attempt, file, trace, ..Call::new(id, payload) };
    let (stop, cursor) = (CancellationToken::new(), Arc::new(WorkCursor::new(1)));
    let mut running = std::pin::pin!(execute(ready, vec![call], cursor, timeouts, &stop));
    let mut rss_bytes_max = 0;
    let ends = loop {
        tokio::select! {
            ends = &mut running => break ends,
            () = tokio::time::sleep(MEMORY_EVERY) => rss_bytes_max = rss_bytes_max.max(supervisor.resident()),
        }
    };
    let took = started.elapsed();
    let trouble = children.trouble();
    supervisor.close().await;
    let reply = match ends.into_iter().next() {
        Some(CallEnd::Done(value) | CallEnd::Bytes(value)) => Ok(value),
        Some(CallEnd::Failed(failure)) => Err(failure),
        Some(CallEnd::NotRun) | None => bail!("the task has not run: {}", trouble.unwrap_or_default()),
    };
    Ok(TrialEnd { reply, took, start, rss_bytes_max })
}

//! `job wait`: waits for the end of jobs, but never for ever on a job that no producer will close.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use millpond::config::duration;
use millpond_api::jobs::{JobRow, JobStatus};

use super::super::hints::why_nothing_starts;
use super::super::task_args;
use crate::api::Api;
use crate::exit;
use crate::output::milliseconds;

/// How often the collector is polled.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// A job without a producer is given up when nothing of it changes for this long.
const UNCHANGED_MAX: Duration = Duration::from_secs(10);
/// Why nothing of a job changes is asked after this long, and as often.
const ASK_AFTER: Duration = Duration::from_millis(1500);
/// A job that does not exist is given up after this long: its producer may be about to start.
const UNKNOWN_MAX: Duration = Duration::from_secs(60);

/// `job wait`.
#[derive(clap::Args, Debug)]
pub struct WaitArgs {
    /// Names of the jobs.
    #[arg(required = true, value_parser = task_args::job)]
    jobs: Vec<String>,
    /// Give up after this long.
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// Do not print why nothing moves while waiting.
    #[arg(long)]
    quiet: bool,
}

impl WaitArgs {
    pub(super) fn after_interrupt(&self) -> String {
        let names = self.jobs.join(" ");
        format!(
            "; what was waited for goes on: `millpond job wait {names}` waits again, `millpond job cancel {}` stops it",
            self.jobs.first().map_or("", String::as_str)
        )
    }
}

/// A job that is waited for.
struct AwaitedJob {
    name: String,
    /// The job as it was last seen; none while the collector does not know it.
    seen: Option<JobRow>,
    /// When it last changed.
    changed: Instant,
    /// When to ask why nothing of it changes, and what was printed of that.
    ask_at: Instant,
    printed: Option<String>,
}

/// How the wait for a job ended, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum WaitOutcome {
    Succeeded,
    Failed,
    Stalled,
}

/// Waits until each of the jobs has ended.
///
/// # Errors
/// When the collector does not answer, the timeout is over, or there is no such job.
pub(super) async fn run(api: &Api, args: WaitArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let new = |name: String| AwaitedJob { name, seen: None, changed: started, ask_at: started, printed: None };
    let mut open: Vec<AwaitedJob> = args.jobs.into_iter().map(new).collect();
    let mut worst = WaitOutcome::Succeeded;
    loop {
        let mut left = Vec::with_capacity(open.len());
        for mut job in open {
            match job.poll(api).await? {
                Some(outcome) => worst = worst.max(outcome),
                None => {
                    if !args.quiet {
                        job.explain(api).await;
                    }
                    left.push(job);
                }
            }
        }
        open = left;
        let Some(first) = open.first() else { break };
        if let Some(limit) = args.timeout.filter(|limit| started.elapsed() >= *limit) {
            let state = first.seen.as_ref().map_or("is unknown".to_owned(), |seen| format!("is {}", seen.state));
            let others = if open.len() > 1 { format!(", and {} more", open.len() - 1) } else { String::new() };
            bail!("job {} {state} after {}{others}", first.name, humantime::format_duration(limit));
        }
        let unknown = open.iter().find(|job| job.seen.is_none() && job.changed.elapsed() >= UNKNOWN_MAX);
        if let (Some(job), None) = (unknown, args.timeout) {
            bail!(
                "job {} is unknown: there has been none for {}, or the store has forgotten it; `millpond job ls` lists them",
                job.name,
                humantime::format_duration(UNKNOWN_MAX)
            );
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    Ok(match worst {
        WaitOutcome::Succeeded => ExitCode::SUCCESS,
        WaitOutcome::Failed => exit::TASK_FAILED.into(),
        WaitOutcome::Stalled => exit::STALLED.into(),
    })
}

impl AwaitedJob {
    /// How the job ended; none when it has not. Prints what is wrong.
    async fn poll(&mut self, api: &Api) -> anyhow::Result<Option<WaitOutcome>> {
        let found = api.find::<JobRow>(&format!("/api/v1/jobs/{}", self.name), &()).await?;
        let now = match (found, &self.seen) {
            (Some(now), _) => now,
            // Its producer may be about to begin.
            (None, None) => return Ok(None),
            (None, Some(_)) => {
                bail!("job {} is unknown now: the store has forgotten it; nothing tells how it ended", self.name)
            }
        };
        if self.seen.as_ref() != Some(&now) {
            self.changed = Instant::now();
            self.ask_at = self.changed + ASK_AFTER;
        }
        let unchanged = self.changed.elapsed() >= UNCHANGED_MAX;
        let JobRow { job: name, done, retrying, dead, cancelled, purged, .. } = &now;
        let outcome = match now.state {
            // Nobody says that more comes: a session has ended when nothing of it waits or runs.
            JobStatus::Session if now.ended != Some(true) => None,
            JobStatus::Finished | JobStatus::Session if retrying + dead + cancelled + purged == 0 => {
                Some(WaitOutcome::Succeeded)
            }
            JobStatus::Finished | JobStatus::Session => {
                let purged = if *purged > 0 { format!(", {purged} removed by a purge") } else { String::new() };
                let lost = if *retrying > 0 {
                    format!(", {retrying} removed before their next attempt")
                } else {
                    String::new()
                };
                note!("millpond: job {name}: {dead} dead, {cancelled} cancelled{purged}{lost}");
                Some(WaitOutcome::Failed)
            }
            JobStatus::Cancelled => {
                note!("millpond: job {name} was cancelled: {done} done, {cancelled} cancelled");
                Some(WaitOutcome::Failed)
            }
            JobStatus::Stalled if unchanged => {
                print_stalled(&now);
                Some(WaitOutcome::Stalled)
            }
            _ => None,
        };
        self.seen = Some(now);
        Ok(outcome)
    }
}

impl AwaitedJob {
    /// Prints why nothing of it changes: each cause once.
    async fn explain(&mut self, api: &Api) {
        let Some(JobRow { queue, kind, retrying, .. }) = &self.seen else { return };
        if Instant::now() < self.ask_at {
            return;
        }
        self.ask_at = Instant::now() + ASK_AFTER;
        let name = &self.name;
        let retries = || {
            format!(
                "{retrying} of its tasks failed and wait for their next attempt (`millpond task ls --job {name} --status \
                 retrying` shows why)"
            )
        };
        let cause = why_nothing_starts(api, queue, kind).await.or_else(|| (*retrying > 0).then(retries));
        if let Some(cause) = cause.as_ref().filter(|_| cause != self.printed) {
            note!("millpond: still waiting: job {name}: {cause}");
        }
        self.printed = cause;
    }
}

fn print_stalled(job: &JobRow) {
    let ended = job.done + job.dead + job.cancelled;
    let silent = millpond::now_ms() - job.heartbeat_ms.unwrap_or(0);
    note!(
        "millpond: job {name} is stalled: its producer's last heartbeat was {} ago, and nothing of the job changes; {ended} \
         of {} tasks that are known to be stored have ended. The stored tasks run without the producer; to complete the \
         job, send the same input again under its name (`millpond job show {name}` has its numbers)",
        milliseconds(silent),
        job.published.unwrap_or(0).max(ended),
        name = job.job,
    );
}

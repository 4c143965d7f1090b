//! `job wait`: joins jobs. It never waits for ever on a job that nobody will close.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use millpond::config::duration;
use serde_json::Value;

use crate::api::{Api, text};
use crate::output::milliseconds;
use crate::{EXIT_STALLED, EXIT_TASK_FAILED};

/// How often it asks.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// A job without a producer is given up when nothing of it changes for this long.
const QUIET: Duration = Duration::from_secs(10);
/// A job that nobody knows is given up after this long: its producer may be about to start.
const UNKNOWN_FOR: Duration = Duration::from_secs(60);

/// Which jobs, and for how long.
#[derive(clap::Args, Debug)]
pub struct WaitArgs {
    /// Their names.
    #[arg(required = true)]
    jobs: Vec<String>,
    /// Give up after this long.
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
}

/// What was seen of a job, and since when it is like that.
struct Watched {
    name: String,
    seen: Value,
    since: Instant,
}

/// How the wait for a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Well,
    Failed,
    Stalled,
}

/// Waits until each of them has ended.
///
/// # Errors
/// When the collector does not answer, the time is over, or there is no such job.
pub async fn run(api: &Api, args: WaitArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let new = |name: String| Watched { name, seen: Value::Null, since: started };
    let mut open: Vec<Watched> = args.jobs.into_iter().map(new).collect();
    let mut worst = End::Well;
    loop {
        let mut left = Vec::with_capacity(open.len());
        for mut job in open {
            match job.look(api).await? {
                Some(end) => worst = worst.max(end),
                None => left.push(job),
            }
        }
        open = left;
        let Some(first) = open.first() else { break };
        if let Some(limit) = args.timeout.filter(|limit| started.elapsed() >= *limit) {
            let state = match text(&first.seen, "state") {
                known if !known.is_empty() => format!("is {known}"),
                _ => "is not known".to_owned(),
            };
            let others = if open.len() > 1 { format!(", and {} more", open.len() - 1) } else { String::new() };
            bail!("job {} {state} after {}{others}", first.name, humantime::format_duration(limit));
        }
        let unknown = open.iter().find(|job| job.seen.is_null() && job.since.elapsed() >= UNKNOWN_FOR);
        if let (Some(job), None) = (unknown, args.timeout) {
            bail!("no job {} for {}; `millpond job ls` lists them", job.name, humantime::format_duration(UNKNOWN_FOR));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    Ok(match worst {
        End::Well => ExitCode::SUCCESS,
        End::Failed => ExitCode::from(EXIT_TASK_FAILED),
        End::Stalled => ExitCode::from(EXIT_STALLED),
    })
}

impl Watched {
    /// How it ended, if it has; says what is wrong.
    async fn look(&mut self, api: &Api) -> anyhow::Result<Option<End>> {
        let Some(found) = api.get(&format!("/api/v1/jobs/{}", self.name), &[]).await? else { return Ok(None) };
        if found != self.seen {
            (self.seen, self.since) = (found, Instant::now());
        }
        let count = |field: &str| self.seen.get(field).and_then(Value::as_u64).unwrap_or(0);
        let (done, dead, cancelled, purged) = (count("done"), count("dead"), count("cancelled"), count("purged"));
        let name = &self.name;
        match text(&self.seen, "state").as_str() {
            "finished" if dead + cancelled + purged == 0 => return Ok(Some(End::Well)),
            "finished" => {
                let purged = if purged > 0 { format!(", {purged} removed by a purge") } else { String::new() };
                eprintln!("millpond: job {name}: {dead} dead, {cancelled} cancelled{purged}");
                return Ok(Some(End::Failed));
            }
            "cancelled" => {
                eprintln!("millpond: job {name} was cancelled: {done} done, {cancelled} cancelled");
                return Ok(Some(End::Failed));
            }
            "stalled" if self.since.elapsed() >= QUIET => {
                let ended = done + dead + cancelled;
                let silent = millpond::now_ms() - self.seen.get("heartbeat_ms").and_then(Value::as_i64).unwrap_or(0);
                eprintln!(
                    "millpond: job {name} is stalled: its producer was last heard of {} ago and nothing of it changes; {ended} of {} tasks that are known to be stored have ended. What is stored goes on without it; to complete the job, send the same input again under its name (`millpond job show {name}` has its numbers)",
                    milliseconds(silent),
                    count("published").max(ended),
                );
            }
            "session" if self.since.elapsed() >= QUIET => eprintln!(
                "millpond: job {name} has no producer that closes it: tasks name it, how many is not known; {done} are done, {dead} dead, {cancelled} cancelled, and nothing of it changes"
            ),
            _ => return Ok(None),
        }
        Ok(Some(End::Stalled))
    }
}

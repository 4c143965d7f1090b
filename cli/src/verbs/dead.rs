//! `dead ls|show|retry|purge`: dead letters with their evidence, and what an operator does with them.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use millpond::visible::visible;
use millpond_api::dead_letters::{
    ActOnDeadLetters, DEAD_LETTERS_MAX, DEAD_LETTERS_PER_SECOND, DEAD_LETTERS_PER_SECOND_MAX, DeadLetterActedOn,
    DeadLetterContents, DeadLetterDetails, DeadLetterId, DeadLetterQuery, DeadLetterRow, DeadLettersActedOn,
};
use millpond_api::list::PAGE_ROWS_MAX;
use millpond_api::tasks::TaskIdQuery;
use serde_json::value::RawValue;

use super::arguments;
use super::failure::print_failure;
use super::listing::{Listing, time_ms};
use super::task_args::{self, TaskIdArgs};
use crate::api::Api;
use crate::cluster_env::ClusterEnv;
use crate::exit;
use crate::output::{json_line, one_line, optional, output, short, time};

/// How many characters of a failure's message a list shows.
const MESSAGE_CHARS_MAX: usize = 60;

/// What to do with dead letters.
#[derive(Subcommand, Debug)]
pub enum DeadCommand {
    /// List dead letters, the newest first.
    Ls {
        #[command(flatten)]
        filter: DeadFilterArgs,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Run tasks again, as their next attempt or as new tasks in another queue.
    Retry {
        #[command(flatten)]
        chosen: DeadSelectionArgs,
        /// Run them in this queue, as new tasks that refer to the old ones; the dead letters are settled.
        #[arg(long, value_parser = task_args::queue)]
        to_queue: Option<String>,
        /// Run a single task with these arguments instead, one JSON value.
        #[arg(long, value_name = "JSON")]
        args: Option<String>,
    },
    /// Throw dead letters away; their tasks stay dead.
    Purge(DeadSelectionArgs),
    /// Show a dead letter with its evidence.
    Show {
        #[command(flatten)]
        task: TaskIdArgs,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// Which dead letters to list.
#[derive(Args, Debug, Clone)]
pub struct DeadFilterArgs {
    /// Only dead letters of this queue.
    #[arg(long, value_parser = task_args::queue)]
    queue: Option<String>,
    /// Only dead letters of this kind.
    #[arg(long, value_parser = task_args::kind)]
    kind: Option<String>,
    /// Only dead letters of this job.
    #[arg(long, value_parser = task_args::job)]
    job: Option<String>,
    /// Only dead letters with this reason: exhausted, fatal, unknown_kind, kills_workers, expired, …
    #[arg(long)]
    reason: Option<String>,
    /// Only tasks that this worker dead-lettered.
    #[arg(long, value_parser = task_args::worker)]
    worker: Option<String>,
    /// Only dead letters with this text in the type or the message of their failure.
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Only tasks dead-lettered at this time or later: an RFC 3339 time, Unix time in milliseconds, or an age such as 2h.
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    since: Option<i64>,
    /// Only tasks dead-lettered before this time.
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    until: Option<i64>,
}

impl From<DeadFilterArgs> for DeadLetterQuery {
    fn from(typed: DeadFilterArgs) -> Self {
        let DeadFilterArgs { queue, kind, job, reason, worker, error, since, until } = typed;
        Self { queue, kind, job, reason, worker, error, since, until }
    }
}

/// Which dead letters to act on.
#[derive(Args, Debug)]
pub struct DeadSelectionArgs {
    /// Ids of the tasks. Of the filters only --queue can be combined with ids.
    #[arg(value_parser = task_args::task_id, conflicts_with_all = ["job", "reason", "worker", "error", "since", "until"])]
    ids: Vec<String>,
    /// Choose all dead letters that match the filters.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    #[command(flatten)]
    filter: DeadFilterArgs,
    /// Only report what would be done.
    #[arg(long)]
    dry_run: bool,
    /// How many dead letters to act on per second at most.
    #[arg(long, default_value_t = DEAD_LETTERS_PER_SECOND, value_parser = clap::value_parser!(u32).range(1..=i64::from(DEAD_LETTERS_PER_SECOND_MAX)))]
    rate: u32,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
}

const DEAD_LETTERS: Listing<DeadLetterRow> = Listing {
    path: "/api/v1/dead",
    headings: &["ID", "QUEUE", "KIND", "REASON", "ATTEMPT", "FAILURE", "DEAD-LETTERED"],
    cells: |dead| {
        vec![
            dead.id.clone(),
            dead.queue.clone(),
            dead.kind.clone(),
            dead.reason.clone(),
            dead.attempt.to_string(),
            short(&dead.failure.message, MESSAGE_CHARS_MAX),
            time(dead.dead_lettered_ms),
        ]
    },
    empty: "no dead letters",
};

/// Runs the command.
///
/// # Errors
/// When the collector does not answer, or has no such dead letter.
pub async fn run(command: DeadCommand, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let api = Api::new(env)?;
    match command {
        DeadCommand::Ls { filter, json } => DEAD_LETTERS.print(&api, &DeadLetterQuery::from(filter), json).await?,
        DeadCommand::Retry { chosen, to_queue, args } => {
            let arguments = other_arguments(&chosen, args.as_deref())?;
            let request = ActOnDeadLetters { queue: to_queue, arguments, ..Default::default() };
            return act(&api, chosen, Action::Retry, request).await;
        }
        DeadCommand::Purge(chosen) => {
            return act(&api, chosen, Action::Purge, ActOnDeadLetters::default()).await;
        }
        DeadCommand::Show { task, json } => {
            let dead = find(&api, &task.into()).await?;
            if json { json_line(&dead)? } else { print(&dead)? }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is done with dead letters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Retry,
    Purge,
}

fn other_arguments(chosen: &DeadSelectionArgs, typed: Option<&str>) -> anyhow::Result<Option<Box<RawValue>>> {
    if typed.is_some() && chosen.ids.len() != 1 {
        return Err(exit::usage("--args needs the id of exactly one task"));
    }
    typed.map(|typed| arguments::parse(typed.trim()).context("--args does not fit")).transpose()
}

pub(super) async fn find(api: &Api, task: &TaskIdQuery) -> anyhow::Result<DeadLetterDetails> {
    let found = api.find("/api/v1/dead_letter", task).await?;
    found.with_context(|| format!("no dead letter {}; `millpond dead ls` lists them", task.id))
}

/// Acts on the chosen dead letters, request by request. The exit code is 1 when it failed for one of them.
async fn act(
    api: &Api,
    chosen: DeadSelectionArgs,
    action: Action,
    request: ActOnDeadLetters,
) -> anyhow::Result<ExitCode> {
    let DeadSelectionArgs { ids, all, filter, dry_run, rate, json } = chosen;
    let (queue, kind) = (filter.queue.clone(), filter.kind.clone());
    let filter = DeadLetterQuery::from(filter);
    if ids.is_empty() && !all && filter == DeadLetterQuery::default() {
        return Err(exit::usage(
            "choose dead letters by ids, by filters such as --kind or --reason, or with --all; --dry-run only reports them",
        ));
    }
    let mut request = ActOnDeadLetters { dry_run, rate: Some(rate), ..request };
    let mut progress = ActionProgress { json, done: 0, failed: 0 };
    if ids.is_empty() {
        (request.filter, request.limit) = (Some(filter), Some(PAGE_ROWS_MAX));
        progress.finish(api, action, &mut request).await?;
    } else {
        let mut named = Vec::with_capacity(ids.len());
        for id in ids {
            let dead = find(api, &TaskIdQuery { id, queue: queue.clone(), kind: kind.clone() }).await?;
            let DeadLetterRow { queue, kind, id, attempt, .. } = dead.row;
            named.push(DeadLetterId { queue, kind: Some(kind), id, attempt });
        }
        for some in named.chunks(DEAD_LETTERS_MAX) {
            request.dead_letters = Some(some.to_vec());
            progress.finish(api, action, &mut request).await?;
        }
    }
    let ActionProgress { done, failed, .. } = progress;
    let verb = match (action, dry_run) {
        (Action::Retry, false) => "retried",
        (Action::Retry, true) => "would be retried",
        (Action::Purge, false) => "purged",
        (Action::Purge, true) => "would be purged",
    };
    note!("{done} {verb}, {failed} skipped");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { exit::TASK_FAILED.into() })
}

/// What became of the dead letters so far.
struct ActionProgress {
    json: bool,
    done: u64,
    failed: u64,
}

impl ActionProgress {
    /// Sends a request again, from where the last answer stopped, until nothing is left of it.
    async fn finish(&mut self, api: &Api, action: Action, request: &mut ActOnDeadLetters) -> anyhow::Result<()> {
        let path = match action {
            Action::Retry => "/api/v1/dead/retry",
            Action::Purge => "/api/v1/dead/purge",
        };
        loop {
            let answer: DeadLettersActedOn = api.post(path, request).await?;
            answer.rows.iter().try_for_each(|row| self.print(row))?;
            request.after = answer.next;
            if request.after.is_none() {
                return Ok(());
            }
        }
    }

    fn print(&mut self, row: &DeadLetterActedOn) -> anyhow::Result<()> {
        *(if row.ok { &mut self.done } else { &mut self.failed }) += 1;
        if self.json {
            return json_line(row);
        }
        if row.ok {
            writeln!(output(), "{}", row.new_id.as_ref().unwrap_or(&row.id))?;
        } else {
            note!("millpond: {}: {}", row.id, row.error.as_deref().unwrap_or_default());
        }
        Ok(())
    }
}

fn print(dead: &DeadLetterDetails) -> std::io::Result<()> {
    let DeadLetterDetails { row, contents } = dead;
    let fields = [
        ("id", row.id.clone()),
        ("queue", row.queue.clone()),
        ("kind", row.kind.clone()),
        ("job", row.job.clone().unwrap_or_default()),
        ("index", optional(row.index)),
        ("reason", row.reason.clone()),
        ("attempt", row.attempt.to_string()),
        ("worker", row.worker.clone()),
        ("trace", row.trace.clone().unwrap_or_default()),
        ("dead since", time(row.dead_lettered_ms)),
    ];
    let mut out = output();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        writeln!(out, "{name:<10} {}", visible(value))?;
    }
    print_failure(&mut out, &row.failure)?;
    for before in &contents.failures {
        writeln!(out, "attempt {} on {}", before.attempt, visible(&before.worker))?;
        print_failure(&mut out, &before.failure)?;
    }
    let DeadLetterContents { payload, payload_text, payload_base64, stored_payload, .. } = contents;
    let text = payload.as_deref().map(|payload| payload.get()).or(payload_text.as_deref());
    let arguments = match (text, payload_base64, stored_payload) {
        (Some(text), ..) => one_line(text).into_owned(),
        (None, Some(base64), _) => format!("{{\"base64\":\"{base64}\"}} (bytes that are no JSON)"),
        (None, None, Some(at)) => {
            format!("{} bytes in the store of payloads, object {}, SHA-256 {}", at.size, visible(&at.object), at.sha256)
        }
        (None, None, None) => "none".to_owned(),
    };
    writeln!(out, "{:<10} {arguments}", "arguments")
}

//! `why TASK`: one sentence about where a task is, and an exit code for each answer.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use serde_json::Value;

use crate::api::{Api, text};
use crate::output::json_line;
use crate::state::Env;

/// Which task.
#[derive(clap::Args, Debug)]
pub struct WhyArgs {
    /// Its id; `<job>.<epoch>/<index>` for a task of a job.
    id: String,
    /// Its queue, where several have this id.
    #[arg(long)]
    queue: Option<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// The states and their exit codes, as the README lists them.
pub const EXIT_CODES: [(&str, u8); 9] = [
    ("done", 0),
    ("dead", 1),
    ("cancelled", 3),
    ("unknown", 4),
    ("running", 10),
    ("scheduled", 11),
    ("waiting", 12),
    ("no_worker", 13),
    ("paused", 14),
];

/// Asks the collector.
///
/// # Errors
/// When it does not answer.
pub async fn run(args: WhyArgs, env: &Env) -> anyhow::Result<ExitCode> {
    let mut query = vec![("id", args.id.clone())];
    query.extend(args.queue.map(|queue| ("queue", queue)));
    let Some(why) = Api::new(env)?.get("/api/v1/why", &query).await? else {
        bail!("the collector does not know this question; is it of this version?");
    };
    if args.json {
        json_line(&why)?;
    } else {
        writeln!(std::io::stdout().lock(), "{}", text(&why, "sentence"))?;
    }
    let state = why.get("state").and_then(Value::as_str).unwrap_or("unknown");
    let code = EXIT_CODES.iter().find(|(name, _)| *name == state).map_or(crate::EXIT_ERROR, |(_, code)| *code);
    Ok(ExitCode::from(code))
}

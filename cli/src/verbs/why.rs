//! `why`: one sentence about where a task is, and an exit code for each answer.

use std::io::Write;
use std::process::ExitCode;

use millpond::visible::visible;
use millpond_api::tasks::{Explanation, TaskIdQuery, TaskState};

use super::task_args::TaskIdArgs;
use crate::api::Api;
use crate::cluster_env::ClusterEnv;
use crate::exit;
use crate::output::{json_line, output};

/// `why`.
#[derive(clap::Args, Debug)]
pub struct WhyArgs {
    #[command(flatten)]
    task: TaskIdArgs,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

/// Prints the collector's explanation.
///
/// # Errors
/// When the collector does not answer.
pub async fn run(args: WhyArgs, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let why: Explanation = Api::new(env)?.get("/api/v1/why", &TaskIdQuery::from(args.task)).await?;
    if args.json {
        json_line(&why)?;
    } else {
        writeln!(output(), "{}", visible(&why.sentence))?;
    }
    let code = match why.state {
        TaskState::Done => return Ok(ExitCode::SUCCESS),
        TaskState::Dead => exit::TASK_FAILED,
        TaskState::Cancelled => exit::CANCELLED,
        TaskState::Unknown => exit::UNKNOWN,
        TaskState::Running => exit::RUNNING,
        TaskState::Scheduled => exit::SCHEDULED,
        TaskState::Waiting => exit::WAITING,
        TaskState::NoWorker => exit::NO_WORKER,
        TaskState::Paused => exit::PAUSED,
    };
    Ok(code.into())
}

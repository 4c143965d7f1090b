//! Flags that several verbs have: which task, and how tasks run.

use std::time::Duration;

use millpond::config::duration;
use millpond::retry::parse_attempts_max;
use millpond_api::tasks::TaskIdQuery;

/// Which task.
#[derive(clap::Args, Debug)]
pub struct TaskIdArgs {
    /// Id of the task; `<job>.<epoch>/<index>` for a task of a job, `<id>/<i>` for an item of a batch.
    id: String,
    /// Queue of the task; needed when several queues have this id.
    #[arg(long)]
    queue: Option<String>,
}

impl From<TaskIdArgs> for TaskIdQuery {
    fn from(TaskIdArgs { id, queue }: TaskIdArgs) -> Self {
        Self { id, queue }
    }
}

/// Where tasks run, and how often.
#[derive(clap::Args, Debug, Clone)]
pub struct RunnerArgs {
    /// Queue of the tasks: which workers run them.
    #[arg(long, default_value = "default")]
    pub(super) queue: String,
    /// Timeout of one attempt, such as 30s.
    #[arg(long, value_parser = duration)]
    pub(super) timeout: Option<Duration>,
    /// How many attempts a task has before it becomes a dead letter.
    #[arg(long, value_parser = parse_attempts_max)]
    pub(super) attempts_max: Option<u32>,
}

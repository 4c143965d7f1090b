//! Flags that several verbs have: which task, and how tasks run; and the names that verbs take, checked as they are typed.

use std::time::Duration;

use millpond::config::duration;
use millpond::retry::parse_attempts_max;
use millpond::task::{TaskIdError, check_task_id};
use millpond::wire::subject::{SubjectError, check_token};
use millpond_api::tasks::TaskIdQuery;

fn name(what: &'static str, typed: &str) -> Result<String, SubjectError> {
    check_token(what, typed).map(|()| typed.to_owned())
}

/// Parses the name of a queue.
pub(super) fn queue(typed: &str) -> Result<String, SubjectError> {
    name("queue", typed)
}

/// Parses the name of a kind.
pub(super) fn kind(typed: &str) -> Result<String, SubjectError> {
    name("kind", typed)
}

/// Parses the name of a job.
pub(super) fn job(typed: &str) -> Result<String, SubjectError> {
    name("job", typed)
}

/// Parses the name of a worker.
pub(super) fn worker(typed: &str) -> Result<String, SubjectError> {
    name("worker", typed)
}

/// Parses the name of a schedule.
pub(super) fn schedule(typed: &str) -> Result<String, SubjectError> {
    name("schedule", typed)
}

/// Parses a unique key.
pub(super) fn unique_key(typed: &str) -> Result<String, SubjectError> {
    name("unique key", typed)
}

/// Parses the id of a task.
pub(super) fn task_id(typed: &str) -> Result<String, TaskIdError> {
    check_task_id(typed).map(|()| typed.to_owned())
}

/// Parses the timeout of an attempt: a task with none at all would be a dead letter.
pub(super) fn timeout(typed: &str) -> Result<Duration, String> {
    let timeout = duration(typed)?;
    if timeout.is_zero() { Err("must be longer than nothing, such as 30s".to_owned()) } else { Ok(timeout) }
}

/// Which task.
#[derive(clap::Args, Debug)]
pub struct TaskIdArgs {
    /// Id of the task; `<job>.<epoch>/<index>` for a task of a job, `<id>/<i>` for an item of a batch.
    #[arg(value_parser = task_id)]
    id: String,
    /// Queue of the task; needed when tasks of several queues have this id.
    #[arg(long, value_parser = queue)]
    queue: Option<String>,
    /// Kind of the task; needed when tasks of several kinds have this id.
    #[arg(long, value_parser = kind)]
    kind: Option<String>,
}

impl From<TaskIdArgs> for TaskIdQuery {
    fn from(TaskIdArgs { id, queue, kind }: TaskIdArgs) -> Self {
        Self { id, queue, kind }
    }
}

/// Where tasks run, and how often.
#[derive(clap::Args, Debug, Clone)]
pub struct RunnerArgs {
    /// Queue of the tasks: which workers run them.
    #[arg(long, default_value = "default", value_parser = queue)]
    pub(super) queue: String,
    /// Timeout of one attempt, such as 30s.
    #[arg(long, value_parser = timeout)]
    pub(super) timeout: Option<Duration>,
    /// How many attempts a task has before it becomes a dead letter.
    #[arg(long, value_parser = parse_attempts_max)]
    pub(super) attempts_max: Option<u32>,
}

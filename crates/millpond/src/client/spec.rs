//! What a `map` is given, and what it hands out.

use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream;
use serde::Serialize;

use super::TaskEnd;
use super::batch_sizer::BatchSize;
use crate::chain::ChainStep;

/// The job that runs over an input.
#[derive(Debug, Clone, Default)]
pub struct MapSpec {
    /// The queue of its tasks.
    pub queue: String,
    /// The kind of its tasks.
    pub kind: String,
    /// Name of the job; random when none.
    pub job: Option<String>,
    /// What to do when there is a job of this name already.
    pub if_exists: IfJobExists,
    /// How many tasks share a message.
    pub batch: BatchSize,
    /// Results in the order of the input; otherwise as they arrive.
    pub ordered: bool,
    /// A value of the input that cannot be read is an error only when all that stands before it has ended; otherwise as soon as
    /// that is stored.
    pub finish_broken_input: bool,
    /// Timeout of one attempt; none means the worker's.
    pub timeout: Option<Duration>,
    /// Attempts before a task is dead-lettered; none means the default.
    pub attempts_max: Option<u32>,
    /// The task that runs once the whole job has ended, with the counts as its argument; without a queue of its own in `queue`.
    pub continuation: Option<ChainStep>,
}

impl MapSpec {
    /// A job of tasks of this kind, in this queue; all else as it is by itself. Set the other fields with `..`.
    #[must_use]
    pub fn new(queue: impl Into<String>, kind: impl Into<String>) -> Self {
        Self { queue: queue.into(), kind: kind.into(), ..Self::default() }
    }
}

/// An input of values that serde writes as JSON, for [`map`](super::Client::map) and
/// [`publish_all`](super::Client::publish_all). A value that cannot be JSON ends it with an error.
pub fn json_values<T: Serialize + 'static>(
    values: impl IntoIterator<Item = T, IntoIter: Send + 'static>,
) -> impl Stream<Item = Result<Bytes, String>> + Send + 'static {
    stream::iter(values.into_iter().map(|value| match serde_json::to_vec(&value) {
        Ok(json) => Ok(json.into()),
        Err(error) => Err(error.to_string()),
    }))
}

/// What to do when there is a job of the name already. One that was cancelled always starts anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IfJobExists {
    /// The job goes on, with the same input from its start: nothing that is stored is published again.
    #[default]
    GoOn,
    /// That is an error.
    Refuse,
    /// A new job starts under the same name: its tasks get new ids.
    StartAnew,
}

/// One item of the input that ended.
#[derive(Debug)]
pub struct MapItem {
    /// Place in the input, from 0.
    pub index: u64,
    /// Its result, or why there is none.
    pub end: TaskEnd,
}

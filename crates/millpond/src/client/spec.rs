//! What a `map` is told, and what it hands out.

use std::time::Duration;

use super::TaskEnd;
use super::sizer::Batch;
use crate::chain::Step;

/// What to run over the input.
#[derive(Debug, Clone, Default)]
pub struct MapSpec {
    /// Who runs it.
    pub queue: String,
    /// Which handler runs it.
    pub kind: String,
    /// Name of the job; drawn at random when none.
    pub job: Option<String>,
    /// What happens when there is a job of this name already.
    pub begin: Begin,
    /// How many tasks share a message.
    pub batch: Batch,
    /// Results in the order of the input; else as they come.
    pub ordered: bool,
    /// Timeout of one attempt; none means the worker's.
    pub timeout: Option<Duration>,
    /// Attempts before a task is buried; none means the default.
    pub attempts_max: Option<u32>,
    /// What runs once all of it has ended, with the counts as its argument; without a queue of its own in `queue`.
    pub then: Option<Step>,
}

/// What happens when there is a job of the name already. One that was cancelled always starts anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Begin {
    /// It goes on where it was, with the same input from its start: nothing that is stored is published again.
    #[default]
    GoOn,
    /// It is an error.
    New,
    /// It starts anew under the same name: its tasks get new ids.
    Again,
}

/// One item of the input that ended.
#[derive(Debug)]
pub struct MapItem {
    /// Place in the input, from 0.
    pub index: u64,
    /// How it ended.
    pub end: TaskEnd,
}

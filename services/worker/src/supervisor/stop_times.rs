//! The times within which a child must stop, as far as warm children and processes of one use share them.

use std::time::Duration;

/// How long a child may take after each step of being stopped, where handlers.toml says nothing else: after it was told
/// to shut down before it gets SIGTERM, and after that before it is killed.
pub(crate) const GRACE_DEFAULT: Duration = Duration::from_secs(2);
/// How long each step may take at the most when the worker itself must leave, or the task was cancelled: nothing that was
/// cancelled runs a second later.
pub(crate) const STOP_GRACE_MAX: Duration = Duration::from_millis(300);
/// How long a child that has closed one of its pipes may take to end before it is killed.
pub(crate) const END_WITHIN: Duration = Duration::from_secs(1);

/// When a task is asked to stop, and when it is killed, counted from its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) soft: Option<Duration>,
    pub(crate) hard: Duration,
}

//! The verbs: a file or a folder for each, under its name. `services` runs the three services in the foreground; verbs that
//! publish or await tasks share `arguments`, `task_end` and `hints`, and those that list or show share
//! `listing` and `failure`.

pub(crate) mod bench;
pub(crate) mod call;
pub(crate) mod dead;
pub(crate) mod doctor;
pub(crate) mod env;
pub(crate) mod explain;
pub(crate) mod handler;
pub(crate) mod interrupt;
pub(crate) mod job;
pub(crate) mod map;
pub(crate) mod queue;
pub(crate) mod run_with_parent;
pub(crate) mod schedule;
pub(crate) mod secrets;
pub(crate) mod services;
pub(crate) mod setup;
pub(crate) mod shared;
pub(crate) mod submit;
pub(crate) mod task;
pub(crate) mod top;
pub(crate) mod up;
pub(crate) mod why;
pub(crate) mod worker;
pub(crate) mod xargs;

mod arguments;
mod failure;
mod hints;
mod listing;
mod task_args;
mod task_end;

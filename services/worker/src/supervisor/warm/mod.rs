//! Warm children (`mode = "stream"`): a process answers task after task over lines of JSON. An actor ([`actor`]) owns each
//! child; it receives [`assignment`]s, and runs them one after the other.

pub(crate) mod actor;
pub(crate) mod assignment;
mod child;
mod output;
mod run;

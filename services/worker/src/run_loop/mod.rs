//! Which tasks run next, and in which slots.

pub(crate) mod drain_requests;
pub(crate) mod pools;

//! How often each kind is tried, and how soon again.

use std::collections::BTreeMap;

use millpond::retry::Backoff;

/// How often a kind is tried, and when again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) attempts_max: u32,
    pub(crate) backoff: Backoff,
}

/// The policy of each kind that has one of its own.
#[derive(Debug)]
pub(crate) struct Policies {
    pub(crate) default: Policy,
    pub(crate) by_kind: BTreeMap<String, Policy>,
}

impl Policies {
    pub(crate) fn of(&self, kind: &str) -> Policy {
        self.by_kind.get(kind).copied().unwrap_or(self.default)
    }
}

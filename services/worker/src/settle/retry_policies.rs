//! Which retry policy a kind has.

use std::collections::BTreeMap;

use millpond::retry::RetryPolicy;

/// The retry policy of each kind that has one of its own, and that of all others.
#[derive(Debug)]
pub(crate) struct RetryPolicies {
    pub(crate) default: RetryPolicy,
    pub(crate) by_kind: BTreeMap<String, RetryPolicy>,
}

impl RetryPolicies {
    pub(crate) fn of(&self, kind: &str) -> RetryPolicy {
        self.by_kind.get(kind).copied().unwrap_or(self.default)
    }
}

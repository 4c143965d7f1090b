//! Which retry policy a task has: the worker's, with what its queue sets over it, and with what its kind sets over both.

use std::collections::BTreeMap;

use millpond::retry::{RetryOverrides, RetryPolicy};

/// The worker's retry policy, and what queues and kinds set of their own.
#[derive(Debug)]
pub(crate) struct RetryPolicies {
    pub(crate) default: RetryPolicy,
    pub(crate) by_queue: BTreeMap<String, RetryOverrides>,
    pub(crate) by_kind: BTreeMap<String, RetryOverrides>,
}

impl RetryPolicies {
    pub(crate) fn of(&self, queue: &str, kind: &str) -> RetryPolicy {
        let overrides = [self.by_queue.get(queue), self.by_kind.get(kind)];
        overrides.into_iter().flatten().fold(self.default, |policy, overrides| policy.with(*overrides))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_kind_goes_over_its_queue_and_both_over_the_worker() {
        let second = Duration::from_secs(1);
        let of_queue = RetryOverrides { attempts_max: Some(5), delay: Some(second), ..RetryOverrides::default() };
        let of_kind = RetryOverrides { attempts_max: Some(7), ..RetryOverrides::default() };
        let policies = RetryPolicies {
            default: RetryPolicy { delay: second * 9, ..RetryPolicy::DEFAULT },
            by_queue: [("mails".to_owned(), of_queue)].into(),
            by_kind: [("send".to_owned(), of_kind)].into(),
        };
        let of = |queue, kind| (policies.of(queue, kind).attempts_max, policies.of(queue, kind).delay);
        assert_eq!((of("mails", "send"), of("mails", "other")), ((7, second), (5, second)));
        assert_eq!((of("other", "send"), of("other", "other")), ((7, second * 9), (3, second * 9)));
    }
}

//! When a failed attempt is tried again. A pure function: the clock and the dice are parameters.

use std::time::Duration;

use crate::limits::{RETRY_DELAY_BASE, RETRY_DELAY_MAX};

/// Exponential back-off with jitter: the delay doubles with each attempt, and is spread over its upper half
/// so that tasks that failed together do not come back together ("equal jitter",
/// <https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Delay after the first failed attempt.
    pub base: Duration,
    /// No delay is longer.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: RETRY_DELAY_BASE, max: RETRY_DELAY_MAX }
    }
}

impl Backoff {
    /// The delay after `attempt` (from 1) failed; `jitter` is a number in 0..1.
    #[must_use]
    pub fn delay(&self, attempt: u32, jitter: f64) -> Duration {
        let doublings = attempt.saturating_sub(1).min(30);
        let full = self.base.saturating_mul(1u32 << doublings).min(self.max);
        full.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(attempt: u32, jitter: f64, expected_ms: u128) {
        assert_eq!(Backoff::default().delay(attempt, jitter).as_millis(), expected_ms);
    }

    #[test]
    fn doubles_up_to_the_limit() {
        check(1, 1.0, 1000);
        check(1, 0.0, 500);
        check(2, 1.0, 2000);
        check(3, 1.0, 4000);
        check(9, 1.0, 256_000);
        check(10, 1.0, 300_000);
        check(u32::MAX, 1.0, 300_000);
    }
}

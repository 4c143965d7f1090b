//! Whether and when a failed attempt is tried again: one policy type for a worker's default, a kind's own settings and a
//! task's own header, and for whatever else backs off. Pure: the clock and the random number are parameters.

use std::time::Duration;

pub use crate::limits::ATTEMPTS_MAX_MAX;
use crate::wire::bounds::parse_any_duration;

/// The longest delay that a queue may set.
pub const RETRY_DELAY_MAX_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// How many attempts a task gets, and how long each waits for the next one.
///
/// The delay doubles with each failed attempt up to `delay_max`. Jitter makes the last part of it random, so that tasks that
/// failed together do not come back together; at 0.5 this is "equal jitter"
/// (<https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/>).
///
/// ```
/// use std::time::Duration;
/// use millpond::retry::{RetryOverrides, RetryPolicy};
///
/// let policy = RetryPolicy { delay: Duration::from_secs(2), ..RetryPolicy::DEFAULT };
/// assert_eq!(policy.delay(1, 1.0), Duration::from_secs(2));
/// assert_eq!(policy.delay(3, 0.0), Duration::from_secs(4), "the half of 8 seconds that is not random");
/// // A kind's settings go over the worker's, and a task's header over both.
/// let of_kind = policy.with(RetryOverrides { jitter: Some(0.0), ..RetryOverrides::default() });
/// let of_task = of_kind.with(RetryOverrides { attempts_max: Some(2), ..RetryOverrides::default() });
/// assert!(!of_task.is_last(1) && of_task.is_last(2));
/// assert_eq!(of_task.delay(1, 0.7), Duration::from_secs(2));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Attempts before the task is dead-lettered, from 1 to [`ATTEMPTS_MAX_MAX`].
    pub attempts_max: u32,
    /// Delay after the first failed attempt.
    pub delay: Duration,
    /// No delay is longer.
    pub delay_max: Duration,
    /// The part of each delay that is random, from 0 (none of it) to 1 (all of it).
    pub jitter: f64,
}

/// What a queue, a kind or a task sets of its own; what is none stays as in the policy below it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RetryOverrides {
    /// See [`RetryPolicy::attempts_max`].
    pub attempts_max: Option<u32>,
    /// See [`RetryPolicy::delay`].
    pub delay: Option<Duration>,
    /// See [`RetryPolicy::delay_max`].
    pub delay_max: Option<Duration>,
    /// See [`RetryPolicy::jitter`].
    pub jitter: Option<f64>,
}

/// Why a value cannot be part of a retry policy.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RetryPolicyError {
    /// No number of attempts.
    #[error("{text:?} must be a number from 1 to {ATTEMPTS_MAX_MAX}")]
    AttemptsMax {
        /// As given.
        text: String,
    },
    /// No jitter.
    #[error("{text:?} must be a share from 0 to 1, such as 0.5")]
    Jitter {
        /// As given.
        text: String,
    },
    /// No settings of a queue.
    #[error("{text:?} must be a queue and what it sets, such as mails:attempts=5,delay=2s,delay-max=5m,jitter=0.2")]
    Queue {
        /// As given.
        text: String,
    },
    /// No delay.
    #[error("{text:?} must be a duration such as 2s, at most {}", humantime::Duration::from(RETRY_DELAY_MAX_MAX))]
    Delay {
        /// As given.
        text: String,
    },
}

/// Parses a number of attempts, as a header, a flag or a setting has it.
///
/// # Errors
/// [`RetryPolicyError::AttemptsMax`].
pub fn parse_attempts_max(text: &str) -> Result<u32, RetryPolicyError> {
    let number = text.parse().ok().filter(|number| (1..=ATTEMPTS_MAX_MAX).contains(number));
    number.ok_or_else(|| RetryPolicyError::AttemptsMax { text: text.to_owned() })
}

/// Parses a jitter, as a flag or a setting has it.
///
/// # Errors
/// [`RetryPolicyError::Jitter`].
pub fn parse_jitter(text: &str) -> Result<f64, RetryPolicyError> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| RetryPolicyError::Jitter { text: text.to_owned() })
}

fn parse_delay(text: &str) -> Result<Duration, RetryPolicyError> {
    let delay = parse_any_duration(text).ok().filter(|delay| *delay <= RETRY_DELAY_MAX_MAX);
    delay.ok_or_else(|| RetryPolicyError::Delay { text: text.to_owned() })
}

/// Parses what a queue sets of its own, as a flag has it: `<queue>:<name>=<value>,…` with the names `attempts`, `delay`,
/// `delay-max` and `jitter`, each at most once.
///
/// # Errors
/// [`RetryPolicyError`] of the value that cannot be.
///
/// ```
/// use millpond::retry::parse_queue_retry;
///
/// let (queue, overrides) = parse_queue_retry("mails:attempts=5,delay=2s").unwrap();
/// assert_eq!((queue.as_str(), overrides.attempts_max, overrides.jitter), ("mails", Some(5), None));
/// assert!(parse_queue_retry("mails:tries=5").is_err());
/// ```
pub fn parse_queue_retry(text: &str) -> Result<(String, RetryOverrides), RetryPolicyError> {
    let malformed = || RetryPolicyError::Queue { text: text.to_owned() };
    let (queue, settings) = text.trim().split_once(':').ok_or_else(malformed)?;
    let mut overrides = RetryOverrides::default();
    for setting in settings.split(',') {
        let (name, value) = setting.split_once('=').ok_or_else(malformed)?;
        let already = match name.trim() {
            "attempts" => overrides.attempts_max.replace(parse_attempts_max(value)?).is_some(),
            "delay" => overrides.delay.replace(parse_delay(value)?).is_some(),
            "delay-max" => overrides.delay_max.replace(parse_delay(value)?).is_some(),
            "jitter" => overrides.jitter.replace(parse_jitter(value)?).is_some(),
            _ => return Err(malformed()),
        };
        if already {
            return Err(malformed());
        }
    }
    Ok((queue.to_owned(), overrides))
}

impl RetryPolicy {
    /// The policy of a task for which nothing else is set.
    pub const DEFAULT: Self =
        Self { attempts_max: 3, delay: Duration::from_secs(1), delay_max: Duration::from_secs(300), jitter: 0.5 };

    /// This policy, with what `overrides` sets.
    #[must_use]
    pub fn with(self, overrides: RetryOverrides) -> Self {
        Self {
            attempts_max: overrides.attempts_max.unwrap_or(self.attempts_max),
            delay: overrides.delay.unwrap_or(self.delay),
            delay_max: overrides.delay_max.unwrap_or(self.delay_max),
            jitter: overrides.jitter.unwrap_or(self.jitter),
        }
    }

    /// Whether no attempt comes after `attempt` (from 1).
    #[must_use]
    pub fn is_last(&self, attempt: u32) -> bool {
        attempt >= self.attempts_max
    }

    /// The delay after `attempt` (from 1) failed; `random` is a number in 0..1.
    #[must_use]
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let doublings = attempt.saturating_sub(1).min(30);
        let full = self.delay.saturating_mul(1u32 << doublings).min(self.delay_max);
        full.mul_f64(1.0 - self.jitter + self.jitter * random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(attempt: u32, random: f64, expected_ms: u128) {
        assert_eq!(RetryPolicy::DEFAULT.delay(attempt, random).as_millis(), expected_ms);
    }

    #[test]
    fn delays_double_up_to_the_limit() {
        check(1, 1.0, 1000);
        check(1, 0.0, 500);
        check(2, 1.0, 2000);
        check(3, 1.0, 4000);
        check(9, 1.0, 256_000);
        check(10, 1.0, 300_000);
        check(u32::MAX, 1.0, 300_000);
    }

    #[test]
    fn a_queue_sets_each_value_once_and_within_its_range() {
        let (queue, overrides) = parse_queue_retry("mails:attempts=5,delay=2s,delay-max=1h,jitter=0").unwrap();
        let delays = (overrides.delay, overrides.delay_max);
        assert_eq!((queue.as_str(), overrides.attempts_max, overrides.jitter), ("mails", Some(5), Some(0.0)));
        assert_eq!(delays, (Some(Duration::from_secs(2)), Some(Duration::from_secs(3600))));
        for wrong in
            ["mails", "mails:", "mails:attempts", "mails:attempts=0", "mails:attempts=2,attempts=3", "mails:delay=300y"]
        {
            assert!(parse_queue_retry(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        assert_eq!((parse_attempts_max("100"), parse_jitter("0.25")), (Ok(100), Ok(0.25)));
        for text in ["0", "101", "-1", "x", ""] {
            assert!(parse_attempts_max(text).is_err(), "{text}");
        }
        for text in ["-0.1", "1.1", "NaN", "x", ""] {
            assert!(parse_jitter(text).is_err(), "{text}");
        }
    }
}

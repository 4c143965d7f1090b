//! How a program makes a task: [`NewTask::json`], and a method for each header that the protocol has for publishers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;

use super::NewTask;
use crate::chain::ChainStep;
use crate::payload::StoredPayload;

impl NewTask {
    /// A task whose arguments are `args` as JSON, for any worker of `queue` that has a handler of `kind`. Queue and kind are
    /// tokens: 1 to 64 characters of `A-Z a-z 0-9 _ -`. A priority is a queue of its own: workers name the queues that they
    /// serve in order, and take from the first that has tasks.
    ///
    /// ```
    /// use std::time::Duration;
    /// use millpond::NewTask;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let task = NewTask::json("default", "resize", &("cat.png", 640))?
    ///     .id("resize/cat.png")
    ///     .timeout(Duration::from_secs(30))
    ///     .attempts(5)
    ///     .continuation("mail.send".parse()?);
    /// assert_eq!(task.payload, r#"["cat.png",640]"#);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What serde says when the arguments cannot be JSON: a map whose keys are no strings, for example.
    pub fn json<A>(queue: impl Into<String>, kind: impl Into<String>, args: &A) -> Result<Self, serde_json::Error>
    where
        A: Serialize + ?Sized,
    {
        Ok(Self::bytes(queue, kind, serde_json::to_vec(args)?))
    }

    /// The same with arguments as they are to be published: JSON that is written already, or other bytes for a handler that
    /// reads bytes.
    #[must_use]
    pub fn bytes(queue: impl Into<String>, kind: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self { queue: queue.into(), kind: kind.into(), payload: payload.into(), ..Self::default() }
    }

    /// Its id (`Millpond-Id`), unique in its queue and kind: 1 to 256 bytes of UTF-8. Whoever publishes the task again with it
    /// within 30 s adds nothing; with other arguments it is refused ([`IdTaken`](super::SubmitError::IdTaken)). Random where it
    /// is not set.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// It starts no earlier than this from now; until then it waits at the server.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        let delay_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        self.at_ms = Some(crate::now_ms().saturating_add(delay_ms));
        self
    }

    /// It starts no earlier than at this time; until then it waits at the server. A time in the past means now.
    #[must_use]
    pub fn at(mut self, at: SystemTime) -> Self {
        self.at_ms = Some(match at.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
        });
        self
    }

    /// It must not start later than this (`Millpond-Expires`): then it becomes a dead letter with the reason `expired`.
    #[must_use]
    pub fn expires(mut self, at: SystemTime) -> Self {
        // A time that RFC 3339 cannot say lies in the year 10000 or later: it never expires.
        self.expires = Some(Timestamp::try_from(at).unwrap_or(Timestamp::MAX).to_string());
        self
    }

    /// How long one attempt may take (`Millpond-Timeout`), a year at the most. Its kind's own where it is not set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How many attempts it has (`Millpond-Attempts-Max`), 1 to 100; 3 where it is not set. With 1 it is not started again
    /// either when its worker has died.
    #[must_use]
    pub fn attempts(mut self, attempts_max: u32) -> Self {
        self.attempts_max = Some(attempts_max);
        self
    }

    /// One task of this queue and kind with this key at a time: while another waits or runs,
    /// [`submit`](super::Client::submit) fails with [`UniqueKeyTaken`](super::SubmitError::UniqueKeyTaken). The key is a token.
    #[must_use]
    pub fn unique(mut self, key: impl Into<String>) -> Self {
        self.unique = Some(key.into());
        self
    }

    /// What runs when it is done, with its result as the argument (`Millpond-Continuation`): `kind` or `queue.kind`, parsed.
    /// Called again, it adds a step behind the last; 16 at the most.
    #[must_use]
    pub fn continuation(mut self, step: ChainStep) -> Self {
        self.continuation.push(step);
        self
    }

    /// The job that it belongs to, a token. A job that [`map`](super::Client::map) makes has a record, and so an end of its
    /// own; tasks that name a job without one have their results together, and nothing else.
    #[must_use]
    pub fn job(mut self, job: impl Into<String>) -> Self {
        self.job = Some(job.into());
        self
    }

    /// Its place in its job, from 0 (`Millpond-Index`).
    #[must_use]
    pub fn index(mut self, index: u64) -> Self {
        self.index = Some(index);
        self
    }

    /// The arguments are an array of this many values, and each is a task of its own (`Millpond-Batch`): 1 to 1000.
    #[must_use]
    pub fn batch(mut self, items: u32) -> Self {
        self.batch = Some(items);
        self
    }

    /// The arguments lie in the store of payloads already ([`put_payload`](super::Client::put_payload)). Arguments above
    /// 512 KiB go there by themselves.
    #[must_use]
    pub fn stored(mut self, at: StoredPayload) -> Self {
        self.stored = Some(at);
        self
    }

    /// A subject `reply.<x>` where its end is published as well, for whoever listens there (`Millpond-Reply-To`).
    #[must_use]
    pub fn reply_to(mut self, subject: impl Into<String>) -> Self {
        self.reply_to = Some(subject.into());
        self
    }

    /// The trace that it continues, as W3C `traceparent`. The span that submits it is the parent where this is not set.
    #[must_use]
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.traceparent = Some(traceparent.into());
        self
    }

    /// Who submits it will wait for its end. The client then listens before it publishes, and gives the task an id and a job of
    /// its own where it has none, so that it hears the results of no other task. [`TaskHandle::wait`](super::TaskHandle::wait)
    /// works without this too; it then looks for the end among all results of the queue and kind.
    #[must_use]
    pub fn awaited(mut self) -> Self {
        self.awaited = true;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_protocol_has_them() {
        let at = UNIX_EPOCH + Duration::from_millis(1_800_000_000_500);
        let task = NewTask::json("q", "k", &[1, 2]).unwrap().at(at).expires(at + Duration::from_secs(1));
        assert_eq!(task.at_ms, Some(1_800_000_000_500));
        assert_eq!(task.expires.as_deref(), Some("2027-01-15T08:00:01.5Z"));
        assert_eq!(task.payload, "[1,2]");
        let before = task.at(UNIX_EPOCH - Duration::from_millis(5));
        assert_eq!(before.at_ms, Some(-5));
        let soon = before.delay(Duration::from_secs(10)).at_ms.unwrap() - crate::now_ms();
        assert!((9_000..=10_000).contains(&soon), "{soon}");
    }

    #[test]
    fn arguments_that_cannot_be_json_are_refused() {
        let keyed = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert!(NewTask::json("q", "k", &keyed).is_err());
    }
}

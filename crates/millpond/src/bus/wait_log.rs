//! What is said of a server that does not answer: a program that waits in silence looks as if it hung, and one that speaks at each try
//! hides everything else.

use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long something may take before it is said that it is waited for.
const SAID_AFTER: Duration = Duration::from_millis(700);
/// How often that is said again.
const SAID_EVERY: Duration = Duration::from_secs(10);
/// Delay between two tries to be connected again: so much for each try that has failed, up to the longest.
const RECONNECT_DELAY: Duration = Duration::from_millis(50);
const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(500);
/// How long one try to connect may take: a node that is gone may not even refuse it.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long a program that lives needs at the most until it is connected again, where one of several nodes is gone.
pub(super) const RECONNECT_MAX: Duration = RECONNECT_DELAY_MAX.saturating_add(CONNECT_WITHIN);
/// The same while the server refuses this program, which a person must mend: it doubles with each refusal, up to the longest.
const REFUSED_DELAY: Duration = Duration::from_secs(1);
const REFUSED_DELAY_MAX: Duration = Duration::from_secs(10);

/// When it is said again that something is waited for.
pub(super) struct WaitLog {
    next: Instant,
}

impl WaitLog {
    /// Waits from now on.
    pub(super) fn start() -> Self {
        Self { next: Instant::now() + SAID_AFTER }
    }

    /// Whether it is to be said now; if so, then not again for a while.
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now >= self.next;
        if is_due {
            self.next = now + SAID_EVERY;
        }
        is_due
    }

    /// Waits for a try to connect, and says meanwhile that nothing is reached.
    pub(super) async fn during<T>(&mut self, attempt: impl Future<Output = T>, (nats, reason): (&str, &str)) -> T {
        let mut attempt = pin!(attempt);
        loop {
            match tokio::time::timeout_at(self.next, attempt.as_mut()).await {
                Ok(ended) => return ended,
                Err(_) if self.is_due() => say_unreached(nats, reason),
                Err(_) => {}
            }
        }
    }

    /// Says, where it is time to, that the server has no streams yet.
    pub(super) fn no_setup(&mut self, nats: &str, reason: &str) {
        if self.is_due() {
            tracing::warn!(nats, reason, "waiting for setup, which makes streams and buckets");
        }
    }
}

fn say_unreached(nats: &str, reason: &str) {
    tracing::warn!(nats, reason, "NATS is not reached yet, trying on");
}

/// Tries to be connected again, after a loss: how long until the next one, and what is said of those that failed.
pub(super) struct Reconnects {
    nats: String,
    /// Refusals since the last connection.
    refused: AtomicU32,
    /// Since the loss of the connection; none while it stands.
    log: Mutex<Option<WaitLog>>,
}

/// Whether these words of the client mean that the server does not let this program in, which does not pass by itself. "certificate" is
/// the client's word for the certificates of both sides; "authentication timeout" is what a busy server says to who was too slow.
pub(super) fn is_refusal(reason: &str) -> bool {
    let reason = reason.to_lowercase();
    !reason.contains("timeout")
        && ["authorization", "authentication", "certificate"].iter().any(|word| reason.contains(word))
}

impl Reconnects {
    pub(super) fn new(nats: String) -> Self {
        Self { nats, refused: AtomicU32::new(0), log: Mutex::new(None) }
    }

    /// Delay before the next try, the so many-th since the loss.
    pub(super) fn delay(&self, attempts: usize) -> Duration {
        match self.refused.load(Ordering::Relaxed) {
            0 => RECONNECT_DELAY.saturating_mul(attempts.try_into().unwrap_or(u32::MAX)).min(RECONNECT_DELAY_MAX),
            refused => REFUSED_DELAY.saturating_mul(2u32.saturating_pow(refused - 1)).min(REFUSED_DELAY_MAX),
        }
    }

    fn set_log(&self, log: Option<WaitLog>) {
        *self.log.lock().unwrap_or_else(PoisonError::into_inner) = log;
    }

    pub(super) fn connected(&self) {
        self.refused.store(0, Ordering::Relaxed);
        self.set_log(None);
    }

    pub(super) fn lost(&self) {
        tracing::warn!(nats = self.nats, "connection to nats lost, reconnecting");
        self.set_log(Some(WaitLog::start()));
    }

    /// A try has failed.
    pub(super) fn failed(&self, reason: &str) {
        if is_refusal(reason) {
            let refused = self.refused.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            // The first, the second, the fourth: each line says something, however long it lasts.
            if refused.is_power_of_two() {
                let again = self.delay(0);
                tracing::error!(
                    nats = self.nats,
                    reason,
                    refused,
                    ?again,
                    "nats-server refuses this program: its password or certificate has changed there; give it the new one and start it again"
                );
            }
        } else if self.log.lock().unwrap_or_else(PoisonError::into_inner).as_mut().is_some_and(WaitLog::is_due) {
            say_unreached(&self.nats, reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_said_soon_and_every_ten_seconds() {
        let mut log = WaitLog::start();
        let mut said = Vec::new();
        for tenth in 0..250 {
            if log.is_due() {
                said.push(tenth);
            }
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert_eq!(said, [7, 107, 207]);
    }

    #[test]
    fn who_is_refused_tries_less_and_less_often() {
        let reconnects = Reconnects::new("h:1".to_owned());
        assert_eq!(reconnects.delay(3), Duration::from_millis(150));
        assert_eq!(reconnects.delay(usize::MAX), Duration::from_millis(500));
        reconnects.failed("IO error: Authentication Timeout");
        assert_eq!(reconnects.delay(3), Duration::from_millis(150));
        let mut delays = Vec::new();
        for _ in 0..40 {
            reconnects.failed("authorization violation");
            delays.push(reconnects.delay(3).as_secs());
        }
        assert_eq!(delays.get(..6), Some(&[1, 2, 4, 8, 10, 10][..]));
        assert_eq!(delays.last(), Some(&10));
        reconnects.failed("IO error");
        assert_eq!(reconnects.delay(3).as_secs(), 10);
        reconnects.connected();
        assert_eq!(reconnects.delay(3), Duration::from_millis(150));
    }
}

//! Result batches: outcomes of one subject share a message. One batch per subject is under way at a time; outcomes that
//! come meanwhile go into the next one. So a lone outcome leaves at once, and batches grow by themselves under load.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::bus::Bus;
use crate::bus::publish::{PublishError, RetryDeadline};
use crate::limits::RESULT_BATCH_BYTES_MAX;
use crate::outcome::Outcome;
use crate::wire::headers::HEADER_MSG_ID;

/// How long a batch gathers under load; a lone outcome does not wait.
const RESULT_BATCH_GATHER: Duration = Duration::from_millis(1);
/// Outcomes in one batch at the most.
const RESULT_BATCH_OUTCOMES_MAX: usize = 512;

/// Publishes outcomes. Cheap to clone.
#[derive(Clone)]
pub struct ResultBatcher {
    inner: Arc<BatcherShared>,
}

struct BatcherShared {
    bus: Bus,
    worker: String,
    nonce: String,
    batches: AtomicU64,
    state: Mutex<OutcomeQueues>,
}

#[derive(Default)]
struct OutcomeQueues {
    /// Per subject with a batch under way: what waits for the next one.
    waiting: HashMap<String, VecDeque<WaitingOutcome>>,
    drivers: JoinSet<()>,
}

struct WaitingOutcome {
    json: Vec<u8>,
    stored: oneshot::Sender<Result<(), PublishError>>,
}

impl ResultBatcher {
    /// The result batches of one worker process.
    #[must_use]
    pub fn new(bus: &Bus, worker: &str, nonce: &str) -> Self {
        let inner = BatcherShared {
            bus: bus.clone(),
            worker: worker.to_owned(),
            nonce: nonce.to_owned(),
            batches: AtomicU64::new(0),
            state: Mutex::new(OutcomeQueues::default()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Stores an outcome under `subject` (`results.…`), alone or with others; waits out a full RESULTS.
    ///
    /// # Errors
    /// [`PublishError`] when the server refuses it for good.
    pub async fn store(&self, subject: String, outcome: &Outcome) -> Result<(), PublishError> {
        let refused = |reason: String| PublishError::Refused { subject: subject.clone(), reason };
        let mut json = serde_json::to_vec(outcome).map_err(|e| refused(e.to_string()))?;
        let waits = match self.inner.state().waiting.entry(subject.clone()) {
            Entry::Occupied(mut queue) => {
                let (sender, receiver) = oneshot::channel();
                queue.get_mut().push_back(WaitingOutcome { json: std::mem::take(&mut json), stored: sender });
                Some(receiver)
            }
            Entry::Vacant(place) => {
                place.insert(VecDeque::new());
                None
            }
        };
        if let Some(receiver) = waits {
            return receiver.await.unwrap_or_else(|_| Err(refused("the worker stopped".to_owned())));
        }
        // Nothing is under way: it leaves from here, without a detour over another thread.
        let under_way = UnderWay { inner: &self.inner, subject: &subject };
        // Boxed: under load most outcomes wait above instead, and every task moves its whole future.
        let stored = Box::pin(self.inner.send(&subject, &[json])).await;
        drop(under_way);
        stored
    }
}

/// A batch that a caller sends itself. When it is sent, or the caller gives up, what came meanwhile is sent.
struct UnderWay<'a> {
    inner: &'a Arc<BatcherShared>,
    subject: &'a str,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        while state.drivers.try_join_next().is_some() {}
        if state.waiting.get(self.subject).is_some_and(|queue| !queue.is_empty()) {
            state.drivers.spawn(drive(self.inner.clone(), self.subject.to_owned()));
        } else {
            state.waiting.remove(self.subject);
        }
    }
}

impl BatcherShared {
    fn state(&self) -> MutexGuard<'_, OutcomeQueues> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores one batch.
    async fn send(&self, subject: &str, outcomes: &[Vec<u8>]) -> Result<(), PublishError> {
        let number = self.batches.fetch_add(1, Ordering::Relaxed);
        let headers = vec![(HEADER_MSG_ID.to_owned(), format!("{}-{number}", self.nonce))];
        let worker = serde_json::to_string(&self.worker).unwrap_or_default();
        let head = format!("{{\"v\":1,\"worker\":{worker},\"outcomes\":");
        let bytes = head.len() + outcomes.iter().map(|outcome| outcome.len() + 1).sum::<usize>() + "[]}".len();
        let mut payload = Vec::with_capacity(bytes);
        payload.extend_from_slice(head.as_bytes());
        crate::batch::append(&mut payload, outcomes.iter().map(Vec::as_slice));
        payload.push(b'}');
        self.bus.store(subject, &headers, Bytes::from(payload), RetryDeadline::Unlimited).await.map(drop)
    }

    /// Outcomes of a subject that wait for the next batch.
    fn waits(&self, subject: &str) -> usize {
        self.state().waiting.get(subject).map_or(0, VecDeque::len)
    }

    /// Takes the next batch of a subject; none (and no driver any more) when nothing waits.
    fn take(&self, subject: &str) -> Option<Vec<WaitingOutcome>> {
        let mut state = self.state();
        let queue = state.waiting.get_mut(subject)?;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(next) = queue.front() {
            bytes += next.json.len();
            if !batch.is_empty() && (bytes > RESULT_BATCH_BYTES_MAX || batch.len() >= RESULT_BATCH_OUTCOMES_MAX) {
                break;
            }
            batch.extend(queue.pop_front());
        }
        if batch.is_empty() {
            state.waiting.remove(subject);
            return None;
        }
        Some(batch)
    }
}

async fn drive(inner: Arc<BatcherShared>, subject: String) {
    loop {
        // More than one waits: there is load, and what ends in the next moment saves a message of its own. A lone outcome
        // does not wait.
        if inner.waits(&subject) > 1 {
            tokio::time::sleep(RESULT_BATCH_GATHER).await;
        }
        let Some(batch) = inner.take(&subject) else { return };
        let (outcomes, waiting): (Vec<Vec<u8>>, Vec<_>) = batch.into_iter().map(|w| (w.json, w.stored)).unzip();
        let stored = inner.send(&subject, &outcomes).await;
        let alone = waiting.len() > 1 && stored.as_ref().is_err_and(PublishError::is_permanent);
        for (one, outcome) in waiting.into_iter().zip(outcomes) {
            // What the server refuses together may be stored alone: one bad outcome costs the others nothing.
            let stored = if alone { inner.send(&subject, &[outcome]).await } else { stored.clone() };
            let _ = one.send(stored);
        }
    }
}

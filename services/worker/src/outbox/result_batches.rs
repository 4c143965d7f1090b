//! Result batches: outcomes of one subject share a message. One batch per subject is under way at a time; outcomes that
//! come meanwhile go into the next one. So a lone outcome leaves at once, and batches grow by themselves under load.
//! A task that leads to an outcome and to nothing else is settled here too, with all those whose outcomes it shares a message with.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millpond::bus::Bus;
use millpond::bus::consume::lease::Lease;
use millpond::bus::publish::{PublishError, RetryDeadline};
use millpond::failpoint;
use millpond::limits::RESULT_BATCH_BYTES_MAX;
use millpond::outcome::Outcome;
use millpond::telemetry::TraceContext;
use millpond::wire::headers::HEADER_MSG_ID;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::report::stats::{Stats, Tally};

/// Tasks whose outcome was refused, and which nobody has taken over yet, at the most.
const REFUSED_MAX: usize = 64;
/// How long a batch gathers under load; a lone outcome does not wait.
const RESULT_BATCH_GATHER: Duration = Duration::from_millis(1);
/// About as many bytes has an outcome of one task as JSON without its result.
const OUTCOME_BYTES: usize = 384;
/// Outcomes in one batch at the most.
const RESULT_BATCH_OUTCOMES_MAX: usize = 512;

/// A task whose outcome is all that is to be stored before its ack.
pub(crate) struct SoleOutcome {
    pub(crate) lease: Lease,
    pub(crate) outcome: Outcome,
    pub(crate) tally: Tally,
    /// How long its handler ran.
    pub(crate) busy: Duration,
    /// Since when it has been settling.
    pub(crate) since: Instant,
    pub(crate) attempt: TraceContext,
}

/// Publishes outcomes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ResultBatches {
    inner: Arc<BatchesShared>,
}

struct BatchesShared {
    bus: Bus,
    stats: Arc<Stats>,
    /// What each batch begins with.
    head: String,
    nonce: String,
    batches: AtomicU64,
    state: Mutex<OutcomeQueues>,
    /// Tasks with a sole outcome that are not settled yet.
    settling: AtomicUsize,
    /// Notified when some of them are.
    settled: Notify,
    refused: mpsc::Sender<SoleOutcome>,
}

#[derive(Default)]
struct OutcomeQueues {
    /// Per subject with a batch under way: what waits for the next one.
    waiting: HashMap<String, VecDeque<WaitingOutcome>>,
    drivers: JoinSet<()>,
}

struct WaitingOutcome {
    json: Vec<u8>,
    then: OnStored,
}

/// What goes on once an outcome is stored.
enum OnStored {
    /// The task is settled here.
    Sole(Box<SoleOutcome>),
    /// The task has more to do, and waits.
    Waiting(oneshot::Sender<Result<(), PublishError>>),
}

impl ResultBatches {
    /// The result batches of one worker process. What the server refuses of the tasks that are settled here comes out of the receiver;
    /// call [`ResultBatches::note_settled`] when such a task is settled otherwise.
    pub(crate) fn new(bus: &Bus, worker: &str, nonce: &str, stats: &Arc<Stats>) -> (Self, mpsc::Receiver<SoleOutcome>) {
        let worker = serde_json::to_string(worker).unwrap_or_default();
        let (sender, refused) = mpsc::channel(REFUSED_MAX);
        let inner = BatchesShared {
            bus: bus.clone(),
            stats: stats.clone(),
            head: format!("{{\"v\":1,\"worker\":{worker},\"outcomes\":"),
            nonce: nonce.to_owned(),
            batches: AtomicU64::new(0),
            state: Mutex::new(OutcomeQueues::default()),
            settling: AtomicUsize::new(0),
            settled: Notify::new(),
            refused: sender,
        };
        (Self { inner: Arc::new(inner) }, refused)
    }

    /// Stores an outcome under `subject` (`results.…`), alone or with others; waits out a full RESULTS.
    ///
    /// # Errors
    /// [`PublishError`] when the server refuses it for good.
    pub(crate) async fn store(&self, subject: String, outcome: &Outcome) -> Result<(), PublishError> {
        let refused = |reason: String| PublishError::Refused { subject: subject.clone(), reason };
        let json = json_of(outcome).map_err(|e| refused(e.to_string()))?;
        let (sender, receiver) = oneshot::channel();
        self.push(subject.clone(), WaitingOutcome { json, then: OnStored::Waiting(sender) });
        receiver.await.unwrap_or_else(|_| Err(refused("the worker stopped".to_owned())))
    }

    /// Settles a task whose outcome is all that is to be stored: stores it, alone or with others, then acknowledges the task. Both
    /// are done after this has returned.
    pub(crate) fn settle(&self, sole: SoleOutcome, json: Vec<u8>) {
        let subject = sole.lease.task.subject.results();
        self.inner.settling.fetch_add(1, Ordering::SeqCst);
        self.push(subject, WaitingOutcome { json, then: OnStored::Sole(Box::new(sole)) });
    }

    fn push(&self, subject: String, outcome: WaitingOutcome) {
        let mut state = self.inner.state();
        let OutcomeQueues { waiting, drivers } = &mut *state;
        match waiting.entry(subject) {
            Entry::Occupied(mut queue) => queue.get_mut().push_back(outcome),
            Entry::Vacant(place) => {
                while drivers.try_join_next().is_some() {}
                drivers.spawn(drive(self.inner.clone(), place.key().clone()));
                place.insert(VecDeque::from([outcome]));
            }
        }
    }

    /// Tasks whose sole outcome is not stored yet, or which are not acknowledged.
    pub(crate) fn settling(&self) -> usize {
        self.inner.settling.load(Ordering::SeqCst)
    }

    /// Returns when some of them are settled.
    pub(crate) async fn settled(&self) {
        self.inner.settled.notified().await;
    }

    /// Returns when all of them are settled.
    pub(crate) async fn all_settled(&self) {
        while self.settling() > 0 {
            self.settled().await;
        }
    }

    /// So many tasks with a sole outcome are settled.
    pub(crate) fn note_settled(&self, count: usize) {
        self.inner.note_settled(count);
    }
}

/// An outcome as JSON.
pub(super) fn json_of(outcome: &Outcome) -> serde_json::Result<Vec<u8>> {
    let results: usize = outcome.results.iter().map(|result| result.get().len() + 1).sum();
    let mut json = Vec::with_capacity(OUTCOME_BYTES + results);
    serde_json::to_writer(&mut json, outcome).map(|()| json)
}

impl BatchesShared {
    fn state(&self) -> MutexGuard<'_, OutcomeQueues> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores one batch.
    async fn send(&self, subject: &str, outcomes: &[&[u8]]) -> Result<(), PublishError> {
        let number = self.batches.fetch_add(1, Ordering::Relaxed);
        let headers = vec![(HEADER_MSG_ID.to_owned(), format!("{}-{number}", self.nonce))];
        let bytes = self.head.len() + outcomes.iter().map(|outcome| outcome.len() + 1).sum::<usize>() + "[]}".len();
        let mut payload = Vec::with_capacity(bytes);
        payload.extend_from_slice(self.head.as_bytes());
        millpond::batch::append(&mut payload, outcomes.iter().copied());
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

    /// Ends what shares a message.
    async fn end(&self, all: impl IntoIterator<Item = OnStored>, stored: &Result<(), PublishError>) {
        let mut settled = Vec::new();
        for next in all {
            match (next, stored) {
                (OnStored::Waiting(sender), stored) => drop(sender.send(stored.clone())),
                (OnStored::Sole(sole), Ok(())) => settled.push(*sole),
                (OnStored::Sole(sole), Err(_)) => drop(self.refused.send(*sole).await),
            }
        }
        let count = settled.len();
        let mut leases = Vec::with_capacity(count);
        for SoleOutcome { lease, tally, busy, since, attempt, .. } in settled {
            lease.mark_settled();
            failpoint::hit("settle.outcome_stored");
            let stats = self.stats.of(&lease.task.subject.kind);
            stats.ran(busy, since.elapsed(), attempt);
            stats.count(tally);
            leases.push(lease);
        }
        Lease::complete_all(leases).await;
        self.note_settled(count);
    }

    fn note_settled(&self, count: usize) {
        self.settling.fetch_sub(count, Ordering::SeqCst);
        self.settled.notify_one();
    }
}

/// Sends the batches of one subject, one after the other, until nothing waits.
async fn drive(inner: Arc<BatchesShared>, subject: String) {
    loop {
        // More than one waits: there is load, and what ends in the next moment saves a message of its own. A lone outcome
        // does not wait.
        if inner.waits(&subject) > 1 {
            tokio::time::sleep(RESULT_BATCH_GATHER).await;
        }
        let Some(batch) = inner.take(&subject) else { return };
        let outcomes: Vec<&[u8]> = batch.iter().map(|waiting| waiting.json.as_slice()).collect();
        let stored = inner.send(&subject, &outcomes).await;
        if batch.len() > 1 && stored.as_ref().is_err_and(PublishError::is_permanent) {
            // What the server refuses together may be stored alone: one bad outcome costs the others nothing.
            for one in batch {
                let stored = inner.send(&subject, &[&one.json]).await;
                inner.end([one.then], &stored).await;
            }
        } else {
            inner.end(batch.into_iter().map(|one| one.then), &stored).await;
        }
    }
}

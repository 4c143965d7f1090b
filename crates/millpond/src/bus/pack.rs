//! Result packs: outcomes of one subject share a message. One pack per subject is under way at a time; what ends
//! meanwhile goes into the next one. So a lone outcome leaves at once, and packs grow by themselves under load.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::Bus;
use super::publish::{Patience, PublishError};
use crate::limits::{PACK_BYTES_MAX, PACK_OUTCOMES_MAX};
use crate::outcome::Outcome;
use crate::task::HEADER_MSG_ID;

/// Publishes outcomes. Cheap to clone.
#[derive(Clone)]
pub struct Packer {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    worker: String,
    nonce: String,
    packs: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Per subject with a pack under way: what waits for the next one.
    waiting: HashMap<String, VecDeque<Waiting>>,
    drivers: JoinSet<()>,
}

struct Waiting {
    json: Vec<u8>,
    stored: oneshot::Sender<Result<(), PublishError>>,
}

impl Packer {
    /// A packer for one worker process.
    #[must_use]
    pub fn new(bus: &Bus, worker: &str, nonce: &str) -> Self {
        let inner = Inner {
            bus: bus.clone(),
            worker: worker.to_owned(),
            nonce: nonce.to_owned(),
            packs: AtomicU64::new(0),
            state: Mutex::new(State::default()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Stores an outcome under `subject` (`results.…`), alone or with others; waits out a full RESULTS.
    ///
    /// # Errors
    /// [`PublishError`] when the server refuses it for good.
    pub async fn store(&self, subject: String, outcome: &Outcome) -> Result<(), PublishError> {
        let refused = |reason: String| PublishError::Refused { subject: subject.clone(), reason };
        let json = serde_json::to_vec(outcome).map_err(|e| refused(e.to_string()))?;
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.inner.state();
            let waiting = Waiting { json, stored: sender };
            match state.waiting.get_mut(&subject) {
                Some(queue) => queue.push_back(waiting),
                None => {
                    state.waiting.insert(subject.clone(), VecDeque::from([waiting]));
                    while state.drivers.try_join_next().is_some() {}
                    state.drivers.spawn(drive(self.inner.clone(), subject.clone()));
                }
            }
        }
        receiver.await.unwrap_or_else(|_| Err(refused("the packer was stopped".to_owned())))
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next pack of a subject; none (and no driver any more) when nothing waits.
    fn take(&self, subject: &str) -> Option<Vec<Waiting>> {
        let mut state = self.state();
        let queue = state.waiting.get_mut(subject)?;
        let (mut pack, mut bytes) = (Vec::new(), 0);
        while let Some(next) = queue.front() {
            bytes += next.json.len();
            if !pack.is_empty() && (bytes > PACK_BYTES_MAX || pack.len() >= PACK_OUTCOMES_MAX) {
                break;
            }
            pack.extend(queue.pop_front());
        }
        if pack.is_empty() {
            state.waiting.remove(subject);
            return None;
        }
        Some(pack)
    }
}

async fn drive(inner: Arc<Inner>, subject: String) {
    while let Some(pack) = inner.take(&subject) {
        let number = inner.packs.fetch_add(1, Ordering::Relaxed);
        let headers = vec![(HEADER_MSG_ID.to_owned(), format!("{}-{number}", inner.nonce))];
        let worker = serde_json::to_string(&inner.worker).unwrap_or_default();
        let mut payload = format!("{{\"v\":1,\"worker\":{worker},\"outcomes\":").into_bytes();
        payload.extend(crate::batch::join(pack.iter().map(|w| w.json.as_slice())));
        payload.push(b'}');
        let stored = inner.bus.store(&subject, &headers, Bytes::from(payload), Patience::Endless).await;
        for waiting in pack {
            let _ = waiting.stored.send(stored.clone().map(|_| ()));
        }
    }
}

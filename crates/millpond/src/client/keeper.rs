//! A job's record while a producer works on it: written every few seconds and at its end, by compare-and-set, with the
//! watermark of what is stored and the fingerprint of the input up to there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::ClientError;
use crate::bus::Bus;
use crate::bus::read::jobs::JobEntry;
use crate::job::{JobRecord, JobState};
use crate::limits::{CLOSE_TRIED_FOR, HEARTBEAT_EVERY, WATERMARK_EVERY};

/// Why a producer must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// An operator has cancelled the job.
    Cancelled,
    /// Another process goes on with it.
    TakenOver,
}

/// The record of one job, and its heartbeat, which ends when this is dropped.
pub(super) struct Keeper {
    inner: Arc<Inner>,
    beat: JoinSet<()>,
}

struct Inner {
    bus: Bus,
    state: Mutex<State>,
    /// One write at a time: each must know the revision of the one before.
    writing: tokio::sync::Mutex<()>,
    lost: watch::Sender<Option<Lost>>,
    /// The watermark moved.
    moved: Notify,
}

struct State {
    record: JobRecord,
    revision: u64,
    /// Of the input up to the watermark; none while whoever goes on has not read it again: what stands there stays.
    fingerprint: Option<Sha256>,
    /// Stored ranges beyond the watermark: first index -> one past the last, and the fingerprint up to there.
    stored: BTreeMap<u64, (u64, Sha256)>,
}

/// Takes a value into a fingerprint.
pub(super) fn add_value(fingerprint: &mut Sha256, value: &[u8]) {
    fingerprint.update(value);
    fingerprint.update(b"\n");
}

/// A fingerprint as it stands in the record.
pub(super) fn shown(fingerprint: &Sha256) -> String {
    data_encoding::HEXLOWER.encode(&fingerprint.clone().finalize())
}

impl Keeper {
    /// Keeps the record of a new job, which was just written.
    pub(super) fn start(bus: &Bus, entry: JobEntry) -> Self {
        Self::of(bus, entry, Some(Sha256::new()))
    }

    /// Keeps the record of a job that goes on; see [`Keeper::read_up_to_watermark`].
    pub(super) fn go_on(bus: &Bus, entry: JobEntry) -> Self {
        Self::of(bus, entry, None)
    }

    fn of(bus: &Bus, entry: JobEntry, fingerprint: Option<Sha256>) -> Self {
        let JobEntry { record, revision } = entry;
        let state = State { record, revision, fingerprint, stored: BTreeMap::new() };
        let inner = Arc::new(Inner {
            bus: bus.clone(),
            state: Mutex::new(state),
            writing: tokio::sync::Mutex::default(),
            lost: watch::Sender::new(None),
            moved: Notify::new(),
        });
        let mut beat = JoinSet::new();
        beat.spawn(inner.clone().beat());
        Self { inner, beat }
    }

    /// The record as it stands here.
    pub(super) fn record(&self) -> JobRecord {
        self.inner.state().record.clone()
    }

    /// Something of the record, without a copy of all of it.
    pub(super) fn with<T>(&self, read: impl FnOnce(&JobRecord) -> T) -> T {
        read(&self.inner.state().record)
    }

    /// Whoever resumes a job has read its input up to the watermark: this is its fingerprint.
    pub(super) fn read_up_to_watermark(&self, fingerprint: Sha256) {
        self.inner.state().fingerprint = Some(fingerprint);
    }

    /// The server has stored `from..to`; `fingerprint` is that of the input up to `to`. The watermark moves as far as
    /// there is no gap.
    pub(super) fn note_stored(&self, from: u64, to: u64, fingerprint: Sha256) {
        let mut state = self.inner.state();
        state.stored.insert(from, (to, fingerprint));
        while let Some((to, fingerprint)) = {
            let watermark = state.record.published;
            state.stored.remove(&watermark)
        } {
            state.record.published = to;
            state.fingerprint = Some(fingerprint);
            self.inner.moved.notify_one();
        }
    }

    /// Ends when the producer must stop.
    pub(super) async fn lost(&self) -> Lost {
        let mut lost = self.inner.lost.subscribe();
        loop {
            if let Some(why) = *lost.borrow_and_update() {
                return why;
            }
            if lost.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// All of it is stored: the last write of the record. The future does not borrow this.
    pub(super) fn close(&mut self, total: u64) -> impl Future<Output = Result<(), ClientError>> + Send + 'static {
        self.beat.abort_all();
        let inner = self.inner.clone();
        {
            let mut state = inner.state();
            state.record.state = JobState::Closed;
            state.record.total = Some(total);
        }
        async move {
            let started = std::time::Instant::now();
            loop {
                match inner.write().await {
                    // A server may be starting again.
                    Err(_) if started.elapsed() < CLOSE_TRIED_FOR => tokio::time::sleep(WATERMARK_EVERY).await,
                    written => return written,
                }
            }
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn beat(self: Arc<Self>) {
        loop {
            // The first move at once: from then on another input under the same name is noticed.
            let _ = tokio::time::timeout(HEARTBEAT_EVERY, self.moved.notified()).await;
            if let Err(error) = self.write().await {
                tracing::debug!(%error, "job record not written, will try again");
            }
            tokio::time::sleep(WATERMARK_EVERY).await;
        }
    }

    async fn write(&self) -> Result<(), ClientError> {
        let _one = self.writing.lock().await;
        while self.lost.borrow().is_none() {
            let (record, revision) = {
                let mut state = self.state();
                state.record.heartbeat_ms = crate::now_ms();
                if let Some(text) = state.fingerprint.as_ref().map(shown) {
                    state.record.fingerprint = (state.record.published > 0).then_some(text);
                }
                (state.record.clone(), state.revision)
            };
            if let Some(revision) = self.bus.write_job(&record, revision).await? {
                self.state().revision = revision;
                return Ok(());
            }
            let Some(found) = self.bus.job(&record.job).await? else { continue };
            let ours = found.record.producer == record.producer && found.record.epoch == record.epoch;
            match found.record.state {
                JobState::Cancelled if ours => drop(self.lost.send_replace(Some(Lost::Cancelled))),
                _ if ours => self.state().revision = found.revision,
                _ => drop(self.lost.send_replace(Some(Lost::TakenOver))),
            }
        }
        Ok(())
    }
}

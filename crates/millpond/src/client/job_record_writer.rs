//! Writes a job's record while its producer publishes: every few seconds and at the end, by compare-and-set, with the
//! watermark of what is stored and the fingerprint of the input up to there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::read::jobs::JobEntry;
use crate::job::{JOB_HEARTBEAT_EVERY, JobRecord, JobState};

/// The shortest time between two writes of a record.
const WRITE_EVERY: Duration = Duration::from_millis(500);
/// How long the last write is tried again: a server may be starting.
const CLOSE_RETRIED_FOR: Duration = Duration::from_secs(60);

/// Why a producer must stop publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnershipLost {
    /// An operator has cancelled the job.
    Cancelled,
    /// Another process goes on with the job.
    TakenOver,
}

/// The writer of one job's record. It renews the heartbeat in the background until it is dropped.
pub(super) struct JobRecordWriter {
    shared: Arc<SharedRecord>,
    heartbeat: JoinSet<()>,
}

struct SharedRecord {
    bus: Bus,
    draft: Mutex<RecordDraft>,
    /// Held during a write: each write must know the revision of the one before.
    write: tokio::sync::Mutex<()>,
    lost: watch::Sender<Option<OwnershipLost>>,
    watermark_moved: Notify,
}

/// The record as the next write stores it.
struct RecordDraft {
    record: JobRecord,
    revision: u64,
    /// Of the input up to the watermark. None while a resumed job has not read its input up to there again: the
    /// fingerprint in the record stays until then.
    fingerprint: Option<Sha256>,
    /// Stored ranges beyond the watermark: the first index -> one past the last, and the fingerprint up to there.
    beyond_watermark: BTreeMap<u64, (u64, Sha256)>,
}

/// Adds a value of the input to its fingerprint.
pub(super) fn add_to_fingerprint(fingerprint: &mut Sha256, value: &[u8]) {
    fingerprint.update(value);
    fingerprint.update(b"\n");
}

/// A fingerprint as the record has it.
pub(super) fn fingerprint_hex(fingerprint: &Sha256) -> String {
    data_encoding::HEXLOWER.encode(&fingerprint.clone().finalize())
}

impl JobRecordWriter {
    /// Starts to write a record that was just created, or taken over; see [`JobRecordWriter::set_fingerprint`] for the latter.
    pub(super) fn start(bus: &Bus, entry: JobEntry, is_new: bool) -> Self {
        let JobEntry { record, revision, .. } = entry;
        let fingerprint = is_new.then(Sha256::new);
        let shared = Arc::new(SharedRecord {
            bus: bus.clone(),
            draft: Mutex::new(RecordDraft { record, revision, fingerprint, beyond_watermark: BTreeMap::new() }),
            write: tokio::sync::Mutex::default(),
            lost: watch::Sender::new(None),
            watermark_moved: Notify::new(),
        });
        let mut heartbeat = JoinSet::new();
        heartbeat.spawn(shared.clone().write_regularly());
        Self { shared, heartbeat }
    }

    /// A copy of the record.
    pub(super) fn record(&self) -> JobRecord {
        self.shared.draft().record.clone()
    }

    /// Reads from the record without copying all of it.
    pub(super) fn with<T>(&self, read: impl FnOnce(&JobRecord) -> T) -> T {
        read(&self.shared.draft().record)
    }

    /// A resumed job has read its input up to the watermark again: this is the fingerprint up to there.
    pub(super) fn set_fingerprint(&self, fingerprint: Sha256) {
        self.shared.draft().fingerprint = Some(fingerprint);
    }

    /// The server has stored the items `from..to`; `fingerprint` is that of the input up to `to`. The watermark moves up to
    /// the first item that is not stored.
    pub(super) fn note_stored(&self, from: u64, to: u64, fingerprint: Sha256) {
        let mut draft = self.shared.draft();
        draft.beyond_watermark.insert(from, (to, fingerprint));
        while let Some((to, fingerprint)) = {
            let watermark = draft.record.published;
            draft.beyond_watermark.remove(&watermark)
        } {
            draft.record.published = to;
            draft.fingerprint = Some(fingerprint);
            self.shared.watermark_moved.notify_one();
        }
    }

    /// Whether an operator has cancelled the job, as far as the record told.
    pub(super) fn is_cancelled(&self) -> bool {
        *self.shared.lost.borrow() == Some(OwnershipLost::Cancelled)
    }

    /// Returns when the producer must stop publishing.
    pub(super) async fn lost(&self) -> OwnershipLost {
        let mut lost = self.shared.lost.subscribe();
        loop {
            if let Some(reason) = *lost.borrow_and_update() {
                return reason;
            }
            if lost.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Writes the record for the last time, once all tasks are stored; that of a cancelled job stays cancelled, and tells how
    /// many were published. The future does not borrow this.
    pub(super) fn close(&mut self, total: u64) -> impl Future<Output = Result<(), BusError>> + Send + 'static {
        self.heartbeat.abort_all();
        let shared = self.shared.clone();
        {
            let mut draft = shared.draft();
            draft.record.state = JobState::Closed;
            draft.record.total = Some(total);
        }
        async move {
            let started = Instant::now();
            loop {
                match shared.write_last().await {
                    Err(_) if started.elapsed() < CLOSE_RETRIED_FOR => tokio::time::sleep(WRITE_EVERY).await,
                    written => return written,
                }
            }
        }
    }
}

impl SharedRecord {
    fn draft(&self) -> MutexGuard<'_, RecordDraft> {
        self.draft.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write_regularly(self: Arc<Self>) {
        loop {
            // The first move of the watermark is written at once, so that another input under the same name is noticed.
            let _ = tokio::time::timeout(JOB_HEARTBEAT_EVERY, self.watermark_moved.notified()).await;
            if let Err(error) = self.write().await {
                tracing::debug!(%error, "job record not written, will try again");
            }
            tokio::time::sleep(WRITE_EVERY).await;
        }
    }

    async fn write_last(&self) -> Result<(), BusError> {
        self.write().await?;
        let is_cancelled = *self.lost.borrow() == Some(OwnershipLost::Cancelled);
        if is_cancelled { self.write_cancelled().await } else { Ok(()) }
    }

    /// Adds to the record of the cancelled job what was stored after its cancellation: nothing follows.
    async fn write_cancelled(&self) -> Result<(), BusError> {
        let ours = self.draft().record.clone();
        loop {
            let Some(JobEntry { record: found, revision, .. }) = self.bus.job(&ours.job).await? else { return Ok(()) };
            let is_ours = found.producer == ours.producer && found.epoch == ours.epoch;
            if !is_ours || found.state != JobState::Cancelled || found.total.is_some() {
                return Ok(());
            }
            let published = found.published.max(ours.published);
            let record = JobRecord { published, total: Some(published), heartbeat_ms: crate::now_ms(), ..found };
            if self.bus.write_job(&record, revision).await?.is_some() {
                return Ok(());
            }
        }
    }

    async fn write(&self) -> Result<(), BusError> {
        let _one_at_a_time = self.write.lock().await;
        while self.lost.borrow().is_none() {
            let (record, revision) = {
                let mut draft = self.draft();
                draft.record.heartbeat_ms = crate::now_ms();
                if let Some(hex) = draft.fingerprint.as_ref().map(fingerprint_hex) {
                    draft.record.fingerprint = (draft.record.published > 0).then_some(hex);
                }
                (draft.record.clone(), draft.revision)
            };
            if let Some(revision) = self.bus.write_job(&record, revision).await? {
                self.draft().revision = revision;
                return Ok(());
            }
            let Some(found) = self.bus.job(&record.job).await? else { continue };
            let is_ours = found.record.producer == record.producer && found.record.epoch == record.epoch;
            match found.record.state {
                JobState::Cancelled if is_ours => drop(self.lost.send_replace(Some(OwnershipLost::Cancelled))),
                // An earlier write of our own, whose answer was lost.
                _ if is_ours => self.draft().revision = found.revision,
                _ => drop(self.lost.send_replace(Some(OwnershipLost::TakenOver))),
            }
        }
        Ok(())
    }
}

//! Start records: how often a redelivered message was started without an end, kept in the bucket `millpond_starts`.

use async_nats::jetstream::kv;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::read::buckets::{encode, open};
use crate::limits::LEASE_SETTLED_KEEP;
use crate::wire::bounds::{self, Bounded};
use crate::wire::decode::decode;
use crate::wire::streams::BUCKET_STARTS;

/// One start of a redelivered message that has not ended yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartEntry {
    /// The worker process and its own count: distinguishes one start from another.
    pub by: String,
    /// The worker's name, for the evidence.
    pub worker: String,
    /// Unix time in milliseconds.
    pub at_ms: i64,
}

impl Bounded for StartEntry {
    fn check(&self) -> Result<(), String> {
        bounds::time("at_ms", self.at_ms)
    }
}

/// The starts bucket. A key is `<stream>.<stream epoch>.<sequence>`, its value the starts without an end.
#[derive(Clone)]
pub struct StartRecords {
    store: kv::Store,
}

impl StartRecords {
    /// Opens the bucket.
    ///
    /// # Errors
    /// [`BusError`]; most likely setup has not run yet.
    pub async fn open(bus: &Bus) -> Result<Self, BusError> {
        Ok(Self { store: open(bus, BUCKET_STARTS).await? })
    }

    async fn read(&self, key: &str) -> Result<(u64, Vec<StartEntry>), BusError> {
        let entry = self.store.entry(key).await.map_err(|e| BusError::new(BUCKET_STARTS, &e))?;
        Ok(entry.map_or((0, Vec::new()), |e| {
            let entries = if e.operation == kv::Operation::Put { decode(&e.value).ok() } else { None };
            (e.revision, entries.unwrap_or_default())
        }))
    }

    /// The starts without an end.
    ///
    /// # Errors
    /// [`BusError`] when the bucket cannot be read.
    pub async fn entries(&self, key: &str) -> Result<Vec<StartEntry>, BusError> {
        Ok(self.read(key).await?.1)
    }

    /// Adds an entry unless there are `max` already; returns those that were there before.
    ///
    /// # Errors
    /// [`BusError`] when the bucket cannot be read or written.
    pub async fn add(&self, key: &str, entry: &StartEntry, max: usize) -> Result<Vec<StartEntry>, BusError> {
        loop {
            let (revision, before) = self.read(key).await?;
            if before.len() >= max {
                return Ok(before);
            }
            let mut after = before.clone();
            after.push(entry.clone());
            match self.store.update(key, encode(&after), revision).await {
                Ok(_) => return Ok(before),
                Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {}
                Err(error) => return Err(BusError::new(BUCKET_STARTS, &error)),
            }
        }
    }

    /// Removes the caller's own entry.
    ///
    /// # Errors
    /// [`BusError`] when the bucket cannot be read or written.
    pub async fn take_back(&self, key: &str, by: &str) -> Result<(), BusError> {
        loop {
            let (revision, mut entries) = self.read(key).await?;
            let before = entries.len();
            entries.retain(|e| e.by != by);
            if entries.len() == before {
                return Ok(());
            }
            match self.store.update(key, encode(&entries), revision).await {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {}
                Err(error) => return Err(BusError::new(BUCKET_STARTS, &error)),
            }
        }
    }

    /// Removes the whole record: the message is settled.
    ///
    /// # Errors
    /// [`BusError`] when the bucket cannot be written.
    pub async fn remove(&self, key: &str) -> Result<(), BusError> {
        let removed = self.store.purge_with_ttl(key, LEASE_SETTLED_KEEP).await;
        removed.map_err(|e| BusError::new(BUCKET_STARTS, &e))
    }

    /// Removes records of messages that are gone: those before `first_seq` of a stream, and those of other epochs.
    ///
    /// # Errors
    /// [`BusError`] when the bucket cannot be read or written.
    pub async fn sweep(&self, stream: &str, epoch: &str, first_seq: u64) -> Result<usize, BusError> {
        let mut keys = self.store.keys().await.map_err(|e| BusError::new(BUCKET_STARTS, &e))?;
        let mut gone = Vec::new();
        while let Some(Ok(key)) = keys.next().await {
            let mut tokens = key.split('.');
            let (of, its_epoch, seq) = (tokens.next(), tokens.next(), tokens.next());
            let seq = seq.and_then(|s| s.parse::<u64>().ok()).unwrap_or(0);
            if of == Some(stream) && (its_epoch != Some(epoch) || seq < first_seq) {
                gone.push(key);
            }
        }
        for key in &gone {
            self.remove(key).await?;
        }
        Ok(gone.len())
    }
}

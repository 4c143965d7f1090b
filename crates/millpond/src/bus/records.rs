//! The buckets: jobs, workers, cancellations, starts and servers. Keys and values are in docs/protocol.md.

use std::collections::VecDeque;

use async_nats::jetstream::kv;
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Bus;
use super::results::unix_ms;
use super::topology::{
    BUCKET_SERVERS, BUCKET_STARTS, BUCKET_WORKERS, STREAM_DUE, STREAM_TASKS, TopologyError, stream_state,
};
use crate::limits::LEASE_SETTLED_KEEP;
use crate::worker_record::WorkerRecord;

/// What each stream had stored when a server process was first seen: messages up to there may have been delivered
/// before, by a server that forgot it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Last sequence of TASKS.
    pub tasks: u64,
    /// Last sequence of DUE.
    pub due: u64,
    /// When that was, Unix time in milliseconds; 0 of the first server of all, and in records of before there was this.
    #[serde(default)]
    pub seen_ms: i64,
}

/// A change of a bucket: the key, and its value unless it was removed.
#[derive(Debug, Clone)]
pub struct Change {
    /// The key.
    pub key: String,
    /// The value; none when the key was removed.
    pub value: Option<Bytes>,
    /// When the server stored it, Unix time in milliseconds.
    pub stored_ms: i64,
}

/// All keys of a bucket, then their changes, for ever. After a fault it starts again with all keys.
pub struct BucketWatch {
    bus: Bus,
    bucket: &'static str,
    watch: Option<kv::Watch>,
    ready: VecDeque<Change>,
    /// All keys that were there when the watch began have been read.
    is_current: bool,
}

impl BucketWatch {
    /// Watches one of the buckets of `topology`.
    #[must_use]
    pub fn new(bus: &Bus, bucket: &'static str) -> Self {
        Self { bus: bus.clone(), bucket, watch: None, ready: VecDeque::new(), is_current: false }
    }

    /// All keys that are there now; [`BucketWatch::next`] goes on behind them.
    ///
    /// # Errors
    /// [`TopologyError`] when the bucket cannot be read.
    pub async fn current(&mut self) -> Result<Vec<Change>, TopologyError> {
        let (watch, is_empty) = open_watch(&self.bus, self.bucket).await?;
        (self.watch, self.is_current) = (Some(watch), is_empty);
        let mut changes = Vec::new();
        while !self.is_current {
            changes.push(self.next().await);
        }
        Ok(changes)
    }

    /// The next key or change.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Change {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return change;
            }
            let Some(watch) = &mut self.watch else {
                match open_watch(&self.bus, self.bucket).await {
                    Ok((watch, is_empty)) => (self.watch, self.is_current) = (Some(watch), is_empty),
                    Err(error) => {
                        tracing::debug!(bucket = self.bucket, %error, "cannot watch yet, will try again");
                        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                    }
                }
                continue;
            };
            match watch.next().await {
                Some(Ok(entry)) => {
                    self.is_current |= entry.seen_current;
                    let value = (entry.operation == kv::Operation::Put).then_some(entry.value);
                    let stored_ms = unix_ms(entry.created);
                    self.ready.push_back(Change { key: entry.key, value, stored_ms });
                }
                Some(Err(error)) => {
                    tracing::debug!(bucket = self.bucket, %error, "watch ended, making it anew");
                    self.watch = None;
                }
                None => self.watch = None,
            }
        }
    }
}

/// A watch, and whether the bucket is empty.
async fn open_watch(bus: &Bus, bucket: &str) -> Result<(kv::Watch, bool), TopologyError> {
    let store = open(bus, bucket).await?;
    let watch = store.watch_with_history(">").await.map_err(|e| TopologyError::new(bucket, &e))?;
    // Asked after the watch was made: a key that comes in between is only told twice.
    let held = stream_state(bus, &format!("KV_{bucket}")).await?.messages;
    Ok((watch, held == 0))
}

pub(super) async fn open(bus: &Bus, bucket: &str) -> Result<kv::Store, TopologyError> {
    let what = format!("use of bucket {bucket} (has `setup` run?)");
    bus.js.get_key_value(bucket).await.map_err(|e| TopologyError::new(&what, &e))
}

pub(super) fn encode<T: Serialize>(value: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(value).unwrap_or_default())
}

/// Reads a record; none when it is of another form (a newer version's, say).
#[must_use]
pub fn decode<T: DeserializeOwned>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}

impl Bus {
    /// Writes a worker's record.
    ///
    /// # Errors
    /// [`TopologyError`] when the bucket cannot be written.
    pub async fn put_worker(&self, record: &WorkerRecord) -> Result<(), TopologyError> {
        let store = open(self, BUCKET_WORKERS).await?;
        store.put(&record.name, encode(record)).await.map_err(|e| TopologyError::new(BUCKET_WORKERS, &e))?;
        Ok(())
    }

    /// Removes a worker's record: it leaves.
    ///
    /// # Errors
    /// [`TopologyError`] when the bucket cannot be written.
    pub async fn remove_worker(&self, name: &str) -> Result<(), TopologyError> {
        let store = open(self, BUCKET_WORKERS).await?;
        let removed = store.purge_with_ttl(name, LEASE_SETTLED_KEEP).await;
        removed.map_err(|e| TopologyError::new(BUCKET_WORKERS, &e))
    }

    /// What the streams had stored when this server process was first seen; written now if nobody did before.
    ///
    /// # Errors
    /// [`TopologyError`] when it can be neither read nor written.
    pub async fn server_record(&self) -> Result<ServerRecord, TopologyError> {
        let store = open(self, BUCKET_SERVERS).await?;
        let id = self.server_id();
        let stored = store.get(&id).await.map_err(|e| TopologyError::new(BUCKET_SERVERS, &e))?;
        if let Some(record) = stored.and_then(|v| decode(&v)) {
            return Ok(record);
        }
        let servers = format!("KV_{BUCKET_SERVERS}");
        let record = ServerRecord {
            tasks: stream_state(self, STREAM_TASKS).await?.last_seq,
            due: stream_state(self, STREAM_DUE).await?.last_seq,
            // The first of all has no one to come back to it.
            seen_ms: if stream_state(self, &servers).await?.last_seq > 0 { crate::now_ms() } else { 0 },
        };
        // Whoever was first saw less stored: that record is the better one.
        if store.create(&id, encode(&record)).await.is_err() {
            let stored = store.get(&id).await.map_err(|e| TopologyError::new(BUCKET_SERVERS, &e))?;
            return Ok(stored.and_then(|v| decode(&v)).unwrap_or(record));
        }
        Ok(record)
    }
}

/// One start of a redelivered message that has not ended yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartEntry {
    /// The worker process and its own count: tells one start from another.
    pub by: String,
    /// The worker's name, for the evidence.
    pub worker: String,
    /// Unix time in milliseconds.
    pub at_ms: i64,
}

/// The starts bucket. A key is `<stream>.<stream epoch>.<sequence>`, its value the starts without an end.
#[derive(Clone)]
pub struct Starts {
    store: kv::Store,
}

impl Starts {
    /// Opens the bucket.
    ///
    /// # Errors
    /// [`TopologyError`]; most likely setup has not run yet.
    pub async fn open(bus: &Bus) -> Result<Self, TopologyError> {
        Ok(Self { store: open(bus, BUCKET_STARTS).await? })
    }

    async fn read(&self, key: &str) -> Result<(u64, Vec<StartEntry>), TopologyError> {
        let entry = self.store.entry(key).await.map_err(|e| TopologyError::new(BUCKET_STARTS, &e))?;
        Ok(entry.map_or((0, Vec::new()), |e| {
            let entries = if e.operation == kv::Operation::Put { decode(&e.value) } else { None };
            (e.revision, entries.unwrap_or_default())
        }))
    }

    /// Adds an entry unless there are `max` already; returns those that were there before.
    ///
    /// # Errors
    /// [`TopologyError`] when the bucket cannot be read or written.
    pub async fn add(&self, key: &str, entry: &StartEntry, max: usize) -> Result<Vec<StartEntry>, TopologyError> {
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
                Err(error) => return Err(TopologyError::new(BUCKET_STARTS, &error)),
            }
        }
    }

    /// Takes back one's own entry.
    ///
    /// # Errors
    /// [`TopologyError`] when the bucket cannot be read or written.
    pub async fn take_back(&self, key: &str, by: &str) -> Result<(), TopologyError> {
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
                Err(error) => return Err(TopologyError::new(BUCKET_STARTS, &error)),
            }
        }
    }

    /// Removes the whole record: the message is settled.
    ///
    /// # Errors
    /// [`TopologyError`] when the bucket cannot be written.
    pub async fn remove(&self, key: &str) -> Result<(), TopologyError> {
        let removed = self.store.purge_with_ttl(key, LEASE_SETTLED_KEEP).await;
        removed.map_err(|e| TopologyError::new(BUCKET_STARTS, &e))
    }

    /// Removes records of messages that are gone: those before `first_seq` of a stream, and those of other epochs.
    ///
    /// # Errors
    /// [`TopologyError`] when the bucket cannot be read or written.
    pub async fn sweep(&self, stream: &str, epoch: &str, first_seq: u64) -> Result<usize, TopologyError> {
        let mut keys = self.store.keys().await.map_err(|e| TopologyError::new(BUCKET_STARTS, &e))?;
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

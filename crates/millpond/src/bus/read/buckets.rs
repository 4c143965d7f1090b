//! The buckets: jobs, workers, cancellations, starts and servers. Keys and values are in docs/protocol.md.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::jetstream::kv;
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::read::unix_ms;
use crate::limits::LEASE_SETTLED_KEEP;
use crate::wire::bounds::Bounded;
use crate::wire::decode::decode;
use crate::wire::streams::BUCKET_WORKERS;
use crate::worker_record::WORKER_LOST_AFTER;
use crate::worker_record::{WorkerRecord, wire_number_unwritten};

/// A change of a bucket: the key, and its value unless it was removed.
#[derive(Debug, Clone)]
pub struct BucketChange {
    /// The key.
    pub key: String,
    /// The value; none when the key was removed.
    pub value: Option<Bytes>,
    /// When the server stored it, Unix time in milliseconds.
    pub stored_ms: i64,
}

impl BucketChange {
    /// The record that it brings; none when the key was removed, or the record is of another form (a newer version's, say).
    #[must_use]
    pub fn record<T: DeserializeOwned + Bounded>(&self) -> Option<T> {
        decode(self.value.as_deref()?).ok()
    }
}

/// All keys of a bucket, then their changes, for ever. After a fault it starts again with all keys.
pub struct BucketWatch {
    bus: Bus,
    bucket: &'static str,
    watch: Option<kv::Watch>,
    ready: VecDeque<BucketChange>,
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
    /// [`BusError`] when the bucket cannot be read.
    pub async fn current(&mut self) -> Result<Vec<BucketChange>, BusError> {
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
    pub async fn next(&mut self) -> BucketChange {
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
                    self.ready.push_back(BucketChange { key: entry.key, value, stored_ms });
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
async fn open_watch(bus: &Bus, bucket: &str) -> Result<(kv::Watch, bool), BusError> {
    let store = open(bus, bucket).await?;
    let watch = store.watch_with_history(">").await.map_err(|e| BusError::new(bucket, &e))?;
    // Read after the watch was made: a key that comes in between is only reported twice.
    let stream = bus.js.get_stream(format!("KV_{bucket}")).await.map_err(|e| BusError::new(bucket, &e))?;
    Ok((watch, stream.cached_info().state.messages == 0))
}

pub(in crate::bus) async fn open(bus: &Bus, bucket: &str) -> Result<kv::Store, BusError> {
    let what = format!("use of bucket {bucket}");
    bus.js.get_key_value(bucket).await.map_err(|e| BusError::new(&what, &e))
}

/// Buckets that were opened and are used again and again: to open one costs a request.
#[derive(Default)]
pub(in crate::bus) struct OpenBuckets(Mutex<HashMap<&'static str, kv::Store>>);

impl OpenBuckets {
    fn stores(&self) -> MutexGuard<'_, HashMap<&'static str, kv::Store>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bus {
    /// Does something with a bucket that is kept open. After an error it is opened anew the next time, which fails with
    /// [`BusError::Missing`] if it is not there.
    pub(in crate::bus) async fn with_bucket<T, E: std::error::Error + 'static>(
        &self,
        bucket: &'static str,
        request: impl AsyncFnOnce(&kv::Store) -> Result<T, E>,
    ) -> Result<T, BusError> {
        let known = self.buckets.stores().get(bucket).cloned();
        let store = match known {
            Some(store) => store,
            None => open(self, bucket).await?,
        };
        self.buckets.stores().insert(bucket, store.clone());
        request(&store).await.map_err(|error| {
            self.buckets.stores().remove(bucket);
            BusError::new(bucket, &error)
        })
    }
}

pub(in crate::bus) fn encode<T: Serialize>(value: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(value).unwrap_or_default())
}

/// Workers whose record was renewed lately, and the wire number of each. For `setup`.
pub(in crate::bus) async fn live_workers(bus: &Bus) -> Result<Vec<(String, u32)>, BusError> {
    let store = match open(bus, BUCKET_WORKERS).await {
        Err(BusError::Missing { .. }) => return Ok(Vec::new()),
        store => store?,
    };
    let mut live = Vec::new();
    for name in bus.keys(BUCKET_WORKERS).await? {
        let entry = store.entry(&name).await.map_err(|e| BusError::new(BUCKET_WORKERS, &e))?;
        let Some(entry) = entry.filter(|entry| entry.operation == kv::Operation::Put) else { continue };
        let age_ms = u128::from(crate::now_ms().abs_diff(unix_ms(entry.created)));
        if age_ms <= WORKER_LOST_AFTER.as_millis() {
            // A record of another version may have another form: its number is read alone.
            let number = decode::<WireNumberOf>(&entry.value).map_or(0, |record| record.wire);
            live.push((name, number));
        }
    }
    Ok(live)
}

#[derive(Deserialize)]
struct WireNumberOf {
    #[serde(default = "wire_number_unwritten")]
    wire: u32,
}

impl Bounded for WireNumberOf {}

impl Bus {
    /// Writes a worker's record.
    ///
    /// # Errors
    /// [`BusError`] when the bucket cannot be written.
    pub async fn put_worker(&self, record: &WorkerRecord) -> Result<(), BusError> {
        let store = open(self, BUCKET_WORKERS).await?;
        store.put(&record.name, encode(record)).await.map_err(|e| BusError::new(BUCKET_WORKERS, &e))?;
        Ok(())
    }

    /// Removes a worker's record: it leaves.
    ///
    /// # Errors
    /// [`BusError`] when the bucket cannot be written.
    pub async fn remove_worker(&self, name: &str) -> Result<(), BusError> {
        let store = open(self, BUCKET_WORKERS).await?;
        let removed = store.purge_with_ttl(name, LEASE_SETTLED_KEEP).await;
        removed.map_err(|e| BusError::new(BUCKET_WORKERS, &e))
    }
}

//! What outlives a queue's consumers, in the bucket `millpond_queues`: up to where messages may have been given out when a
//! consumer was made again, and until when the queue is paused.
//!
//! Somebody may delete a consumer. One that is made again gives out all that is not settled as if for the first time, also what
//! workers hold. So whoever makes it again first writes down how far the streams had come, and waits until every worker knows;
//! what lies up to there is asked about before it starts (bus/consume/lease.rs).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use async_nats::jetstream::kv;
use serde::{Deserialize, Serialize};

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::read::buckets::{BucketChange, BucketWatch, encode, open};
use crate::limits::LEASE_SETTLED_KEEP;
use crate::task::Origin;
use crate::wire::bounds::{self, Bounded};
use crate::wire::decode::decode;
use crate::wire::streams::BUCKET_QUEUES;

/// How far the streams had come when the consumers of a queue were made again; 0 when they were made once.
///
/// ```
/// let text = r#"{"tasks":10,"due":2}"#;
/// let record: millpond::bus::consume::queue_records::ConsumerRecord = serde_json::from_str(text).unwrap();
/// assert_eq!(serde_json::to_string(&record).unwrap(), text);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerRecord {
    /// Last sequence of TASKS.
    pub tasks: u64,
    /// Last sequence of DUE.
    pub due: u64,
}

/// A pause of a queue.
///
/// ```
/// let text = r#"{"until_ms":1800000000000}"#;
/// let record: millpond::bus::consume::queue_records::PauseRecord = serde_json::from_str(text).unwrap();
/// assert_eq!(serde_json::to_string(&record).unwrap(), text);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseRecord {
    /// Nothing is given out before, Unix time in milliseconds by the server's clock.
    pub until_ms: i64,
}

impl Bounded for ConsumerRecord {
    fn check(&self) -> Result<(), String> {
        bounds::count("tasks", self.tasks)?;
        bounds::count("due", self.due)
    }
}

impl Bounded for PauseRecord {
    fn check(&self) -> Result<(), String> {
        bounds::time("until_ms", self.until_ms)
    }
}

fn consumer_key(queue: &str) -> String {
    format!("{queue}.consumer")
}

fn pause_key(queue: &str) -> String {
    format!("{queue}.pause")
}

impl Bus {
    /// Notes that the consumers of a queue are made for the first time; false when they were made before.
    pub(in crate::bus) async fn note_first_consumer(&self, queue: &str) -> Result<bool, BusError> {
        let store = open(self, BUCKET_QUEUES).await?;
        match store.create(consumer_key(queue), encode(&ConsumerRecord::default())).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(BusError::new(BUCKET_QUEUES, &error)),
        }
    }

    /// Notes that the consumers of a queue are about to be made again: all that is stored by now may be with a worker.
    pub(in crate::bus) async fn note_consumer_again(
        &self,
        queue: &str,
        record: ConsumerRecord,
    ) -> Result<(), BusError> {
        let store = open(self, BUCKET_QUEUES).await?;
        store.put(consumer_key(queue), encode(&record)).await.map_err(|e| BusError::new(BUCKET_QUEUES, &e))?;
        Ok(())
    }

    /// Forgets that the consumers of a queue were ever made.
    pub(in crate::bus) async fn forget_consumer(&self, queue: &str) -> Result<(), BusError> {
        let store = open(self, BUCKET_QUEUES).await?;
        let removed = store.purge_with_ttl(consumer_key(queue), LEASE_SETTLED_KEEP).await;
        removed.map_err(|e| BusError::new(BUCKET_QUEUES, &e))
    }

    /// The pause of a queue; none when it is not paused.
    pub(in crate::bus) async fn pause_record(&self, queue: &str) -> Result<Option<PauseRecord>, BusError> {
        let store = open(self, BUCKET_QUEUES).await?;
        let found = store.get(pause_key(queue)).await.map_err(|e| BusError::new(BUCKET_QUEUES, &e))?;
        Ok(found.and_then(|value| decode(&value).ok()))
    }

    /// Writes or removes the pause of a queue.
    pub(in crate::bus) async fn put_pause(&self, queue: &str, pause: Option<PauseRecord>) -> Result<(), BusError> {
        let store = open(self, BUCKET_QUEUES).await?;
        let key = pause_key(queue);
        match pause {
            Some(pause) => store.put(key, encode(&pause)).await.map(drop).map_err(|e| BusError::new(BUCKET_QUEUES, &e)),
            None => store.delete(key).await.map_err(|e| BusError::new(BUCKET_QUEUES, &e)),
        }
    }
}

/// The records of all queues, as this worker knows them.
#[derive(Default)]
pub(super) struct ConsumerRecords {
    known: RwLock<HashMap<String, ConsumerRecord>>,
    /// The largest sequences of all: most messages lie beyond.
    tasks_max: AtomicU64,
    due_max: AtomicU64,
}

impl ConsumerRecords {
    /// Whether a message may have been given out by a consumer that was deleted.
    pub(super) fn covers(&self, queue: &str, origin: Origin, seq: u64) -> bool {
        let max = if origin == Origin::Due { &self.due_max } else { &self.tasks_max };
        if seq > max.load(Ordering::SeqCst) {
            return false;
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(queue).is_some_and(|record| seq <= if origin == Origin::Due { record.due } else { record.tasks })
    }

    pub(super) fn learn(&self, change: &BucketChange) {
        let record = change.record::<ConsumerRecord>();
        let (Some((queue, "consumer")), Some(record)) = (change.key.split_once('.'), record) else { return };
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(queue.to_owned(), record);
        self.tasks_max.fetch_max(record.tasks, Ordering::SeqCst);
        self.due_max.fetch_max(record.due, Ordering::SeqCst);
    }

    /// Reads all of them: at the start, and after a loss of the connection before anything is pulled again.
    pub(super) async fn read(&self, bus: &Bus) -> Result<(), BusError> {
        BucketWatch::new(bus, BUCKET_QUEUES).current().await?.iter().for_each(|change| self.learn(change));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_deleted_consumer_may_have_given_out_is_covered() {
        let records = ConsumerRecords::default();
        let change = |key: &str, text: &'static str| BucketChange {
            key: key.to_owned(),
            value: Some(text.into()),
            stored_ms: 0,
        };
        for (key, text) in [
            ("a.consumer", r#"{"tasks":10,"due":2}"#),
            ("b.consumer", r#"{"tasks":20,"due":0}"#),
            ("c", r#"{"max_waiting":3}"#),
            ("a.pause", r#"{"until_ms":99}"#),
        ] {
            records.learn(&change(key, text));
        }
        assert!(records.covers("a", Origin::Tasks, 10) && !records.covers("a", Origin::Tasks, 11));
        assert!(records.covers("b", Origin::Tasks, 11) && !records.covers("b", Origin::Due, 1));
        assert!(records.covers("a", Origin::Due, 2) && !records.covers("c", Origin::Tasks, 1));
    }
}

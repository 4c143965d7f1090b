//! The record of a server process, kept in the bucket `millpond_servers`: what the streams had stored when it was first seen.

use serde::{Deserialize, Serialize};

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::read::buckets::{encode, open};
use crate::bus::topology::stream_state;
use crate::wire::bounds::{self, Bounded};
use crate::wire::decode::decode;
use crate::wire::streams::{BUCKET_SERVERS, STREAM_DUE, STREAM_TASKS};

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

impl Bounded for ServerRecord {
    fn check(&self) -> Result<(), String> {
        bounds::time("seen_ms", self.seen_ms)
    }
}

impl Bus {
    /// What the streams had stored when this server process was first seen; written now if nobody did before.
    ///
    /// # Errors
    /// [`BusError`] when it can be neither read nor written.
    pub async fn server_record(&self) -> Result<ServerRecord, BusError> {
        let store = open(self, BUCKET_SERVERS).await?;
        let id = self.server_id();
        let stored = store.get(&id).await.map_err(|e| BusError::new(BUCKET_SERVERS, &e))?;
        if let Some(record) = stored.and_then(|v| decode(&v).ok()) {
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
            let stored = store.get(&id).await.map_err(|e| BusError::new(BUCKET_SERVERS, &e))?;
            return Ok(stored.and_then(|v| decode(&v).ok()).unwrap_or(record));
        }
        Ok(record)
    }
}

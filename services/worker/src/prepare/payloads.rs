//! Fetches what a task's `Millpond-Ref` names, before the start: into memory, or into a file when it
//! is large. Bounded: few fetches at once, and so many bytes in memory. Knows NATS; nothing of handlers or settling.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use millpond::bus::Bus;
use millpond::bus::publish::payloads::GetError;
use millpond::payload::{PayloadRef, without_mark};
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::prepare::payload_files::{PayloadFile, PayloadFiles};

/// Payloads that a worker fetches at once.
const PAYLOAD_FETCHES_MAX: usize = 4;
/// Largest payload that a worker fetches into memory, in bytes; a larger one becomes a file.
const PAYLOAD_MEMORY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of fetched payloads that a worker holds in memory at once.
const PAYLOADS_MEMORY_BYTES_MAX: usize = 64 * 1024 * 1024;
const _: () = assert!(PAYLOAD_MEMORY_BYTES_MAX <= PAYLOADS_MEMORY_BYTES_MAX);
/// Bytes that one permit stands for.
const PERMIT_BYTES: usize = 1024;

/// Fetches payloads for one worker.
pub(crate) struct PayloadFetcher {
    bus: Bus,
    spool: PayloadFiles,
    fetches: Semaphore,
    memory: Arc<Semaphore>,
}

/// A payload; its file and its share of the memory are given back when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct FetchedPayload {
    payload: Bytes,
    file: Option<PayloadFile>,
    _memory: Option<OwnedSemaphorePermit>,
}

impl FetchedPayload {
    /// The bytes; empty when they are in a file.
    pub(crate) fn payload(&self) -> Bytes {
        self.payload.clone()
    }

    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }
}

/// Why there is no payload.
#[derive(Debug)]
pub(crate) enum FetchFailure {
    /// The task can never run: the reason of its dead letter, and one line for a person.
    Never(&'static str, String),
    /// The payload may still be there: the task is to be tried again, here or elsewhere.
    NotNow(String),
}

impl From<GetError> for FetchFailure {
    fn from(error: GetError) -> Self {
        let text = error.to_string();
        match error {
            GetError::Missing { .. } => Self::Never("missing_payload", text),
            GetError::Damaged { .. } | GetError::TooLarge { .. } => Self::Never("damaged_payload", text),
            GetError::NoAnswer { .. } | GetError::Write(_) => Self::NotNow(text),
        }
    }
}

impl PayloadFetcher {
    pub(crate) fn new(bus: &Bus, spool: PayloadFiles) -> Self {
        let memory = Arc::new(Semaphore::new(PAYLOADS_MEMORY_BYTES_MAX / PERMIT_BYTES));
        Self { bus: bus.clone(), spool, fetches: Semaphore::new(PAYLOAD_FETCHES_MAX), memory }
    }

    /// Fetches and checks a payload; with `json_only`, what is not JSON becomes a file whatever its size.
    ///
    /// # Cancel safety
    /// Safe: what was fetched so far is removed.
    pub(crate) async fn fetch(&self, at: &PayloadRef, json_only: bool) -> Result<FetchedPayload, FetchFailure> {
        let closed = |_| FetchFailure::NotNow("the worker is leaving".to_owned());
        let size = usize::try_from(at.size).ok().filter(|size| *size <= PAYLOAD_MEMORY_BYTES_MAX);
        let Some(size) = size else {
            let _fetch = self.fetches.acquire().await.map_err(closed)?;
            let (mut file, spooled) = self.spool.create().await.map_err(GetError::Write)?;
            self.bus.get_payload(at, &mut file).await?;
            return Ok(FetchedPayload { file: Some(spooled), ..FetchedPayload::default() });
        };
        // Memory comes first: a fetch that waits for memory must not keep others from fetching.
        let permits = u32::try_from(size.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
        let memory = self.memory.clone().acquire_many_owned(permits).await.map_err(closed)?;
        let _fetch = self.fetches.acquire().await.map_err(closed)?;
        let bytes = self.bus.get_payload_bytes(at, PAYLOAD_MEMORY_BYTES_MAX).await?;
        if json_only && serde_json::from_slice::<&RawValue>(without_mark(&bytes)).is_err() {
            let (mut file, spooled) = self.spool.create().await.map_err(GetError::Write)?;
            file.write_all(&bytes).await.map_err(GetError::Write)?;
            file.flush().await.map_err(GetError::Write)?;
            return Ok(FetchedPayload { file: Some(spooled), ..FetchedPayload::default() });
        }
        Ok(FetchedPayload { payload: Bytes::from(bytes), file: None, _memory: Some(memory) })
    }
}

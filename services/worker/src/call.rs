//! One task as its handler sees it, and what the handler answers. No NATS, no storage.

use bytes::Bytes;
use millpond::outcome::Failure;
use millpond::telemetry::TraceContext;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

/// What a handler returns: a JSON value, or why there is none.
pub type Reply = Result<Box<RawValue>, Failure>;

/// One task as its handler sees it.
#[derive(Debug, Clone)]
pub struct Call {
    /// Id of the task, or `<root>/<i>` of an item of a batch.
    pub id: String,
    /// From 1.
    pub attempt: u32,
    /// The arguments as published; use [`Call::args`] where they are JSON.
    pub payload: Bytes,
    /// The trace that the attempt belongs to; none in a handler that runs in a process of its own.
    pub trace: Option<TraceContext>,
    /// Cancelled when nobody waits for the answer any more: after the timeout, or at the end of the drain.
    pub stop: CancellationToken,
}

impl Call {
    /// The arguments, decoded from JSON.
    ///
    /// # Errors
    /// A failure `bad_arguments` that is not tried again.
    pub fn args<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        self.borrowed_args()
    }

    /// The same, borrowing from the payload.
    pub(crate) fn borrowed_args<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        serde_json::from_slice(&self.payload).map_err(|error| {
            let start: String = String::from_utf8_lossy(self.payload.get(..80).unwrap_or(&self.payload)).into();
            Failure::fatal("bad_arguments", format!("arguments {start:?} do not fit: {error}"))
        })
    }

    #[cfg(test)]
    pub(crate) fn for_test(id: &str, payload: &str) -> Self {
        let (payload, stop) = (Bytes::from(payload.to_owned()), CancellationToken::new());
        Self { id: id.to_owned(), attempt: 1, payload, trace: None, stop }
    }
}

/// A value as a handler's reply.
///
/// # Errors
/// A failure `bad_result` when the value cannot be JSON.
pub fn reply<T: Serialize>(value: &T) -> Reply {
    serde_json::value::to_raw_value(value).map_err(|e| Failure::fatal("bad_result", e.to_string()))
}

//! How one call ended: with a value, with a failure, or not run. Handlers and children make these; settling judges them.

use std::time::Duration;

use millpond::limits::{CLAIM_CHECK_BYTES, RESULT_BYTES_MAX};
use millpond::outcome::Failure;
use millpond::payload::bytes_to_json;
use serde_json::value::RawValue;

use crate::call::Reply;

/// How one call ended.
#[derive(Debug)]
pub(crate) enum CallEnd {
    /// The handler answered with a value.
    Done(Box<RawValue>),
    /// The handler answered with bytes that are no JSON; they are carried as `{"base64":"…"}`.
    Bytes(Box<RawValue>),
    /// The handler failed, or ran for too long.
    Failed(Failure),
    /// The call was not run to its end: it was taken out of the message, or the worker had to leave.
    NotRun,
}

impl CallEnd {
    /// The end of a call whose handler answered.
    pub(crate) fn of(reply: Reply) -> Self {
        match reply {
            Err(failure) => Self::Failed(failure.bounded()),
            Ok(value) => Self::kept(value, Self::Done),
        }
    }

    /// The end of a call whose handler answered with bytes that are no JSON.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        match bytes_to_json(bytes) {
            Ok(value) => Self::kept(value, Self::Bytes),
            Err(error) => Self::Failed(Failure::fatal("bad_result", error.to_string())),
        }
    }

    fn kept(value: Box<RawValue>, end: impl FnOnce(Box<RawValue>) -> Self) -> Self {
        let bytes = value.get().len();
        if bytes <= RESULT_BYTES_MAX {
            return end(value);
        }
        let text = format!("the result has {bytes} bytes, at most {RESULT_BYTES_MAX} are kept");
        Self::Failed(Failure::fatal("result_too_large", text))
    }

    /// Whether the handler answered with a result.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Bytes(_))
    }

    /// Whether its result goes to the store of payloads, with a reference in its place.
    pub(crate) fn is_large(&self) -> bool {
        matches!(self, Self::Done(value) | Self::Bytes(value) if value.get().len() > CLAIM_CHECK_BYTES)
    }
}

/// The failure of a call that ran for longer than its timeout.
pub(crate) fn too_late(timeout: Duration) -> Failure {
    Failure::new("timeout", format!("no end within {}", humantime::format_duration(timeout)))
}

//! How one call ended: with a value, with a failure, or not run. Handlers and children make these; settling judges them.

use std::time::Duration;

use millpond::limits::{CLAIM_CHECK_BYTES, RESULT_BYTES_MAX};
use millpond::outcome::Failure;
use serde_json::value::RawValue;

use crate::call::Reply;

/// How one call ended.
#[derive(Debug)]
pub(crate) enum CallEnd {
    /// The handler answered with a value.
    Done(Box<RawValue>),
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
            Ok(value) if value.get().len() > RESULT_BYTES_MAX => Self::Failed(Failure::fatal(
                "result_too_large",
                format!("the result has {} bytes, at most {RESULT_BYTES_MAX} are kept", value.get().len()),
            )),
            Ok(value) => Self::Done(value),
        }
    }

    /// Whether its result goes to the store of payloads, with a reference in its place.
    pub(crate) fn is_large(&self) -> bool {
        matches!(self, Self::Done(value) if value.get().len() > CLAIM_CHECK_BYTES)
    }
}

/// The failure of a call that ran for longer than its timeout.
pub(crate) fn too_late(timeout: Duration) -> Failure {
    Failure::new("timeout", format!("no end within {}", humantime::format_duration(timeout)))
}

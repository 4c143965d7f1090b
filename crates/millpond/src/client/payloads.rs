//! The claim check as a producer program sees it: arguments above [`CLAIM_CHECK_BYTES`] go to the store by themselves,
//! and results that lie there are fetched and checked when they are handed out.

use std::time::Duration;

use serde_json::value::RawValue;
use tokio::io::AsyncRead;

use super::{Client, ClientError, NewTask, NoResult, TaskEnd};
use crate::bus::publish::RetryDeadline;
use crate::bus::publish::payloads::GetError;
use crate::limits::{CLAIM_CHECK_BYTES, RESULT_BYTES_MAX};
use crate::outcome::Kept;
use crate::payload::{PayloadRef, StoredPayload};

/// How long before a server that does not answer is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// How an item ended, as it was told.
#[derive(Debug)]
pub(super) enum Ended {
    /// With all there is.
    Here(TaskEnd),
    /// With a result that lies in the store.
    Stored(PayloadRef),
}

impl Ended {
    pub(super) fn of(kept: Kept<'_>) -> Self {
        match kept {
            Kept::Here(value) => Self::Here(Ok(value.to_owned())),
            Kept::Stored(at) => Self::Stored(at.clone()),
        }
    }

    /// What it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Here(end) => end.as_deref().map_or(0, |value: &RawValue| value.get().len()),
            Self::Stored(_) => 0,
        }
    }
}

impl Client {
    /// Puts a payload of any size and kind into the store, for [`NewTask::stored`]; it needs no more memory than a chunk.
    /// One payload may serve several tasks.
    ///
    /// # Errors
    /// [`ClientError::Payload`] when it cannot be read or stored.
    ///
    /// # Cancel safety
    /// Not safe: a dropped put leaves a part that nobody knows of, until the bucket's age ends it.
    pub async fn put_payload(
        &self,
        from: &mut (impl AsyncRead + Unpin + ?Sized),
        deadline: RetryDeadline,
    ) -> Result<StoredPayload, ClientError> {
        Ok(self.bus.put_payload(from, deadline).await?)
    }

    /// A result that lies in the store, checked by size and SHA-256.
    ///
    /// # Errors
    /// [`GetError`]: missing, damaged, larger than any result may be, or no answer.
    pub async fn get_result(&self, at: &PayloadRef) -> Result<Box<RawValue>, GetError> {
        let bytes = self.bus.get_payload_bytes(at, RESULT_BYTES_MAX).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| GetError::Damaged { object: at.object.clone(), reason: format!("is not JSON: {error}") })
    }

    /// The end itself; a result that cannot be had is told. Waits for a server that does not answer.
    pub(super) async fn resolve(&self, ended: Ended) -> TaskEnd {
        let at = match ended {
            Ended::Here(end) => return end,
            Ended::Stored(at) => at,
        };
        loop {
            match self.get_result(&at).await {
                Ok(value) => return Ok(value),
                Err(GetError::NoAnswer { reason, .. }) => {
                    tracing::debug!(object = %at.object, reason, "a result cannot be fetched yet, will try again");
                    tokio::time::sleep(ASK_AGAIN_AFTER).await;
                }
                Err(error) => return Err(NoResult::Lost(error.to_string())),
            }
        }
    }

    /// Where the arguments of a task lie that go to the store.
    pub(super) async fn claim(&self, task: &NewTask, deadline: RetryDeadline) -> Result<StoredPayload, ClientError> {
        let stored = match &task.stored {
            Some(stored) => stored.clone(),
            None => self.bus.put_payload(&mut &*task.payload, deadline).await?,
        };
        match task.at_ms {
            Some(at_ms) if at_ms > stored.until_ms => {
                Err(ClientError::WaitsTooLong { at_ms, until_ms: stored.until_ms })
            }
            _ => Ok(stored),
        }
    }
}

impl NewTask {
    /// Whether its arguments are not to go into its message.
    pub(super) fn is_claimed(&self) -> bool {
        self.stored.is_some() || self.batch.is_none() && self.payload.len() > CLAIM_CHECK_BYTES
    }
}

/// The earlier of what the task says and the end of its payload, as a header. What cannot be read stays for the worker
/// to bury with its reason.
pub(super) fn expires(said: Option<&str>, stored: Option<&StoredPayload>) -> Option<String> {
    let until = stored.and_then(|stored| jiff::Timestamp::from_millisecond(stored.until_ms).ok());
    match (said, until) {
        (Some(said), Some(until)) if said.parse::<jiff::Timestamp>().is_ok_and(|at| at > until) => {
            Some(until.to_string())
        }
        (Some(said), _) => Some(said.to_owned()),
        (None, until) => until.map(|until| until.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(said: Option<&str>, until_ms: Option<i64>, expected: Option<&str>) {
        let at = PayloadRef { object: "o".into(), size: 1, sha256: String::new() };
        let stored = until_ms.map(|until_ms| StoredPayload { at, until_ms });
        assert_eq!(expires(said, stored.as_ref()).as_deref(), expected, "{said:?} {until_ms:?}");
    }

    #[test]
    fn the_earlier_end_counts() {
        check(None, None, None);
        check(Some("soon"), Some(0), Some("soon"));
        check(None, Some(0), Some("1970-01-01T00:00:00Z"));
        check(Some("2030-01-01T00:00:00Z"), Some(0), Some("1970-01-01T00:00:00Z"));
        check(Some("1960-01-01T00:00:00Z"), Some(0), Some("1960-01-01T00:00:00Z"));
        check(Some("2030-01-01T00:00:00Z"), None, Some("2030-01-01T00:00:00Z"));
    }
}

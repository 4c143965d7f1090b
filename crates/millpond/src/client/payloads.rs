//! Large arguments and results for a producer program (the claim check): arguments above [`CLAIM_CHECK_BYTES`] go to the store
//! of payloads by themselves, and a result that lies there is fetched and checked when it is handed out.

use std::time::Duration;

use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite};

use super::errors::SubmitError;
use super::{Client, NewTask, NoResult, TaskEnd, TaskResult};
use crate::bus::publish::RetryDeadline;
use crate::bus::publish::payloads::{GetError, PutError};
use crate::limits::{CLAIM_CHECK_BYTES, RESULT_BYTES_MAX};
use crate::outcome::{Failure, ItemResult, NotDone, NotDoneState, Outcome};
use crate::payload::{PayloadRef, StoredPayload, bytes_to_json};
use crate::wire::bounds::parse_expiry;

/// The delay before a server that did not answer is tried again.
const FETCH_RETRY_DELAY: Duration = Duration::from_millis(250);

/// How an item ended, as RESULTS or a collector has it.
#[derive(Debug, Clone)]
pub(super) enum KnownEnd {
    /// With everything there is.
    Inline(TaskEnd),
    /// With a result that lies in the store.
    Stored(PayloadRef),
}

impl KnownEnd {
    pub(super) fn of(result: ItemResult<'_>) -> Self {
        match result {
            ItemResult::Inline(value) => Self::Inline(Ok(TaskResult { value: value.to_owned(), is_bytes: false })),
            ItemResult::Bytes(value) => Self::Inline(Ok(TaskResult { value: value.to_owned(), is_bytes: true })),
            ItemResult::Stored(at) => Self::Stored(at.clone()),
        }
    }

    /// Bytes of the result in memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Inline(end) => end.as_ref().map_or(0, |result| result.get().len()),
            Self::Stored(_) => 0,
        }
    }
}

/// The end of an item; none while a later attempt waits.
pub(super) fn final_end(end: Result<ItemResult<'_>, &NotDone>) -> Option<KnownEnd> {
    let not_done = match end {
        Ok(result) => return Some(KnownEnd::of(result)),
        Err(not_done) => not_done,
    };
    let no_result = match not_done.end {
        NotDoneState::Dead => {
            let failure = not_done.failure.clone();
            NoResult::Dead(failure.unwrap_or_else(|| Failure::new("error", "no reason given")))
        }
        NotDoneState::Cancelled => NoResult::Cancelled,
        NotDoneState::Retry | NotDoneState::Remainder => return None,
    };
    Some(KnownEnd::Inline(Err(no_result)))
}

/// Each item of an outcome that ended for good: its index in the job, and its end.
pub(super) fn final_ends(outcome: &Outcome) -> impl Iterator<Item = (u64, KnownEnd)> {
    let first = outcome.first_item();
    outcome.ends().filter_map(move |(item, end)| {
        let index = outcome.index? + u64::from(item - first);
        Some((index, final_end(end)?))
    })
}

impl Client {
    /// Puts a payload of any size and kind into the store, for [`NewTask::stored`]; it needs no more memory than a chunk.
    /// One payload may serve several tasks.
    ///
    /// # Errors
    /// [`PutError`] when it cannot be read or stored.
    ///
    /// # Cancel safety
    /// Not safe: a dropped put leaves a part that nothing refers to, until the bucket drops it by its age.
    pub async fn put_payload(
        &self,
        from: &mut (impl AsyncRead + Unpin + ?Sized),
        deadline: RetryDeadline,
    ) -> Result<StoredPayload, PutError> {
        self.bus.put_payload(from, deadline).await
    }

    /// A payload that lies in the store, checked by size and SHA-256, piece by piece: what was written counts only when this
    /// returns without an error.
    ///
    /// # Errors
    /// [`GetError`]: missing, damaged, no answer, or it cannot be written.
    ///
    /// # Cancel safety
    /// Safe for the store; what was written by then is a part of the payload.
    pub async fn get_payload(
        &self,
        at: &PayloadRef,
        into: &mut (impl AsyncWrite + Unpin + ?Sized),
    ) -> Result<(), GetError> {
        self.bus.get_payload(at, into).await
    }

    /// A result that lies in the store, checked by size and SHA-256. What is no JSON was written as bytes.
    ///
    /// # Errors
    /// [`GetError`]: missing, damaged, larger than any result may be, or no answer.
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn get_result(&self, at: &PayloadRef) -> Result<TaskResult, GetError> {
        let bytes = self.bus.get_payload_bytes(at, RESULT_BYTES_MAX).await?;
        if let Ok(value) = serde_json::from_slice::<&RawValue>(&bytes) {
            return Ok(TaskResult { value: value.to_owned(), is_bytes: false });
        }
        let value = bytes_to_json(&bytes).map_err(|error| GetError::Damaged {
            object: at.object.clone(),
            reason: format!("cannot be shown: {error}"),
        })?;
        Ok(TaskResult { value, is_bytes: true })
    }

    /// The end with its result, fetched where it lies in the store. Waits for a server that does not answer.
    pub(super) async fn fetch(&self, end: KnownEnd) -> TaskEnd {
        let at = match end {
            KnownEnd::Inline(end) => return end,
            KnownEnd::Stored(at) => at,
        };
        loop {
            match self.get_result(&at).await {
                Ok(value) => return Ok(value),
                Err(GetError::NoAnswer { reason, .. }) => {
                    tracing::debug!(object = %at.object, reason, "a result cannot be fetched yet, will try again");
                    tokio::time::sleep(FETCH_RETRY_DELAY).await;
                }
                Err(error) => return Err(NoResult::Lost(error.to_string())),
            }
        }
    }

    /// Puts the arguments of a task into the store, unless they are there already.
    pub(super) async fn store_arguments(
        &self,
        task: &NewTask,
        deadline: RetryDeadline,
    ) -> Result<StoredPayload, SubmitError> {
        let stored = match &task.stored {
            Some(stored) => stored.clone(),
            None => self.bus.put_payload(&mut &*task.payload, deadline).await?,
        };
        match task.at_ms {
            Some(at_ms) if at_ms > stored.until_ms => {
                Err(SubmitError::StartsAfterPayload { at_ms, until_ms: stored.until_ms })
            }
            _ => Ok(stored),
        }
    }
}

impl NewTask {
    /// Whether its arguments go to the store of payloads instead of its message.
    pub(super) fn has_stored_arguments(&self) -> bool {
        self.stored.is_some() || self.batch.is_none() && self.payload.len() > CLAIM_CHECK_BYTES
    }
}

/// The earlier of the task's own expiry and the end of its payload, as a header. An expiry that cannot be parsed stays as it
/// is: the worker dead-letters the task with that reason.
pub(super) fn expires(given: Option<&str>, stored: Option<&StoredPayload>) -> Option<String> {
    let until = stored.and_then(|stored| jiff::Timestamp::from_millisecond(stored.until_ms).ok());
    match (given, until) {
        (Some(given), Some(until))
            if parse_expiry(given).is_ok_and(|at| at.is_none_or(|ms| ms > until.as_millisecond())) =>
        {
            Some(until.to_string())
        }
        (Some(given), _) => Some(given.to_owned()),
        (None, until) => until.map(|until| until.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: Option<&str>, until_ms: Option<i64>, expected: Option<&str>) {
        let at = PayloadRef { object: "o".into(), size: 1, sha256: String::new() };
        let stored = until_ms.map(|until_ms| StoredPayload { at, until_ms });
        assert_eq!(expires(given, stored.as_ref()).as_deref(), expected, "{given:?} {until_ms:?}");
    }

    #[test]
    fn the_earlier_end_counts() {
        check(None, None, None);
        check(Some("soon"), Some(0), Some("soon"));
        check(None, Some(0), Some("1970-01-01T00:00:00Z"));
        check(Some("2030-01-01T00:00:00Z"), Some(0), Some("1970-01-01T00:00:00Z"));
        check(Some("1960-01-01T00:00:00Z"), Some(0), Some("1960-01-01T00:00:00Z"));
        check(Some("9999-12-31T23:59:59Z"), Some(0), Some("1970-01-01T00:00:00Z"));
        check(Some("2030-01-01T00:00:00Z"), None, Some("2030-01-01T00:00:00Z"));
    }
}

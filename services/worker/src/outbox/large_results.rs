//! Large results go to the store of payloads before the outcome that refers to them.

use millpond::bus::Bus;
use millpond::bus::publish::payloads::PutError;
use millpond::bus::publish::{PublishError, RetryDeadline};
use millpond::failpoint;
use millpond::limits::CLAIM_CHECK_BYTES;
use millpond::outcome::{Outcome, StoredResult};
use millpond::payload::json_to_bytes;
use serde_json::value::RawValue;

/// Whether a result goes to the store of payloads.
pub(crate) fn is_large(result: &RawValue) -> bool {
    result.get().len() > CLAIM_CHECK_BYTES
}

/// Stores the results of an outcome that `is_stored` names, each as an object of its own, and puts references in their place. When
/// the attempt is settled again after a death, others are made: those of the first go with the age of the bucket.
///
/// # Errors
/// [`PublishError`] when the server refuses one for good.
pub(super) async fn store_large_results(
    bus: &Bus,
    outcome: &mut Outcome,
    is_stored: impl Fn(u32, &RawValue) -> bool,
) -> Result<(), PublishError> {
    let first = outcome.first_item();
    for (item, result) in (first..).zip(&mut outcome.results).filter(|(item, result)| is_stored(*item, result)) {
        // Bytes lie there as they are: whoever fetches them finds that they are no JSON.
        let bytes = outcome.bytes.binary_search(&item).ok().and_then(|_| json_to_bytes(result));
        let mut bytes = bytes.as_deref().unwrap_or(result.get().as_bytes());
        let stored = bus.put_payload(&mut bytes, RetryDeadline::Unlimited).await.map_err(PutError::into_publish)?;
        failpoint::hit("settle.large_result_stored");
        outcome.refs.push(StoredResult { item, at: stored.at });
        *result = RawValue::NULL.to_owned();
    }
    Ok(())
}

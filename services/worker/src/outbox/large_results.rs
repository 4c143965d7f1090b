//! Large results go to the store of payloads before the outcome that refers to them.

use millpond::bus::Bus;
use millpond::bus::publish::payloads::PutError;
use millpond::bus::publish::{PublishError, RetryDeadline};
use millpond::failpoint;
use millpond::limits::CLAIM_CHECK_BYTES;
use millpond::outcome::{Outcome, StoredResult};
use serde_json::value::RawValue;

/// Whether a result goes to the store of payloads.
pub(crate) fn is_large(result: &RawValue) -> bool {
    result.get().len() > CLAIM_CHECK_BYTES
}

/// Stores the large results of an outcome, each as an object of its own, and puts references in their place. When the
/// attempt is settled again after a death, others are made: those of the first go with the age of the bucket.
///
/// # Errors
/// [`PublishError`] when the server refuses one for good.
pub(super) async fn store_large_results(bus: &Bus, outcome: &mut Outcome) -> Result<(), PublishError> {
    let first = outcome.first_item();
    for (item, result) in (first..).zip(&mut outcome.results).filter(|(_, result)| is_large(result)) {
        let stored = bus.put_payload(&mut result.get().as_bytes(), RetryDeadline::Unlimited).await;
        let stored = stored.map_err(|error| match error {
            PutError::Store(error) => error,
            // Memory can always be read.
            PutError::Read(error) => {
                PublishError::Refused { subject: "a result".to_owned(), reason: error.to_string() }
            }
        })?;
        failpoint::hit("settle.large_result_stored");
        outcome.refs.push(StoredResult { item, at: stored.at });
        *result = RawValue::NULL.to_owned();
    }
    Ok(())
}

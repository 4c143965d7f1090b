//! Batches: many JSON values in one array, scanned rather than parsed. No I/O.

use serde_json::value::RawValue;

use crate::payload::without_mark;

/// Why a batch cannot be taken apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The payload is not a JSON array.
    #[error("a batch is a JSON array of argument values: {reason}")]
    NotAnArray {
        /// What the parser says, with the place.
        reason: String,
    },
    /// The header and the payload disagree.
    #[error("header Millpond-Batch says {expected} values, the array has {found}")]
    Count {
        /// The number in the header.
        expected: u32,
        /// The number in the array.
        found: usize,
    },
}

/// The values of a batch, in order, borrowed from the payload.
///
/// # Errors
/// [`BatchError`] when it is not an array of `expected` values.
pub fn split(payload: &[u8], expected: u32) -> Result<Vec<&RawValue>, BatchError> {
    let values: Vec<&RawValue> =
        serde_json::from_slice(without_mark(payload)).map_err(|e| BatchError::NotAnArray { reason: e.to_string() })?;
    if values.len() == expected as usize {
        Ok(values)
    } else {
        Err(BatchError::Count { expected, found: values.len() })
    }
}

/// The payload of a batch.
#[must_use]
pub fn join<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut payload = Vec::new();
    append(&mut payload, values);
    payload
}

/// Appends the values as an array.
pub fn append<'a>(payload: &mut Vec<u8>, values: impl IntoIterator<Item = &'a [u8]>) {
    payload.push(b'[');
    for (place, value) in values.into_iter().enumerate() {
        if place > 0 {
            payload.push(b',');
        }
        payload.extend_from_slice(value);
    }
    payload.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_does_not_match() {
        assert_eq!(split(b"[1,2]", 3).unwrap_err(), BatchError::Count { expected: 3, found: 2 });
        assert!(matches!(split(b"{}", 1), Err(BatchError::NotAnArray { .. })));
    }

    proptest! {
        #[test]
        fn what_is_joined_splits_again(texts in prop::collection::vec(".*", 1..20)) {
            let values: Vec<String> = texts.iter().map(|t| serde_json::to_string(t).unwrap()).collect();
            let payload = join(values.iter().map(String::as_bytes));
            let found = split(&payload, u32::try_from(values.len()).unwrap()).unwrap();
            let found: Vec<&str> = found.iter().map(|v| v.get()).collect();
            prop_assert_eq!(found, values);
        }
    }
}

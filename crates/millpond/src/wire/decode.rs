//! The one decoder of whatever comes over the wire as JSON, outcomes, evidence, records and requests: of a bounded size, nothing
//! behind it, straight into a type, whose numbers are within their bounds. A field that is not known is ignored.

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::limits::SERVER_PAYLOAD_BYTES_MAX;
use crate::wire::bounds::Bounded;

/// Why bytes are not the record or request that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There are more bytes than any record or request has.
    #[error("{bytes} bytes, at most {SERVER_PAYLOAD_BYTES_MAX} are read")]
    TooLarge {
        /// How many there are.
        bytes: usize,
    },
    /// The JSON is of another form.
    #[error("{reason}")]
    Malformed {
        /// What the parser says, with line and column.
        reason: String,
    },
    /// A number is out of its bounds, or parts do not fit together.
    #[error("{reason}")]
    OutOfBounds {
        /// What does not fit.
        reason: String,
    },
}

/// Any JSON: what it means is between those who wrote it and those who read it.
impl Bounded for Box<RawValue> {}

/// Reads one value.
///
/// # Errors
/// [`DecodeError`].
pub fn decode<T: DeserializeOwned + Bounded>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > SERVER_PAYLOAD_BYTES_MAX {
        return Err(DecodeError::TooLarge { bytes: bytes.len() });
    }
    let value: T = serde_json::from_slice(bytes).map_err(|e| DecodeError::Malformed { reason: e.to_string() })?;
    value.check().map_err(|reason| DecodeError::OutOfBounds { reason })?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Bounded for u32 {
        fn check(&self) -> Result<(), String> {
            (*self < 100).then_some(()).ok_or_else(|| "too many".to_owned())
        }
    }

    #[test]
    fn only_one_whole_value_is_read() {
        assert_eq!(decode::<u32>(b"7"), Ok(7));
        assert_eq!(decode::<u32>(b"700"), Err(DecodeError::OutOfBounds { reason: "too many".into() }));
        for bad in [&b""[..], b"7 7", b"\"7\"", b"{"] {
            assert!(matches!(decode::<u32>(bad), Err(DecodeError::Malformed { .. })), "{bad:?}");
        }
        let long = vec![b' '; SERVER_PAYLOAD_BYTES_MAX + 1];
        assert_eq!(decode::<u32>(&long), Err(DecodeError::TooLarge { bytes: long.len() }));
    }
}

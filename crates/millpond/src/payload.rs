//! References to large payloads in the store (the claim check): one travels in place of the payload. No I/O, no clock.

use serde::{Deserialize, Serialize};

use crate::limits::TASK_ID_BYTES_MAX;

/// An object of the bucket `millpond_payloads` and what it must be; in a task's header `Millpond-Ref`, and in an outcome.
///
/// ```
/// let text = r#"{"object":"k5x","size":3,"sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}"#;
/// let at = millpond::payload::PayloadRef::parse(text).unwrap();
/// assert_eq!((at.size, at.to_json().as_str()), (3, text));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PayloadRef {
    /// Name of the object, 1 to 256 bytes.
    pub object: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256, 64 hex digits in lower case.
    pub sha256: String,
}

impl PayloadRef {
    /// Parses the value of a `Millpond-Ref`.
    ///
    /// # Errors
    /// A text that says what is wrong with it, and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        const SHAPE: &str = r#"it must be {"object":"NAME","size":BYTES,"sha256":"64 HEX DIGITS"}"#;
        let at: Self = serde_json::from_str(text).map_err(|e| format!("{e}; {SHAPE}"))?;
        if at.object.is_empty() || at.object.len() > TASK_ID_BYTES_MAX {
            return Err(format!("the object's name must have 1 to {TASK_ID_BYTES_MAX} bytes; {SHAPE}"));
        }
        if at.sha256.len() != 64 || !at.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(format!("sha256 must be 64 hex digits in lower case; {SHAPE}"));
        }
        Ok(at)
    }

    /// The value of a `Millpond-Ref`: one line.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A payload in the store, and how long it stays there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPayload {
    /// Where it lies.
    pub at: PayloadRef,
    /// A task that needs it must have started by then, Unix time in milliseconds.
    pub until_ms: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_references_are_refused() {
        let sha = "0".repeat(64);
        for (text, expected) in [
            ("x".to_owned(), "it must be"),
            (format!(r#"{{"object":"","size":1,"sha256":"{sha}"}}"#), "1 to 256 bytes"),
            (format!(r#"{{"object":"a","size":-1,"sha256":"{sha}"}}"#), "it must be"),
            (r#"{"object":"a","size":1,"sha256":"00"}"#.to_owned(), "64 hex digits"),
            (format!(r#"{{"object":"a","size":1,"sha256":"{}"}}"#, "A".repeat(64)), "lower case"),
        ] {
            let error = PayloadRef::parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}

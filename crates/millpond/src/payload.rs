//! References to large payloads in the store (the claim check): one travels in place of the payload. No I/O, no clock.

use std::fmt::Write as _;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::limits::TASK_ID_BYTES_MAX;
use crate::wire::bounds::{self, Bounded};
use crate::wire::decode::decode;

/// Bytes of a [`digest`].
const DIGEST_BYTES: usize = 16;

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
    /// The [`digest`] of the payload itself.
    #[must_use]
    pub fn digest(&self) -> String {
        self.sha256.chars().take(2 * DIGEST_BYTES).collect()
    }

    /// Parses the value of a `Millpond-Ref`.
    ///
    /// # Errors
    /// A text that says what is wrong with it, and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        const SHAPE: &str = r#"it must be {"object":"NAME","size":BYTES,"sha256":"64 HEX DIGITS"}"#;
        decode(text.as_bytes()).map_err(|e| format!("{e}; {SHAPE}"))
    }

    /// The value of a `Millpond-Ref`: one line.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Bounded for PayloadRef {
    fn check(&self) -> Result<(), String> {
        if self.object.is_empty() || self.object.len() > TASK_ID_BYTES_MAX {
            return Err(format!("the object's name must have 1 to {TASK_ID_BYTES_MAX} bytes"));
        }
        if self.sha256.len() != 64 || !self.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err("sha256 must be 64 hex digits in lower case".to_owned());
        }
        bounds::count("size", self.size)
    }
}

/// What tells one task's arguments from another's under one id: the first 16 bytes of their SHA-256, in hex.
///
/// ```
/// assert_eq!(millpond::payload::digest(b"abc"), "ba7816bf8f01cfea414140de5dae2223");
/// ```
#[must_use]
pub fn digest(arguments: &[u8]) -> String {
    Sha256::digest(arguments).iter().take(DIGEST_BYTES).fold(
        String::with_capacity(2 * DIGEST_BYTES),
        |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        },
    )
}

/// Bytes that are no JSON, as a value of JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BytesAsJson {
    base64: String,
}

/// A result that is bytes and no JSON, as it is shown: `{"base64":"…"}`. Whoever carries it marks it, because a handler may return
/// the same value as JSON.
///
/// # Errors
/// None that is known: the value is always JSON.
pub fn bytes_to_json(bytes: &[u8]) -> serde_json::Result<Box<RawValue>> {
    serde_json::value::to_raw_value(&BytesAsJson { base64: BASE64.encode(bytes) })
}

/// The bytes of a result that is marked as such; none when it is of another form.
#[must_use]
pub fn json_to_bytes(value: &RawValue) -> Option<Vec<u8>> {
    let held: BytesAsJson = serde_json::from_str(value.get()).ok()?;
    BASE64.decode(held.base64.as_bytes()).ok()
}

/// Text without the byte order mark that some programs write at its start; it belongs to no value.
#[must_use]
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
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
    fn bytes_are_json_that_reads_back() {
        for bytes in [&b""[..], b"caf\xe9\n", b"\x89PNG\r\n\x1a\n"] {
            assert_eq!(json_to_bytes(&bytes_to_json(bytes).unwrap()).unwrap(), bytes);
        }
        assert_eq!(bytes_to_json(b"\xe9").unwrap().get(), r#"{"base64":"6Q=="}"#);
    }

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

//! How serde is helped with [`RawValue`], JSON as it came.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error};
use serde_json::Value;
use serde_json::value::RawValue;

/// A value that is there, null included. Without this `null` would read as none; needs `#[serde(default)]` beside it.
pub(crate) fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(from).map(Some)
}

/// A value as it is shown: as JSON, or as text where common parsers would refuse it (a lone surrogate, a number out of range, deep
/// nesting), and with it the whole page.
#[must_use]
pub fn shown(value: &RawValue) -> (Option<Box<RawValue>>, Option<String>) {
    match serde_json::from_str::<Value>(value.get()) {
        Ok(_) => (Some(value.to_owned()), None),
        Err(_) => (None, Some(value.get().to_owned())),
    }
}

/// Reads one object as two structs with different fields: `#[serde(flatten)]` writes a `RawValue`, and cannot read one.
pub(crate) fn halves<'de, D, A, B>(from: D) -> Result<(A, B), D::Error>
where
    D: Deserializer<'de>,
    A: DeserializeOwned,
    B: DeserializeOwned,
{
    let object = Box::<RawValue>::deserialize(from)?;
    let first = serde_json::from_str(object.get()).map_err(Error::custom)?;
    Ok((first, serde_json::from_str(object.get()).map_err(Error::custom)?))
}

/// Whether a value is the same JSON text when it is written again; for tests.
#[cfg(test)]
pub(crate) fn round_trips<T: serde::Serialize + DeserializeOwned>(text: &str) {
    let read: T = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
}

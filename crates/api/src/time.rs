//! Times as callers give them.

use millpond::wire::bounds::parse_time;
use serde::{Deserialize, Deserializer, de};

const SHAPE: &str = "a time must be RFC 3339, such as 2030-01-31T12:00:00Z, or Unix time in milliseconds";

#[derive(Deserialize)]
#[serde(untagged, expecting = "a time must be RFC 3339, such as 2030-01-31T12:00:00Z, or Unix time in milliseconds")]
enum Given {
    Ms(i64),
    Text(String),
}

/// Reads Unix time in milliseconds, a number or its digits, or an RFC 3339 time; as Unix time in milliseconds.
pub(crate) fn time_ms<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    match Option::<Given>::deserialize(from)? {
        None => Ok(None),
        Some(Given::Ms(ms)) => Ok(Some(ms)),
        Some(Given::Text(text)) => {
            let given = text.parse().or_else(|_| parse_time(&text));
            given.map(Some).map_err(|wrong| de::Error::custom(format!("{SHAPE}, not {text:?}: {wrong}")))
        }
    }
}

//! Ids as callers give them.

use millpond::task::check_id;
use serde::{Deserialize, Deserializer, de};

/// Reads the id of a task or of an item: one that cannot be is a mistake, not a task that is not there.
pub(crate) fn task_id<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let id = String::deserialize(from)?;
    check_id(&id).map_err(de::Error::custom)?;
    Ok(id)
}

//! What goes wrong in the store. A caller tries [`StoreError::Database`] again; the others say that what is stored is not
//! what this program writes.

/// Why the store did not do what was requested.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The database refused a statement, or does not answer.
    #[error("{0}")]
    Database(#[from] sqlx::Error),
    /// A column is missing, or holds something of another type.
    #[error("column {column} of the store holds {found}, not {wanted}")]
    Column {
        /// Its name.
        column: &'static str,
        /// What this program writes there.
        wanted: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A column holds text that is not the JSON it should be.
    #[error("column {column} of the store holds no valid JSON: {reason}")]
    Json {
        /// Its name.
        column: &'static str,
        /// What is wrong with it.
        reason: serde_json::Error,
    },
}

/// What the store answers.
pub(crate) type Result<T> = std::result::Result<T, StoreError>;

/// A value as the JSON of a column.
pub(super) fn to_json(column: &'static str, value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|reason| StoreError::Json { column, reason })
}

/// A count as a column holds it. No real one is larger; one that somebody made up must not stop the store.
pub(super) fn saturated(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

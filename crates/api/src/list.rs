//! Lists and their pages.

use serde::{Deserialize, Serialize, de};
use utoipa::{IntoParams, ToSchema};

/// Rows of one page at the most.
pub const PAGE_ROWS_MAX: u32 = 1000;
/// Rows of one page where the caller does not say.
pub const PAGE_ROWS_DEFAULT: u32 = 100;

/// One page of a list, or a whole list that has no pages.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    /// The newest first, where nothing else is said.
    pub rows: Vec<T>,
    /// Give it back as `after` for the next page; null at the end.
    pub next: Option<String>,
}

impl<T> List<T> {
    /// A list that has no pages.
    #[must_use]
    pub fn whole(rows: Vec<T>) -> Self {
        Self { rows, next: None }
    }
}

/// Which page of a list.
#[derive(Debug, Clone, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// Rows at the most.
    #[serde(default = "limit_default", deserialize_with = "limit")]
    #[param(example = 100, minimum = 1, maximum = 1000, default = 100, required = false)]
    pub limit: u32,
    /// The `next` of the page before, unchanged.
    #[param(nullable = false, min_length = 1)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

impl Default for PageQuery {
    fn default() -> Self {
        Self { limit: PAGE_ROWS_DEFAULT, after: None }
    }
}

fn limit_default() -> u32 {
    PAGE_ROWS_DEFAULT
}

fn limit<'de, D: de::Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let limit = String::deserialize(from)?.parse().ok().filter(|n| (1..=PAGE_ROWS_MAX).contains(n));
    limit.ok_or_else(|| de::Error::custom(format!("limit must be a number from 1 to {PAGE_ROWS_MAX}")))
}

//! What every answer that is no success looks like.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What is wrong, and what would be right.
    pub error: String,
    /// Of the producer's jobs: how many values from the start of the input are stored without a gap; they run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub stored: Option<u64>,
    /// The job that those belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub job: Option<String>,
}

impl ErrorBody {
    /// An error that is not about a job.
    pub fn new(error: impl Into<String>) -> Self {
        Self { error: error.into(), stored: None, job: None }
    }
}

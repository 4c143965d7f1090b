//! Errors as every caller gets them: a status, and `{"error": text}`.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// Why a request was refused.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Refusal {
    /// What is wrong, and what would be right.
    error: String,
    #[serde(skip)]
    #[schema(ignore)]
    status: StatusCode,
    /// When the caller may come again, in seconds.
    #[serde(skip)]
    #[schema(ignore)]
    retry_after_s: Option<u64>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { error: error.into(), status, retry_after_s: None }
    }

    pub(super) fn bad(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    pub(super) fn forbidden(error: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error)
    }

    /// Too much at once: come again after this many seconds.
    pub(super) fn busy(retry_after_s: u64, error: impl Into<String>) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::new(StatusCode::TOO_MANY_REQUESTS, error) }
    }

    /// The store did not answer; the log has the reason.
    pub(super) fn of_store(fault: &dyn std::fmt::Display) -> Self {
        tracing::error!(error = %fault, "the store cannot be read");
        let text = "the store cannot be read; the collector's log has the reason";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, retry_after_s) = (self.status, self.retry_after_s);
        let mut answer = (status, Json(self)).into_response();
        if let Some(seconds) = retry_after_s {
            answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        answer
    }
}

//! Errors as every caller of a service gets them: a status, and [`ErrorBody`] as JSON.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use millpond_api::error::ErrorBody;

/// An answer that is no success.
#[derive(Debug)]
pub struct ErrorAnswer {
    status: StatusCode,
    body: ErrorBody,
    /// When the caller may come again, in seconds.
    retry_after_s: Option<u64>,
}

impl ErrorAnswer {
    /// This status, and what is wrong.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, body: ErrorBody::new(error), retry_after_s: None }
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What is wrong, for a person.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.body.error
    }

    /// 400: the request does not fit.
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 403: the caller may not do this.
    pub fn forbidden(error: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error)
    }

    /// 404: there is no such thing.
    pub fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    /// 409: it cannot be done as things stand.
    pub fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }

    /// 429: too much at once; the caller may come again after this many seconds.
    pub fn busy(retry_after_s: u64, error: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, error).retry_after(retry_after_s)
    }

    /// 502: NATS does not answer, or refuses.
    pub fn bad_gateway(fault: impl ToString) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, fault.to_string())
    }

    /// 503: it cannot be done now.
    pub fn unavailable(error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error)
    }

    /// The caller may come again after this many seconds.
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// How much of a job was stored before it failed.
    #[must_use]
    pub fn of_job(mut self, stored: u64, job: Option<String>) -> Self {
        (self.body.stored, self.body.job) = (Some(stored), job);
        self
    }
}

impl IntoResponse for ErrorAnswer {
    fn into_response(self) -> Response {
        let mut answer = (self.status, Json(self.body)).into_response();
        if let Some(seconds) = self.retry_after_s {
            answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        answer
    }
}

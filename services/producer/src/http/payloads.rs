//! `PUT /v1/payloads`: bytes of any kind and size into the store of payloads, never whole in memory. The answer is the reference by
//! which a task that is published over NATS takes them as its arguments.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use data_encoding::HEXLOWER;
use futures_util::TryStreamExt;
use millpond::bus::publish::RetryDeadline;
use millpond::bus::publish::payloads::PutError;
use millpond::client::SubmitError;
use millpond::payload::StoredPayload;
use millpond::wire::headers::HEADER_REF;
use millpond_api::error::ErrorBody;
use millpond_api::publish::PayloadStored;
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::representation::{Representation, wanted_sha256};
use millpond_service::request::{NoQuery, PathAndQuery, media_type};
use tokio_util::io::StreamReader;

use super::tasks::STORE_WITHIN;
use super::upload::unreadable;
use super::{App, submit_error, unavailable};

/// Store a large payload.
///
/// The body is any bytes, of any size. `ref` of the answer, and its header `Millpond-Ref`, is the header of a task that is published
/// over NATS with an empty payload and has these bytes as its arguments; it expires by `expires` at the latest. A task that is
/// published over HTTP needs none: its body may be as large.
#[utoipa::path(put, path = "/v1/payloads", tag = "publish", security(("bearer" = [])),
    params(
        ("Repr-Digest" = inline(Option<String>), Header, nullable = false, description = "The SHA-256 that the body must have (RFC 9530); `Content-Digest` means the same here", example = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:", pattern = "^sha-256=:[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=:$"),
    ),
    request_body(content = String, content_type = "application/octet-stream", description = "The bytes"),
    responses(
        (status = 201, description = "It is stored, under a new name", body = PayloadStored,
            headers(("Millpond-Ref" = String, description = "`ref` of the body"), ("ETag" = String, description = "Its SHA-256 in hex"), ("Repr-Digest" = String, description = "The same, as RFC 9530 has it")),
            example = json!({"ref": {"object": "k5x2mzxw6ytboi3q", "size": 5_242_880, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}, "expires": "2100-01-31T12:00:00Z"})),
        (status = 400, description = "The body is not what its checksum says, or a part of something", body = ErrorBody, example = json!({"error": "the body has SHA-256 e3b0… instead of 9f86…: send it again"})),
        (status = 401, description = "No token, or another", body = ErrorBody, example = json!({"error": "send the header `Authorization: Bearer TOKEN` with the producer's token (MILLPOND_TOKEN)"})),
        (status = 408, description = "The body brought nothing for too long", body = ErrorBody, example = json!({"error": "the body brought nothing for 1m"})),
        (status = 415, description = "A form, or a body with a Content-Encoding", body = ErrorBody, example = json!({"error": "a payload is the bytes themselves, not multipart/form-data"})),
        (status = 429, description = "Too many wrong tokens from this address; `Retry-After` says when to come again", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "10 wrong tokens have come from this address within a minute: come again"})),
        (status = 503, description = "NATS does not answer; come again", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")), example = json!({"error": "NATS does not answer: come again"})),
    ))]
pub(super) async fn put(
    State(app): State<Arc<App>>,
    PathAndQuery((), NoQuery {}): PathAndQuery<(), NoQuery>,
    request: Request,
) -> Result<Response, ErrorAnswer> {
    let (parts, body) = request.into_parts();
    if parts.headers.contains_key(header::CONTENT_RANGE) {
        return Err(ErrorAnswer::bad_request("a payload is sent whole: Content-Range is not understood here"));
    }
    if let Some(form) = media_type(&parts.headers).filter(|given| given.starts_with("multipart/")) {
        let text = format!("a payload is the bytes themselves, not {form}");
        return Err(ErrorAnswer::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    let wanted = wanted_sha256(&parts.headers)?;
    let mut from = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    let stored = match app.client.put_payload(&mut from, RetryDeadline::Within(STORE_WITHIN)).await {
        Ok(stored) => stored,
        Err(PutError::Read(_)) => return Err(unreadable()),
        Err(refused) => return Err(submit_error(&SubmitError::Payload(refused))),
    };
    answer(stored, wanted)
}

fn answer(StoredPayload { at, until_ms }: StoredPayload, wanted: Option<[u8; 32]>) -> Result<Response, ErrorAnswer> {
    let sha256: Option<[u8; 32]> = HEXLOWER.decode(at.sha256.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    let (Some(sha256), Ok(expires)) = (sha256, jiff::Timestamp::from_millisecond(until_ms)) else {
        return Err(unavailable("the payload was stored, and its reference cannot be written: come again"));
    };
    if let Some(wanted) = wanted.filter(|wanted| *wanted != sha256) {
        let text = format!("the body has SHA-256 {} instead of {}: send it again", at.sha256, HEXLOWER.encode(&wanted));
        return Err(ErrorAnswer::bad_request(text));
    }
    let known = Representation { size: at.size, sha256 };
    let headers = [(HEADER_REF, at.to_json()), ("ETag", known.etag()), ("Repr-Digest", known.digest())];
    let body = PayloadStored { at, expires: expires.to_string() };
    Ok((StatusCode::CREATED, headers, Json(body)).into_response())
}

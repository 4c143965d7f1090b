//! Requests, parsed and checked: [`PathAndQuery`] reads path and query, [`Paged`] a filter and a page, [`JsonBody`] the
//! body. A field that is not known is refused, so that a mistyped filter does not mean all; every refusal is JSON.

use std::error::Error;

use axum::body::Bytes;
use axum::extract::path::ErrorKind;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody, PathRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use millpond::payload::without_mark;
use millpond::visible::without_type_names;
use millpond::wire::subject::check_token;
use millpond_api::list::PageQuery;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error_answer::ErrorAnswer;

/// Why a body was not read, where the connection or the client is to blame.
pub const BROKEN_OFF: &str = "it broke off, or its chunks are not as HTTP/1.1 has them";
/// Bytes of a JSON body at the most: the bound of axum's `Bytes`, which the tests compare.
const JSON_BODY_BYTES_MAX: usize = 2 * 1024 * 1024;
/// What the parsers of queries say, and what a caller reads.
const WORDS: [(&str, &str); 7] = [
    ("unknown field", "there is no parameter"),
    ("duplicate field", "there is more than one parameter"),
    ("missing field", "it needs the parameter"),
    ("unknown variant", "there is no value"),
    ("invalid digit found in string", "it must be a whole number"),
    ("cannot parse integer from empty string", "it must be a whole number"),
    ("number too large to fit in target type", "the number is too large"),
];

/// Path and query of a request.
pub struct PathAndQuery<P, Q>(pub P, pub Q);

impl<S: Send + Sync, P: DeserializeOwned + Send, Q: DeserializeOwned> FromRequestParts<S> for PathAndQuery<P, Q> {
    type Rejection = ErrorAnswer;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ErrorAnswer> {
        let path = path(parts, state).await?;
        Ok(Self(path, query(parts.uri.query().unwrap_or_default())?))
    }
}

/// A query that has no fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoQuery {}

/// Path, filter and page of a list.
pub struct Paged<P, F>(pub P, pub F, pub PageQuery);

impl<S: Send + Sync, P: DeserializeOwned + Send, F: DeserializeOwned> FromRequestParts<S> for Paged<P, F> {
    type Rejection = ErrorAnswer;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ErrorAnswer> {
        let path = path(parts, state).await?;
        let (filter, page) = filter_and_page(parts.uri.query().unwrap_or_default())?;
        Ok(Self(path, filter, page))
    }
}

/// The two halves of the query of a list.
fn filter_and_page<F: DeserializeOwned>(encoded: &str) -> Result<(F, PageQuery), ErrorAnswer> {
    let of_page = |field: &&str| ["limit=", "after="].iter().any(|name| field.starts_with(name));
    let (page, filter): (Vec<&str>, Vec<&str>) = encoded.split('&').partition(of_page);
    Ok((query(&filter.join("&"))?, query(&page.join("&"))?))
}

/// Where a page starts, as `parse` reads its cursor.
///
/// # Errors
/// When `parse` reads none.
pub fn cursor<T>(after: Option<&str>, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, ErrorAnswer> {
    let Some(text) = after else { return Ok(None) };
    let wrong = || ErrorAnswer::bad_request("after must be the `next` of the answer before, unchanged");
    parse(text).map(Some).ok_or_else(wrong)
}

/// No name and no id has a NUL character, and not every store takes one.
fn without_nul<'u>(what: &str, encoded: &'u str) -> Result<&'u str, ErrorAnswer> {
    let wrong = || ErrorAnswer::bad_request(format!("the {what} cannot be read: it has a NUL character"));
    if encoded.contains("%00") { Err(wrong()) } else { Ok(encoded) }
}

async fn path<S: Send + Sync, P: DeserializeOwned + Send>(parts: &mut Parts, state: &S) -> Result<P, ErrorAnswer> {
    without_nul("path", parts.uri.path())?;
    let path: Result<Path<P>, PathRejection> = Path::from_request_parts(parts, state).await;
    let Path(path) = path.map_err(|wrong| {
        let why = match &wrong {
            PathRejection::FailedToDeserializePathParams(of) => match of.kind() {
                ErrorKind::InvalidUtf8InPathParam { key } => format!("its {key} is not UTF-8"),
                kind => kind.to_string(),
            },
            _ => "it has not as many parts as this path needs".to_owned(),
        };
        ErrorAnswer::bad_request(format!("the path cannot be read: {why}"))
    })?;
    Ok(path)
}

fn query<Q: DeserializeOwned>(encoded: &str) -> Result<Q, ErrorAnswer> {
    let wrong = |why: String| ErrorAnswer::bad_request(format!("the query cannot be read: {why}"));
    let uri = Uri::try_from(format!("/?{}", without_nul("query", encoded)?)).map_err(|why| wrong(why.to_string()))?;
    // The rejection's own words are about deserializing; what it comes from names the parameter.
    let why = |of: &dyn Error| of.source().map_or_else(|| of.to_string(), ToString::to_string);
    let Query(query) = Query::try_from_uri(&uri).map_err(|rejection| wrong(in_words(&why(&rejection))))?;
    Ok(query)
}

/// What a parser says in the words of a caller.
fn in_words(said: &str) -> String {
    let said = WORDS.iter().fold(said.to_owned(), |said, (of_parser, ours)| said.replace(of_parser, ours));
    without_type_names(&said).into_owned()
}

/// The body of a request, JSON. A request that changes something always has one: `{}` where there is nothing to say.
pub struct JsonBody<B>(pub B);

impl<S: Send + Sync, B: DeserializeOwned> FromRequest<S> for JsonBody<B> {
    type Rejection = ErrorAnswer;

    async fn from_request(request: Request, state: &S) -> Result<Self, ErrorAnswer> {
        let is_json = media_type(request.headers()).is_some_and(|given| given == "application/json");
        let body: Result<Bytes, BytesRejection> = Bytes::from_request(request, state).await;
        let body = body.map_err(|wrong| unread(&wrong))?;
        if !is_json {
            let text = "the body is JSON: send it with Content-Type: application/json";
            return Err(ErrorAnswer::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        }
        let read = serde_json::from_slice(without_mark(&body));
        let wrong = |wrong: serde_json::Error| {
            ErrorAnswer::bad_request(format!("the body cannot be read: {}", without_type_names(&wrong.to_string())))
        };
        Ok(Self(read.map_err(wrong)?))
    }
}

fn unread(wrong: &BytesRejection) -> ErrorAnswer {
    match wrong {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
            let text =
                format!("the body has more than {JSON_BODY_BYTES_MAX} bytes, which are the most that is read here");
            ErrorAnswer::new(StatusCode::PAYLOAD_TOO_LARGE, text)
        }
        _ => ErrorAnswer::bad_request(format!("the body could not be read to its end: {BROKEN_OFF}")),
    }
}

/// The media type of the body in small letters, without its parameters; none when the request names none.
#[must_use]
pub fn media_type(headers: &HeaderMap) -> Option<String> {
    let given = headers.get(header::CONTENT_TYPE)?.to_str().unwrap_or("unreadable");
    Some(given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// Checks a name in a path or a body: one token of a subject.
///
/// # Errors
/// When it is none.
pub fn check_name(what: &'static str, name: &str) -> Result<(), ErrorAnswer> {
    check_token(what, name).map_err(|wrong| ErrorAnswer::bad_request(wrong.to_string()))
}

#[cfg(test)]
mod tests {
    use millpond_api::list::PAGE_ROWS_DEFAULT;
    use millpond_api::tasks::TaskQuery;

    use super::*;

    #[test]
    fn filters_and_pages_are_told_apart_and_mistakes_are_reported() {
        let read = filter_and_page::<TaskQuery>;
        let (filter, page) = read("limit=7&job=a%20b&after=41&since=2020-01-01T00:00:00Z").unwrap();
        assert_eq!((filter.job.as_deref(), filter.since), (Some("a b"), Some(1_577_836_800_000)));
        let after = page.after.as_deref();
        assert_eq!((page.limit, cursor(after, |text| text.parse().ok()).unwrap()), (7, Some(41)));
        assert!(cursor(after, |_| None::<()>).is_err());
        let (filter, page) = read("since=-5").unwrap();
        assert_eq!((filter.job, filter.since, page.limit, page.after), (None, Some(-5), PAGE_ROWS_DEFAULT, None));
        assert!(read("").is_ok());
        for query in [
            "limit=0",
            "limit=1001",
            "limit=x",
            "limit=1&limit=2",
            "jib=a",
            "job=a&job=b",
            "since=noon",
            "since=",
            "job=%00",
            "Limit=1",
            "status=dad",
        ] {
            let refused = read(query).unwrap_err();
            let known = WORDS.iter().find(|(of_parser, _)| refused.text().contains(of_parser));
            assert!(known.is_none() && !refused.text().contains("eserialize"), "{query}: {}", refused.text());
        }
        let refused = read("limit=x").unwrap_err();
        assert_eq!(refused.text(), "the query cannot be read: limit: limit must be a number from 1 to 1000");
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_refused_with_the_bound() {
        for (bytes, fits) in [(JSON_BODY_BYTES_MAX, true), (JSON_BODY_BYTES_MAX + 1, false)] {
            let body = format!("{}7", " ".repeat(bytes - 1));
            let request =
                Request::builder().header(header::CONTENT_TYPE, "application/json").body(body.into()).unwrap();
            match JsonBody::<u8>::from_request(request, &()).await {
                Ok(JsonBody(read)) => assert!(fits && read == 7),
                Err(refused) => {
                    assert_eq!((fits, refused.status()), (false, StatusCode::PAYLOAD_TOO_LARGE));
                    assert!(refused.text().contains("2097152 bytes"), "{}", refused.text());
                }
            }
        }
    }
}

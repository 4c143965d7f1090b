//! What a request says, checked: [`Asked`] reads path and query, [`Paged`] a filter and a page, [`Said`] the body. What
//! is not known is refused, so that a mistyped filter does not mean all; every refusal is JSON.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use millpond_api::list::PageQuery;
use serde::de::DeserializeOwned;

use super::refusal::Refusal;

/// Path and query of a request.
pub(super) struct Asked<P, Q>(pub(super) P, pub(super) Q);

impl<S: Send + Sync, P: DeserializeOwned + Send, Q: DeserializeOwned> FromRequestParts<S> for Asked<P, Q> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = path(parts, state).await?;
        Ok(Self(path, query(parts.uri.query().unwrap_or_default())?))
    }
}

/// Path, filter and page of a list.
pub(super) struct Paged<P, F>(pub(super) P, pub(super) F, pub(super) PageQuery);

/// Where a page starts, as `parse` reads it.
pub(super) fn after<T>(page: &PageQuery, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Refusal> {
    let Some(text) = &page.after else { return Ok(None) };
    let wrong = || Refusal::bad("after must be the `next` of the page before, unchanged");
    parse(text).map(Some).ok_or_else(wrong)
}

impl<S: Send + Sync, P: DeserializeOwned + Send, F: DeserializeOwned> FromRequestParts<S> for Paged<P, F> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = path(parts, state).await?;
        let (filter, page) = paged(parts.uri.query().unwrap_or_default())?;
        Ok(Self(path, filter, page))
    }
}

/// The two halves of the query of a list.
fn paged<F: DeserializeOwned>(encoded: &str) -> Result<(F, PageQuery), Refusal> {
    let is_page = |said: &&str| ["limit=", "after="].iter().any(|name| said.starts_with(name));
    let (page, filter): (Vec<&str>, Vec<&str>) = encoded.split('&').partition(is_page);
    Ok((query(&filter.join("&"))?, query(&page.join("&"))?))
}

/// No name and no id has a NUL, and not every store takes one.
fn without_nul<'u>(what: &str, encoded: &'u str) -> Result<&'u str, Refusal> {
    let wrong = || Refusal::bad(format!("the {what} cannot be read: it has a NUL character"));
    if encoded.contains("%00") { Err(wrong()) } else { Ok(encoded) }
}

async fn path<S: Send + Sync, P: DeserializeOwned + Send>(parts: &mut Parts, state: &S) -> Result<P, Refusal> {
    without_nul("path", parts.uri.path())?;
    let path: Result<Path<P>, PathRejection> = Path::from_request_parts(parts, state).await;
    let Path(path) = path.map_err(|wrong| Refusal::bad(format!("the path cannot be read: {wrong}")))?;
    Ok(path)
}

fn query<Q: DeserializeOwned>(encoded: &str) -> Result<Q, Refusal> {
    let wrong = |why: &dyn std::fmt::Display| Refusal::bad(format!("the query cannot be read: {why}"));
    let uri = Uri::try_from(format!("/?{}", without_nul("query", encoded)?)).map_err(|why| wrong(&why))?;
    let Query(query) = Query::try_from_uri(&uri).map_err(|why| wrong(&why))?;
    Ok(query)
}

/// The body of a request, JSON. Where nothing is to be said it is `{}`: what changes something says so.
pub(super) struct Said<B>(pub(super) B);

impl<S: Send + Sync, B: DeserializeOwned> FromRequest<S> for Said<B> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let is_json = is_json(request.headers());
        let body: Result<Bytes, BytesRejection> = Bytes::from_request(request, state).await;
        let body = body.map_err(|wrong| Refusal::new(wrong.status(), wrong.body_text()))?;
        if !is_json {
            let text = "the body is JSON: send it with Content-Type: application/json";
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        }
        let read = serde_json::from_slice(&body);
        Ok(Self(read.map_err(|wrong| Refusal::bad(format!("the body cannot be read: {wrong}")))?))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let given = headers.get(header::CONTENT_TYPE).and_then(|given| given.to_str().ok()).unwrap_or_default();
    given.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// A time as it is asked for, as Unix time in milliseconds: so, or RFC 3339.
pub(super) fn time(text: &str) -> Result<i64, String> {
    let read = text.parse().ok().or_else(|| Some(text.parse::<jiff::Timestamp>().ok()?.as_millisecond()));
    let wanted = "a time must be RFC 3339, such as 2030-01-31T12:00:00Z, or Unix time in milliseconds";
    read.ok_or_else(|| format!("{wanted}, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use millpond_api::list::PAGE_ROWS_DEFAULT;
    use millpond_api::tasks::TaskQuery;

    use super::*;

    #[test]
    fn filters_and_pages_are_told_apart_and_mistakes_are_told() {
        let read = paged::<TaskQuery>;
        let (filter, page) = read("limit=7&job=a%20b&after=41&since=2020-01-01T00:00:00Z").unwrap();
        assert_eq!((filter.job.as_deref(), filter.since), (Some("a b"), Some(1_577_836_800_000)));
        assert_eq!((page.limit, after(&page, |text| text.parse().ok()).unwrap()), (7, Some(41)));
        assert!(after(&page, |_| None::<()>).is_err());
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
        ] {
            assert!(read(query).is_err(), "{query}");
        }
    }
}

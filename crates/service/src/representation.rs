//! Bytes of a known size and SHA-256 as an answer: whole or one range of them (RFC 9110, 14), nothing where the caller has them
//! already (RFC 9110, 13), and the checksum that the whole must have (RFC 9530). Where the bytes come from is the caller's.

use std::ops::Range;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use data_encoding::{BASE64, HEXLOWER};

use crate::error_answer::ErrorAnswer;

/// The checksum of the whole, whatever part of it an answer has.
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
/// The checksum of what a message carries; the same as [`REPR_DIGEST`] where that is the whole.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

/// What is known of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Representation {
    /// How many there are.
    pub size: u64,
    /// Their SHA-256.
    pub sha256: [u8; 32],
}

impl Representation {
    /// Its name: two with the same name have the same bytes.
    #[must_use]
    pub fn etag(&self) -> String {
        format!("\"{}\"", HEXLOWER.encode(&self.sha256))
    }

    /// Its checksum, as [`REPR_DIGEST`] has it.
    #[must_use]
    pub fn digest(&self) -> String {
        format!("sha-256=:{}:", BASE64.encode(&self.sha256))
    }

    /// The bytes that a request wants.
    ///
    /// # Errors
    /// An answer without them: 304 where the caller has them, 412 where it wants others, 416 where the range begins behind them.
    pub fn wanted(&self, method: &Method, headers: &HeaderMap) -> Result<Range<u64>, Box<Response>> {
        let etag = self.etag();
        if texts(headers, &header::IF_MATCH).next().is_some() && !is_named(headers, &header::IF_MATCH, &etag) {
            let text = format!("the result is another one than If-Match names: its ETag is {etag}");
            return Err(Box::new(ErrorAnswer::new(StatusCode::PRECONDITION_FAILED, text).into_response()));
        }
        if is_named(headers, &header::IF_NONE_MATCH, &etag) {
            return Err(Box::new(self.with_names(StatusCode::NOT_MODIFIED.into_response())));
        }
        let if_range = texts(headers, &header::IF_RANGE).next();
        let whole = 0..self.size;
        // A date cannot be compared: then all of it is sent, as for another name.
        let (true, None) = (*method == Method::GET, if_range.filter(|named| *named != etag)) else { return Ok(whole) };
        match range(headers, self.size) {
            Asked::Whole => Ok(whole),
            Asked::Part(part) => Ok(part),
            Asked::Nothing => {
                let text = format!("the range has none of the {} bytes", self.size);
                let mut answer = ErrorAnswer::new(StatusCode::RANGE_NOT_SATISFIABLE, text).into_response();
                put(answer.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{}", self.size));
                Err(Box::new(self.with_names(answer)))
            }
        }
    }

    /// The answer with these bytes of it: 200 with all, 206 with a part.
    #[must_use]
    pub fn answer(&self, part: &Range<u64>, media: &'static str, body: Body) -> Response {
        let mut answer = body.into_response();
        let headers = answer.headers_mut();
        put(headers, header::CONTENT_LENGTH, &(part.end - part.start).to_string());
        // A part of JSON is no JSON.
        let is_whole = *part == (0..self.size);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(if is_whole { media } else { BYTES }));
        if !is_whole {
            let range = format!("bytes {}-{}/{}", part.start, part.end.saturating_sub(1), self.size);
            put(headers, header::CONTENT_RANGE, &range);
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        self.with_names(answer)
    }

    fn with_names(&self, mut answer: Response) -> Response {
        let headers = answer.headers_mut();
        put(headers, header::ETAG, &self.etag());
        put(headers, REPR_DIGEST, &self.digest());
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        answer
    }
}

/// The media type of bytes of which nothing is known.
pub const BYTES: &str = "application/octet-stream";

fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The values of a header that are text, all lines of it.
fn texts<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::trim)
}

/// Whether a list of names has this one, or says that any will do.
fn is_named(headers: &HeaderMap, name: &HeaderName, etag: &str) -> bool {
    let mut names = texts(headers, name).flat_map(|line| line.split(',')).map(str::trim);
    names.any(|named| named == "*" || named.strip_prefix("W/").unwrap_or(named) == etag)
}

/// What a `Range` asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// All: it says nothing, several ranges, or something that is not understood.
    Whole,
    Part(Range<u64>),
    /// A range that begins behind the last byte.
    Nothing,
}

fn range(headers: &HeaderMap, size: u64) -> Asked {
    let mut lines = texts(headers, &header::RANGE);
    let (Some(line), None) = (lines.next(), lines.next()) else { return Asked::Whole };
    let Some(spec) = line.strip_prefix("bytes=").map(str::trim) else { return Asked::Whole };
    let Some((first, last)) = spec.split_once('-') else { return Asked::Whole };
    let is_number = |text: &str| text.is_empty() || text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(first) || !is_number(last) {
        return Asked::Whole;
    }
    // A number that is too large for any size counts as the largest.
    let number = |text: &str| (!text.is_empty()).then(|| text.parse::<u64>().unwrap_or(u64::MAX));
    let part = match (number(first), number(last)) {
        (None, None) => return Asked::Whole,
        (Some(first), Some(last)) if first > last => return Asked::Whole,
        (Some(first), last) => first..last.map_or(size, |last| last.saturating_add(1).min(size)),
        (None, Some(count)) => size.saturating_sub(count)..size,
    };
    if part.start < part.end { Asked::Part(part) } else { Asked::Nothing }
}

/// The SHA-256 that the body of a request must have, where its head names one. Checksums by other algorithms are passed over, as
/// RFC 9530 says.
///
/// # Errors
/// When the header cannot be read, or when two say different things.
pub fn wanted_sha256(headers: &HeaderMap) -> Result<Option<[u8; 32]>, ErrorAnswer> {
    let mut wanted = None;
    for name in [REPR_DIGEST, CONTENT_DIGEST] {
        for entry in texts(headers, &name).flat_map(|line| line.split(',')) {
            let Some((algorithm, value)) = entry.split_once('=') else { return Err(not_a_digest(&name)) };
            if !algorithm.trim().eq_ignore_ascii_case("sha-256") {
                continue;
            }
            let text = value.trim().strip_prefix(':').and_then(|text| text.strip_suffix(':'));
            let bytes = text.and_then(|text| BASE64.decode(text.as_bytes()).ok());
            let sha256: [u8; 32] = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| not_a_digest(&name))?;
            if wanted.replace(sha256).is_some_and(|before| before != sha256) {
                return Err(ErrorAnswer::bad_request(format!("{name}: two checksums of one body differ")));
            }
        }
    }
    Ok(wanted)
}

fn not_a_digest(name: &HeaderName) -> ErrorAnswer {
    ErrorAnswer::bad_request(format!("{name} must be sha-256=:BASE64 OF THE SHA-256 OF THE BODY:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let check = |value: &str, size, expected: Asked| {
            assert_eq!(range(&headers(&[("range", value)]), size), expected, "{value} of {size}");
        };
        check("bytes=0-4", 10, Asked::Part(0..5));
        check("bytes=4-", 10, Asked::Part(4..10));
        check("bytes=-3", 10, Asked::Part(7..10));
        check("bytes=-30", 10, Asked::Part(0..10));
        check("bytes=9-99999999999999999999999", 10, Asked::Part(9..10));
        for nothing in ["bytes=10-", "bytes=99999999999999999999999-", "bytes=-0", "bytes=10-10"] {
            check(nothing, 10, Asked::Nothing);
        }
        check("bytes=0-", 0, Asked::Nothing);
        for whole in
            ["bytes=5-4", "bytes=0-1,4-5", "lines=1-2", "bytes=a-b", "bytes=-", "bytes=+1-2", "bytes", "0-4", "bytes=1"]
        {
            check(whole, 10, Asked::Whole);
        }
    }

    #[test]
    fn conditions_come_before_ranges() {
        let known = Representation { size: 10, sha256: [7; 32] };
        let etag = known.etag();
        let status = |method: Method, lines: &[(&'static str, &str)]| match known.wanted(&method, &headers(lines)) {
            Ok(part) => (200, part.end - part.start),
            Err(answer) => (answer.status().as_u16(), 0),
        };
        let part = ("range", "bytes=2-3");
        assert_eq!(status(Method::GET, &[]), (200, 10));
        assert_eq!(status(Method::GET, &[part]), (200, 2));
        assert_eq!(status(Method::HEAD, &[part]), (200, 10));
        assert_eq!(status(Method::GET, &[part, ("if-none-match", &etag)]), (304, 0));
        assert_eq!(status(Method::GET, &[("if-none-match", &format!("\"x\", W/{etag}"))]), (304, 0));
        assert_eq!(status(Method::GET, &[("if-none-match", "*")]), (304, 0));
        assert_eq!(status(Method::GET, &[("if-none-match", "\"x\"")]), (200, 10));
        assert_eq!(status(Method::GET, &[part, ("if-match", "\"x\"")]), (412, 0));
        assert_eq!(status(Method::GET, &[part, ("if-match", &etag)]), (200, 2));
        assert_eq!(status(Method::GET, &[part, ("if-range", &etag)]), (200, 2));
        assert_eq!(status(Method::GET, &[part, ("if-range", "\"x\"")]), (200, 10));
        assert_eq!(status(Method::GET, &[("range", "bytes=10-")]), (416, 0));
        let refused = known.wanted(&Method::GET, &headers(&[("range", "bytes=10-")])).unwrap_err();
        assert_eq!(refused.headers()[header::CONTENT_RANGE], "bytes */10");
    }

    #[test]
    fn a_part_says_what_it_is_of() {
        let known = Representation { size: 10, sha256: [7; 32] };
        let whole = known.answer(&(0..10), "application/json", Body::empty());
        assert_eq!(
            (whole.status(), &whole.headers()[header::CONTENT_TYPE]),
            (StatusCode::OK, &HeaderValue::from_static("application/json"))
        );
        let part = known.answer(&(2..4), "application/json", Body::empty());
        let text = |name: HeaderName| part.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!((text(header::CONTENT_RANGE), text(header::CONTENT_LENGTH)), ("bytes 2-3/10".into(), "2".into()));
        assert_eq!((text(header::CONTENT_TYPE), text(REPR_DIGEST)), (BYTES.into(), known.digest()));
    }

    #[test]
    fn checksums_of_a_body_are_read() {
        let known = Representation { size: 10, sha256: [7; 32] };
        let read = |lines: &[(&'static str, &str)]| wanted_sha256(&headers(lines));
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[("repr-digest", "sha-512=:AAAA:")]).unwrap(), None);
        assert_eq!(read(&[("repr-digest", &format!("sha-512=:AAAA:, {}", known.digest()))]).unwrap(), Some([7; 32]));
        assert_eq!(read(&[("content-digest", &known.digest())]).unwrap(), Some([7; 32]));
        let other = Representation { sha256: [8; 32], ..known }.digest();
        assert!(read(&[("repr-digest", &known.digest()), ("content-digest", &other)]).is_err());
        for wrong in ["sha-256=abc", "sha-256=:AAAA:", "sha-256", "sha-256=:!:"] {
            assert!(read(&[("repr-digest", wrong)]).is_err(), "{wrong}");
        }
    }
}

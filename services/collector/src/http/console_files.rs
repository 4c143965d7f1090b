//! The console: files of `src/console/`, embedded when the collector is built, served under /console/ without a token:
//! they hold no data. And the headers of every answer, which keep other sites away from the answer.

use std::sync::Arc;

use axum::Router;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use data_encoding::HEXLOWER;
use millpond_service::error_answer::ErrorAnswer;
use rust_embed::{EmbeddedFile, RustEmbed};
use tower_http::compression::CompressionLayer;

use super::App;

/// What is shown where no file is named.
const INDEX: &str = "index.html";
/// Bytes of a file's SHA-256 that name its version.
const TAG_BYTES: usize = 16;

/// On every answer.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

#[derive(RustEmbed)]
#[folder = "src/console/"]
struct ConsoleFiles;

/// The console's routes. Two redirects lead there; relative ones, so that it may lie below a path of a proxy.
pub(super) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/console/", get(async |headers: HeaderMap| file(INDEX, &headers)))
        .route(
            "/console/{*path}",
            get(async |uri: Uri, headers: HeaderMap| {
                // As it was sent: no file's name needs percent signs.
                file(uri.path().strip_prefix("/console/").unwrap_or_default(), &headers)
            }),
        )
        .layer(CompressionLayer::new())
        .route("/", get(async || Redirect::temporary("console/")))
        .route("/console", get(async || Redirect::temporary("console/")))
}

fn file(path: &str, headers: &HeaderMap) -> Response {
    let (Some(file), Some(kind)) = (ConsoleFiles::get(path), kind(path)) else {
        return ErrorAnswer::not_found("no such file of the console").into_response();
    };
    let tag = tag(&file);
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let known = known.flat_map(|value| value.split(',')).any(|given| given.trim() == tag);
    let about = [(header::ETAG, tag.as_str()), (header::CACHE_CONTROL, "no-cache")];
    if known {
        return (StatusCode::NOT_MODIFIED, about).into_response();
    }
    (about, [(header::CONTENT_TYPE, kind)], file.data).into_response()
}

/// Weak: the same for what is compressed on its way.
fn tag(file: &EmbeddedFile) -> String {
    let hash = file.metadata.sha256_hash();
    format!("W/\"{}\"", HEXLOWER.encode(hash.get(..TAG_BYTES).unwrap_or_default()))
}

/// The media type of a file; none for what the console does not have.
fn kind(path: &str) -> Option<&'static str> {
    Some(match path.rsplit_once('.')?.1 {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        _ => return None,
    })
}

/// Puts [`HEADERS`] on an answer; an answer that has one of them keeps its own.
pub(super) async fn with_headers(mut answer: Response) -> Response {
    for (name, value) in HEADERS {
        answer.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_a_type_and_a_version() {
        let mut seen = 0;
        for path in ConsoleFiles::iter() {
            assert!(kind(&path).is_some(), "{path} is of no known type");
            let answer = file(&path, &HeaderMap::new());
            assert_eq!(answer.status(), StatusCode::OK, "{path}");
            let again = HeaderMap::from_iter([(header::IF_NONE_MATCH, answer.headers()[header::ETAG].clone())]);
            assert_eq!(file(&path, &again).status(), StatusCode::NOT_MODIFIED, "{path}");
            seen += 1;
        }
        assert!(seen > 0 && ConsoleFiles::get(INDEX).is_some());
        for path in ["none.html", "../lib.rs", "/etc/passwd", ""] {
            assert_eq!(file(path, &HeaderMap::new()).status(), StatusCode::NOT_FOUND, "{path}");
        }
    }
}

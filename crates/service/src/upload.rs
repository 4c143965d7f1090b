//! The body of a request on its way in: it must not stall, it comes as it is (no `Content-Encoding`), and where a request is
//! refused before its body was read, what is on the way is read and thrown away, up to a bound: a client that writes first and
//! reads then would else learn of a broken connection instead of the reason.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, EXPECT};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use humantime::format_duration;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::error_answer::ErrorAnswer;

/// Bytes of the body of a refused request that are read to their end.
const DRAINED_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How long that may take.
const DRAINED_WITHIN: Duration = Duration::from_secs(30);

/// How long a body may bring nothing while it is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StalledAfter(pub(crate) Duration);

/// The body of a request. Handler and [`handled`] share it, because what the handler leaves unread is read here.
#[derive(Clone)]
struct Upload(Arc<Shared>);

struct Shared {
    state: Mutex<Reading>,
    /// Somebody has begun to read it: a client that waits for that sends it now.
    begun: AtomicBool,
    stalled: AtomicBool,
    /// How long it may bring nothing while it is waited for.
    stalled_after: Duration,
}

struct Reading {
    body: Body,
    /// Runs while the body is waited for.
    stalls: Option<Pin<Box<Sleep>>>,
}

impl Upload {
    fn new(body: Body, stalled_after: Duration) -> Self {
        let state = Mutex::new(Reading { body, stalls: None });
        let (begun, stalled) = (AtomicBool::new(false), AtomicBool::new(false));
        Self(Arc::new(Shared { state, begun, stalled, stalled_after }))
    }

    fn state(&self) -> MutexGuard<'_, Reading> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.0.begun.store(true, Ordering::Relaxed);
        let mut state = self.state();
        if let Poll::Ready(frame) = Pin::new(&mut state.body).poll_frame(cx) {
            state.stalls = None;
            return Poll::Ready(frame);
        }
        let stalls = state.stalls.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.0.stalled_after)));
        ready!(stalls.as_mut().poll(cx));
        self.0.stalled.store(true, Ordering::Relaxed);
        let text = format!("it brought nothing for {}", format_duration(self.0.stalled_after));
        Poll::Ready(Some(Err(axum::Error::new(std::io::Error::new(std::io::ErrorKind::TimedOut, text)))))
    }

    /// Reads what is left and throws it away, within the bounds.
    async fn drain(&self) {
        let deadline = Instant::now() + DRAINED_WITHIN;
        let mut bytes = 0;
        while bytes < DRAINED_BYTES_MAX && !self.state().body.is_end_stream() {
            let frame = std::future::poll_fn(|cx| self.poll(cx));
            match tokio::time::timeout_at(deadline, frame).await {
                Ok(Some(Ok(frame))) => bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
                _ => return,
            }
        }
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.state().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.state().body.size_hint()
    }
}

/// Answers a request whose body is looked after as this file says.
pub(crate) async fn handled(
    State(StalledAfter(stalled_after)): State<StalledAfter>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let upload = Upload::new(body, stalled_after);
    let waits = parts.headers.get(EXPECT).is_some();
    let mut answer = match encoding(&parts.headers) {
        Some(encoding) => not_understood(&encoding),
        None => next.run(Request::from_parts(parts, Body::new(upload.clone()))).await,
    };
    if upload.0.stalled.load(Ordering::Relaxed) && answer.status().is_client_error() {
        let text = format!("the body brought nothing for {}", format_duration(stalled_after));
        return ErrorAnswer::new(StatusCode::REQUEST_TIMEOUT, text).into_response();
    }
    let refused = answer.status().is_client_error() || answer.status().is_server_error();
    // A client that waits for `100 Continue` has not sent its body, and gets the reason at once.
    if refused && (!waits || upload.0.begun.load(Ordering::Relaxed)) {
        upload.drain().await;
    }
    let headers = answer.headers_mut();
    headers.entry(axum::http::header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
    headers.entry(axum::http::header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    answer
}

/// The encoding of the body; none when it comes as it is.
fn encoding(headers: &HeaderMap) -> Option<String> {
    let given = headers.get_all(CONTENT_ENCODING).iter();
    let mut named = given.map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase());
    named.find(|name| !name.is_empty() && name != "identity")
}

fn not_understood(encoding: &str) -> Response {
    let text = format!("Content-Encoding {encoding} is not understood: send the body as it is");
    let mut answer = ErrorAnswer::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text).into_response();
    answer.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    answer
}

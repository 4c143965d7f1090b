//! The HTTP server of a service, from the bound address to its end: HTTP/1.1 by hyper, one task for each connection, with bounds
//! on their number (`connections`), on the time of a handshake and of a request's head, on bodies (`upload`), and on callers who
//! take nothing of an answer (`taken_stream`).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as Polled, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use axum::middleware::from_fn_with_state;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use crate::connections::{Connections, HttpConnection, RequestUnderWay};
use crate::listen::{HttpSettings, Peer};
use crate::taken_stream::TakenStream;
use crate::upload;

/// Bytes of rows or lines that are written to a caller at once.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// How long open requests may take after the shutdown: a client that holds a request open must not keep the process.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take, and then the head of each request; a connection without a request is closed after it.
const HEAD_WITHIN: Duration = Duration::from_secs(15);
/// How long no connection is taken after one could not be: the process has no file left, most likely, and some will be closed.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// The same trouble is logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Sent to a connection that finds no room.
const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 50\r\nretry-after: 1\r\nconnection: close\r\n\r\n{\"error\":\"there are too many connections already\"}";

/// An address that is bound and serves nothing yet: a service that cannot have its address fails before it does anything.
pub struct Bound {
    listener: TcpListener,
    settings: HttpSettings,
    /// The address, with the port that the system chose where none was given.
    pub address: SocketAddr,
}

impl Bound {
    /// Binds an address (`--listen`).
    ///
    /// # Errors
    /// When the address is taken, or not of this machine.
    pub async fn new(listen: SocketAddr, settings: HttpSettings) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {listen} (--listen)"))?;
        let address = listener.local_addr()?;
        Ok(Self { listener, settings, address })
    }

    /// Serves until `shutdown`.
    #[must_use]
    pub fn serve(self, router: Router, shutdown: CancellationToken) -> Server {
        let stalled_after = upload::StalledAfter(self.settings.stalled_after());
        let router = router.layer(from_fn_with_state(stalled_after, upload::handled));
        let mut serving = JoinSet::new();
        if let Some(certificate) = self.settings.certificate() {
            let ends = shutdown.clone();
            serving.spawn(async move {
                tokio::select! {
                    never = certificate.follow() => match never {},
                    () = ends.cancelled() => {}
                }
            });
        }
        serving.spawn(accept(self.listener, self.settings, router, shutdown.clone()));
        Server { serving, shutdown }
    }
}

/// A server that runs. It is stopped when this is dropped.
pub struct Server {
    serving: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Server {
    /// Waits until the server ends by itself, which it should not; for ever otherwise, and after the shutdown.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.serving.join_next().await {
            // It ends because it should: who waits for both hears of either first.
            Some(_) if self.shutdown.is_cancelled() => std::future::pending().await,
            Some(Err(error)) => anyhow!("the HTTP server ended by itself: {error}"),
            Some(Ok(())) => anyhow!("the HTTP server ended by itself"),
            None => std::future::pending().await,
        }
    }

    /// Lets open requests end for a while; call it after the shutdown.
    pub async fn close(mut self) {
        let all = async { while self.serving.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(CLOSE_WITHIN, all).await;
        self.serving.shutdown().await;
    }
}

/// Takes connections until `shutdown`, then waits for their end.
async fn accept(listener: TcpListener, settings: HttpSettings, router: Router, shutdown: CancellationToken) {
    let connections = Connections::new(settings.limits());
    let (tls, stalled_after) = (settings.acceptor(), settings.stalled_after());
    let mut open = JoinSet::new();
    let mut logged: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = open.join_next() => continue,
        };
        let log = logged.is_none_or(|at| at.elapsed() >= LOG_EVERY);
        match accepted {
            Ok((stream, peer)) => match connections.admit(peer.ip()) {
                Some(connection) => {
                    // Answers are small and somebody waits for them.
                    let _ = stream.set_nodelay(true);
                    let stream = TakenStream::new(stream, stalled_after);
                    open.spawn(serve(stream, peer, tls.clone(), router.clone(), connection, shutdown.clone()));
                }
                None => {
                    if tls.is_none() {
                        let _ = stream.try_write(NO_ROOM);
                    }
                    if log {
                        logged = Some(Instant::now());
                        tracing::warn!(%peer, "a connection is refused: as many as may be are busy (--http-connections-max)");
                    }
                }
            },
            // The caller has gone before it was taken.
            Err(error) if is_of_caller(&error) => {}
            Err(error) => {
                if log {
                    logged = Some(Instant::now());
                    tracing::warn!(%error, "a connection could not be taken");
                }
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

fn is_of_caller(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Serves one connection until its end.
async fn serve(
    stream: TakenStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    connection: HttpConnection,
    shutdown: CancellationToken,
) {
    let Some(tls) = tls else { return answer(stream, peer, router, &Arc::new(connection), &shutdown).await };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HEAD_WITHIN, tls.accept(stream)) => shaken,
        () = connection.evicted() => return,
        () = shutdown.cancelled() => return,
    };
    match shaken {
        Ok(Ok(stream)) => answer(stream, peer, router, &Arc::new(connection), &shutdown).await,
        Ok(Err(error)) => tracing::debug!(%error, %peer, "a caller has not come through the TLS handshake"),
        Err(_) => tracing::debug!(%peer, "a caller was too slow with the TLS handshake"),
    }
}

/// Answers the requests of a connection.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    router: Router,
    connection: &Arc<HttpConnection>,
    shutdown: &CancellationToken,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(Peer(peer)));
        let under_way = connection.request();
        let answering = router.call(request);
        async move {
            let answer = answering.await?;
            Ok::<_, Infallible>(answer.map(|body| AnswerBody { body, _under_way: under_way }))
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => Either::Left(ended),
        () = connection.evicted() => Either::Right(false),
        () = shutdown.cancelled() => Either::Right(true),
    };
    let ended = match ended {
        Either::Left(ended) => ended,
        Either::Right(false) => return,
        Either::Right(true) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "a connection has ended early");
    }
}

/// The body of an answer. Its request is under way until it is written, or dropped because the caller has gone.
struct AnswerBody {
    body: Body,
    _under_way: RequestUnderWay,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Polled<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::HttpArgs;

    #[tokio::test]
    async fn after_the_shutdown_it_has_not_failed() {
        let settings = HttpArgs {
            tls_http_cert: None,
            tls_http_key: None,
            http_connections_max: 1,
            http_connections_per_address_max: 1,
            http_stalled_after: Duration::from_secs(1),
        };
        let settings = settings.check().unwrap();
        let shutdown = CancellationToken::new();
        let bound = Bound::new(([127, 0, 0, 1], 0).into(), settings).await.unwrap();
        let mut server = bound.serve(Router::new(), shutdown.clone());
        shutdown.cancel();
        let failed = tokio::time::timeout(Duration::from_millis(300), server.failed()).await;
        assert!(failed.is_err(), "{failed:?}");
        server.close().await;
    }
}

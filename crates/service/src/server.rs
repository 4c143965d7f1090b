//! The HTTP server of a service, from the bound address to its end.

use std::future::IntoFuture;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use axum::Router;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::listen::{HttpTls, Listener, Peer};

/// Bytes of rows or lines that are written to a caller at once.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// How long open requests may take after the shutdown: a client that holds a request open must not keep the process.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// An address that is bound and serves nothing yet: a service that cannot have its address fails before it does anything.
pub struct Bound {
    listener: Listener,
    /// The address, with the port that the system chose where none was given.
    pub address: SocketAddr,
}

impl Bound {
    /// Binds an address (`--listen`).
    ///
    /// # Errors
    /// When the address is taken, or not of this machine.
    pub async fn new(listen: SocketAddr, tls: HttpTls) -> anyhow::Result<Self> {
        let listener = Listener::bind(listen, tls).await;
        let listener = listener.with_context(|| format!("cannot listen on {listen} (--listen)"))?;
        let address = axum::serve::Listener::local_addr(&listener)?;
        Ok(Self { listener, address })
    }

    /// Serves until `shutdown`.
    #[must_use]
    pub fn serve(self, router: Router, shutdown: CancellationToken) -> Server {
        let service = router.into_make_service_with_connect_info::<Peer>();
        let serving = axum::serve(self.listener, service).with_graceful_shutdown(shutdown.cancelled_owned());
        Server(JoinSet::from_iter([serving.into_future()]))
    }
}

/// A server that runs. It is stopped when this is dropped.
pub struct Server(JoinSet<io::Result<()>>);

impl Server {
    /// Waits until the server ends by itself, which it should not; for ever otherwise.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.0.join_next().await {
            Some(ended) => anyhow!("the HTTP server ended by itself: {ended:?}"),
            None => std::future::pending().await,
        }
    }

    /// Lets open requests end for a while; call it after the shutdown.
    pub async fn close(mut self) {
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.0.join_next()).await;
        self.0.shutdown().await;
    }
}

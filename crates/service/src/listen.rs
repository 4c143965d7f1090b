//! Where a service listens for HTTP: plain, or by TLS with a certificate from files. And the other side: a request to a
//! service on this machine whether it is ready, for containers that have no program for that.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use clap::Args;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tls_listener::TlsListener;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use millpond::config::{FileError, both, set};
use millpond_api::error::ErrorBody;

/// How long a service may take to answer whether it is ready.
const HEALTH_WITHIN: Duration = Duration::from_secs(4);

/// Whether HTTP is served by TLS.
#[derive(Args, Debug, Clone, Default)]
pub struct HttpTlsArgs {
    /// File with the certificate (PEM, with what it was signed by) of the HTTP API, which is HTTPS then. Needs
    /// --tls-http-key; read at the start.
    #[arg(long, env = "MILLPOND_TLS_HTTP_CERT")]
    pub tls_http_cert: Option<PathBuf>,
    /// File with the private key (PEM) of that certificate.
    #[arg(long, env = "MILLPOND_TLS_HTTP_KEY")]
    pub tls_http_key: Option<PathBuf>,
}

/// A certificate and its key; none: plain HTTP.
pub type HttpTls = Option<Arc<ServerConfig>>;

impl HttpTlsArgs {
    /// Reads the files.
    ///
    /// # Errors
    /// [`FileError`], when one of them cannot be read or used, or is missing.
    pub fn check(&self) -> Result<HttpTls, FileError> {
        let name = "MILLPOND_TLS_HTTP_CERT";
        let files = both((name, &self.tls_http_cert), ("MILLPOND_TLS_HTTP_KEY", &self.tls_http_key))?;
        let Some((cert, key)) = files else { return Ok(None) };
        let unfit = |reason: String| FileError::Unfit { name, path: cert.clone(), reason };
        let chain = CertificateDer::pem_file_iter(&cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|error| unfit(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| unfit(error.to_string()))?;
        let versions = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = versions.with_safe_default_protocol_versions().map_err(|error| unfit(error.to_string()))?;
        let config = config.with_no_client_auth().with_single_cert(chain, key);
        let mut config = config.map_err(|error| unfit(error.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(Arc::new(config)))
    }

    /// Requests `/readyz` of the service that listens at `listen` on this machine, with these settings. Its certificate is
    /// not checked: the request holds no secret, and what answers there is this machine's.
    ///
    /// # Errors
    /// [`HealthError`], when it is not.
    pub fn health(&self, listen: SocketAddr) -> Result<(), HealthError> {
        let ip = match listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let scheme = if set(&self.tls_http_cert).is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/readyz", SocketAddr::new(ip, listen.port()));
        let silent =
            |error: reqwest::Error| HealthError::Silent { url: url.clone(), reason: error.without_url().to_string() };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::blocking::Client::builder().timeout(HEALTH_WITHIN).no_proxy();
        let client = client.tls_danger_accept_invalid_certs(true).build().map_err(silent)?;
        let answer = client.get(&url).send().map_err(silent)?;
        if answer.status().is_success() {
            return Ok(());
        }
        let status = answer.status();
        let text = answer.text().unwrap_or_default();
        let complaint = serde_json::from_str::<ErrorBody>(&text).map_or(text, |body| body.error);
        Err(HealthError::NotReady(format!("{} ({status})", complaint.trim())))
    }
}

/// Accepts connections. A caller that is slow with its TLS handshake keeps no other caller waiting.
pub enum Listener {
    /// Connections as they come.
    Plain(TcpListener),
    /// Connections after their handshake.
    Tls(Box<TlsListener<TcpListener, TlsAcceptor>>),
}

impl Listener {
    /// Binds an address.
    ///
    /// # Errors
    /// When the address is taken, or not of this machine.
    pub async fn bind(address: SocketAddr, tls: HttpTls) -> io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        Ok(match tls {
            None => Self::Plain(tcp),
            Some(config) => Self::Tls(Box::new(TlsListener::new(TlsAcceptor::from(config), tcp))),
        })
    }
}

impl axum::serve::Listener for Listener {
    type Io = Either<TcpStream, TlsStream<TcpStream>>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            match self {
                Self::Plain(tcp) => {
                    let (stream, peer) = axum::serve::Listener::accept(tcp).await;
                    return (Either::Left(stream), peer);
                }
                Self::Tls(tls) => match tls.accept().await {
                    Ok((stream, peer)) => return (Either::Right(stream), peer),
                    Err(tls_listener::Error::ListenerError(error)) => {
                        tracing::warn!(%error, "a connection could not be taken");
                        // The process has no file left, most likely: some will be closed soon.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    Err(error) => tracing::debug!(%error, "a caller has not come through the TLS handshake"),
                },
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Plain(tcp) => tcp.local_addr(),
            Self::Tls(tls) => tls.listener().local_addr(),
        }
    }
}

/// The address of the caller.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

impl Connected<IncomingStream<'_, Listener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// Why a service is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// No service answers.
    #[error("nothing answers at {url}: {reason}; is --listen the one that the service was started with?")]
    Silent {
        /// The address of the request.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// The service answers that it is not ready.
    #[error("not ready: {0}")]
    NotReady(String),
}

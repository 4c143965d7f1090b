//! How a service serves HTTP: plain, or by TLS with a certificate from files, and to how many. And the other side: a request to
//! a service on this machine whether it is ready, for containers that have no program for that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nix::sys::resource::{Resource, getrlimit};
use rustls::ServerConfig;
use tokio_rustls::TlsAcceptor;

use millpond::config::{FileError, both, duration, set};
use millpond_api::error::ErrorBody;

use crate::certificate::{CERT, Certificate};
use crate::connections::ConnectionLimits;

/// How long a service may take to answer whether it is ready.
const HEALTH_WITHIN: Duration = Duration::from_secs(4);

/// How HTTP is served, as typed.
#[derive(Args, Debug, Clone)]
pub struct HttpArgs {
    /// File with the certificate (PEM, with what it was signed by) of the HTTP API, which is HTTPS then. Needs
    /// --tls-http-key; both are read again when they change.
    #[arg(long, env = "MILLPOND_TLS_HTTP_CERT")]
    pub tls_http_cert: Option<PathBuf>,
    /// File with the private key (PEM) of that certificate.
    #[arg(long, env = "MILLPOND_TLS_HTTP_KEY")]
    pub tls_http_key: Option<PathBuf>,
    /// How many connections HTTP has at once at most; one that is silent makes room for a new one. At most half of the files
    /// that the process may have open.
    #[arg(long, env = "MILLPOND_HTTP_CONNECTIONS_MAX", default_value_t = 4096, value_parser = connections)]
    pub http_connections_max: u32,
    /// How many of them may come from one address. Raise it where a proxy brings more.
    #[arg(long, env = "MILLPOND_HTTP_CONNECTIONS_PER_ADDRESS_MAX", default_value_t = 2048, value_parser = connections)]
    pub http_connections_per_address_max: u32,
    /// How long a caller may bring nothing of a body that is waited for (the answer is 408 then), or take nothing of an answer (its
    /// connection is closed then).
    #[arg(long, env = "MILLPOND_HTTP_STALLED_AFTER", default_value = "60s", value_parser = stalled_after)]
    pub http_stalled_after: Duration,
}

fn stalled_after(text: &str) -> Result<Duration, String> {
    let least = Duration::from_secs(1);
    duration(text).and_then(|time| if time < least { Err(format!("{text} is less than 1s")) } else { Ok(time) })
}

fn connections(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| format!("{text:?} must be a number from 1"))
}

/// How HTTP is served, checked.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    tls: Option<(Arc<Certificate>, Arc<ServerConfig>)>,
    limits: ConnectionLimits,
    stalled_after: Duration,
}

impl HttpSettings {
    /// Whether it is HTTPS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn limits(&self) -> ConnectionLimits {
        self.limits
    }

    pub(crate) fn stalled_after(&self) -> Duration {
        self.stalled_after
    }

    pub(crate) fn certificate(&self) -> Option<Arc<Certificate>> {
        self.tls.as_ref().map(|(certificate, _)| certificate.clone())
    }

    pub(crate) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.tls.as_ref().map(|(_, config)| TlsAcceptor::from(config.clone()))
    }
}

impl HttpArgs {
    /// Reads the files.
    ///
    /// # Errors
    /// [`FileError`], when one of them cannot be read or used, or is missing.
    pub fn check(&self) -> Result<HttpSettings, FileError> {
        let files = both((CERT, &self.tls_http_cert), ("MILLPOND_TLS_HTTP_KEY", &self.tls_http_key))?;
        let tls = match files {
            None => None,
            Some((cert, key)) => Some(Certificate::serve(cert, key)?),
        };
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(now, _)| now);
        let files = usize::try_from(files / 2).unwrap_or(usize::MAX).max(1);
        let all = files.min(self.http_connections_max as usize);
        let per_address = all.min(self.http_connections_per_address_max as usize);
        let limits = ConnectionLimits { all, per_address };
        Ok(HttpSettings { tls, limits, stalled_after: self.http_stalled_after })
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

/// The address of the caller.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

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

//! The certificate of HTTPS and its key, from files that are read again when they change: who renews a certificate need not start
//! the service again.

use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use millpond::config::FileError;

/// The setting that names the file of the certificate.
pub(crate) const CERT: &str = "MILLPOND_TLS_HTTP_CERT";
/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A certificate that follows its files.
#[derive(Debug)]
pub(crate) struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    now: RwLock<Arc<CertifiedKey>>,
}

/// What the files hold.
type CertificateFiles = (Vec<u8>, Vec<u8>);

impl Certificate {
    /// Reads the files; the certificate, and what serves HTTPS with it.
    ///
    /// # Errors
    /// [`FileError`], when they cannot be used.
    pub(crate) fn serve(cert: PathBuf, key: PathBuf) -> Result<(Arc<Self>, Arc<ServerConfig>), FileError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let unfit = |reason: String| FileError::Unfit { name: CERT, path: cert.clone(), reason };
        let read = read(&cert, &key).and_then(|files| certified(&files, &provider)).map_err(unfit)?;
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| unfit(error.to_string()))?.with_no_client_auth();
        let certificate = Arc::new(Self { cert, key, provider, now: RwLock::new(Arc::new(read)) });
        let mut config = builder.with_cert_resolver(certificate.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok((certificate, Arc::new(config)))
    }

    /// Takes what the files hold whenever that changes. What cannot be used is logged once, and what is served stays.
    pub(crate) async fn follow(&self) -> Infallible {
        let mut seen = self.look().await;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let found = self.look().await;
            if found == seen {
                continue;
            }
            let taken = found.clone().and_then(|files| certified(&files, &self.provider));
            match taken {
                Ok(certified) => {
                    *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
                    tracing::info!(path = %self.cert.display(), "the certificate of HTTPS has changed, and is served");
                }
                Err(error) => tracing::error!(
                    path = %self.cert.display(), error,
                    "the certificate of HTTPS has changed and cannot be used: the one before is served"
                ),
            }
            seen = found;
        }
    }

    async fn look(&self) -> Result<CertificateFiles, String> {
        let (cert, key) = (self.cert.clone(), self.key.clone());
        let read = tokio::task::spawn_blocking(move || read(&cert, &key)).await;
        read.unwrap_or_else(|error| Err(error.to_string()))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn read(cert: &PathBuf, key: &PathBuf) -> Result<CertificateFiles, String> {
    let read = |path: &PathBuf| fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()));
    Ok((read(cert)?, read(key)?))
}

/// The certificate in these files, when it fits the key.
fn certified((cert, key): &CertificateFiles, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let chain =
        CertificateDer::pem_slice_iter(cert).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    if chain.is_empty() {
        return Err("it holds no certificate".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| error.to_string())?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| error.to_string())
}

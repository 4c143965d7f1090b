//! The collector's HTTP API, as the reading and operating verbs, `top` and the tests use it.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use millpond_api::error::ErrorBody;
use millpond_api::list::List;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cluster_env::{COLLECTOR_URL, ClusterEnv, TLS_CA, TOKEN};

/// How long one request may take, and how long a download may bring nothing.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);
/// How long a download may take: practically without limit, as long as something comes.
const DOWNLOAD_WITHIN: Duration = Duration::from_secs(100 * 24 * 3600);

/// The collector of a cluster.
pub struct Api {
    url: String,
    token: String,
    http: reqwest::Client,
}

/// An answer of the collector that is no success.
#[derive(Debug)]
pub struct CollectorError {
    /// Its status.
    pub status: StatusCode,
    text: String,
}

impl fmt::Display for CollectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            StatusCode::NOT_FOUND => f.write_str(&self.text),
            status => write!(f, "the collector answered {}: {}", status.as_u16(), self.text),
        }
    }
}

impl std::error::Error for CollectorError {}

/// A request that says nothing more than its path: `{}`.
#[derive(Serialize)]
pub struct NoBody {}

impl Api {
    /// The collector of this environment.
    ///
    /// # Errors
    /// When its URL or token is not set.
    pub fn new(env: &ClusterEnv) -> anyhow::Result<Self> {
        let builder = match env.get(TLS_CA) {
            Some(file) => trusting(Path::new(&file))?,
            None => reqwest::Client::builder(),
        };
        Self::with(builder, env.need(COLLECTOR_URL)?, env.need(TOKEN)?)
    }

    /// The collector at a URL.
    ///
    /// # Errors
    /// When HTTP cannot be set up.
    pub fn at(url: String, token: String) -> anyhow::Result<Self> {
        Self::with(reqwest::Client::builder(), url, token)
    }

    fn with(builder: reqwest::ClientBuilder, url: String, token: String) -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self { url, token, http: builder.timeout(REQUEST_WITHIN).read_timeout(REQUEST_WITHIN).build()? })
    }

    /// An answer; none when there is no such thing.
    ///
    /// # Errors
    /// When the collector does not answer, answers with an error, or with something else than a `T`.
    pub async fn find<T: DeserializeOwned>(&self, path: &str, query: &impl Serialize) -> anyhow::Result<Option<T>> {
        let response = self.send(self.http.get(self.path(path)).query(query)).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            _ => Ok(Some(read(response).await?)),
        }
    }

    /// An answer that must be there.
    ///
    /// # Errors
    /// As [`Api::find`], and when there is no such thing.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &impl Serialize) -> anyhow::Result<T> {
        read(self.send(self.http.get(self.path(path)).query(query)).await?).await
    }

    /// Has something done, and returns what the collector answered.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        read(self.send(self.http.post(self.path(path)).json(body)).await?).await
    }

    /// Gives all rows of a list to `row`, page by page.
    ///
    /// # Errors
    /// As [`Api::get`], and what `row` returns.
    pub async fn each<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
        mut row: impl AsyncFnMut(T) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut after: Option<String> = None;
        loop {
            let request = self.http.get(self.path(path)).query(query).query(&[("after", &after)]);
            let page: List<T> = read(self.send(request).await?).await?;
            for one in page.rows {
                row(one).await?;
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// All rows of a list.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn all<T: DeserializeOwned>(&self, path: &str, query: &impl Serialize) -> anyhow::Result<Vec<T>> {
        let mut rows = Vec::new();
        self.each(path, query, async |row| {
            rows.push(row);
            Ok(())
        })
        .await?;
        Ok(rows)
    }

    /// Writes a download to `out` as it comes.
    ///
    /// # Errors
    /// As [`Api::get`], when the download is cut off, and when `out` is closed.
    pub async fn download(&self, path: &str, query: &impl Serialize, out: &mut impl Write) -> anyhow::Result<()> {
        let request = self.http.get(self.path(path)).query(query).timeout(DOWNLOAD_WITHIN);
        let mut response = succeeded(self.send(request).await?).await?;
        while let Some(chunk) = response.chunk().await.context("the collector has cut the download off")? {
            out.write_all(&chunk)?;
        }
        Ok(out.flush()?)
    }

    fn path(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        // The error names no address of its own: it might have a password.
        let sent = request.bearer_auth(&self.token).send().await.map_err(reqwest::Error::without_url);
        sent.with_context(|| {
            let url = millpond::bus::without_password(&self.url);
            format!("the collector at {url} does not answer; what is stored can only be read through it")
        })
    }
}

/// The answer of a request that succeeded.
async fn read<T: DeserializeOwned>(response: Response) -> anyhow::Result<T> {
    let body = succeeded(response).await?.bytes().await?;
    serde_json::from_slice(&body).context("the collector's answer cannot be read; is it of this version?")
}

/// The response, or the error that the collector answered.
async fn succeeded(response: Response) -> anyhow::Result<Response> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.bytes().await.map_err(|error| error.without_url())?;
    let text = serde_json::from_slice::<ErrorBody>(&body)
        .map_or_else(|_| "an answer that is not a collector's; is the address right?".to_owned(), |body| body.error);
    Err(CollectorError { status, text }.into())
}

/// HTTPS that trusts the authorities of a file, and no others.
fn trusting(file: &Path) -> anyhow::Result<reqwest::ClientBuilder> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {} ({TLS_CA})", file.display()))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&text);
    let certificates = certificates.with_context(|| format!("{} ({TLS_CA}) holds no certificates", file.display()))?;
    Ok(reqwest::Client::builder().tls_certs_only(certificates))
}

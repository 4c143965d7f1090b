//! The collector's HTTP API, as the reading verbs use it.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::Value;

use crate::state::{COLLECTOR_URL, Env, TLS_CA, TOKEN};

/// How long one request may take, and a download be silent.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);
/// How long a download may take: as long as it is read.
const DOWNLOAD_WITHIN: Duration = Duration::from_secs(100 * 24 * 3600);

/// The collector of this cluster.
pub struct Api {
    url: String,
    token: String,
    http: reqwest::Client,
}

impl Api {
    /// Finds it.
    ///
    /// # Errors
    /// When its address or token is not known.
    pub fn new(env: &Env) -> anyhow::Result<Self> {
        let builder = match env.get(TLS_CA) {
            Some(file) => trusting(Path::new(&file))?,
            None => reqwest::Client::builder(),
        };
        Self::with(builder, env.need(COLLECTOR_URL)?, env.need(TOKEN)?)
    }

    /// The one at an address.
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

    /// One answer; none when there is no such thing.
    ///
    /// # Errors
    /// When the collector does not answer, or answers with an error.
    pub async fn get(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<Option<Value>> {
        let (status, body) = self.send(self.http.get(format!("{}{path}", self.url)).query(query)).await?;
        Ok((status == 200).then_some(body))
    }

    /// Asks for something to be done; what was answered.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn post(&self, path: &str, body: &(impl Serialize + ?Sized)) -> anyhow::Result<Value> {
        match self.send(self.http.post(format!("{}{path}", self.url)).json(body)).await? {
            (404, body) => bail!("{}", text(&body, "error")),
            (_, body) => Ok(body),
        }
    }

    /// Writes a download to `out` as it comes.
    ///
    /// # Errors
    /// As [`Api::get`], when it is cut off, and when `out` is closed.
    pub async fn download(&self, path: &str, query: &[(&str, String)], out: &mut impl Write) -> anyhow::Result<()> {
        let request = self.http.get(format!("{}{path}", self.url)).query(query).timeout(DOWNLOAD_WITHIN);
        let mut response = self.response(request).await?;
        if !response.status().is_success() {
            let status = response.status().as_u16();
            let body: Value = response.json().await.context("the collector's answer is not JSON")?;
            bail!("the collector answered {status}: {}", text(&body, "error"));
        }
        while let Some(chunk) = response.chunk().await.context("the collector has cut the download off")? {
            out.write_all(&chunk)?;
        }
        Ok(out.flush()?)
    }

    async fn response(&self, request: reqwest::RequestBuilder) -> anyhow::Result<reqwest::Response> {
        request.bearer_auth(&self.token).send().await.with_context(|| {
            format!("the collector at {} does not answer; what is stored can only be read through it", self.url)
        })
    }

    /// The answer, and its status: 200 or 404.
    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<(u16, Value)> {
        let response = self.response(request).await?;
        let status = response.status();
        let body: Value = response.json().await.context("the collector's answer is not JSON")?;
        match status.as_u16() {
            code @ (200 | 404) => Ok((code, body)),
            code => bail!("the collector answered {code}: {}", text(&body, "error")),
        }
    }

    /// All rows of a list, page by page, each given to `row`; stops when `row` says so.
    ///
    /// # Errors
    /// As [`Api::get`], and what `row` returns.
    pub async fn each(
        &self,
        path: &str,
        query: &[(&str, String)],
        mut row: impl FnMut(&Value) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let mut after: Option<String> = None;
        loop {
            let mut query = query.to_vec();
            query.extend(after.take().map(|cursor| ("after", cursor)));
            let Some(page) = self.get(path, &query).await? else { return Ok(()) };
            for one in page.get("rows").and_then(Value::as_array).into_iter().flatten() {
                if !row(one)? {
                    return Ok(());
                }
            }
            match page.get("next").and_then(Value::as_str) {
                Some(next) => after = Some(next.to_owned()),
                None => return Ok(()),
            }
        }
    }
}

/// HTTPS that trusts the authorities of a file, and none else.
fn trusting(file: &Path) -> anyhow::Result<reqwest::ClientBuilder> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {} ({TLS_CA})", file.display()))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&text);
    let certificates = certificates.with_context(|| format!("{} ({TLS_CA}) holds no certificates", file.display()))?;
    Ok(reqwest::Client::builder().tls_certs_only(certificates))
}

/// A field as text: empty when it is not there.
#[must_use]
pub fn text(value: &Value, field: &str) -> String {
    match value.get(field) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

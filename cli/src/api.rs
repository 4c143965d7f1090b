//! The collector's HTTP API, as the reading and operating verbs, `top` and the tests use it. Of several collectors the one
//! that answered last is asked, and the next one where it cannot be reached.

use std::error::Error;
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use millpond::bus::without_password;
use millpond_api::error::ErrorBody;
use millpond_api::list::List;
use reqwest::{RequestBuilder, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::addresses::Addresses;
use crate::cluster_env::{COLLECTOR_URL, ClusterEnv, TLS_CA, TOKEN};

/// How long one request may take, and how long a download may bring nothing.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);
/// How long one of several may take to say how it is.
const HEALTH_WITHIN: Duration = Duration::from_secs(5);
/// How long a connection may take to come about, with TLS; then the next address is tried.
const CONNECT_WITHIN: Duration = Duration::from_secs(4);
/// How long a download may take: practically without limit, as long as something comes.
const DOWNLOAD_WITHIN: Duration = Duration::from_secs(100 * 24 * 3600);

/// The collector of a cluster, or several that share a store.
pub struct Api {
    addresses: Addresses,
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

impl Error for CollectorError {}

/// A status, and a body: the bytes, or the response that brings them.
type Answer<T = Bytes> = (StatusCode, T);

/// A request that says nothing more than its path: `{}`.
#[derive(Serialize)]
pub struct NoBody {}

impl Api {
    /// The collector of this environment.
    ///
    /// # Errors
    /// When its URL or token is not set, or the URL is not one of HTTP.
    pub fn new(env: &ClusterEnv) -> anyhow::Result<Self> {
        let builder = match env.get(TLS_CA) {
            Some(file) => trusting(Path::new(&file))?,
            None => reqwest::Client::builder(),
        };
        Self::with(builder, env.need(COLLECTOR_URL)?, env.need(TOKEN)?)
    }

    /// The collector at a URL, or at one of several with commas.
    ///
    /// # Errors
    /// When one of them is no URL of HTTP, or HTTP cannot be set up.
    pub fn at(url: String, token: String) -> anyhow::Result<Self> {
        Self::with(reqwest::Client::builder(), url, token)
    }

    fn with(builder: reqwest::ClientBuilder, url: String, token: String) -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let addresses = Addresses::parse(&url).context(COLLECTOR_URL)?;
        let builder = builder.timeout(REQUEST_WITHIN).read_timeout(REQUEST_WITHIN).connect_timeout(CONNECT_WITHIN);
        Ok(Self { addresses, token, http: builder.build()? })
    }

    /// An answer; none when there is no such thing.
    ///
    /// # Errors
    /// When the collector does not answer, answers with an error, or with something else than a `T`.
    pub async fn find<T: DeserializeOwned>(&self, path: &str, query: &impl Serialize) -> anyhow::Result<Option<T>> {
        let answer = self.answer(path, query).await?;
        if answer.0 == StatusCode::NOT_FOUND { Ok(None) } else { Ok(Some(read(&answer)?)) }
    }

    /// An answer that must be there.
    ///
    /// # Errors
    /// As [`Api::find`], and when there is no such thing.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &impl Serialize) -> anyhow::Result<T> {
        read(&self.answer(path, query).await?)
    }

    /// What one of the addresses answers of itself, which needs no token.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn answer_of(&self, url: &str, path: &str) -> reqwest::Result<Answer> {
        whole(self.http.get(format!("{url}{path}")).timeout(HEALTH_WITHIN)).await.map_err(reqwest::Error::without_url)
    }

    /// Where it is, and which of several is asked first.
    pub(crate) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Has something done, and returns what the collector answered.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let request =
            async |url: &str| whole(self.http.post(format!("{url}{path}")).json(body).bearer_auth(&self.token)).await;
        read(&self.send(false, request).await?)
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
            let request = async |url: &str| {
                let page = self.get_request(url, path, query).query(&[("after", &after)]);
                whole(page).await
            };
            let page: List<T> = read(&self.send(true, request).await?)?;
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
        let request = async |url: &str| {
            let response = self.get_request(url, path, query).timeout(DOWNLOAD_WITHIN).send().await?;
            Ok((response.status(), response))
        };
        let (status, mut response) = self.send(true, request).await?;
        if !status.is_success() {
            return Err(refusal(status, &response.bytes().await.map_err(reqwest::Error::without_url)?).into());
        }
        while let Some(chunk) = response.chunk().await.context("the collector has cut the download off")? {
            out.write_all(&chunk)?;
        }
        Ok(out.flush()?)
    }

    async fn answer(&self, path: &str, query: &impl Serialize) -> anyhow::Result<Answer> {
        self.send(true, async |url: &str| whole(self.get_request(url, path, query)).await).await
    }

    fn get_request(&self, url: &str, path: &str, query: &impl Serialize) -> RequestBuilder {
        self.http.get(format!("{url}{path}")).query(query).bearer_auth(&self.token)
    }

    /// Sends a request to the address that answered last, then to each other one, until one answers. What was sent and not
    /// answered may have been done: only where `is_safe_to_repeat` it is sent again, and where another may be less busy.
    async fn send<T>(
        &self,
        is_safe_to_repeat: bool,
        request: impl AsyncFn(&str) -> reqwest::Result<Answer<T>>,
    ) -> anyhow::Result<Answer<T>> {
        let (mut unavailable, mut failed) = (None, Vec::new());
        for (place, url) in self.addresses.in_order() {
            match request(url).await {
                Ok(answer) if is_safe_to_repeat && matches!(answer.0.as_u16(), 502..=504) => {
                    unavailable.get_or_insert(answer);
                }
                Ok(answer) => {
                    self.addresses.prefer(place);
                    return Ok(answer);
                }
                // The error names no address of its own: it might have a password.
                Err(error) if is_safe_to_repeat || error.is_connect() => failed.push((url, error.without_url())),
                Err(error) => return Err(self.not_answered(url, error.without_url())),
            }
        }
        unavailable.ok_or_else(|| none_answers(failed))
    }

    /// The error of a request that one address took, and that is not sent to another.
    fn not_answered(&self, url: &str, error: reqwest::Error) -> anyhow::Error {
        if self.addresses.all().len() == 1 {
            return none_answers(vec![(url, error)]);
        }
        let (name, names) = (without_password(url), self.addresses.names());
        anyhow::Error::new(error).context(format!(
            "the collector at {name} took the request and does not answer; it may have done it, so no other of {names} \
             was asked"
        ))
    }
}

/// The error of a request that none of the addresses has answered; its cause is that of the last one.
fn none_answers(mut failed: Vec<(&str, reqwest::Error)>) -> anyhow::Error {
    let Some((last, error)) = failed.pop() else { return anyhow!("there is no address of a collector") };
    let last = without_password(last);
    let text = if failed.is_empty() {
        format!("the collector at {last} does not answer; what is stored can only be read through it")
    } else {
        let others: String =
            failed.iter().map(|(url, error)| format!("{} ({}), ", without_password(url), root(error))).collect();
        format!("no collector answers at {others}{last}; what is stored can only be read through one of them")
    };
    anyhow::Error::new(error).context(text)
}

/// The innermost cause of an error.
pub(crate) fn root(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), root)
}

/// Sends a request and takes all of its answer.
async fn whole(request: RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    Ok((response.status(), response.bytes().await?))
}

/// What an answer says, when the request succeeded.
fn read<T: DeserializeOwned>((status, body): &Answer) -> anyhow::Result<T> {
    if !status.is_success() {
        return Err(refusal(*status, body).into());
    }
    serde_json::from_slice(body).context("the collector's answer cannot be read; is it of this version?")
}

/// The error that the collector answered.
fn refusal(status: StatusCode, body: &[u8]) -> CollectorError {
    let text = serde_json::from_slice::<ErrorBody>(body)
        .map_or_else(|_| "an answer that is not a collector's; is the address right?".to_owned(), |body| body.error);
    CollectorError { status, text }
}

/// HTTPS that trusts the authorities of a file, and no others.
fn trusting(file: &Path) -> anyhow::Result<reqwest::ClientBuilder> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {} ({TLS_CA})", file.display()))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&text);
    let certificates = certificates.with_context(|| format!("{} ({TLS_CA}) holds no certificates", file.display()))?;
    Ok(reqwest::Client::builder().tls_certs_only(certificates))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    const DONE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\n1";
    const BUSY: &str = "HTTP/1.1 503 Busy\r\ncontent-length: 16\r\nconnection: close\r\n\r\n{\"error\":\"busy\"}";
    /// Cut off within its body.
    const CUT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: close\r\n\r\n1";
    const NOBODY: &str = "http://127.0.0.1:1";

    /// A server that reads each request, answers these bytes, and closes; its address. It ends with the tests.
    fn server(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for mut connection in listener.incoming().flatten() {
                let _ = connection.read(&mut [0; 4096]);
                let _ = connection.write_all(answer.as_bytes());
            }
        });
        url
    }

    fn api(addresses: &[&str]) -> Api {
        Api::at(addresses.join(","), "a token".into()).unwrap()
    }

    async fn get(addresses: &[&str]) -> anyhow::Result<u8> {
        api(addresses).get("/x", &()).await
    }

    async fn post(addresses: &[&str]) -> anyhow::Result<u8> {
        api(addresses).post("/x", &NoBody {}).await
    }

    #[tokio::test]
    async fn the_next_address_is_asked_where_the_first_is_gone() {
        let done = server(DONE);
        assert_eq!(get(&[NOBODY, &done]).await.unwrap(), 1);
        assert_eq!(post(&[NOBODY, &done]).await.unwrap(), 1);
        // The TLS of this one never comes about.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = format!("https://{}", listener.local_addr().unwrap());
        assert_eq!(post(&[&silent, &done]).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn what_was_sent_and_not_answered_is_repeated_only_where_that_is_safe() {
        let (done, closing, cut, busy) = (server(DONE), server(""), server(CUT), server(BUSY));
        for first in [&closing, &cut, &busy] {
            assert_eq!(get(&[first, &done]).await.unwrap(), 1, "{first}");
            assert!(post(&[first, &done]).await.is_err(), "{first}");
        }
        let said = format!("{:#}", post(&[&closing, &done]).await.unwrap_err());
        assert!(said.contains("may have done it") && said.contains(done.trim_start_matches("http://")), "{said}");
        // An answer that is no good is better than none.
        for addresses in [[NOBODY, &busy], [&busy, NOBODY], [&busy, &busy]] {
            let said = get(&addresses).await.unwrap_err().to_string();
            assert_eq!(said, "the collector answered 503: busy");
        }
    }

    #[tokio::test]
    async fn the_error_names_all_addresses() {
        let error = get(&[NOBODY, "http://u:pa55w0rd@127.0.0.1:2"]).await.unwrap_err();
        let said = format!("{error:#}");
        assert!(said.starts_with("no collector answers at 127.0.0.1:1 (Connection refused"), "{said}");
        assert!(said.contains("), 127.0.0.1:2; what") && !said.contains("pa55w0rd"), "{said}");
        assert!(error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect));
        let said = get(&[NOBODY]).await.unwrap_err().to_string();
        assert!(said.starts_with("the collector at 127.0.0.1:1 does not answer"), "{said}");
    }
}

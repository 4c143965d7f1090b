//! The built-in kind `fetch`: it gets a page over HTTP, with tries and a timeout of its own.

use std::error::Error;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use millpond::outcome::Failure;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use serde::{Deserialize, Serialize};

use crate::call::{Call, Reply, reply};

/// Tries when the arguments name none.
const TRIES_DEFAULT: u32 = 3;
/// Most tries that the arguments may ask for.
const TRIES_MAX: u32 = 20;
/// Timeout of one try when the arguments name none, in milliseconds.
const TIMEOUT_MS_DEFAULT: u64 = 5000;

/// Largest page that is read, in bytes. It is counted, and not kept.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Redirects that are followed.
const REDIRECTS_MAX: usize = 5;

/// `"http://…"`, or an object.
#[derive(Deserialize)]
#[serde(untagged)]
enum FetchArgs {
    Url(String),
    Full {
        url: String,
        #[serde(default)]
        tries: Option<u32>,
        #[serde(default)]
        timeout_ms: Option<u64>,
    },
}

#[derive(Serialize)]
struct FetchedPage {
    url: String,
    status: u16,
    bytes: usize,
    tries: u32,
}

/// Why an address is not fetched.
#[derive(Debug, thiserror::Error)]
#[error("{0} is an address of this machine or of its link: a worker fetches those with --fetch-local only")]
struct NotAllowed(String);

/// Finds addresses by name, without those of this machine and of its link.
struct PublicAddresses;

impl Resolve for PublicAddresses {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|at| !is_local(at.ip())).collect();
            if public.is_empty() {
                return Err(NotAllowed(name.as_str().to_owned()).into());
            }
            let addresses: Addrs = Box::new(public.into_iter());
            Ok(addresses)
        })
    }
}

/// Whether an address is loopback, link-local or unspecified, also as an IPv4 address within one of IPv6.
fn is_local(at: IpAddr) -> bool {
    match at {
        IpAddr::V4(at) => {
            at.is_loopback() || at.is_link_local() || at.is_unspecified() || at.octets().first() == Some(&0)
        }
        IpAddr::V6(at) => {
            let within = at.to_ipv4().is_some_and(|at| is_local(IpAddr::V4(at)));
            within || at.is_loopback() || at.is_unicast_link_local() || at.is_unspecified()
        }
    }
}

/// Refuses a URL whose host is an address that is not fetched; a name is looked up by [`PublicAddresses`].
fn check(url: &Url, local: bool) -> Result<(), NotAllowed> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    match host.parse::<IpAddr>() {
        Ok(at) if !local && is_local(at) => Err(NotAllowed(host.to_owned())),
        _ => Ok(()),
    }
}

/// What fetches.
#[derive(Clone)]
pub(super) struct FetchClient {
    /// The client of all calls, which keeps connections. None when TLS cannot be set up: then each call fails.
    http: Option<Client>,
    local: bool,
}

/// `local`: addresses of this machine and of its link may be fetched.
pub(super) fn client(local: bool) -> FetchClient {
    // An error means that the program has chosen its cryptography before: that choice stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let redirects = Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTS_MAX {
            return attempt.error(format!("more than {REDIRECTS_MAX} redirects"));
        }
        match check(attempt.url(), local) {
            Ok(()) => attempt.follow(),
            Err(error) => attempt.error(error),
        }
    });
    let builder = Client::builder().user_agent(concat!("millpond/", env!("CARGO_PKG_VERSION"))).redirect(redirects);
    let builder = if local { builder } else { builder.dns_resolver(PublicAddresses) };
    FetchClient { http: builder.build().ok(), local }
}

/// Answers with `{"url", "status", "bytes", "tries"}`; a status of 500 or more, or no answer, is tried again.
pub(super) async fn fetch(client: FetchClient, call: Call) -> Reply {
    let http = client.http.ok_or_else(|| Failure::new("error", "no HTTP client: TLS could not be set up"))?;
    let (given, tries, timeout_ms) = match call.args()? {
        FetchArgs::Url(url) => (url, None, None),
        FetchArgs::Full { url, tries, timeout_ms } => (url, tries, timeout_ms),
    };
    let wrong = |error: &dyn Display| Failure::fatal("bad_arguments", format!("{given:?} is not a URL: {error}"));
    let url: Url = given.parse().map_err(|error| wrong(&error))?;
    check(&url, client.local).map_err(|error| Failure::fatal("not_allowed", error.to_string()))?;
    // A password is for its server alone, not for whoever reads results.
    let shown = if url.password().is_some() { without_password(&url) } else { given.clone() };
    let tries = tries.unwrap_or(TRIES_DEFAULT).clamp(1, TRIES_MAX);
    let timeout = Duration::from_millis(timeout_ms.unwrap_or(TIMEOUT_MS_DEFAULT));
    let mut last = String::new();
    for attempt in 1..=tries {
        match get(&http, &url, timeout).await {
            Ok((status, _)) if status >= 500 => last = format!("status {status}"),
            Ok((status, bytes)) => return reply(&FetchedPage { url: shown, status, bytes, tries: attempt }),
            Err(FetchError::Http(error)) if error.is_builder() => {
                return Err(wrong(&error));
            }
            Err(FetchError::Http(error)) if is_refused(&error) => {
                let text = format!("{:#}", anyhow::Error::from(error.without_url()));
                return Err(Failure::fatal("not_allowed", text));
            }
            Err(FetchError::TooLarge) => {
                let text = format!("{shown}: the page has more than {BODY_BYTES_MAX} bytes");
                return Err(Failure::fatal("too_large", text));
            }
            // The error's own text says only that the request failed; its causes say why.
            Err(FetchError::Http(error)) => last = format!("{:#}", anyhow::Error::from(error.without_url())),
        }
    }
    Err(Failure::new(
        "fetch",
        format!("{shown}: {last} after {tries} tries of {timeout_ms:?} ms", timeout_ms = timeout.as_millis()),
    ))
}

/// Why a page was not got.
enum FetchError {
    Http(reqwest::Error),
    TooLarge,
}

/// Gets a page piece by piece: its status, and how many bytes it has.
async fn get(client: &Client, url: &Url, timeout: Duration) -> Result<(u16, usize), FetchError> {
    let mut response = client.get(url.clone()).timeout(timeout).send().await.map_err(FetchError::Http)?;
    let status = response.status().as_u16();
    let mut bytes = 0;
    while let Some(piece) = response.chunk().await.map_err(FetchError::Http)? {
        bytes += piece.len();
        if bytes > BODY_BYTES_MAX {
            return Err(FetchError::TooLarge);
        }
    }
    Ok((status, bytes))
}

/// Whether an address, that of a redirect too, was refused.
fn is_refused(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.is::<NotAllowed>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn without_password(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_password(None);
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine_are_known_however_they_are_written() {
        let local = [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
        ];
        let link =
            ["http://169.254.169.254/latest", "http://[fe80::1]/", "http://0.0.0.0:80/", "http://a:b@127.9.9.9/"];
        for url in local.iter().chain(&link) {
            assert!(check(&url.parse().unwrap(), false).is_err(), "{url}");
            assert!(check(&url.parse().unwrap(), true).is_ok(), "{url}");
        }
        for url in ["http://example.com/", "http://10.0.0.1/", "http://[2606:4700::1111]/"] {
            assert!(check(&url.parse().unwrap(), false).is_ok(), "{url}");
        }
    }

    #[tokio::test]
    async fn a_name_of_this_machine_is_not_fetched() {
        let failure = fetch(client(false), Call::for_test("t", r#""http://localhost:1/""#)).await.unwrap_err();
        assert_eq!((failure.kind.as_str(), failure.retry), ("not_allowed", false), "{failure:?}");
        let failure = fetch(client(true), Call::for_test("t", r#"{"url": "http://localhost:1/", "tries": 1}"#))
            .await
            .unwrap_err();
        assert_eq!(failure.kind, "fetch", "{failure:?}");
    }
}

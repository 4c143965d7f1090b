//! The built-in kind `fetch`: it gets a page over HTTP, with tries and a timeout of its own.

use std::time::Duration;

use millpond::outcome::Failure;
use serde::{Deserialize, Serialize};

use crate::call::{Call, Reply, reply};

/// Tries when the arguments name none.
const TRIES_DEFAULT: u32 = 3;
/// Most tries that the arguments may ask for.
const TRIES_MAX: u32 = 20;
/// Timeout of one try when the arguments name none, in milliseconds.
const TIMEOUT_MS_DEFAULT: u64 = 5000;

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

/// The client of all calls, which keeps connections. None when TLS cannot be set up: then each call fails.
pub(super) fn client() -> Option<reqwest::Client> {
    // An error means that the program has chosen its cryptography before: that choice stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().user_agent(concat!("millpond/", env!("CARGO_PKG_VERSION"))).build().ok()
}

/// Answers with `{"url", "status", "bytes", "tries"}`; a status of 500 or more, or no answer, is tried again.
pub(super) async fn fetch(client: Option<reqwest::Client>, call: Call) -> Reply {
    let client = client.ok_or_else(|| Failure::new("error", "no HTTP client: TLS could not be set up"))?;
    let (url, tries, timeout_ms) = match call.args()? {
        FetchArgs::Url(url) => (url, None, None),
        FetchArgs::Full { url, tries, timeout_ms } => (url, tries, timeout_ms),
    };
    let tries = tries.unwrap_or(TRIES_DEFAULT).clamp(1, TRIES_MAX);
    let timeout = Duration::from_millis(timeout_ms.unwrap_or(TIMEOUT_MS_DEFAULT));
    let mut last = String::new();
    for attempt in 1..=tries {
        match get(&client, &url, timeout).await {
            Ok((status, _)) if status >= 500 => last = format!("status {status}"),
            Ok((status, bytes)) => return reply(&FetchedPage { url, status, bytes, tries: attempt }),
            Err(error) if error.is_builder() => {
                return Err(Failure::fatal("bad_arguments", format!("{url:?} is not a URL: {error}")));
            }
            // The error's own text says only that the request failed; its causes say why.
            Err(error) => last = format!("{:#}", anyhow::Error::from(error.without_url())),
        }
    }
    Err(Failure::new(
        "fetch",
        format!("{url}: {last} after {tries} tries of {timeout_ms:?} ms", timeout_ms = timeout.as_millis()),
    ))
}

async fn get(client: &reqwest::Client, url: &str, timeout: Duration) -> Result<(u16, usize), reqwest::Error> {
    let response = client.get(url).timeout(timeout).send().await?;
    let status = response.status().as_u16();
    Ok((status, response.bytes().await?.len()))
}

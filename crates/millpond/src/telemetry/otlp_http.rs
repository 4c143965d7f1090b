//! Sends encoded requests by OTLP over HTTP (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>), to the address and in the way
//! that the standard variables say. The library's exporters take spans as structures of theirs, which are slow to build.

use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_otlp::OTEL_EXPORTER_OTLP_TIMEOUT_DEFAULT;
use percent_encoding::percent_decode_str;
use reqwest::blocking::{Client, Response};
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{StatusCode, Url};

use crate::config::variable;

/// How often a request is sent again, while the receiver says that it may be.
const RETRIES_MAX: u32 = 4;
/// The first delay before that; it doubles, and up to as much again is added at random.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Bytes of an answer that are read; all that it can say of interest fits.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// What takes the requests of one signal.
#[derive(Debug)]
pub(super) struct OtlpReceiver {
    client: Client,
    url: Url,
    headers: HeaderMap,
    gzip: bool,
    /// How long one request may take, with all that is sent again.
    within: Duration,
}

/// Why a request was not taken.
enum Refused {
    ForGood(String),
    /// It may be sent again, after this long where the receiver says so.
    ForNow(String, Option<Duration>),
}

impl OtlpReceiver {
    /// Of the signal with this name, `traces`; the error is a reason for a person.
    pub(super) fn from_env(signal: &str) -> Result<Self, String> {
        let own = format!("OTEL_EXPORTER_OTLP_{}_", signal.to_uppercase());
        let of_signal = |what: &str| variable(&format!("{own}{what}"));
        let set = |what: &str| of_signal(what).or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{what}")));
        let url = of_signal("ENDPOINT").unwrap_or_else(|| {
            let of_all = variable("OTEL_EXPORTER_OTLP_ENDPOINT").unwrap_or_default();
            format!("{}/v1/{signal}", of_all.trim_end_matches('/'))
        });
        let url: Url = url.parse().map_err(|wrong| format!("the address is no URL: {wrong}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("the address must begin with http:// or https://".to_owned());
        }
        let mut headers = headers(set("HEADERS").as_deref().unwrap_or_default())?;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let gzip = match set("COMPRESSION").as_deref() {
            None | Some("none") => false,
            Some("gzip") => true,
            Some(other) => return Err(format!("OTEL_EXPORTER_OTLP_COMPRESSION {other:?} must be gzip or none")),
        };
        if gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let within = set("TIMEOUT").map(|text| text.parse().map(Duration::from_millis).map_err(|_| text)).transpose();
        let wrong = |text| format!("OTEL_EXPORTER_OTLP_TIMEOUT {text:?} must be a number of milliseconds");
        let within = within.map_err(wrong)?.unwrap_or(OTEL_EXPORTER_OTLP_TIMEOUT_DEFAULT);
        // A redirect would turn the POST into a GET.
        let client = Client::builder().redirect(Policy::none()).build().map_err(|error| error.to_string())?;
        Ok(Self { client, url, headers, gzip, within })
    }

    /// Sends a request, again where the receiver says so or cannot be reached; what comes back is its answer, the error a reason
    /// for a person.
    pub(super) fn send(&self, request: Vec<u8>) -> Result<Vec<u8>, String> {
        let request = if self.gzip { gzipped(&request).map_err(|error| error.to_string())? } else { request };
        let (request, ends, mut delay) = (Bytes::from(request), Instant::now() + self.within, RETRY_FIRST);
        let mut retries = 0;
        loop {
            let (reason, after) = match self.send_once(request.clone(), ends) {
                Ok(answer) => return Ok(answer),
                Err(Refused::ForGood(reason)) => return Err(reason),
                Err(Refused::ForNow(reason, after)) => (reason, after),
            };
            let wait = after.unwrap_or_else(|| delay.mul_f64(1.0 + rand::random::<f64>()));
            if retries == RETRIES_MAX || Instant::now() + wait >= ends {
                return Err(reason);
            }
            thread::park_timeout(wait);
            (retries, delay) = (retries + 1, delay * 2);
        }
    }

    fn send_once(&self, request: Bytes, ends: Instant) -> Result<Vec<u8>, Refused> {
        let left = ends.saturating_duration_since(Instant::now());
        let sent = self.client.post(self.url.clone()).headers(self.headers.clone()).timeout(left).body(request).send();
        // The address may have a password.
        let mut answer = sent.map_err(|error| Refused::ForNow(error.without_url().to_string(), None))?;
        let status = answer.status();
        if status.is_success() {
            let mut body = Vec::new();
            // An answer that cannot be read to its end says nothing, and the request was taken.
            let _ = Read::take(&mut answer, ANSWER_BYTES_MAX).read_to_end(&mut body);
            return Ok(body);
        }
        let reason = format!("the receiver answered {status}");
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Refused::ForNow(reason, retry_after(&answer)),
            _ => Refused::ForGood(reason),
        })
    }
}

/// The delay that an answer asks for, in seconds; a date is taken for none.
fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn gzipped(request: &[u8]) -> io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::with_capacity(request.len() / 4), Compression::fast());
    gzip.write_all(request)?;
    gzip.finish()
}

/// Headers as `name=value,…`, with values percent-encoded. What is wrong is not repeated: it may be a password.
fn headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let read = pair.split_once('=').and_then(|(name, value)| {
            let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            Some((name, HeaderValue::from_str(&value).ok()?))
        });
        let wrong =
            || "OTEL_EXPORTER_OTLP_HEADERS must be name=value,name=value, with values percent-encoded".to_owned();
        let (name, mut value) = read.ok_or_else(wrong)?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_the_specification_writes_them() {
        let read = headers("api-key=a%20b%3D, x-tenant = t1 ,").unwrap();
        assert!(read.len() == 2 && read["api-key"] == "a b=" && read["x-tenant"] == "t1", "{}", read.len());
        assert!(headers("").unwrap().is_empty());
        for wrong in ["api-key", "a b=c", "a=%ff", "a=%0a"] {
            let said = headers(wrong).unwrap_err();
            assert!(said.contains("OTEL_EXPORTER_OTLP_HEADERS") && !said.contains("a b"), "{said}");
        }
    }
}

//! HTTP under ordinary mistakes: callers who say nothing, send slowly, too much, or what is not understood; certificates that change.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use reqwest::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, HeaderMap, X_CONTENT_TYPE_OPTIONS};

use crate::harness::{Cluster, PATIENCE, until};

fn address(url: &str) -> &str {
    url.trim_start_matches("http://")
}

/// A request as plain clients make it: all of it is written before anything of the answer is read.
fn plain(url: &str, head: &str, body: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address(url))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    stream
        .write_all(format!("{head}\r\nHost: x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").as_bytes())?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_say_nothing_keep_nobody_away() {
    let mut cluster = Cluster::start().await;
    // With as many files as a service often has.
    let few_files = ["sh", "-c", r#"ulimit -n 256; exec "$@""#, "sh"];
    cluster.wrap_collector(&few_files, &[]).await;
    let url = cluster.collector_url();
    let (_producer, producer) = cluster.producer().await;
    for (url, callers) in [(&url, 280), (&producer, 2500)] {
        let mut silent = Vec::new();
        for n in 0..callers {
            let mut stream = TcpStream::connect(address(url)).unwrap();
            // Nothing, or the half of a head.
            if n % 2 == 0 {
                let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n");
            }
            silent.push(stream);
        }
        let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap();
        let health = http.get(format!("{url}/healthz")).send().await.expect("health answers beside silent callers");
        assert!(health.status().is_success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_head_is_given_up_and_a_quick_one_is_not() {
    let cluster = Cluster::start().await;
    let url = cluster.collector_url();
    let mut slow = TcpStream::connect(address(&url)).unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n").unwrap();
    let ended = tokio::task::block_in_place(|| slow.read(&mut [0; 64]));
    assert!(ended.is_ok(), "the service ends it: {ended:?}");
    assert!(plain(&url, "GET /healthz HTTP/1.1", b"").unwrap().contains("200 OK"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_a_client_that_still_writes_a_large_body() {
    let cluster = Cluster::start().await;
    let (_producer, producer) = cluster.producer().await;
    let bearer = format!("Authorization: Bearer {}", cluster.nats.secrets.token);
    let body = vec![b'1'; 60_000_000];
    let collector = cluster.collector_url();
    let other = "Content-Type: multipart/form-data";
    for (url, status, head) in [
        (&producer, 401, "POST /v1/tasks/default/echo HTTP/1.1".to_owned()),
        (&producer, 404, format!("POST /v1/nope HTTP/1.1\r\n{bearer}")),
        (&producer, 405, format!("PUT /v1/tasks/default/echo HTTP/1.1\r\n{bearer}")),
        (&producer, 415, format!("POST /v1/tasks/default/echo HTTP/1.1\r\n{bearer}\r\n{other}")),
        (&producer, 415, format!("POST /v1/tasks/default/echo HTTP/1.1\r\n{bearer}\r\nContent-Encoding: gzip")),
        (&producer, 400, format!("POST /v1/tasks/default/echo HTTP/1.1\r\n{bearer}\r\nMillpond-Timeout: soon")),
        (&collector, 401, "POST /api/v1/dead/retry HTTP/1.1".to_owned()),
        (&collector, 413, format!("POST /api/v1/dead/retry HTTP/1.1\r\n{bearer}\r\nContent-Type: application/json")),
    ] {
        let answer = tokio::task::block_in_place(|| plain(url, &head, &body));
        let answer = answer.unwrap_or_else(|error| panic!("{head}: the client learns nothing: {error}"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {answer}");
    }
    // Who waits for `100 Continue` is not made to send it.
    let mut patient = TcpStream::connect(address(&producer)).unwrap();
    patient.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let head =
        "POST /v1/tasks/default/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\nExpect: 100-continue\r\n\r\n";
    patient.write_all(head.as_bytes()).unwrap();
    let mut start = [0; 12];
    tokio::task::block_in_place(|| patient.read_exact(&mut start)).unwrap();
    assert_eq!(&start, b"HTTP/1.1 401");
}

#[tokio::test(flavor = "multi_thread")]
async fn encodings_are_understood_or_refused_and_answers_are_not_kept() {
    let cluster = Cluster::start().await;
    let (_producer, producer) = cluster.producer().await;
    let http = reqwest::Client::new();
    let guarded = |headers: &HeaderMap| {
        assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(headers[CACHE_CONTROL], "no-store");
    };
    let submit = async |encoding: &str| {
        let request = http.post(format!("{producer}/v1/tasks/default/echo")).bearer_auth(&cluster.nats.secrets.token);
        request.header(CONTENT_ENCODING, encoding).body("1").send().await.unwrap()
    };
    for encoding in ["gzip", "br", "GZIP", "identity, gzip"] {
        let refused = submit(encoding).await;
        assert_eq!(refused.status().as_u16(), 415, "{encoding}");
        assert_eq!(refused.headers()[ACCEPT_ENCODING], "identity");
        guarded(refused.headers());
    }
    let taken = submit("identity").await;
    assert_eq!(taken.status().as_u16(), 202);
    guarded(taken.headers());
    for path in ["/healthz", "/openapi.json", "/v1/nope"] {
        guarded(http.get(format!("{producer}{path}")).send().await.unwrap().headers());
    }
    // What the parser expected is told in words of JSON.
    let wrong = http.post(format!("{}/api/v1/dead/retry", cluster.collector_url()));
    let wrong = wrong.bearer_auth(&cluster.nats.secrets.token).header("Content-Type", "application/json").body("1");
    let wrong = wrong.send().await.unwrap();
    let (status, text) = (wrong.status().as_u16(), wrong.text().await.unwrap());
    assert!(status == 400 && !text.contains("struct") && !text.contains("ActOn"), "{text}");
}

fn certificate(dir: &Path) -> reqwest::Certificate {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(dir.join("http.key"), signing_key.serialize_pem()).unwrap();
    std::fs::write(dir.join("http.pem"), cert.pem()).unwrap();
    reqwest::Certificate::from_pem(cert.pem().as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_changes_is_served_without_a_restart() {
    let mut cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let first = certificate(dir.path());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (cert, key) = (file("http.pem"), file("http.key"));
    cluster.restart_collector_with(&[("MILLPOND_TLS_HTTP_CERT", &cert), ("MILLPOND_TLS_HTTP_KEY", &key)]);
    let url = cluster.collector_url().replace("http://", "https://");
    let trusting = |certificate: reqwest::Certificate| {
        let client = reqwest::Client::builder().tls_certs_only([certificate]).pool_max_idle_per_host(0);
        client.timeout(Duration::from_secs(5)).build().unwrap()
    };
    let answers = async |http: &reqwest::Client| {
        until("HTTPS with this certificate", PATIENCE, async || http.get(format!("{url}/healthz")).send().await.ok())
            .await
    };
    let before = trusting(first.clone());
    answers(&before).await;
    // A half of what is new is not taken; what was served goes on.
    std::fs::write(&key, "no key").unwrap();
    until("complaint about the key", PATIENCE, async || {
        cluster.log("collector").contains("cannot be used: the one before is served").then_some(())
    })
    .await;
    answers(&before).await;
    let after = trusting(certificate(dir.path()));
    answers(&after).await;
    // A client of its own: a session of before may be resumed, and then nobody looks at the certificate.
    let before = trusting(first);
    assert!(before.get(format!("{url}/healthz")).send().await.is_err(), "the one before is not served any more");
}

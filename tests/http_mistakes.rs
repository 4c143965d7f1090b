//! Every route of both services under the ordinary mistakes of callers. The routes are read from the documents that the services
//! serve, so that a new one is tried by itself. Each answer is an error as docs/http.md has it, none is a fault of the service, none
//! is waited for in vain, and the service is ready afterwards.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Cluster, PATIENCE, until};

/// A caller may stall for this long.
const STALLED_AFTER: &str = "1s";
/// Any answer has begun by then.
const ANSWERS_WITHIN: Duration = Duration::from_secs(15);
const METHODS: [&str; 6] = ["GET", "POST", "PUT", "PATCH", "DELETE", "BREW"];

/// A service, and how it is spoken to.
struct Service {
    url: String,
    token: String,
}

/// A path of the document.
struct Route {
    /// As the document has it, with `{names}`.
    path: String,
    methods: Vec<String>,
    operation: Value,
}

/// The status, the head in small letters, and the body of an answer that is no success.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Service {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.url.trim_start_matches("http://")).unwrap();
        stream.set_read_timeout(Some(ANSWERS_WITHIN)).unwrap();
        stream.set_write_timeout(Some(ANSWERS_WITHIN)).unwrap();
        stream
    }

    /// Sends a head with these lines, and a body.
    fn send(&self, start: &str, lines: &[&str], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let head = format!(
            "{start} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n{lines}\r\n",
            self.token
        );
        // Who is refused early may find the connection closed.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        read(&mut stream).unwrap_or_else(|why| panic!("{start} {lines:?}: {why}"))
    }

    async fn routes(&self, document: &str) -> Vec<Route> {
        let document: Value = reqwest::get(format!("{}{document}", self.url)).await.unwrap().json().await.unwrap();
        let paths = document["paths"].as_object().unwrap().iter();
        paths
            .map(|(path, item)| {
                let (methods, operations): (Vec<_>, Vec<_>) = item.as_object().unwrap().clone().into_iter().unzip();
                let methods = methods.iter().map(|method| method.to_uppercase()).collect();
                Route { path: path.clone(), methods, operation: operations.into_iter().next().unwrap() }
            })
            .collect()
    }
}

fn read(stream: &mut TcpStream) -> Result<Answer, String> {
    let mut got = Vec::new();
    let mut byte = [0; 1];
    while !got.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => got.push(byte[0]),
            end => return Err(format!("no answer but {:?} ({end:?})", String::from_utf8_lossy(&got))),
        }
    }
    let head = String::from_utf8(got).unwrap().to_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| head.clone())?;
    let mut body = String::new();
    // A success may be a stream without an end.
    if status >= 400 {
        stream.read_to_string(&mut body).map_err(|error| format!("{head}: {error}"))?;
    }
    Ok(Answer { status, head, body })
}

impl Answer {
    /// Checks that it is an error of the caller as the documents have it; `empty`: what is not HTTP may have no body.
    fn is_refusal(&self, of: &str, statuses: &[u16], empty: bool) {
        let Self { status, head, body } = self;
        assert!(statuses.contains(status), "{of}: {status} instead of one of {statuses:?}, {body}");
        if empty && body.is_empty() {
            return;
        }
        assert!(head.contains("content-type: application/json"), "{of}: {head}");
        let error: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{of}: {error}: {body}"));
        let text = error["error"].as_str().unwrap_or_else(|| panic!("{of}: {body}"));
        for of_rust in ["struct ", "enum ", "::", "Option<", "RawValue"] {
            assert!(!text.contains(of_rust), "{of}: {text}");
        }
        for of_library in OF_LIBRARIES {
            assert!(!text.contains(of_library), "{of}: {text}");
        }
    }
}

impl Route {
    fn filled(&self, with: &str) -> String {
        let mut path = String::new();
        for part in self.path.split_inclusive('/') {
            let (name, slash) = part.strip_suffix('/').map_or((part, ""), |name| (name, "/"));
            path += if name.starts_with('{') { with } else { name };
            path += slash;
        }
        path
    }

    fn has_body(&self) -> bool {
        self.operation["requestBody"].is_object()
    }

    /// The line of the head that names the type of its body.
    fn media(&self) -> String {
        let types = self.operation["requestBody"]["content"].as_object();
        let first = types.and_then(|types| types.keys().next()).map_or("application/json", String::as_str);
        format!("Content-Type: {first}")
    }

    fn needs_token(&self) -> bool {
        self.operation["security"].as_array().is_some_and(|security| !security.is_empty())
    }

    fn query(&self) -> Vec<(String, Value)> {
        let parameters = self.operation["parameters"].as_array().cloned().unwrap_or_default();
        let of_query = parameters.into_iter().filter(|parameter| parameter["in"] == "query");
        of_query
            .map(|parameter| (parameter["name"].as_str().unwrap().to_owned(), parameter["schema"].clone()))
            .collect()
    }
}

/// What the libraries below the services say of requests: their words are for who writes programs with them.
const OF_LIBRARIES: [&str; 10] = [
    "Failed to",
    "eserialize",
    "length limit exceeded",
    "line length",
    "Invalid URL",
    "Wrong number",
    "found in string",
    "target type",
    "variant",
    "error reading",
];

const OF_CALLER: &[u16] = &[400, 401, 403, 404, 405, 408, 409, 411, 413, 414, 415, 417, 422, 429, 431];

fn wrong_methods(service: &Service, route: &Route) {
    let path = route.filled("x9");
    for method in METHODS.iter().filter(|method| !route.methods.iter().any(|known| known == *method)) {
        let answer = service.send(&format!("{method} {path}"), &["Content-Length: 0"], b"");
        answer.is_refusal(&format!("{method} {path}"), &[405], false);
        let allow = answer.head.lines().find(|line| line.starts_with("allow:")).unwrap_or_else(|| {
            panic!("{method} {path}: no Allow in {}", answer.head);
        });
        assert!(route.methods.iter().all(|known| allow.contains(&known.to_lowercase())), "{path}: {allow}");
    }
    for method in ["HEAD", "OPTIONS"] {
        let mut stream = service.connect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
            service.token
        );
        stream.write_all(head.as_bytes()).unwrap();
        let answer = read(&mut stream).unwrap_or_else(|why| panic!("{method} {path}: {why}"));
        assert!(answer.status < 500, "{method} {path}: {}", answer.status);
        assert!(method == "OPTIONS" || answer.body.is_empty(), "an answer to HEAD has no body: {}", answer.body);
    }
}

fn wrong_bodies(service: &Service, route: &Route) {
    let start = format!("{} {}", route.methods[0], route.filled("x9"));
    let media = route.media();
    let json = media.as_str();
    for (encoding, statuses) in [("gzip", &[415][..]), ("br, identity", &[415])] {
        let lines = [json, &format!("Content-Encoding: {encoding}"), "Content-Length: 2"];
        service.send(&start, &lines, b"{}").is_refusal(&format!("{start} {encoding}"), statuses, false);
    }
    for (line, statuses) in [
        ("Content-Length: -1", &[400][..]),
        ("Content-Length: many", &[400]),
        ("Content-Length: 1\r\nContent-Length: 2", &[400]),
        ("Content-Length: 99999999999999999999999", &[400, 413]),
        ("Transfer-Encoding: nonsense", &[400, 501]),
        ("Transfer-Encoding: chunked, gzip", &[400, 501]),
    ] {
        service.send(&start, &[json, line], b"{}").is_refusal(&format!("{start} {line}"), statuses, true);
    }
    if !route.has_body() {
        return;
    }
    // Any bytes are right there.
    let takes_all = json == "Content-Type: application/octet-stream";
    let chunks = service.send(&start, &[json, "Transfer-Encoding: chunked"], b"zz\r\n{}\r\n0\r\n\r\n");
    chunks.is_refusal(&format!("{start} with a chunk of no size"), &[400], true);
    // One that never comes as long as it says, and one that is larger than anything may be.
    for length in ["5", "1000000000000"] {
        let answer = service.send(&start, &[json, &format!("Content-Length: {length}")], b"{");
        answer.is_refusal(&format!("{start} that stalls"), &[400, 408, 413, 415], false);
    }
    let mut bodies: Vec<&[u8]> = vec![b"\xff\xfe\x00", b"{", b"{\"a\": \xff}", b"[1", b"{} {}"];
    let (deep, large) = (vec![b'['; 100_000], vec![b' '; 3 << 20]);
    bodies.push(&deep);
    // The arguments of one task may be as large as that, and are then not read here.
    bodies.extend(Some(&large[..]).filter(|_| !route.path.starts_with("/v1/tasks")));
    for body in bodies.into_iter().filter(|_| !takes_all) {
        let length = format!("Content-Length: {}", body.len());
        let answer = service.send(&start, &[json, &length], body);
        answer.is_refusal(
            &format!("{start} with {:?}", String::from_utf8_lossy(&body[..body.len().min(9)])),
            OF_CALLER,
            false,
        );
    }
    if json == "Content-Type: application/json" {
        for media in ["Content-Type: multipart/form-data", "Content-Type: application/x-ndjson"] {
            let answer = service.send(&start, &[media, "Content-Length: 2"], b"{}");
            answer.is_refusal(&format!("{start} {media}"), &[415], false);
        }
    }
    if takes_all {
        let digest = "Repr-Digest: sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:";
        for (line, status) in [
            (digest, 400),
            ("Repr-Digest: sha-256=abc", 400),
            ("Content-Digest: sha-256", 400),
            ("Content-Range: bytes 0-1/4", 400),
        ] {
            let answer = service.send(&start, &[json, line, "Content-Length: 2"], b"{}");
            answer.is_refusal(&format!("{start} {line}"), &[status], false);
        }
        let form = service.send(&start, &["Content-Type: multipart/form-data; boundary=x", "Content-Length: 2"], b"{}");
        form.is_refusal(&format!("{start} with a form"), &[415], false);
    }
    // A caller that goes in the middle of what it says.
    let mut gone = service.connect();
    let half = format!("{start} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n{json}\r\n\r\n{{");
    gone.write_all(half.as_bytes()).unwrap();
    let _ = gone.shutdown(Shutdown::Both);
}

fn odd_paths(service: &Service, route: &Route) {
    if !route.path.contains('{') {
        return;
    }
    let long = "x".repeat(300);
    for odd in ["%00", "%0a", "%20x", "..", "%2e%2e", "a%2fb", "%ff", "%zz", "a.b", "*", &long] {
        let start = format!("{} {}", route.methods[0], route.filled(odd));
        let answer = service.send(&start, &["Content-Type: application/json", "Content-Length: 2"], b"{}");
        answer.is_refusal(&start, &[400, 404, 405, 415], odd == "%zz");
    }
}

fn odd_queries(service: &Service, route: &Route) {
    let start = |query: &str| format!("{} {}?{query}", route.methods[0], route.filled("x9"));
    let lines = ["Content-Type: application/json", "Content-Length: 2"];
    let refused = |query: &str| {
        let start = start(query);
        service.send(&start, &lines, b"{}").is_refusal(&start, &[400, 413, 415], false);
    };
    if route.needs_token() {
        for odd in ["no-such-parameter=1", "%00=1", "=&=", "no%0asuch=1"] {
            refused(odd);
        }
    }
    for (name, schema) in route.query() {
        refused(&format!("{name}=1&{name}=1"));
        refused(&format!("{name}=%00"));
        if schema["type"] == "integer" || schema["type"] == "boolean" {
            for odd in ["x", "", "-1", "1.5", "99999999999999999999999"] {
                refused(&format!("{name}={odd}"));
            }
        }
        if name == "id" {
            let long = "x".repeat(257);
            for odd in ["", "%20a", "a%20", "a%0ab", "a%0d", "%00", "a%00b", long.as_str()] {
                refused(&format!("id={odd}"));
            }
        }
    }
}

async fn try_all(service: Service, document: &str) {
    let routes = service.routes(document).await;
    assert!(routes.len() >= 7, "the routes are found");
    for route in routes {
        tokio::task::block_in_place(|| {
            wrong_methods(&service, &route);
            wrong_bodies(&service, &route);
            odd_paths(&service, &route);
            odd_queries(&service, &route);
        });
        let ready = reqwest::get(format!("{}/readyz", service.url)).await.unwrap();
        assert_eq!(ready.status().as_u16(), 200, "after {}", route.path);
    }
    for path in ["/nope", "/../etc/passwd", "/%2e%2e/x", "//", "/console/../..", "/console/%ff", "/console/a%00b", "*"]
    {
        let answer = tokio::task::block_in_place(|| service.send(&format!("GET {path}"), &[], b""));
        answer.is_refusal(path, &[400, 404], path == "*");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_mistake_of_a_caller_is_a_fault_of_the_collector() {
    let mut cluster = Cluster::start().await;
    cluster.restart_collector_with(&[("MILLPOND_HTTP_STALLED_AFTER", STALLED_AFTER)]);
    crate::harness::is_ready(&cluster.collector_url()).await;
    let (url, token) = (cluster.collector_url(), cluster.nats.secrets.token.clone());
    try_all(Service { url, token }, "/api/v1/openapi.json").await;
    assert!(!cluster.log("collector").contains("panicked"), "{}", cluster.log("collector"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_mistake_of_a_caller_is_a_fault_of_the_producer() {
    let cluster = Cluster::start().await;
    let (_producer, url) = cluster.producer_with(&[("MILLPOND_HTTP_STALLED_AFTER", STALLED_AFTER)]).await;
    let token = cluster.nats.secrets.token.clone();
    try_all(Service { url, token }, "/openapi.json").await;
    assert!(!cluster.log("producer").contains("panicked"), "{}", cluster.log("producer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stalls_is_answered_and_a_caller_who_takes_nothing_is_let_go() {
    let mut cluster = Cluster::start().await;
    cluster.restart_collector_with(&[("MILLPOND_HTTP_STALLED_AFTER", STALLED_AFTER)]);
    crate::harness::is_ready(&cluster.collector_url()).await;
    let token = cluster.nats.secrets.token.clone();
    let (_producer, producer) = cluster.producer_with(&[("MILLPOND_HTTP_STALLED_AFTER", STALLED_AFTER)]).await;
    let collector = Service { url: cluster.collector_url(), token: token.clone() };
    let producer = Service { url: producer, token };
    let lines = ["Content-Type: application/json", "Content-Length: 50"];
    for (service, start) in [
        (&producer, "POST /v1/tasks/default/echo"),
        (&producer, "POST /v1/jobs/default/echo"),
        (&collector, "POST /api/v1/dead/retry"),
    ] {
        let lines = if start.contains("jobs") { &lines[1..] } else { &lines[..] };
        let answer = tokio::task::block_in_place(|| service.send(start, lines, b"{"));
        answer.is_refusal(start, &[408], false);
        assert!(answer.body.contains("nothing for 1s"), "{}", answer.body);
    }
    // Many answers, of which the caller reads none.
    for (service, document) in [(&collector, "/api/v1/openapi.json"), (&producer, "/openapi.json")] {
        let mut greedy = service.connect();
        let request = format!("GET {document} HTTP/1.1\r\nHost: x\r\n\r\n");
        greedy.write_all(request.repeat(1000).as_bytes()).unwrap();
        greedy.set_nonblocking(true).unwrap();
        until("end of the connection", PATIENCE, async || {
            let ended = greedy.write(b"x").err().filter(|error| error.kind() != std::io::ErrorKind::WouldBlock);
            ended.map(|_| ())
        })
        .await;
    }
}

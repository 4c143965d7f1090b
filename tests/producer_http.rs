//! The producer over HTTP: waits, streams both ways at once, errors that are always JSON, and a document that lists what
//! is served. Schemathesis tries what nobody thought of.

use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::harness::{Cluster, PATIENCE, Process, until};
use crate::schemathesis;

/// Path, query, headers and body; then the status, and a part of the message.
type Case = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str, u16, &'static str);

struct Producer {
    process: Process,
    url: String,
    token: String,
}

impl Producer {
    async fn start(cluster: &Cluster) -> Self {
        let (process, url) = cluster.producer().await;
        Self { process, url, token: cluster.nats.secrets.token.clone() }
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> (StatusCode, Value) {
        let request = reqwest::Client::new().request(method, format!("{}{path}", self.url)).body(body.to_owned());
        let request = headers.iter().fold(request.bearer_auth(&self.token), |r, (name, value)| r.header(*name, *value));
        let answer = request.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap_or(Value::Null))
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let (status, answer) = self.send(Method::POST, path, headers, body).await;
        (status.as_u16(), answer)
    }

    /// Opens a request whose body is written and whose answer is read at the same time.
    async fn duplex(&self, path: &str) -> Duplex {
        let stream = TcpStream::connect(self.url.trim_start_matches("http://")).await.unwrap();
        let mut duplex = Duplex { stream: BufReader::new(stream), chunk: String::new() };
        let token = &self.token;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        duplex.stream.write_all(head.as_bytes()).await.unwrap();
        duplex
    }
}

/// HTTP/1.1 by hand: chunks out, chunks in.
struct Duplex {
    stream: BufReader<TcpStream>,
    /// What was read and not yet taken as a line.
    chunk: String,
}

impl Duplex {
    async fn write(&mut self, text: &str) {
        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
        self.stream.write_all(chunk.as_bytes()).await.unwrap();
    }

    async fn end(&mut self) {
        self.stream.write_all(b"0\r\n\r\n").await.unwrap();
    }

    async fn raw_line(&mut self) -> String {
        let mut line = String::new();
        tokio::time::timeout(PATIENCE, self.stream.read_line(&mut line)).await.unwrap().unwrap();
        line.trim_end().to_owned()
    }

    /// The status; the headers are read away.
    async fn status(&mut self) -> String {
        let status = self.raw_line().await;
        while !self.raw_line().await.is_empty() {}
        status
    }

    /// The next line of the answer; none at its end.
    async fn line(&mut self) -> Option<Value> {
        while !self.chunk.contains('\n') {
            let size = usize::from_str_radix(&self.raw_line().await, 16).unwrap();
            let mut chunk = vec![0; size + 2];
            self.stream.read_exact(&mut chunk).await.unwrap();
            if size == 0 {
                assert!(self.chunk.is_empty(), "the answer ends with a whole line");
                return None;
            }
            self.chunk.push_str(std::str::from_utf8(&chunk[..size]).unwrap());
        }
        let (line, rest) = self.chunk.split_once('\n').unwrap();
        let value = serde_json::from_str(line).unwrap();
        self.chunk = rest.to_owned();
        Some(value)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_come_while_the_lines_are_still_being_read() {
    let cluster = Cluster::start().await;
    let producer = Producer::start(&cluster).await;
    let _worker = cluster.worker("w1", &[], None);
    let mut duplex = producer.duplex("/v1/jobs/default/square?job=live&wait=true").await;
    assert_eq!(duplex.status().await, "HTTP/1.1 200 OK");
    for n in 0..3 {
        duplex.write(&format!("{n}\n")).await;
        let line = duplex.line().await.unwrap();
        assert_eq!(line, json!({ "index": n, "id": format!("live.1/{n}"), "status": "done", "result": n * n }));
    }
    let (_, open) = producer.send(Method::GET, "/v1/jobs/live", &[], "").await;
    assert_eq!((&open["state"], &open["total"], &open["kind"]), (&json!("open"), &Value::Null, &json!("square")));
    duplex.write("\"no number\"\n").await;
    let dead = duplex.line().await.unwrap();
    assert_eq!(
        (&dead["status"], &dead["index"], &dead["failure"]["type"]),
        (&json!("dead"), &json!(3), &json!("bad_arguments"))
    );
    duplex.end().await;
    let summary = duplex.line().await.unwrap();
    assert_eq!(summary, json!({ "job": "live", "total": 4, "done": 3, "dead": 1, "cancelled": 0 }));
    assert_eq!(duplex.line().await, None);
    let (_, closed) = producer.send(Method::GET, "/v1/jobs/live", &[], "").await;
    assert_eq!((&closed["state"], &closed["total"], &closed["published"]), (&json!("closed"), &json!(4), &json!(4)));
    // Nothing at all is a job, too.
    let (status, summary) = producer.post("/v1/jobs/default/square?job=none&wait=true", &[], "").await;
    assert_eq!((status, &summary["total"]), (200, &json!(0)), "{summary}");
    // Many, in order.
    let lines: String = (0..5000).map(|n| format!("{n}\n")).collect();
    let request =
        reqwest::Client::new().post(format!("{}/v1/jobs/default/square?wait=true&ordered=true", producer.url));
    let text = request.bearer_auth(&producer.token).body(lines).send().await.unwrap().text().await.unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.pop().unwrap()["done"], 5000);
    let squares: Vec<u64> = lines.iter().map(|line| line["result"].as_u64().unwrap()).collect();
    assert!(squares.into_iter().eq((0..5000).map(|n| n * n)), "each result once, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_early_says_so_and_what_was_accepted_runs_on() {
    let cluster = Cluster::start().await;
    let mut producer = Producer::start(&cluster).await;
    // A line that is no JSON.
    let mut torn = producer.duplex("/v1/jobs/default/square?job=torn&wait=true").await;
    assert_eq!(torn.status().await, "HTTP/1.1 200 OK");
    torn.write("1\n2\n").await;
    until("two stored tasks", PATIENCE, async || {
        let (_, job) = producer.send(Method::GET, "/v1/jobs/torn", &[], "").await;
        // Its record is renewed every two seconds.
        (job["published"] == 2).then_some(())
    })
    .await;
    torn.write("three\n").await;
    let last = torn.line().await.unwrap();
    assert!(last["error"].as_str().unwrap().contains("line 3"), "{last}");
    assert_eq!((&last["stored"], &last["job"]), (&json!(2), &json!("torn")));
    assert_eq!(torn.line().await, None);
    // A caller who goes away.
    let mut gone = producer.duplex("/v1/jobs/default/square?job=gone&wait=true").await;
    assert_eq!(gone.status().await, "HTTP/1.1 200 OK");
    gone.write("1\n2\n3\n").await;
    until("three stored tasks", PATIENCE, async || {
        let (_, job) = producer.send(Method::GET, "/v1/jobs/gone", &[], "").await;
        (job["published"] == 3).then_some(())
    })
    .await;
    drop(gone);
    until("the job of nobody", PATIENCE, async || {
        let (_, job) = producer.send(Method::GET, "/v1/jobs/gone", &[], "").await;
        (job["state"] == "stalled").then_some(())
    })
    .await;
    // A service that is told to stop: whoever waits is told, and it does not stay for them.
    let mut stopped = producer.duplex("/v1/jobs/default/square?job=stopped&wait=true").await;
    assert_eq!(stopped.status().await, "HTTP/1.1 200 OK");
    stopped.write("4\n").await;
    until("the stored task", PATIENCE, async || {
        let (_, job) = producer.send(Method::GET, "/v1/jobs/stopped", &[], "").await;
        (job["published"] == 1).then_some(())
    })
    .await;
    producer.process.signal(Signal::SIGTERM);
    let last = stopped.line().await.unwrap();
    assert_eq!((&last["stored"], &last["job"]), (&json!(1), &json!("stopped")));
    let ended = producer.process.end(PATIENCE).await;
    assert!(ended.success(), "{ended}, {}", cluster.log("producer"));
    let _worker = cluster.worker("w1", &[], None);
    for (job, tasks) in [("gone", 3), ("torn", 2), ("stopped", 1)] {
        let ends = cluster.job_ends(job, tasks, PATIENCE).await;
        assert!(ends.iter().all(|end| end["status"] == "done"), "{job}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_can_be_waited_for() {
    let cluster = Cluster::start().await;
    let producer = Producer::start(&cluster).await;
    let key = [("Idempotency-Key", "order-7")];
    let (status, answer) = producer.post("/v1/tasks/default/square?wait=100ms", &key, "12").await;
    assert_eq!((status, &answer["id"], &answer["duplicate"]), (202, &json!("order-7"), &json!(false)), "{answer}");
    let _worker = cluster.worker("w1", &[], None);
    assert_eq!(cluster.ended("order-7").await["result"], 144);
    // It ended before the second request began to listen.
    let (status, answer) = producer.post("/v1/tasks/default/square?wait=30s", &key, "12").await;
    assert_eq!((status, &answer), (200, &json!({ "id": "order-7", "status": "done", "result": 144 })));
    let once = [("Millpond-Attempts-Max", "1")];
    let (status, answer) = producer.post("/v1/tasks/default/fail?wait=30s", &once, r#"{"message": "not today"}"#).await;
    assert_eq!((status, &answer["status"], &answer["failure"]["message"]), (200, &json!("dead"), &json!("not today")));
    let (status, answer) = producer.post("/v1/tasks/default/echo?wait=30s", &[], "null").await;
    assert_eq!((status, &answer["result"], answer.as_object().unwrap().len()), (200, &Value::Null, 3), "{answer}");
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..50 {
        let request = reqwest::Client::new().post(format!("{}/v1/tasks/default/square?wait=60s", producer.url));
        let request = request.bearer_auth(&producer.token).body(n.to_string());
        waiting.spawn(async move { (n, request.send().await.unwrap().json::<Value>().await.unwrap()) });
    }
    for (n, answer) in waiting.join_all().await {
        assert_eq!(answer["result"], n * n, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_told_as_json() {
    let cluster = Cluster::start().await;
    let producer = Producer::start(&cluster).await;
    const TASK: &str = "/v1/tasks/default/square";
    const JOB: &str = "/v1/jobs/default/square";
    const NDJSON: (&str, &str) = ("Content-Type", "application/x-ndjson");
    let cases: [Case; 33] = [
        (TASK, "", &[], "twelve", 400, "one JSON value"),
        (TASK, "", &[], "", 400, "one JSON value"),
        (TASK, "", &[NDJSON], "1\n2\n", 415, "/v1/jobs"),
        (TASK, "?wait=soon", &[], "1", 400, "wait"),
        (TASK, "?wait=11m", &[], "1", 400, "10 minutes"),
        (TASK, "?wiat=1s", &[], "1", 400, "wiat"),
        (TASK, "?job=a&job=b", &[], "1", 400, "more than one parameter `job`"),
        (TASK, "?job=a.b", &[], "1", 400, "job"),
        (TASK, "?job=a.b&wait=1s", &[], "1", 400, "job"),
        ("/v1/tasks/de.fault/square", "", &[], "1", 400, "queue"),
        ("/v1/tasks/%ff/square", "", &[], "1", 400, "path"),
        (TASK, "", &[("Idempotency-Key", "")], "1", 400, "Idempotency-Key"),
        (TASK, "", &[("Idempotency-Key", "\u{e4}")], "1", 400, "ASCII"),
        (TASK, "", &[("Millpond-Timeout", "0s")], "1", 400, "Millpond-Timeout"),
        (TASK, "", &[("Millpond-Attempts-Max", "101")], "1", 400, "1 to 100"),
        (TASK, "", &[("Millpond-Expires", "tomorrow")], "1", 400, "RFC 3339"),
        (TASK, "", &[("Millpond-Delay", "584554531y")], "1", 400, "Millpond-Delay"),
        (TASK, "", &[("Millpond-Expires", "2030-01-01T00:00:00")], "1", 400, "no time zone"),
        (TASK, "", &[("Millpond-Typo", "x")], "1", 400, "header millpond-typo is not known"),
        (TASK, "", &[("Millpond-Expire", "2030-01-01T00:00:00Z")], "1", 400, "the nearest is Millpond-Expires"),
        (TASK, "", &[("Millpond-Retry", "3")], "1", 400, "is not known"),
        (TASK, "", &[("Millpond-Index", "3")], "1", 400, "Millpond-Index means nothing here"),
        (TASK, "", &[("Millpond-Attempt", "3")], "1", 400, "Millpond-Attempts-Max"),
        (TASK, "", &[("Nats-Msg-Id", "mine")], "1", 400, "Idempotency-Key"),
        (TASK, "", &[("Millpond-Timeout", "1s"), ("millpond-timeout", "PT1M")], "1", 400, "given twice"),
        (TASK, "", &[("Idempotency-Key", "a"), ("idempotency-key", "b")], "1", 400, "given twice"),
        (JOB, "", &[NDJSON, ("Millpond-Atempts-Max", "1")], "1", 400, "the nearest is Millpond-Attempts-Max"),
        (JOB, "", &[("Content-Type", "application/json")], "[1]", 415, "ndjson"),
        (JOB, "?batch=0", &[NDJSON], "1", 400, "batch"),
        (JOB, "?wait=yes", &[NDJSON], "1", 400, "query"),
        (JOB, "?ordered=true", &[NDJSON], "1", 400, "wait=true"),
        (JOB, "", &[NDJSON, ("Millpond-Delay", "1s")], "1", 400, "Millpond-Delay"),
        ("/v1/nothing", "", &[], "1", 404, "openapi.json"),
    ];
    for (path, query, headers, body, status, words) in cases {
        let answer = producer.post(&format!("{path}{query}"), headers, body).await;
        let said = answer.1["error"].as_str().unwrap_or_default();
        assert!(answer.0 == status && said.contains(words), "{path}{query} {headers:?}: {answer:?}");
    }
    let large = "1".repeat(1024 * 1024 + 1);
    assert_eq!(producer.post(TASK, &[], &large).await.0, 202, "it goes to the store of payloads");
    let (status, answer) = producer.post(&format!("{JOB}?job=large"), &[NDJSON], &format!("1\n{large}\n")).await;
    assert_eq!(status, 400, "{answer}");
    for (path, status) in [("/v1/jobs/a.b", 400), ("/v1/jobs/none", 404), ("/v1/jobs/none?x=1", 400)] {
        let (got, answer) = producer.send(Method::GET, path, &[], "").await;
        assert!(got.as_u16() == status && answer["error"].is_string(), "{path}: {got} {answer}");
    }
    // The name of a job is taken once, however it is published.
    assert_eq!(producer.post(&format!("{JOB}?job=taken"), &[NDJSON], "1\n").await.0, 202);
    for query in ["?job=taken", "?job=taken&wait=true"] {
        assert_eq!(producer.post(&format!("{JOB}{query}"), &[NDJSON], "1\n").await.0, 409, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_lists_what_is_served_and_nothing_else() {
    let cluster = Cluster::start().await;
    let producer = Producer::start(&cluster).await;
    let document: Value = reqwest::get(format!("{}/openapi.json", producer.url)).await.unwrap().json().await.unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 11);
    for (path, item) in paths {
        let filled =
            path.replace("{queue}", "a.b").replace("{kind}", "k").replace("{job}", "a.b").replace("{name}", "a.b");
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let listed = !item[method.as_str().to_ascii_lowercase()].is_null();
            let url = format!("{}{filled}", producer.url);
            let mut request = reqwest::Client::new().request(method.clone(), url);
            if path == "/v1/schedules/{name}" && method == Method::PUT {
                request = request.header("Content-Type", "application/json").body("{}");
            }
            let answer = request.bearer_auth(&producer.token).send().await.unwrap();
            let status = answer.status().as_u16();
            if listed {
                assert!([200, 201, 400].contains(&status), "{method} {path}: {status}");
            } else {
                assert!(answer.headers().contains_key("allow"), "{method} {path}");
                let error: Value = answer.json().await.unwrap();
                assert!(status == 405 && error["error"].is_string(), "{method} {path}: {status} {error}");
            }
        }
    }
    // Without the token, only what is not guarded answers.
    for (path, status) in [("/v1/jobs/x", 401), ("/healthz", 200), ("/readyz", 200), ("/metrics", 200)] {
        let answer = reqwest::get(format!("{}{path}", producer.url)).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_nothing() {
    let cluster = Cluster::start().await;
    let producer = Producer::start(&cluster).await;
    let _worker = cluster.worker("w1", &["--unknown-kind-after", "1s"], None);
    schemathesis::finds_nothing(&format!("{}/openapi.json", producer.url), &producer.token).await;
}

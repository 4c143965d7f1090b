//! Values are never changed: what a publisher gave comes to the handler, and what the handler answered to every reader, byte for
//! byte. What is no JSON is refused with its place, or carried as bytes that are marked.

use std::io::Write;
use std::process::{Output, Stdio};

use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use serde_json::json;
use tempfile::TempDir;

use crate::calls::raw;
use crate::harness::{Cluster, Process, task, text, until};

/// Values that programs change when they parse and print them, or that some parsers refuse.
fn values() -> Vec<String> {
    let mut values: Vec<String> = [
        "3889108265204450030",
        "18446744073709551617",
        "-0",
        "1.0",
        "0.10000000000000000555",
        r#"{"b":1,"a":2,"1":3}"#,
        r#"{"a":1,"a":2}"#,
        r#""\ud800""#,
        r#""\u0000\/\u00e9é""#,
        "1e400",
        "-1E-400",
        r#"{"base64":"6Q=="}"#,
        "null",
    ]
    .map(str::to_owned)
    .into();
    values.push(format!("{}1{}", "[".repeat(200), "]".repeat(200)));
    values
}

/// `handlers.toml` of kinds that give back what they get, and of some that write what they are told.
struct Handlers {
    dir: TempDir,
}

impl Handlers {
    fn new(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let raw = "import sys\nfor line in sys.stdin:\n    if line.startswith('{\"shutdown\"'): break\n    args = line[line.index('\"args\":') + 7:line.rindex(',\"attempt\"')]\n    sys.stdout.write('{\"ok\":' + args + '}\\n')\n    sys.stdout.flush()\n";
        std::fs::write(dir.path().join("raw.py"), raw).unwrap();
        let kinds = "[warm]\ncommand = [\"python3\", \"raw.py\"]\n[once]\ncommand = [\"cat\"]\nmode = \"once\"\n";
        std::fs::write(dir.path().join("handlers.toml"), format!("{kinds}{more}")).unwrap();
        Self { dir }
    }

    fn worker(&self, cluster: &Cluster) -> Process {
        let path = self.dir.path().join("handlers.toml");
        cluster.worker("w1", &["--handlers", path.to_str().unwrap()], None)
    }
}

async fn run(cluster: &Cluster, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = cluster.command(arguments);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    tokio::task::spawn_blocking(move || {
        let _ = stdin.write_all(&input);
        drop(stdin);
        child.wait_with_output().unwrap()
    })
    .await
    .unwrap()
}

async fn said(cluster: &Cluster, arguments: &[&str], input: &str) -> String {
    let output = run(cluster, arguments, input.as_bytes()).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// What HTTP answers, as text.
async fn http(cluster: &Cluster, url: &str, body: Option<&str>) -> String {
    let of_job = url.contains("/v1/jobs/");
    let client = reqwest::Client::new();
    let request = match body {
        Some(body) => client
            .post(url)
            .header("Content-Type", if of_job { "application/x-ndjson" } else { "application/json" })
            .body(body.to_owned()),
        None => client.get(url),
    };
    request.bearer_auth(&cluster.nats.secrets.token).send().await.unwrap().text().await.unwrap()
}

/// Whether an answer has a value as a field, or as text where parsers differ about it.
fn has(answer: &str, field: &str, value: &str) -> bool {
    let as_text = format!("\"{field}_text\":{}", serde_json::to_string(value).unwrap());
    answer.contains(&format!("\"{field}\":{value}")) || answer.contains(&as_text)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reader_gets_the_bytes_that_were_given() {
    let (cluster, handlers) = (Cluster::start().await, Handlers::new(""));
    let _worker = handlers.worker(&cluster);
    let (_producer, producer) = cluster.producer().await;
    let values = values();
    let lines = values.join("\n");
    for kind in ["echo", "warm", "once"] {
        let job = format!("all-{kind}");
        assert_eq!(said(&cluster, &["map", kind, "-", "--job", &job, "--batch", "5"], &lines).await, lines, "{kind}");
        let ended: Vec<String> =
            said(&cluster, &["map", kind, "-", "--json"], &lines).await.lines().map(Into::into).collect();
        for (line, value) in ended.iter().zip(&values) {
            assert!(line.ends_with(&format!("\"result\":{value},\"status\":\"done\"}}")), "{line}");
        }
        cluster.job_ends(&job, values.len() as u64, crate::harness::PATIENCE).await;
        assert_eq!(said(&cluster, &["job", "results", &job], "").await, lines, "{kind}");
        let exported =
            http(&cluster, &format!("{}/api/v1/jobs/{job}/results.ndjson", cluster.collector_url()), None).await;
        let rows = said(&cluster, &["job", "results", &job, "--json"], "").await;
        for (n, value) in values.iter().enumerate() {
            for lines in [&exported, &rows] {
                assert!(has(lines.lines().nth(n).unwrap(), "result", value), "{value}: {lines}");
            }
        }
    }
    for (n, value) in values.iter().enumerate() {
        let id = format!("lone-{n}");
        let lone = said(&cluster, &["submit", "warm", value, "--id", &id, "--wait", "--json"], "").await;
        assert!(lone.ends_with(&format!("\"result\":{value},\"status\":\"done\"}}")), "{lone}");
        cluster.ended(&id).await;
        assert_eq!(&said(&cluster, &["task", "result", &id], "").await, value);
        let shown = said(&cluster, &["task", "show", &id], "").await;
        assert!(shown.lines().any(|line| line == format!("result     {value}")), "{shown}");
        let answer = http(&cluster, &format!("{producer}/v1/tasks/default/echo?wait=10s"), Some(value)).await;
        assert!(answer.contains(&format!("\"result\":{value}")), "{answer}");
        let (dead, arguments) = (format!("dead-{n}"), format!("{{\"how\":\"fatal\",\"value\":{value}}}"));
        run(&cluster, &["submit", "fail", &arguments, "--id", &dead, "--wait"], b"").await;
        cluster.ended(&dead).await;
        let shown = said(&cluster, &["dead", "show", &dead], "").await;
        assert!(shown.lines().any(|line| line == format!("arguments  {arguments}")), "{shown}");
        let url = format!("{}/api/v1/dead_letter?id={dead}", cluster.collector_url());
        let answer = http(&cluster, &url, None).await;
        assert!(has(&answer, "payload", &arguments), "{answer}");
        // Other arguments come to the next attempt as they were typed.
        said(&cluster, &["dead", "retry", &dead, "--args", &arguments.replace("fatal", "never")], "").await;
    }
    for n in 0..values.len() {
        assert_eq!(cluster.ended(&format!("dead-{n}")).await["attempt"], 2);
    }
    let all = http(&cluster, &format!("{}/api/v1/tasks.ndjson", cluster.collector_url()), None).await;
    assert!(values.iter().all(|value| has(&all, "result", value)), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_json_is_refused_with_its_place_or_carried_as_bytes() {
    let more = "[latin]\ncommand = [\"printf\", 'caf\\351\\n']\nmode = \"once\"\n[json]\ncommand = [\"echo\", '{\"base64\":\"Y2Fm6Qo=\"}']\nmode = \"once\"\n";
    let (cluster, handlers) = (Cluster::start().await, Handlers::new(more));
    let _worker = handlers.worker(&cluster);
    for (arguments, input, place) in [
        (&["submit", "echo", "{nope}"][..], &b""[..], "column 2"),
        (&["submit", "echo", "-"], b"[1,\n2", "line 2 column 1"),
        (&["map", "echo", "-"], b"1\n2\nNaN\n", "line 3"),
        (&["map", "echo", "-"], b"1\n\xff\n", "line 2"),
    ] {
        let output = run(&cluster, arguments, input).await;
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && complaint.contains(place), "{arguments:?}: {complaint}");
    }
    let shown = r#"{"base64":"Y2Fm6Qo="}"#;
    for (kind, marked) in [("latin", true), ("json", false)] {
        let line = said(&cluster, &["submit", kind, "1", "--id", kind, "--wait", "--json"], "").await;
        assert!(line.contains(&format!("\"result\":{shown}")), "{line}");
        assert_eq!(line.contains("\"result_is_bytes\":true"), marked, "{line}");
        let task = cluster.ended(kind).await;
        assert_eq!(
            (task["result_is_bytes"].as_bool().unwrap_or(false), &task["result"]["base64"]),
            (marked, &json!("Y2Fm6Qo="))
        );
        // A call says the same, to a person, to a program, and to a NATS client.
        assert_eq!(said(&cluster, &["call", kind, "1"], "").await, shown);
        let line = said(&cluster, &["call", kind, "1", "--json"], "").await;
        let mark = if marked { r#","result_is_bytes":true"# } else { "" };
        assert_eq!(line, format!(r#"{{"result":{shown}{mark},"status":"done"}}"#));
        let answer = raw(&cluster).await.request(format!("call.default.{kind}"), "1".into()).await.unwrap();
        let header = answer.headers.and_then(|headers| headers.get("Millpond-Bytes").map(ToString::to_string));
        assert_eq!((header.as_deref(), &answer.payload[..]), (marked.then_some("true"), shown.as_bytes()));
    }
    // The next step of a chain gets the bytes themselves.
    let id = said(&cluster, &["submit", "latin", "1", "--id", "chain", "--continuation", "once"], "").await;
    let last = cluster.ended(&format!("{id}/default.latin/then")).await;
    assert_eq!((&last["result"]["base64"], &last["result_is_bytes"]), (&json!("Y2Fm6Qo="), &json!(true)), "{last}");
    // Arguments that are no JSON come back as they were published.
    let bus = cluster.nats.bus(Role::Client).await;
    let headers = vec![("Nats-Msg-Id".to_owned(), "bytes".to_owned())];
    bus.store("tasks.default.square", &headers, (&b"\xff\xfe"[..]).into(), RetryDeadline::Unlimited).await.unwrap();
    assert_eq!(cluster.ended("bytes").await["dead"]["payload_base64"], "//4=");
    let shown = said(&cluster, &["dead", "show", "bytes"], "").await;
    assert!(shown.contains(r#"arguments  {"base64":"//4="}"#), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_order_mark_at_the_start_is_skipped() {
    let more = "[marked]\ncommand = [\"printf\", '\\357\\273\\27742']\nmode = \"once\"\n[stream]\ncommand = [\"python3\", \"bom.py\"]\nattempts = 1\n";
    let (cluster, handlers) = (Cluster::start().await, Handlers::new(more));
    let stream = "import sys\nfirst = '\\ufeff'\nfor line in sys.stdin:\n    if 'shutdown' in line: break\n    sys.stdout.buffer.write((first + '{\"ok\":7}\\n').encode())\n    sys.stdout.flush()\n    first = ''\n";
    std::fs::write(handlers.dir.path().join("bom.py"), stream).unwrap();
    let _worker = handlers.worker(&cluster);
    let (_producer, producer) = cluster.producer().await;
    assert_eq!(said(&cluster, &["submit", "marked", "1", "--wait"], "").await, "42");
    assert_eq!(said(&cluster, &["submit", "stream", "1", "--wait"], "").await, "7");
    assert_eq!(said(&cluster, &["map", "echo", "-"], "\u{feff}1\n2\n").await, "1\n2");
    assert_eq!(said(&cluster, &["submit", "echo", "-", "--wait"], "\u{feff}[1]\n").await, "[1]");
    assert_eq!(said(&cluster, &["submit", "echo", "--file", "-", "--wait"], "\u{feff}[2]").await, "[2]");
    let answer = http(&cluster, &format!("{producer}/v1/tasks/default/echo?wait=10s"), Some("\u{feff}1")).await;
    assert!(answer.contains("\"result\":1"), "{answer}");
    let answer = http(&cluster, &format!("{producer}/v1/jobs/default/echo?job=marked"), Some("\u{feff}1\n2\n")).await;
    assert!(!answer.contains("error"), "{answer}");
    cluster.job_ends("marked", 2, crate::harness::PATIENCE).await;
    let marked = NewTask { id: Some("bare".into()), ..task("echo", "\u{feff}3") };
    cluster.client.submit(&marked, RetryDeadline::Unlimited).await.unwrap();
    assert_eq!(cluster.ended("bare").await["result"], 3);
    let found =
        until("the job", crate::harness::PATIENCE, async || cluster.get("/api/v1/jobs/marked", &[]).await).await;
    assert_eq!(text(&found, "done"), "2");
}

//! The claim check: what is too large for a message goes to the store and comes back the same, both ways; what is gone
//! or damaged there is a dead letter that says so.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use millpond::client::{BatchSize, MapSpec, NewTask, NoResult};
use millpond::payload::StoredPayload;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::harness::{Cluster, PATIENCE, Process, task, text, until};

const KIB: usize = 1024;

/// A string of JSON of about so many bytes, no two the same.
fn large(bytes: usize) -> String {
    let line = format!("{}-ä\\n", millpond::random_token());
    format!("\"{}\"", line.repeat(bytes / line.len() + 1))
}

/// Bytes of every kind, line ends and zeros among them.
fn binary(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).flat_map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32).to_le_bytes()).take(bytes).collect()
}

fn sha256(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(bytes))
}

async fn run(mut command: std::process::Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_owned();
    let run = move || {
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        feeding.join().unwrap();
        output
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn out(output: &Output) -> &str {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    std::str::from_utf8(&output.stdout).unwrap().trim_end()
}

/// Handlers of the kinds `digest` (once) and `lines` (stream), and a folder for large files.
struct Handlers {
    dir: TempDir,
}

impl Handlers {
    fn new(more: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/handlers/digest.py");
        let script = script.canonicalize().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[digest]\ncommand = [\"python3\", {script:?}{more}]\nmode = \"once\"\n[lines]\ncommand = [\"python3\", {script:?}, \"stream\"]\nslots = 2\n"
        );
        std::fs::write(dir.path().join("handlers.toml"), text).unwrap();
        std::fs::create_dir(dir.path().join("spool")).unwrap();
        Self { dir }
    }

    fn worker(&self, cluster: &Cluster, name: &str, failpoint: Option<&str>) -> Process {
        let path = |name: &str| self.dir.path().join(name).to_str().unwrap().to_owned();
        cluster.worker(name, &["--handlers", &path("handlers.toml"), "--spool", &path("spool")], failpoint)
    }

    /// Files that lie in the folder for large files, but for the locks.
    fn spooled(&self) -> usize {
        let folders = std::fs::read_dir(self.dir.path().join("spool")).unwrap().map(|f| f.unwrap().path());
        folders.map(|folder| std::fs::read_dir(folder).map_or(0, |files| files.count() - 1)).sum()
    }
}

/// The reason and the message of a task that must be dead.
fn dead(task: &Value) -> (String, String) {
    assert_eq!(task["status"], "dead", "{task}");
    (text(&task["dead"], "reason"), text(&task["dead"]["failure"], "message"))
}

async fn submit(cluster: &Cluster, task: &NewTask) -> String {
    cluster.client.submit(task, RetryDeadline::Unlimited).await.unwrap().id
}

#[tokio::test(flavor = "multi_thread")]
async fn large_arguments_and_results_go_both_ways() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let mut session = cluster.client.session(None).await.unwrap();
    // 12 MiB are more than a worker fetches into memory.
    for bytes in [600 * KIB, 5000 * KIB, 12_000 * KIB] {
        let value = large(bytes);
        let (stored, end) = session.run(task("echo", &value), RetryDeadline::Unlimited, |_| {}).await.unwrap();
        assert!(end.unwrap().get() == value, "{bytes} bytes come back as they went");
        let row = cluster.ended(&stored.id).await;
        assert_eq!((&row["ref"]["size"], row.get("result")), (&json!(value.len()), None));
        assert_eq!(row["ref"]["sha256"], sha256(value.as_bytes()));
    }
    // By command line, to its end and asked for later.
    let value = large(600 * KIB);
    let waited = run(cluster.command(&["submit", "echo", "--wait"]), value.as_bytes()).await;
    assert!(out(&waited) == value);
    let submitted = run(cluster.command(&["submit", "echo", "--file", "-"]), value.as_bytes()).await;
    let id = out(&submitted);
    cluster.ended(id).await;
    assert!(out(&run(cluster.command(&["task", "result", id]), b"").await) == value);
    assert!(out(&run(cluster.command(&["task", "show", id]), b"").await).contains("bytes in the store"));
    // By HTTP; and by a plain NATS request, as large as one may be.
    let (_producer, url) = cluster.producer().await;
    let request = reqwest::Client::new().post(format!("{url}/v1/tasks/default/echo")).body(value.clone());
    let answer: Value = request.bearer_auth(&cluster.nats.secrets.token).send().await.unwrap().json().await.unwrap();
    let id = text(&answer, "id");
    cluster.ended(&id).await;
    assert!(out(&run(cluster.command(&["task", "result", &id]), b"").await) == value, "{answer}");
    let plain = large(900 * KIB);
    let headers = vec![("Nats-Msg-Id".to_owned(), "plain".to_owned())];
    let bus = cluster.nats.bus(Role::Publisher).await;
    bus.store("tasks.default.echo", &headers, plain.clone().into(), RetryDeadline::Unlimited).await.unwrap();
    cluster.ended("plain").await;
    assert!(out(&run(cluster.command(&["task", "result", "plain"]), b"").await) == plain);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_has_large_values_among_small_ones_in_order() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let values: Vec<String> = (0..60)
        .map(|n| match n % 20 {
            7 => large(600 * KIB),
            13 => large(1500 * KIB),
            _ => n.to_string(),
        })
        .collect();
    let input = values.iter().map(|v| format!("{v}\n")).collect::<String>();
    for (job, batch) in [("auto", "auto"), ("fixed", "10")] {
        let map = cluster.command(&["map", "echo", "-", "--job", job, "--batch", batch]);
        let mapped = run(map, input.as_bytes()).await;
        assert!(out(&mapped).lines().eq(values.iter()), "{job}: in order, as they went");
        let ends = cluster.job_ends(job, 60, PATIENCE).await;
        assert!(ends.iter().all(|end| end["status"] == "done"));
        assert_eq!(ends.iter().filter(|end| end["ref"].is_object()).count(), 6, "{job}");
        let printed = run(cluster.command(&["job", "results", job]), b"").await;
        assert!(out(&printed).lines().eq(values.iter()), "{job}: in order, from the store");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_any_kind_reach_handlers_in_any_language() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::new("");
    let _worker = handlers.worker(&cluster, "w1", None);
    let path = handlers.dir.path().join("input");
    for bytes in [0, 100, 600 * KIB, 20 * 1024 * KIB] {
        let content = binary(bytes);
        std::fs::write(&path, &content).unwrap();
        for kind in ["digest", "lines"] {
            let command = cluster.command(&["submit", kind, "--wait", "--file", path.to_str().unwrap()]);
            let end: Value = serde_json::from_str(out(&run(command, b"").await)).unwrap();
            assert_eq!((&end["size"], &end["sha256"]), (&json!(bytes), &json!(sha256(&content))), "{kind}: {end}");
            assert!(kind == "digest" || end["from"] == "file", "{end}");
        }
    }
    // JSON of a size that fits the memory comes in the line.
    let arguments = json!({ "pad": "x".repeat(2_000_000) }).to_string();
    let id = submit(&cluster, &task("lines", &arguments)).await;
    assert_eq!(cluster.ended(&id).await["result"], json!({ "from": "args", "size": 2_000_000 }));
    let (_producer, url) = cluster.producer().await;
    let content = binary(3_000_000);
    let request = reqwest::Client::new().post(format!("{url}/v1/tasks/default/digest")).body(content.clone());
    let request = request.header("Content-Type", "application/octet-stream");
    let answer: Value = request.bearer_auth(&cluster.nats.secrets.token).send().await.unwrap().json().await.unwrap();
    assert_eq!(cluster.ended(&text(&answer, "id")).await["result"]["sha256"], sha256(&content));
    until("end of all files", PATIENCE, async || (handlers.spooled() == 0).then_some(())).await;
}

/// Removes what the bucket has under a subject.
async fn purge(cluster: &Cluster, subject: String) {
    let client = async_nats::ConnectOptions::new()
        .user_and_password("setup".into(), cluster.nats.secrets.passwords["setup"].clone())
        .custom_inbox_prefix("_INBOX_setup")
        .connect(format!("127.0.0.1:{}", cluster.nats.port))
        .await
        .unwrap();
    let body = json!({ "filter": subject }).to_string();
    let answer = client.request("$JS.API.STREAM.PURGE.OBJ_millpond_payloads", body.into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["purged"].as_u64().unwrap() > 0, "{answer}");
}

fn meta(object: &str) -> String {
    format!("$O.millpond_payloads.M.{}", data_encoding::BASE64URL.encode(object.as_bytes()))
}

fn chunks(object: &str) -> String {
    format!("$O.millpond_payloads.C.{object}")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_or_damaged_is_a_dead_letter_with_its_reason() {
    let cluster = Cluster::start().await;
    let put = async |bytes: usize| {
        let content = binary(bytes);
        cluster.client.put_payload(&mut content.as_slice(), RetryDeadline::Unlimited).await.unwrap()
    };
    let of = |stored: &StoredPayload| NewTask { stored: Some(stored.clone()), ..task("digest", "") };
    let gone = put(400 * KIB).await;
    purge(&cluster, meta(&gone.at.object)).await;
    let cut = put(400 * KIB).await;
    purge(&cluster, chunks(&cut.at.object)).await;
    // Whoever may put payloads may write behind another's: it is found.
    let longer = put(20_000 * KIB).await;
    let client = cluster.nats.bus(Role::Client).await;
    client.store(&chunks(&longer.at.object), &vec![], "x".into(), RetryDeadline::Unlimited).await.unwrap();
    let mut other = put(400 * KIB).await;
    other.at.sha256 = sha256(b"other");
    let mut size = put(400 * KIB).await;
    size.at.size += 1;
    let cases = [
        (of(&gone), "missing_payload", "is not in the bucket"),
        (of(&cut), "damaged_payload", "has only 0 of its 409600 bytes"),
        (of(&longer), "damaged_payload", "has more than its 20480000 bytes"),
        (of(&other), "damaged_payload", "SHA-256"),
        (of(&size), "damaged_payload", "instead of 409601"),
        (NewTask { expires: Some("2020-01-01T00:00:00Z".into()), ..of(&gone) }, "expired", "had not started"),
    ];
    let mut ids = Vec::new();
    for (task, reason, said) in &cases {
        ids.push((submit(&cluster, task).await, *reason, *said));
    }
    let handlers = Handlers::new("");
    let _worker = handlers.worker(&cluster, "w1", None);
    for (id, reason, said) in &ids {
        let ended = cluster.ended(id).await;
        let (found, message) = dead(&ended);
        assert!(found == *reason && message.contains(said), "{reason}: {found}: {message}");
        assert!(ended["dead"]["ref"]["object"].is_string(), "{ended}");
    }
    // A task cannot wait for longer than its payload is kept.
    let late = NewTask { at_ms: Some(millpond::now_ms() + 8 * 24 * 3_600_000), ..of(&other) };
    let refused = cluster.client.submit(&late, RetryDeadline::Unlimited).await.unwrap_err().to_string();
    assert!(refused.contains("kept for 7days"), "{refused}");
    assert_eq!(handlers.spooled(), 0);
    // A good one after them all.
    let good = submit(&cluster, &of(&put(400 * KIB).await)).await;
    assert_eq!(cluster.ended(&good).await["result"]["size"], 400 * KIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_gone_is_told_and_is_no_crash() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::new("");
    let _worker = handlers.worker(&cluster, "w1", None);
    let spec = MapSpec {
        queue: "default".into(),
        kind: "lines".into(),
        job: Some("gone".into()),
        batch: BatchSize::Fixed(1),
        ordered: true,
        timeout: None,
        attempts_max: None,
        ..MapSpec::default()
    };
    // The first one waits, so that the result of the second is not looked at before it is gone.
    let go = handlers.dir.path().join("go");
    let values = [json!({ "wait_for": go }), json!({ "answer": 600_000 }), json!({ "answer": 1 })];
    let values = values.map(|value| Ok(value.to_string().into()));
    let mut map = cluster.client.map(spec, futures_util::stream::iter(values)).await.unwrap();
    let ended = tokio::select! {
        ended = cluster.ended("gone.1/1") => ended,
        item = map.next() => panic!("{item:?} came before the first"),
    };
    purge(&cluster, meta(&text(&ended["ref"], "object"))).await;
    std::fs::write(go, "").unwrap();
    let mut next = async || map.next().await.map(|item| item.unwrap().end.map(|value| value.get().to_owned()));
    assert_eq!(next().await.unwrap().unwrap(), "\"waited\"");
    let Some(Err(NoResult::Lost(reason))) = next().await else { panic!("the second must be lost") };
    assert!(reason.contains("is not in the bucket"), "{reason}");
    assert_eq!(next().await.unwrap().unwrap(), "\"x\"");
    assert_eq!(next().await, None);
    cluster.job_ends("gone", 3, PATIENCE).await;
    let printed = run(cluster.command(&["job", "results", "gone"]), b"").await;
    let lines = String::from_utf8_lossy(&printed.stdout);
    assert_eq!((printed.status.code(), lines.as_ref()), (Some(1), "\"waited\"\n\n\"x\"\n"));
    assert!(String::from_utf8_lossy(&printed.stderr).contains("is not in the bucket"));
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_and_replays_find_their_payload_again() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::new("");
    let _worker = handlers.worker(&cluster, "w1", None);
    let arguments = json!({ "until": 3, "pad": "x".repeat(600 * KIB) }).to_string();
    let id = submit(&cluster, &task("lines", &arguments)).await;
    let done = cluster.ended(&id).await;
    assert_eq!((&done["attempt"], &done["result"]["size"]), (&json!(3), &json!(600 * KIB)), "{done}");
    let once = NewTask { attempts_max: Some(2), ..task("lines", &arguments) };
    let id = submit(&cluster, &once).await;
    assert_eq!(dead(&cluster.ended(&id).await).0, "exhausted");
    let (_producer, _) = cluster.producer().await;
    out(&run(cluster.command(&["dead", "retry", &id]), b"").await);
    let done = until("end of the replay", PATIENCE, async || {
        Some(cluster.ended(&id).await).filter(|task| task["status"] == "done")
    })
    .await;
    assert_eq!((&done["attempt"], &done["result"]["size"]), (&json!(3), &json!(600 * KIB)), "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_loses_neither_payload_nor_result() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::new(", \"first-hang\"");
    let mut first = handlers.worker(&cluster, "w1", None);
    let content = binary(20_000 * KIB);
    let stored = cluster.client.put_payload(&mut content.as_slice(), RetryDeadline::Unlimited).await.unwrap();
    let id = submit(&cluster, &NewTask { stored: Some(stored), ..task("digest", "") }).await;
    cluster.worker_is("w1", |w| w["children"][0]["task"]["id"] == json!(id) || w["running"] == 1).await;
    until("file of the payload", PATIENCE, async || (handlers.spooled() == 1).then_some(())).await;
    first.kill9();
    assert_eq!(handlers.spooled(), 1, "what it left");
    let mut second = handlers.worker(&cluster, "w2", None);
    let done = cluster.ended(&id).await;
    assert_eq!((&done["worker"], &done["result"]["sha256"]), (&json!("w2"), &json!(sha256(&content))));
    until("swept files", PATIENCE, async || (handlers.spooled() == 0).then_some(())).await;
    second.signal(Signal::SIGTERM);
    second.end(PATIENCE).await;
    // A large result is stored, and its worker dies before the outcome; or once it has fetched the arguments.
    for (name, failpoint) in [("w3", "settle.large_result_stored"), ("w4", "prepare.fetched")] {
        let mut dies = handlers.worker(&cluster, name, Some(failpoint));
        let value = large(600 * KIB);
        let id = submit(&cluster, &task("echo", &value)).await;
        dies.end(PATIENCE).await;
        let mut heir = handlers.worker(&cluster, &format!("{name}-heir"), None);
        cluster.ended(&id).await;
        assert!(out(&run(cluster.command(&["task", "result", &id]), b"").await) == value);
        heir.signal(Signal::SIGTERM);
        heir.end(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_server_costs_an_upload_nothing() {
    let mut cluster = Cluster::start().await;
    let handlers = Handlers::new("");
    let _worker = handlers.worker(&cluster, "w1", None);
    let content = binary(12_000 * KIB);
    let (mut writer, mut reader) = tokio::io::duplex(64 * KIB);
    let client = cluster.client.clone();
    let mut putting = tokio::task::JoinSet::new();
    putting.spawn(async move { client.put_payload(&mut reader, RetryDeadline::Unlimited).await.unwrap() });
    let (first, second) = content.split_at(5_000_000);
    writer.write_all(first).await.unwrap();
    cluster.nats.restart();
    writer.write_all(second).await.unwrap();
    drop(writer);
    let stored = putting.join_next().await.unwrap().unwrap();
    assert_eq!((stored.at.size, &stored.at.sha256), (content.len() as u64, &sha256(&content)));
    let id = submit(&cluster, &NewTask { stored: Some(stored), ..task("digest", "") }).await;
    assert_eq!(cluster.ended(&id).await["result"]["sha256"], sha256(&content));
    // What a put relies on when it sends a chunk again. (The first may have been sent twice, too.)
    let bus = cluster.nats.bus(Role::Client).await;
    let headers = vec![("Nats-Expected-Last-Subject-Sequence".to_owned(), "0".to_owned())];
    let put = async || bus.store(&chunks("twice"), &headers, "x".into(), RetryDeadline::Unlimited).await;
    let _ = put().await;
    let again = put().await.unwrap_err().to_string();
    assert!(again.contains("another one is the newest"), "{again}");
}

/// The status of an answer, some of its headers, and its body.
struct Download {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Result<Vec<u8>, reqwest::Error>,
}

impl Download {
    /// A header as text; nothing when it is not there.
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    async fn of(request: reqwest::RequestBuilder) -> Self {
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Self { status, headers, body: answer.bytes().await.map(|body| body.to_vec()) }
    }
}

/// `GET` of the result of a task, with these headers.
async fn result_of(cluster: &Cluster, id: &str, headers: &[(&str, &str)]) -> Download {
    let url = format!("{}/api/v1/task/result", cluster.collector_url());
    let request = reqwest::Client::new().get(url).query(&[("id", id)]).bearer_auth(&cluster.nats.secrets.viewer_token);
    Download::of(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha-256=:{}:", data_encoding::BASE64.encode(&Sha256::digest(bytes)))
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_are_put_and_results_got_over_http_without_a_library() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let (_producer, url) = cluster.producer().await;
    let value = large(5000 * KIB).into_bytes();
    let put = |body: Vec<u8>| {
        let request = reqwest::Client::new().put(format!("{url}/v1/payloads")).body(body);
        request.bearer_auth(&cluster.nats.secrets.token)
    };
    let stored = Download::of(put(value.clone()).header("Repr-Digest", digest_of(&value))).await;
    let answer: Value = serde_json::from_slice(&stored.body.as_ref().unwrap()[..]).unwrap();
    assert_eq!((stored.status, &answer["ref"]["size"]), (201, &json!(value.len())), "{answer}");
    assert_eq!(answer["ref"]["sha256"], sha256(&value));
    assert_eq!(serde_json::from_str::<Value>(stored.header("millpond-ref")).unwrap(), answer["ref"]);
    assert_eq!(stored.header("etag"), format!("\"{}\"", sha256(&value)));
    assert_eq!(stored.header("repr-digest"), digest_of(&value));
    // The two headers of the answer make a task, for whoever may publish and nothing else.
    let headers = [
        ("Nats-Msg-Id", "by-reference"),
        ("Millpond-Ref", stored.header("millpond-ref")),
        ("Millpond-Expires", answer["expires"].as_str().unwrap()),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let publisher = cluster.nats.bus(Role::Publisher).await;
    publisher.store("tasks.default.echo", &headers, "".into(), RetryDeadline::Unlimited).await.unwrap();
    cluster.ended("by-reference").await;

    let whole = result_of(&cluster, "by-reference", &[]).await;
    assert_eq!((whole.status, whole.header("content-length")), (200, value.len().to_string().as_str()));
    assert!(whole.body.as_ref().unwrap() == &value, "what was put comes back");
    assert_eq!(
        (whole.header("etag"), whole.header("repr-digest")),
        (stored.header("etag"), stored.header("repr-digest"))
    );
    assert_eq!(whole.header("accept-ranges"), "bytes");
    let size = value.len();
    let chunk = 128 * KIB;
    for (range, part) in [
        ("bytes=0-0".to_owned(), 0..1),
        (format!("bytes={}-{}", chunk - 10, chunk + 9), chunk - 10..chunk + 10),
        (format!("bytes={}-{}", chunk, 3 * chunk - 1), chunk..3 * chunk),
        (format!("bytes={}-", size - 7), size - 7..size),
        ("bytes=-70000".to_owned(), size - 70_000..size),
        ("bytes=1-99999999999".to_owned(), 1..size),
    ] {
        let got = result_of(&cluster, "by-reference", &[("Range", &range)]).await;
        assert_eq!(got.status, 206, "{range}");
        let wanted = format!("bytes {}-{}/{size}", part.start, part.end - 1);
        assert_eq!((got.header("content-range"), got.header("etag")), (wanted.as_str(), whole.header("etag")));
        assert!(got.body.unwrap() == value[part], "{range}");
    }
    // A download that broke off goes on where it was, as long as it is the same.
    let etag = whole.header("etag");
    for (if_range, status) in [(etag, 206), ("\"other\"", 200)] {
        let headers = [("Range", "bytes=10-"), ("If-Range", if_range)];
        assert_eq!(result_of(&cluster, "by-reference", &headers).await.status, status);
    }
    for (name, said, status) in [
        ("If-None-Match", etag, 304),
        ("If-None-Match", "\"other\"", 200),
        ("If-Match", "\"other\"", 412),
        ("Range", "bytes=0-1,5-6", 200),
        ("Range", &format!("bytes={size}-"), 416),
    ] {
        let got = result_of(&cluster, "by-reference", &[(name, said)]).await;
        assert_eq!(got.status, status, "{name}: {said}");
        assert!(status != 304 || got.body.unwrap().is_empty() && got.headers["etag"] == etag);
        assert!(status != 416 || got.headers["content-range"] == format!("bytes */{size}"));
    }

    // What fits a message, as it was written: JSON in each spelling, and bytes.
    for (id, arguments) in [("one", "1.0"), ("null", "null"), ("lone", r#""\ud800""#)] {
        submit(&cluster, &NewTask { id: Some(id.into()), ..task("echo", arguments) }).await;
        cluster.ended(id).await;
        let got = result_of(&cluster, id, &[]).await;
        assert_eq!((got.status, got.header("content-type")), (200, "application/json"));
        assert_eq!(got.header("repr-digest"), digest_of(arguments.as_bytes()));
        assert_eq!(got.body.unwrap(), arguments.as_bytes());
        let part = result_of(&cluster, id, &[("Range", "bytes=1-1")]).await;
        assert_eq!((part.status, part.header("content-type")), (206, "application/octet-stream"));
        assert_eq!(part.body.unwrap(), &arguments.as_bytes()[1..2]);
    }
    // No result, and none yet.
    let dead = NewTask { id: Some("dies".into()), attempts_max: Some(1), ..task("fail", r#""no""#) };
    submit(&cluster, &dead).await;
    cluster.ended("dies").await;
    for (id, words) in [("dies", "it is dead"), ("never", "no such task")] {
        let got = result_of(&cluster, id, &[]).await;
        let said = String::from_utf8(got.body.unwrap()).unwrap();
        assert!(got.status == 404 && said.contains(words), "{said}");
    }
    // Gone, and cut short on the way: nobody takes a part for the whole.
    let row = cluster.ended("by-reference").await;
    let object = text(&row["ref"], "object");
    purge(&cluster, chunks(&object)).await;
    let cut = result_of(&cluster, "by-reference", &[]).await;
    assert!(cut.status == 200 && cut.body.is_err(), "{:?}", cut.body.map(|body| body.len()));
    purge(&cluster, meta(&object)).await;
    let gone = result_of(&cluster, "by-reference", &[]).await;
    assert!(gone.status == 410 && String::from_utf8_lossy(&gone.body.unwrap()).contains("is not in the bucket"));
    // Other bytes than the checksum says, a part, a form.
    let other = Download::of(put(b"12".to_vec()).header("Repr-Digest", digest_of(b"13"))).await;
    assert!(other.status == 400 && String::from_utf8_lossy(&other.body.unwrap()).contains("instead of"));
    assert_eq!(Download::of(put(b"12".to_vec()).header("Content-Range", "bytes 0-1/4")).await.status, 400);
}

/// The most memory that a process has had, in KiB.
fn peak(process: &Process) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_payload_is_whole_in_the_memory_of_a_service() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::new("");
    let _worker = handlers.worker(&cluster, "w1", None);
    let (producer, url) = cluster.producer().await;
    let put = async |bytes: Vec<u8>| {
        let request = reqwest::Client::new().put(format!("{url}/v1/payloads")).body(bytes);
        Download::of(request.bearer_auth(&cluster.nats.secrets.token)).await
    };
    assert_eq!(put(binary(KIB)).await.status, 201);
    let before = peak(&producer);
    assert_eq!(put(binary(96 * KIB * KIB)).await.status, 201);
    let grown = peak(&producer) - before;
    assert!(grown < 24 * KIB, "{grown} KiB for a payload of 96 MiB");
    // As large as a result may be.
    let value = large(31 * KIB * KIB);
    submit(&cluster, &NewTask { id: Some("large".into()), ..task("echo", &value) }).await;
    submit(&cluster, &NewTask { id: Some("small".into()), ..task("echo", "1") }).await;
    for id in ["large", "small"] {
        cluster.ended(id).await;
    }
    assert_eq!(result_of(&cluster, "small", &[]).await.status, 200);
    let before = peak(&cluster.collector);
    let whole = result_of(&cluster, "large", &[]).await;
    assert!(whole.body.unwrap() == value.as_bytes());
    let grown = peak(&cluster.collector) - before;
    assert!(grown < 24 * KIB, "{grown} KiB for a result of 31 MiB");
}

//! Signed tasks: workers with keys run what is signed, whatever becomes of it on its way, and refuse everything else.

use std::process::Stdio;

use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use millpond::client::{Client, NewTask};
use millpond::signature::Signer;
use millpond::wire::headers::Headers;
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, Process, free_port, output, statuses, task, until};

const NEW: &str = "new-0123456789abcdef0123456789abcdef";
const OLD: &str = "old-0123456789abcdef0123456789abcdef";

fn signer(keys: &str) -> Signer {
    Signer::new(keys).unwrap()
}

fn client(cluster: &Cluster, keys: &str) -> Client {
    cluster.client.clone().with_signer(Some(signer(keys)))
}

async fn producer(cluster: &Cluster, keys: &str) -> (Process, String) {
    let address = format!("127.0.0.1:{}", free_port());
    let mut command = cluster.command(&["producer", "run", "--listen", &address]);
    command.env("MILLPOND_PRODUCER_NATS_URL", cluster.nats.url("producer")).env("MILLPOND_SIGNING_KEY", keys);
    let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let (url, ready) = (format!("http://{address}"), format!("http://{address}/readyz"));
    until("producer", PATIENCE, async || reqwest::get(&ready).await.ok()?.status().is_success().then_some(())).await;
    (process, url)
}

async fn cli(cluster: &Cluster, arguments: &[&str], keys: &str) -> std::process::Output {
    let mut command = cluster.command(arguments);
    command.env("MILLPOND_SIGNING_KEY", keys).stdin(Stdio::null());
    output(command).await
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The dead letter of a task that claimed this id.
async fn refused(cluster: &Cluster, claimed: &str) -> Value {
    until(&format!("refusal of {claimed}"), PATIENCE, async || {
        let dead = cluster.get("/api/v1/dead", &[("limit", "1000".into())]).await?;
        let claim = format!("it claims to be task {claimed:?}");
        let of_it = |row: &&Value| row["failure"]["message"].as_str().is_some_and(|m| m.ends_with(&claim));
        dead["rows"].as_array()?.iter().find(of_it).cloned()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_signed_runs_through_all_that_becomes_of_it() {
    let cluster = Cluster::start().await;
    let keys = format!("{NEW},{OLD}");
    let of_both = ["--signing-key", NEW, "--slots", "2", "--io-slots", "2", "--queues", "default,slow"];
    let _worker = cluster.worker("w1", &of_both, None);
    let (_producer, url) = producer(&cluster, &keys).await;
    let client = client(&cluster, &keys);
    // Retries, also of items of a batch; and what is handed on, in halves of halves.
    let failing = NewTask {
        job: Some("j".into()),
        index: Some(0),
        batch: Some(3),
        ..task("fail", r#"[{"until": 3}, {"how": "never"}, {"until": 2}]"#)
    };
    client.submit(&failing, RetryDeadline::Unlimited).await.unwrap();
    let slow = NewTask {
        job: Some("j".into()),
        index: Some(3),
        batch: Some(6),
        ..task("sleep", "[0.15, 0.15, 0.15, 0.15, 0.15, 0.15]")
    };
    client.submit(&slow, RetryDeadline::Unlimited).await.unwrap();
    let ends = cluster.job_ends("j", 9, PATIENCE).await;
    assert_eq!(statuses(&ends), ["done"; 9], "{}", cluster.log("w1"));
    // A delay, by the command line; and one published over HTTP.
    let delayed = cli(&cluster, &["submit", "square", "12", "--delay", "1s", "--wait"], &keys).await;
    assert_eq!((text(&delayed.stdout).trim(), delayed.status.code()), ("144", Some(0)), "{}", text(&delayed.stderr));
    let post = reqwest::Client::new().post(format!("{url}/v1/tasks/default/square")).body("5");
    let answer = post.bearer_auth(&cluster.nats.secrets.token).send().await.unwrap().json::<Value>().await.unwrap();
    assert_eq!(cluster.ended(answer["id"].as_str().unwrap()).await["result"], 25);
    let mapped = cli(&cluster, &["map", "square", "--range", "0..50"], &keys).await;
    assert_eq!(text(&mapped.stdout).lines().count(), 50, "{}", text(&mapped.stderr));
    let chained = cli(&cluster, &["submit", "square", "3", "--continuation", "square", "--wait"], &keys).await;
    assert_eq!(text(&chained.stdout).trim(), "81", "{}", text(&chained.stderr));
    // A dead letter keeps its headers, and is signed again when it is run again.
    let dying = NewTask { id: Some("dies".into()), attempts_max: Some(1), ..task("fail", r#"{"until": 2}"#) };
    client.submit(&dying, RetryDeadline::Unlimited).await.unwrap();
    assert_eq!(cluster.ended("dies").await["status"], "dead");
    let again = cli(&cluster, &["dead", "retry", "dies"], "").await;
    assert!(again.status.success(), "{}", text(&again.stderr));
    until("replay", PATIENCE, async || {
        let task = cluster.get("/api/v1/task", &[("id", "dies".into())]).await?;
        (task["status"] == "done").then_some(())
    })
    .await;
    // So is the task that it becomes in another queue, with other arguments.
    client
        .submit(&NewTask { id: Some("words".into()), ..task("square", r#""no number""#) }, RetryDeadline::Unlimited)
        .await
        .unwrap();
    assert_eq!(cluster.ended("words").await["status"], "dead");
    let moved = cli(&cluster, &["dead", "retry", "words", "--to-queue", "slow", "--args", "12"], "").await;
    assert_eq!(text(&moved.stdout).trim(), "words@default", "{}", text(&moved.stderr));
    assert_eq!(cluster.ended("words@default").await["result"], 144);
    assert!(!cluster.log("w1").contains(NEW), "no key is logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_signed_or_was_altered_is_refused_and_stands_in_nobodys_way() {
    let cluster = Cluster::start().await;
    let bus = cluster.nats.bus(Role::Producer).await;
    let store = async |subject: &str, headers: &Headers, payload: &'static str| {
        bus.store(subject, headers, payload.into(), RetryDeadline::Unlimited).await.unwrap();
    };
    let unsigned: Headers = vec![("Nats-Msg-Id".into(), "plain".into())];
    store("tasks.default.square", &unsigned, "1").await;
    let subject = "tasks.default.square.j-j";
    let base: Headers = vec![("Millpond-Attempts-Max".into(), "2".into()), ("Millpond-Timeout".into(), "30s".into())];
    let signed = |id: &str, subject: &str| {
        let mut headers = base.clone();
        headers.push(("Nats-Msg-Id".into(), id.into()));
        signer(NEW).sign(subject, &mut headers, b"12");
        headers
    };
    let mut claimed = vec!["plain".to_owned()];
    for (n, (name, value)) in [
        ("Millpond-Attempts-Max", "100"),
        ("Millpond-Timeout", "1h"),
        ("Millpond-Index", "7"),
        ("Millpond-Reply-To", "reply.evil"),
        ("Millpond-Expires", "2020-01-01T00:00:00Z"),
        ("Millpond-Batch", "nonsense"),
        // In another spelling, and what nobody knows.
        ("millpond-expires", "2100-01-01T00:00:00Z"),
        ("MILLPOND-INDEX", "7"),
        ("Millpond-Unheard-Of", "x"),
        ("Idempotency-Key", "x"),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("altered-{n}");
        let mut headers = signed(&id, subject);
        headers.retain(|(had, _)| had != name);
        headers.push((name.into(), value.into()));
        store(subject, &headers, "12").await;
        claimed.push(id);
    }
    store(subject, &signed("payload", subject), "13").await;
    for (id, moved) in [
        ("kind", "tasks.default.sleep.j-j"),
        ("queue", "tasks.other.square.j-j"),
        ("job", "tasks.default.square"),
        ("unique", "tasks.default.square.u-j"),
        ("due", "due.default.square.j-j"),
        ("shape", "tasks.default.square.what"),
    ] {
        store(moved, &signed(id, subject), "12").await;
        claimed.push(id.to_owned());
    }
    let mut renamed = signed("was", subject);
    renamed.retain(|(name, _)| name != "Nats-Msg-Id");
    renamed.push(("Nats-Msg-Id".into(), "renamed".into()));
    store(subject, &renamed, "12").await;
    claimed.extend(["payload".to_owned(), "renamed".to_owned()]);
    let _worker = cluster.worker("w1", &["--signing-key", NEW, "--queues", "default,other"], None);
    for id in &claimed {
        let letter = refused(&cluster, id).await;
        let reason = if id == "plain" { "unsigned" } else { "bad_signature" };
        assert_eq!((&letter["reason"], &letter["index"], &letter["job"]), (&json!(reason), &json!(null), &json!(null)));
    }
    until("all refused", PATIENCE, async || {
        let dead = cluster.get("/api/v1/dead", &[("limit", "1000".into())]).await?;
        (dead["rows"].as_array()?.len() == claimed.len()).then_some(())
    })
    .await;
    // None of it stands in the place of the task that it claimed to be.
    for id in &claimed {
        assert!(cluster.get("/api/v1/task", &[("id", id.clone())]).await.is_none(), "{id}");
    }
    store(subject, &signed("good", subject), "12").await;
    assert_eq!(cluster.ended("good").await["result"], 144);
    // Nobody signs it by running it again.
    let (_producer, _) = producer(&cluster, NEW).await;
    let letter = refused(&cluster, "plain").await;
    let again = cli(&cluster, &["dead", "retry", letter["id"].as_str().unwrap()], "").await;
    assert!(
        !again.status.success() && text(&again.stderr).contains("signature was refused"),
        "{}",
        text(&again.stderr)
    );
    let whole = cluster.get("/api/v1/dead_letter", &[("id", letter["id"].as_str().unwrap().into())]).await.unwrap();
    assert_eq!(whole["payload"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_and_a_worker_without_one_runs_all() {
    let cluster = Cluster::start().await;
    let submit = async |keys: Option<&str>, id: &str, queue: &str| {
        let client = cluster.client.clone().with_signer(keys.map(signer));
        let task = NewTask { id: Some(id.into()), queue: queue.into(), ..task("square", "3") };
        client.submit(&task, RetryDeadline::Unlimited).await.unwrap();
    };
    let both = format!("{NEW},{OLD}");
    let rotating = cluster.worker("w1", &["--signing-key", &both], None);
    submit(Some(OLD), "old", "default").await;
    submit(Some(&both), "both", "default").await;
    submit(Some(NEW), "new", "default").await;
    for id in ["old", "both", "new"] {
        assert_eq!(cluster.ended(id).await["status"], "done", "{id}");
    }
    drop(rotating);
    let _rotated = cluster.worker("w2", &["--signing-key", NEW], None);
    submit(Some(OLD), "late", "default").await;
    submit(Some(NEW), "in-time", "default").await;
    assert_eq!(refused(&cluster, "late").await["reason"], "bad_signature");
    assert_eq!(cluster.ended("in-time").await["status"], "done");
    let _trusting = cluster.worker("w3", &["--queues", "open"], None);
    submit(None, "open-unsigned", "open").await;
    submit(Some(OLD), "open-signed", "open").await;
    for id in ["open-unsigned", "open-signed"] {
        assert_eq!(cluster.ended(id).await["status"], "done", "{id}");
    }
    // Who waits without a key is told what is missing, and a key that is too short is refused without being shown.
    cluster.worker_is("w2", |w| w["signed_only"] == true).await;
    let mut waits = cluster.command(&["submit", "square", "2", "--wait"]);
    let mut waits = waits.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let hint = {
        use std::io::BufRead;
        let mut lines = std::io::BufReader::new(waits.stderr.take().unwrap()).lines();
        tokio::task::spawn_blocking(move || lines.next().unwrap().unwrap()).await.unwrap()
    };
    waits.kill().unwrap();
    waits.wait().unwrap();
    assert!(hint.contains("signed tasks only") && hint.contains("MILLPOND_SIGNING_KEY"), "{hint}");
    let short = cli(&cluster, &["submit", "square", "2"], "hunter2").await;
    let said = text(&short.stderr);
    assert!(!short.status.success() && said.contains("32") && !said.contains("hunter2"), "{said}");
}

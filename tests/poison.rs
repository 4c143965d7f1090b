//! Messages whose headers or subject the NATS client cannot read. nats-server stores them all the same, and whoever is given one
//! loses its connection, or its process: none may stop a queue, a collector or a call.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use data_encoding::BASE64;
use millpond::bus::Role;
use millpond::bus::shared_state::{SharedError, SharedState};
use millpond::bus::topology::stream_state;
use millpond::wire::header_block;
use serde_json::{Value, json};

use crate::harness::{Cluster, NatsServer, PATIENCE, Process, task, text, until};

/// How long what cannot be read may be in the way.
const IN_THE_WAY_MAX: Duration = Duration::from_secs(15);

/// A connection in a role that sends what it is told to, byte for byte.
pub struct RawPublisher {
    stream: BufReader<TcpStream>,
}

impl RawPublisher {
    pub fn connect(nats: &NatsServer, role: &str) -> Self {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", nats.port)).unwrap());
        stream.read_line(&mut String::new()).unwrap();
        let password = &nats.secrets.passwords[role];
        let options =
            json!({ "verbose": false, "headers": true, "no_responders": true, "user": role, "pass": password });
        let mut this = Self { stream };
        this.send(format!("CONNECT {options}\r\n").as_bytes());
        this
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
        self.stream.get_mut().write_all(b"PING\r\n").unwrap();
        let mut line = String::new();
        while !line.starts_with("PONG") {
            line.clear();
            self.stream.read_line(&mut line).unwrap();
            assert!(!line.starts_with("-ERR"), "{line}");
        }
    }

    pub fn publish(&mut self, subject: &[u8], block: &[u8], payload: &[u8]) {
        let (of_block, all) = (block.len(), block.len() + payload.len());
        let command = match block {
            [] => [b"PUB ", subject, format!(" {all}\r\n").as_bytes()].concat(),
            _ => [b"HPUB ", subject, format!(" {of_block} {all}\r\n").as_bytes()].concat(),
        };
        self.send(&[&command, block, payload, b"\r\n"].concat());
    }
}

/// Subject, header block, and what is said of it.
const TASKS: [(&[u8], &[u8], &str); 7] = [
    (b"tasks.default.square", b"NATS/1.0\r\nX-Note: caf\xe9\r\n\r\n", "not UTF-8"),
    (b"tasks.default.square", b"NATS/1.0\r\ngarbage\r\n\r\n", "has no colon"),
    (b"tasks.default.square", b"HELLO\r\n\r\n", "NATS/1.0"),
    (b"tasks.default.square", b"NATS/1.0\r\na b: c\r\n\r\n", "the name in line 2"),
    (b"tasks.default.\xff\xfe", b"", "not plain text"),
    (b"tasks.default.a\xc2\xa0b", b"NATS/1.0\r\nA: b\r\n\r\n", "not plain text"),
    (b"tasks.default.square.j-x", b"NATS/1.0\r\nMillpond-Batch: 2\r\n\xff: x\r\n\r\n", "not UTF-8"),
];
/// What only the server says. It takes these out of what it stores; where it does not, they are no answers of its own.
const STATUSES: [&[u8]; 4] = [
    b"NATS/1.0 abc\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
];
/// The client's connection task panics at this one.
const LONE_CR: &[u8] = b"NATS/1.0\r\nX-Note: a\rb\r\n\r\n";

/// Runs a task, and returns how long that took.
async fn runs(cluster: &Cluster) -> Duration {
    let started = Instant::now();
    let mut session = cluster.client.session(None).await.unwrap();
    let run = session.run(task("square", "12"), millpond::bus::publish::RetryDeadline::Unlimited, |_| {});
    let (_, end) = tokio::time::timeout(PATIENCE, run).await.expect("a task runs").unwrap();
    assert_eq!(end.unwrap().get(), "144");
    started.elapsed()
}

async fn dead(cluster: &Cluster, count: usize) -> Vec<Value> {
    let started = Instant::now();
    loop {
        let dead = cluster.get("/api/v1/dead", &[]).await.unwrap_or_default();
        if let Some(rows) = dead["rows"].as_array().filter(|rows| rows.len() >= count) {
            return rows.clone();
        }
        let logs = || format!("{}\n{}", cluster.log("w1"), cluster.log("collector"));
        assert!(started.elapsed() < IN_THE_WAY_MAX, "not {count} dead letters: {dead}\n{}", logs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn is_empty(cluster: &Cluster, stream: &str) {
    let bus = cluster.nats.bus(Role::Setup).await;
    until(&format!("empty {stream}"), IN_THE_WAY_MAX, async || {
        (stream_state(&bus, stream).await.unwrap().messages == 0).then_some(())
    })
    .await;
}

/// A worker that is started again when it ends, as a supervisor does.
async fn kept_alive(cluster: &Cluster, worker: &mut Process, name: &str, mut done: impl AsyncFnMut() -> bool) -> u32 {
    let (started, mut ends) = (Instant::now(), 0);
    while !done().await {
        assert!(started.elapsed() < IN_THE_WAY_MAX, "{}", cluster.log(name));
        if let Some(status) = worker.ended() {
            assert_eq!(status.code(), Some(1), "{}", cluster.log(name));
            ends += 1;
            *worker = cluster.worker(name, &[], None);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_cannot_be_read_becomes_a_dead_letter_with_its_bytes() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--slots", "2", "--io-slots", "2"], None);
    runs(&cluster).await;
    // Beside the streams: what a publisher or a client sends crosses into another account, where the server drops a block as short as
    // HELLO by itself.
    let mut publisher = RawPublisher::connect(&cluster.nats, "producer");
    for (subject, block, _) in TASKS {
        publisher.publish(subject, block, b"12");
    }
    let rows = dead(&cluster, TASKS.len()).await;
    for (_, block, said) in TASKS {
        let mut found = false;
        for row in &rows {
            let query = [("id", text(row, "id")), ("queue", "default".to_owned())];
            let letter = cluster.get("/api/v1/dead_letter", &query).await.unwrap();
            let message = text(&letter["evidence"]["failure"], "message");
            let headers = letter["headers"].to_string();
            let has_block = headers.contains(&BASE64.encode(block));
            found |= message.contains(said) && has_block;
            assert_eq!((&letter["reason"], &letter["payload"]), (&json!("bad_header"), &json!(12)), "{letter}");
        }
        assert!(found, "{said}: {rows:?}");
    }
    for block in STATUSES {
        publisher.publish(b"tasks.default.square", block, b"12");
    }
    is_empty(&cluster, "TASKS").await;
    until("the end of each", PATIENCE, async || {
        let tasks = cluster.get("/api/v1/tasks", &[("queue", "default".to_owned())]).await?;
        let ended = tasks["rows"].as_array()?.iter().filter(|row| row["status"] == "done" || row["status"] == "dead");
        (ended.count() == 1 + TASKS.len() + STATUSES.len()).then_some(())
    })
    .await;
    assert!(runs(&cluster).await < Duration::from_secs(5), "{}", cluster.log("w1"));
    // Nobody knows how it was to run, or whether it was signed.
    let (_producer, _) = cluster.producer().await;
    let unread = rows.iter().find(|row| !text(row, "id").is_empty()).unwrap();
    let retry = cluster.command(&["dead", "retry", &text(unread, "id")]).output().unwrap();
    assert!(String::from_utf8_lossy(&retry.stderr).contains("cannot be read"), "{retry:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_the_process_of_a_worker_is_removed_while_it_is_started_again() {
    let cluster = Cluster::start().await;
    let mut worker = cluster.worker("w1", &[], None);
    runs(&cluster).await;
    RawPublisher::connect(&cluster.nats, "publisher").publish(b"tasks.default.square", LONE_CR, b"12");
    let ends = kept_alive(&cluster, &mut worker, "w1", async || {
        let dead = cluster.get("/api/v1/dead", &[]).await.unwrap_or_default();
        dead["rows"].as_array().is_some_and(|rows| rows.len() == 1)
    })
    .await;
    assert!(ends > 0, "it ended: {}", cluster.log("w1"));
    assert!(cluster.log("w1").contains("the connection to NATS has died"), "{}", cluster.log("w1"));
    is_empty(&cluster, "TASKS").await;
    if worker.ended().is_some() {
        worker = cluster.worker("w1", &[], None);
    }
    assert!(runs(&cluster).await < Duration::from_secs(5), "{}", cluster.log("w1"));
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_of_them_among_others_stop_nobody() {
    let cluster = Cluster::start().await;
    let _workers = ["w1", "w2"].map(|name| cluster.worker(name, &["--slots", "2", "--io-slots", "2"], None));
    runs(&cluster).await;
    let mut publisher = RawPublisher::connect(&cluster.nats, "publisher");
    for _ in 0..40 {
        publisher.publish(b"tasks.default.square", TASKS[0].1, b"12");
    }
    let started = Instant::now();
    while started.elapsed() < IN_THE_WAY_MAX {
        let took = runs(&cluster).await;
        assert!(took < Duration::from_secs(5), "took {took:?}: {}", cluster.log("w1"));
    }
    assert_eq!(dead(&cluster, 40).await.len(), 40);
    is_empty(&cluster, "TASKS").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_and_dead_letters_that_cannot_be_read_are_stored_and_removed() {
    let mut cluster = Cluster::start().await;
    let worker = cluster.worker("w1", &[], None);
    runs(&cluster).await;
    let outcome = |id: &str| {
        json!({ "v": 1, "worker": "w9", "outcomes": [{ "id": id, "attempt": 1, "published_ms": 1, "started_ms": 2,
            "ended_ms": 3, "busy_us": 1, "results": [7] }] })
        .to_string()
    };
    let mut of_worker = RawPublisher::connect(&cluster.nats, "worker");
    for (at, block) in [TASKS[0].1, TASKS[1].1, LONE_CR].into_iter().enumerate() {
        of_worker.publish(b"results.-.default.square", block, outcome(&format!("poison-{at}")).as_bytes());
        of_worker.publish(b"dead.default.square", block, b"12");
        let id = format!("poison-{at}");
        until("end of what only the headers of are broken", IN_THE_WAY_MAX, async || {
            if cluster.collector.ended().is_some() {
                cluster.restart_collector(None);
            }
            let found = cluster.get("/api/v1/task", &[("id", id.clone())]).await?;
            (found["status"] == "done" && found["result"] == 7).then_some(())
        })
        .await;
        until("nothing left", IN_THE_WAY_MAX, async || {
            if cluster.collector.ended().is_some() {
                cluster.restart_collector(None);
            }
            let bus = cluster.nats.bus(Role::Setup).await;
            for stream in [
                millpond::bus::read::outcomes::OutcomeStream::Results,
                millpond::bus::read::outcomes::OutcomeStream::Dead,
            ] {
                let state =
                    millpond::bus::read::outcomes::OutcomeReader::new(bus.clone(), stream).state().await.ok()?;
                if state.pending + state.ack_pending > 0 {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }
    // What is stored later is collected.
    runs(&cluster).await;
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_after_one_that_cannot_be_read() {
    let cluster = Cluster::start().await;
    let mut worker = cluster.worker("w1", &[], None);
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    let mut client = RawPublisher::connect(&cluster.nats, "client");
    for subject in [&b"call.default.square"[..], b"$SRV.PING", b"ctl.request.results"] {
        for block in [TASKS[0].1, TASKS[1].1, STATUSES[1]] {
            client.publish(subject, block, b"1");
        }
    }
    client.publish(b"call.default.square", LONE_CR, b"1");
    kept_alive(&cluster, &mut worker, "w1", async || {
        let call = cluster.command(&["call", "square", "12", "--timeout", "2s"]).output().unwrap();
        call.status.success() && String::from_utf8_lossy(&call.stdout).trim() == "144"
    })
    .await;
    assert!(runs(&cluster).await < Duration::from_secs(5), "{}", cluster.log("w1"));
}

/// What the check says is what the client does: one connection for each block.
#[tokio::test(flavor = "multi_thread")]
async fn the_check_agrees_with_the_client() {
    let nats = NatsServer::start();
    let bus = until("a server", PATIENCE, async || {
        millpond::bus::Bus::connect(&nats.url("setup"), Role::Setup, "test", PATIENCE).await.ok()
    })
    .await;
    drop(bus);
    let good: [&[u8]; 5] = [
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0 \r\nA: b\r\n\r\n",
        b"NATS/1.0\r\nA:\r\n: empty name\r\n\r\n",
        b"NATS/1.0\r\nA: caf\xc3\xa9 \r\r\nB: x\r\n  folded\r\n\r\n",
        b"NATS/1.0\nA: b\n\nC: d",
    ];
    let bad = TASKS
        .iter()
        .map(|(_, block, _)| *block)
        .filter(|block| !block.is_empty())
        .take(4)
        .chain(STATUSES.into_iter().take(1));
    for block in good.into_iter().chain(bad).chain([LONE_CR]) {
        let bus = nats.bus(Role::Collector).await;
        let mut reconnects = bus.reconnects().await.unwrap();
        bus.flush().await;
        let before = *bus.connection().borrow();
        RawPublisher::connect(&nats, "worker").publish(b"events.reconnected.w1", block, b"1");
        let read = tokio::time::timeout(Duration::from_millis(700), reconnects.next()).await.is_ok();
        let lost = !bus.is_connected() || bus.connection().borrow().changes > before.changes;
        let said = String::from_utf8_lossy(block);
        assert_eq!(header_block::parse("events.reconnected.w1", block).is_ok(), read && !lost, "{said:?}");
    }
}

/// What a collector reads for itself: schedules, records of jobs and workers.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_keeps_no_collector_from_reading() {
    let mut cluster = Cluster::start().await;
    let mut worker = cluster.worker("w1", &[], None);
    runs(&cluster).await;
    for (role, subject) in [
        ("client", &b"$KV.millpond_jobs.evil"[..]),
        ("worker", b"$KV.millpond_workers.evil"),
        ("worker", b"sched.-.evil"),
    ] {
        for block in [TASKS[0].1, LONE_CR] {
            RawPublisher::connect(&cluster.nats, role).publish(subject, block, b"{}");
            let seen_again = async |cluster: &mut Cluster| {
                if cluster.collector.ended().is_some() {
                    cluster.restart_collector(None);
                }
                cluster.get("/api/v1/schedules", &[]).await?;
                cluster.get("/api/v1/workers", &[]).await.filter(|workers| workers["rows"].to_string().contains("w1"))
            };
            until("a collector that reads", PATIENCE, async || seen_again(&mut cluster).await).await;
            let setup = cluster.nats.bus(Role::Setup).await;
            let (stream, name) = match subject {
                b"$KV.millpond_jobs.evil" => ("KV_millpond_jobs", "$KV.millpond_jobs.evil"),
                b"$KV.millpond_workers.evil" => ("KV_millpond_workers", "$KV.millpond_workers.evil"),
                _ => ("DUE", "sched.-.evil"),
            };
            let started = Instant::now();
            while setup.last_raw_message(stream, name).await.unwrap().is_some() {
                if cluster.collector.ended().is_some() {
                    cluster.restart_collector(None);
                }
                let _ = cluster.get("/api/v1/schedules", &[]).await;
                assert!(started.elapsed() < IN_THE_WAY_MAX, "{name}: {}", cluster.log("collector"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // Workers follow the records of workers: one of these has ended it, too.
    kept_alive(&cluster, &mut worker, "w1", async || {
        cluster.command(&["call", "square", "12", "--timeout", "2s"]).output().unwrap().status.success()
    })
    .await;
    runs(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_cannot_be_read_is_damaged() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    runs(&cluster).await;
    let mut client = RawPublisher::connect(&cluster.nats, "client");
    client.publish(b"$O.millpond_payloads.C.nuid1", TASKS[0].1, b"1");
    let description = json!({ "name": "evil", "bucket": "millpond_payloads", "nuid": "nuid1", "size": 1, "chunks": 1,
        "mtime": "2026-01-01T00:00:00Z", "digest": "SHA-256=x" });
    let meta = format!("$O.millpond_payloads.M.{}", data_encoding::BASE64URL.encode(b"evil"));
    client.publish(meta.as_bytes(), b"", description.to_string().as_bytes());
    let reference = json!({ "object": "evil", "size": 1, "sha256": "0".repeat(64) });
    let block = format!("NATS/1.0\r\nNats-Msg-Id: large\r\nMillpond-Ref: {reference}\r\n\r\n");
    client.publish(b"tasks.default.square", block.as_bytes(), b"");
    let ended = cluster.ended("large").await;
    assert_eq!(ended["dead"]["reason"], "damaged_payload", "{ended}");
    assert!(ended["dead"]["failure"]["message"].as_str().unwrap().contains("cannot be read"), "{ended}");
    runs(&cluster).await;
}

/// Keys and values that another program has written into the shared state, with any bytes.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_lies_in_the_shared_state_costs_its_readers_nothing() {
    let cluster = Cluster::start().await;
    let bus = cluster.nats.bus(Role::Client).await;
    let (shared, before) = (SharedState::open(&bus).await.unwrap(), *bus.connection().borrow());
    shared.set("good", "before".into()).await.unwrap();
    let mut watch = shared.watch();
    let mut command_watches = cluster.started(&["shared", "watch", "--json"]);

    let bytes = &b"\xff\x00\xfe\r\n"[..];
    let large = vec![b'x'; 1 << 20];
    let mut publisher = RawPublisher::connect(&cluster.nats, "client");
    let fixed: [(&[u8], &[u8], &[u8]); 10] = [
        (b"no-text", b"", bytes),
        (b"controls", b"", b"a\x1b[2J\x07\xe2\x80\xae\r\nb"),
        (b"empty", b"", b""),
        (b"large", b"", &large),
        (b"a\xff\xfe", b"", b"key is no text"),
        (b"\xc3\xa4\x07\xe2\x80\xae", b"", b"key has controls"),
        (b"a\xc2\xa0b", b"", b"key has white space beyond ASCII"),
        (b"put", b"NATS/1.0\r\nKV-Operation: PUT\r\n\r\n", b"said to be put"),
        (b"odd", b"NATS/1.0\r\nKV-Operation: WHAT\r\n\r\n", b"an operation that is none"),
        (b"lone-cr", LONE_CR, b"1"),
    ];
    let mut written = fixed.to_vec();
    // A block as short as HELLO does not come across accounts.
    let blocks: Vec<&[u8]> =
        TASKS.iter().map(|(_, block, _)| *block).filter(|b| !b.starts_with(b"HELLO")).chain(STATUSES).collect();
    let names: Vec<String> = (0..blocks.len()).map(|at| format!("block-{at}")).collect();
    written.extend(names.iter().zip(blocks).map(|(name, block)| (name.as_bytes(), block, &b"2"[..])));
    for (key, block, value) in &written {
        publisher.publish(&[b"$KV.millpond_shared.", *key].concat(), block, value);
    }
    shared.set("good", "after".into()).await.unwrap();

    // Read one by one, as they change, and by their names: as they were written.
    let mut seen = BTreeMap::<String, Bytes>::new();
    while seen.get("good").is_none_or(|value| value != &b"after"[..]) {
        let change = tokio::time::timeout(PATIENCE, watch.next()).await.expect("a watch goes on");
        seen.insert(change.key, change.value.unwrap());
    }
    let keys = shared.keys().await.unwrap();
    assert_eq!(keys.len(), written.len() + 1, "{keys:?}");
    let listed = cluster.command(&["shared", "ls"]).output().unwrap();
    let listed_keys = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed_keys.lines().count(), keys.len(), "{listed_keys}");
    assert!(!listed_keys.contains(['\u{7}', '\u{202e}']), "{listed_keys:?}");
    for (key, _, value) in &written {
        let key = String::from_utf8_lossy(key);
        assert!(keys.contains(&key.clone().into_owned()), "{key}: {keys:?}");
        assert_eq!(seen[&*key], *value, "{key}");
        if key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            assert_eq!(shared.get(&key).await.unwrap().unwrap().value, *value, "{key}");
            let printed = cluster.command(&["shared", "get", &key]).output().unwrap();
            assert_eq!(printed.stdout, [*value, b"\n"].concat(), "{key}: {printed:?}");
        } else {
            assert!(matches!(shared.get(&key).await, Err(SharedError::Key(_))), "{key}");
        }
    }
    let printed = cluster.command(&["shared", "get", "no-text", "--json"]).output().unwrap();
    let printed: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!(printed["value"], json!({ "base64": BASE64.encode(bytes) }));

    // Written over, compared and set, removed and made again, whatever was there.
    for key in ["lone-cr", "block-0", "odd"] {
        let revision = shared.get(key).await.unwrap().unwrap().revision;
        assert!(matches!(shared.compare_and_set(key, "3".into(), 0).await, Err(SharedError::Conflict { .. })), "{key}");
        shared.compare_and_set(key, "3".into(), revision).await.unwrap();
        shared.remove(key).await.unwrap();
        assert_eq!(shared.get(key).await.unwrap(), None);
        shared.compare_and_set(key, "4".into(), 0).await.unwrap();
        assert_eq!(shared.get(key).await.unwrap().unwrap().value, "4");
    }
    assert_eq!(*bus.connection().borrow(), before, "the connection was never lost");

    // The command that watches has printed all of it, and runs on.
    let mut lines =
        tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(command_watches.stdout.take().unwrap()));
    let mut printed = BTreeMap::<String, Value>::new();
    while printed.get("odd").is_none_or(|value| value != "4") {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("it watches").unwrap().unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        printed.insert(text(&line, "key"), line["value"].clone());
    }
    assert_eq!(printed["no-text"], json!({ "base64": BASE64.encode(bytes) }));
    assert_eq!(printed["controls"], &*String::from_utf8_lossy(written[1].2));
    assert!(command_watches.try_wait().unwrap().is_none(), "it watches on");
}

/// A task that waits and cannot be read is in nobody's way who reads what waits.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_read_around_it() {
    let cluster = Cluster::start().await;
    let mut publisher = RawPublisher::connect(&cluster.nats, "publisher");
    publisher.publish(b"tasks.nobody.square", TASKS[0].1, b"12");
    publisher.publish(b"tasks.nobody.square", b"NATS/1.0\r\nNats-Msg-Id: behind\r\n\r\n", b"12");
    let why = cluster.command(&["why", "behind"]).output().unwrap();
    assert_eq!(why.status.code(), Some(13), "{why:?} {}", cluster.log("collector"));
}

/// No request can name such a key: only a wildcard fits it, and what else fits stays as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_no_text_is_removed_and_the_other_records_stay() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    runs(&cluster).await;
    let mapped = cluster.command(&["map", "square", "--range", "0..3", "--job", "before"]).output().unwrap();
    assert!(mapped.status.success(), "{mapped:?}");
    cluster.api.post::<Value>("/api/v1/queues/bounded/set", &json!({ "max_waiting": 7 })).await.unwrap();
    let setup = cluster.nats.bus(Role::Setup).await;
    let jobs_before = setup.last_raw_message("KV_millpond_jobs", "$KV.millpond_jobs.before").await.unwrap().unwrap();
    for (role, subject, stream) in [
        ("client", &b"$KV.millpond_jobs.\xff\xfe"[..], "KV_millpond_jobs"),
        ("worker", b"$KV.millpond_workers.a\xff", "KV_millpond_workers"),
        ("worker", b"$KV.millpond_queues.\xff.consumer", "KV_millpond_queues"),
    ] {
        RawPublisher::connect(&cluster.nats, role).publish(subject, b"", b"{}");
        let started = Instant::now();
        loop {
            let mut at = 0;
            let mut is_left = false;
            while let Some(message) = setup.next_raw_message(stream, at + 1, ">").await.unwrap() {
                at = message.seq;
                is_left |= message.subject.contains(char::REPLACEMENT_CHARACTER);
            }
            if !is_left {
                break;
            }
            assert!(started.elapsed() < IN_THE_WAY_MAX, "{stream}: {}", cluster.log("collector"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let jobs_after = setup.last_raw_message("KV_millpond_jobs", "$KV.millpond_jobs.before").await.unwrap().unwrap();
    assert!(jobs_after.seq > jobs_before.seq, "it lies behind what was removed");
    assert_eq!(jobs_after.payload, jobs_before.payload);
    let limits = setup.last_raw_message("KV_millpond_queues", "$KV.millpond_queues.bounded").await.unwrap().unwrap();
    assert_eq!(&limits.payload[..], br#"{"max_waiting":7}"#);
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    assert!(runs(&cluster).await < Duration::from_secs(5), "{}", cluster.log("collector"));
    let mapped = cluster.command(&["map", "square", "--range", "0..3", "--job", "after"]).output().unwrap();
    assert!(mapped.status.success(), "{mapped:?}");
}

/// Nothing would ever wake it: the task that keeps the connection is gone, and nobody connects again.
#[tokio::test(flavor = "multi_thread")]
async fn a_verb_whose_connection_has_died_ends() {
    for arguments in [&["submit", "square", "3", "--wait"][..], &["map", "square", "--range", "0..3", "--job", "waits"]]
    {
        let cluster = Cluster::start().await;
        let verb = cluster.started(arguments);
        let setup = cluster.nats.bus(Role::Setup).await;
        let task =
            until("a stored task", PATIENCE, async || setup.next_raw_message("TASKS", 1, ">").await.unwrap()).await;
        let job = task.subject.split(".j-").nth(1).unwrap_or("-");
        let subject = format!("results.{job}.default.square");
        RawPublisher::connect(&cluster.nats, "worker").publish(subject.as_bytes(), LONE_CR, b"{}");
        let ended = tokio::time::timeout(Duration::from_secs(10), verb.wait_with_output()).await;
        let ended = ended.unwrap_or_else(|_| panic!("{arguments:?} ends")).unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(69), "{arguments:?}: {said}");
        let told = ["the connection to NATS has died", "the connection is closed"];
        assert!(told.iter().any(|told| said.contains(told)), "{arguments:?}: {said}");
    }
}

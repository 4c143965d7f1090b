//! Each role against what it may not do, with a real client: the server refuses. What roles must do is tried by all the
//! other tests, which run under these permissions.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::{Client, ConnectOptions, Event};
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::{Cluster, NatsServer};

/// The roles that listen on the default inbox, as every library does by itself.
const DEFAULT_INBOX: [&str; 2] = ["publisher", "client"];

/// A connection as a role, and what the server refuses it.
struct Intruder {
    client: Client,
    refused: mpsc::Receiver<String>,
}

impl Intruder {
    async fn connect(nats: &NatsServer, role: &str) -> Self {
        let (sender, refused) = mpsc::channel(64);
        let inbox = if DEFAULT_INBOX.contains(&role) { "_INBOX".to_owned() } else { format!("_INBOX_{role}") };
        let client = ConnectOptions::new()
            .user_and_password(role.into(), nats.secrets.passwords[role].clone())
            .custom_inbox_prefix(inbox)
            .request_timeout(Some(Duration::from_secs(5)))
            .event_callback(move |event| {
                let sender = sender.clone();
                async move {
                    if let Event::ServerError(error) = event {
                        let _ = sender.send(error.to_string().to_lowercase()).await;
                    }
                }
            })
            .connect(format!("127.0.0.1:{}", nats.port))
            .await
            .unwrap();
        Self { client, refused }
    }

    /// The server's refusal names the subject.
    async fn is_refused(&mut self, what: &str) {
        self.client.flush().await.unwrap();
        let said = tokio::time::timeout(Duration::from_secs(5), self.refused.recv()).await;
        let said = said.unwrap_or_else(|_| panic!("{what} was not refused")).unwrap();
        assert!(said.contains("permissions violation") && said.contains(&what.to_lowercase()), "{what}: {said}");
    }

    async fn may_not_publish(&mut self, subject: &str) {
        self.client.publish(subject.to_owned(), "{}".into()).await.unwrap();
        self.is_refused(subject).await;
    }

    async fn may_not_subscribe(&mut self, subject: &str) {
        let _messages = self.client.subscribe(subject.to_owned()).await.unwrap();
        self.is_refused(subject).await;
    }

    async fn asks(&self, subject: &str, body: Value) -> Value {
        let answer = self.client.request(subject.to_owned(), body.to_string().into()).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }
}

/// Nobody but setup changes streams, and nobody reads another's inbox.
const FOR_NOBODY: [&str; 5] = [
    "$JS.API.STREAM.CREATE.EVIL",
    "$JS.API.STREAM.UPDATE.TASKS",
    "$JS.API.STREAM.DELETE.TASKS",
    "$JS.API.STREAM.MSG.DELETE.OBJ_millpond_payloads",
    "$SYS.REQ.SERVER.PING",
];

/// Only a collector looks raw at single messages and removes those that no client can read; of the tasks, whoever reads them
/// anyway may look raw.
const FOR_THE_COLLECTOR: [&str; 7] = [
    "$JS.API.STREAM.MSG.DELETE.LATER",
    "$JS.API.STREAM.MSG.DELETE.TASKS",
    "$JS.API.STREAM.MSG.DELETE.DUE",
    "$JS.API.STREAM.MSG.DELETE.RESULTS",
    "$JS.API.STREAM.MSG.DELETE.DEAD",
    "$JS.API.STREAM.PURGE.KV_millpond_jobs",
    "$JS.API.STREAM.MSG.GET.DEAD",
];

async fn check(role: &str, publish: &[&str], subscribe: &[&str]) {
    let cluster = Cluster::start().await;
    let mut intruder = Intruder::connect(&cluster.nats, role).await;
    let others: &[&str] = if role == "collector" { &[] } else { &FOR_THE_COLLECTOR };
    for subject in FOR_NOBODY.iter().chain(others).chain(publish) {
        intruder.may_not_publish(subject).await;
    }
    for other in ["setup", "publisher", "producer", "worker", "collector"].iter().filter(|other| **other != role) {
        intruder.may_not_subscribe(&format!("_INBOX_{other}.>")).await;
    }
    for subject in subscribe {
        intruder.may_not_subscribe(subject).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publisher_only_publishes_tasks() {
    let publish = [
        "results.-.default.square",
        "dead.default.square",
        "due.default.square",
        "sched.a.b.c.d",
        "moved",
        "$JS.API.STREAM.INFO.TASKS",
        "$JS.API.STREAM.PURGE.TASKS",
        "$KV.millpond_jobs.x",
        "$O.millpond_payloads.C.x",
        "lease.owner.default.x",
        "call.default.square",
        "pipe.x.in",
        "$SRV.PING",
        "ctl.request.status",
        "ctl.request.cancel",
    ];
    check("publisher", &publish, &["results.>", "tasks.>", "pipe.*.out", ">"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_hears_the_answers_to_itself_and_no_others() {
    let nats = NatsServer::start();
    let _started = nats.bus(millpond::bus::Role::Setup).await;
    let setup = nats.bus(millpond::bus::Role::Setup).await;
    millpond::bus::topology::setup(&setup, &millpond::bus::topology::StreamLimits::default()).await.unwrap();
    let publisher = Intruder::connect(&nats, "publisher").await;
    let mut heard = publisher.client.subscribe("_INBOX.>").await.unwrap();
    publisher.client.flush().await.unwrap();
    // The answers to others come first; were they heard, they would be heard first.
    for role in ["client", "producer"] {
        let other = Intruder::connect(&nats, role).await;
        let answer = other.asks("$JS.API.STREAM.INFO.TASKS", json!({})).await;
        assert_eq!(answer["config"]["name"], "TASKS", "{answer}");
        assert_eq!(other.asks("tasks.default.square", json!(12)).await["stream"], "TASKS");
    }
    let answer = publisher.asks("tasks.default.square", json!(12)).await;
    assert_eq!(answer, json!({ "stream": "TASKS", "seq": 3 }));
    let first = tokio::time::timeout(Duration::from_secs(5), heard.next()).await.unwrap().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&first.payload).unwrap(), answer);
    // What no stream takes is told to it too: to one whose only listener is that of its requests.
    let other = Intruder::connect(&nats, "publisher").await;
    let nobody = other.client.request("tasks.default", "12".into()).await.unwrap_err();
    assert_eq!(nobody.kind(), async_nats::RequestErrorKind::NoResponders);
}

/// Libraries ask for consumers without a name in the subject, which no permission can tell from such a request for another's.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_changes_the_consumer_of_the_collector() {
    let cluster = Cluster::start().await;
    let setup = Intruder::connect(&cluster.nats, "setup").await;
    for role in ["client", "producer"] {
        let intruder = Intruder::connect(&cluster.nats, role).await;
        let attempts = [
            ("CREATE.RESULTS", json!({ "name": "collector" })),
            ("CREATE.RESULTS", json!({ "name": "collector", "durable_name": "collector" })),
            ("CREATE.RESULTS", json!({ "durable_name": "collector" })),
            ("CREATE.RESULTS.other", json!({ "durable_name": "collector" })),
            ("CREATE.RESULTS.other.results.x.>", json!({ "name": "other", "durable_name": "collector" })),
            ("DURABLE.CREATE.RESULTS.other", json!({ "name": "collector", "durable_name": "collector" })),
        ];
        for policy in [json!("all"), json!("new"), json!("by_start_time")] {
            for (subject, named) in &attempts {
                let mut config = named.clone();
                config["ack_policy"] = json!("explicit");
                config["filter_subject"] = json!("results.x.>");
                config["deliver_policy"] = policy.clone();
                if policy == "by_start_time" {
                    config["opt_start_time"] = json!("1970-01-01T00:00:00Z");
                }
                let request = json!({ "stream_name": "RESULTS", "config": config });
                let answer = intruder.asks(&format!("$JS.API.CONSUMER.{subject}"), request.clone()).await;
                assert!(answer["error"].is_object(), "{role} {subject} {request}: {answer}");
            }
        }
        // A name of its own, in the body as in the subject.
        let own = json!({ "stream_name": "RESULTS", "config": { "name": role, "ack_policy": "explicit" } });
        let answer = intruder.asks("$JS.API.CONSUMER.CREATE.RESULTS", own).await;
        assert_eq!((&answer["error"], &answer["name"]), (&Value::Null, &json!(role)), "{answer}");
    }
    let config = || async { setup.asks("$JS.API.CONSUMER.INFO.RESULTS.collector", json!({})).await["config"].clone() };
    let before = config().await;
    assert_eq!((&before["filter_subject"], &before["deliver_policy"]), (&json!("results.>"), &json!("by_start_time")));
    // `setup` may be run again: it does not know the start either, and keeps it.
    let bus = cluster.nats.bus(millpond::bus::Role::Setup).await;
    millpond::bus::topology::setup(&bus, &millpond::bus::topology::StreamLimits::default()).await.unwrap();
    assert_eq!(config().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_takes_no_tasks_and_purges_nothing() {
    let publish = [
        "moved",
        "sched.a.b.c.d",
        "sched.-.nightly",
        "sched.-.-.probe",
        "results.-.default.square",
        "dead.default.square",
        "due.default.square",
        "$JS.API.STREAM.PURGE.TASKS",
        "$JS.API.STREAM.PURGE.RESULTS",
        "$JS.API.STREAM.PURGE.DUE",
        "$JS.API.CONSUMER.MSG.NEXT.TASKS.q-default",
        "$JS.API.CONSUMER.CREATE.TASKS.x.tasks.default.>",
        "$JS.API.CONSUMER.DELETE.RESULTS.collector",
        "$JS.API.CONSUMER.MSG.NEXT.RESULTS.collector",
        "$JS.ACK.TASKS.q-default.1.1.1.1.1",
        "$KV.millpond_workers.w1",
        "$KV.millpond_starts.x",
        "$KV.millpond_cancels.x",
        "$KV.millpond_queues.x",
        "$JS.API.STREAM.PURGE.DUE",
        "$JS.API.STREAM.PURGE.OBJ_millpond_payloads",
        "$JS.API.STREAM.PURGE.KV_millpond_shared",
        "$JS.API.STREAM.LIST",
        "$JS.API.CONSUMER.NAMES.RESULTS",
        "$JS.API.CONSUMER.LIST.RESULTS",
        "$JS.API.CONSUMER.CREATE.RESULTS.collector",
        "$JS.API.CONSUMER.CREATE.RESULTS.collector.results.x.>",
        "$JS.API.CONSUMER.DURABLE.CREATE.RESULTS.collector",
        "$JS.API.CONSUMER.INFO.RESULTS.collector",
        "$JS.ACK.RESULTS.collector.1.1.1.1.1",
        "$JS.API.CONSUMER.CREATE.KV_millpond_workers",
        "$JS.API.CONSUMER.CREATE.KV_millpond_cancels.x.>",
        "$JS.API.STREAM.MSG.GET.KV_millpond_workers",
        "pipe.x.out",
        // It may cancel a task or a job by its name, and request nothing else of a service.
        "ctl.replay",
        "ctl.continuation",
        "ctl.drain.w1",
        "ctl.request.purge",
    ];
    check("client", &publish, &["tasks.>", "dead.>", "lease.owner.>", "$KV.>", "call.>", "pipe.*.in", "$SRV.>", ">"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn producer_takes_no_tasks_and_reads_no_letters() {
    let publish = [
        "results.-.default.square",
        "later.default.square",
        "$JS.API.STREAM.PURGE.TASKS",
        "$JS.API.CONSUMER.MSG.NEXT.TASKS.q-default",
        "$KV.millpond_workers.w1",
        "$KV.millpond_queues.x",
        "$JS.API.CONSUMER.CREATE.OBJ_millpond_payloads",
        "$JS.API.STREAM.PURGE.OBJ_millpond_payloads",
        "$JS.API.CONSUMER.LIST.RESULTS",
        "$JS.API.CONSUMER.CREATE.RESULTS.collector.results.x.>",
        "$JS.API.CONSUMER.DURABLE.CREATE.RESULTS.collector",
        "$JS.API.CONSUMER.INFO.RESULTS.collector",
        "$JS.ACK.RESULTS.collector.1.1.1.1.1",
        "$KV.millpond_shared.x",
        "pipe.x.out",
        "ctl.request.cancel",
    ];
    check("producer", &publish, &["tasks.>", "dead.>", "call.>", "pipe.*.out", ">"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_publishes_no_tasks() {
    let publish = [
        "tasks.default.square",
        "later.default.square",
        "moved",
        "$JS.API.STREAM.PURGE.TASKS",
        "$JS.API.STREAM.PURGE.DUE",
        "$JS.API.CONSUMER.CREATE.RESULTS.x.results.>",
        "$JS.API.CONSUMER.MSG.NEXT.RESULTS.collector",
        "$JS.API.CONSUMER.DELETE.TASKS.q-default",
        "$JS.ACK.RESULTS.collector.1.1.1.1.1",
        "$KV.millpond_jobs.x",
        "$KV.millpond_cancels.x",
        "$KV.millpond_queues.x",
        "$KV.millpond_queues.x.pause",
        "$JS.API.STREAM.MSG.GET.TASKS",
        "ctl.cancel",
        "$JS.API.CONSUMER.CREATE.OBJ_millpond_payloads",
        "$JS.API.STREAM.PURGE.OBJ_millpond_payloads",
        "call.default.square",
        "pipe.x.in",
        "_INBOX.x",
    ];
    check("worker", &publish, &["_INBOX.>", "tasks.>", "results.>", "dead.>", "pipe.*.out", ">"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_answers_a_call_once_and_nothing_else() {
    let nats = NatsServer::start();
    let _started = nats.bus(millpond::bus::Role::Setup).await;
    let mut worker = Intruder::connect(&nats, "worker").await;
    let client = Intruder::connect(&nats, "client").await.client;
    let mut calls = worker.client.subscribe("call.>").await.unwrap();
    // The server takes one thing after the other: when it has sent this back, it knows of the subscription above.
    let mut own = worker.client.subscribe("_INBOX_worker.own").await.unwrap();
    worker.client.publish("_INBOX_worker.own", "".into()).await.unwrap();
    own.next().await.unwrap();
    let answer = client.request("call.default.square", "12".into());
    let answering = async {
        let reply = calls.next().await.unwrap().reply.unwrap();
        worker.client.publish(reply.clone(), "144".into()).await.unwrap();
        worker.may_not_publish(&reply).await;
        // Nor what it was not asked.
        worker.may_not_publish(&format!("{reply}x")).await;
    };
    let both = tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(answer, answering) }).await;
    let (answer, ()) = both.expect("the call arrives");
    assert_eq!(answer.unwrap().payload, "144");
}

#[tokio::test(flavor = "multi_thread")]
async fn collector_publishes_no_tasks() {
    let publish = [
        "tasks.default.square",
        "later.default.square",
        "due.default.square",
        "sched.a.b.c.d",
        "$JS.API.CONSUMER.MSG.NEXT.TASKS.q-default",
        "$JS.API.CONSUMER.CREATE.TASKS.collector.tasks.>",
        "$JS.API.CONSUMER.CREATE.RESULTS.other.results.>",
        "$JS.API.CONSUMER.DELETE.RESULTS.collector",
        "$JS.API.STREAM.PURGE.KV_millpond_purges",
        "$JS.ACK.TASKS.q-default.1.1.1.1.1",
        "$JS.API.CONSUMER.DELETE.RESULTS.collector",
        "$KV.millpond_workers.w1",
        "$O.millpond_payloads.C.x",
        "$JS.API.CONSUMER.CREATE.OBJ_millpond_payloads",
    ];
    check("collector", &publish, &["_INBOX.>", "tasks.>", ">"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_makes_only_its_queues_consumers() {
    let cluster = Cluster::start().await;
    let mut worker = Intruder::connect(&cluster.nats, "worker").await;
    let config = |filter: &str| {
        json!({ "stream_name": "TASKS", "action": "create",
            "config": { "durable_name": "q-x", "name": "q-x", "ack_policy": "explicit", "filter_subject": filter } })
    };
    // The server holds the filter against the one in the subject, which the permissions allow.
    let answer = worker.asks("$JS.API.CONSUMER.CREATE.TASKS.q-x.tasks.x.>", config("tasks.>")).await;
    assert_eq!(answer["error"]["err_code"], 10131, "{answer}");
    let answer = worker.asks("$JS.API.CONSUMER.CREATE.TASKS.q-x.tasks.x.>", config("tasks.x.>")).await;
    assert_eq!(answer["error"], Value::Null, "{answer}");
    worker.may_not_publish("$JS.API.CONSUMER.CREATE.TASKS.all.tasks.>").await;
    worker.may_not_publish("$JS.API.CONSUMER.CREATE.TASKS").await;
    worker.may_not_publish("$JS.API.CONSUMER.DURABLE.CREATE.TASKS.all").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_refused_with_words() {
    let cluster = Cluster::start().await;
    let url = format!("nats://client:wrong@127.0.0.1:{}", cluster.nats.port);
    let mut command = cluster.command(&["submit", "square", "1"]);
    let output = command.env("MILLPOND_NATS_URL", url).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("authorization violation") && !said.contains("wrong@"), "{said}");
    let none = cluster.command(&["submit", "square", "1", "--connect-timeout", "300ms"]);
    let mut none = none;
    let output = none.env("MILLPOND_NATS_URL", "nats://127.0.0.1:1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(69) && said.contains("is the server up"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn setup_may_be_repeated_and_keeps_the_epochs() {
    let cluster = Cluster::start().await;
    let bus = cluster.nats.bus(millpond::bus::Role::Setup).await;
    let state = async || millpond::bus::topology::stream_state(&bus, "TASKS").await.unwrap();
    let before = state().await.epoch;
    for _ in 0..2 {
        let output = cluster
            .command(&["setup", "--tasks-max", "500"])
            .env("MILLPOND_SETUP_NATS_URL", cluster.nats.url("setup"))
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!((state().await.epoch, state().await.messages_max), (before, Some(500)));
    let js = jetstream::new(Intruder::connect(&cluster.nats, "setup").await.client);
    let names: Vec<String> = js.stream_names().try_collect().await.unwrap();
    assert_eq!(names.len(), 5 + 8 + 1, "{names:?}");
}

/// What the server's API has (its `jetstream_api.go`), by stream and by consumer; `{s}`: a stream, `{f}`: a subject of it.
const API: [&str; 40] = [
    "INFO",
    "STREAM.CREATE.{s}",
    "STREAM.UPDATE.{s}",
    "STREAM.NAMES",
    "STREAM.LIST",
    "STREAM.INFO.{s}",
    "STREAM.DELETE.{s}",
    "STREAM.PURGE.{s}",
    "STREAM.SNAPSHOT.{s}",
    "STREAM.RESTORE.{s}",
    "STREAM.MSG.DELETE.{s}",
    "STREAM.MSG.GET.{s}",
    "STREAM.PEER.REMOVE.{s}",
    "STREAM.PEER.EVACUATE.{s}",
    "STREAM.CANCEL_MOVE.{s}",
    "STREAM.LEADER.STEPDOWN.{s}",
    "DIRECT.GET.{s}",
    "DIRECT.GET.{s}.{f}",
    "CONSUMER.CREATE.{s}",
    "CONSUMER.CREATE.{s}.x",
    "CONSUMER.CREATE.{s}.x.{f}",
    "CONSUMER.CREATE.{s}.collector.{f}",
    "CONSUMER.DURABLE.CREATE.{s}.x",
    "CONSUMER.DURABLE.CREATE.{s}.collector",
    "CONSUMER.NAMES.{s}",
    "CONSUMER.LIST.{s}",
    "CONSUMER.INFO.{s}.x",
    "CONSUMER.INFO.{s}.collector",
    "CONSUMER.DELETE.{s}.x",
    "CONSUMER.DELETE.{s}.collector",
    "CONSUMER.PAUSE.{s}.x",
    "CONSUMER.RESET.{s}.x",
    "CONSUMER.UNPIN.{s}.x",
    "CONSUMER.LEADER.STEPDOWN.{s}.x",
    "CONSUMER.MSG.NEXT.{s}.x",
    "CONSUMER.MSG.NEXT.{s}.collector",
    "META.LEADER.STEPDOWN",
    "SERVER.REMOVE",
    "ACCOUNT.PURGE.MILLPOND",
    "ACCOUNT.STREAM.MOVE.MILLPOND.{s}",
];

/// All streams, with a subject of each, and the names that the table below has for them.
const STREAMS: [(&str, &str, &str); 14] = [
    ("TASKS", "tasks.default.square", "TASKS"),
    ("LATER", "later.default.square", "LATER"),
    ("DUE", "sched.-.nightly", "DUE"),
    ("RESULTS", "results.-.default.square", "RESULTS"),
    ("DEAD", "dead.default.square", "DEAD"),
    ("KV_millpond_jobs", "$KV.millpond_jobs.x", "jobs"),
    ("KV_millpond_workers", "$KV.millpond_workers.x", "workers"),
    ("KV_millpond_cancels", "$KV.millpond_cancels.x", "cancels"),
    ("KV_millpond_purges", "$KV.millpond_purges.x", "purges"),
    ("KV_millpond_starts", "$KV.millpond_starts.x", "starts"),
    ("KV_millpond_servers", "$KV.millpond_servers.x", "servers"),
    ("KV_millpond_queues", "$KV.millpond_queues.x", "queues"),
    ("KV_millpond_shared", "$KV.millpond_shared.x", "shared"),
    ("OBJ_millpond_payloads", "$O.millpond_payloads.M.x", "payloads"),
];

/// What of these subjects the server lets a role publish to. Over a bare socket: a client may drop reports of refusals.
fn allowed(nats: &NatsServer, role: &str, subjects: &[String]) -> Vec<bool> {
    use std::io::{BufRead, BufReader, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", nats.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
    let _info = lines.next();
    let connect = json!({ "verbose": false, "headers": true, "user": role, "pass": nats.secrets.passwords[role] });
    stream.set_nodelay(true).unwrap();
    stream.write_all(format!("CONNECT {connect}\r\n").as_bytes()).unwrap();
    let mut is_allowed = |subject: &String| {
        stream.write_all(format!("PUB {subject} 2\r\n{{}}\r\nPING\r\n").as_bytes()).unwrap();
        let said: Vec<String> = lines.by_ref().take_while(|line| !line.starts_with("PONG")).collect();
        let refused = said
            .iter()
            .any(|line| line.contains("Permissions Violation for Publish") && line.contains(subject.as_str()));
        assert!(refused || said.is_empty(), "{subject}: {said:?}");
        !refused
    };
    subjects.iter().map(&mut is_allowed).collect()
}

/// A line for each request of the API that a role may make, with the streams for which it may.
fn table(nats: &NatsServer, role: &str) -> String {
    let mut lines = String::new();
    for template in API {
        let subject = |(stream, of, _): &(&str, &str, &str)| {
            format!("$JS.API.{template}").replace("{s}", stream).replace("{f}", of)
        };
        let streams = if template.contains("{s}") { &STREAMS[..] } else { &STREAMS[..1] };
        let subjects: Vec<String> = streams.iter().map(subject).collect();
        let may = allowed(nats, role, &subjects);
        let names: Vec<&str> =
            streams.iter().zip(&may).filter(|(_, may)| **may).map(|((_, _, name), _)| *name).collect();
        if !names.is_empty() {
            let names = if template.contains("{s}") { format!(" {}", names.join(" ")) } else { String::new() };
            lines += &format!("{template}{names}\n");
        }
    }
    lines
}

/// What of the API each role may use, and on which streams: what is not here is refused.
const TABLE: &str = "\
# publisher
# client
INFO
STREAM.NAMES
STREAM.INFO.{s} TASKS LATER DUE RESULTS jobs queues shared payloads
STREAM.MSG.GET.{s} TASKS LATER DUE RESULTS jobs queues shared payloads
DIRECT.GET.{s} TASKS LATER DUE jobs queues shared payloads
DIRECT.GET.{s}.{f} TASKS LATER DUE jobs queues shared payloads
CONSUMER.CREATE.{s} RESULTS jobs queues shared payloads
CONSUMER.CREATE.{s}.x RESULTS jobs queues shared payloads
CONSUMER.CREATE.{s}.x.{f} RESULTS jobs queues shared payloads
CONSUMER.CREATE.{s}.collector.{f} jobs queues shared payloads
CONSUMER.DURABLE.CREATE.{s}.x RESULTS
CONSUMER.INFO.{s}.x RESULTS jobs queues shared payloads
CONSUMER.INFO.{s}.collector jobs queues shared payloads
CONSUMER.DELETE.{s}.x RESULTS jobs queues shared payloads
CONSUMER.DELETE.{s}.collector jobs queues shared payloads
CONSUMER.MSG.NEXT.{s}.x RESULTS
# producer
INFO
STREAM.NAMES
STREAM.INFO.{s} TASKS LATER DUE RESULTS jobs
STREAM.PURGE.{s} LATER
STREAM.MSG.GET.{s} TASKS LATER DUE RESULTS payloads
DIRECT.GET.{s} TASKS LATER DUE payloads
DIRECT.GET.{s}.{f} DUE jobs queues
CONSUMER.CREATE.{s} RESULTS
CONSUMER.CREATE.{s}.x RESULTS
CONSUMER.CREATE.{s}.x.{f} RESULTS
CONSUMER.DURABLE.CREATE.{s}.x RESULTS
CONSUMER.INFO.{s}.x RESULTS
CONSUMER.DELETE.{s}.x RESULTS
CONSUMER.MSG.NEXT.{s}.x RESULTS
# worker
STREAM.INFO.{s} TASKS DUE workers cancels purges starts servers queues
STREAM.MSG.GET.{s} payloads
DIRECT.GET.{s} payloads
DIRECT.GET.{s}.{f} DUE starts servers queues
CONSUMER.CREATE.{s} workers cancels purges starts queues
CONSUMER.CREATE.{s}.x workers cancels purges starts queues
CONSUMER.CREATE.{s}.x.{f} TASKS workers cancels purges starts queues
CONSUMER.CREATE.{s}.collector.{f} TASKS workers cancels purges starts queues
CONSUMER.INFO.{s}.x TASKS DUE
CONSUMER.INFO.{s}.collector TASKS DUE
CONSUMER.DELETE.{s}.x workers cancels purges starts queues
CONSUMER.DELETE.{s}.collector workers cancels purges starts queues
CONSUMER.MSG.NEXT.{s}.x TASKS DUE
CONSUMER.MSG.NEXT.{s}.collector TASKS DUE
# collector
STREAM.NAMES
STREAM.INFO.{s} TASKS LATER DUE RESULTS DEAD jobs workers cancels purges queues
STREAM.PURGE.{s} TASKS LATER DUE RESULTS DEAD jobs workers queues
STREAM.MSG.DELETE.{s} TASKS LATER DUE RESULTS DEAD
STREAM.MSG.GET.{s} TASKS LATER DUE RESULTS DEAD jobs workers queues payloads
DIRECT.GET.{s} TASKS LATER DUE payloads
DIRECT.GET.{s}.{f} DUE jobs purges queues
CONSUMER.CREATE.{s} jobs workers
CONSUMER.CREATE.{s}.x jobs workers
CONSUMER.CREATE.{s}.x.{f} jobs workers
CONSUMER.CREATE.{s}.collector.{f} RESULTS DEAD jobs workers
CONSUMER.LIST.{s} TASKS DUE
CONSUMER.INFO.{s}.x TASKS
CONSUMER.INFO.{s}.collector TASKS RESULTS DEAD
CONSUMER.DELETE.{s}.x TASKS DUE jobs workers
CONSUMER.DELETE.{s}.collector TASKS DUE jobs workers
CONSUMER.PAUSE.{s}.x TASKS DUE
CONSUMER.MSG.NEXT.{s}.collector RESULTS DEAD
";

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_ask_jetstream_what_its_table_says() {
    let nats = NatsServer::start();
    let setup = nats.bus(millpond::bus::Role::Setup).await;
    millpond::bus::topology::setup(&setup, &millpond::bus::topology::StreamLimits::default()).await.unwrap();
    let mut found = String::new();
    for role in ["publisher", "client", "producer", "worker", "collector"] {
        let lines = tokio::task::block_in_place(|| table(&nats, role));
        found += &format!("# {role}\n{lines}");
    }
    assert_eq!(found, TABLE);
}

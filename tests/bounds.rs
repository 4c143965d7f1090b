//! Numbers beyond all bounds on the wire, in headers, records and commands: refused where they are said, a dead letter or kept aside
//! where they arrive, and never the end of a program that reads them.

use std::time::Duration;

use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, task, until};

const SHORT: RetryDeadline = RetryDeadline::Within(Duration::from_secs(5));

async fn store(cluster: &Cluster, role: Role, subject: &str, headers: &[(&str, &str)], payload: &str) {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    cluster.nats.bus(role).await.store(subject, &headers, payload.to_owned().into(), SHORT).await.unwrap();
}

fn said(cluster: &Cluster, arguments: &[&str]) -> (Option<i32>, String) {
    let output = cluster.command(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_and_outcomes_that_cannot_be_are_kept_aside_and_the_collector_goes_on() {
    let mut cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let bomb = r#"{"v":1,"id":"bomb/0","original_id":"bomb","items":{"of":4294967295,"from":0,"len":1},"attempt":1,"reason":"fatal","failure":{"type":"e","message":"m"},"worker":"w","published_ms":1,"dead_lettered_ms":2}"#;
    let bombs = [
        bomb.to_owned(),
        bomb.replace(r#""len":1"#, r#""len":4294967295"#),
        bomb.replace("4294967295", "2").replace(r#""dead_lettered_ms":2"#, r#""dead_lettered_ms":9223372036854775807"#),
        bomb.replace("4294967295", "2").replace(r#""attempt":1"#, r#""attempt":4294967295"#),
    ];
    for bomb in &bombs {
        store(&cluster, Role::Worker, "dead.default.square", &[("Millpond-Dead", bomb)], "1").await;
    }
    let outcome = r#"{"id":"bad","items":{"of":4294967295,"from":4294967294,"len":1},"attempt":1,"published_ms":1,"started_ms":2,"ended_ms":3,"results":[1]}"#;
    let good =
        r#"{"id":"good","attempt":1,"published_ms":1,"started_ms":2,"ended_ms":3,"results":[7],"later":{"a":[]}}"#;
    let pack = format!(r#"{{"v":1,"worker":"w","outcomes":[{outcome},{good}],"later":1}}"#);
    store(&cluster, Role::Worker, "results.-.default.square", &[], &pack).await;
    // A task that claims to be an item of such a batch is a dead letter, whoever may publish to `sched`.
    let due = [
        ("Nats-Schedule", "@at 2026-01-01T00:00:00Z"),
        ("Nats-Schedule-Target", "due.default.fail"),
        ("Millpond-Id", "item"),
        ("Millpond-Items", "0+1/4294967295"),
    ];
    store(&cluster, Role::Worker, "sched.default.fail.-.item", &due, "\"x\"").await;
    let dead = cluster.ended("item").await;
    assert_eq!(dead["dead"]["reason"], "bad_header", "{dead}");
    assert_eq!(cluster.ended("good").await["result"], 7, "the other outcome of the message counts");
    // Nothing of it comes again, and the process is the same.
    assert!(cluster.collector.ended().is_none());
    let id = cluster.client.submit(&task("square", "12"), SHORT).await.unwrap().id;
    assert_eq!(cluster.ended(&id).await["result"], 144);
    let problems = until("the problem", PATIENCE, async || {
        let rows = cluster.get("/api/v1/problems", &[]).await?;
        rows["rows"].as_array()?.iter().find(|row| row["kind"] == "unreadable" && row["what"] == "DEAD").cloned()
    })
    .await;
    assert!(problems["sentence"].as_str().unwrap().starts_with("4 messages of DEAD "), "{problems}");
    let log = cluster.log("collector");
    assert!(log.contains("no part of a batch") && !log.contains("panicked"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_that_a_task_brings_along_is_not_that_of_its_dead_letter() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let forged = r#"{"v":1,"id":"other","attempt":1,"reason":"fatal","failure":{"type":"e","message":"m"},"worker":"w","published_ms":1,"dead_lettered_ms":2}"#;
    let headers = [("Nats-Msg-Id", "mine"), ("Millpond-Dead", forged)];
    store(&cluster, Role::Client, "tasks.default.fail", &headers, r#"{"how":"fatal"}"#).await;
    assert_eq!(cluster.ended("mine").await["dead"]["reason"], "fatal");
    assert!(cluster.get("/api/v1/task", &[("id", "other".to_owned())]).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_with_an_extravagant_timeout_hides_no_other() {
    let cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    let _worker = cluster.worker("w1", &[], None);
    let add =
        |name: &'static str, more: &'static [&'static str]| [&["schedule", "add", name, "echo", "1"], more].concat();
    assert_eq!(said(&cluster, &add("good", &["--every", "1h"])).0, Some(0));
    for more in [
        &["--every", "1h", "--timeout", "18446744073709551615s"][..],
        &["--every", "1h", "--timeout", "300y"],
        &["--every", "300y"],
    ] {
        let (code, told) = said(&cluster, &add("bad", more));
        assert!(code == Some(2) && told.contains("year") && !told.contains("panicked"), "{more:?}: {code:?} {told}");
    }
    // One that was stored otherwise is listed, and its tasks are dead letters.
    let stored = [
        ("Nats-Schedule", "@every 1s"),
        ("Nats-Schedule-Target", "due.default.echo"),
        ("Millpond-Schedule", "bad"),
        ("Millpond-Schedule-By", "x"),
        ("Millpond-Timeout", "18446744073709551615s"),
    ];
    store(&cluster, Role::Worker, "sched.-.bad", &stored, "1").await;
    let (code, listed) = said(&cluster, &["schedule", "ls"]);
    assert!(code == Some(0) && listed.contains("good") && listed.contains("bad"), "{listed}");
    let rows = cluster.get("/api/v1/schedules", &[]).await.unwrap();
    let names: Vec<&Value> = rows["rows"].as_array().unwrap().iter().map(|row| &row["name"]).collect();
    assert_eq!(names, [&json!("bad"), &json!("good")]);
    until("a dead letter of the schedule", PATIENCE, async || {
        let dead = cluster.get("/api/v1/dead", &[("reason", "bad_header".to_owned())]).await?;
        (!dead["rows"].as_array()?.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn durations_and_dates_beyond_all_bounds_are_refused_where_they_are_said() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    cluster.worker_is("w1", |worker| worker["draining"] == false).await;
    let (_producer, producer) = cluster.producer().await;
    for long in ["300y", "18446744073709551615s", "31557601s"] {
        for arguments in [
            &["submit", "echo", "1", "--timeout", long][..],
            &["submit", "echo", "1", "--delay", long],
            &["submit", "echo", "1", "--expires", long],
            &["submit", "echo", "1", "--wait-capacity", long],
            &["map", "echo", "--range", "1..2", "--timeout", long],
            &["call", "echo", "1", "--timeout", long],
            &["queue", "pause", "default", "--for", long],
            &["job", "wait", "x", "--timeout", long],
            &["worker", "run", "--task-timeout", long],
            &["worker", "run", "--retry-delay-max", long],
            &["collector", "run", "--results-keep", long],
        ] {
            let (code, told) = said(&cluster, arguments);
            assert!(code == Some(2) && told.contains("year"), "{arguments:?}: {code:?} {told}");
        }
        let refused = post(&cluster, &producer, &[("Millpond-Timeout", long)]).await;
        assert!(refused.0 == 400 && refused.1.contains("year"), "{refused:?}");
        let refused = post(&cluster, &producer, &[("Millpond-Delay", long)]).await;
        assert!(refused.0 == 400 && refused.1.contains("year"), "{refused:?}");
    }
    for at in ["2300-01-01T00:00:00Z", "1600-01-01T00:00:00Z", "2030-01-01"] {
        let (code, told) = said(&cluster, &["submit", "echo", "1", "--at", at]);
        assert!(code == Some(2) && told.contains("2262"), "{at}: {code:?} {told}");
        let refused = post(&cluster, &producer, &[("Millpond-Expires", at)]).await;
        assert!(refused.0 == 400 && refused.1.contains("2262"), "{refused:?}");
    }
    // What is past means now; what programs write for "never" is no expiry.
    assert_eq!(said(&cluster, &["submit", "echo", "1", "--at", "1980-01-01T00:00:00Z", "--id", "past"]).0, Some(0));
    assert_eq!(cluster.ended("past").await["result"], 1);
    for (id, never) in [("go", "0001-01-01T00:00:00Z"), ("net", "9999-12-31T23:59:59.9999999Z")] {
        let headers = [("Nats-Msg-Id", id), ("Millpond-Expires", never)];
        store(&cluster, Role::Client, "tasks.default.echo", &headers, "1").await;
        assert_eq!(cluster.ended(id).await["status"], "done", "{never}");
        let stored = post(&cluster, &producer, &[("Millpond-Expires", never), ("Idempotency-Key", never)]).await;
        assert_eq!(stored.0, 202, "{stored:?}");
        assert_eq!(cluster.ended(never).await["status"], "done", "{never}");
    }
    for (id, name, value) in
        [("long", "Millpond-Timeout", "300y"), ("late", "Millpond-Expires", "2300-01-01T00:00:00Z")]
    {
        store(&cluster, Role::Client, "tasks.default.echo", &[("Nats-Msg-Id", id), (name, value)], "1").await;
        assert_eq!(cluster.ended(id).await["dead"]["reason"], "bad_header", "{name}");
    }
}

async fn post(cluster: &Cluster, producer: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let request = reqwest::Client::new().post(format!("{producer}/v1/tasks/default/echo")).body("1");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = request.bearer_auth(&cluster.nats.secrets.token).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

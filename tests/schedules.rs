//! Tasks that recur: the server publishes them by itself, through its own restarts, and by their last word only.

use std::collections::BTreeMap;
use std::process::Output;

use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use millpond::schedule::When;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, output, until};

async fn cli(cluster: &Cluster, arguments: &[&str]) -> Output {
    let command = cluster.command(&[&["schedule"], arguments].concat());
    output(command).await
}

/// What it prints as JSON, a line each.
async fn told(cluster: &Cluster, arguments: &[&str]) -> Vec<Value> {
    let output = cli(cluster, &[arguments, &["--json"]].concat()).await;
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Results of a kind that have ended, by id.
async fn ended(cluster: &Cluster, kind: &str) -> BTreeMap<String, Value> {
    let query = [("kind", kind.to_owned()), ("limit", "1000".to_owned())];
    let tasks = cluster.get("/api/v1/tasks", &query).await.unwrap_or_default();
    let rows = tasks["rows"].as_array().cloned().unwrap_or_default();
    rows.into_iter().filter(|t| t["status"] == "done").map(|t| (t["id"].as_str().unwrap().to_owned(), t)).collect()
}

/// Waits until so many of a kind have ended.
async fn ended_at_least(cluster: &Cluster, kind: &str, count: usize) -> BTreeMap<String, Value> {
    until(&format!("{count} results of {kind}"), PATIENCE, async || {
        let tasks = ended(cluster, kind).await;
        (tasks.len() >= count).then_some(tasks)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_fires_again_and_again_through_a_restart_of_the_server() {
    let mut cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    let _worker = cluster.worker("w1", &[], None);
    let added = told(&cluster, &["add", "pulse", "square", "12", "--every", "1s", "--attempts-max", "2"]).await;
    assert_eq!((&added[0]["schedule"], &added[0]["args"]), (&json!("@every 1s"), &json!(12)));
    let before = ended_at_least(&cluster, "square", 3).await;
    assert!(before.values().all(|task| task["result"] == 144 && task["attempt"] == 1), "{before:?}");
    cluster.nats.restart();
    let after = ended_at_least(&cluster, "square", before.len() + 3).await;
    // Each firing is a task of its own: an id of the stream's epoch and a sequence.
    let epochs: std::collections::BTreeSet<&str> = after.keys().map(|id| id.split_once('-').unwrap().0).collect();
    assert_eq!(epochs.len(), 1, "{after:?}");
    let listed = told(&cluster, &["ls"]).await;
    assert_eq!((listed.len(), &listed[0]["name"], &listed[0]["paused"]), (1, &json!("pulse"), &json!(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_is_one_schedule_that_can_be_paused_and_removed() {
    let cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    let _worker = cluster.worker("w1", &[], None);
    told(&cluster, &["add", "pulse", "square", "3", "--every", "1s"]).await;
    ended_at_least(&cluster, "square", 1).await;
    // Another kind, another time, the same name: only the new one fires.
    told(&cluster, &["add", "pulse", "echo", r#"{"n": 1}"#, "--cron", "* * * * * *", "--tz", "Europe/Berlin"]).await;
    ended_at_least(&cluster, "echo", 1).await;
    let squares = ended(&cluster, "square").await.len();
    let echoes = ended_at_least(&cluster, "echo", 4).await;
    assert!(echoes.values().all(|task| task["result"]["n"] == 1));
    assert_eq!(ended(&cluster, "square").await.len(), squares);
    assert_eq!(told(&cluster, &["ls"]).await.len(), 1);
    // A purge of the queue is of what waits, not of what recurs.
    let purged = cluster.api.post::<Value>("/api/v1/queues/default/purge", &json!({})).await.unwrap();
    assert!(purged["count"].is_u64(), "{purged}");
    // Paused, it fires no more, and keeps all that it was.
    let paused = told(&cluster, &["pause", "pulse"]).await;
    assert_eq!((&paused[0]["paused"], &paused[0]["next_ms"]), (&json!(true), &Value::Null));
    assert_eq!(told(&cluster, &["pause", "pulse"]).await, paused);
    let other = told(&cluster, &["add", "clock", "square", "7", "--every", "1s"]).await;
    assert_eq!(other[0]["name"], "clock");
    let echoes = ended(&cluster, "echo").await.len();
    ended_at_least(&cluster, "square", squares + 3).await;
    // What was published before the pause may have ended since.
    assert!(ended(&cluster, "echo").await.len() <= echoes + 1);
    let listed = told(&cluster, &["ls"]).await;
    let pulse = &listed[1];
    assert_eq!((&pulse["schedule"], &pulse["zone"]), (&json!("* * * * * *"), &json!("Europe/Berlin")));
    assert_eq!(told(&cluster, &["resume", "pulse"]).await[0]["paused"], false);
    ended_at_least(&cluster, "echo", echoes + 3).await;
    // Removed, also while it is paused.
    assert_eq!(told(&cluster, &["rm", "pulse"]).await[0]["removed"], true);
    told(&cluster, &["pause", "clock"]).await;
    told(&cluster, &["rm", "clock"]).await;
    assert!(told(&cluster, &["ls"]).await.is_empty());
    for verb in ["rm", "pause", "resume"] {
        let none = cli(&cluster, &[verb, "pulse"]).await;
        assert!(!none.status.success() && said(&none).contains("no schedule pulse"), "{}", said(&none));
    }
    let (echoes, squares) = (ended(&cluster, "echo").await.len(), ended(&cluster, "square").await.len());
    told(&cluster, &["add", "last", "count_primes", r#"{"from": 1, "to": 9}"#, "--every", "1s"]).await;
    ended_at_least(&cluster, "count_primes", 3).await;
    assert!(ended(&cluster, "echo").await.len() <= echoes + 1 && ended(&cluster, "square").await.len() <= squares + 1);
}

/// The producer's HTTP API makes and changes schedules as the command line does.
#[tokio::test(flavor = "multi_thread")]
async fn over_http_it_is_made_paused_resumed_and_removed() {
    let cluster = Cluster::start().await;
    let (_producer, url) = cluster.producer().await;
    let _worker = cluster.worker("w1", &[], None);
    let producer = reqwest::Client::new();
    let ask = async |method: Method, path: &str, body: Option<&str>| {
        let request = producer.request(method, format!("{url}/v1/schedules/{path}"));
        let request = request.bearer_auth(&cluster.nats.secrets.token);
        let request = match body {
            Some(body) => request.header("Content-Type", "application/json").body(body.to_owned()),
            None => request,
        };
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    // The arguments are never changed.
    let args = r#"{"n":1.0,"n":12345678901234567890}"#;
    let body = format!(r#"{{"queue":"default","kind":"echo","schedule":"@every 1s","args":{args}, "attempts_max":2}}"#);
    let made = ask(Method::PUT, "pulse", Some(&body)).await;
    assert_eq!(made, (200, r#"{"name":"pulse","paused":false}"#.to_owned()));
    let echoes = ended_at_least(&cluster, "echo", 1).await;
    let id = echoes.keys().next().unwrap();
    let mut result = Vec::new();
    cluster.api.download("/api/v1/task/result", &[("id", id.as_str())], &mut result).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&result), args);
    let listed = told(&cluster, &["ls"]).await;
    assert_eq!((&listed[0]["by"], &listed[0]["attempts_max"]), (&json!("http"), &json!(2)));
    assert_eq!(ask(Method::POST, "pulse/pause", None).await, (200, r#"{"name":"pulse","paused":true}"#.to_owned()));
    assert_eq!(told(&cluster, &["ls"]).await[0]["paused"], true);
    assert_eq!(ask(Method::POST, "pulse/resume", None).await, (200, r#"{"name":"pulse","paused":false}"#.to_owned()));
    // Another of its name replaces it; the time zone is written as the server knows it.
    let cron = r#"{"queue":"default","kind":"square","schedule":"30 4 * * 1-5","zone":"europe/berlin","args":3}"#;
    assert_eq!(ask(Method::PUT, "pulse", Some(cron)).await.0, 200);
    let listed = told(&cluster, &["ls"]).await;
    assert_eq!((&listed[0]["schedule"], &listed[0]["zone"]), (&json!("0 30 4 * * 1-5"), &json!("Europe/Berlin")));
    // So it is for a program, in the client's role and in the producer's; what no database of time zones has is refused.
    let nats = &cluster.nats;
    for client in [cluster.client.clone(), millpond::Client::over(nats.bus(Role::Producer).await)] {
        let mut schedule = client.schedule("pulse").await.unwrap().unwrap().schedule().unwrap().clone();
        let When::Cron(cron, _) = schedule.when.clone() else { panic!("{schedule:?}") };
        schedule.when = When::Cron(cron.clone(), Some("america/new_york".to_owned()));
        client.add_schedule(&schedule, RetryDeadline::Within(PATIENCE)).await.unwrap();
        assert_eq!(told(&cluster, &["ls"]).await[0]["zone"], "America/New_York");
        schedule.when = When::Cron(cron, Some("Mars/Base".to_owned()));
        let wrong = client.add_schedule(&schedule, RetryDeadline::Within(PATIENCE)).await.unwrap_err();
        assert!(wrong.to_string().contains("time zone \"Mars/Base\""), "{wrong}");
    }
    assert_eq!(ask(Method::DELETE, "pulse", None).await, (204, String::new()));
    assert!(told(&cluster, &["ls"]).await.is_empty());
    for (method, path) in [(Method::DELETE, "pulse"), (Method::POST, "pulse/pause"), (Method::POST, "pulse/resume")] {
        let (status, text) = ask(method, path, None).await;
        assert_eq!((status, text.contains("there is no schedule pulse")), (404, true), "{text}");
    }
    for (path, body, part) in [
        ("a.b", r#"{"queue":"default","kind":"echo","schedule":"@every 1s"}"#, "a.b"),
        ("p", r#"{"queue":"de fault","kind":"echo","schedule":"@every 1s"}"#, "queue"),
        ("p", r#"{"queue":"default","kind":"echo"}"#, "schedule"),
        ("p", r#"{"queue":"default","kind":"echo","schedule":"@every 1ms"}"#, "every second"),
        ("p", r#"{"queue":"default","kind":"echo","schedule":"@every 9s","zone":"Europe/Berlin"}"#, "zone"),
        ("p", r#"{"queue":"default","kind":"echo","schedule":"@at 2100-01-01T00:00:00Z"}"#, "@at"),
        ("p", r#"{"queue":"default","kind":"echo","schedule":"61 * * * *"}"#, "minute"),
        ("p", r#"{"queue":"default","kind":"echo","schedule":"0 30 4 * * *","zone":"Mars/Olympus"}"#, "Mars/Olympus"),
        ("p", r#"{"queue":"default","kind":"echo","schedule":"@every 9s","attempts_max":0}"#, "attempts_max"),
        ("p", r#"{"queue":"default","kind":"echo","schedule":"@every 9s","timeout":"soon"}"#, "number"),
        ("p", r#"{"queue":"default","kind":"echo","schedule":"@every 9s","every":"9s"}"#, "every"),
        ("p", "1", "body"),
    ] {
        let (status, text) = ask(Method::PUT, path, Some(body)).await;
        assert_eq!((status, text.contains(part)), (400, true), "{body}: {text}");
    }
    let large = format!(
        r#"{{"queue":"default","kind":"echo","schedule":"@every 9s","args":"{}"}}"#,
        "x".repeat(2 * 1024 * 1024)
    );
    assert_eq!(ask(Method::PUT, "p", Some(&large)).await.0, 413);
    assert!(told(&cluster, &["ls"]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_task_of_a_schedule_tells_where_it_comes_from() {
    let cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    let _worker = cluster.worker("w1", &[], None);
    told(&cluster, &["add", "ill", "fail", "{}", "--every", "1h"]).await;
    // An hour is long: the same once a second.
    told(&cluster, &["add", "ill", "fail", "{}", "--every", "1s", "--attempts-max", "2", "--timeout", "90s"]).await;
    let letter = until("letter", PATIENCE, async || {
        let dead = cluster.get("/api/v1/dead", &[]).await?;
        let id = dead["rows"][0]["id"].as_str()?.to_owned();
        cluster.get("/api/v1/dead_letter", &[("id", id)]).await
    })
    .await;
    assert_eq!((&letter["attempt"], &letter["reason"]), (&json!(2), &json!("exhausted")), "{letter}");
    let headers = letter["headers"].to_string();
    assert!(headers.contains("Millpond-Schedule") && headers.contains("ill"), "{letter}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_schedule_is_refused_before_anything_is_stored() {
    let cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    let kind = ["add", "x", "square"];
    let cases: [(&[&str], &str); 10] = [
        (&["--cron", "61 * * * *"], "minute"),
        (&["--cron", "0 9 * *"], "4 fields"),
        (&["--cron", "0 0 31 2 *"], "no time"),
        (&["--cron", "0 9 * * 7"], "weekday"),
        (&["--cron", "0 9 * * *", "--tz", "Mars/Base"], "Mars/Base"),
        (&["--every", "100ms"], "every second"),
        (&["--every", "1s", "--tz", "Europe/Berlin"], "--tz"),
        (&["--every", "1s", "--queue", "a.b"], "queue"),
        (&["12x", "--every", "1s"], "not JSON"),
        (&[], "--every"),
    ];
    for (arguments, words) in cases {
        let refused = cli(&cluster, &[&kind, arguments].concat()).await;
        assert!(!refused.status.success() && said(&refused).contains(words), "{arguments:?}: {}", said(&refused));
    }
    assert!(told(&cluster, &["ls"]).await.is_empty());
    // What only the server knows to refuse is told as it says it.
    let nobody = cli(&cluster, &["add", "-", "square", "--every", "1s"]).await;
    assert!(!nobody.status.success(), "a lone - is no name");
    // The next time of cron, in its zone: nine in Berlin on a weekday.
    let added =
        told(&cluster, &["add", "morning", "square", "1", "--cron", "0 9 * * 1-5", "--tz", "europe/berlin"]).await;
    let next = jiff_ms(added[0]["next_ms"].as_i64().unwrap());
    assert_eq!((added[0]["zone"].as_str().unwrap(), next.hour(), next.minute()), ("Europe/Berlin", 9, 0));
    assert!(next.weekday().to_monday_one_offset() <= 5);
    let listed = cluster.get("/api/v1/schedules", &[]).await.unwrap();
    assert_eq!(
        (&listed["rows"][0]["name"], &listed["rows"][0]["schedule"]),
        (&json!("morning"), &json!("0 0 9 * * 1-5"))
    );
}

/// A problem about a schedule.
async fn problem(cluster: &Cluster, name: &str) -> Option<String> {
    let problems = cluster.get("/api/v1/problems", &[]).await?;
    let mut rows = problems["rows"].as_array()?.iter();
    let row = rows.find(|row| row["kind"] == "schedule" && row["what"] == name)?;
    Some(row["sentence"].as_str().unwrap().to_owned())
}

type Headers = &'static [(&'static str, &'static str)];

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_listed_with_the_reason_and_hides_nothing() {
    let cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    told(&cluster, &["add", "good", "echo", "1", "--every", "1h"]).await;
    let bus = cluster.nats.bus(Role::Worker).await;
    let records: [(&str, Headers, &str); 5] = [
        (
            "once",
            &[
                ("Nats-Schedule", "@at 2200-01-01T00:00:00Z"),
                ("Nats-Schedule-Target", "due.q.k"),
                ("Millpond-Schedule", "once"),
            ],
            "happens once",
        ),
        (
            "nameless",
            &[("Nats-Schedule", "@every 1h"), ("Nats-Schedule-Target", "due.q.k")],
            "no header Millpond-Schedule",
        ),
        (
            "twin",
            &[("Nats-Schedule", "@every 1h"), ("Nats-Schedule-Target", "due.q.k"), ("Millpond-Schedule", "good")],
            "calls itself \"good\"",
        ),
        (
            "elsewhere",
            &[
                ("Nats-Schedule", "@every 1h"),
                ("Nats-Schedule-Target", "sched.q.k"),
                ("Millpond-Schedule", "elsewhere"),
            ],
            "is not due.<queue>",
        ),
        (
            "newer",
            &[
                ("Nats-Schedule", "@at 2200-01-01T00:00:00Z"),
                ("Millpond-Schedule-Paused", "@sunset"),
                ("Nats-Schedule-Target", "due.q.k"),
                ("Millpond-Schedule", "newer"),
            ],
            "1 fields",
        ),
    ];
    for (place, headers, _) in records {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let within = RetryDeadline::Within(PATIENCE);
        bus.store(&format!("sched.-.{place}"), &headers, "1".into(), within).await.unwrap();
    }
    let listed = cli(&cluster, &["ls"]).await;
    assert!(listed.status.success(), "{}", said(&listed));
    let listed = String::from_utf8(listed.stdout).unwrap();
    let rows = cluster.get("/api/v1/schedules", &[]).await.unwrap()["rows"].clone();
    let row = |name: &str| rows.as_array().unwrap().iter().find(|row| row["name"] == name).cloned().unwrap();
    assert!(row("good")["defect"].is_null() && row("good")["next_ms"].is_i64(), "{rows}");
    for (place, _, why) in records {
        let line = listed.lines().find(|line| line.starts_with(place)).unwrap_or_else(|| panic!("{place}: {listed}"));
        assert!(line.contains(why), "{line}");
        assert!(row(place)["defect"].as_str().unwrap().contains(why), "{}", row(place));
        let found = until("problem of a schedule", PATIENCE, async || problem(&cluster, place).await).await;
        assert!(found.contains(why), "{found}");
        let resumed = cli(&cluster, &["resume", place]).await;
        assert!(!resumed.status.success() && said(&resumed).contains(why), "{}", said(&resumed));
    }
    assert_eq!(problem(&cluster, "good").await, None);
    for (place, ..) in records {
        assert_eq!(told(&cluster, &["rm", place]).await[0]["removed"], true);
    }
    assert_eq!(told(&cluster, &["ls"]).await.len(), 1);
    until("end of the problems", PATIENCE, async || problem(&cluster, "twin").await.is_none().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_the_data_of_a_zone_is_said_and_what_it_dropped_too() {
    let mut cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    // A zone that only those know who are given this folder.
    let zones = tempfile::tempdir().unwrap();
    std::fs::create_dir(zones.path().join("Mars")).unwrap();
    std::fs::copy("/usr/share/zoneinfo/Europe/Berlin", zones.path().join("Mars/Base")).unwrap();
    let run = async |arguments: &[&str]| {
        let mut command = cluster.command(arguments);
        command.env("TZDIR", zones.path());
        output(command).await
    };
    let add = ["schedule", "add", "dust", "echo", "1", "--cron", "* * * * * *", "--tz", "Mars/Base"];
    let refused = run(&add).await;
    assert_eq!(refused.status.code(), Some(70), "{}", said(&refused));
    assert!(said(&refused).contains("nats-server does not know time zone Mars/Base"), "{}", said(&refused));
    // Here it is known, and then the server is moved to where it is not.
    let known = [("ZONEINFO", zones.path())];
    cluster.nats.restart_with(&known);
    let run = async |arguments: &[&str]| {
        let mut command = cluster.command(arguments);
        command.env("TZDIR", zones.path());
        output(command).await
    };
    until("added schedule", PATIENCE, async || run(&add).await.status.success().then_some(())).await;
    assert_eq!(problem(&cluster, "dust").await, None);
    cluster.nats.restart();
    let found = until("problem", PATIENCE, async || problem(&cluster, "dust").await).await;
    assert!(found.contains("nats-server does not know time zone Mars/Base"), "{found}");
    for arguments in [&["schedule", "ls"][..], &["doctor"]] {
        let mut command = cluster.command(arguments);
        command.env("TZDIR", zones.path());
        let shown = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert!(shown.contains("nats-server does not know time zone Mars/Base"), "{arguments:?}: {shown}");
    }
    // Another collector, and a server that knows the zone again: it takes nothing up by itself, and the advice says so.
    cluster.restart_collector(None);
    cluster.nats.restart_with(&known);
    until("problem of what was dropped", PATIENCE, async || {
        problem(&cluster, "dust").await.filter(|sentence| sentence.contains("was dropped by nats-server"))
    })
    .await;
    cluster.nats.restart();
    until("problem", PATIENCE, async || {
        problem(&cluster, "dust").await.filter(|sentence| sentence.contains("does not know time zone"))
    })
    .await;
    let resumed = cli(&cluster, &["pause", "dust"]).await;
    assert!(resumed.status.success(), "{}", said(&resumed));
    let resumed = cli(&cluster, &["resume", "dust"]).await;
    assert!(!resumed.status.success() && said(&resumed).contains("does not know"), "{}", said(&resumed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_of_a_queue_that_nobody_serves_is_a_problem_once_it_has_fired() {
    let cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    told(&cluster, &["add", "lonely", "echo", "1", "--every", "1s", "--queue", "nowhere"]).await;
    until("problem of the queue", PATIENCE, async || {
        let problems = cluster.get("/api/v1/problems", &[]).await?;
        problems["rows"].as_array()?.iter().find(|row| row["kind"] == "no_worker" && row["what"] == "nowhere").cloned()
    })
    .await;
}

fn jiff_ms(ms: i64) -> jiff::civil::DateTime {
    let at = jiff::Timestamp::from_millisecond(ms).unwrap();
    jiff::tz::TimeZone::get("Europe/Berlin").unwrap().to_datetime(at)
}

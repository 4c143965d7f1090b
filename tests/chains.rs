//! What runs when a task is done, or when a whole job has ended: each next step exactly once in the store.

use std::os::unix::process::ExitStatusExt;
use std::process::{Output, Stdio};
use std::time::Duration;

use futures_util::StreamExt;
use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use millpond::bus::topology::stream_state;
use millpond::chain::{ChainStep, parse};
use millpond::client::{BatchSize, MapSpec, NewTask, NoResult, SubmitError};
use millpond::wire::streams::{STREAM_DUE, STREAM_TASKS};
use serde_json::{Value, json};

use crate::calls::raw;
use crate::harness::{Cluster, PATIENCE, Process, output, task, text, until};

fn steps(list: &str) -> Vec<ChainStep> {
    parse(list).unwrap()
}

async fn cli(cluster: &Cluster, arguments: &[&str]) -> Output {
    let mut command = cluster.command(arguments);
    command.stdin(Stdio::null());
    output(command).await
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Nothing waits any more.
async fn all_is_quiet(cluster: &Cluster) {
    let bus = cluster.nats.bus(Role::Setup).await;
    for stream in [STREAM_TASKS, STREAM_DUE] {
        until(&format!("empty {stream}"), PATIENCE, async || {
            (stream_state(&bus, stream).await.unwrap().messages == 0).then_some(())
        })
        .await;
    }
}

async fn get(cluster: &Cluster, id: &str) -> Option<Value> {
    cluster.get("/api/v1/task", &[("id", id.to_owned())]).await
}

/// Ids and statuses of all that the store knows.
async fn stored(cluster: &Cluster) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let limit = [("limit", "1000".to_owned())];
    let each = cluster.api.each("/api/v1/tasks", &limit, async |row: Value| {
        found.push((text(&row, "id"), text(&row, "status")));
        Ok(())
    });
    each.await.unwrap();
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn three_steps_over_two_queues_and_a_wait_for_the_last() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--queues", "default,other"], None);
    let chain = NewTask {
        id: Some("c".into()),
        continuation: steps("other.square,echo"),
        job: Some("j".into()),
        index: Some(0),
        timeout: Some(PATIENCE),
        ..task("square", "3")
    };
    cluster.client.submit(&chain, RetryDeadline::Unlimited).await.unwrap();
    let last = cluster.ended("c/default.square/then/other.square/then").await;
    assert_eq!((&last["result"], &last["queue"], &last["kind"]), (&json!(81), &json!("other"), &json!("echo")));
    assert_eq!((&last["job"], &last["index"], &last["continuation"]), (&json!(null), &json!(null), &json!(null)));
    let first = cluster.ended("c").await;
    assert_eq!((&first["result"], &first["continuation"]), (&json!(9), &json!("other.square")));
    assert_eq!(first["trace"], last["trace"], "one trace");
    // The job has what was submitted in it.
    let job = cluster.get("/api/v1/jobs/j", &[]).await.unwrap();
    assert_eq!((&job["done"], &job["dead"]), (&json!(1), &json!(0)));
    let shown = cli(&cluster, &["task", "show", "c"]).await;
    assert!(String::from_utf8_lossy(&shown.stdout).contains("continuation other.square"));
    let waits = cli(
        &cluster,
        &["submit", "square", "2", "--continuation", "other.square", "--continuation", "echo", "--wait", "--json"],
    );
    let end: Value = serde_json::from_slice(&waits.await.stdout).unwrap();
    assert_eq!((&end["result"], &end["status"]), (&json!(16), &json!("done")));
    assert!(end["id"].as_str().unwrap().ends_with("/default.square/then/other.square/then"));
    let wrong = cli(&cluster, &["submit", "square", "2", "--continuation", "a.b.c"]).await;
    assert_eq!(wrong.status.code(), Some(2), "{}", said(&wrong));
    // Over HTTP, with the end told to who asked.
    let (_producer, url) = cluster.producer().await;
    let post = reqwest::Client::new().post(format!("{url}/v1/tasks/default/square")).body("5");
    let post = post.bearer_auth(&cluster.nats.secrets.token).header("Millpond-Continuation", "square");
    let answer: Value = post.send().await.unwrap().json().await.unwrap();
    assert_eq!(cluster.ended(&format!("{}/default.square/then", answer["id"].as_str().unwrap())).await["result"], 625);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_dies_ends_the_chain_and_a_replay_goes_on() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let (_producer, _) = cluster.producer().await;
    let nats = async_nats::ConnectOptions::new()
        .user_and_password("client".into(), cluster.nats.secrets.passwords["client"].clone())
        .connect(format!("127.0.0.1:{}", cluster.nats.port))
        .await
        .unwrap();
    let mut told = nats.subscribe("reply.chain").await.unwrap();
    nats.flush().await.unwrap();
    // The middle fails with what it is given; a retry of it is no new step.
    let chain = |id: &str, arguments: &str| NewTask {
        id: Some(id.into()),
        continuation: steps("fail,echo"),
        reply_to: Some("reply.chain".into()),
        ..task("echo", arguments)
    };
    cluster.client.submit(&chain("heals", r#"{"until": 2}"#), RetryDeadline::Unlimited).await.unwrap();
    assert_eq!(cluster.ended("heals/default.echo/then/default.fail/then").await["result"], 2);
    let dies = chain("dies", r#"{"how": "fatal", "until": 2}"#).awaited();
    let (id, end) = cluster.client.submit(&dies, RetryDeadline::Unlimited).await.unwrap().end().await.unwrap();
    assert!(id == "dies/default.echo/then" && matches!(end, Err(NoResult::Dead(_))), "{id} {end:?}");
    assert_eq!(cluster.ended("dies/default.echo/then").await["status"], "dead");
    all_is_quiet(&cluster).await;
    assert!(get(&cluster, "dies/default.echo/then/default.fail/then").await.is_none(), "a dead step ends the chain");
    // Only the last step is told, or the one that ended it.
    let mut ids = Vec::new();
    for _ in 0..2 {
        let message = told.next().await.unwrap();
        let end: Value = serde_json::from_slice(&message.payload).unwrap();
        ids.push((end["id"].as_str().unwrap().to_owned(), end["status"].as_str().unwrap().to_owned()));
    }
    assert_eq!(
        ids,
        [
            ("heals/default.echo/then/default.fail/then".into(), "done".into()),
            ("dies/default.echo/then".into(), "dead".into())
        ]
    );
    let again = cli(&cluster, &["dead", "retry", "dies/default.echo/then"]).await;
    assert!(again.status.success(), "{}", said(&again));
    assert_eq!(cluster.ended("dies/default.echo/then/default.fail/then").await["status"], "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_item_of_a_batch_that_is_done_has_its_next_step() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let batch = NewTask {
        id: Some("b".into()),
        batch: Some(6),
        attempts_max: Some(2),
        continuation: steps("square"),
        ..task("fail", r#"[{}, {"until": 2}, {"how": "never"}, {"how": "fatal"}, {"how": "never"}, {"how": "never"}]"#)
    };
    let one = NewTask { id: Some("one".into()), batch: Some(1), continuation: steps("echo"), ..task("square", "[7]") };
    cluster.client.submit(&batch, RetryDeadline::Unlimited).await.unwrap();
    cluster.client.submit(&one, RetryDeadline::Unlimited).await.unwrap();
    assert_eq!(cluster.ended("one/default.square/then/0").await["result"], 49);
    for item in [1, 2, 4, 5] {
        let next = cluster.ended(&format!("b/default.fail/then/{item}")).await;
        assert_eq!(next["status"], "done", "{next}");
    }
    for item in [0, 3] {
        assert_eq!(cluster.ended(&format!("b/{item}")).await["status"], "dead");
    }
    all_is_quiet(&cluster).await;
    let next = get(&cluster, "b/default.fail/then").await.unwrap();
    assert_eq!((&next["items"], &next["done"], &next["status"]), (&json!(6), &json!(4), &json!("partial")));
}

fn was_killed(process: &mut Process) -> Option<bool> {
    process.ended().map(|status| status.signal() == Some(9))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_around_the_next_step_doubles_nothing() {
    let cluster = Cluster::start().await;
    let places = ["settle.executed", "settle.one_effect_stored", "settle.effects_stored", "settle.outcome_stored"];
    let mut expected = Vec::new();
    for (number, place) in places.iter().enumerate() {
        let queue = format!("q{number}");
        for id in 0..3 {
            let id = format!("{queue}-{id}");
            let chain = NewTask {
                id: Some(id.clone()),
                continuation: steps("square,echo"),
                queue: queue.clone(),
                ..task("square", "3")
            };
            cluster.client.submit(&chain, RetryDeadline::Unlimited).await.unwrap();
            let next = format!("{id}/{queue}.square/then");
            let last = format!("{next}/{queue}.square/then");
            expected.extend([id, next, last].map(|id| (id, "done".to_owned())));
        }
        let batch = NewTask {
            id: Some(format!("{queue}-b")),
            batch: Some(4),
            continuation: steps("square"),
            queue: queue.clone(),
            ..task("square", "[1, 2, 3, 4]")
        };
        cluster.client.submit(&batch, RetryDeadline::Unlimited).await.unwrap();
        expected
            .extend([format!("{queue}-b"), format!("{queue}-b/{queue}.square/then")].map(|id| (id, "done".to_owned())));
        let arguments = ["--queues", queue.as_str(), "--slots", "1"];
        let mut victim = cluster.worker(&format!("{queue}-a"), &arguments, Some(&format!("{place}:2")));
        let killed = until(&format!("death at {place}"), PATIENCE, async || was_killed(&mut victim)).await;
        assert!(killed, "{place} ended the worker otherwise");
    }
    let _heir = cluster.worker("heir", &["--queues", "q0,q1,q2,q3"], None);
    expected.sort();
    until("all ends", PATIENCE, async || (stored(&cluster).await.len() >= expected.len()).then_some(())).await;
    all_is_quiet(&cluster).await;
    until("all stored", PATIENCE, async || (stored(&cluster).await == expected).then_some(())).await;
}

fn job(job: &str, kind: &str, then: &str) -> MapSpec {
    MapSpec {
        queue: "default".into(),
        kind: kind.into(),
        job: Some(job.into()),
        batch: BatchSize::Auto,
        ordered: false,
        timeout: None,
        attempts_max: Some(2),
        continuation: Some(then.parse().unwrap()),
        ..MapSpec::default()
    }
}

async fn publish(cluster: &Cluster, spec: MapSpec, arguments: &'static [&'static str]) {
    let input = futures_util::stream::iter(arguments.iter().map(|a| Ok((*a).into())));
    cluster.client.publish_all(spec, input).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_job_starts_one_task_with_its_counts() {
    let mut cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    // No producer at first: the collector asks until there is one.
    publish(&cluster, job("early", "square", "echo"), &["1", "2", "\"x\"", "4"]).await;
    cluster.job_ends("early", 4, PATIENCE).await;
    until("a failed question", PATIENCE, async || {
        cluster.log("collector").contains("is a producer running").then_some(())
    })
    .await;
    let (_producer, _) = cluster.producer().await;
    let counts = |job: &str, total: u64, done: u64, dead: u64| json!({ "job": job, "epoch": 1, "total": total, "done": done, "dead": dead, "cancelled": 0, "purged": 0 });
    assert_eq!(cluster.ended("early.1/then").await["result"], counts("early", 4, 3, 1));
    // Killed before it asks, and between the answer and the note of it.
    for (number, place) in (1..).zip(["collector.continuation_ready", "collector.continuation_published"]) {
        cluster.restart_collector(Some(place));
        let name = format!("killed{number}");
        publish(&cluster, job(&name, "fail", "echo"), &["{\"until\": 2}", "{\"how\": \"fatal\"}", "{\"until\": 1}"])
            .await;
        let collector = &mut cluster.collector;
        let killed = until(&format!("death at {place}"), PATIENCE, async || was_killed(collector)).await;
        assert!(killed, "{place}: {}", cluster.log("collector"));
        cluster.restart_collector(None);
        assert_eq!(cluster.ended(&format!("{name}.1/then")).await["result"], counts(&name, 3, 2, 1));
    }
    // By the command line, into another queue of the worker; and an empty job has an end too.
    let mapped =
        cli(&cluster, &["map", "square", "--range", "0..20", "--job", "line", "--continuation", "default.echo"]).await;
    assert!(mapped.status.success(), "{}", said(&mapped));
    assert_eq!(cluster.ended("line.1/then").await["result"], counts("line", 20, 20, 0));
    publish(&cluster, job("empty", "square", "echo"), &[]).await;
    assert_eq!(cluster.ended("empty.1/then").await["result"], counts("empty", 0, 0, 0));
    all_is_quiet(&cluster).await;
    let ends: Vec<_> = stored(&cluster).await.into_iter().filter(|(id, _)| id.ends_with("/then")).collect();
    assert_eq!(ends.len(), 5, "one for each job: {ends:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_starts_nothing() {
    let cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    publish(&cluster, job("cancelled", "square", "echo"), &["1", "2"]).await;
    until("the job's record", PATIENCE, async || cluster.get("/api/v1/jobs/cancelled", &[]).await).await;
    cluster.api.post::<Value>("/api/v1/jobs/cancelled/cancel", &serde_json::json!({})).await.unwrap();
    let _worker = cluster.worker("w1", &[], None);
    until("cancelled job", PATIENCE, async || {
        let job = cluster.get("/api/v1/jobs/cancelled", &[]).await?;
        (job["state"] == "cancelled" && job["cancelled"] == 2).then_some(())
    })
    .await;
    publish(&cluster, job("next", "square", "echo"), &["1"]).await;
    assert_eq!(cluster.ended("next.1/then").await["status"], "done");
    all_is_quiet(&cluster).await;
    assert!(get(&cluster, "cancelled.1/then").await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_results_of_a_batch_go_on_to_the_next_step() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    // Above the claim-check size, and below a message's with its neighbour.
    let text = format!("\"{}\"", "x".repeat(600 * 1024));
    let batch = NewTask {
        id: Some("large".into()),
        batch: Some(2),
        continuation: vec!["echo".parse().unwrap()],
        ..task("echo", &format!("[{text},7]"))
    };
    cluster.client.submit(&batch, RetryDeadline::Unlimited).await.unwrap();
    let (large, small) =
        (cluster.ended("large/default.echo/then/0").await, cluster.ended("large/default.echo/then/1").await);
    assert_eq!((&large["status"], &large["ref"]["size"]), (&serde_json::json!("done"), &serde_json::json!(text.len())));
    assert_eq!((&small["status"], &small["result"]), (&serde_json::json!("done"), &serde_json::json!(7)));
}

const TOO_MANY: &str = "17 steps (2209 bytes) are too many: 16 steps at the most";
const TOO_LONG: &str = "of 5000 bytes must be 1 to 64";

/// On every way in: the size and the limit are said where it is handed in, and nothing is stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_continuation_that_is_too_large_is_refused_where_it_is_handed_in() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let (_producer, producer) = cluster.producer().await;
    let step: ChainStep = format!("{0}.{0}", "x".repeat(64)).parse().unwrap();
    let (long_kind, many) = ("y".repeat(5_000), vec![step.to_string(); 17].join(","));
    let (too_many, too_long) = (TOO_MANY, TOO_LONG);

    // The command line, before it looks for a server.
    let flags: Vec<String> = (0..17).map(|_| format!("--continuation={step}")).collect();
    let given: Vec<&str> = flags.iter().map(String::as_str).collect();
    let flag = format!("--continuation={long_kind}");
    for (verb, given, said) in
        [("submit", &given[..], too_many), ("submit", &[&*flag][..], too_long), ("map", &[&*flag][..], too_long)]
    {
        let ended = cli(&cluster, &[&[verb, "square", "1"][..], given].concat()).await;
        let printed = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(2), "{verb}: {printed}");
        assert!(printed.contains(said), "{verb}: {printed}");
    }

    // HTTP: a task, and a job.
    let http = reqwest::Client::new();
    for (value, said) in [(&many, too_many), (&long_kind, too_long)] {
        let task = http.post(format!("{producer}/v1/tasks/default/square")).header("Millpond-Continuation", value);
        let job = http.post(format!("{producer}/v1/jobs/default/square")).query(&[("continuation", value)]);
        for request in [task, job] {
            let answer = request.bearer_auth(&cluster.nats.secrets.token).body("1").send().await.unwrap();
            let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
            assert_eq!(status, 400, "{body}");
            let text = body["error"].as_str().unwrap();
            assert!(text.contains(said) || text.contains("of 2144 bytes must be 1 to 64"), "{text}");
        }
    }

    // The client library.
    let one = |steps: Vec<ChainStep>| NewTask { continuation: steps, ..task("square", "1") };
    let long = ChainStep { queue: None, kind: long_kind.clone() };
    for (steps, said) in [(vec![step.clone(); 17], too_many), (vec![long.clone()], too_long)] {
        let refused = cluster.client.submit(&one(steps), RetryDeadline::Unlimited).await.unwrap_err();
        assert!(matches!(refused, SubmitError::Header { .. }) && refused.is_permanent(), "{refused:?}");
        assert!(refused.to_string().contains(said), "{refused}");
    }
    let spec = MapSpec { continuation: Some(long), ..job("long", "square", "echo") };
    let input = futures_util::stream::iter([Ok("1".into())]);
    let refused = cluster.client.publish_all(spec, input).await.err().unwrap();
    assert!(refused.to_string().contains(too_long), "{refused}");

    // 16 steps of the longest names fit.
    let widest = one(vec![step; 16]);
    let stored = cluster.client.submit(&widest, RetryDeadline::Unlimited).await.unwrap();
    assert_eq!(cluster.ended(&stored.id).await["status"], "done");
}

/// What other programs write: a plain publish ends as a dead letter with the same words, the end of a job is shown as refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_continuation_that_is_too_large_is_refused_where_another_program_has_written_it() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let (_producer, _) = cluster.producer().await;
    let step = format!("{0}.{0}", "x".repeat(64));
    let (long_kind, many) = ("y".repeat(5_000), vec![step; 17].join(","));
    let (too_many, too_long) = (TOO_MANY, TOO_LONG);
    let enormous = vec!["z"; 20_000].join(",");
    let plain = raw(&cluster).await;
    for (id, value, said) in [
        ("many", &many, too_many),
        ("long", &long_kind, too_long),
        ("enormous", &enormous, "header Millpond-Continuation has 39999 bytes"),
    ] {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        headers.insert("Millpond-Continuation", value.as_str());
        plain.publish_with_headers("tasks.default.square", headers, "1".into()).await.unwrap();
        let ended = cluster.ended(id).await;
        assert_eq!(ended["dead"]["reason"], "bad_header", "{ended}");
        let text = ended["dead"]["failure"]["message"].as_str().unwrap();
        assert!(text.contains(said), "{id}: {text}");
    }

    // The end of a job: a record that another program has written.
    let now_ms = millpond::now_ms();
    let record = json!({ "job": "wide", "queue": "default", "kind": "square", "epoch": 1, "state": "closed", "total": 0,
        "continuation": { "queue": "default", "kind": long_kind }, "published": 0, "results_after": 0, "producer": "p",
        "created_ms": now_ms, "heartbeat_ms": now_ms });
    let bucket = async_nats::jetstream::new(plain).get_key_value("millpond_jobs").await.unwrap();
    bucket.put("wide", record.to_string().into()).await.unwrap();
    let refused = until("the refusal", PATIENCE, async || {
        let shown = cluster.get("/api/v1/jobs/wide", &[]).await?;
        shown["continuation_refused"].as_str().map(str::to_owned)
    })
    .await;
    assert!(refused.contains(too_long), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_continuation_that_is_refused_for_good_is_requested_once_and_shown() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let (_producer, _) = cluster.producer().await;
    let password = cluster.nats.secrets.passwords["worker"].clone();
    let options = async_nats::ConnectOptions::with_user_and_password("worker".into(), password);
    let listener = options.connect(format!("127.0.0.1:{}", cluster.nats.port)).await.unwrap();
    let mut requests = listener.subscribe("ctl.continuation").await.unwrap();
    listener.flush().await.unwrap();
    // Our programs refuse such a name where it is said; a record may be written by any program.
    let now_ms = millpond::now_ms();
    let record = json!({ "job": "bad", "queue": "default", "kind": "square", "epoch": 1, "state": "closed", "total": 0,
        "continuation": { "queue": "default", "kind": "a b" }, "published": 0, "results_after": 0, "producer": "p",
        "created_ms": now_ms, "heartbeat_ms": now_ms });
    let bucket = async_nats::jetstream::new(raw(&cluster).await).get_key_value("millpond_jobs").await.unwrap();
    bucket.put("bad", record.to_string().into()).await.unwrap();
    let problem = until("the problem", PATIENCE, async || {
        let problems = cluster.get("/api/v1/problems", &[]).await?;
        problems["rows"].as_array()?.iter().find(|row| row["kind"] == "continuation" && row["what"] == "bad").cloned()
    })
    .await;
    assert!(problem["sentence"].as_str().unwrap().contains("a b"), "{problem}");
    let shown = cluster.get("/api/v1/jobs/bad", &[]).await.unwrap();
    assert!(shown["continuation_refused"].as_str().unwrap().contains("kind"), "{shown}");
    let shown = cli(&cluster, &["job", "show", "bad"]).await;
    let printed = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(printed.contains("refused for good"), "{printed}");
    // Others go on, and nobody asks for this one again: not now, and not when the collector is started again.
    publish(&cluster, job("good", "square", "echo"), &["1"]).await;
    assert_eq!(cluster.ended("good.1/then").await["status"], "done");
    let mut asked = Vec::new();
    while let Ok(Some(request)) = tokio::time::timeout(Duration::from_secs(3), requests.next()).await {
        let request: Value = serde_json::from_slice(&request.payload).unwrap();
        asked.push(request["job"].as_str().unwrap().to_owned());
    }
    assert_eq!(asked, ["bad", "good"]);
}

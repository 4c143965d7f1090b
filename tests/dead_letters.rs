//! Dead letters by what they have in common: retried at a limited rate, into another queue, with other arguments, once however
//! often it is asked; their history stays.

use std::time::{Duration, Instant};

use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, task, text, until};

/// Tasks that die in their first attempt, and are done in their second.
async fn die(cluster: &Cluster, count: usize, message: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let arguments = json!({ "how": "fatal", "message": message, "until": 2 }).to_string();
        ids.push(cluster.client.submit(&task("fail", &arguments), RetryDeadline::Unlimited).await.unwrap().id);
    }
    for id in &ids {
        assert_eq!(cluster.ended(id).await["status"], "dead");
    }
    ids
}

async fn retry(cluster: &Cluster, body: Value) -> Value {
    cluster.api.post::<Value>("/api/v1/dead/retry", &body).await.unwrap()
}

async fn ends_as(cluster: &Cluster, id: &str, status: &str) -> Value {
    until(&format!("end {status} of {id}"), PATIENCE, async || {
        let task = cluster.get("/api/v1/task", &[("id", id.to_owned())]).await?;
        (task["status"] == status).then_some(task)
    })
    .await
}

fn dead_letter(id: &str, attempt: u32) -> Value {
    json!({ "queue": "default", "id": id, "attempt": attempt })
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_retried_by_filter_at_a_limited_rate() {
    let cluster = Cluster::start().await;
    let (_worker, (_producer, _)) = (cluster.worker("w1", &[], None), cluster.producer().await);
    let start_ms = millpond::now_ms();
    let (flood, fire) = (die(&cluster, 12, "a 100% Flood\n").await, die(&cluster, 3, "fire").await);
    let filter = json!({ "error": "100% flood\n", "queue": "default", "since": start_ms });
    // Nothing happens, and each page says how many there are in all.
    let page = retry(&cluster, json!({ "filter": filter, "limit": 10, "dry_run": true })).await;
    assert_eq!((page["rows"].as_array().unwrap().len(), &page["matched"]), (10, &json!(12)));
    assert!(page["rows"].as_array().unwrap().iter().all(|row| row["ok"] == true && row["dry_run"] == true));
    let rest = json!({ "filter": filter, "limit": 10, "dry_run": true, "after": page["next"] });
    let rest = retry(&cluster, rest).await;
    assert_eq!((rest["rows"].as_array().unwrap().len(), &rest["next"]), (2, &Value::Null));
    // A filter that is not known must not mean everything.
    for wrong in [
        json!({ "filter": { "eror": "flood" } }),
        json!({}),
        json!({ "filter": {}, "dead_letters": [] }),
        json!({ "filter": {}, "rate": 0 }),
        json!({ "filter": {}, "arguments": 1 }),
        json!({ "filter": { "since": "yesterday" } }),
    ] {
        assert!(cluster.api.post::<Value>("/api/v1/dead/retry", &wrong).await.is_err(), "{wrong}");
    }
    let nothing = retry(&cluster, json!({ "filter": { "until": start_ms } })).await;
    assert_eq!((&nothing["matched"], &nothing["rows"]), (&json!(0), &json!([])));
    let started = Instant::now();
    let done = retry(&cluster, json!({ "filter": filter, "rate": 10 })).await;
    assert!(started.elapsed() >= Duration::from_secs(1), "12 at 10 a second took {:?}", started.elapsed());
    assert_eq!((done["rows"].as_array().unwrap().len(), &done["next"]), (12, &Value::Null));
    for id in &flood {
        assert_eq!(ends_as(&cluster, id, "done").await["result"], 2);
    }
    let left = cluster.get("/api/v1/dead", &[]).await.unwrap();
    assert_eq!(left["rows"].as_array().unwrap().len(), 3);
    // The same words on the command line.
    let since = jiff::Timestamp::from_millisecond(start_ms).unwrap().to_string();
    let listed = cluster.command(&["dead", "ls", "--error", "FIRE", "--since", &since, "--json"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), 3);
    let purged = cluster.command(&["dead", "purge", "--error", "fire", "--since", "1h"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&purged.stdout).lines().count(), 3, "{purged:?}");
    assert_eq!(cluster.get("/api/v1/task", &[("id", fire[0].clone())]).await.unwrap()["status"], "dead");
    let none = cluster.command(&["dead", "retry", "--all", "--until", "0s"]).output().unwrap();
    assert!(none.status.success() && none.stdout.is_empty(), "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_becomes_a_task_of_another_queue_that_points_back() {
    let cluster = Cluster::start().await;
    let (_worker, (_producer, _)) = (cluster.worker("w1", &[], None), cluster.producer().await);
    let words = NewTask { id: Some("words".into()), job: Some("j".into()), index: Some(0), ..task("square", r#""x""#) };
    cluster.client.submit(&words, RetryDeadline::Unlimited).await.unwrap();
    assert_eq!(cluster.ended("words").await["dead"]["reason"], "fatal");
    let body = json!({ "dead_letters": [dead_letter("words", 1)], "queue": "slow", "arguments": 12 });
    let would =
        retry(&cluster, json!({ "dead_letters": [dead_letter("words", 1)], "queue": "slow", "dry_run": true })).await;
    assert_eq!(would["rows"][0]["new_id"], "words@default");
    let moved = retry(&cluster, body.clone()).await;
    assert_eq!((&moved["rows"][0]["ok"], &moved["rows"][0]["new_id"]), (&json!(true), &json!("words@default")));
    // It waits no longer, stays dead, and says where it went.
    assert_eq!(retry(&cluster, body).await["rows"][0]["ok"], false);
    let old = cluster.get("/api/v1/task", &[("id", "words".into())]).await.unwrap();
    assert_eq!((&old["status"], &old["dead"], &old["job"]), (&json!("dead"), &Value::Null, &json!("j")));
    let replay = &old["replays"][0];
    let told = (&replay["reason"], &replay["attempt"], &replay["to_queue"], &replay["new_id"], &replay["arguments"]);
    assert_eq!(told, (&json!("fatal"), &json!(1), &json!("slow"), &json!("words@default"), &json!(true)));
    assert!(replay["at_ms"].as_i64().unwrap() >= replay["dead_lettered_ms"].as_i64().unwrap());
    let why = cluster.get("/api/v1/why", &[("id", "words".into())]).await.unwrap();
    assert!(text(&why, "sentence").contains("words@default"), "{why}");
    let _slow = cluster.worker("w2", &["--queues", "slow"], None);
    let new = ends_as(&cluster, "words@default", "done").await;
    assert_eq!(
        (&new["result"], &new["queue"], &new["job"], &new["attempt"]),
        (&json!(144), &json!("slow"), &Value::Null, &json!(1))
    );
    assert_eq!(new["replay_of"], json!({ "queue": "default", "kind": "square", "id": "words", "attempt": 1 }));
    let shown = cluster.command(&["task", "show", "words@default"]).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("words of queue default"), "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_arguments_of_any_size_and_each_dead_letter_in_the_history() {
    let cluster = Cluster::start().await;
    let (_worker, (_producer, _)) = (cluster.worker("w1", &[], None), cluster.producer().await);
    let named = NewTask { id: Some("t".into()), ..task("fail", r#"{"how":"fatal"}"#) };
    cluster.client.submit(&named, RetryDeadline::Unlimited).await.unwrap();
    cluster.ended("t").await;
    for attempt in 1..=2 {
        assert_eq!(
            retry(&cluster, json!({ "dead_letters": [dead_letter("t", attempt)] })).await["rows"][0]["ok"],
            true
        );
        until("next letter", PATIENCE, async || {
            let dead = cluster.get("/api/v1/dead_letter", &[("id", "t".into())]).await?;
            (dead["attempt"] == attempt + 1).then_some(())
        })
        .await;
    }
    // As typed: a number that no float holds, and more bytes than a message has.
    let heals = format!(r#"{{"how":"never","message":"{}"}}"#, "x".repeat(600 * 1024));
    let done =
        cluster.command(&["dead", "retry", "t", "--args", r#"{"how": "fatal", "message": 12345678901234567890123}"#]);
    let refused = {
        let mut done = done;
        done.output().unwrap()
    };
    assert!(refused.status.success(), "{refused:?}");
    until("letter of bad arguments", PATIENCE, async || {
        let dead = cluster.get("/api/v1/dead_letter", &[("id", "t".into())]).await?;
        let as_typed = dead["attempt"] == 4 && dead["failure"]["type"] == "bad_arguments";
        as_typed.then_some(())
    })
    .await;
    let heals: Value = serde_json::from_str(&heals).unwrap();
    let answer = retry(&cluster, json!({ "dead_letters": [dead_letter("t", 4)], "arguments": heals })).await;
    assert_eq!(answer["rows"][0]["ok"], true, "{answer}");
    let task = ends_as(&cluster, "t", "done").await;
    assert_eq!(task["result"], 5);
    let replays = task["replays"].as_array().unwrap();
    let seen: Vec<(i64, bool)> =
        replays.iter().map(|r| (r["attempt"].as_i64().unwrap(), r["arguments"].as_bool().unwrap())).collect();
    assert_eq!(seen, [(1, false), (2, false), (3, true), (4, true)]);
    assert!(replays.iter().all(|r| r["reason"] == "fatal" && r["by"] == "operator"));
    assert_eq!(task["attempts"].as_array().unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_was_cut_off_and_asked_for_again_runs_once() {
    let mut cluster = Cluster::start().await;
    let (_producer, _) = cluster.producer().await;
    for (place, queue) in [
        ("collector.replay_planned", "default"),
        ("collector.replay_stored", "default"),
        ("collector.replay_planned", "slow"),
        ("collector.replay_stored", "slow"),
    ] {
        let id = die_alone(&cluster, &format!("{place}-{queue}")).await;
        cluster.restart_collector(Some(place));
        until("collector", PATIENCE, async || cluster.get("/api/v1/dead", &[]).await).await;
        let body = json!({ "dead_letters": [dead_letter(&id, 1)], "queue": queue });
        assert!(cluster.api.post::<Value>("/api/v1/dead/retry", &body).await.is_err(), "{place} ends the collector");
        until("end of the collector", PATIENCE, async || cluster.collector.ended()).await;
        cluster.restart_collector(None);
        let again = until("answer", PATIENCE, async || {
            let answer = cluster.api.post::<Value>("/api/v1/dead/retry", &body).await.ok()?;
            (answer["rows"][0]["ok"] == true).then_some(answer)
        })
        .await;
        // A new task is in its first attempt again, and dies once more.
        let moved = queue == "slow";
        let ended = if moved { text(&again["rows"][0], "new_id") } else { id };
        let _worker = cluster.worker("w", &["--queues", "default,slow"], None);
        // A letter and the attempt that it is of come by two streams.
        let ran = until("its attempt", PATIENCE, async || {
            let task = ends_as(&cluster, &ended, if moved { "dead" } else { "done" }).await;
            let ran = task["attempts"].as_array().unwrap().iter().filter(|a| a["worker"] == "w").count();
            (ran > 0).then_some(ran)
        });
        assert_eq!(ran.await, 1, "{place} {queue}");
    }
}

/// One that dies where a worker runs, which is gone then.
async fn die_alone(cluster: &Cluster, id: &str) -> String {
    let mut worker = cluster.worker("dying", &[], None);
    let arguments = r#"{"how":"fatal","until":2}"#;
    let dying = NewTask { id: Some(id.into()), ..task("fail", arguments) };
    cluster.client.submit(&dying, RetryDeadline::Unlimited).await.unwrap();
    cluster.ended(id).await;
    worker.kill9();
    id.to_owned()
}

//! What an operator does: dead letters again or away, queues paused and purged, why, shared keys, doctor, completions.

use std::process::Output;

use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, output, task, until};

async fn cli(cluster: &Cluster, arguments: &[&str]) -> Output {
    let command = cluster.command(arguments);
    output(command).await
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_run_again_and_keep_their_history_or_are_thrown_away() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    // The first dies after one attempt and heals at its second; the others never do.
    let mut ids = Vec::new();
    for (kind, arguments, queue) in [
        ("fail", r#"{"until": 2}"#, "default"),
        ("fail", r#"{"how": "fatal"}"#, "default"),
        ("square", r#""no number""#, "default"),
    ] {
        let dying = NewTask { attempts_max: Some(1), queue: queue.into(), ..task(kind, arguments) };
        ids.push(cluster.client.submit(&dying, RetryDeadline::Unlimited).await.unwrap().id);
    }
    for id in &ids {
        assert_eq!(cluster.ended(id).await["status"], "dead");
    }
    // Without a producer nothing is lost, and it says what is missing.
    let nobody = cli(&cluster, &["dead", "retry", &ids[0]]).await;
    assert_eq!(nobody.status.code(), Some(1));
    assert!(said(&nobody).contains("producer"), "{}", said(&nobody));
    let (_producer, _) = cluster.producer().await;
    let all = cli(&cluster, &["dead", "retry"]).await;
    assert!(!all.status.success() && said(&all).contains("--all"), "{}", said(&all));
    let dry = cli(&cluster, &["dead", "retry", "--kind", "fail", "--dry-run"]).await;
    assert_eq!((lines(&dry).len(), dry.status.success()), (2, true));
    assert_eq!(lines(&cli(&cluster, &["dead", "ls", "--json"]).await).len(), 3);
    let again = cli(&cluster, &["dead", "retry", "--kind", "fail", "--rate", "50"]).await;
    assert_eq!((lines(&again).len(), again.status.success()), (2, true), "{}", said(&again));
    let healed = until("healed task", PATIENCE, async || {
        let task = cluster.get("/api/v1/task", &[("id", ids[0].clone())]).await?;
        (task["status"] == "done").then_some(task)
    })
    .await;
    assert_eq!((&healed["attempt"], &healed["result"]), (&json!(2), &json!(2)));
    assert_eq!(healed["attempts"].as_array().unwrap().len(), 2);
    // The fatal one died again, as its second attempt.
    until("second letter", PATIENCE, async || {
        let letter = cluster.get("/api/v1/dead_letter", &[("id", ids[1].clone())]).await?;
        (letter["attempt"] == 2 && letter["failures"].as_array()?.len() == 1).then_some(())
    })
    .await;
    let purged = cli(&cluster, &["dead", "purge", "--reason", "fatal", "--json"]).await;
    assert!(purged.status.success(), "{}", said(&purged));
    assert!(lines(&cli(&cluster, &["dead", "ls", "--json"]).await).is_empty());
    let gone = cli(&cluster, &["dead", "retry", &ids[1]]).await;
    assert!(!gone.status.success() && said(&gone).contains("no dead letter"), "{}", said(&gone));
    let task = cluster.get("/api/v1/task", &[("id", ids[1].clone())]).await.unwrap();
    assert_eq!(task["status"], "dead", "its end stays known");
}

async fn why(cluster: &Cluster, id: &str) -> (i32, String) {
    let output = cli(cluster, &["why", id]).await;
    (output.status.code().unwrap(), lines(&output).join(" "))
}

async fn why_is(cluster: &Cluster, id: &str, code: i32, words: &str) {
    let mut last = (0, String::new());
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            last = why(cluster, id).await;
            if last.0 == code && last.1.contains(words) {
                return;
            }
        }
    });
    assert!(found.await.is_ok(), "task {id}: wanted {code} and {words:?}, the last answer was {last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn why_tells_each_state_and_queues_pause_and_purge() {
    let cluster = Cluster::start().await;
    let submit = async |kind: &str, arguments: &str, id: &str| {
        let task = NewTask { id: Some(id.into()), ..task(kind, arguments) };
        cluster.client.submit(&task, RetryDeadline::Unlimited).await.unwrap();
    };
    submit("square", "12", "early").await;
    why_is(&cluster, "early", 13, "no live worker").await;
    why_is(&cluster, "never", 4, "never accepted").await;
    let worker = cluster.worker("w1", &["--slots", "1", "--io-slots", "1"], None);
    why_is(&cluster, "early", 0, "done").await;
    submit("sleep", "600", "long").await;
    why_is(&cluster, "long", 10, "w1").await;
    submit("square", "1", "behind").await;
    why_is(&cluster, "behind", 12, "waits in queue default").await;
    submit("no_such_kind", "1", "strange").await;
    let paused = cli(&cluster, &["queue", "pause", "default", "--for", "1h"]).await;
    assert!(paused.status.success(), "{}", said(&paused));
    why_is(&cluster, "behind", 14, "paused").await;
    // Another worker of the queue does not end the pause.
    let _second = cluster.worker("w2", &["--slots", "2", "--io-slots", "2"], None);
    cluster.worker_is("w2", |w| w["state"] == "live").await;
    let listed: Value = serde_json::from_str(&lines(&cli(&cluster, &["queue", "ls", "--json"]).await)[0]).unwrap();
    assert_eq!((&listed["queue"], &listed["paused"]), (&json!("default"), &json!(true)));
    assert!(listed["waiting"].as_u64().unwrap() + listed["held"].as_u64().unwrap() >= 2, "{listed}");
    let unasked = cli(&cluster, &["queue", "purge", "default", "--kind", "square"]).await;
    assert!(!unasked.status.success() && said(&unasked).contains("--yes"), "{}", said(&unasked));
    let purged = cli(&cluster, &["queue", "purge", "default", "--kind", "no_such_kind", "--yes", "--json"]).await;
    let record: Value = serde_json::from_str(&lines(&purged)[0]).unwrap();
    assert_eq!((&record["count"], &record["kind"]), (&json!(1), &json!("no_such_kind")));
    why_is(&cluster, "strange", 4, "purge removed it").await;
    assert!(cli(&cluster, &["queue", "resume", "default"]).await.status.success());
    why_is(&cluster, "behind", 0, "done").await;
    let refused = cli(&cluster, &["queue", "pause", "nobody"]).await;
    assert!(!refused.status.success() && said(&refused).contains("nobody"), "{}", said(&refused));
    drop(worker);
    submit("fail", "{}", "retried").await;
    why_is(&cluster, "retried", 1, "dead retry").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_waits_says_until_when() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    // The delays double: soon one is long enough to be asked about.
    let failing =
        NewTask { id: Some("later".into()), attempts_max: Some(20), ..task("fail", r#"{"message": "not today"}"#) };
    cluster.client.submit(&failing, RetryDeadline::Unlimited).await.unwrap();
    why_is(&cluster, "later", 11, "not today").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_keys_are_compared_and_set() {
    let cluster = Cluster::start().await;
    let missing = cli(&cluster, &["shared", "get", "limit"]).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(cli(&cluster, &["shared", "cas", "limit", "1", "--revision", "0"]).await.status.success());
    assert_eq!(cli(&cluster, &["shared", "cas", "limit", "2", "--revision", "0"]).await.status.code(), Some(1));
    assert_eq!(cli(&cluster, &["shared", "cas", "limit", "2", "--expect", "9"]).await.status.code(), Some(1));
    assert!(cli(&cluster, &["shared", "cas", "limit", "2", "--expect", "1"]).await.status.success());
    assert_eq!(lines(&cli(&cluster, &["shared", "get", "limit"]).await), ["2"]);
    assert!(said(&cli(&cluster, &["shared", "set", "a b", "1"]).await).contains("not a key"));
    // Many programs add to one counter, and none is lost.
    let shared = cluster.client.shared().await.unwrap();
    let add = async || {
        for _ in 0..10 {
            let next = |old: Option<&bytes::Bytes>| {
                let n: u64 = old.map_or(0, |old| std::str::from_utf8(old).unwrap().parse().unwrap());
                (n + 1).to_string().into()
            };
            shared.update("counter", next).await.unwrap();
        }
    };
    tokio::join!(add(), add(), add());
    assert_eq!(&*shared.get("counter").await.unwrap().unwrap().value, b"30");
    assert_eq!(lines(&cli(&cluster, &["shared", "ls"]).await), ["counter", "limit"]);
    assert!(cli(&cluster, &["shared", "rm", "limit"]).await.status.success());
    assert_eq!(lines(&cli(&cluster, &["shared", "ls"]).await), ["counter"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_what_is_wrong_and_completions_know_the_verbs() {
    let mut cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    let well = cli(&cluster, &["doctor"]).await;
    assert!(well.status.success(), "{}", lines(&well).join("\n"));
    assert!(lines(&well).iter().all(|line| line.starts_with("ok ")), "{}", lines(&well).join("\n"));
    cluster.collector.kill9();
    let ill = cli(&cluster, &["doctor", "--json"]).await;
    assert_eq!(ill.status.code(), Some(1));
    let failed: Vec<Value> = lines(&ill).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let failed: Vec<&Value> = failed.iter().filter(|finding| finding["level"] == "FAIL").collect();
    assert_eq!((failed.len(), &failed[0]["about"]), (1, &json!("collector")));
    cluster.nats.kill9();
    let dead = cli(&cluster, &["doctor", "--connect-timeout", "1s"]).await;
    assert_eq!(dead.status.code(), Some(1));
    assert!(lines(&dead)[0].starts_with("FAIL  nats"), "{}", lines(&dead).join("\n"));
    let bash = lines(&cli(&cluster, &["completions", "bash"]).await).join("\n");
    for verb in ["submit", "map", "dead", "queue", "why", "doctor", "shared", "bench"] {
        assert!(bash.contains(verb), "completions know {verb}");
    }
}

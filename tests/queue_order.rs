//! Queues are served in the order given: what is first has the slots, what is behind has its share. Told by the order in
//! which the store says that tasks started, not by how long anything took.

use std::time::Duration;

use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use serde_json::Value;

use crate::harness::{Cluster, task, text, until};

/// Longer than many tasks take on a busy machine.
const LONG: Duration = Duration::from_secs(120);

async fn fill(cluster: &Cluster, queue: &str, count: usize, seconds: &str) {
    let all = (0..count).map(async |n| {
        let id = Some(format!("{queue}-{n}"));
        let new = NewTask { queue: queue.into(), id, ..task("sleep", seconds) };
        cluster.client.submit(&new, RetryDeadline::Unlimited).await.unwrap();
    });
    futures_util::future::join_all(all).await;
}

/// The queues of all tasks that ended, in the order of their starts, once there are `count`.
async fn starts(cluster: &Cluster, count: usize) -> Vec<String> {
    until(&format!("{count} ends"), LONG, async || {
        let mut started = Vec::new();
        let limit = [("limit", "1000".to_owned())];
        let each = cluster.api.each("/api/v1/tasks", &limit, async |row: Value| {
            started.push((row["started_ms"].as_i64().unwrap(), text(&row, "queue"), text(&row, "status")));
            Ok(())
        });
        each.await.ok()?;
        started.sort();
        assert!(started.iter().all(|(_, _, status)| status == "done"), "{started:?}");
        (started.len() >= count).then(|| started.into_iter().map(|(_, queue, _)| queue).collect())
    })
    .await
}

fn count(starts: &[String], queue: &str) -> usize {
    starts.iter().filter(|q| *q == queue).count()
}

fn check(starts: &[String], first: usize, share: usize) {
    let early = &starts[..first];
    assert!(count(early, "high") * 100 >= first * 80, "most of the first {first} are of high: {early:?}");
    assert!(count(early, "low") >= share, "low is not starved: {early:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slot_serves_the_first_queue_and_starves_none() {
    let cluster = Cluster::start().await;
    fill(&cluster, "high", 200, "0.01").await;
    fill(&cluster, "low", 50, "0.01").await;
    let _worker = cluster.worker("w1", &["--queues", "high,low", "--io-slots", "1", "--slots", "1"], None);
    let starts = starts(&cluster, 250).await;
    let printed: String = starts.iter().map(|q| if q == "high" { 'h' } else { '.' }).collect();
    println!("{printed}");
    check(&starts, 100, 5);
    // Once high is empty low has everything: nothing of high comes late.
    let last_high = starts.iter().rposition(|q| q == "high").unwrap();
    assert!(last_high < 235, "{last_high}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_are_pulled_many_at_once_keep_the_order() {
    let cluster = Cluster::start().await;
    fill(&cluster, "high", 600, "0.001").await;
    fill(&cluster, "mid", 100, "0.001").await;
    fill(&cluster, "low", 100, "0.001").await;
    let _worker = cluster.worker("w1", &["--queues", "high,mid,low", "--io-slots", "2", "--slots", "2"], None);
    let starts = starts(&cluster, 800).await;
    let printed: String = starts.iter().map(|q| &q[..1]).collect();
    println!("{printed}");
    check(&starts, 400, 5);
    assert!(count(&starts[..400], "mid") >= 5);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "seconds count; `.ci/run` runs it alone"]
async fn long_tasks_that_wait_for_their_turn_are_not_starved() {
    let cluster = Cluster::start().await;
    // Longer than what was pulled may wait for a slot.
    fill(&cluster, "high", 18, "1.2").await;
    fill(&cluster, "low", 2, "1.2").await;
    let _worker = cluster.worker("w1", &["--queues", "high,low", "--io-slots", "1", "--slots", "1"], None);
    let starts = starts(&cluster, 20).await;
    let printed: String = starts.iter().map(|q| if q == "high" { 'h' } else { '.' }).collect();
    println!("{printed}");
    // The first was pulled at the start and released, and is next then; the turn of the other one is the tenth. A busy machine
    // costs a few.
    assert_eq!(count(&starts[..17], "low"), 2, "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_first_in_the_order_goes_first_when_it_comes_later() {
    let cluster = Cluster::start().await;
    // Long enough each that a busy machine loses few of them on the way.
    fill(&cluster, "low", 50, "0.2").await;
    let _worker = cluster.worker("w1", &["--queues", "high,low", "--io-slots", "1", "--slots", "1"], None);
    until("low at work", LONG, async || {
        let worker = cluster.get("/api/v1/workers", &[]).await?;
        (worker["rows"].as_array()?.first()?["done"].as_u64()? >= 5).then_some(())
    })
    .await;
    fill(&cluster, "high", 5, "0.2").await;
    let published = millpond::now_ms();
    starts(&cluster, 55).await;
    // Of low, so many started after all of high was stored and before it started.
    let rows = cluster.get("/api/v1/tasks", &[("limit", "1000".into())]).await.unwrap();
    let rows = rows["rows"].as_array().unwrap();
    let started = |queue: &'static str| {
        rows.iter().filter(move |r| r["queue"] == queue).map(|r| r["started_ms"].as_i64().unwrap())
    };
    let last_high = started("high").max().unwrap();
    let between = started("low").filter(|at| (published..last_high).contains(at)).count();
    assert!(between <= 6, "{between} of low started while 5 of high waited");
    assert!(started("low").any(|at| at > last_high), "low goes on");
}

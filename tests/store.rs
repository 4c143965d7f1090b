//! The store under faults: two collectors on one Postgres, each killed in turn, and Postgres with them; a full disk.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use millpond_api::jobs::{JobRow, JobStatus};
use millpond_cli::api::Api;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::{Cluster, PATIENCE, Process, until};
use crate::postgres::{Server, asked, database};

/// Where the collector has its store.
const STORE: &str = "MILLPOND_COLLECTOR_STORE";

async fn results(api: &Api, job: &str) -> Vec<Value> {
    let mut rows = Vec::new();
    let limit = [("limit", "1000".to_owned())];
    let path = format!("/api/v1/jobs/{job}/results");
    let each = api.each(&path, &limit, async |row: Value| {
        rows.push(row);
        Ok(())
    });
    each.await.unwrap();
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn two_collectors_on_one_postgres_keep_each_end_once_whoever_is_killed() {
    let Some(postgres) = Server::start() else { return };
    let url = database(&postgres.url());
    let mut cluster = Cluster::start().await;
    cluster.restart_collector_with(&[(STORE, &url)]);
    let (mut second, other) = cluster.another_collector(&[(STORE, &url)]).await;
    let _workers = [cluster.worker("w1", &[], None), cluster.worker("w2", &[], None)];
    let mapped = tokio::process::Command::from(cluster.command(&[
        "map",
        "square",
        "--range",
        "1..=30000",
        "--job",
        "m",
        "--json",
    ]))
    .stdout(std::process::Stdio::null())
    .stderr(std::process::Stdio::null())
    .spawn();
    let mut mapped = mapped.unwrap();
    let at_least = async |count: u64| {
        until(&format!("{count} ends in the store"), PATIENCE, async || {
            let job = cluster.get("/api/v1/jobs/m", &[]).await?;
            (job["done"].as_u64()? >= count).then_some(())
        })
        .await;
    };
    at_least(1000).await;
    second.kill9();
    at_least(5000).await;
    let (_second, other_again) =
        cluster.another_collector(&[(STORE, &url), ("MILLPOND_FAILPOINT", "collector.merged:20")]).await;
    at_least(10_000).await;
    cluster.restart_collector_with(&[(STORE, &url)]);
    assert!(mapped.wait().await.unwrap().success());
    let ends = cluster.job_ends("m", 30_000, PATIENCE).await;
    assert!(ends.iter().all(|end| end["status"] == "done"));
    drop((other, other_again));
    let (_third, third) = cluster.another_collector(&[(STORE, &url)]).await;
    assert_eq!(results(&third, "m").await, ends, "all collectors show the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_collector_cancels_the_other_knows() {
    let Some(postgres) = Server::start() else { return };
    let url = database(&postgres.url());
    let mut cluster = Cluster::start().await;
    cluster.restart_collector_with(&[(STORE, &url)]);
    let (_second, other) = cluster.another_collector(&[(STORE, &url)]).await;
    let published =
        cluster.command(&["map", "square", "--range", "1..=20", "--job", "j", "--no-wait"]).output().unwrap();
    assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
    other.post::<Value>("/api/v1/jobs/j/cancel", &json!({})).await.unwrap();
    for api in [&cluster.api, &other] {
        until("cancelled everywhere", PATIENCE, async || {
            let job: JobRow = api.get("/api/v1/jobs/j", &()).await.ok()?;
            (job.state == JobStatus::Cancelled && job.cancelled == 20).then_some(())
        })
        .await;
    }
}

/// Stops a collector while it holds the lock of the writers; it is known by its user of Postgres.
async fn stop_with_the_lock(collector: &Process, url: &str, user: &str) {
    let holds = format!(
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted AND
         usename = '{user}' AND state = 'idle in transaction'"
    );
    until("stop with the lock", PATIENCE, async || {
        collector.signal(Signal::SIGSTOP);
        if asked(url, &holds) == "1" {
            return Some(());
        }
        collector.signal(Signal::SIGCONT);
        None
    })
    .await;
}

/// How many ends a store has.
fn stored(url: &str) -> u64 {
    asked(url, "SELECT count(*) FROM tasks").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_stopped_with_the_lock_stops_the_other_for_ten_seconds_at_most() {
    let Some(postgres) = Server::start() else { return };
    let url = database(&postgres.url());
    asked(&url, "CREATE ROLE hung SUPERUSER LOGIN");
    let mut cluster = Cluster::start().await;
    cluster.restart_collector_with(&[(STORE, &url)]);
    crate::harness::is_ready(&cluster.collector_url()).await;
    let (hung, _api) = cluster.another_collector(&[(STORE, &url.replace("millpond@", "hung@"))]).await;
    let _worker = cluster.worker("w1", &[], None);
    // There is always something to write.
    let (client, stop, mut publishing) = (cluster.client.clone(), CancellationToken::new(), JoinSet::new());
    let stopped = stop.clone();
    publishing.spawn(async move {
        let mut published = 0;
        while !stopped.is_cancelled() {
            client.submit(&crate::harness::task("square", "7"), RetryDeadline::Unlimited).await.unwrap();
            published += 1;
        }
        published
    });
    stop_with_the_lock(&hung, &url, "hung").await;
    let (since, before) = (Instant::now(), stored(&url));
    until("further ends in the store", Duration::from_secs(10), async || (stored(&url) > before).then_some(())).await;
    println!("the other one was stopped for {:?}", since.elapsed());
    hung.signal(Signal::SIGCONT);
    stop.cancel();
    let mut published = publishing.join_next().await.unwrap().unwrap();
    until("all ends in the store", PATIENCE, async || (stored(&url) == published).then_some(())).await;
    let distinct = "SELECT count(DISTINCT id), sum(done), min(result), max(result) FROM tasks";
    assert_eq!(asked(&url, distinct), format!("{published}|{published}|49|49"), "each end is stored once");
    // The one that hung writes again, now alone.
    cluster.collector.kill9();
    cluster.client.submit(&crate::harness::task("square", "7"), RetryDeadline::Unlimited).await.unwrap();
    published += 1;
    until("one more end in the store", PATIENCE, async || (stored(&url) == published).then_some(())).await;
}

/// The collector's store on a small file system of its own; the folder, as it is seen from here.
async fn on_a_small_disk(cluster: &mut Cluster) -> Option<PathBuf> {
    let at = tempfile::tempdir().unwrap().keep();
    let script = format!("mount -t tmpfs -o size=8m tmpfs {} && exec \"$@\"", at.display());
    let unshared = std::process::Command::new("unshare").args(["-rm", "sh", "-c", &script, "sh", "true"]).output();
    if !unshared.is_ok_and(|ended| ended.status.success()) {
        eprintln!("skipped: this machine lets nobody mount in a namespace (unshare -rm)");
        return None;
    }
    let store = at.join("store.sqlite");
    cluster.wrap_collector(&["unshare", "-rm", "sh", "-c", &script, "sh"], &[(STORE, store.to_str().unwrap())]).await;
    Some(PathBuf::from(format!("/proc/{}/root{}", cluster.collector.pid(), at.display())))
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_nothing_is_acknowledged_and_it_says_so_until_there_is_room() {
    let mut cluster = Cluster::start().await;
    let Some(disk) = on_a_small_disk(&mut cluster).await else { return };
    let _worker = cluster.worker("w1", &[], None);
    let filler = disk.join("filler");
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    let text_of_20_kb = format!("\"{}\"", "x".repeat(20_000));
    let mut ids = Vec::new();
    for _ in 0..100 {
        let task = NewTask { payload: text_of_20_kb.clone().into(), ..crate::harness::task("echo", "") };
        ids.push(cluster.client.submit(&task, RetryDeadline::Unlimited).await.unwrap().id);
    }
    let ready = format!("{}/readyz", cluster.collector_url());
    let said = until("a complaint", PATIENCE, async || {
        let answer = reqwest::get(&ready).await.ok()?;
        (answer.status() == 503).then_some(())?;
        answer.text().await.ok().filter(|said| said.contains("full"))
    })
    .await;
    assert!(said.contains("nothing is acknowledged"), "{said}");
    assert!(cluster.get("/api/v1/task", &[("id", ids[99].clone())]).await.is_none(), "it cannot be stored yet");
    std::fs::remove_file(filler).unwrap();
    for id in &ids {
        assert_eq!(cluster.ended(id).await["status"], "done");
    }
    crate::harness::is_ready(&cluster.collector_url()).await;
    let log = cluster.log("collector");
    let complaints = log.matches("cannot be written").count();
    assert!((1..5).contains(&complaints), "said once a minute, not {complaints} times");
    assert!(log.contains("can be written again"), "{log}");
}

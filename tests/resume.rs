//! A `map` that is killed and started again: it goes on where the server's acks ended, prints the whole list in order,
//! and nothing that has a result runs again.

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use millpond::client::{BatchSize, MapError, MapSpec};
use serde_json::Value;

use crate::harness::{Cluster, PATIENCE, Process, output, statuses, until};

const ITEMS: u64 = 100_000;

fn done_by(worker: &Value) -> u64 {
    worker["by_kind"]["square"]["done"].as_u64().unwrap_or(0)
}

/// Starts `map square` over a range; its output goes to a file.
fn map(cluster: &Cluster, range: &str, job: &str, more: &[&str], out: File, err: File) -> Process {
    let arguments = [&["map", "square", "--range", range, "--job", job], more].concat();
    Process::start(cluster.command(&arguments).stdout(Stdio::from(out)).stderr(Stdio::from(err)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_is_killed_again_and_again_prints_the_whole_list_and_runs_nothing_twice() {
    let cluster = Cluster::start().await;
    let _workers = [cluster.worker("w1", &[], None), cluster.worker("w2", &[], None)];
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| File::create(dir.path().join(name)).unwrap();
    let range = format!("0..{ITEMS}");
    let mut killed = 0;
    for run in 0..20 {
        // Messages of other sizes each time: what is stored is known by its items, not by its messages.
        let batch = if run % 4 == 3 { "auto" } else { "1" };
        let mut run = map(&cluster, &range, "killed", &["--batch", batch], file("out"), file("err"));
        tokio::time::sleep(Duration::from_millis(rand::random_range(30..700))).await;
        if run.ended().is_none() {
            killed += 1;
        }
        run.kill9();
    }
    let mut run = map(&cluster, &range, "killed", &[], file("out"), file("err"));
    let status = run.end(PATIENCE * 2).await;
    let said = std::fs::read_to_string(dir.path().join("err")).unwrap();
    assert!(status.success() && killed > 10, "killed {killed} times, then: {said}");
    let lines = std::fs::read_to_string(dir.path().join("out")).unwrap();
    assert!(lines.lines().eq((0..ITEMS).map(|n| (n * n).to_string())), "the whole list in order");
    let ends = cluster.job_ends("killed", ITEMS, PATIENCE).await;
    assert!(statuses(&ends).iter().all(|status| status == "done"));
    // Every run counts: what had a result was not run again.
    let ran = until("all counted", PATIENCE, async || {
        let workers = cluster.get("/api/v1/workers", &[]).await?;
        let ran: u64 = workers["rows"].as_array()?.iter().map(done_by).sum();
        (ran >= ITEMS).then_some(ran)
    })
    .await;
    assert_eq!(ran, ITEMS);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_input_under_the_same_name_is_refused() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let output = async |arguments: &[&str]| {
        let command = cluster.command(arguments);
        output(command).await
    };
    let first = output(&["map", "square", "--range", "0..500", "--job", "same"]).await;
    assert!(first.status.success());
    // The same again prints the same, and runs nothing.
    let again = output(&["map", "square", "--range", "0..500", "--job", "same"]).await;
    assert_eq!((again.status.code(), &again.stdout), (Some(0), &first.stdout));
    let unordered = output(&["map", "square", "--range", "0..500", "--job", "same", "--unordered"]).await;
    assert_eq!(String::from_utf8_lossy(&unordered.stdout).lines().count(), 500);
    for (kind, range, why) in [
        ("square", "0..400", "ends here, 500 were published"),
        ("square", "0..600", "more items than before"),
        ("square", "1..501", "differs"),
        ("echo", "0..500", "runs kind square"),
    ] {
        let other = output(&["map", kind, "--range", range, "--job", "same"]).await;
        let said = String::from_utf8_lossy(&other.stderr);
        assert!(other.status.code() == Some(70) && said.contains(why) && said.contains("--again"), "{range}: {said}");
    }
    let anew = output(&["map", "echo", "--range", "3..6", "--job", "same", "--again"]).await;
    assert_eq!(String::from_utf8_lossy(&anew.stdout), "3\n4\n5\n");
    cluster.job_ends("same", 3, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_results_come_from_the_collector() {
    let mut cluster = Cluster::start().await;
    let keep = [("MILLPOND_COLLECTOR_RESULTS_KEEP", "1s")];
    cluster.restart_collector_with(&keep);
    let worker = cluster.worker("w1", &["--slots", "2"], None);
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| File::create(dir.path().join(name)).unwrap();
    // One item of the middle fails at first and waits; the batches before and behind it end.
    let mut run = map(&cluster, "0..3000", "old", &["--batch", "100"], file("out"), file("err"));
    run.end(PATIENCE).await;
    let bus = cluster.nats.bus(millpond::bus::Role::Setup).await;
    until("purged RESULTS", PATIENCE, async || {
        (millpond::bus::topology::stream_state(&bus, "RESULTS").await.unwrap().messages == 0).then_some(())
    })
    .await;
    drop(worker);
    let mut run = map(&cluster, "0..3000", "old", &[], file("out"), file("err"));
    assert!(run.end(PATIENCE).await.success(), "{}", std::fs::read_to_string(dir.path().join("err")).unwrap());
    let lines = std::fs::read_to_string(dir.path().join("out")).unwrap();
    assert!(lines.lines().eq((0..3000u64).map(|n| (n * n).to_string())), "{} lines", lines.lines().count());
    cluster.collector.kill9();
    let mut run = map(&cluster, "0..3000", "old", &[], file("out"), file("err"));
    assert_eq!(run.end(PATIENCE).await.code(), Some(70));
    let said = std::fs::read_to_string(dir.path().join("err")).unwrap();
    assert!(said.contains("only a collector has them"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_with_one_job_the_first_stops() {
    let cluster = Cluster::start().await;
    let spec = MapSpec {
        queue: "default".into(),
        kind: "square".into(),
        job: Some("two".into()),
        batch: BatchSize::Fixed(1),
        ordered: true,
        ..MapSpec::default()
    };
    // The first has not read all of its input when the second begins.
    let endless = stream::iter((0..10u64).map(|n| Ok(n.to_string().into()))).chain(stream::pending());
    let mut first = cluster.client.map(spec.clone(), endless).await.unwrap();
    until("ten published", PATIENCE, async || {
        let _ = tokio::time::timeout(Duration::from_millis(50), first.next()).await;
        (first.stored() == 10).then_some(())
    })
    .await;
    let input = stream::iter((0..20u64).map(|n| Ok(n.to_string().into())));
    let second = cluster.client.imap(spec, input).await.unwrap();
    let stopped = async {
        loop {
            match first.next().await {
                Some(Ok(_)) => {}
                ended => return ended,
            }
        }
    };
    assert!(matches!(stopped.await, Some(Err(MapError::TakenOver { .. }))));
    let _worker = cluster.worker("w1", &[], None);
    let results: Vec<String> = second.map(|item| item.unwrap().end.unwrap().get().to_owned()).collect().await;
    assert_eq!(results, (0..20u64).map(|n| (n * n).to_string()).collect::<Vec<_>>());
    let ran = cluster.worker_is("w1", |w| done_by(w) >= 20).await;
    assert_eq!(done_by(&ran), 20, "what the first had stored was not stored again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_is_shorter_than_what_is_stored_is_refused() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let spec = MapSpec {
        queue: "default".into(),
        kind: "square".into(),
        job: Some("shorter".into()),
        batch: BatchSize::Fixed(1),
        ..MapSpec::default()
    };
    let numbers = |count: u64| stream::iter((0..count).map(|n| Ok(n.to_string().into())));
    let mut first = cluster.client.map(spec.clone(), numbers(10).chain(stream::pending())).await.unwrap();
    until("ten published", PATIENCE, async || {
        let _ = tokio::time::timeout(Duration::from_millis(50), first.next()).await;
        (first.stored() == 10).then_some(())
    })
    .await;
    drop(first);
    let again = async {
        let mut run = cluster.client.map(spec, numbers(5)).await?;
        while let Some(item) = run.next().await {
            item?;
        }
        Ok(())
    };
    let refused = tokio::time::timeout(PATIENCE, again).await.expect("it ends");
    assert!(matches!(refused, Err(MapError::OtherInput { .. })), "{refused:?}");
}

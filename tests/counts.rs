//! Counts agree: what is said of a job is what its dead letters, its results and its cancellation add up to, at the time when
//! it is said.

use std::process::{Output, Stdio};
use std::time::Duration;

use futures_util::stream;
use millpond::client::MapSpec;
use millpond_api::jobs::{JobResult, JobRow, JobStatus};
use millpond_api::list::PAGE_ROWS_MAX;

use crate::harness::{Cluster, PATIENCE, Process, output, until};

async fn run(cluster: &Cluster, arguments: &[&str]) -> Output {
    let command = cluster.command(arguments);
    output(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_a_job_counts_as_dead_are_retried() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    for round in 0..3 {
        let job = format!("dead{round}");
        let map = ["map", "fail", "--range", "0..2500", "--attempts-max", "1", "--no-wait", "--job", &job];
        assert!(run(&cluster, &map).await.status.success());
        let waited = run(&cluster, &["job", "wait", &job]).await;
        assert!(String::from_utf8_lossy(&waited.stderr).contains("2500 dead"), "{waited:?}");
        let again = run(&cluster, &["dead", "retry", "--all", "--job", &job, "--dry-run"]).await;
        let lines = String::from_utf8_lossy(&again.stdout).lines().count();
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(lines == 2500 || said.contains("2500"), "{lines} lines; {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_results_of_a_map_that_has_just_ended_are_all_there() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    for round in 0..10 {
        let job = format!("whole{round}");
        let spec =
            MapSpec { queue: "default".into(), kind: "square".into(), job: Some(job.clone()), ..MapSpec::default() };
        let input = stream::iter((0..500).map(|n| Ok(n.to_string().into())));
        let mut run = cluster.client.map(spec, input).await.unwrap();
        while let Some(item) = run.next().await {
            item.unwrap().end.unwrap();
        }
        let path = format!("/api/v1/jobs/{job}");
        let found: Option<JobRow> = cluster.api.find(&path, &()).await.unwrap();
        assert_eq!(found.map(|job| job.done), Some(500), "round {round}");
        let results: Vec<JobResult> =
            cluster.api.all(&format!("{path}/results"), &[("limit", PAGE_ROWS_MAX)]).await.unwrap();
        assert_eq!(results.len(), 500, "round {round}");
    }
    // A job without a task has a record and nothing else.
    let spec =
        MapSpec { queue: "default".into(), kind: "square".into(), job: Some("none".into()), ..MapSpec::default() };
    cluster.client.publish_all(spec, stream::empty()).await.unwrap();
    let found: Option<JobRow> = cluster.api.find("/api/v1/jobs/none", &()).await.unwrap();
    assert_eq!(found.and_then(|job| job.total), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_counts_of_a_job_that_was_cancelled_while_it_was_published_add_up() {
    let cluster = Cluster::start().await;
    let _workers = ["w1", "w2"].map(|name| cluster.worker(name, &[], None));
    for (job, cancel_after) in [("c1", 300), ("c2", 700), ("c3", 1200)] {
        let input = "0..400000";
        let mut command = cluster.command(&["map", "echo", "--range", input, "--batch", "1", "--job", job]);
        let dir = tempfile::tempdir().unwrap();
        let err = std::fs::File::create(dir.path().join("err")).unwrap();
        let mut map = Process::start(command.stdout(Stdio::null()).stderr(err));
        until("first results", PATIENCE, async || {
            let found: JobRow = cluster.api.find(&format!("/api/v1/jobs/{job}"), &()).await.ok()??;
            (found.done > 0).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(cancel_after)).await;
        assert!(run(&cluster, &["job", "cancel", job]).await.status.success());
        map.end(PATIENCE).await;
        let said = std::fs::read_to_string(dir.path().join("err")).unwrap();
        // What was on its way to a worker may end a moment later; what is shown adds up at each time.
        let add_up = async || {
            let shown: JobRow = cluster.api.get(&format!("/api/v1/jobs/{job}"), &()).await.unwrap();
            assert_eq!(shown.state, JobStatus::Cancelled);
            assert_eq!(Some(shown.done + shown.dead + shown.cancelled), shown.published, "{shown:?}; {said}");
            shown
        };
        let first = add_up().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let later = add_up().await;
        assert_eq!(first.published, later.published, "no task is added to a job that is cancelled; {said}");
        let ended: u64 = said.split(" tasks in ").next().unwrap().rsplit('\n').next().unwrap().parse().unwrap();
        assert_eq!(Some(ended), later.published, "the map tells as many as the collector: {said}");
        assert!(later.cancelled > 0, "{later:?}");
    }
}

//! Many small jobs: nobody is refused, however many there are; a job that nobody reads costs the server no consumer, a small
//! one that is read costs none either, and that of a large one is gone with its end.

use std::process::Stdio;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use millpond::client::MapSpec;
use millpond_api::jobs::JobRow;
use millpond_api::list::PAGE_ROWS_MAX;
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, Process, busy_turn, until};

/// More than the consumers that a server allows a stream by default.
const JOBS: usize = 1200;

/// The collector's own consumer is the only one on RESULTS.
async fn has_no_reader(cluster: &Cluster) {
    until("removal of all readers", Duration::from_secs(5), async || {
        (cluster.nats.consumers("RESULTS").await == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_over_http_that_nobody_waits_for_have_no_reader() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let (_producer, url) = cluster.producer().await;
    let (http, token) = (reqwest::Client::new(), cluster.nats.secrets.token.clone());
    let job = async |_| {
        let request = http.post(format!("{url}/v1/jobs/default/square")).bearer_auth(&token).body("1\n2\n3\n");
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        assert_eq!(status, 202, "{}", answer.text().await.unwrap());
    };
    stream::iter(0..JOBS).map(job).buffer_unordered(8).collect::<()>().await;
    assert_eq!(cluster.nats.consumers("RESULTS").await, 1);
    until("end of all jobs", PATIENCE, async || {
        let query = [("state", "finished".to_owned()), ("limit", PAGE_ROWS_MAX.to_string())];
        let jobs: Vec<JobRow> = cluster.api.all("/api/v1/jobs", &query).await.ok()?;
        (jobs.len() == JOBS && jobs.iter().all(|job| job.done == 3)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_was_read_to_its_end_leaves_no_reader() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let map = async |items: i64| {
        let spec = MapSpec { queue: "default".into(), kind: "square".into(), ordered: true, ..MapSpec::default() };
        let input = stream::iter((0..items).map(|n| Ok(n.to_string().into())));
        let mut run = cluster.client.map(spec, input).await.unwrap();
        for n in 0..items {
            assert_eq!(run.next().await.unwrap().unwrap().end.unwrap().get(), (n * n).to_string());
        }
        assert!(run.next().await.is_none());
    };
    stream::iter(0..JOBS).map(async |_| map(3).await).buffer_unordered(16).collect::<()>().await;
    assert_eq!(cluster.nats.consumers("RESULTS").await, 1, "small jobs are heard, not read");
    map(5000).await;
    has_no_reader(&cluster).await;
    // Another end than the last result: the caller goes away.
    let spec = MapSpec { queue: "default".into(), kind: "square".into(), ..MapSpec::default() };
    let mut run = cluster.client.map(spec, stream::iter((0..5000).map(|n| Ok(n.to_string().into())))).await.unwrap();
    for _ in 0..3000 {
        run.next().await.unwrap().unwrap();
    }
    drop(run);
    has_no_reader(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_reads_many_large_jobs_by_few_consumers() {
    /// More than a job that is only heard may have on its way.
    const LARGE: usize = 1100;
    let _turn = busy_turn().await;
    let cluster = Cluster::start().await;
    let workers = ["w1", "w2"].map(|name| cluster.worker(name, &[], None));
    let map = async |_| {
        let spec = MapSpec { queue: "default".into(), kind: "square".into(), ordered: true, ..MapSpec::default() };
        let input = stream::iter((0..LARGE).map(|n| Ok(n.to_string().into())));
        let mut run = cluster.client.map(spec, input).await.unwrap();
        let mut ended = 0;
        while let Some(item) = run.next().await {
            item.unwrap().end.unwrap();
            ended += 1;
        }
        assert_eq!(ended, LARGE);
    };
    let mut most = 0;
    let watch = async {
        loop {
            most = most.max(cluster.nats.consumers("RESULTS").await);
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    };
    let all = stream::iter(0..80).map(map).buffer_unordered(80).collect::<()>();
    tokio::select! {
        () = all => {}
        () = watch => {}
    }
    // The collector's own and those of this program.
    assert!(most <= 1 + 64, "{most} consumers for 80 jobs");
    has_no_reader(&cluster).await;
    drop(workers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_the_server_is_waited_for() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let allow = async |consumers: u64| {
        let mut config = cluster.nats.asked("$JS.API.STREAM.INFO.RESULTS", &Value::Null).await["config"].take();
        config["max_consumers"] = json!(consumers);
        let updated = cluster.nats.asked("$JS.API.STREAM.UPDATE.RESULTS", &config).await;
        assert!(updated["error"].is_null(), "{updated}");
    };
    // The collector's own.
    allow(1).await;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| std::fs::File::create(dir.path().join(name)).unwrap();
    let mut command = cluster.command(&["map", "square", "--range", "0..5000", "--batch", "10"]);
    let mut map = Process::start(command.stdout(Stdio::from(file("out"))).stderr(Stdio::from(file("err"))));
    let said = || std::fs::read_to_string(dir.path().join("err")).unwrap();
    until("word of the wait", PATIENCE, async || said().contains("waiting").then_some(())).await;
    assert!(map.ended().is_none(), "{}", said());
    allow(10).await;
    assert!(map.end(PATIENCE).await.success(), "{}", said());
    let lines = std::fs::read_to_string(dir.path().join("out")).unwrap();
    assert!(lines.lines().eq((0..5000u64).map(|n| (n * n).to_string())));
    has_no_reader(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_job_outlives_a_restart_of_the_server() {
    let mut cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--slots", "8"], None);
    let spec = MapSpec { queue: "default".into(), kind: "sleep".into(), ordered: true, ..MapSpec::default() };
    let input = stream::iter((0..8).map(|n| Ok((f64::from(n) * 0.5).to_string().into())));
    let mut run = cluster.client.map(spec, input).await.unwrap();
    run.next().await.unwrap().unwrap();
    cluster.nats.restart();
    let rest = async {
        let mut ended = 1;
        while let Some(item) = run.next().await {
            item.unwrap().end.unwrap();
            ended += 1;
        }
        ended
    };
    assert_eq!(tokio::time::timeout(PATIENCE, rest).await.unwrap(), 8);
    drop(run);
    has_no_reader(&cluster).await;
}

//! The failpoint matrix: a process is killed (-9) between each two steps of the order of effects, at its first hits,
//! while it works on single tasks, retries, dead letters and a batch with failing items. Whatever the place: each
//! accepted task ends exactly once, and as it should.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use millpond::bus::topology::stream_state;
use millpond::client::NewTask;
use millpond::wire::streams::{STREAM_DUE, STREAM_TASKS};

use crate::harness::{Cluster, PATIENCE, Process, statuses, text, until};

/// The worker's failpoints, in the order of effects.
const WORKER: [&str; 11] = [
    "admit.delivered",
    "admit.before_ask",
    "admit.asked",
    "admit.recorded",
    "run.started",
    "run.remainder_republished",
    "settle.executed",
    "settle.one_effect_stored",
    "settle.effects_stored",
    "settle.outcome_stored",
    "settle.acked",
];
/// At which hits of a failpoint the worker dies.
const HITS: [u32; 3] = [1, 2, 4];
/// Cases at once.
const AT_ONCE: usize = 10;

/// What each task of the job is, and how it must end.
const SINGLES: [(&str, &str, &str); 5] = [
    ("square", "12", "done"),
    ("fail", r#"{"until": 2}"#, "done"),
    ("fail", r#"{"how": "error"}"#, "dead"),
    ("fail", r#"{"how": "fatal"}"#, "dead"),
    ("fail", r#"{"how": "panic", "until": 2}"#, "done"),
];
const BATCH: &str = r#"[{"how": "never"}, {"until": 2}, {"how": "fatal"}, {"how": "never"}, {"how": "error"}]"#;
const BATCH_ENDS: [&str; 5] = ["done", "done", "dead", "done", "dead"];
/// Seconds: long enough to be handed on, in halves of halves.
const SLOW_BATCH: &str = "[0.15, 0.15, 0.15, 0.15, 0.15, 0.15, 0.15, 0.15]";

async fn submit_mixed_job(cluster: &Cluster, name: &str) -> Vec<&'static str> {
    let base = NewTask { queue: name.into(), job: Some(name.into()), attempts_max: Some(2), ..Default::default() };
    for (index, (kind, arguments, _)) in (0..).zip(SINGLES) {
        let task = NewTask {
            kind: kind.into(),
            payload: Bytes::from_static(arguments.as_bytes()),
            index: Some(index),
            ..base.clone()
        };
        cluster.client.submit(&task, RetryDeadline::Unlimited).await.unwrap();
    }
    let batch = NewTask {
        kind: "fail".into(),
        payload: Bytes::from_static(BATCH.as_bytes()),
        batch: Some(5),
        index: Some(SINGLES.len() as u64),
        ..base.clone()
    };
    cluster.client.submit(&batch, RetryDeadline::Unlimited).await.unwrap();
    let slow = NewTask {
        kind: "sleep".into(),
        payload: Bytes::from_static(SLOW_BATCH.as_bytes()),
        batch: Some(8),
        index: Some((SINGLES.len() + BATCH_ENDS.len()) as u64),
        ..base
    };
    cluster.client.submit(&slow, RetryDeadline::Unlimited).await.unwrap();
    SINGLES.iter().map(|(_, _, end)| *end).chain(BATCH_ENDS).chain(["done"; 8]).collect()
}

fn was_killed(process: &mut Process) -> Option<bool> {
    process.ended().map(|status| status.signal() == Some(9))
}

fn queue_of(failpoint: &str, hit: u32) -> String {
    format!("{}-{hit}", failpoint.replace('.', "-"))
}

async fn worker_dies_at(cluster: &Cluster, failpoint: &str, hit: u32) {
    let name = queue_of(failpoint, hit);
    let expected = submit_mixed_job(cluster, &name).await;
    let mut victim = cluster.worker(&format!("{name}-a"), &["--queues", &name], Some(&format!("{failpoint}:{hit}")));
    let killed = until(&format!("death at {failpoint}:{hit}"), PATIENCE, async || was_killed(&mut victim)).await;
    assert!(killed, "{failpoint}:{hit} ended the worker otherwise: {}", cluster.log(&format!("{name}-a")));
    let _heir = cluster.worker(&format!("{name}-b"), &["--queues", &name], None);
    let ends = cluster.job_ends(&name, expected.len() as u64, PATIENCE).await;
    assert_eq!(statuses(&ends), expected, "after a death at {failpoint}:{hit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_killed_between_any_two_steps() {
    let cluster = Cluster::start().await;
    let cases: Vec<_> = WORKER.iter().flat_map(|failpoint| HITS.map(|hit| (*failpoint, hit))).collect();
    let queues: Vec<String> = cases.iter().map(|(failpoint, hit)| queue_of(failpoint, *hit)).collect();
    let cluster = &cluster;
    stream::iter(cases).for_each_concurrent(AT_ONCE, |(failpoint, hit)| worker_dies_at(cluster, failpoint, hit)).await;
    // What was settled and not yet acknowledged when its worker died comes once more, and goes.
    let _last = cluster.worker("last", &["--queues", &queues.join(",")], None);
    let bus = cluster.nats.bus(Role::Setup).await;
    for stream in [STREAM_TASKS, STREAM_DUE] {
        until(&format!("empty {stream}"), PATIENCE, async || {
            (stream_state(&bus, stream).await.unwrap().messages == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn collector_killed_between_any_two_steps() {
    let mut cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--queues", "c1,c2,c3,c4,c5,c6"], None);
    let failpoints = ["collector.merged", "collector.committed", "collector.acked"];
    for (number, failpoint) in (1..).zip(failpoints.iter().flat_map(|f| [format!("{f}:1"), format!("{f}:2")])) {
        cluster.restart_collector(Some(&failpoint));
        let name = format!("c{number}");
        let expected = submit_mixed_job(&cluster, &name).await;
        let collector = &mut cluster.collector;
        let killed = until(&format!("death at {failpoint}"), PATIENCE, async || was_killed(collector)).await;
        assert!(killed, "{failpoint}: {}", cluster.log("collector"));
        cluster.restart_collector(None);
        let ends = cluster.job_ends(&name, expected.len() as u64, PATIENCE).await;
        assert_eq!(statuses(&ends), expected, "after a death at {failpoint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publisher_killed_between_any_two_steps() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    for (failpoint, batch) in [("publish.acked", "1"), ("publish.noted", "1"), ("publish.acked", "auto")] {
        let job = format!("{}-{batch}", failpoint.replace('.', "-"));
        let mut command = cluster.command(&["map", "square", "--range", "0..200", "--job", &job, "--batch", batch]);
        command.env("MILLPOND_FAILPOINT", format!("{failpoint}:20")).stdout(Stdio::null()).stderr(Stdio::null());
        let mut publisher = Process::start(&mut command);
        let killed = until(&format!("death at {failpoint}"), PATIENCE, async || was_killed(&mut publisher)).await;
        assert!(killed, "{failpoint} must kill");
        let bus = cluster.nats.bus(Role::Setup).await;
        until("empty TASKS", PATIENCE, async || {
            (stream_state(&bus, STREAM_TASKS).await.unwrap().messages == 0).then_some(())
        })
        .await;
        // What was accepted is what was acknowledged, and some that were under way: all of it ends, each once.
        let found = until("stored job", PATIENCE, async || {
            let found = cluster.get(&format!("/api/v1/jobs/{job}"), &[]).await?;
            (found["done"].as_u64()? >= 20).then_some(found)
        })
        .await;
        let rows = cluster.get("/api/v1/tasks", &[("job", job.clone()), ("limit", "1000".into())]).await.unwrap();
        let rows = rows["rows"].as_array().unwrap();
        assert!(rows.iter().all(|row| text(row, "status") == "done"));
        let done: u64 = rows.iter().filter_map(|row| row["done"].as_u64()).sum();
        assert!(done >= found["done"].as_u64().unwrap());
        until("stalled job", PATIENCE, async || {
            let found = cluster.get(&format!("/api/v1/jobs/{job}"), &[]).await?;
            (found["state"] == "stalled").then_some(())
        })
        .await;
    }
}

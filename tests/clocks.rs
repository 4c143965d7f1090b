//! Workers and publishers whose clocks are an hour off: retries, delays and expiry come as for everybody else, and it is shown.
//! The C compiler that links the tests makes the clock.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Cluster, PATIENCE, task, text, until};

/// An hour.
const OFF: [&str; 2] = ["3600", "-3600"];

const SKEW: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t c, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int r = real(c, t);
    if (c == CLOCK_REALTIME && getenv("SKEW")) t->tv_sec += atol(getenv("SKEW"));
    return r;
}
"#;

/// A library that moves the clock of a process.
struct Skew {
    _dir: TempDir,
    library: PathBuf,
}

impl Skew {
    fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (source, library) = (dir.path().join("skew.c"), dir.path().join("skew.so"));
        std::fs::write(&source, SKEW).unwrap();
        let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { _dir: dir, library }
    }

    fn env<'a>(&'a self, by: &'a str) -> [(&'a str, &'a str); 2] {
        [("LD_PRELOAD", self.library.to_str().unwrap()), ("SKEW", by)]
    }

    fn command(&self, cluster: &Cluster, by: &str, arguments: &[&str]) -> Output {
        cluster.command(arguments).envs(self.env(by)).output().unwrap()
    }
}

async fn ended(cluster: &Cluster, task: NewTask) -> (Value, Duration) {
    let started = Instant::now();
    let id = cluster.client.submit(&task, RetryDeadline::Unlimited).await.unwrap().id;
    (cluster.ended(&id).await, started.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_clock_is_an_hour_off_works_as_others_do() {
    let (cluster, skew) = (Cluster::start().await, Skew::make());
    for by in OFF {
        let worker = cluster.worker_with("w1", &["--retry-delay", "2s", "--retry-jitter", "0"], &skew.env(by));
        let record = cluster.worker_is("w1", |w| w["state"] == "live").await;
        let ahead_ms = record["clock_ahead_ms"].as_i64().unwrap();
        assert!((ahead_ms - by.parse::<i64>().unwrap() * 1000).abs() < 5_000, "{record}");
        // A retry waits for its delay, and no longer.
        let (failed, took) = ended(&cluster, NewTask { attempts_max: Some(2), ..task("fail", "{}") }).await;
        assert_eq!(failed["status"], "dead", "{failed}");
        assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(20), "clock {by} s off: {took:?}");
        // What expires in ten minutes has not expired; what has expired has.
        let at = |from_now_ms: i64| {
            Some(jiff::Timestamp::from_millisecond(millpond::now_ms() + from_now_ms).unwrap().to_string())
        };
        let (lives, _) = ended(&cluster, NewTask { expires: at(600_000), ..task("square", "12") }).await;
        assert_eq!(lives["result"], 144, "{lives}");
        let (dies, _) = ended(&cluster, NewTask { expires: at(-60_000), ..task("square", "12") }).await;
        assert_eq!(dies["dead"]["reason"], "expired", "{dies}");
        // It is shown.
        let row = until("the problem", PATIENCE, async || {
            let problems = cluster.get("/api/v1/problems", &[]).await?;
            problems["rows"].as_array()?.iter().find(|row| row["kind"] == "clock" && row["what"] == "w1").cloned()
        })
        .await;
        let way = if by.starts_with('-') { "behind" } else { "ahead of" };
        assert!(text(&row, "sentence").contains(way), "{row}");
        let doctor = cluster.command(&["doctor"]).output().unwrap();
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        let warned = said.lines().any(|line| line.starts_with("warn") && line.contains("w1") && line.contains(way));
        assert!(warned, "{said}");
        drop(worker);
        until("that the worker is gone", PATIENCE, async || {
            let workers = cluster.get("/api/v1/workers", &[]).await?;
            workers["rows"].as_array()?.iter().all(|w| w["state"] == "lost").then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_whose_clock_is_an_hour_off_delays_and_expires_as_others_do() {
    let (cluster, skew) = (Cluster::start().await, Skew::make());
    let _worker = cluster.worker("w1", &[], None);
    let (_producer, _) = cluster.producer().await;
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    for by in OFF {
        let started = Instant::now();
        let delayed = skew.command(&cluster, by, &["submit", "square", "5", "--delay", "2s", "--wait"]);
        let (took, said) = (started.elapsed(), String::from_utf8_lossy(&delayed.stdout).into_owned());
        assert_eq!(said.trim(), "25", "{delayed:?}");
        assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(20), "clock {by} s off: {took:?}");
        let expiring = skew.command(&cluster, by, &["submit", "square", "6", "--expires", "10m", "--wait"]);
        assert_eq!(String::from_utf8_lossy(&expiring.stdout).trim(), "36", "{expiring:?}");
        let doctor = skew.command(&cluster, by, &["doctor"]);
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(said.lines().any(|line| line.starts_with("FAIL") && line.contains("clock")), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_whose_clock_is_an_hour_off_shows_workers_as_they_are() {
    let (mut cluster, skew) = (Cluster::start().await, Skew::make());
    let _worker = cluster.worker("w1", &[], None);
    for by in OFF {
        cluster.restart_collector_with(&skew.env(by));
        cluster.worker_is("w1", |w| w["state"] == "live").await;
        let row = until("the problem", PATIENCE, async || {
            let problems = cluster.get("/api/v1/problems", &[]).await?;
            problems["rows"].as_array()?.iter().find(|row| row["kind"] == "clock").cloned()
        })
        .await;
        assert_eq!(row["what"], json!("collector"));
        let (done, _) = ended(&cluster, task("square", "12")).await;
        let (ended_ms, now_ms) = (done["ended_ms"].as_i64().unwrap(), millpond::now_ms());
        assert!((now_ms - ended_ms).abs() < 60_000, "{done}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_service_whose_clock_is_an_hour_off_is_shown() {
    let (cluster, skew) = (Cluster::start().await, Skew::make());
    let found = async || {
        let problems = cluster.get("/api/v1/problems", &[]).await?;
        let of_it = |row: &&Value| row["kind"] == "clock" && text(row, "what").starts_with("producer ");
        problems["rows"].as_array().map(|rows| rows.iter().find(of_it).cloned())
    };
    for by in OFF {
        let (producer, _) = cluster.producer_with(&skew.env(by)).await;
        let row = until("the problem", PATIENCE, async || found().await?).await;
        let way = if by.starts_with('-') { "behind" } else { "ahead of" };
        assert!(text(&row, "sentence").contains(way) && text(&row, "sentence").contains("3600 s"), "{row}");
        let doctor = cluster.command(&["doctor"]).output().unwrap();
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        let warned =
            said.lines().any(|line| line.starts_with("warn") && line.contains("producer") && line.contains(way));
        assert!(warned, "{said}");
        drop(producer);
        // Nobody tells of it any more.
        until("that it is no longer shown", PATIENCE * 2, async || found().await?.is_none().then_some(())).await;
    }
}

//! A worker's name is its own: a second live worker of the name does not start, one that is started again after a crash does at once.

use std::time::{Duration, Instant};

use millpond::bus::Role;
use millpond::bus::consume::name_claim::NameHolder;
use millpond::bus::publish::RetryDeadline;
use millpond::wire::subject::lease_name;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Cluster, PATIENCE, task, until};

async fn live(cluster: &Cluster, name: &str, pid: u32) -> Value {
    cluster.worker_is(name, |w| w["state"] == "live" && w["pid"] == pid).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_of_a_name_is_told_who_has_it() {
    let cluster = Cluster::start().await;
    let first = cluster.worker("twin", &["--queues", "q1"], None);
    live(&cluster, "twin", first.pid()).await;
    let started = Instant::now();
    let mut second = cluster.worker("twin", &["--queues", "q2"], None);
    assert_eq!(second.end(PATIENCE).await.code(), Some(1), "{}", cluster.log("twin"));
    assert!(started.elapsed() < Duration::from_secs(10));
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    let said = format!("the name twin is taken by a live worker (process {} on {host})", first.pid());
    assert!(cluster.log("twin").contains(&said), "{}", cluster.log("twin"));
    live(&cluster, "twin", first.pid()).await;
    // All of the name have left.
    let drained = cluster.command(&["worker", "drain", "twin", "--wait"]).output().unwrap();
    assert!(drained.status.success(), "{drained:?}");
    let gone = cluster.get("/api/v1/workers", &[]).await.unwrap();
    assert_eq!(gone["rows"].as_array().unwrap().len(), 0, "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_start_at_once_one_has_the_name() {
    let cluster = Cluster::start().await;
    for round in 0..3 {
        let name = format!("twin{round}");
        let mut both = [cluster.worker(&name, &[], None), cluster.worker(&name, &[], None)];
        let ended = until("the end of one of them", PATIENCE, async || {
            let ended: Vec<usize> = (0..2).filter(|at| both[*at].ended().is_some()).collect();
            (!ended.is_empty()).then_some(ended)
        })
        .await;
        assert_eq!(ended.len(), 1, "{}", cluster.log(&name));
        assert_eq!(both[ended[0]].ended().unwrap().code(), Some(1));
        let other = &both[1 - ended[0]];
        live(&cluster, &name, other.pid()).await;
    }
}

/// The second one asks while the first one still waits for an answer, and did not hear the first one's question.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_start_one_shortly_after_the_other_one_has_the_name() {
    let cluster = Cluster::start().await;
    let password = cluster.nats.secrets.passwords["worker"].clone();
    let options = async_nats::ConnectOptions::with_user_and_password("worker".into(), password);
    let mute = options.connect(format!("127.0.0.1:{}", cluster.nats.port)).await.unwrap();
    for (name, first, second) in [("w1", "a", "b"), ("w2", "b", "a")] {
        // Without it the server says at once that nobody hears the question.
        let _mute = mute.subscribe(lease_name(name)).await.unwrap();
        mute.flush().await.unwrap();
        let claim = async |nonce: &str| {
            let bus = cluster.nats.bus(Role::Worker).await;
            let me = NameHolder { nonce: nonce.to_owned(), host: "host".to_owned(), pid: 1, again: false };
            (bus.claim_name(name, me).await, bus)
        };
        let later = async {
            tokio::time::sleep(Duration::from_millis(250)).await;
            claim(second).await
        };
        let ((first, _first_bus), (second, _second_bus)) = tokio::join!(claim(first), later);
        let has = [first.err(), second.err()].map(|refused| refused.is_none());
        assert_eq!(has, [name == "w1", name == "w2"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_killed_has_its_name_again_at_once() {
    let cluster = Cluster::start().await;
    let mut worker = cluster.worker("w1", &[], None);
    live(&cluster, "w1", worker.pid()).await;
    for _ in 0..3 {
        worker.kill9();
        let started = Instant::now();
        worker = cluster.worker("w1", &[], None);
        live(&cluster, "w1", worker.pid()).await;
        assert!(started.elapsed() < Duration::from_secs(8), "after {:?}: {}", started.elapsed(), cluster.log("w1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_stopped_and_taken_over_ends_when_it_goes_on() {
    let cluster = Cluster::start().await;
    let mut stopped = cluster.worker("w1", &[], None);
    live(&cluster, "w1", stopped.pid()).await;
    stopped.signal(Signal::SIGSTOP);
    let newcomer = cluster.worker("w1", &[], None);
    live(&cluster, "w1", newcomer.pid()).await;
    // Who has the name now answers late as well: the holder looks back a second after it goes on.
    newcomer.signal(Signal::SIGSTOP);
    stopped.signal(Signal::SIGCONT);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    newcomer.signal(Signal::SIGCONT);
    assert_eq!(stopped.end(PATIENCE).await.code(), Some(1), "{}", cluster.log("w1"));
    let id = cluster.client.submit(&task("square", "12"), RetryDeadline::Unlimited).await.unwrap().id;
    assert_eq!(cluster.ended(&id).await["result"], 144);
    live(&cluster, "w1", newcomer.pid()).await;
}

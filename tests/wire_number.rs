//! Versions that do not understand each other refuse to work together, in one line.

use std::process::Output;

use async_nats::jetstream;
use millpond::bus::Role;
use millpond::bus::publish::RetryDeadline;
use millpond::bus::topology::{StreamLimits, setup, stream_state};
use millpond::wire::number::{METADATA_WIRE_NUMBER, WIRE_NUMBER};
use serde_json::json;

use crate::harness::{Cluster, NatsServer, PATIENCE, free_port, task, until};

async fn connect(nats: &NatsServer, role: &str) -> async_nats::Client {
    async_nats::ConnectOptions::new()
        .user_and_password(role.into(), nats.secrets.passwords[role].clone())
        .custom_inbox_prefix(format!("_INBOX_{role}"))
        .connect(format!("127.0.0.1:{}", nats.port))
        .await
        .unwrap()
}

/// Makes the streams those of another version; none: of before there was a number.
async fn write_number(nats: &NatsServer, number: Option<u32>) {
    let js = jetstream::new(connect(nats, "setup").await);
    let mut config = js.get_stream("TASKS").await.unwrap().cached_info().config.clone();
    config.metadata.remove(METADATA_WIRE_NUMBER);
    config.metadata.extend(number.map(|number| (METADATA_WIRE_NUMBER.to_owned(), number.to_string())));
    js.update_stream(config).await.unwrap();
}

fn refusal(number: u32) -> String {
    format!("this program speaks wire number {WIRE_NUMBER}, the streams are of number {number}: upgrade the older one")
}

fn refused_with(output: &Output, line: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(line), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_refuse_to_start_on_streams_of_another_number() {
    let cluster = Cluster::start().await;
    for (number, told) in [(None, 1), (Some(WIRE_NUMBER + 1), WIRE_NUMBER + 1)] {
        write_number(&cluster.nats, number).await;
        let mut worker = cluster.worker("w1", &[], None);
        assert!(!worker.end(PATIENCE).await.success());
        assert!(cluster.log("w1").contains(&refusal(told)), "{}", cluster.log("w1"));
        let client = cluster.command(&["submit", "square", "3"]).output().unwrap();
        refused_with(&client, &refusal(told));
        let address = format!("127.0.0.1:{}", free_port());
        let mut producer = cluster.command(&["producer", "run", "--listen", &address]);
        producer.env("MILLPOND_PRODUCER_NATS_URL", cluster.nats.url("producer"));
        refused_with(&producer.output().unwrap(), &refusal(told));
        let store = tempfile::tempdir().unwrap();
        let mut collector = cluster.command(&["collector", "run", "--listen", &address]);
        collector.env("MILLPOND_COLLECTOR_NATS_URL", cluster.nats.url("collector"));
        collector.env("MILLPOND_COLLECTOR_STORE", store.path().join("store.sqlite"));
        refused_with(&collector.output().unwrap(), &refusal(told));
    }
    // A publisher may not read the streams, and is exempt.
    let publisher = cluster.nats.bus(Role::Publisher).await;
    publisher.store("tasks.default.square", &Vec::new(), "4".into(), RetryDeadline::Unlimited).await.unwrap();
    write_number(&cluster.nats, Some(WIRE_NUMBER)).await;
    let _worker = cluster.worker("w2", &[], None);
    cluster.worker_is("w2", |w| w["done"] == 1 && w["wire"] == WIRE_NUMBER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_programs_end_when_the_streams_changed_while_they_were_away() {
    let mut cluster = Cluster::start().await;
    let mut worker = cluster.worker("w1", &[], None);
    cluster.worker_is("w1", |_| true).await;
    write_number(&cluster.nats, Some(WIRE_NUMBER + 1)).await;
    cluster.nats.restart();
    assert!(!worker.end(PATIENCE).await.success());
    assert!(cluster.log("w1").contains(&refusal(WIRE_NUMBER + 1)), "{}", cluster.log("w1"));
    assert!(!cluster.collector.end(PATIENCE).await.success());
    assert!(cluster.log("collector").contains(&refusal(WIRE_NUMBER + 1)), "{}", cluster.log("collector"));
    let refused = until("refusal", PATIENCE, async || {
        cluster.client.submit(&task("square", "3"), RetryDeadline::Unlimited).await.err()
    });
    assert!(refused.await.to_string().contains(&refusal(WIRE_NUMBER + 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn setup_refuses_while_a_worker_of_another_number_lives() {
    let nats = NatsServer::start();
    let bus = nats.bus(Role::Setup).await;
    setup(&bus, &StreamLimits::default()).await.unwrap();
    write_number(&nats, None).await;
    let worker = connect(&nats, "worker").await;
    let record = json!({ "name": "old", "heartbeat_ms": millpond::now_ms() }).to_string();
    worker.request("$KV.millpond_workers.old", record.into()).await.unwrap();
    let refused = setup(&bus, &StreamLimits::default()).await.unwrap_err().to_string();
    let line = format!("this setup makes streams of wire number {WIRE_NUMBER}, the live worker old speaks number 1");
    assert!(refused.contains(&line), "{refused}");
    assert_eq!(stream_state(&bus, "TASKS").await.unwrap().wire_number, None, "nothing was changed");
    // Its record is no longer renewed: a worker that is gone stands in nobody's way.
    until("setup", PATIENCE, async || setup(&bus, &StreamLimits::default()).await.ok()).await;
    assert_eq!(stream_state(&bus, "TASKS").await.unwrap().wire_number, Some(WIRE_NUMBER.to_string()));
    // Nor does a worker of this number.
    let record = json!({ "name": "new", "wire": WIRE_NUMBER }).to_string();
    worker.request("$KV.millpond_workers.new", record.into()).await.unwrap();
    setup(&bus, &StreamLimits::default()).await.unwrap();
    // A setup of an older version leaves the streams of a newer one alone.
    write_number(&nats, Some(WIRE_NUMBER + 1)).await;
    let refused = setup(&bus, &StreamLimits::default()).await.unwrap_err().to_string();
    assert!(refused.contains(&refusal(WIRE_NUMBER + 1)), "{refused}");
}

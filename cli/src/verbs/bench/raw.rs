//! The raw ceiling of `bench`: the NATS client alone, with the same stored messages, dedupe ids and acks, and no
//! millpond. An account of its own on the same server; streams with the settings of TASKS and RESULTS.
//! This is the one file outside the bus that names the client, because the bus is measured against it.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt;
use futures_util::stream as streams;
use millpond::bus::topology::DUPLICATE_WINDOW;
use millpond::limits::PUBLISH_WINDOW;
use tokio::task::JoinSet;

const TASKS: &str = "RAW_TASKS";
const RESULTS: &str = "RAW_RESULTS";
/// Header of both kinds of messages.
const MSG_ID: &str = "Nats-Msg-Id";

/// A publisher that waits, and a worker, on connections of their own.
pub(super) struct Raw {
    publisher: jetstream::Context,
    results: PullConsumer,
    /// The worker; it ends when this is dropped.
    _worker: JoinSet<()>,
    rounds: u64,
}

async fn connect(url: &str) -> anyhow::Result<async_nats::Client> {
    let server: async_nats::ServerAddr = url.parse()?;
    let (user, password) = (server.username().unwrap_or_default(), server.password().unwrap_or_default());
    let options = async_nats::ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
    let address = format!("nats://{}:{}", server.host(), server.port());
    options.connect(address).await.context("cannot connect for the raw rounds")
}

fn context(client: async_nats::Client) -> jetstream::Context {
    jetstream::context::ContextBuilder::new()
        .timeout(Duration::from_secs(10))
        .max_ack_inflight(PUBLISH_WINDOW * 8)
        .backpressure_on_inflight(true)
        .build(client)
}

impl Raw {
    pub(super) async fn start(url: &str, slots: usize) -> anyhow::Result<Self> {
        let publisher = context(connect(url).await?);
        for (name, subjects, retention) in [
            (TASKS, "raw.tasks.>", stream::RetentionPolicy::WorkQueue),
            (RESULTS, "raw.results.>", stream::RetentionPolicy::Limits),
        ] {
            let config = stream::Config {
                name: name.to_owned(),
                subjects: vec![subjects.to_owned()],
                retention,
                discard: stream::DiscardPolicy::New,
                duplicate_window: DUPLICATE_WINDOW,
                max_messages: 10_000_000,
                ..Default::default()
            };
            publisher.get_or_create_stream(config).await?;
        }
        let consumer = |name: &str, ack_policy| pull::Config {
            durable_name: Some(name.to_owned()),
            ack_policy,
            max_ack_pending: 100_000,
            ..Default::default()
        };
        let results = publisher.create_consumer_on_stream(consumer("reader", AckPolicy::None), RESULTS).await?;
        let working = context(connect(url).await?);
        let tasks: PullConsumer =
            working.create_consumer_on_stream(consumer("worker", AckPolicy::Explicit), TASKS).await?;
        let mut worker = JoinSet::new();
        worker.spawn(async move {
            if let Err(error) = work(working, tasks, slots).await {
                note!("millpond: the raw worker ended: {error:#}");
            }
        });
        Ok(Self { publisher, results, _worker: worker, rounds: 0 })
    }

    /// Publishes `count` numbers, reads their squares back and checks them; returns how long it took.
    pub(super) async fn round(&mut self, count: u64) -> anyhow::Result<Duration> {
        self.rounds += 1;
        let (round, publisher) = (self.rounds, self.publisher.clone());
        let mut results = self.results.stream().max_messages_per_batch(500).messages().await?;
        let started = Instant::now();
        let mut publishing = JoinSet::new();
        publishing.spawn(async move {
            let sent = streams::iter(0..count).map(|n| {
                let publisher = publisher.clone();
                async move {
                    let mut headers = HeaderMap::new();
                    headers.insert(MSG_ID, format!("t{round}/{n}"));
                    let subject = "raw.tasks.square".to_owned();
                    publisher.publish_with_headers(subject, headers, n.to_string().into()).await?.await?;
                    anyhow::Ok(())
                }
            });
            let mut sent = sent.buffer_unordered(PUBLISH_WINDOW);
            while let Some(stored) = sent.next().await {
                stored?;
            }
            anyhow::Ok(())
        });
        let mut seen = vec![false; usize::try_from(count)?];
        let mut left = count;
        while left > 0 {
            let message = results.next().await.context("the raw results ended")??;
            let (n, square) = read(&message.payload)?;
            let place = usize::try_from(n).ok().and_then(|n| seen.get_mut(n)).context("a raw result of no task")?;
            if square != n * n || std::mem::replace(place, true) {
                bail!("raw result {square} of {n} is wrong or came twice");
            }
            left -= 1;
        }
        let took = started.elapsed();
        while let Some(published) = publishing.join_next().await {
            published??;
        }
        Ok(took)
    }

    /// Single round trips, one after the other: a task is published, its result stored and received by a subscription, which is
    /// the fastest way.
    pub(super) async fn lone(&mut self, count: u64) -> anyhow::Result<Vec<Duration>> {
        self.rounds += 1;
        let client = self.publisher.client();
        let mut received = client.subscribe("raw.results.>").await?;
        client.flush().await?;
        let mut took = Vec::new();
        for n in 0..count {
            let mut headers = HeaderMap::new();
            headers.insert(MSG_ID, format!("l{}/{n}", self.rounds));
            let started = Instant::now();
            let ack = self.publisher.publish_with_headers("raw.tasks.square", headers, n.to_string().into()).await?;
            ack.await?;
            let message = received.next().await.context("the subscription ended")?;
            took.push(started.elapsed());
            if read(&message.payload)? != (n, n * n) {
                bail!("a lone raw result of {n} is wrong");
            }
        }
        // The consumer of the other rounds must not find these results.
        let mut rest = self.results.fetch().max_messages(usize::try_from(count)?).messages().await?;
        while rest.next().await.is_some() {}
        Ok(took)
    }
}

fn read(payload: &[u8]) -> anyhow::Result<(u64, u64)> {
    let (n, square) = std::str::from_utf8(payload)?.split_once(' ').context("a raw result of another form")?;
    Ok((n.parse()?, square.parse()?))
}

/// For many tasks at once: stores the result of a task, then acknowledges the task and waits for the answer.
async fn work(context: jetstream::Context, tasks: PullConsumer, slots: usize) -> anyhow::Result<()> {
    let mut tasks = tasks.stream().max_messages_per_batch(512 + slots).messages().await?;
    let mut working = JoinSet::new();
    loop {
        tokio::select! {
            task = tasks.next(), if working.len() < 2048 => {
                let task = task.context("the raw tasks ended")??;
                let context = context.clone();
                working.spawn(async move { one(&context, task).await });
            }
            Some(done) = working.join_next() => done??,
        }
    }
}

async fn one(context: &jetstream::Context, task: jetstream::Message) -> anyhow::Result<()> {
    let n: u64 = std::str::from_utf8(&task.payload)?.parse()?;
    let id = task.headers.as_ref().and_then(|h| h.get(MSG_ID)).map(ToString::to_string).unwrap_or_default();
    let mut headers = HeaderMap::new();
    headers.insert(MSG_ID, format!("r{id}"));
    let result = format!("{n} {}", n * n);
    context.publish_with_headers("raw.results.square", headers, result.into()).await?.await?;
    let reply = task.reply.clone().context("a task without a reply")?;
    context.client().request(reply, "".into()).await?;
    Ok(())
}

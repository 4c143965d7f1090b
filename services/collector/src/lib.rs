//! The collector: what workers report is merged into the store, committed, then acknowledged; the store is read over HTTP.
//! Not here: publishing tasks. RESULTS, DEAD -> `collect` -> `store`; `http` -> `store`.

mod caught_up;
mod clocks;
mod collect;
mod commit_span;
mod config;
mod continuations;
mod http;
mod known_job;
mod open_jobs;
mod overview;
mod poison;
mod queues;
mod reconcile;
mod replays;
mod resume_results;
mod store;
#[cfg(test)]
#[path = "../../../tests/storm.rs"]
mod storm;
mod workers;

use std::sync::Arc;

use anyhow::anyhow;
use millpond::bus::read::outcomes::OutcomeStream;
use millpond::bus::{Bus, Role};
use millpond_service::guesses::Guesses;
use millpond_service::server::{Bound, Server};
use millpond_service::status_routes::send_metrics;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Settings};
pub use store::StoreAt;

use clocks::Clocks;
use collect::Collector;
use open_jobs::OpenJobs;
use overview::OverviewPoller;
use queues::Queues;
use reconcile::Problems;
use replays::Replays;
use store::Store;
use workers::Workers;

/// Collects and serves until `shutdown`; what was pulled by then is stored and acknowledged.
///
/// # Errors
/// When NATS cannot be reached at the start, the store cannot be opened, the address is taken, or collecting or serving
/// ends by itself: a collector that only answers must not look alive.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = millpond::telemetry::Metrics::start();
    let (store, by_tls) = (Store::open(&settings.store).await?, settings.http.is_tls());
    let bound = Bound::new(settings.listen, settings.http).await?;
    let connecting = Bus::connect(&settings.nats_url, Role::Collector, "collector", settings.access);
    let Some(bus) = shutdown.run_until_cancelled(connecting).await.transpose()? else { return Ok(()) };
    let (workers, jobs, problems) = (Workers::default(), OpenJobs::default(), Problems::default());
    let (mut background, mut collecting) = (JoinSet::new(), JoinSet::new());
    let (polls, clocks) = (poison::start(&bus, &mut background).await?, Clocks::start(&bus, &mut background).await?);
    background.spawn(workers.clone().follow(bus.clone()));
    background.spawn(store.clone().follow());
    background.spawn(store.clone().enforce_retention(settings.retention));
    background.spawn(open_jobs::follow(bus.clone(), store.clone(), jobs.clone()));
    background.spawn(resume_results::serve(bus.clone(), store.clone(), resume_results::listen(&bus).await?));
    background.spawn(continuations::follow(bus.clone(), store.clone()));
    let collectors = [OutcomeStream::Results, OutcomeStream::Dead]
        .map(|stream| Collector::new(&bus, &store, stream, settings.results_keep));
    let health: Vec<_> = collectors.iter().map(Collector::health).collect();
    for collector in collectors {
        background.spawn(collector.clone().purge_stream());
        collecting.spawn(collector.collect(shutdown.clone()));
    }
    background.spawn(reconcile::watch(bus.clone(), (workers.clone(), jobs, clocks), health.clone(), problems.clone()));
    background.spawn(reconcile::run(reconcile::Context::new(&bus, &store, &workers, &problems, polls)));
    let queues = Queues::start(&bus, &store, &workers, settings.queue_keep, &mut background);
    let overview = OverviewPoller::new(&bus, &store, &workers, &queues, &problems, &health);
    background.spawn(overview.clone().run());
    tracing::info!(
        nats = %millpond::bus::without_password(&settings.nats_url),
        listen = %bound.address,
        store = %settings.store,
        retention = ?settings.retention,
        results_keep = ?settings.results_keep,
        queue_keep = ?settings.queue_keep,
        viewers = settings.viewer_token.is_some(),
        "collector ready"
    );
    let app = Arc::new(http::App {
        store: store.clone(),
        workers,
        bus: bus.clone(),
        replays: Replays::new(&bus, &store),
        queues,
        overview,
        watchers: Arc::new(Semaphore::new(http::WATCHERS_MAX)),
        shutdown: shutdown.clone(),
        tokens: http::Tokens { operator: settings.token, viewer: settings.viewer_token },
        guesses: Guesses::default(),
        exports: Arc::new(Semaphore::new(http::EXPORTS_MAX)),
        by_tls,
        kibana_url: settings.kibana_url,
        metrics,
        health,
        problems,
    });
    background.spawn(http::ClientRequests::listen(&bus).await?.serve(app.clone()));
    background.spawn(send_metrics(app.clone()));
    let mut server = bound.serve(http::router(app), shutdown.clone());
    let result = tokio::select! {
        biased;
        () = shutdown.cancelled() => Ok(()),
        failed = server.failed() => Err(failed),
        Some(ended) = collecting.join_next() => Err(anyhow!("collecting ended by itself: {ended:?}")),
        failure = bus.failed() => Err(failure.into()),
    };
    shutdown.cancel();
    // What was pulled by now is stored and acknowledged.
    while collecting.join_next().await.is_some() {}
    close(server, background, bus, store).await;
    result
}

async fn close(server: Server, mut background: JoinSet<()>, bus: Bus, store: Store) {
    server.close().await;
    background.shutdown().await;
    bus.close().await;
    store.close().await;
    tracing::info!("collector stopped");
}

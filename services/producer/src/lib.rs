//! The producer service: tasks over HTTP, for programs that do not speak NATS. `http` -> `millpond::client`.
//! `replay` publishes the dead letters that an operator wants run again, `continuation` the task that the end of a job
//! starts, `schedules` changes schedules by request on NATS, and tasks with a time are moved to DUE. Not here: results, retry rules.

mod config;
mod continuation;
mod http;
mod ndjson;
mod replay;
mod schedules;

use std::sync::Arc;

use millpond::bus::{Bus, Role};
use millpond::telemetry::Metrics;
use millpond_service::server::Bound;
use millpond_service::status_routes::send_metrics;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Settings};

/// Serves until `shutdown`.
///
/// # Errors
/// When NATS cannot be reached at the start, the address is taken, or the server ends by itself.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = Metrics::start();
    let bound = Bound::new(settings.listen, settings.http).await?;
    let connecting = Bus::connect(&settings.nats_url, Role::Producer, "producer", settings.access);
    let Some(bus) = shutdown.run_until_cancelled(connecting).await.transpose()? else { return Ok(()) };
    let bus = bus.with_signer(settings.signer.clone());
    let mut background = JoinSet::new();
    background.spawn(bus.clone().tell_clock("producer"));
    background.spawn(replay::serve(bus.clone(), replay::listen(&bus).await?));
    background.spawn(bus.clone().move_later());
    background.spawn(schedules::serve(bus.clone(), schedules::listen(&bus).await?));
    background.spawn(continuation::serve(bus.clone(), continuation::listen(&bus).await?));
    tracing::info!(
        nats = %millpond::bus::without_password(&settings.nats_url),
        listen = %bound.address,
        signing_keys = settings.signer.as_ref().map(|signer| signer.key_ids().join(",")),
        "producer ready"
    );
    let app = Arc::new(http::App::new(bus.clone(), settings.token, metrics, shutdown.clone()));
    background.spawn(send_metrics(app.clone()));
    let mut server = bound.serve(http::router(app), shutdown.clone());
    let result = tokio::select! {
        failed = server.failed() => Err(failed),
        failure = bus.failed() => Err(failure.into()),
        () = shutdown.cancelled() => Ok(()),
    };
    server.close().await;
    background.shutdown().await;
    bus.close().await;
    tracing::info!("producer stopped");
    result
}

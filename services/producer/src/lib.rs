//! The producer service: tasks over HTTP, for programs that do not speak NATS. `http` -> `millpond::client`.
//! `replay` publishes what an operator wants run again, `then` what the end of a job starts.
//! Not here: results, retry rules.

mod config;
mod http;
mod ndjson;
mod program;
mod replay;
mod then;
mod upload;

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use millpond::bus::{Bus, Role};
use millpond::client::Client;
use millpond_service::listen::Listener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Settings};
pub use program::main;

/// How long open requests may take after `shutdown`.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// Serves until `shutdown`.
///
/// # Errors
/// When NATS cannot be reached at the start, or the address is taken.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = millpond::telemetry::Metrics::start();
    let listener = Listener::bind(settings.listen, settings.http_tls).await;
    let listener = listener.with_context(|| format!("cannot listen on {} (--listen)", settings.listen))?;
    let bus = Bus::connect(&settings.nats_url, Role::Producer, "producer", settings.access).await?;
    let bus = bus.with_signer(settings.signer.clone());
    let client = Client::over(bus.clone());
    let mut background = JoinSet::new();
    background.spawn(replay::serve(bus.clone(), replay::listen(&bus).await?));
    background.spawn(then::serve(client, then::listen(&bus).await?));
    tracing::info!(
        nats = %millpond::bus::without_password(&settings.nats_url),
        listen = %axum::serve::Listener::local_addr(&listener)?,
        signing_keys = settings.signer.as_ref().map(|signer| signer.key_ids().join(",")),
        "producer ready"
    );
    let app = http::App::new(bus.clone(), settings.token, metrics, shutdown.clone());
    let serving = axum::serve(listener, http::router(Arc::new(app)));
    let serving = serving.with_graceful_shutdown(shutdown.clone().cancelled_owned());
    let mut serving = JoinSet::from_iter([serving.into_future()]);
    let served = tokio::select! {
        served = serving.join_next() => served,
        () = shutdown.cancelled() => {
            // A client that holds a request open must not keep the process.
            tokio::time::timeout(CLOSE_WITHIN, serving.join_next()).await.ok().flatten()
        }
    };
    serving.shutdown().await;
    background.shutdown().await;
    bus.close().await;
    tracing::info!("producer stopped");
    match served {
        Some(ended) => ended.context("the HTTP server failed")?.context("the HTTP server failed"),
        None => Ok(()),
    }
}

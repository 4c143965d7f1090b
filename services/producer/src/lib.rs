//! The producer service: tasks over HTTP, for programs that do not speak NATS. `http` -> `millpond::client`.
//! `replay` publishes what an operator wants run again, `then` what the end of a job starts.
//! Not here: results, retry rules.

mod config;
mod http;
mod ndjson;
mod replay;
mod then;

use std::sync::Arc;

use anyhow::Context;
use millpond::bus::{Bus, Role};
use millpond::client::Client;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Settings};

/// Serves until `shutdown`.
///
/// # Errors
/// When NATS cannot be reached at the start, or the address is taken.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = millpond::telemetry::metrics();
    let listener = TcpListener::bind(settings.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {} (--listen)", settings.listen))?;
    let bus = Bus::connect(&settings.nats_url, Role::Producer, "producer", settings.connect_timeout).await?;
    let bus = bus.with_signer(settings.signer.clone());
    let client = Client::over(bus.clone());
    let mut background = JoinSet::new();
    background.spawn(replay::serve(bus.clone(), replay::listen(&bus).await?));
    background.spawn(then::serve(client.clone(), then::listen(&bus).await?));
    tracing::info!(
        nats = %millpond::bus::without_password(&settings.nats_url),
        listen = %listener.local_addr()?,
        signing_keys = settings.signer.as_ref().map(|signer| signer.key_ids().join(",")),
        "producer ready"
    );
    let app = http::App { client, bus: bus.clone(), token: settings.token.into(), metrics };
    let serving = axum::serve(listener, http::router(Arc::new(app)));
    let served = serving.with_graceful_shutdown(shutdown.cancelled_owned()).await;
    background.shutdown().await;
    bus.close().await;
    tracing::info!("producer stopped");
    served.context("the HTTP server failed")
}

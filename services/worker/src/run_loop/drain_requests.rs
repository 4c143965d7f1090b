//! Requests of operators on `ctl` that this worker drains.

use millpond::bus::Bus;
use millpond::bus::operate::control::{ControlReply, drain_subject};
use serde_json::value::RawValue;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by `shutdown`, or when an operator asks this worker to drain.
///
/// # Errors
/// When the connection is closed.
pub(crate) async fn drained_on_request(
    bus: &Bus,
    (worker, nonce): (&str, &str),
    shutdown: &CancellationToken,
    background: &mut JoinSet<()>,
) -> anyhow::Result<CancellationToken> {
    // In a group of its own: every process of the name gets the request.
    let mut requests = bus.serve(&drain_subject(worker), nonce).await?;
    let either = shutdown.child_token();
    let drain = either.clone();
    background.spawn(async move {
        while let Some(request) = requests.next().await {
            tracing::info!("an operator asks this worker to drain");
            request.answer(&ControlReply::Ok(RawValue::TRUE.to_owned())).await;
            drain.cancel();
        }
    });
    Ok(either)
}

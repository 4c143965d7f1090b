//! Compares the wire number of the streams with this program's, when a program connects and after each reconnect.
//! A role that may not read the streams (a publisher) is exempt. The clocks are compared as well.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nats::jetstream::{self, context::GetStreamErrorKind};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Connection, Role, server_clock};
use crate::wire::number::{METADATA_WIRE_NUMBER, WireMismatch, check_streams};
use crate::wire::streams::STREAM_TASKS;

/// How long a new connection waits for the number. Without an answer the check goes on in the background.
const CHECK_WITHIN: Duration = Duration::from_secs(2);
/// How often the clocks are compared.
const CLOCK_EVERY: Duration = Duration::from_secs(10);
/// Pause between two checks that were not answered.
const CHECK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The check of one connection, and its result.
pub(super) struct WireCheck {
    found: Arc<Found>,
    _task: JoinSet<()>,
}

#[derive(Default)]
struct Found {
    mismatch: OnceLock<WireMismatch>,
    is_found: CancellationToken,
}

impl WireCheck {
    /// Checks now, and after each reconnect for as long as this lives.
    ///
    /// # Errors
    /// [`WireMismatch`], when the streams are there and of another number.
    pub(super) async fn start(
        (client, js): (&async_nats::Client, &jetstream::Context),
        role: Role,
        connection: watch::Receiver<Connection>,
    ) -> Result<Self, WireMismatch> {
        let (found, mut task) = (Arc::<Found>::default(), JoinSet::new());
        if role.reads_streams() {
            server_clock::correct(client).await;
            let checked = tokio::time::timeout(CHECK_WITHIN, check(js)).await.ok().flatten();
            let is_known = checked.transpose()?.is_some();
            task.spawn(watch_reconnects(js.clone(), connection.clone(), found.clone(), is_known));
            task.spawn(watch_clock(client.clone(), connection));
        }
        Ok(Self { found, _task: task })
    }

    /// What was found after a reconnect; none while the streams are of this program's number.
    pub(super) fn mismatch(&self) -> Option<&WireMismatch> {
        self.found.mismatch.get()
    }

    /// Returns when a mismatch was found.
    pub(super) async fn wait(&self) -> WireMismatch {
        loop {
            self.found.is_found.cancelled().await;
            if let Some(mismatch) = self.mismatch() {
                return mismatch.clone();
            }
        }
    }
}

/// The comparison; none when the stream does not exist yet, or the server does not answer.
async fn check(js: &jetstream::Context) -> Option<Result<(), WireMismatch>> {
    match js.get_stream(STREAM_TASKS).await {
        Ok(stream) => {
            let written = stream.cached_info().config.metadata.get(METADATA_WIRE_NUMBER);
            Some(check_streams(written.map(String::as_str)))
        }
        Err(error) => {
            if !matches!(error.kind(), GetStreamErrorKind::JetStream(_)) {
                tracing::debug!(%error, "the wire number of the streams is not known yet");
            }
            None
        }
    }
}

/// Keeps the time that of the server.
async fn watch_clock(client: async_nats::Client, mut connection: watch::Receiver<Connection>) {
    connection.mark_unchanged();
    loop {
        if let Ok(Err(_)) = tokio::time::timeout(CLOCK_EVERY, connection.changed()).await {
            return;
        }
        if connection.borrow_and_update().up {
            server_clock::correct(&client).await;
        }
    }
}

async fn watch_reconnects(
    js: jetstream::Context,
    mut connection: watch::Receiver<Connection>,
    found: Arc<Found>,
    is_known: bool,
) {
    connection.mark_unchanged();
    let mut is_known = is_known;
    loop {
        if is_known {
            if connection.changed().await.is_err() {
                return;
            }
            is_known = !connection.borrow_and_update().up;
            continue;
        }
        match check(&js).await {
            Some(Ok(())) => is_known = true,
            Some(Err(mismatch)) => {
                tracing::error!("{mismatch}");
                let _ = found.mismatch.set(mismatch);
                found.is_found.cancel();
                return;
            }
            None => tokio::time::sleep(CHECK_AGAIN_AFTER).await,
        }
    }
}

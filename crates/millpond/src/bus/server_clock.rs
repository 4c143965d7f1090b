//! Asks the server for its time. Each answer of its API about a stream has it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;

use crate::clock;
use crate::wire::streams::STREAM_TASKS;

/// An answer that took longer says too little of when the server read its clock.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Clocks that differ by less agree: an answer that is late by half of its time must not move the time back and forth.
const AGREE_WITHIN_MS: u64 = 1_000;

/// The server's time, of any answer of its API.
#[derive(Deserialize)]
struct ServerTime {
    ts: String,
}

/// How far the server's clock is ahead of this machine's, in milliseconds, and how long the answer took; none without one.
pub(super) async fn measure(client: &async_nats::Client) -> Option<(i64, Duration)> {
    let (started, asked_ms) = (Instant::now(), clock::local_ms());
    let answer = client.request(format!("$JS.API.STREAM.INFO.{STREAM_TASKS}"), Bytes::new());
    let answer = tokio::time::timeout(ANSWER_WITHIN, answer).await.ok()?.ok()?;
    let took = started.elapsed();
    let time: ServerTime = serde_json::from_slice(&answer.payload).ok()?;
    let at_ms = time.ts.parse::<jiff::Timestamp>().ok()?.as_millisecond();
    // The server read its clock about half a round trip ago.
    Some((at_ms - asked_ms - i64::try_from(took.as_millis() / 2).ok()?, took))
}

/// Corrects the time of this process by the server's.
pub(super) async fn correct(client: &async_nats::Client) {
    let Some((ahead_ms, _)) = measure(client).await else { return };
    let ahead_ms = if ahead_ms.unsigned_abs() < AGREE_WITHIN_MS { 0 } else { ahead_ms };
    let before = clock::note_server_ahead(ahead_ms);
    if (before == 0) != (ahead_ms == 0) {
        tracing::warn!(
            ahead_ms = -ahead_ms,
            "the clock of this machine and the server's differ (0: no longer); the server's counts"
        );
    }
}

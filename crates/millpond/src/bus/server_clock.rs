//! Asks the server for its time. Each answer of its API about a stream has it. A program without a record, whose clock is off,
//! tells that to the collectors.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::bus::error::BusError;
use crate::bus::{Bus, Subscription};
use crate::clock;
use crate::wire::bounds::{self, Bounded};
use crate::wire::decode::decode;
use crate::wire::streams::STREAM_TASKS;
use crate::wire::subject::EVENTS_CLOCK;

/// An answer that took longer says too little of when the server read its clock.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Bytes of a name that a program tells of itself.
const CLOCK_TEXT_BYTES_MAX: usize = 256;
/// Clocks that differ by less agree: an answer that is late by half of its time must not move the time back and forth.
const AGREE_WITHIN_MS: u64 = 1_000;

/// How often a program tells that its clock is off.
pub const CLOCK_TOLD_EVERY: Duration = Duration::from_secs(10);

/// A program whose clock is off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockOff {
    /// What it is: `producer`.
    pub program: String,
    /// Its host.
    pub host: String,
    /// The id of its process there.
    pub pid: u32,
    /// How far the clock of its machine is ahead of the server's, in milliseconds.
    pub clock_ahead_ms: i64,
}

impl Bounded for ClockOff {
    fn check(&self) -> Result<(), String> {
        let fits = [&self.program, &self.host].iter().all(|text| (1..=CLOCK_TEXT_BYTES_MAX).contains(&text.len()));
        fits.then_some(()).ok_or_else(|| "a name is empty or too long".to_owned())?;
        bounds::time("clock_ahead_ms", self.clock_ahead_ms)
    }
}

/// What programs tell of their clocks.
pub struct ClocksOff(Subscription);

impl ClocksOff {
    /// The next one; what is no such message is skipped. None when the connection is closed for good.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Option<ClockOff> {
        loop {
            if let Ok(report) = decode(&self.0.next().await?.payload) {
                return Some(report);
            }
        }
    }
}

impl Bus {
    /// Tells collectors for ever how far the clock of this machine is off, while it is.
    pub async fn tell_clock(self, program: &str) {
        loop {
            let clock_ahead_ms = clock::local_ahead_ms();
            if clock_ahead_ms != 0 {
                let (program, host) = (program.to_owned(), crate::host());
                let report = ClockOff { program, host, pid: std::process::id(), clock_ahead_ms };
                self.publish_core(EVENTS_CLOCK, serde_json::to_vec(&report).unwrap_or_default().into()).await;
            }
            tokio::time::sleep(CLOCK_TOLD_EVERY).await;
        }
    }

    /// Listens for programs whose clocks are off.
    ///
    /// # Errors
    /// [`BusError`] when the connection is closed.
    pub async fn clocks_off(&self) -> Result<ClocksOff, BusError> {
        Ok(ClocksOff(self.listen(EVENTS_CLOCK).await?))
    }
}

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

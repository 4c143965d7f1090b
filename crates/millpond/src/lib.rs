//! The words of millpond and its bus: what a producer program, a worker or a collector depends on.
//!
//! The files of this folder are the words (`task`, `batch`, `outcome`, `job`, `retry`, …): no I/O, no clock, no randomness.
//! `wire` has the names on the wire, `bus` is the only place that names the NATS client, and `client` is what a producer
//! program uses.

pub mod batch;
pub mod bus;
pub mod call;
pub mod chain;
pub mod client;
pub mod clock;
pub mod config;
pub mod cron;
pub mod dead_letter;
pub mod failpoint;
pub mod job;
pub mod limits;
pub mod outcome;
pub mod payload;
pub mod retry;
pub mod schedule;
pub mod shutdown;
pub mod signature;
pub mod task;
pub mod telemetry;
pub mod visible;
pub mod wire;
pub mod worker_record;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
#[path = "../../../tests/storm.rs"]
mod storm;

pub use clock::now_ms;
use rand::RngExt;

/// The name of this machine, for people who look for a program.
#[must_use]
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
}

/// 16 random characters of `[a-z2-7]`: a nonce, an epoch, a job name. 80 bits.
#[must_use]
pub fn random_token() -> String {
    let bytes: [u8; 10] = rand::rng().random();
    data_encoding::BASE32_NOPAD.encode(&bytes).to_ascii_lowercase()
}

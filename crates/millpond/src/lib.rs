//! The client of [millpond](https://github.com/millpond/millpond), a worker pool over NATS JetStream: a program publishes
//! tasks, waits for their results, calls handlers. Handlers in Rust are for the crate `millpond-worker`.
#![doc = include_str!("quick_start.md")]
#![warn(missing_docs)]

pub mod batch;
#[cfg_attr(not(feature = "services"), doc(hidden))]
pub mod bus;
pub mod call;
pub mod chain;
pub mod client;
pub mod clock;
pub mod config;
pub mod cron;
pub mod dead_letter;
#[cfg_attr(not(feature = "services"), doc(hidden))]
pub mod failpoint;
pub mod job;
#[cfg_attr(not(feature = "services"), doc(hidden))]
pub mod later;
pub mod limits;
pub mod outcome;
pub mod payload;
pub mod retry;
pub mod schedule;
#[cfg(feature = "services")]
pub mod shutdown;
pub mod signature;
pub mod task;
#[cfg_attr(not(feature = "services"), doc(hidden))]
pub mod telemetry;
pub mod visible;
#[cfg_attr(not(feature = "services"), doc(hidden))]
pub mod wire;
#[cfg_attr(not(feature = "services"), doc(hidden))]
pub mod worker_record;

#[cfg(feature = "services")]
#[cfg(test)]
mod fuzz;
#[cfg(feature = "services")]
#[cfg(test)]
#[path = "../../../tests/storm.rs"]
mod storm;

pub use client::{Client, NewTask};
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

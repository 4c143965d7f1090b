//! The time. Every process that can asks the server for it (`bus/server_clock.rs`): where the clock of this machine is off by a
//! second or more, it is corrected here, so that delays, retries and expiry mean the same to all.

use std::sync::atomic::{AtomicI64, Ordering};

/// How far the server's clock is ahead of this machine's, in milliseconds; 0 while they agree or it is not known. One for the
/// process: it talks to one cluster.
static SERVER_AHEAD_MS: AtomicI64 = AtomicI64::new(0);

/// Now by the server's clock, as Unix time in milliseconds.
#[must_use]
pub fn now_ms() -> i64 {
    local_ms().saturating_add(SERVER_AHEAD_MS.load(Ordering::Relaxed))
}

/// Now by the clock of this machine, as Unix time in milliseconds.
#[must_use]
pub fn local_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// How far the clock of this machine is ahead of the server's, in milliseconds; negative when it is behind.
#[must_use]
pub fn local_ahead_ms() -> i64 {
    SERVER_AHEAD_MS.load(Ordering::Relaxed).saturating_neg()
}

/// Notes how far the server's clock is ahead; returns what was known before.
pub(crate) fn note_server_ahead(ms: i64) -> i64 {
    SERVER_AHEAD_MS.swap(ms, Ordering::Relaxed)
}

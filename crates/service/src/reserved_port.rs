//! A free port for a program that is about to start: for `up --ports auto`, and for tests.

use std::fs::{self, File};
use std::net::TcpListener;

use anyhow::{Context, bail};
use rand::RngExt;

/// Where free ports are chosen from: below those that the kernel gives to outgoing connections.
const FREE_PORTS: std::ops::Range<u16> = 20_000..30_000;
/// How many of them are tried before giving up.
const TRIES_MAX: usize = 1000;

/// A port that nobody listens on. No other `up` and no test is given it while this value lives: a locked file says so,
/// because the port itself is free until the program that is started for it listens.
#[derive(Debug)]
pub struct ReservedPort {
    /// The port.
    pub port: u16,
    _lock: File,
}

impl ReservedPort {
    /// Reserves one.
    ///
    /// # Errors
    /// When the lock cannot be written, or no port is free.
    pub fn take() -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join("millpond-ports");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for _ in 0..TRIES_MAX {
            let port = rand::rng().random_range(FREE_PORTS);
            let path = dir.join(port.to_string());
            let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return Ok(Self { port, _lock: lock });
            }
        }
        bail!("no port of 127.0.0.1 is free between {} and {}", FREE_PORTS.start, FREE_PORTS.end)
    }
}

//! Command-line groups shared by the services and the CLI. What is typed here is checked once, at the start.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::signature::{Signer, SigningKeyError};

/// Parses a duration as a person writes it: `30s`, `5m`, `1h30m`.
///
/// # Errors
/// A text that says what is wrong.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}; write a duration such as 30s or 5m"))
}

/// Parses a size as a person writes it: `512`, `256KiB`, `16MiB`, `4GiB`.
///
/// # Errors
/// A text that says what is wrong.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        unit => return Err(format!("unknown unit {unit:?}; write a size such as 512, 256KiB, 16MiB or 4GiB")),
    };
    let number: u64 = digits.trim().parse().map_err(|_| format!("{text:?} is not a size such as 256KiB"))?;
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"))
}

/// How long to try to reach NATS.
#[derive(Args, Debug, Clone)]
pub struct ConnectArgs {
    /// How long to try to reach NATS at the start before giving up with an error; once connected, a service
    /// reconnects for ever. Raise it where services start before their server.
    #[arg(long, env = "MILLPOND_CONNECT_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub connect_timeout: Duration,
}

/// Text that is never shown: not in logs, not in errors.
#[derive(Clone)]
pub struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// Whether tasks are signed.
#[derive(Args, Debug, Clone, Default)]
pub struct SigningArgs {
    /// Keys that sign tasks, `new[,old]`, 32 characters or more each: the first signs, any is believed. A worker with keys
    /// runs only what is signed with one of them; all that publishes needs them too. Better in the environment than here.
    #[arg(long, env = "MILLPOND_SIGNING_KEY", hide_env_values = true)]
    pub signing_key: Option<Secret>,
}

impl SigningArgs {
    /// The keys; none when there are none.
    ///
    /// # Errors
    /// [`SigningKeyError`] when one does not fit; its text shows none.
    pub fn signer(&self) -> Result<Option<Signer>, SigningKeyError> {
        let given = self.signing_key.as_ref().filter(|keys| !keys.0.trim().is_empty());
        given.map(|keys| Signer::new(&keys.0)).transpose()
    }
}

/// How logs look.
#[derive(Args, Debug, Clone)]
pub struct LogArgs {
    /// Which log lines are written, as tracing-subscriber's EnvFilter: `info`, `debug`, `warn,millpond=debug`.
    #[arg(long, env = "MILLPOND_LOG", default_value = "info", global = true)]
    pub log: String,
    /// Log lines as JSON (one object a line) instead of text, always on standard error.
    #[arg(long, env = "MILLPOND_LOG_JSON", default_value_t = false, global = true)]
    pub log_json: bool,
    /// Also write the log lines to this file; at 64 MiB it is put aside as FILE.1, and five such are kept.
    #[arg(long, env = "MILLPOND_LOG_FILE", global = true)]
    pub log_file: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<u64>) {
        assert_eq!(bytes(text).ok(), expected, "{text}");
    }

    #[test]
    fn sizes() {
        check("512", Some(512));
        check("256KiB", Some(262_144));
        check("4GiB", Some(4 << 30));
        check("1MB", None);
        check("", None);
        check("99999999999GiB", None);
    }
}

//! The built-in kind `fail`: it fails in the way that its arguments name, for examples and tests.

use millpond::outcome::Failure;
use serde::Deserialize;

use crate::call::{Call, Reply, reply};

/// `{"how": "error"}`; a bare string is the message of an error.
#[derive(Deserialize)]
#[serde(untagged)]
enum FailArgs {
    Message(String),
    Full {
        #[serde(default)]
        how: FailureMode,
        #[serde(default)]
        message: Option<String>,
        /// The first attempt that succeeds.
        #[serde(default)]
        until: Option<u32>,
    },
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum FailureMode {
    /// An error that is retried.
    #[default]
    Error,
    /// An error that is not retried.
    Fatal,
    /// A panic.
    Panic,
    /// The whole worker process ends at once.
    Exit,
    /// It never ends.
    Hang,
    /// It does not fail.
    Never,
}

/// Fails, or answers with the number of the attempt.
pub(super) async fn fail(call: Call) -> Reply {
    let (how, message, until) = match call.args()? {
        FailArgs::Message(message) => (FailureMode::Error, Some(message), None),
        FailArgs::Full { how, message, until } => (how, message, until),
    };
    if until.is_some_and(|until| call.attempt >= until) {
        return reply(&call.attempt);
    }
    let message = message.unwrap_or_else(|| "asked to fail".to_owned());
    match how {
        FailureMode::Error => Err(Failure::new("error", message)),
        FailureMode::Fatal => Err(Failure::fatal("fatal", message)),
        #[expect(clippy::panic, reason = "the arguments ask for a panic: it shows what becomes of one")]
        FailureMode::Panic => std::panic::panic_any(message),
        FailureMode::Exit => std::process::exit(13),
        FailureMode::Hang => std::future::pending().await,
        FailureMode::Never => reply(&call.attempt),
    }
}

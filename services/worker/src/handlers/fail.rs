//! `fail`: fails as asked, for examples and tests.

use millpond::outcome::Failure;
use serde::Deserialize;

use crate::call::{Call, Reply, reply};

/// `{"how": "error"}` and so on; a bare string is the message of an error.
#[derive(Deserialize)]
#[serde(untagged)]
enum Args {
    Message(String),
    Full {
        #[serde(default)]
        how: How,
        #[serde(default)]
        message: Option<String>,
        /// Succeeds from this attempt on.
        #[serde(default)]
        until: Option<u32>,
    },
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum How {
    /// An error that may be tried again.
    #[default]
    Error,
    /// An error that may not.
    Fatal,
    /// A panic.
    Panic,
    /// The whole worker process ends at once.
    Exit,
    /// Never ends.
    Hang,
    /// No failure at all.
    Never,
}

/// Fails; answers with the attempt where it does not.
pub(super) async fn fail(call: Call) -> Reply {
    let (how, message, until) = match call.args()? {
        Args::Message(message) => (How::Error, Some(message), None),
        Args::Full { how, message, until } => (how, message, until),
    };
    if until.is_some_and(|until| call.attempt >= until) {
        return reply(&call.attempt);
    }
    let message = message.unwrap_or_else(|| "asked to fail".to_owned());
    match how {
        How::Error => Err(Failure::new("error", message)),
        How::Fatal => Err(Failure::fatal("fatal", message)),
        #[expect(clippy::panic, reason = "asked for: it shows what becomes of those that are not")]
        How::Panic => std::panic::panic_any(message),
        How::Exit => std::process::exit(13),
        How::Hang => std::future::pending().await,
        How::Never => reply(&call.attempt),
    }
}

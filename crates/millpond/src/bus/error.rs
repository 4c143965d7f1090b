//! Why the server did not do what the bus requested. Publishes have an error of their own (`publish::PublishError`).

use std::error::Error;

use crate::bus::ConnectionFailure;
use crate::wire::number::WireMismatch;
use crate::wire::server_errors::is_without_leader;

/// Error code of a server that has no stream of the name.
const STREAM_NOT_FOUND: u64 = 10059;
/// Error code of a server whose stream has as many consumers as it may.
const CONSUMERS_LIMIT: u64 = 10026;
/// Error code of a server that has no consumer of the name.
const CONSUMER_NOT_FOUND: u64 = 10014;

/// Why a request to the server has no result.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// A stream, bucket or consumer that `setup` makes does not exist.
    #[error("{what} is not there: has `setup` run? ({reason})")]
    Missing {
        /// What was requested.
        what: String,
        /// The words of the server.
        reason: String,
    },
    /// No answer came in time, or the connection is lost. A user without the permission gets no answer either.
    #[error(
        "no answer from nats-server to {what}: {reason}; is it up, do its streams have a leader, and does it permit this user to do that?"
    )]
    NoAnswer {
        /// What was requested.
        what: String,
        /// The words of the client.
        reason: String,
    },
    /// The servers answer that they have no leader for it: one is being elected, or too few nodes are up.
    #[error("nats-server cannot do it now, because one is being elected or too few nodes are up: {what}: {reason}")]
    NotNow {
        /// What was requested.
        what: String,
        /// The words of the server.
        reason: String,
    },
    /// The server answered that it will not do it.
    #[error("nats-server refused {what}: {reason}")]
    Refused {
        /// What was requested.
        what: String,
        /// The words of the server.
        reason: String,
    },
    /// The answer is not what this program understands.
    #[error("the answer of nats-server to {what} cannot be read: {reason}")]
    Unreadable {
        /// What was requested.
        what: String,
        /// The words of the parser.
        reason: String,
    },
    /// The streams, or a live worker, are of another version.
    #[error(transparent)]
    Wire(#[from] WireMismatch),
}

impl From<ConnectionFailure> for BusError {
    fn from(failure: ConnectionFailure) -> Self {
        match failure {
            ConnectionFailure::Wire(mismatch) => Self::Wire(mismatch),
            ConnectionFailure::Died => Self::closed("what was requested"),
        }
    }
}

impl BusError {
    /// Whether the stream has as many consumers as it may: there is room once one of them is gone.
    pub(in crate::bus) fn is_consumers_limit(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if error_code(reason) == Some(CONSUMERS_LIMIT))
    }

    /// The error of a request for `what`, by what the client's error was caused by.
    pub(in crate::bus) fn new(what: &str, error: &(dyn Error + 'static)) -> Self {
        let (what, reason) = (what.to_owned(), describe(error));
        match error_code(&reason) {
            Some(STREAM_NOT_FOUND | CONSUMER_NOT_FOUND) => return Self::Missing { what, reason },
            Some(code) if is_without_leader(code) => return Self::NotNow { what, reason },
            Some(_) => return Self::Refused { what, reason },
            None => {}
        }
        let mut cause = Some(error);
        while let Some(error) = cause {
            if error.is::<serde_json::Error>() {
                return Self::Unreadable { what, reason };
            }
            cause = error.source();
        }
        // What is left is a timeout, or one of the client's many errors for "the connection is gone".
        Self::NoAnswer { what, reason }
    }

    /// The server answered with a status that is no success.
    pub(in crate::bus) fn refused(what: &str, reason: impl Into<String>) -> Self {
        Self::Refused { what: what.to_owned(), reason: reason.into() }
    }

    /// The subscription ended: the connection is closed.
    pub(in crate::bus) fn closed(what: &str) -> Self {
        Self::NoAnswer { what: what.to_owned(), reason: "the connection is closed".to_owned() }
    }

    /// Whether the same request may succeed later without anybody mending anything.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::NoAnswer { .. } | Self::NotNow { .. })
    }
}

/// An error with its causes, in one line.
pub(in crate::bus) fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}

/// The number in `(code 404, error code 10059)`. The client has it in a different place of each of its errors, and in
/// the text of all of them.
fn error_code(reason: &str) -> Option<u64> {
    reason.split("error code ").nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reason: &'static str, is_expected: impl Fn(&BusError) -> bool) {
        let error = BusError::new("use of stream TASKS", &std::io::Error::other(reason));
        assert!(is_expected(&error) && error.to_string().contains(reason), "{error:?}");
    }

    #[test]
    fn errors_are_told_apart_by_the_code_of_the_server() {
        let missing = |e: &BusError| matches!(e, BusError::Missing { .. }) && !e.is_passing();
        check("jetstream error: stream not found (code 404, error code 10059)", missing);
        check("consumer not found (code 404, error code 10014)", missing);
        check("maximum bytes exceeded (code 400, error code 10047)", |e| matches!(e, BusError::Refused { .. }));
        check("timed out", BusError::is_passing);
        check("JetStream system temporarily unavailable (code 503, error code 10008)", BusError::is_passing);
        check("maximum consumers limit reached (code 400, error code 10026)", BusError::is_consumers_limit);
    }
}

//! What a handler is given, for a task or a call alike, and what it answers. No NATS, no storage.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millpond::outcome::Failure;
use millpond::payload::without_mark;
use millpond::telemetry::TraceContext;
use millpond::visible::without_type_names;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

/// Largest arguments that are decoded from a file, in bytes; a handler reads a larger file itself.
pub const ARGUMENTS_DECODED_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Bytes of a byte order mark in UTF-8.
const MARK_BYTES: usize = 3;

/// What a handler returns: a JSON value, or why there is none.
pub type Reply = Result<Box<RawValue>, Failure>;

/// One task or call as its handler sees it.
#[derive(Debug, Clone)]
pub struct Call {
    /// Id of the task, or `<original id>/<i>` of an item of a batch.
    pub id: String,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The arguments as published; use [`Call::args`] where they are JSON. Empty when they are in a file.
    pub payload: Bytes,
    /// A file with the arguments, when they are larger than 8 MiB. Read it as a stream; it is removed when
    /// the attempt has ended. [`Call::args`] reads it too, up to
    /// [`ARGUMENTS_DECODED_BYTES_MAX`].
    pub file: Option<PathBuf>,
    /// The span of the attempt: spans that the handler starts elsewhere belong below it.
    pub trace: Option<TraceContext>,
    /// Cancelled when nobody waits for the answer any more: after the timeout, at the end of the drain, or when the task
    /// was cancelled.
    pub stop: CancellationToken,
    /// How long the attempt may take, from when its handler is called; none where it has all the time it needs.
    pub timeout: Option<Duration>,
    /// Where the handler tells how far it is.
    pub(crate) progress: ProgressSink,
}

/// Takes a share and a note.
type TellProgress = dyn Fn(f64, &str) + Send + Sync;

/// Where a handler tells how far it is: to the worker, from a child; else in the log.
#[derive(Clone, Default)]
pub(crate) struct ProgressSink(Option<Arc<TellProgress>>);

impl ProgressSink {
    pub(crate) fn new(tell: impl Fn(f64, &str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    pub(crate) fn tell(&self, share: f64, note: &str) {
        match &self.0 {
            Some(tell) => tell(share, note),
            None => tracing::info!(progress = share, note, "progress"),
        }
    }
}

impl fmt::Debug for ProgressSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "to the worker" } else { "in the log" })
    }
}

impl Call {
    /// The arguments, decoded from JSON.
    ///
    /// # Errors
    /// A failure `bad_arguments` that is not tried again.
    pub fn args<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let Some(path) = &self.file else { return self.borrowed_args() };
        let file = File::open(path).map_err(|e| Failure::new("error", format!("the arguments cannot be read: {e}")))?;
        let size = file.metadata().map_or(0, |known| known.len());
        if size > ARGUMENTS_DECODED_BYTES_MAX {
            let text = format!(
                "arguments of {size} bytes: at most {ARGUMENTS_DECODED_BYTES_MAX} are decoded in memory; a handler may \
                 read the file itself"
            );
            return Err(Failure::fatal("bad_arguments", text));
        }
        let mut reader = BufReader::new(file);
        // A byte order mark at the start belongs to no value.
        let marked = reader.fill_buf().is_ok_and(|start| without_mark(start).len() < start.len());
        reader.consume(if marked { MARK_BYTES } else { 0 });
        serde_json::from_reader(reader).map_err(|error: serde_json::Error| {
            let why = error.to_string();
            let text = format!("arguments of {size} bytes do not fit: {}", without_type_names(&why));
            Failure::fatal("bad_arguments", text)
        })
    }

    /// The arguments in the payload, decoded from JSON and borrowing from it.
    pub(crate) fn borrowed_args<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        serde_json::from_slice(without_mark(&self.payload)).map_err(|error| {
            let start: String = String::from_utf8_lossy(self.payload.get(..80).unwrap_or(&self.payload)).into();
            let why = error.to_string();
            Failure::fatal("bad_arguments", format!("arguments {start:?} do not fit: {}", without_type_names(&why)))
        })
    }

    /// The first attempt of a task, with its arguments in memory and no timeout yet.
    pub(crate) fn new(id: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self {
            id: id.into(),
            attempt: 1,
            payload: payload.into(),
            file: None,
            trace: None,
            stop: CancellationToken::new(),
            timeout: None,
            progress: ProgressSink::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn for_test(id: &str, payload: &str) -> Self {
        Self::new(id, payload.to_owned())
    }
}

/// A value as a handler's reply.
///
/// # Errors
/// A failure `bad_result` when the value cannot be JSON.
pub fn reply<T: Serialize>(value: &T) -> Reply {
    serde_json::value::to_raw_value(value).map_err(|e| Failure::fatal("bad_result", e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_in_a_file_are_decoded_up_to_a_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let call = Call { file: Some(file.path().to_owned()), ..Call::for_test("t", "") };
        std::fs::write(file.path(), "[1, 2]").unwrap();
        assert_eq!(call.args::<Vec<u8>>().unwrap(), [1, 2]);
        std::fs::write(file.path(), "\u{feff}[1, 2]").unwrap();
        assert_eq!(call.args::<Vec<u8>>().unwrap(), [1, 2]);
        assert_eq!(Call::for_test("t", "\u{feff}7").args::<u8>().unwrap(), 7);
        std::fs::write(file.path(), "[1, ").unwrap();
        assert_eq!(call.args::<Vec<u8>>().unwrap_err().kind, "bad_arguments");
        file.as_file().set_len(ARGUMENTS_DECODED_BYTES_MAX + 1).unwrap();
        let failure = call.args::<Vec<u8>>().unwrap_err();
        assert!(failure.message.contains("may read the file") && !failure.retry, "{failure:?}");
    }
}

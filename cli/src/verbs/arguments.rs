//! The arguments of a task as typed: one JSON value on the command line or on standard input, or the bytes of a file.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use bytes::Bytes;
use millpond::bus::publish::RetryDeadline;
use millpond::client::{Client, NewTask};
use millpond::limits::CLAIM_CHECK_BYTES;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The arguments as typed; `-` reads standard input.
///
/// # Errors
/// When they are not JSON, or standard input cannot be read.
pub(super) fn read(typed: &str) -> anyhow::Result<Box<RawValue>> {
    if typed != "-" {
        return parse(typed);
    }
    let mut text = String::new();
    std::io::stdin().lock().read_to_string(&mut text).context("cannot read the arguments")?;
    parse(text.trim())
}

/// A text as JSON; nothing of it is changed.
///
/// # Errors
/// When it is not JSON; the text says why, and what would be.
pub(super) fn parse(text: &str) -> anyhow::Result<Box<RawValue>> {
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(error) => {
            bail!("arguments {text:?} are not JSON ({error}); a string needs quotes of its own: '\"text\"'")
        }
    }
}

/// The bytes of a JSON value, for a message.
pub(super) fn bytes(value: Box<RawValue>) -> Bytes {
    Bytes::from(String::from(Box::<str>::from(value)))
}

/// Gives a task the bytes of a file, or of standard input for `-`, as its arguments. They go into the message when they
/// are JSON and small, and into the store otherwise; a handler gets both in one way.
///
/// # Errors
/// When the file cannot be read, or its bytes cannot be stored.
pub(super) async fn attach(
    task: &mut NewTask,
    path: &Path,
    client: &Client,
    deadline: RetryDeadline,
) -> anyhow::Result<()> {
    let mut from: Box<dyn AsyncRead + Unpin + Send> = match path.to_str() {
        Some("-") => Box::new(tokio::io::stdin()),
        _ => Box::new(tokio::fs::File::open(path).await.with_context(|| format!("cannot open {}", path.display()))?),
    };
    let mut start = Vec::new();
    let read = (&mut from).take(CLAIM_CHECK_BYTES as u64 + 1).read_to_end(&mut start).await;
    read.with_context(|| format!("cannot read {}", path.display()))?;
    if start.len() <= CLAIM_CHECK_BYTES && serde_json::from_slice::<&RawValue>(&start).is_ok() {
        task.payload = Bytes::from(start);
    } else {
        task.stored = Some(client.put_payload(&mut AsyncReadExt::chain(start.as_slice(), from), deadline).await?);
    }
    Ok(())
}

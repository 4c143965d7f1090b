//! The arguments of a task as typed: one JSON value on the command line or on standard input, or the bytes of a file.

use std::io::{IsTerminal, Read};
use std::path::Path;

use bytes::Bytes;
use millpond::bus::publish::RetryDeadline;
use millpond::client::{Client, NewTask};
use millpond::limits::CLAIM_CHECK_BYTES;
use millpond::payload::without_mark;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::exit;
use crate::output::short;

/// The byte order mark that some programs write at the start of a file.
pub(super) const MARK: char = '\u{feff}';
/// How many characters of arguments that are no JSON an error shows.
const SHOWN_CHARS_MAX: usize = 200;

/// Tells a person at a terminal that standard input is read: a verb that waits for it looks as if it hung.
pub(super) fn tell_terminal(what: &str) {
    if std::io::stdin().is_terminal() {
        note!("millpond: reading {what} from the terminal; Ctrl-D ends them");
    }
}

/// Opens a file that was named on the command line.
///
/// # Errors
/// When it cannot be opened.
pub(super) async fn open(path: &Path) -> anyhow::Result<tokio::fs::File> {
    let file = tokio::fs::File::open(path).await;
    file.map_err(|error| exit::usage(format!("cannot open {}: {error}", path.display())))
}

/// The arguments as typed; `-` reads standard input.
///
/// # Errors
/// When they are not JSON, or standard input cannot be read.
pub(super) fn read(typed: &str) -> anyhow::Result<Box<RawValue>> {
    if typed != "-" {
        return parse(typed);
    }
    tell_terminal("the arguments, one JSON value");
    let mut text = String::new();
    let read = std::io::stdin().lock().read_to_string(&mut text);
    read.map_err(|error| exit::usage(format!("cannot read the arguments: {error}")))?;
    parse(&text)
}

/// A text as JSON; nothing of it is changed. Blanks around it, and a byte order mark at its start, belong to no value.
///
/// # Errors
/// When it is not JSON; the text says why, and what would be.
pub(super) fn parse(text: &str) -> anyhow::Result<Box<RawValue>> {
    match serde_json::from_str(text.strip_prefix(MARK).unwrap_or(text)) {
        Ok(value) => Ok(value),
        Err(error) => {
            let shown = short(text, SHOWN_CHARS_MAX);
            Err(exit::usage(format!(
                "arguments {shown:?} are not JSON ({error}); a string needs quotes of its own: '\"text\"'"
            )))
        }
    }
}

/// The bytes of a JSON value, for a message.
pub(super) fn bytes(value: Box<RawValue>) -> Bytes {
    Bytes::from(String::from(Box::<str>::from(value)))
}

/// The source of arguments of any size: a file, or standard input for `-`.
pub(super) struct ArgumentSource {
    from: Box<dyn AsyncRead + Unpin + Send>,
    name: String,
}

impl ArgumentSource {
    /// Opens it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) async fn open(path: &Path) -> anyhow::Result<Self> {
        let from: Box<dyn AsyncRead + Unpin + Send> = match path.to_str() {
            Some("-") => {
                tell_terminal("the arguments");
                Box::new(tokio::io::stdin())
            }
            _ => Box::new(open(path).await?),
        };
        Ok(Self { from, name: path.display().to_string() })
    }

    /// Gives a task these bytes as its arguments. They go into the message when they are JSON and small, and into the store
    /// otherwise; a handler gets both in one way.
    ///
    /// # Errors
    /// When they cannot be read, or stored.
    pub(super) async fn attach(
        mut self,
        task: &mut NewTask,
        client: &Client,
        deadline: RetryDeadline,
    ) -> anyhow::Result<()> {
        let mut start = Vec::new();
        let read = (&mut self.from).take(CLAIM_CHECK_BYTES as u64 + 1).read_to_end(&mut start).await;
        read.map_err(|error| exit::usage(format!("cannot read {}: {error}", self.name)))?;
        let json = without_mark(&start);
        if start.len() <= CLAIM_CHECK_BYTES && serde_json::from_slice::<&RawValue>(json).is_ok() {
            task.payload = Bytes::copy_from_slice(json);
        } else {
            let mut all = AsyncReadExt::chain(start.as_slice(), self.from);
            task.stored = Some(client.put_payload(&mut all, deadline).await?);
        }
        Ok(())
    }
}

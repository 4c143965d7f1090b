//! `shared get|set|cas|rm|ls|watch`: keys that programs share.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use bytes::Bytes;
use clap::Subcommand;
use data_encoding::BASE64;
use millpond::bus::shared_state::{SharedEntry, SharedError, SharedState};
use millpond::config::ConnectArgs;
use millpond::visible::visible;
use serde_json::{Value, json};

use super::interrupt::Interrupt;
use crate::cluster_env::ClusterEnv;
use crate::exit;
use crate::output::{json_line, output};

/// `shared`.
#[derive(clap::Args, Debug)]
pub struct SharedArgs {
    #[command(subcommand)]
    command: SharedCommand,
    /// Print JSON objects with key, value and revision. A value that is no text is {"base64":"…"}.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// What to do with shared keys.
#[derive(Subcommand, Debug)]
pub enum SharedCommand {
    /// Print the value of a key. The exit code is 1 when it has none.
    Get {
        /// The key.
        key: String,
    },
    /// Write a value regardless of the old one, and print the new revision.
    Set {
        /// The key.
        key: String,
        /// The value to write.
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Compare and set: write a value only if the key is as expected. The exit code is 1 when it is not.
    Cas {
        /// The key.
        key: String,
        /// The value to write.
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// Revision that the key must have; 0 means that it must have no value.
        #[arg(long, required_unless_present = "expect", conflicts_with = "expect")]
        revision: Option<u64>,
        /// Value that the key must have.
        #[arg(long, allow_hyphen_values = true)]
        expect: Option<String>,
    },
    /// Remove a key.
    Rm {
        /// The key.
        key: String,
    },
    /// List keys.
    Ls,
    /// Print the keys that begin with a prefix, and then each change, until Ctrl-C.
    Watch {
        /// How the keys begin. Default: all keys.
        #[arg(default_value = "")]
        prefix: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When NATS cannot be reached, or refuses.
pub async fn run(args: SharedArgs, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let client = env.client("shared", args.connect.check()?).await?;
    let done = act(&client.shared().await?, args.command, args.json).await;
    client.close().await;
    match done {
        Err(error) if matches!(error.downcast_ref(), Some(SharedError::Conflict { .. })) => {
            note!("millpond: {error}");
            Ok(exit::TASK_FAILED.into())
        }
        done => done,
    }
}

async fn act(shared: &SharedState, command: SharedCommand, json: bool) -> anyhow::Result<ExitCode> {
    match command {
        SharedCommand::Get { key } => match shared.get(&key).await? {
            Some(entry) => print(&key, &entry, json)?,
            None => {
                note!("millpond: key {key} has no value; `millpond shared ls` lists keys");
                return Ok(exit::TASK_FAILED.into());
            }
        },
        SharedCommand::Set { key, value } => {
            print_written(&key, &value, shared.set(&key, Bytes::from(value.clone())).await?, json)?;
        }
        SharedCommand::Cas { key, value, revision, expect } => {
            let expected = match (revision, expect) {
                (Some(revision), _) => revision,
                (None, expect) => match shared.get(&key).await? {
                    Some(entry) if expect.as_deref().map(str::as_bytes) == Some(&*entry.value) => entry.revision,
                    other => {
                        let is = other.map_or_else(|| "nothing".to_owned(), |e| text(&e.value).into_owned());
                        note!("millpond: key {key} has {is}, not what was expected");
                        return Ok(exit::TASK_FAILED.into());
                    }
                },
            };
            let revision = shared.compare_and_set(&key, Bytes::from(value.clone()), expected).await?;
            print_written(&key, &value, revision, json)?;
        }
        SharedCommand::Rm { key } => shared.remove(&key).await?,
        SharedCommand::Ls => {
            for key in shared.keys().await? {
                if json {
                    json_line(&json!({ "key": key }))?;
                } else {
                    writeln!(output(), "{}", visible(&key))?;
                }
            }
        }
        SharedCommand::Watch { prefix } => watch(shared, &prefix, json).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn watch(shared: &SharedState, prefix: &str, json: bool) -> anyhow::Result<()> {
    let (mut changes, interrupt) = (shared.watch(), Interrupt::listen()?);
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            () = interrupt.pressed() => return Ok(()),
        };
        if !change.key.starts_with(prefix) {
            continue;
        }
        if json {
            json_line(&json!({ "key": change.key, "value": change.value.as_deref().map(json_value) }))?;
        } else {
            let (mut out, key) = (output(), visible(&change.key));
            match change.value {
                Some(value) => writeln!(out, "{key}\t{}", visible(&text(&value)))?,
                None => writeln!(out, "{key}\tremoved")?,
            }
        }
    }
}

/// A value as text; what is none as `{"base64":"…"}`.
fn text(value: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(value).map_or_else(|_| json_value(value).to_string().into(), Cow::Borrowed)
}

fn json_value(value: &[u8]) -> Value {
    std::str::from_utf8(value).map_or_else(|_| json!({ "base64": BASE64.encode(value) }), Value::from)
}

fn print(key: &str, entry: &SharedEntry, json: bool) -> anyhow::Result<()> {
    if json {
        let value = json_value(&entry.value);
        return json_line(&json!({ "key": key, "value": value, "revision": entry.revision }));
    }
    if std::io::stdout().is_terminal() {
        return Ok(writeln!(output(), "{}", visible(&text(&entry.value)))?);
    }
    Ok(output().write_all(&[&*entry.value, b"\n"].concat())?)
}

fn print_written(key: &str, value: &str, revision: u64, json: bool) -> anyhow::Result<()> {
    if json {
        return json_line(&json!({ "key": key, "value": value, "revision": revision }));
    }
    Ok(writeln!(output(), "{revision}")?)
}

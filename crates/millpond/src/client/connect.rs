//! How a program connects: by a URL, or by the settings of its environment, which are those of the command line.

use std::time::Duration;

use super::Client;
use super::errors::FromEnvError;
use crate::bus::{Bus, ConnectError, Role};
use crate::config::{ConnectArgs, ConnectSettings, NATS_URL, SigningArgs, variable};

/// How long a connection is tried where nothing is said.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

impl Client {
    /// Connects to NATS, `nats://client:PASSWORD@HOST:4222` (`tls://` for TLS; several with commas), and tries for ten seconds.
    /// Once connected, it reconnects by itself for as long as the program lives.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = millpond::Client::connect("nats://client:secret@127.0.0.1:4222").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ConnectError`], with the address and never the password.
    ///
    /// # Cancel safety
    /// Safe: a connection that is begun is closed.
    pub async fn connect(url: &str) -> Result<Self, ConnectError> {
        Self::connect_with(url, &program(), CONNECT_WITHIN).await
    }

    /// The same with a name for the program, which `nats server report connections` shows, and with more settings: a password
    /// or credentials from a file, certificates, or a [`Duration`] for which it is tried.
    ///
    /// # Errors
    /// [`ConnectError`].
    ///
    /// # Cancel safety
    /// Safe: a connection that is begun is closed.
    pub async fn connect_with(url: &str, name: &str, access: impl Into<ConnectSettings>) -> Result<Self, ConnectError> {
        Ok(Self::over(Bus::connect(url, Role::Client, name, access).await?))
    }

    /// Connects with the settings of the environment: `MILLPOND_NATS_URL`, and where they are set
    /// `MILLPOND_NATS_PASSWORD_FILE`, `MILLPOND_NATS_CREDS` (with the feature `creds`), `MILLPOND_CONNECT_TIMEOUT`,
    /// `MILLPOND_TLS_CA`, `MILLPOND_TLS_CERT`, `MILLPOND_TLS_KEY`, `MILLPOND_SIGNING_KEY` and `MILLPOND_SIGNING_KEY_FILE`. `millpond up -- PROGRAM` runs a program with them, and
    /// `millpond env` prints them.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = millpond::Client::from_env().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`FromEnvError`] names the variable that is missing or wrong; [`ConnectError`] is one of its kinds.
    ///
    /// # Cancel safety
    /// Safe: a connection that is begun is closed.
    pub async fn from_env() -> Result<Self, FromEnvError> {
        let url = variable(NATS_URL).ok_or(FromEnvError::NotSet)?;
        let access = ConnectArgs::from_env().map_err(|reason| FromEnvError::Timeout { reason })?.check()?;
        let signer = SigningArgs::from_env().signer()?;
        Ok(Self::connect_with(&url, &program(), access).await?.with_signer(signer))
    }
}

/// The name of this program's file.
fn program() -> String {
    let file = std::env::current_exe().ok();
    let stem = file.as_deref().and_then(|file| file.file_stem());
    stem.map_or_else(|| "program".to_owned(), |stem| stem.to_string_lossy().into_owned())
}

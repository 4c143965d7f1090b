//! How a command finds its cluster: variables of the process's environment go first, then those of the file DIR/env,
//! which `up` and `secrets` write into the state folder (`--state`). Here is also what connects with them.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use millpond::bus::{Bus, ConnectionFailure, Role};
use millpond::client::Client;
use millpond::config::{ConnectArgs, ConnectSettings, Place, SigningArgs};
use tokio::sync::watch;

use crate::private_file;

/// URL of NATS for the command line and for programs, with the client role's password.
pub const CLIENT_NATS_URL: &str = millpond::config::NATS_URL;
/// URL of NATS for workers.
pub const WORKER_NATS_URL: &str = "MILLPOND_WORKER_NATS_URL";
/// URL of NATS for the producer service.
pub const PRODUCER_NATS_URL: &str = "MILLPOND_PRODUCER_NATS_URL";
/// URL of NATS for the collector.
pub const COLLECTOR_NATS_URL: &str = "MILLPOND_COLLECTOR_NATS_URL";
/// URL of NATS for programs that only publish tasks.
pub const PUBLISHER_NATS_URL: &str = "MILLPOND_PUBLISHER_NATS_URL";
/// URL of the producer's HTTP API.
pub const PRODUCER_URL: &str = "MILLPOND_PRODUCER_URL";
/// URL of the collector's HTTP API.
pub const COLLECTOR_URL: &str = "MILLPOND_COLLECTOR_URL";
/// The operator's token for both HTTP APIs.
pub const TOKEN: &str = "MILLPOND_TOKEN";
/// The viewer's token for the collector's HTTP API.
pub const VIEWER_TOKEN: &str = "MILLPOND_VIEWER_TOKEN";
/// File with the authorities that the certificates of NATS and of the collector are checked against.
pub const TLS_CA: &str = "MILLPOND_TLS_CA";
/// The keys that sign tasks.
pub const SIGNING_KEY: &str = "MILLPOND_SIGNING_KEY";

/// There is no cluster to reach: nothing says where it is.
#[derive(Debug)]
pub(crate) struct NoClusterError(String);

impl fmt::Display for NoClusterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for NoClusterError {}

/// The connection of a verb has died, and with it all that it could hear.
#[derive(Debug)]
pub(crate) struct ConnectionDiedError;

impl fmt::Display for ConnectionDiedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the connection to NATS has died (a message that the client cannot read, most likely); what was sent is kept, \
             run the command again",
        )
    }
}

impl Error for ConnectionDiedError {}

/// The settings of a cluster.
#[derive(Clone)]
pub struct ClusterEnv {
    dir: PathBuf,
    from_file: BTreeMap<String, String>,
    /// The connection of the verb, once it has one.
    connected: watch::Sender<Option<Bus>>,
}

impl ClusterEnv {
    /// Reads DIR/env where there is one.
    #[must_use]
    pub fn load(dir: &Path) -> Self {
        let text = fs::read_to_string(dir.join("env")).unwrap_or_default();
        let from_file = text.lines().filter_map(parse_line).collect();
        Self { dir: dir.to_owned(), from_file, connected: watch::Sender::new(None) }
    }

    /// A setting; none when it is not set.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|v| !v.is_empty()).or_else(|| self.from_file.get(name).cloned())
    }

    /// The settings of DIR/env, by name.
    pub fn file_values(&self) -> impl Iterator<Item = (&str, &str)> {
        self.from_file.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// A setting that must be there.
    ///
    /// # Errors
    /// When it is not set; the text says how to set it.
    pub fn need(&self, name: &str) -> anyhow::Result<String> {
        self.get(name).ok_or_else(|| {
            let (file, start) = (self.dir.join("env"), Place::here().start_command());
            let text = format!("{name} is not set, and not in {}: start `{start}` first, or set it", file.display());
            NoClusterError(text).into()
        })
    }

    /// A secret as given on the command line, else that of DIR/env; unchanged when a file holds it.
    #[must_use]
    pub fn secret(&self, given: Option<String>, file: Option<&PathBuf>, name: &str) -> Option<String> {
        if file.is_some() { given } else { given.or_else(|| self.get(name)) }
    }

    /// The keys that sign tasks: as given on the command line, else those of DIR/env.
    #[must_use]
    pub fn signing(&self, given: &SigningArgs) -> SigningArgs {
        let mut signing = given.clone();
        if signing.signing_key_file.is_none() {
            signing.signing_key = signing.signing_key.or_else(|| self.get(SIGNING_KEY).map(Into::into));
        }
        signing
    }

    /// A client for a verb that does not publish tasks.
    ///
    /// # Errors
    /// When NATS cannot be reached.
    pub async fn client(&self, name: &str, access: ConnectSettings) -> anyhow::Result<Client> {
        self.client_as(Role::Client, CLIENT_NATS_URL, name, access).await
    }

    /// The same, in a role whose URL has this variable.
    ///
    /// # Errors
    /// When NATS cannot be reached.
    pub async fn client_as(
        &self,
        role: Role,
        url: &str,
        name: &str,
        access: ConnectSettings,
    ) -> anyhow::Result<Client> {
        let bus = Bus::connect(&self.need(url)?, role, name, access).await?;
        self.connected.send_replace(Some(bus.clone()));
        Ok(Client::over(bus))
    }

    /// Returns when the verb cannot go on with its connection; never while it has none.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn connection_failed(&self) -> anyhow::Error {
        let mut connected = self.connected.subscribe();
        loop {
            let bus = connected.borrow_and_update().clone();
            let failed = async {
                match &bus {
                    Some(bus) => bus.failed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                failure = failed => return match failure {
                    ConnectionFailure::Died => ConnectionDiedError.into(),
                    mismatch @ ConnectionFailure::Wire(_) => mismatch.into(),
                },
                // The sender lives as long as this.
                _ = connected.changed() => {}
            }
        }
    }

    /// A client for a verb that publishes tasks, and signs them where there are keys.
    ///
    /// # Errors
    /// When NATS cannot be reached, or a key does not fit.
    pub async fn publisher(
        &self,
        name: &str,
        access: ConnectSettings,
        signing: &SigningArgs,
    ) -> anyhow::Result<Client> {
        let signer = self.signing(signing).signer()?;
        Ok(self.client(name, access).await?.with_signer(signer))
    }
}

/// How to reach NATS, for verbs that have no flags for it: as the process's environment says.
///
/// # Errors
/// When a file that it names cannot be used.
pub fn access() -> anyhow::Result<ConnectSettings> {
    #[derive(clap::Parser)]
    struct OnlyEnvironment {
        #[command(flatten)]
        connect: ConnectArgs,
    }
    let read = <OnlyEnvironment as clap::Parser>::try_parse_from(["millpond"])?;
    Ok(read.connect.check()?)
}

fn parse_line(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once('=')?;
    Some((name.to_owned(), value.trim_matches('\'').to_owned()))
}

/// Writes DIR/env in one step, readable by its owner only.
///
/// # Errors
/// When the folder cannot be written.
pub fn write(dir: &Path, values: &[(&str, String)]) -> anyhow::Result<()> {
    let text: String = values.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
    private_file::write(&dir.join("env"), text.as_bytes())
}

/// Removes DIR/env when its cluster is gone.
pub fn remove(dir: &Path) {
    let _ = fs::remove_file(dir.join("env"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[(COLLECTOR_URL, "http://127.0.0.1:1".into())]).unwrap();
        let env = ClusterEnv::load(dir.path());
        assert_eq!(env.from_file.get(COLLECTOR_URL).unwrap(), "http://127.0.0.1:1");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(dir.path().join("env")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

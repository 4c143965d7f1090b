//! The state folder (`--state`, default `.millpond`): what `up` leaves there for the other commands, and how they find
//! their settings: the process's environment first, then DIR/env.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use millpond::client::Client;
use millpond::config::{ConnectArgs, ConnectSettings, SigningArgs};
use serde::{Deserialize, Serialize};

/// NATS for the CLI and producer programs, with the client role's password.
pub const CLIENT_NATS_URL: &str = "MILLPOND_NATS_URL";
/// NATS for workers.
pub const WORKER_NATS_URL: &str = "MILLPOND_WORKER_NATS_URL";
/// NATS for the producer service.
pub const PRODUCER_NATS_URL: &str = "MILLPOND_PRODUCER_NATS_URL";
/// NATS for the collector.
pub const COLLECTOR_NATS_URL: &str = "MILLPOND_COLLECTOR_NATS_URL";
/// NATS for programs that only publish tasks.
pub const PUBLISHER_NATS_URL: &str = "MILLPOND_PUBLISHER_NATS_URL";
/// The producer's HTTP address.
pub const PRODUCER_URL: &str = "MILLPOND_PRODUCER_URL";
/// The collector's HTTP address.
pub const COLLECTOR_URL: &str = "MILLPOND_COLLECTOR_URL";
/// The operator's token, of both HTTP APIs.
pub const TOKEN: &str = "MILLPOND_TOKEN";
/// The viewer's token, of the collector's.
pub const VIEWER_TOKEN: &str = "MILLPOND_VIEWER_TOKEN";

/// File of the authorities that certificates are checked against: NATS's, and the collector's.
pub const TLS_CA: &str = "MILLPOND_TLS_CA";
/// The keys that sign tasks.
pub const SIGNING_KEY: &str = "MILLPOND_SIGNING_KEY";

/// What commands know of their cluster.
#[derive(Debug, Clone)]
pub struct Env {
    dir: PathBuf,
    from_file: BTreeMap<String, String>,
}

impl Env {
    /// Reads DIR/env where there is one.
    #[must_use]
    pub fn load(dir: &Path) -> Self {
        let text = fs::read_to_string(dir.join("env")).unwrap_or_default();
        let from_file = text.lines().filter_map(parse_line).collect();
        Self { dir: dir.to_owned(), from_file }
    }

    /// The state folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A setting, where it is known.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|v| !v.is_empty()).or_else(|| self.from_file.get(name).cloned())
    }

    /// What DIR/env says, by name.
    pub fn in_file(&self) -> impl Iterator<Item = (&str, &str)> {
        self.from_file.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// A setting.
    ///
    /// # Errors
    /// A text that says how to come by it.
    pub fn need(&self, name: &str) -> anyhow::Result<String> {
        self.get(name).ok_or_else(|| {
            let env = self.dir.join("env");
            anyhow!("{name} is not set and there is no {}: start `millpond up` first, or set it", env.display())
        })
    }

    /// A secret as given, else that of DIR/env; none, when a file holds it.
    #[must_use]
    pub fn or(&self, given: Option<String>, in_file: bool, name: &str) -> Option<String> {
        if in_file { given } else { given.or_else(|| self.get(name)) }
    }

    /// The keys that sign tasks: as given, else those of DIR/env.
    #[must_use]
    pub fn signing(&self, given: &SigningArgs) -> SigningArgs {
        let mut signing = given.clone();
        if signing.signing_key_file.is_none() {
            signing.signing_key = signing.signing_key.or_else(|| self.get(SIGNING_KEY).map(Into::into));
        }
        signing
    }
}

/// How to reach NATS, for verbs without flags for it: as the environment says.
///
/// # Errors
/// When a file that it names is of no use.
pub fn access() -> anyhow::Result<ConnectSettings> {
    #[derive(clap::Parser)]
    struct Environment {
        #[command(flatten)]
        connect: ConnectArgs,
    }
    let read = <Environment as clap::Parser>::try_parse_from(["millpond"])?;
    Ok(read.connect.check()?)
}

/// A client for a verb that publishes.
///
/// # Errors
/// When NATS cannot be reached, or a key does not fit.
pub async fn publisher(
    env: &Env,
    name: &str,
    access: ConnectSettings,
    signing: &SigningArgs,
) -> anyhow::Result<Client> {
    let signer = env.signing(signing).signer()?;
    Ok(Client::connect(&env.need(CLIENT_NATS_URL)?, name, access).await?.with_signer(signer))
}

fn parse_line(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once('=')?;
    Some((name.to_owned(), value.trim_matches('\'').to_owned()))
}

/// Writes DIR/env at once and whole, readable by its owner only.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_env(dir: &Path, values: &[(&str, String)]) -> anyhow::Result<()> {
    let mut text = String::new();
    for (name, value) in values {
        text.push_str(&format!("{name}='{value}'\n"));
    }
    write_private(&dir.join("env"), text.as_bytes())
}

/// Removes DIR/env: nobody answers at those addresses any more.
pub fn remove_env(dir: &Path) {
    let _ = fs::remove_file(dir.join("env"));
}

/// Writes a file at once and whole, readable by its owner only.
///
/// # Errors
/// When its folder cannot be written.
pub fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let folder = path.parent().unwrap_or(Path::new("."));
    // Only its owner may read a temporary file, and so what becomes of it.
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(cannot)?;
    file.write_all(content).and_then(|()| file.as_file().sync_all()).with_context(cannot)?;
    file.persist(path).with_context(cannot)?;
    Ok(())
}

/// Passwords of the roles, and the tokens of the HTTP APIs. Made once, kept for the next `up`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Secrets {
    /// Password by role.
    pub passwords: BTreeMap<String, String>,
    /// The operator's token of the HTTP APIs.
    pub token: String,
    /// The viewer's token of the collector's; a folder of an older version has none yet.
    #[serde(default = "secret")]
    pub viewer_token: String,
    /// Password of the collectors' database, where they share one.
    #[serde(default = "secret")]
    pub database_password: String,
    /// Password between the servers of a cluster.
    #[serde(default = "secret")]
    pub route_password: String,
    /// Of the programs that take telemetry, by name.
    #[serde(default = "pipeline_secrets")]
    pub pipeline: BTreeMap<String, String>,
}

/// A new password or token. nats-server reads passwords from its environment, where a value of digits would be a number:
/// it starts with a letter.
fn secret() -> String {
    format!("m{}{}", millpond::random_token(), millpond::random_token())
}

/// Users of Elasticsearch, what Kibana encrypts with, and the administrator of Grafana.
pub const PIPELINE: [&str; 6] =
    ["elastic_password", "kibana_password", "writer_password", "reader_password", "encryption_key", "grafana_password"];

fn pipeline_secrets() -> BTreeMap<String, String> {
    PIPELINE.iter().map(|name| ((*name).to_owned(), secret())).collect()
}

/// The roles that have a password.
pub const ROLES: [&str; 6] = ["setup", "publisher", "client", "producer", "worker", "collector"];

impl Secrets {
    /// New ones.
    #[must_use]
    pub fn generate() -> Self {
        let passwords = ROLES.iter().map(|role| ((*role).to_owned(), secret())).collect();
        Self {
            passwords,
            token: secret(),
            viewer_token: secret(),
            database_password: secret(),
            route_password: secret(),
            pipeline: pipeline_secrets(),
        }
    }

    /// Those of the state folder, made at the first call.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub fn load_or_generate(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("secrets.json");
        let kept = fs::read(&path).unwrap_or_default();
        let secrets = match kept.as_slice() {
            [] => Self::generate(),
            text => serde_json::from_slice(text)
                .with_context(|| format!("{} is not readable; remove it to have new passwords made", path.display()))?,
        };
        let text = serde_json::to_vec_pretty(&secrets)?;
        if text != kept {
            write_private(&path, &text)?;
        }
        Ok(secrets)
    }

    /// A URL with a role's user and password.
    #[must_use]
    pub fn nats_url(&self, role: &str, port: u16) -> String {
        let password = self.passwords.get(role).map_or("", String::as_str);
        format!("nats://{role}:{password}@127.0.0.1:{port}")
    }

    /// What nats-server wants in its environment for deploy/nats/roles.conf.
    pub fn server_environment(&self) -> impl Iterator<Item = (String, String)> {
        self.passwords
            .iter()
            .map(|(role, password)| (format!("MILLPOND_{}_PASSWORD", role.to_ascii_uppercase()), password.clone()))
    }
}

/// Held by `up` while it runs: a second one on the same folder is refused.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its lock")] fs::File);

impl Lock {
    /// Takes the folder, and makes it.
    ///
    /// # Errors
    /// When somebody has it, or it cannot be made.
    pub fn take(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let file = fs::File::create(dir.join("lock"))?;
        file.try_lock().map_err(|_| {
            anyhow!(
                "another `millpond up` runs on {}: use that one, or choose another folder with --state",
                dir.display()
            )
        })?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        write_env(dir.path(), &[(COLLECTOR_URL, "http://127.0.0.1:1".into())]).unwrap();
        let env = Env::load(dir.path());
        assert_eq!(env.from_file.get(COLLECTOR_URL).unwrap(), "http://127.0.0.1:1");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(dir.path().join("env")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_folder_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path()).unwrap();
        assert!(Lock::take(dir.path()).is_err());
        drop(lock);
        assert!(Lock::take(dir.path()).is_ok());
    }

    #[test]
    fn secrets_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = Secrets::load_or_generate(dir.path()).unwrap();
        assert_eq!(Secrets::load_or_generate(dir.path()).unwrap().token, first.token);
        // A folder of an older version gets what it does not have.
        let older = format!(r#"{{"passwords":{{}},"token":"{}"}}"#, first.token);
        fs::write(dir.path().join("secrets.json"), older).unwrap();
        let second = Secrets::load_or_generate(dir.path()).unwrap();
        let third = Secrets::load_or_generate(dir.path()).unwrap();
        assert_eq!((&second.token, &second.viewer_token), (&first.token, &third.viewer_token));
        assert_ne!(second.viewer_token, first.viewer_token);
    }
}

//! The passwords of the NATS roles, the tokens of the HTTP APIs and the secrets of the telemetry pipeline: generated once,
//! and kept in `secrets.json` of the state folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::private_file;

/// The NATS roles that have a password.
const ROLES: [&str; 6] = ["setup", "publisher", "client", "producer", "worker", "collector"];

/// Which service of the telemetry pipeline needs which secret (deploy/elasticsearch/setup.sh creates the users).
pub const PIPELINE: [(&str, &str); 11] = [
    ("elasticsearch", "elastic_password"),
    ("elk-setup", "elastic_password"),
    ("elk-setup", "kibana_password"),
    ("elk-setup", "writer_password"),
    ("elk-setup", "reader_password"),
    ("logstash", "writer_password"),
    ("otel-collector", "writer_password"),
    ("kibana", "kibana_password"),
    ("kibana", "reader_password"),
    ("kibana", "encryption_key"),
    ("grafana", "grafana_password"),
];

/// Everything secret of one cluster. A file that an older version wrote is filled up with what it lacks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// Password of each NATS role.
    pub passwords: BTreeMap<String, String>,
    /// The operator's token for the HTTP APIs.
    pub token: String,
    /// The viewer's token for the collector's HTTP API.
    #[serde(default = "secret")]
    pub viewer_token: String,
    /// Password of the database that several collectors share.
    #[serde(default = "secret")]
    pub database_password: String,
    /// Password between the servers of a NATS cluster.
    #[serde(default = "secret")]
    pub route_password: String,
    /// Secrets of the telemetry pipeline, by name.
    #[serde(default = "pipeline_secrets")]
    pub pipeline: BTreeMap<String, String>,
}

/// A new password or token. It starts with a letter, because nats-server reads passwords from its environment, where a
/// value of digits would be a number.
fn secret() -> String {
    format!("m{}{}", millpond::random_token(), millpond::random_token())
}

fn pipeline_secrets() -> BTreeMap<String, String> {
    PIPELINE.iter().map(|(_, name)| ((*name).to_owned(), secret())).collect()
}

impl Credentials {
    /// Generates all of them.
    #[must_use]
    pub fn generate() -> Self {
        Self {
            passwords: ROLES.iter().map(|role| ((*role).to_owned(), secret())).collect(),
            token: secret(),
            viewer_token: secret(),
            database_password: secret(),
            route_password: secret(),
            pipeline: pipeline_secrets(),
        }
    }

    /// Reads those of the state folder, and generates what is missing.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub fn load_or_generate(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("secrets.json");
        let kept = fs::read(&path).unwrap_or_default();
        let credentials = match kept.as_slice() {
            [] => Self::generate(),
            text => serde_json::from_slice(text)
                .with_context(|| format!("{} is not readable; remove it to have new passwords made", path.display()))?,
        };
        let text = serde_json::to_vec_pretty(&credentials)?;
        if text != kept {
            private_file::write(&path, &text)?;
        }
        Ok(credentials)
    }

    /// The URL of the NATS server on this machine, with a role's user and password.
    #[must_use]
    pub fn nats_url(&self, role: &str, port: u16) -> String {
        let password = self.passwords.get(role).map_or("", String::as_str);
        format!("nats://{role}:{password}@127.0.0.1:{port}")
    }

    /// The variables that nats-server needs in its environment for deploy/nats/roles.conf.
    pub fn server_environment(&self) -> impl Iterator<Item = (String, String)> {
        self.passwords
            .iter()
            .map(|(role, password)| (format!("MILLPOND_{}_PASSWORD", role.to_ascii_uppercase()), password.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = Credentials::load_or_generate(dir.path()).unwrap();
        assert_eq!(Credentials::load_or_generate(dir.path()).unwrap().token, first.token);
        // A folder of an older version gets what it does not have.
        let older = format!(r#"{{"passwords":{{}},"token":"{}"}}"#, first.token);
        fs::write(dir.path().join("secrets.json"), older).unwrap();
        let second = Credentials::load_or_generate(dir.path()).unwrap();
        let third = Credentials::load_or_generate(dir.path()).unwrap();
        assert_eq!((&second.token, &second.viewer_token), (&first.token, &third.viewer_token));
        assert_ne!(second.viewer_token, first.viewer_token);
    }
}

//! `secrets`: generates the passwords and tokens of a cluster of containers as files; each service has a folder that holds
//! only what that service needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::task_args;
use crate::addresses::{AddressError, Addresses};
use crate::credentials::{Credentials, PIPELINE};
use crate::{cluster_env, nats_config, private_file};

/// `secrets`: where the services are, as compose and the chart name them.
#[derive(Args, Debug)]
pub struct SecretsArgs {
    /// The folder to write. Each folder in it is for one service: nats, setup, producer, worker, collector, cli and
    /// postgres; for telemetry elasticsearch, elk-setup, logstash, otel-collector, kibana and grafana.
    dir: PathBuf,
    /// Host and port at which the services reach NATS; separate several by commas.
    #[arg(long, default_value = "nats:4222", value_delimiter = ',')]
    nats: Vec<String>,
    /// URL at which your programs reach the producer; several with commas.
    #[arg(long, default_value = "http://producer:7610", value_parser = addresses)]
    producer: String,
    /// URL at which the command line reaches the collector; several with commas.
    #[arg(long, default_value = "http://collector:7611", value_parser = addresses)]
    collector: String,
    /// Host and port of the Postgres that collectors share.
    #[arg(long, default_value = "postgres:5432")]
    postgres: String,
    /// Queues that the role publisher may publish to, such as mail,reports; default: any, also new ones. Give them each time.
    #[arg(long, value_delimiter = ',', value_parser = task_args::queue)]
    publish_queues: Vec<String>,
    /// Whether NATS is one server or a cluster.
    #[arg(long, value_enum, default_value_t = ServerKind::Single)]
    server: ServerKind,
}

fn addresses(text: &str) -> Result<String, AddressError> {
    Addresses::parse(text).map(|_| text.to_owned())
}

/// How many NATS servers there are.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum ServerKind {
    /// One server, which syncs to disk as NATS does by default.
    Single,
    /// The three servers that --nats names; each message is on two disks before it is acknowledged.
    Cluster,
}

/// What a server of a cluster needs in its configuration. Its name is that of its container.
fn cluster(hosts: &[String], password: &str) -> String {
    let routes: Vec<String> = hosts
        .iter()
        .map(|host| format!("\"nats://route:{password}@{}:6222\"", host.split(':').next().unwrap_or_default()))
        .collect();
    format!(
        "server_name: $HOSTNAME\njetstream: {{ sync_interval: always }}\ncluster {{\n  name: millpond\n  listen: 0.0.0.0:6222\n  \
         authorization {{ user: route, password: \"{password}\" }}\n  routes: [{}]\n}}\n",
        routes.join(", ")
    )
}

/// Generates what is missing, and writes all files again; passwords that exist stay the same.
///
/// # Errors
/// When the folder cannot be written.
pub fn run(args: &SecretsArgs) -> anyhow::Result<ExitCode> {
    let dir = &args.dir;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let secrets = Credentials::load_or_generate(dir)?;
    let password = |role: &str| secrets.passwords.get(role).cloned().unwrap_or_default();
    nats(args, &secrets)?;
    for role in ["setup", "producer", "worker", "collector"] {
        put(dir, role, "nats_password", &password(role))?;
    }
    put(dir, "producer", "token", &secrets.token)?;
    put(dir, "collector", "token", &secrets.token)?;
    put(dir, "collector", "viewer_token", &secrets.viewer_token)?;
    put(dir, "postgres", "password", &secrets.database_password)?;
    let store = format!("postgres://millpond:{}@{}/millpond", secrets.database_password, args.postgres);
    put(dir, "collector", "postgres_store", &store)?;
    for (service, name) in PIPELINE {
        put(dir, service, name, secrets.pipeline.get(name).map_or("", String::as_str))?;
    }
    let url = |role: &str| {
        let servers = args.nats.iter().map(|host| format!("nats://{role}:{}@{host}", password(role)));
        servers.collect::<Vec<_>>().join(",")
    };
    let cli = folder(dir, "cli")?;
    let settings = [
        (cluster_env::CLIENT_NATS_URL, url("client")),
        (cluster_env::PUBLISHER_NATS_URL, url("publisher")),
        (cluster_env::PRODUCER_URL, args.producer.clone()),
        (cluster_env::COLLECTOR_URL, args.collector.clone()),
        (cluster_env::TOKEN, secrets.token.clone()),
        (cluster_env::VIEWER_TOKEN, secrets.viewer_token.clone()),
    ];
    cluster_env::write(&cli, &settings)?;
    note!("passwords and tokens are in place");
    Ok(ExitCode::SUCCESS)
}

/// Writes the configuration of nats-server. The server reads passwords from variables, which stand at the top of the file
/// that uses them.
fn nats(args: &SecretsArgs, secrets: &Credentials) -> anyhow::Result<()> {
    let variables: String =
        secrets.server_environment().map(|(name, password)| format!("{name}: \"{password}\"\n")).collect();
    for (name, text) in nats_config::FILES {
        let text = match (name, args.server) {
            ("roles.conf", _) => {
                format!("{variables}{}", nats_config::with_publish_queues(text, &args.publish_queues))
            }
            (_, ServerKind::Cluster) => {
                let more = cluster(&args.nats, &secrets.route_password);
                format!("{}{more}", text.replace("jetstream: enabled\n", ""))
            }
            (_, ServerKind::Single) => text.to_owned(),
        };
        put(&args.dir, "nats", name, text.trim_end())?;
    }
    Ok(())
}

fn folder(dir: &Path, service: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join(service);
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

fn put(dir: &Path, service: &str, name: &str, text: &str) -> anyhow::Result<()> {
    private_file::write(&folder(dir, service)?.join(name), format!("{text}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_env::ClusterEnv;

    #[test]
    fn a_service_gets_its_own_secrets_only_and_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let args = |server| SecretsArgs {
            dir: dir.path().to_owned(),
            nats: vec!["nats:4222".into(), "nats-2:4222".into()],
            producer: "http://producer:7610".into(),
            collector: "http://collector:7611".into(),
            postgres: "postgres:5432".into(),
            publish_queues: Vec::new(),
            server,
        };
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        run(&args(ServerKind::Single)).unwrap();
        let worker = read("worker/nats_password");
        run(&args(ServerKind::Cluster)).unwrap();
        assert_eq!(read("worker/nats_password"), worker);
        assert_eq!(fs::read_dir(dir.path().join("worker")).unwrap().count(), 1);
        assert_eq!(read("elk-setup/writer_password"), read("logstash/writer_password"));
        assert_eq!(fs::read_dir(dir.path().join("logstash")).unwrap().count(), 1);
        assert!(PIPELINE.iter().all(|(service, name)| read(&format!("{service}/{name}")).len() > 32));
        assert!(read("nats/roles.conf").starts_with("MILLPOND_CLIENT_PASSWORD: \"m"));
        assert!(read("nats/millpond.conf").contains("@nats-2:6222"));
        let env = ClusterEnv::load(&dir.path().join("cli"));
        let url = env.file_values().find(|(name, _)| *name == cluster_env::CLIENT_NATS_URL).unwrap().1;
        assert!(url.ends_with("@nats-2:4222") && !url.contains(worker.trim()), "{url}");
    }
}

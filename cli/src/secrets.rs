//! `secrets`: passwords and tokens for a cluster of containers, made once, as files, a folder for each service with no
//! more than it needs. `env`: what a folder of settings says, for a shell elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::state;
use crate::state::{Env, Secrets, write_private};
use crate::up::CONFIG_FILES;

/// Where the services are, as compose and the chart name them.
#[derive(Args, Debug)]
pub struct SecretsArgs {
    /// The folder; each of its folders is for one service: nats, setup, producer, worker, collector, cli, postgres; of what
    /// takes telemetry: elasticsearch, elk-setup, logstash, otel-collector, kibana, grafana.
    dir: PathBuf,
    /// Host and port of NATS, several separated by commas, as the services reach it.
    #[arg(long, default_value = "nats:4222", value_delimiter = ',')]
    nats: Vec<String>,
    /// The producer's address, for the command line.
    #[arg(long, default_value = "http://producer:7610")]
    producer: String,
    /// The collector's address, for the command line.
    #[arg(long, default_value = "http://collector:7611")]
    collector: String,
    /// Host and port of Postgres, for collectors that share a store there.
    #[arg(long, default_value = "postgres:5432")]
    postgres: String,
    /// What the nats-server does beside the roles.
    #[arg(long, value_enum, default_value_t = Server::Single)]
    server: Server,
}

/// Kinds of nats-server.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    /// One, which syncs to disk as NATS does by default.
    Single,
    /// One of three that `--nats` names: each message is on two disks before it is acknowledged.
    Cluster,
}

/// Who needs which secret of the programs that take telemetry (deploy/elasticsearch/setup.sh makes the users).
const PIPELINE: [(&str, &str); 11] = [
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

/// What a server of a cluster needs. Its name is that of its container.
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

/// Makes what is missing, and writes all of it anew: what is there stays the same.
///
/// # Errors
/// When the folder cannot be written.
pub fn run(args: &SecretsArgs) -> anyhow::Result<ExitCode> {
    let dir = &args.dir;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let secrets = Secrets::load_or_generate(dir)?;
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
        (state::CLIENT_NATS_URL, url("client")),
        (state::PUBLISHER_NATS_URL, url("publisher")),
        (state::PRODUCER_URL, args.producer.clone()),
        (state::COLLECTOR_URL, args.collector.clone()),
        (state::TOKEN, secrets.token.clone()),
        (state::VIEWER_TOKEN, secrets.viewer_token.clone()),
    ];
    state::write_env(&cli, &settings)?;
    eprintln!("passwords and tokens are in place");
    Ok(ExitCode::SUCCESS)
}

/// nats-server's configuration. It reads passwords from variables: they stand at the top of the file that uses them.
fn nats(args: &SecretsArgs, secrets: &Secrets) -> anyhow::Result<()> {
    let variables: String =
        secrets.server_environment().map(|(name, password)| format!("{name}: \"{password}\"\n")).collect();
    for (name, text) in CONFIG_FILES {
        let text = match (name, args.server) {
            ("roles.conf", _) => format!("{variables}{text}"),
            (_, Server::Cluster) => {
                let more = cluster(&args.nats, &secrets.route_password);
                format!("{}{more}", text.replace("jetstream: enabled\n", ""))
            }
            (_, Server::Single) => text.to_owned(),
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
    write_private(&folder(dir, service)?.join(name), format!("{text}\n").as_bytes())
}

/// For which host.
#[derive(Args, Debug)]
pub struct EnvArgs {
    /// Put this host in the place of those in the addresses, and name one server of several: 127.0.0.1 for a shell
    /// outside the containers, whose ports are open there.
    #[arg(long)]
    host: Option<String>,
}

/// Prints the settings, a shell's line each.
///
/// # Errors
/// When there are none.
pub fn env(args: &EnvArgs, env: &Env) -> anyhow::Result<ExitCode> {
    env.need(state::CLIENT_NATS_URL)?;
    for (name, value) in env.in_file() {
        let value = match &args.host {
            Some(host) => at_host(value.split(',').next().unwrap_or_default(), host),
            None => value.to_owned(),
        };
        println!("{name}='{value}'");
    }
    Ok(ExitCode::SUCCESS)
}

/// The same address at another host; what is no address stays as it is.
fn at_host(url: &str, host: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (user, address) = match rest.rsplit_once('@') {
        Some((user, address)) => (format!("{user}@"), address),
        None => (String::new(), rest),
    };
    let port = address.rsplit_once(':').map_or(String::new(), |(_, port)| format!(":{port}"));
    format!("{scheme}://{user}{host}{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_moves_to_another_host() {
        let check = |url, expected: &str| assert_eq!(at_host(url, "127.0.0.1"), expected);
        check("nats://client:pw@nats:4222", "nats://client:pw@127.0.0.1:4222");
        check("http://collector:7611", "http://127.0.0.1:7611");
        check("https://collector", "https://127.0.0.1");
        check("a token", "a token");
    }

    #[test]
    fn a_service_gets_its_own_secrets_only_and_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let args = |server| SecretsArgs {
            dir: dir.path().to_owned(),
            nats: vec!["nats:4222".into(), "nats-2:4222".into()],
            producer: "http://producer:7610".into(),
            collector: "http://collector:7611".into(),
            postgres: "postgres:5432".into(),
            server,
        };
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        run(&args(Server::Single)).unwrap();
        let worker = read("worker/nats_password");
        run(&args(Server::Cluster)).unwrap();
        assert_eq!(read("worker/nats_password"), worker);
        assert_eq!(fs::read_dir(dir.path().join("worker")).unwrap().count(), 1);
        assert_eq!(read("elk-setup/writer_password"), read("logstash/writer_password"));
        assert_eq!(fs::read_dir(dir.path().join("logstash")).unwrap().count(), 1);
        assert!(PIPELINE.iter().all(|(service, name)| read(&format!("{service}/{name}")).len() > 32));
        assert!(read("nats/roles.conf").starts_with("MILLPOND_CLIENT_PASSWORD: \"m"));
        assert!(read("nats/millpond.conf").contains("@nats-2:6222"));
        let env = Env::load(&dir.path().join("cli"));
        let url = env.in_file().find(|(name, _)| *name == state::CLIENT_NATS_URL).unwrap().1;
        assert!(url.ends_with("@nats-2:4222") && !url.contains(worker.trim()), "{url}");
    }
}

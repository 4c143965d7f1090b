//! What is typed ([`Config`]) becomes what the collector uses ([`Settings`]). Nothing else reads the environment.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Error, bail, ensure};
use clap::{Args, Subcommand};
use millpond::config::{ConnectSettings, given_or_file};
use millpond_service::listen::HttpSettings;
use millpond_service::program::{Service, keep_files_private};
use millpond_service::settings::{ServiceArgs, TokenArgs, nats_url};
use millpond_service::token::Token;
use tokio_util::sync::CancellationToken;

use crate::store::{Retention, StoreAt};

/// How long the collector's store keeps dead letters that nobody has dealt with.
const DEAD_RETENTION_DEFAULT: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long the collector's store keeps tasks and jobs that have ended.
const RETENTION_DEFAULT: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a queue that has nothing and that nobody uses keeps its consumers.
const QUEUE_RETENTION_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// The shortest such time: the workers' records say within it who serves what.
const QUEUE_RETENTION_MIN: Duration = Duration::from_secs(10);
/// How long RESULTS and DEAD keep what the collector has stored, for clients that read late.
const RESULTS_RETENTION_DEFAULT: Duration = Duration::from_secs(600);
const NATS_URL: &str = "MILLPOND_COLLECTOR_NATS_URL";
const STORE: &str = "MILLPOND_COLLECTOR_STORE";
const VIEWER_TOKEN: &str = "MILLPOND_VIEWER_TOKEN";
const KIBANA_URL: &str = "MILLPOND_COLLECTOR_KIBANA_URL";
/// The store where none is named.
const STORE_DEFAULT: &str = "millpond.sqlite";

/// Settings of the collector, as typed.
#[derive(Args, Debug, Clone)]
pub struct Config {
    /// NATS, with the collector role's user and password: nats://collector:PASSWORD@host:4222.
    #[arg(long, env = NATS_URL, hide_env_values = true)]
    pub nats_url: Option<String>,
    /// Address and port of the HTTP API.
    #[arg(long, env = "MILLPOND_COLLECTOR_LISTEN", default_value = "127.0.0.1:7611")]
    pub listen: SocketAddr,
    /// The store: a file of SQLite, made when it is not there; or postgres://user:password@host:5432/database, which
    /// several collectors may share. Default: millpond.sqlite.
    #[arg(long, env = STORE, hide_env_values = true)]
    pub store: Option<String>,
    /// File with the store's address, instead of the address itself: it has a password.
    #[arg(long, env = "MILLPOND_COLLECTOR_STORE_FILE")]
    pub store_file: Option<PathBuf>,
    /// How long tasks and jobs that have ended are kept. Raising it needs room in the store.
    #[arg(long, env = "MILLPOND_COLLECTOR_KEEP", default_value_t = humantime::Duration::from(RETENTION_DEFAULT),
        value_parser = millpond::config::kept_for)]
    pub keep: humantime::Duration,
    /// How long dead letters that nobody has dealt with are kept, and tasks that never ended.
    #[arg(long, env = "MILLPOND_COLLECTOR_KEEP_DEAD", default_value_t = humantime::Duration::from(DEAD_RETENTION_DEFAULT),
        value_parser = millpond::config::kept_for)]
    pub keep_dead: humantime::Duration,
    /// Size at which the store forgets the oldest of what has ended, such as 20GiB; not set: no limit.
    #[arg(long, env = "MILLPOND_COLLECTOR_STORE_MAX", value_parser = millpond::config::bytes)]
    pub store_max: Option<u64>,
    /// The operator's token of the HTTP API.
    #[command(flatten)]
    pub token: TokenArgs,
    /// The viewer's token: its holder may read, and change nothing; 8 characters or more. Default: there are no viewers.
    #[arg(long, env = VIEWER_TOKEN, hide_env_values = true)]
    pub viewer_token: Option<String>,
    /// File with the viewer's token, instead of the token itself.
    #[arg(long, env = "MILLPOND_VIEWER_TOKEN_FILE")]
    pub viewer_token_file: Option<PathBuf>,
    /// Where Kibana is, for the console's links into it: `https://kibana.example.org`. Default: no links.
    #[arg(long, env = KIBANA_URL)]
    pub kibana_url: Option<String>,
    /// How long NATS keeps what is stored here, for clients that read late. Raising it needs room in RESULTS.
    #[arg(long, env = "MILLPOND_COLLECTOR_RESULTS_KEEP", default_value_t = humantime::Duration::from(RESULTS_RETENTION_DEFAULT),
        value_parser = millpond::config::setting_duration)]
    pub results_keep: humantime::Duration,
    /// How long a queue that has nothing, is not paused and is used by nobody keeps its consumers; 10s or more.
    #[arg(long, env = "MILLPOND_COLLECTOR_QUEUE_KEEP", default_value_t = humantime::Duration::from(QUEUE_RETENTION_DEFAULT),
        value_parser = millpond::config::setting_duration)]
    pub queue_keep: humantime::Duration,
    /// What every service has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Settings of the collector, checked.
#[derive(Clone)]
pub struct Settings {
    /// NATS, with credentials.
    pub nats_url: String,
    /// Where the HTTP API listens.
    pub listen: SocketAddr,
    /// Where the store is.
    pub store: StoreAt,
    /// What the store keeps, and for how long.
    pub(crate) retention: Retention,
    /// The operator's token.
    pub token: Token,
    /// The viewer's token; none: there are no viewers.
    pub viewer_token: Option<Token>,
    /// Where Kibana is, for links.
    pub kibana_url: Option<String>,
    /// How long NATS keeps what is stored.
    pub results_keep: Duration,
    /// How long an unused queue keeps its consumers.
    pub queue_keep: Duration,
    /// What HTTP is served with, where it is by TLS.
    pub http: HttpSettings,
    /// How to reach NATS.
    pub access: ConnectSettings,
}

impl Config {
    /// Checks what was typed.
    ///
    /// # Errors
    /// The first setting that does not fit, and what would.
    pub fn check(self) -> anyhow::Result<Settings> {
        let nats_url = nats_url(self.nats_url, NATS_URL)?;
        let viewer_token = given_or_file(self.viewer_token, &self.viewer_token_file, VIEWER_TOKEN)?;
        ensure!(
            viewer_token.as_ref() != Some(&self.token.text()?),
            "the viewer's token is the operator's: choose another for {VIEWER_TOKEN}"
        );
        let viewer_token = viewer_token.map(|token| Token::new(VIEWER_TOKEN, &token)).transpose()?;
        let kibana_url = self.kibana_url.filter(|url| !url.is_empty());
        if let Some(url) = kibana_url.as_ref().filter(|url| !url.starts_with("https://") && !url.starts_with("http://"))
        {
            bail!(
                "{} is no address of Kibana: {KIBANA_URL} begins with https:// or http://",
                millpond::bus::without_password(url)
            );
        }
        let store = given_or_file(self.store, &self.store_file, STORE)?;
        let (http, access) = self.service.check()?;
        let queue_keep: Duration = self.queue_keep.into();
        ensure!(queue_keep >= QUEUE_RETENTION_MIN, "--queue-keep must be 10s or more");
        Ok(Settings {
            nats_url,
            listen: self.listen,
            store: store.as_deref().unwrap_or(STORE_DEFAULT).parse().map_err(Error::msg)?,
            retention: Retention {
                ended: self.keep.into(),
                dead: (*self.keep_dead).max(*self.keep),
                bytes_max: self.store_max,
            },
            token: self.token.check()?,
            viewer_token,
            kibana_url,
            results_keep: self.results_keep.into(),
            queue_keep,
            http,
            access,
        })
    }
}

/// What the program does instead of running the service.
#[derive(Subcommand)]
pub enum Command {
    /// Print the operator's token, for a login at /console/.
    Token,
}

impl Service for Config {
    const NAME: &'static str = "millpond-collector";
    const ABOUT: &'static str = "Keeps what ended: results, attempts, dead letters; and serves them over HTTP";
    type Command = Command;

    fn args(&self) -> &ServiceArgs {
        &self.service
    }

    fn health_address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listen)
    }

    fn execute(self, Command::Token: Command) -> anyhow::Result<()> {
        Ok(writeln!(std::io::stdout(), "{}", self.token.text()?)?)
    }

    async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        keep_files_private();
        crate::run(self.check()?, shutdown).await
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        config: Config,
    }

    fn check(more: &[&str]) -> anyhow::Result<Settings> {
        let always = ["collector", "--nats-url", "nats://x"];
        let token: &[&str] = if more.contains(&"--token=short") { &[] } else { &["--token", "operators"] };
        Typed::parse_from(always.iter().chain(token).chain(more)).config.check()
    }

    #[test]
    fn tokens_and_links_are_checked() {
        assert!(check(&["--viewer-token", ""]).unwrap().viewer_token.is_none(), "there are no viewers");
        let both = check(&["--viewer-token", "a viewer", "--kibana-url", "https://kibana.example.org"]).unwrap();
        assert!(both.viewer_token.unwrap().is("a viewer") && both.token.is("operators") && both.kibana_url.is_some());
        for (more, word) in [
            (["--viewer-token", "operators"], "MILLPOND_VIEWER_TOKEN"),
            (["--viewer-token", "short"], "MILLPOND_VIEWER_TOKEN"),
            (["--token=short", "--connect-timeout=1s"], "MILLPOND_TOKEN"),
            (["--kibana-url", "javascript:alert(1)"], "MILLPOND_COLLECTOR_KIBANA_URL"),
        ] {
            let refused = check(&more).map(drop).unwrap_err().to_string();
            assert!(refused.contains(word) && !refused.contains("short"), "{refused}");
        }
    }
}

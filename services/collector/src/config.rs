//! What is typed ([`Config`]) becomes what the collector uses ([`Settings`]). Nothing else reads the environment.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use millpond::config::{ConnectArgs, LogArgs};
use millpond::limits::{RESULTS_KEEP, STORE_KEEP, STORE_KEEP_DEAD};

use crate::store::{Keep, StoreAt};

/// Shortest token that is accepted, in characters.
const TOKEN_CHARS_MIN: usize = 8;

/// Settings of the collector, as typed.
#[derive(Args, Debug, Clone)]
pub struct Config {
    /// NATS, with the collector role's user and password: nats://collector:PASSWORD@host:4222.
    #[arg(long, env = "MILLPOND_COLLECTOR_NATS_URL", hide_env_values = true)]
    pub nats_url: Option<String>,
    /// Address and port of the HTTP API.
    #[arg(long, env = "MILLPOND_COLLECTOR_LISTEN", default_value = "127.0.0.1:7611")]
    pub listen: SocketAddr,
    /// The store: a file of SQLite, made when it is not there; or postgres://user:password@host:5432/database, which
    /// several collectors may share.
    #[arg(long, env = "MILLPOND_COLLECTOR_STORE", default_value = "millpond.sqlite", hide_env_values = true)]
    pub store: StoreAt,
    /// How long tasks and jobs that have ended are kept. Raising it needs room in the store.
    #[arg(long, env = "MILLPOND_COLLECTOR_KEEP", default_value_t = humantime::Duration::from(STORE_KEEP))]
    pub keep: humantime::Duration,
    /// How long dead letters that nobody has dealt with are kept, and tasks that never ended.
    #[arg(long, env = "MILLPOND_COLLECTOR_KEEP_DEAD", default_value_t = humantime::Duration::from(STORE_KEEP_DEAD))]
    pub keep_dead: humantime::Duration,
    /// Size at which the store forgets the oldest of what has ended, such as 20GiB; not set: no limit.
    #[arg(long, env = "MILLPOND_COLLECTOR_STORE_MAX", value_parser = millpond::config::bytes)]
    pub store_max: Option<u64>,
    /// Token that the HTTP API asks for (`Authorization: Bearer TOKEN`), 8 characters or more.
    #[arg(long, env = "MILLPOND_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// How long NATS keeps what is stored here, for clients that read late. Raising it needs room in RESULTS.
    #[arg(long, env = "MILLPOND_COLLECTOR_RESULTS_KEEP", default_value_t = humantime::Duration::from(RESULTS_KEEP))]
    pub results_keep: humantime::Duration,
    /// How to reach NATS.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// How logs look.
    #[command(flatten)]
    pub log: LogArgs,
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
    /// How long what is kept in it.
    pub(crate) keep: Keep,
    /// Token of the HTTP API.
    pub token: String,
    /// How long NATS keeps what is stored.
    pub results_keep: Duration,
    /// How long to try to reach NATS.
    pub connect_timeout: Duration,
}

impl Config {
    /// Checks what was typed.
    ///
    /// # Errors
    /// The first setting that does not fit, and what would.
    pub fn check(self) -> anyhow::Result<Settings> {
        let nats_url =
            self.nats_url.context("no NATS url for the collector: set --nats-url or MILLPOND_COLLECTOR_NATS_URL")?;
        let token = self.token.context("no token for the HTTP API: set --token or MILLPOND_TOKEN")?;
        if token.chars().count() < TOKEN_CHARS_MIN {
            bail!("the token is shorter than {TOKEN_CHARS_MIN} characters: choose a longer one for MILLPOND_TOKEN");
        }
        Ok(Settings {
            nats_url,
            listen: self.listen,
            store: self.store,
            keep: Keep { ended: self.keep.into(), dead: (*self.keep_dead).max(*self.keep), bytes_max: self.store_max },
            token,
            results_keep: self.results_keep.into(),
            connect_timeout: self.connect.connect_timeout,
        })
    }
}

//! What is typed ([`Config`]) becomes what the producer uses ([`Settings`]). Nothing else reads the environment.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use millpond::config::{ConnectArgs, LogArgs, SigningArgs};
use millpond::signature::Signer;

/// Shortest token that is accepted, in characters.
const TOKEN_CHARS_MIN: usize = 8;

/// Settings of the producer service, as typed.
#[derive(Args, Debug, Clone)]
pub struct Config {
    /// NATS, with the producer role's user and password: nats://producer:PASSWORD@host:4222.
    #[arg(long, env = "MILLPOND_PRODUCER_NATS_URL", hide_env_values = true)]
    pub nats_url: Option<String>,
    /// Address and port of the HTTP API.
    #[arg(long, env = "MILLPOND_PRODUCER_LISTEN", default_value = "127.0.0.1:7610")]
    pub listen: SocketAddr,
    /// Token that the HTTP API asks for (`Authorization: Bearer TOKEN`), 8 characters or more.
    #[arg(long, env = "MILLPOND_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Whether tasks are signed.
    #[command(flatten)]
    pub signing: SigningArgs,
    /// How to reach NATS.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// How logs look.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Settings of the producer service, checked.
#[derive(Clone)]
pub struct Settings {
    /// NATS, with credentials.
    pub nats_url: String,
    /// Where the HTTP API listens.
    pub listen: SocketAddr,
    /// Token of the HTTP API.
    pub token: String,
    /// Keys that sign what is published.
    pub signer: Option<Signer>,
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
            self.nats_url.context("no NATS url for the producer: set --nats-url or MILLPOND_PRODUCER_NATS_URL")?;
        let token = self.token.context("no token for the HTTP API: set --token or MILLPOND_TOKEN")?;
        if token.chars().count() < TOKEN_CHARS_MIN {
            bail!("the token is shorter than {TOKEN_CHARS_MIN} characters: choose a longer one for MILLPOND_TOKEN");
        }
        let (signer, connect_timeout) = (self.signing.signer()?, self.connect.connect_timeout);
        Ok(Settings { nats_url, listen: self.listen, token, signer, connect_timeout })
    }
}

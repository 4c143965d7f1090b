//! What is typed ([`Config`]) becomes what the producer uses ([`Settings`]). Nothing else reads the environment.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use millpond::bus::Access;
use millpond::config::{ConnectArgs, LogArgs, SigningArgs, given_or_file};
use millpond::signature::Signer;
use millpond::token::Token;
use millpond_service::listen::{HttpTls, HttpTlsArgs};

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
    /// File with that token, instead of the token itself.
    #[arg(long, env = "MILLPOND_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Whether tasks are signed.
    #[command(flatten)]
    pub signing: SigningArgs,
    /// Whether HTTP is served by TLS.
    #[command(flatten)]
    pub http_tls: HttpTlsArgs,
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
    pub token: Token,
    /// Keys that sign what is published.
    pub signer: Option<Signer>,
    /// What HTTP is served with, where it is by TLS.
    pub http_tls: HttpTls,
    /// How to reach NATS.
    pub access: Access,
}

impl Config {
    /// Checks what was typed.
    ///
    /// # Errors
    /// The first setting that does not fit, and what would.
    pub fn check(self) -> anyhow::Result<Settings> {
        let nats_url =
            self.nats_url.context("no NATS url for the producer: set --nats-url or MILLPOND_PRODUCER_NATS_URL")?;
        let token = given_or_file(self.token, &self.token_file, "MILLPOND_TOKEN")?;
        let token = token.context("no token for the HTTP API: set MILLPOND_TOKEN, or MILLPOND_TOKEN_FILE")?;
        let token = Token::new("MILLPOND_TOKEN", &token)?;
        let (signer, access, http_tls) = (self.signing.signer()?, self.connect.check()?, self.http_tls.check()?);
        Ok(Settings { nats_url, listen: self.listen, token, signer, http_tls, access })
    }
}

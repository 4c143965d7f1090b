//! What is typed ([`Config`]) becomes what the producer uses ([`Settings`]). Nothing else reads the environment.

use std::net::SocketAddr;

use clap::Args;
use millpond::config::{ConnectSettings, SigningArgs};
use millpond::signature::Signer;
use millpond_service::listen::HttpSettings;
use millpond_service::program::{NoCommand, Service, keep_files_private};
use millpond_service::settings::{ServiceArgs, TokenArgs, nats_url};
use millpond_service::token::Token;
use tokio_util::sync::CancellationToken;

const NATS_URL: &str = "MILLPOND_PRODUCER_NATS_URL";

/// Settings of the producer service, as typed.
#[derive(Args, Debug, Clone)]
pub struct Config {
    /// NATS, with the producer role's user and password: nats://producer:PASSWORD@host:4222.
    #[arg(long, env = NATS_URL, hide_env_values = true)]
    pub nats_url: Option<String>,
    /// Address and port of the HTTP API.
    #[arg(long, env = "MILLPOND_PRODUCER_LISTEN", default_value = "127.0.0.1:7610")]
    pub listen: SocketAddr,
    /// The token of the HTTP API.
    #[command(flatten)]
    pub token: TokenArgs,
    /// Whether tasks are signed.
    #[command(flatten)]
    pub signing: SigningArgs,
    /// What every service has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Settings of the producer service, checked.
#[derive(Clone)]
pub struct Settings {
    /// NATS, with credentials.
    pub nats_url: String,
    /// Address of the HTTP API.
    pub listen: SocketAddr,
    /// Token of the HTTP API.
    pub token: Token,
    /// Keys that sign what is published.
    pub signer: Option<Signer>,
    /// The certificate of the HTTP API; none: plain HTTP.
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
        let (token, signer) = (self.token.check()?, self.signing.signer()?);
        let (http, access) = self.service.check()?;
        Ok(Settings { nats_url, listen: self.listen, token, signer, http, access })
    }
}

impl Service for Config {
    const NAME: &'static str = "millpond-producer";
    const ABOUT: &'static str = "Takes tasks over HTTP and publishes them to NATS";
    type Command = NoCommand;

    fn args(&self) -> &ServiceArgs {
        &self.service
    }

    fn health_address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listen)
    }

    fn execute(self, command: NoCommand) -> anyhow::Result<()> {
        match command {}
    }

    async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        keep_files_private();
        crate::run(self.check()?, shutdown).await
    }
}

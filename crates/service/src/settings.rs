//! Settings that several services have, each named once: flag, environment, check.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use millpond::config::{ConnectArgs, ConnectSettings, LogArgs, given_or_file};

use crate::listen::{HttpArgs, HttpSettings};
use crate::token::Token;

/// The operator's token.
const TOKEN: &str = "MILLPOND_TOKEN";

/// Settings of every service, as typed.
#[derive(Args, Debug, Clone)]
pub struct ServiceArgs {
    /// How HTTP is served.
    #[command(flatten)]
    pub http: HttpArgs,
    /// How to reach NATS.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// How logs look.
    #[command(flatten)]
    pub log: LogArgs,
}

impl ServiceArgs {
    /// Reads the files that are named: the certificate of the HTTP API, and the access to NATS.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn check(&self) -> anyhow::Result<(HttpSettings, ConnectSettings)> {
        Ok((self.http.check()?, self.connect.check()?))
    }
}

/// The operator's token of an HTTP API, as typed.
#[derive(Args, Debug, Clone)]
pub struct TokenArgs {
    /// The operator's token: the HTTP API lets its holder do everything (`Authorization: Bearer TOKEN`, or a login at the
    /// collector's /console/), 8 characters or more.
    #[arg(long, env = TOKEN, hide_env_values = true)]
    pub token: Option<String>,
    /// File with that token, instead of the token itself.
    #[arg(long, env = "MILLPOND_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

impl TokenArgs {
    /// The token as text.
    ///
    /// # Errors
    /// When there is none, or its file is of no use.
    pub fn text(&self) -> anyhow::Result<String> {
        let token = given_or_file(self.token.clone(), &self.token_file, TOKEN)?;
        token.with_context(|| format!("no token for the HTTP API: set {TOKEN}, or {TOKEN}_FILE"))
    }

    /// The token.
    ///
    /// # Errors
    /// As [`TokenArgs::text`], and when it is too short.
    pub fn check(&self) -> anyhow::Result<Token> {
        Ok(Token::new(TOKEN, &self.text()?)?)
    }
}

/// The address of NATS, which every service needs; `variable` is the setting's environment variable.
///
/// # Errors
/// When there is none.
pub fn nats_url(given: Option<String>, variable: &str) -> anyhow::Result<String> {
    given.with_context(|| {
        format!("no address of NATS: set --nats-url or {variable} (`millpond up` writes it to .millpond/env)")
    })
}

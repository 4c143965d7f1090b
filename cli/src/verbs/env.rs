//! `env`: prints the settings of the state folder, for a shell elsewhere.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use crate::cluster_env::{CLIENT_NATS_URL, ClusterEnv};
use crate::output::output;

/// `env`.
#[derive(Args, Debug)]
pub struct EnvArgs {
    /// Replace the host of each address by this one, and keep only the first of several servers. 127.0.0.1 suits a shell
    /// outside the containers, whose ports are open there.
    #[arg(long)]
    host: Option<String>,
    /// Print the value of this one alone, for `"$(millpond env MILLPOND_NATS_URL)"`.
    name: Option<String>,
}

/// Prints the settings, one per line, as a shell reads them.
///
/// # Errors
/// When there are none.
pub fn run(args: &EnvArgs, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    env.need(CLIENT_NATS_URL)?;
    for (name, value) in env.file_values() {
        let value = match &args.host {
            Some(host) => at_host(value.split(',').next().unwrap_or_default(), host),
            None => value.to_owned(),
        };
        match &args.name {
            None => writeln!(output(), "{name}='{value}'")?,
            Some(wanted) if wanted == name => {
                writeln!(output(), "{value}")?;
                return Ok(ExitCode::SUCCESS);
            }
            Some(_) => {}
        }
    }
    match &args.name {
        None => Ok(ExitCode::SUCCESS),
        Some(wanted) => bail!("the state folder has no setting {wanted}; `millpond env` prints all"),
    }
}

/// The same address at another host; a text that is not an address stays as it is.
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
}

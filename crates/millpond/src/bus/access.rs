//! What a connection needs beside its address: who asks, and what both sides show each other. Addresses without their
//! passwords, for logs and errors. Read from settings in `config`.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};

use crate::config::Secret;

/// How to get in. A [`Duration`] alone is one: how long to try, with nothing but what the URL says.
#[derive(Debug, Clone)]
pub struct Access {
    /// How long to try.
    pub timeout: Duration,
    /// Password of the user that the URL names; it wins over one in the URL.
    pub password: Option<Secret>,
    /// File of the certificates that the server's is checked against: the connection is TLS then, or none.
    pub ca: Option<PathBuf>,
    /// Files of the certificate that the server is shown, and of its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl From<Duration> for Access {
    fn from(timeout: Duration) -> Self {
        Self { timeout, password: None, ca: None, identity: None }
    }
}

impl Access {
    pub(super) fn apply(&self, servers: &[ServerAddr], options: ConnectOptions) -> ConnectOptions {
        let mut options = options;
        if let Some((user, password)) = servers.iter().find_map(credentials) {
            let password = self.password.as_ref().map_or(password, |given| given.reveal().to_owned());
            options = options.user_and_password(user, password);
        }
        if let Some(ca) = &self.ca {
            options = options.add_root_certificates(ca.clone()).require_tls(true);
        }
        if let Some((cert, key)) = &self.identity {
            options = options.add_client_certificate(cert.clone(), key.clone()).require_tls(true);
        }
        options
    }
}

/// The servers that a URL names, separated by commas; what is no address is left out, and told by [`super::Bus::connect`].
pub(super) fn servers(url: &str) -> Vec<ServerAddr> {
    url.split(',').filter_map(|one| one.trim().parse().ok()).collect()
}

/// User and password of a URL: the client itself does not take them from there.
fn credentials(server: &ServerAddr) -> Option<(String, String)> {
    let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    Some((decode(server.username()?), decode(server.password().unwrap_or_default())))
}

pub(super) fn without_credentials(server: &ServerAddr) -> Option<ServerAddr> {
    format!("{}://{}:{}", server.scheme(), server.host(), server.port()).parse().ok()
}

/// `nats://user:…@host:port` without the part that is nobody's business.
#[must_use]
pub fn without_password(url: &str) -> String {
    url.split(',')
        .map(|one| match one.rsplit_once('@') {
            Some((_, host)) => host.to_owned(),
            None => one.trim_start_matches("nats://").to_owned(),
        })
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_password("nats://client:secret@127.0.0.1:4222"), "127.0.0.1:4222");
        assert_eq!(without_password("nats://a:b@h:1,nats://h:2"), "h:1,h:2");
    }
}

//! How a connection is authenticated and encrypted, as options of the NATS client; and addresses without their passwords, for
//! logs and errors.

use async_nats::{ConnectOptions, ServerAddr};

use super::ConnectError;
use crate::config::ConnectSettings;

impl ConnectSettings {
    pub(super) fn apply(
        &self,
        servers: &[ServerAddr],
        options: ConnectOptions,
    ) -> Result<ConnectOptions, ConnectError> {
        let mut options = options;
        if let Some((path, text)) = &self.creds {
            let unfit = |reason| ConnectError::Credentials { path: path.clone(), reason };
            options = with_creds(options, text.reveal()).map_err(unfit)?;
        } else if let Some((user, password)) = servers.iter().find_map(credentials) {
            let password = self.password.as_ref().map_or(password, |given| given.reveal().to_owned());
            options = options.user_and_password(user, password);
        }
        if let Some(ca) = &self.ca {
            options = options.add_root_certificates(ca.clone()).require_tls(true);
        }
        if let Some((cert, key)) = &self.identity {
            options = options.add_client_certificate(cert.clone(), key.clone()).require_tls(true);
        }
        Ok(options)
    }
}

/// With the JWT and the seed of a file of credentials: the server has the client sign a number with the seed. The client wants each of
/// its lines to be ended.
#[cfg(feature = "creds")]
fn with_creds(options: ConnectOptions, text: &str) -> Result<ConnectOptions, String> {
    options.credentials(&format!("{text}\n")).map_err(|error| error.to_string())
}

#[cfg(not(feature = "creds"))]
fn with_creds(_: ConnectOptions, _: &str) -> Result<ConnectOptions, String> {
    Err("this program is built without the feature `creds` of the crate `millpond`".to_owned())
}

/// The servers of a URL, separated by commas. A part that is no address is left out; without any, [`super::Bus::connect`] fails.
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

/// The `host:port` of `nats://user:password@host:port`, of each server of a list; also of a database. Whatever could be a part of
/// a password is left out: what stands before an `@`, also where the password has a comma, and what stands behind a `?`.
#[must_use]
pub fn without_password(url: &str) -> String {
    let mut servers: Vec<String> = Vec::new();
    for part in url.split(',') {
        match servers.last_mut() {
            // A server of its own begins with its scheme; else this may be the rest of a password.
            Some(before) if part.contains('@') && !part.contains("://") => *before = format!("{before},{part}"),
            _ => servers.push(part.to_owned()),
        }
    }
    let host = |server: &String| {
        let (_, host) = server.rsplit_once('@').unwrap_or(("", server));
        let host = host.split_once("://").map_or(host, |(_, host)| host);
        host.split(['?', '#']).next().unwrap_or_default().to_owned()
    };
    servers.iter().map(host).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_password("nats://client:secret@127.0.0.1:4222"), "127.0.0.1:4222");
        assert_eq!(without_password("nats://a:b@h:1,nats://h:2"), "h:1,h:2");
        assert_eq!(without_password("h:1"), "h:1");
        for spelling in [
            "nats://u:se,cret@h:1",
            "nats://u:s@cret@h:1",
            "u:secret@h:1",
            "NATS://u:secret@h:1",
            "postgres://u:se/cret@h:1",
            "postgres://h:1?user=u&password=secret",
            "postgres://u:s?cr#et@h:1?password=secret",
            "tls://secret@h:1",
        ] {
            assert_eq!(without_password(spelling), "h:1", "{spelling}");
        }
    }
}

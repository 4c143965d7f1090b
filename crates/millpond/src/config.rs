//! Settings that the services and the command line share: as typed (`...Args`), and as checked once at the start.

use std::path::{Path, PathBuf};
use std::time::Duration;

#[cfg(feature = "cli")]
use clap::Args;

use crate::signature::{Signer, SigningKeyError};
use crate::wire::bounds;

/// Parses a duration as a person writes it: `30s`, `5m`, `1h30m`, a year at the most.
///
/// # Errors
/// A text that says what is wrong.
pub fn duration(text: &str) -> Result<Duration, String> {
    bounds::parse_duration(text)
}

/// The same for a setting that is shown with its default.
///
/// # Errors
/// As [`duration`].
pub fn setting_duration(text: &str) -> Result<humantime::Duration, String> {
    duration(text).map(Into::into)
}

/// Parses an age up to which something is kept: `7d`, `1y`, ten years at the most.
///
/// # Errors
/// A text that says what is wrong.
pub fn kept_for(text: &str) -> Result<humantime::Duration, String> {
    let age = bounds::parse_any_duration(text).map_err(|e| format!("{e}; write an age such as 7d, 1y or P7D"))?;
    let fits = age <= KEPT_FOR_MAX;
    fits.then_some(age.into())
        .ok_or_else(|| format!("{text} is longer than ten years; write an age of at most 10y, such as 7d"))
}

/// Parses a size as a person writes it: `512`, `256KiB`, `16MiB`, `4GiB`.
///
/// # Errors
/// A text that says what is wrong.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        unit => return Err(format!("unknown unit {unit:?}; write a size such as 512, 256KiB, 16MiB or 4GiB")),
    };
    let number: u64 = digits.trim().parse().map_err(|_| format!("{text:?} is not a size such as 256KiB"))?;
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"))
}

/// The longest that anything is kept.
const KEPT_FOR_MAX: Duration = bounds::DURATION_MAX.saturating_mul(10);

/// Where NATS is, for programs in the client role.
pub const NATS_URL: &str = "MILLPOND_NATS_URL";
const CONNECT_TIMEOUT: &str = "MILLPOND_CONNECT_TIMEOUT";
const CONNECT_TIMEOUT_DEFAULT: &str = "10s";
const PASSWORD_FILE: &str = "MILLPOND_NATS_PASSWORD_FILE";
const CREDS: &str = "MILLPOND_NATS_CREDS";
const TLS_CA: &str = "MILLPOND_TLS_CA";
const TLS_CERT: &str = "MILLPOND_TLS_CERT";
const TLS_KEY: &str = "MILLPOND_TLS_KEY";
const SIGNING_KEY: &str = "MILLPOND_SIGNING_KEY";
const SIGNING_KEY_FILE: &str = "MILLPOND_SIGNING_KEY_FILE";

/// A variable of the environment; an empty one counts as none.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A folder that our images have: other containers are somebody's machine.
const IMAGE_FOLDER: &str = "/var/lib/millpond";

/// Where this program runs, for what it advises: what starts a cluster differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a pod of Kubernetes.
    Pod,
    /// In a container of our images, of compose most likely.
    Container,
    /// On a machine.
    Machine,
}

impl Place {
    /// Where this process is.
    #[must_use]
    pub fn here() -> Self {
        if variable("KUBERNETES_SERVICE_HOST").is_some() {
            Self::Pod
        } else if ["/.dockerenv", "/run/.containerenv"].iter().any(|mark| Path::new(mark).exists())
            && Path::new(IMAGE_FOLDER).exists()
        {
            Self::Container
        } else {
            Self::Machine
        }
    }

    /// The command that starts a cluster.
    #[must_use]
    pub fn start_command(self) -> &'static str {
        match self {
            Self::Pod => "helm install",
            Self::Container => "docker compose up -d --wait",
            Self::Machine => "millpond up",
        }
    }

    /// What to do where NATS does not answer.
    pub(crate) fn without_nats(self) -> &'static str {
        match self {
            Self::Pod => {
                "(`kubectl get pods,services` shows it, and `helm get values` where it is looked for: nats.url)"
            }
            Self::Container => "(`docker compose up -d --wait` starts one, `docker compose ps -a` shows what runs)",
            Self::Machine => "(`millpond up` starts one)",
        }
    }
}

/// How to reach NATS, as typed.
#[cfg_attr(feature = "cli", derive(Args))]
#[derive(Debug, Clone)]
pub struct ConnectArgs {
    /// How long to try to reach NATS at the start before giving up with an error; once connected, a service
    /// reconnects for ever. Raise it where services start before their server.
    #[cfg_attr(feature = "cli", arg(long, env = CONNECT_TIMEOUT, default_value = CONNECT_TIMEOUT_DEFAULT, value_parser = duration))]
    pub connect_timeout: Duration,
    /// File with the password of the user that the NATS URL names (nats://worker@host:4222), instead of one in the URL.
    #[cfg_attr(feature = "cli", arg(long, env = PASSWORD_FILE))]
    pub nats_password_file: Option<PathBuf>,
    /// File with the credentials of a NATS user (its JWT and its seed, a `.creds` file of `nsc`), for a server in operator mode; the
    /// NATS URL needs no user then, and one in it is not sent.
    #[cfg_attr(feature = "cli", arg(long, env = CREDS))]
    pub nats_creds: Option<PathBuf>,
    /// File with the certificates (PEM) of the authorities that NATS's certificate is checked against; with it the
    /// connection is TLS or none. Default: those of the system, for a URL that begins with tls://.
    #[cfg_attr(feature = "cli", arg(long, env = TLS_CA))]
    pub tls_ca: Option<PathBuf>,
    /// File with the certificate (PEM, with what it was signed by) that NATS is shown: mutual TLS. Needs --tls-key.
    #[cfg_attr(feature = "cli", arg(long, env = TLS_CERT))]
    pub tls_cert: Option<PathBuf>,
    /// File with the private key (PEM) of that certificate.
    #[cfg_attr(feature = "cli", arg(long, env = TLS_KEY))]
    pub tls_key: Option<PathBuf>,
}

/// How to connect to NATS, checked. A [`Duration`] alone is enough: how long to try, with the credentials in the URL.
#[derive(Debug, Clone)]
pub struct ConnectSettings {
    /// How long to try.
    pub timeout: Duration,
    /// Password of the user that the URL names; it wins over one in the URL.
    pub password: Option<Secret>,
    /// File of a NATS user's credentials, and what it holds; it wins over user and password. Needs the feature `creds`.
    pub creds: Option<(PathBuf, Secret)>,
    /// File of the certificates that the server's is checked against; with it the connection is TLS or none.
    pub ca: Option<PathBuf>,
    /// Files of the certificate for the server to check, and of its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl From<Duration> for ConnectSettings {
    fn from(timeout: Duration) -> Self {
        Self { timeout, password: None, creds: None, ca: None, identity: None }
    }
}

impl ConnectArgs {
    /// The settings of the environment, for a program without a command line.
    ///
    /// # Errors
    /// A text that says what is wrong with the time for which it is tried.
    pub fn from_env() -> Result<Self, String> {
        let file = |name| variable(name).map(PathBuf::from);
        let timeout = variable(CONNECT_TIMEOUT);
        Ok(Self {
            connect_timeout: duration(timeout.as_deref().unwrap_or(CONNECT_TIMEOUT_DEFAULT))?,
            nats_password_file: file(PASSWORD_FILE),
            nats_creds: file(CREDS),
            tls_ca: file(TLS_CA),
            tls_cert: file(TLS_CERT),
            tls_key: file(TLS_KEY),
        })
    }

    /// Checks the files. Certificates are read again at each connect, so that renewed ones are used; they are read here as well,
    /// so that a wrong path fails at once.
    ///
    /// # Errors
    /// [`FileError`], when one of them cannot be read, or one is missing beside another or should not be there.
    pub fn check(&self) -> Result<ConnectSettings, FileError> {
        let read = |file: &Option<PathBuf>, name| set(file).map(|path| read_secret(path, name)).transpose();
        let identity = both((TLS_CERT, &self.tls_cert), (TLS_KEY, &self.tls_key))?;
        read(&self.tls_ca, TLS_CA)?;
        let password = read(&self.nats_password_file, PASSWORD_FILE)?;
        let creds = read(&self.nats_creds, CREDS)?;
        if password.is_some() && creds.is_some() {
            return Err(FileError::Both { one: PASSWORD_FILE, other: CREDS });
        }
        Ok(ConnectSettings {
            timeout: self.connect_timeout,
            password,
            creds: set(&self.nats_creds).map(Path::to_owned).zip(creds),
            ca: set(&self.tls_ca).map(Path::to_owned),
            identity,
        })
    }
}

/// Why the file of a setting cannot be used. Shows nothing of its contents.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("cannot read {} ({name}): {source}; give a file that this process's user may read", .path.display())]
    Unreadable {
        /// The setting.
        name: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file is empty.
    #[error("{} ({name}) is empty", .path.display())]
    Empty {
        /// The setting.
        name: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The value is given twice.
    #[error("{name} and {name}_FILE are both set: keep one of them")]
    Twice {
        /// The setting.
        name: &'static str,
    },
    /// Two settings of which one will do.
    #[error("{one} and {other} are both set: keep one of them")]
    Both {
        /// The one.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A setting needs another.
    #[error("{given} is set and {missing} is not: a certificate and its key go together")]
    Alone {
        /// The setting that is set.
        given: &'static str,
        /// The setting that is missing.
        missing: &'static str,
    },
    /// The certificate and the key cannot be used.
    #[error("{} ({name}) and its key cannot be used: {reason}; both are PEM, and the key is the certificate's", .path.display())]
    Unfit {
        /// The setting.
        name: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The file of a setting; an empty variable counts as none.
pub fn set(file: &Option<PathBuf>) -> Option<&Path> {
    file.as_deref().filter(|path| !path.as_os_str().is_empty())
}

/// The contents of a file, without the line break at its end.
fn read_secret(path: &Path, name: &'static str) -> Result<Secret, FileError> {
    let unreadable = |source| FileError::Unreadable { name, path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(FileError::Empty { name, path: path.to_owned() }),
        text => Ok(Secret(text.to_owned())),
    }
}

type NamedFile<'a> = (&'static str, &'a Option<PathBuf>);

/// A certificate's file and its key's: both, or neither; both can be read.
pub fn both(cert: NamedFile<'_>, key: NamedFile<'_>) -> Result<Option<(PathBuf, PathBuf)>, FileError> {
    match (set(cert.1), set(key.1)) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(FileError::Alone { given: cert.0, missing: key.0 }),
        (None, Some(_)) => Err(FileError::Alone { given: key.0, missing: cert.0 }),
        (Some(cert_file), Some(key_file)) => {
            read_secret(cert_file, cert.0)?;
            read_secret(key_file, key.0)?;
            Ok(Some((cert_file.to_owned(), key_file.to_owned())))
        }
    }
}

/// The setting `name`: its value, or the contents of the file in `<name>_FILE`. An empty value counts as none.
///
/// # Errors
/// [`FileError`], when both are given or the file is of no use.
pub fn given_or_file(
    given: Option<String>,
    file: &Option<PathBuf>,
    name: &'static str,
) -> Result<Option<String>, FileError> {
    match (given.filter(|text| !text.is_empty()), set(file)) {
        (Some(_), Some(_)) => Err(FileError::Twice { name }),
        (None, Some(path)) => Ok(Some(read_secret(path, name)?.0)),
        (given, None) => Ok(given),
    }
}

/// Text that neither logs nor errors show.
#[derive(Clone)]
pub struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// The text itself.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// Keys that sign tasks, as typed.
#[cfg_attr(feature = "cli", derive(Args))]
#[derive(Debug, Clone, Default)]
pub struct SigningArgs {
    /// Keys that sign tasks, `new[,old]`, 32 characters or more each: the first signs, any is believed. A worker with keys
    /// runs only what is signed with one of them; all that publishes needs them too. Better in the environment than here.
    #[cfg_attr(feature = "cli", arg(long, env = SIGNING_KEY, hide_env_values = true))]
    pub signing_key: Option<Secret>,
    /// File with these keys, instead of the keys themselves.
    #[cfg_attr(feature = "cli", arg(long, env = SIGNING_KEY_FILE))]
    pub signing_key_file: Option<PathBuf>,
}

/// Why there are no keys to sign with.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// Their file.
    #[error(transparent)]
    File(#[from] FileError),
    /// One of them.
    #[error(transparent)]
    Key(#[from] SigningKeyError),
}

impl SigningArgs {
    /// The keys of the environment, for a program without a command line.
    #[must_use]
    pub fn from_env() -> Self {
        Self {
            signing_key: variable(SIGNING_KEY).map(Secret),
            signing_key_file: variable(SIGNING_KEY_FILE).map(PathBuf::from),
        }
    }

    /// The keys; none when there are none.
    ///
    /// # Errors
    /// [`SigningError`] when one does not fit; its text shows none.
    pub fn signer(&self) -> Result<Option<Signer>, SigningError> {
        let given = self.signing_key.clone().map(|keys| keys.0).filter(|keys| !keys.trim().is_empty());
        let keys = given_or_file(given, &self.signing_key_file, SIGNING_KEY)?;
        Ok(keys.map(|keys| Signer::new(&keys)).transpose()?)
    }
}

/// The format of logs, as typed.
#[cfg_attr(feature = "cli", derive(Args))]
#[derive(Debug, Clone)]
pub struct LogArgs {
    /// Which log lines are written, as tracing-subscriber's EnvFilter: `info`, `debug`, `warn,millpond=debug`.
    #[cfg_attr(feature = "cli", arg(long, env = "MILLPOND_LOG", default_value = "info", global = true))]
    pub log: String,
    /// Log lines as JSON (one object a line) instead of text, always on standard error.
    #[cfg_attr(feature = "cli", arg(long, env = "MILLPOND_LOG_JSON", default_value_t = false, global = true))]
    pub log_json: bool,
    /// Also write the log lines to this file; at 64 MiB it is put aside as FILE.1, and five such are kept.
    #[cfg_attr(feature = "cli", arg(long, env = "MILLPOND_LOG_FILE", global = true))]
    pub log_file: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<u64>) {
        assert_eq!(bytes(text).ok(), expected, "{text}");
    }

    #[test]
    fn sizes() {
        check("512", Some(512));
        check("256KiB", Some(262_144));
        check("4GiB", Some(4 << 30));
        check("1MB", None);
        check("", None);
        check("99999999999GiB", None);
    }

    #[test]
    fn a_secret_is_given_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let ask = |given: &str, file: &Option<PathBuf>| given_or_file(Some(given.to_owned()), file, "MILLPOND_TOKEN");
        let fails = |given, file| ask(given, file).unwrap_err().to_string();
        assert_eq!(ask("abc", &None).unwrap().as_deref(), Some("abc"));
        assert_eq!(ask("", &Some(PathBuf::new())).unwrap(), None);
        let named = Some(file.clone());
        assert!(fails("", &named).contains("cannot read"));
        std::fs::write(&file, "\n").unwrap();
        assert!(fails("", &named).contains("is empty"));
        std::fs::write(&file, "a secret \r\n").unwrap();
        assert_eq!(ask("", &named).unwrap().as_deref(), Some("a secret "));
        let twice = fails("abc", &named);
        assert!(twice.contains("MILLPOND_TOKEN_FILE") && !twice.contains("abc") && !twice.contains("a secret"));
    }

    #[test]
    fn a_certificate_comes_with_its_key() {
        let key = Some(PathBuf::from("key.pem"));
        let alone = both(("CERT", &None), ("KEY", &key)).unwrap_err().to_string();
        assert!(alone.contains("KEY is set and CERT is not"), "{alone}");
        assert!(both(("CERT", &None), ("KEY", &None)).unwrap().is_none());
    }
}

//! TLS by files: to NATS with certificates on both sides, and on HTTP; secrets by files. Who has no certificate, or
//! trusts another authority, gets nowhere, and is told why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use millpond_cli::credentials::Credentials;
use millpond_cli::nats_server;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use crate::harness::{MILLPOND, PATIENCE, Process, free_port, output, until};

/// An authority, and what it has signed, as files.
struct Authority {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(dir.join("ca.pem"), issuer.pem()).unwrap();
        Self { dir: dir.to_owned(), issuer }
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// A certificate for this machine, NAME.pem, and its key, NAME.key.
    fn sign(&self, name: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(self.dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// A nats-server that wants certificates, and what its clients need.
struct Secured {
    _nats: Process,
    dir: TempDir,
    port: u16,
    authority: Authority,
}

impl Secured {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let (tls, secrets) = (dir.path().join("tls"), dir.path().join("secrets"));
        let authority = Authority::new(&tls);
        for name in ["nats", "client", "http"] {
            authority.sign(name);
        }
        let host = format!("localhost:{port}");
        assert!(
            Command::new(MILLPOND).arg("secrets").arg(&secrets).args(["--nats", &host]).status().unwrap().success()
        );
        let conf = secrets.join("nats/millpond.conf");
        let more = format!(
            "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true }}\n",
            authority.file("nats.pem"),
            authority.file("nats.key"),
            authority.file("ca.pem")
        );
        fs::write(&conf, fs::read_to_string(&conf).unwrap() + &more).unwrap();
        let mut command = Command::new(nats_server::find(None).unwrap());
        command.arg("-c").arg(conf).arg("-sd").arg(dir.path().join("data")).args(["-a", "127.0.0.1", "-p"]);
        let log = fs::File::create(dir.path().join("nats.log")).unwrap();
        let nats = Process::start(command.arg(port.to_string()).stdout(Stdio::null()).stderr(log));
        Self { _nats: nats, dir, port, authority }
    }

    fn secret(&self, file: &str) -> String {
        self.dir.path().join("secrets").join(file).display().to_string()
    }

    /// A command with the certificates of an authority, the client's among them where that is asked for.
    fn command(&self, arguments: &[&str], authority: &Authority, identity: bool) -> Command {
        let mut command = Command::new(MILLPOND);
        command.args(["--state", &self.secret("cli")]).args(arguments).stdin(Stdio::null());
        command.env("MILLPOND_TLS_CA", authority.file("ca.pem")).env("MILLPOND_CONNECT_TIMEOUT", "10s");
        if identity {
            command.env("MILLPOND_TLS_CERT", self.authority.file("client.pem"));
            command.env("MILLPOND_TLS_KEY", self.authority.file("client.key"));
        }
        command
    }

    /// A service in a role; its password and its token are files.
    fn service(&self, verb: &str, role: &str, more: &[(&str, String)]) -> Process {
        let mut command = self.command(&[verb, "run"], &self.authority, true);
        let url = format!("nats://{role}@localhost:{}", self.port);
        command.env(format!("MILLPOND_{}_NATS_URL", role.to_uppercase()), url);
        command.env("MILLPOND_NATS_PASSWORD_FILE", self.secret(&format!("{role}/nats_password")));
        command.envs(more.iter().map(|(name, value)| (*name, value)));
        let log = fs::File::create(self.dir.path().join(format!("{role}.log"))).unwrap();
        Process::start(command.stdout(Stdio::null()).stderr(log))
    }

    async fn run(command: Command) -> Output {
        output(command).await
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_certificates_on_both_sides() {
    let secured = Secured::start().await;
    let authority = &secured.authority;
    let mut setup = secured.command(&["setup"], authority, true);
    setup.env("MILLPOND_SETUP_NATS_URL", format!("nats://setup@localhost:{}", secured.port));
    setup.env("MILLPOND_NATS_PASSWORD_FILE", secured.secret("setup/nats_password"));
    let made = Secured::run(setup).await;
    assert!(made.status.success(), "{}", said(&made));

    let port = free_port();
    let https = [
        ("MILLPOND_COLLECTOR_LISTEN", format!("127.0.0.1:{port}")),
        ("MILLPOND_COLLECTOR_STORE", secured.dir.path().join("store.sqlite").display().to_string()),
        ("MILLPOND_TOKEN_FILE", secured.secret("collector/token")),
        ("MILLPOND_VIEWER_TOKEN_FILE", secured.secret("collector/viewer_token")),
        ("MILLPOND_TLS_HTTP_CERT", authority.file("http.pem")),
        ("MILLPOND_TLS_HTTP_KEY", authority.file("http.key")),
    ];
    let _collector = secured.service("collector", "collector", &https);
    let named = [("MILLPOND_WORKER_NAME", "w1".to_owned()), ("MILLPOND_WORKER_BUILT_IN", "square".to_owned())];
    let _worker = secured.service("worker", "worker", &named);

    let submit = secured.command(&["submit", "square", "12", "--wait"], authority, true);
    let done = Secured::run(submit).await;
    assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "144", "{}", said(&done));
    // What was stored is read over HTTPS.
    let url = format!("https://localhost:{port}");
    let ask = |authority: &Authority| {
        let mut command = secured.command(&["task", "ls", "--json"], authority, false);
        command.env("MILLPOND_COLLECTOR_URL", &url);
        command
    };
    let listed = until("the task over HTTPS", PATIENCE, async || {
        let listed = Secured::run(ask(authority)).await;
        String::from_utf8_lossy(&listed.stdout).contains("square").then_some(listed)
    });
    assert!(listed.await.status.success());

    // Whoever trusts another authority is told, and tells nothing.
    let other = Authority::new(&secured.dir.path().join("other"));
    let refused = Secured::run(ask(&other)).await;
    assert!(!refused.status.success() && refused.stdout.is_empty());
    let refused = Secured::run(secured.command(&["submit", "square", "12"], &other, true)).await;
    assert!(refused.status.code() == Some(69) && said(&refused).contains("certificate"), "{}", said(&refused));
    // So is whoever has no certificate, and whoever comes without TLS.
    let refused = Secured::run(secured.command(&["submit", "square", "12"], authority, false)).await;
    assert!(refused.status.code() == Some(69), "{}", said(&refused));
    let plain = reqwest::get(format!("http://localhost:{port}/healthz")).await;
    assert!(plain.is_err(), "plain HTTP is not answered");
    // A log has none of the secrets.
    let secret = |file: &str| fs::read_to_string(secured.secret(file)).unwrap().trim().to_owned();
    for (log, file) in
        [("collector", "collector/nats_password"), ("collector", "collector/token"), ("worker", "worker/nats_password")]
    {
        let text = fs::read_to_string(secured.dir.path().join(format!("{log}.log"))).unwrap();
        assert!(!text.is_empty() && !text.contains(&secret(file)), "{log} tells {file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path());
    authority.sign("http");
    let Credentials { token, .. } = Credentials::generate();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let run = |more: Vec<(&'static str, String)>| {
        let mut command = Command::new(MILLPOND);
        command.args(["--state", "none", "collector", "run", "--nats-url", "nats://collector@127.0.0.1:1"]);
        command.env("MILLPOND_TOKEN", &token).env("MILLPOND_COLLECTOR_STORE", file("store.sqlite"));
        command.envs(more).stdin(Stdio::null());
        Secured::run(command)
    };
    let cases = [
        (vec![("MILLPOND_TLS_CA", file("none.pem"))], "cannot read"),
        (vec![("MILLPOND_TLS_CERT", file("http.pem"))], "MILLPOND_TLS_KEY is not"),
        (vec![("MILLPOND_TOKEN_FILE", file("ca.pem"))], "keep one of them"),
        (vec![("MILLPOND_NATS_PASSWORD_FILE", file("none"))], "MILLPOND_NATS_PASSWORD_FILE"),
        (vec![("MILLPOND_NATS_CREDS", file("none"))], "cannot read"),
        (
            vec![("MILLPOND_NATS_CREDS", file("ca.pem"))],
            "(MILLPOND_NATS_CREDS) cannot be used as the credentials of a NATS user",
        ),
        (
            vec![("MILLPOND_NATS_CREDS", file("ca.pem")), ("MILLPOND_NATS_PASSWORD_FILE", file("ca.pem"))],
            "MILLPOND_NATS_PASSWORD_FILE and MILLPOND_NATS_CREDS are both set",
        ),
        (
            vec![("MILLPOND_TLS_HTTP_CERT", file("ca.pem")), ("MILLPOND_TLS_HTTP_KEY", file("http.key"))],
            "cannot be used",
        ),
    ];
    for (more, words) in cases {
        let refused = run(more).await;
        assert!(!refused.status.success() && said(&refused).contains(words), "{words}: {}", said(&refused));
        assert!(!said(&refused).contains(&token), "a secret is shown");
    }
}

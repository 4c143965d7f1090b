//! A nats-server in operator mode: accounts, roles and users are JWTs, made of what `deploy/nats/nsc.py` says of them. Programs have a
//! file of credentials, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use millpond::Client;
use millpond::bus::publish::RetryDeadline;
use millpond::config::ConnectArgs;
use millpond_cli::nats_server;
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{MILLPOND, PATIENCE, Process, free_port, is_ready, output, task, until};
use crate::tidy::root;

const TOKEN: &str = "0123456789abcdef";

/// Claims, signed as `nsc` signs them.
fn signed(by: &KeyPair, name: &str, subject: &str, nats: &Value) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let (id, now) = (millpond::random_token(), millpond::now_ms() / 1000);
    let claims = json!({ "jti": id, "iat": now, "iss": by.public_key(), "name": name, "sub": subject, "nats": nats });
    let text = format!("{}.{}", part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(&claims));
    format!("{text}.{}", BASE64URL_NOPAD.encode(&by.sign(text.as_bytes()).unwrap()))
}

fn limits(with_streams: bool) -> Value {
    let mut limits = json!({ "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1 });
    if with_streams {
        for limit in ["mem_storage", "disk_storage", "streams", "consumer"] {
            limits[limit] = json!(-1);
        }
    }
    limits
}

/// A user that is signed with the key of a role, as a file of credentials.
fn credentials(role: &str, account: &str, key: &KeyPair) -> String {
    let user = KeyPair::new_user();
    let claims = json!({ "issuer_account": account, "type": "user", "version": 2 });
    let jwt = signed(key, role, &user.public_key(), &claims);
    assert!(jwt.len() < 1000, "{}", jwt.len());
    let seed = user.seed().unwrap();
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

/// A server of which all accounts are known by their JWTs.
struct OperatorMode {
    _nats: Process,
    dir: TempDir,
    port: u16,
}

impl OperatorMode {
    fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let said = Command::new("python3").arg(root().join("deploy/nats/nsc.py")).arg("--claims").output().unwrap();
        let accounts: BTreeMap<String, Value> = serde_json::from_slice(&said.stdout).unwrap();
        let (dir, port, operator, system) =
            (tempfile::tempdir().unwrap(), free_port(), KeyPair::new_operator(), KeyPair::new_account());
        let keys: BTreeMap<&str, KeyPair> =
            accounts.keys().map(|name| (name.as_str(), KeyPair::new_account())).collect();
        let account = json!({ "type": "account", "version": 2, "limits": limits(false) });
        let mut known = vec![(system.public_key(), signed(&operator, "SYS", &system.public_key(), &account))];
        for (name, of) in &accounts {
            let id = keys[name.as_str()].public_key();
            let mut claims = account.clone();
            claims["limits"] = limits(of["jetstream"] == true);
            claims["exports"] = of["exports"].clone();
            claims["imports"] = of["imports"].clone();
            for import in claims["imports"].as_array_mut().unwrap() {
                let from = keys[import["account"].as_str().unwrap()].public_key();
                import["account"] = json!(from);
            }
            let mut scopes = Vec::new();
            for (role, template) in of["roles"].as_object().unwrap() {
                let key = KeyPair::new_account();
                scopes
                    .push(json!({ "kind": "user_scope", "key": key.public_key(), "role": role, "template": template }));
                fs::write(dir.path().join(format!("{role}.creds")), credentials(role, &id, &key)).unwrap();
            }
            claims["signing_keys"] = json!(scopes);
            known.push((id.clone(), signed(&operator, name, &id, &claims)));
        }
        let operator_claims = json!({ "type": "operator", "version": 2, "system_account": system.public_key() });
        let preload: String = known.iter().map(|(id, jwt)| format!("  {id}: {jwt}\n")).collect();
        let conf = format!(
            "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n{preload}}}\nmax_payload: 2097152\njetstream: enabled\n",
            signed(&operator, "O", &operator.public_key(), &operator_claims),
            system.public_key(),
        );
        fs::write(dir.path().join("nats.conf"), conf).unwrap();
        let mut command = Command::new(nats_server::find(None).unwrap());
        command.arg("-c").arg(dir.path().join("nats.conf")).arg("-sd").arg(dir.path().join("data"));
        command.args(["-a", "127.0.0.1", "-p", &port.to_string()]);
        let log = fs::File::create(dir.path().join("nats.log")).unwrap();
        let nats = Process::start(command.stdout(Stdio::null()).stderr(log));
        Self { _nats: nats, dir, port }
    }

    fn creds(&self, role: &str) -> String {
        self.dir.path().join(format!("{role}.creds")).display().to_string()
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A program with the credentials of a role.
    fn command(&self, role: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(MILLPOND);
        command.args(["--state", "none"]).args(arguments).stdin(Stdio::null());
        command
            .env(format!("MILLPOND_{}_NATS_URL", role.to_uppercase()), self.url())
            .env("MILLPOND_NATS_URL", self.url());
        command.env("MILLPOND_NATS_CREDS", self.creds(role)).env("MILLPOND_TOKEN", TOKEN);
        command
    }

    fn service(&self, role: &str, more: &[&str]) -> Process {
        let mut command = self.command(role, &[&[role, "run"], more].concat());
        let log = fs::File::create(self.log(role)).unwrap();
        Process::start(command.current_dir(self.dir.path()).stdout(Stdio::null()).stderr(log))
    }

    fn log(&self, role: &str) -> PathBuf {
        self.dir.path().join(format!("{role}.log"))
    }

    /// The server's answer to a publish of a role; none when it may not.
    async fn published(&self, role: &str, subject: &str) -> Option<Value> {
        let creds = fs::read_to_string(self.creds(role)).unwrap();
        let prefix = if role == "client" { "_INBOX".to_owned() } else { format!("_INBOX_{role}") };
        let options = async_nats::ConnectOptions::with_credentials(&creds).unwrap().custom_inbox_prefix(prefix);
        let client = options.connect(self.url()).await.unwrap();
        let answer = client.request(subject.to_owned(), "1".into());
        let answer = tokio::time::timeout(Duration::from_secs(1), answer).await.ok()?.ok()?;
        serde_json::from_slice(&answer.payload).ok()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_by_credentials_alone() {
    let nats = OperatorMode::start();
    let made = output(nats.command("setup", &["setup"])).await;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (collector, producer) = (free_port(), free_port());
    let listen = [collector, producer].map(|port| format!("127.0.0.1:{port}"));
    let _services = [
        nats.service("collector", &["--listen", &listen[0], "--store", "store.sqlite"]),
        nats.service("producer", &["--listen", &listen[1]]),
        nats.service("worker", &["--name", "w1", "--built-in", "*"]),
    ];
    for address in &listen {
        is_ready(&format!("http://{address}")).await;
    }
    // From the command line: by the flag alone, for now, and for later, which a producer service moves.
    for (id, more) in [("now", &["--wait"][..]), ("later", &["--delay", "1s", "--wait"])] {
        let creds = nats.creds("client");
        let submit = ["submit", "square", "12", "--id", id, "--nats-creds", creds.as_str()];
        let mut command = nats.command("client", &[&submit, more].concat());
        command.env_remove("MILLPOND_NATS_CREDS");
        let ended = output(command).await;
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(ended.status.success() && said.contains("144"), "{said}{}", String::from_utf8_lossy(&ended.stderr));
    }
    // A program in Rust; a user that the URL names is not sent.
    let args = ConnectArgs { nats_creds: Some(nats.creds("client").into()), ..ConnectArgs::from_env().unwrap() };
    let url = nats.url().replacen("127.0.0.1", "somebody:secret@127.0.0.1", 1);
    let client = Client::connect_with(&url, "program", args.check().unwrap()).await.unwrap();
    let id = client.submit(&task("square", "5"), RetryDeadline::Within(PATIENCE)).await.unwrap().id;
    until("the result", PATIENCE, async || {
        let found = reqwest::Client::new().get(format!("http://{}/api/v1/task", listen[0])).query(&[("id", &id)]);
        let found: Value = found.bearer_auth(TOKEN).send().await.ok()?.json().await.ok()?;
        (found["result"] == 25).then_some(())
    })
    .await;
    // The roles hold.
    for (role, subject, stream) in [
        ("client", "tasks.default.square", Some("TASKS")),
        ("publisher", "later.default.square", Some("LATER")),
        ("client", "due.default.square", None),
        ("publisher", "$JS.API.STREAM.NAMES", None),
        ("worker", "tasks.default.square", None),
        ("collector", "tasks.default.square", None),
    ] {
        let answer = nats.published(role, subject).await;
        assert_eq!(
            answer.as_ref().and_then(|answer| answer["stream"].as_str()),
            stream,
            "{role} {subject}: {answer:?}"
        );
    }
    let seed =
        |path: &str| fs::read_to_string(path).unwrap().lines().find(|line| line.starts_with("SU")).unwrap().to_owned();
    for role in ["collector", "producer", "worker"] {
        let said = fs::read_to_string(nats.log(role)).unwrap();
        assert!(!said.is_empty() && !said.contains(&seed(&nats.creds(role))), "{role} tells its seed: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_will_not_do_are_told_in_a_line() {
    let nats = OperatorMode::start();
    let stranger = credentials("client", &KeyPair::new_account().public_key(), &KeyPair::new_account());
    let halved = stranger.split("-----BEGIN USER").next().unwrap();
    let file = |name: &str, text: &str| {
        fs::write(nats.dir.path().join(name), text).unwrap();
        nats.dir.path().join(name).display().to_string()
    };
    let cases = [
        (nats.dir.path().join("none").display().to_string(), 2, "cannot read"),
        (file("empty", ""), 2, "is empty"),
        (file("other", "m0123456789abcdef\n"), 2, "cannot parse user JWT"),
        (file("halved", halved), 2, "cannot parse nkey"),
        (file("broken", &stranger.replace("\nSU", "\nSX")), 2, "cannot be used as the credentials of a NATS user"),
        (file("stranger", &stranger), 69, "uthorization"),
    ];
    for (creds, code, words) in cases {
        let mut command = nats.command("client", &["submit", "square", "1", "--connect-timeout", "10s"]);
        command.env("MILLPOND_NATS_CREDS", &creds);
        let refused = output(command).await;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(code), "{creds}: {said}");
        // The NATS client logs a refusal of the server by itself.
        assert!(said.lines().count() == 1 || code == 69, "{creds}: {said}");
        assert!(said.contains(words) && !said.contains("SUA"), "{words}: {said}");
    }
}

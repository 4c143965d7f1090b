//! A nats-server with the roles, a collector, workers: real processes, ended by their id when dropped.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use millpond::bus::topology::{StreamLimits, setup};
use millpond::bus::{Bus, Role};
use millpond::client::{Client, NewTask};
use millpond_api::jobs::JobRow;
use millpond_api::list::PAGE_ROWS_MAX;
use millpond_api::tasks::{Attempt, TaskDetails};
use millpond_cli::api::Api;
use millpond_cli::credentials::Credentials;
use millpond_cli::nats_server;
use millpond_service::reserved_port::ReservedPort;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The binary under test.
pub const MILLPOND: &str = env!("CARGO_BIN_EXE_millpond");
/// Longer than any lease, door or back-off that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A child process.
pub struct Process {
    child: Child,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        Self { child: command.stdin(Stdio::null()).spawn().unwrap() }
    }

    /// With an input that stays open until it ends.
    pub fn start_talking(command: &mut Command) -> Self {
        Self { child: command.stdin(Stdio::piped()).spawn().unwrap() }
    }

    /// Its answer to a line, both of them piped.
    pub fn asked(&mut self, line: &str) -> String {
        tokio::task::block_in_place(|| {
            writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
            BufReader::new(self.child.stdout.as_mut().unwrap()).lines().next().unwrap().unwrap()
        })
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end, on this thread.
    pub fn wait(&mut self) {
        let _ = self.child.wait();
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub async fn end(&mut self, limit: Duration) -> ExitStatus {
        until("the end of a process", limit, async || self.child.try_wait().unwrap()).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Asks again and again until there is an answer.
pub async fn until<T>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < limit, "no {what} within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for a turn of those tests that keep a core busy for long: browsers, thousands of requests, the official libraries. Two at
/// once leave the others the time that they wait for.
pub async fn busy_turn() -> SemaphorePermit<'static> {
    TURNS.acquire().await.unwrap()
}

static TURNS: Semaphore = Semaphore::const_new(BUSY_AT_ONCE as usize);
const BUSY_AT_ONCE: u32 = 2;

/// Waits until no other such test runs: three servers keep time by each other, beside whatever else runs.
pub async fn only_busy_turn() -> SemaphorePermit<'static> {
    TURNS.acquire_many(BUSY_AT_ONCE).await.unwrap()
}

/// Runs a command to its end, with nothing to read. It ends with the test that runs it.
pub async fn output(command: Command) -> Output {
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap()
}

/// A port that nobody listens on, and that no other test is given, of this process or of another.
pub fn free_port() -> u16 {
    static RESERVED: Mutex<Vec<ReservedPort>> = Mutex::new(Vec::new());
    let reserved = ReservedPort::take().unwrap();
    let port = reserved.port;
    RESERVED.lock().unwrap().push(reserved);
    port
}

/// A nats-server with the roles of deploy/nats, its data in a folder of its own; or a cluster of such nodes.
pub struct NatsServer {
    nodes: Vec<Node>,
    /// That of the first node.
    pub port: u16,
    pub secrets: Credentials,
}

struct Node {
    process: Process,
    dir: TempDir,
    port: u16,
    /// What makes it one of several.
    arguments: Vec<String>,
}

impl Node {
    fn start(arguments: Vec<String>, secrets: &Credentials) -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let process = Self::spawn(dir.path(), port, &arguments, secrets, &[]);
        Self { process, dir, port, arguments }
    }

    fn spawn(dir: &Path, port: u16, arguments: &[String], secrets: &Credentials, more: &[(&str, &Path)]) -> Process {
        let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nats/millpond.conf");
        let log = File::options().create(true).append(true).open(dir.join("nats.log")).unwrap();
        let mut command = Command::new(nats_server::find(None).unwrap());
        command.arg("-c").arg(conf).arg("-sd").arg(dir.join("data")).args(["-a", "127.0.0.1", "-p", &port.to_string()]);
        command.args(arguments).envs(secrets.server_environment()).envs(more.iter().copied());
        // Most servers of tests live for seconds: they need not collect garbage, which costs a seventh of their time.
        command.env("GOGC", "off").env("GOMEMLIMIT", "256MiB");
        Process::start(command.stdout(Stdio::null()).stderr(log))
    }

    fn restart(&mut self, secrets: &Credentials, more: &[(&str, &Path)]) {
        self.process.kill9();
        self.process = Self::spawn(self.dir.path(), self.port, &self.arguments, secrets, more);
    }
}

impl NatsServer {
    pub fn start() -> Self {
        Self::start_nodes(vec![Vec::new()])
    }

    /// Three nodes, `n1` to `n3`, of which each has a copy of everything that is set up with three replicas.
    pub fn start_three() -> Self {
        let routes: Vec<String> = (0..3).map(|_| format!("nats://127.0.0.1:{}", free_port())).collect();
        let all = routes.join(",");
        let arguments = routes.iter().zip(["n1", "n2", "n3"]).map(|(own, name)| {
            ["-n", name, "--cluster_name", "test", "--cluster", own.as_str(), "--routes", all.as_str()]
                .map(str::to_owned)
                .to_vec()
        });
        Self::start_nodes(arguments.collect())
    }

    fn start_nodes(arguments: Vec<Vec<String>>) -> Self {
        let secrets = Credentials::generate();
        let nodes: Vec<Node> = arguments.into_iter().map(|arguments| Node::start(arguments, &secrets)).collect();
        Self { port: nodes[0].port, nodes, secrets }
    }

    /// Hosts and ports of all nodes.
    pub fn addresses(&self) -> impl Iterator<Item = String> {
        self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port))
    }

    /// Where a role connects to: all nodes, with commas.
    pub fn url(&self, role: &str) -> String {
        self.nodes.iter().map(|node| self.secrets.nats_url(role, node.port)).collect::<Vec<_>>().join(",")
    }

    pub fn kill9(&mut self) {
        self.kill9_node(0);
    }

    pub fn kill9_node(&mut self, node: usize) {
        self.nodes[node].process.kill9();
    }

    pub fn restart_node(&mut self, node: usize) {
        self.nodes[node].restart(&self.secrets, &[]);
    }

    /// Starts it again on the same port and data.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// The same, with more in its environment.
    pub fn restart_with(&mut self, more: &[(&str, &Path)]) {
        for node in &mut self.nodes {
            node.restart(&self.secrets, more);
        }
    }

    /// The server's answer to a request in the role of `setup`.
    pub async fn asked(&self, subject: &str, body: &Value) -> Value {
        self.try_asked(subject, body).await.unwrap()
    }

    /// The same; none where nobody answers.
    pub async fn try_asked(&self, subject: &str, body: &Value) -> Option<Value> {
        // A busy machine may be too late for the server's patience with who connects.
        let client = until("a connection", PATIENCE, async || {
            let options = async_nats::ConnectOptions::new().custom_inbox_prefix("_INBOX_setup");
            let options = options.user_and_password("setup".into(), self.secrets.passwords["setup"].clone());
            options.connect(self.addresses().collect::<Vec<_>>()).await.ok()
        })
        .await;
        // Some requests must have no body.
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = client.request(subject.to_owned(), body.into()).await.ok()?;
        serde_json::from_slice(&answer.payload).ok()
    }

    /// How many consumers a stream has.
    pub async fn consumers(&self, stream: &str) -> u64 {
        let info = self.asked(&format!("$JS.API.STREAM.INFO.{stream}"), &Value::Null).await;
        info["state"]["consumer_count"].as_u64().unwrap()
    }

    pub async fn bus(&self, role: Role) -> Bus {
        Bus::connect(&self.url(role.name()), role, "test", PATIENCE).await.unwrap()
    }
}

/// A server with everything set up, and a collector; workers as a test starts them.
pub struct Cluster {
    pub nats: NatsServer,
    pub collector: Process,
    pub client: Client,
    pub api: Api,
    dir: TempDir,
    http: u16,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with(&StreamLimits::default()).await
    }

    pub async fn start_with(limits: &StreamLimits) -> Self {
        Self::start_on(NatsServer::start(), limits).await
    }

    /// On three nodes, with three replicas of everything.
    pub async fn start_three() -> Self {
        Self::start_on(NatsServer::start_three(), &StreamLimits { replicas: 3, ..StreamLimits::default() }).await
    }

    async fn start_on(nats: NatsServer, limits: &StreamLimits) -> Self {
        let bus = nats.bus(Role::Setup).await;
        if limits.replicas > 1 {
            // Nodes that have just started have no leader to make streams.
            until("streams on three nodes", PATIENCE, async || setup(&bus, limits).await.ok()).await;
        } else {
            setup(&bus, limits).await.unwrap();
        }
        let (dir, http) = (tempfile::tempdir().unwrap(), free_port());
        let collector = Self::spawn_collector(&nats, dir.path(), http, &[]);
        let client = Client::connect_with(&nats.url("client"), "test", PATIENCE).await.unwrap();
        let url = format!("http://127.0.0.1:{http}");
        // It sets up what any HTTP of this program needs.
        let api = Api::at(url.clone(), nats.secrets.token.clone()).unwrap();
        // Commands say nothing of workers while nobody answers.
        is_ready(&url).await;
        Self { nats, collector, client, api, dir, http }
    }

    fn spawn_collector(nats: &NatsServer, dir: &Path, http: u16, more: &[(&str, &str)]) -> Process {
        Self::start_collector(Command::new(MILLPOND), nats, dir, http, more)
    }

    fn start_collector(
        mut command: Command,
        nats: &NatsServer,
        dir: &Path,
        http: u16,
        more: &[(&str, &str)],
    ) -> Process {
        command.args(["--state", "none", "collector", "run"]);
        command.env("MILLPOND_COLLECTOR_NATS_URL", nats.url("collector"));
        command.env("MILLPOND_COLLECTOR_LISTEN", format!("127.0.0.1:{http}"));
        command.env("MILLPOND_COLLECTOR_STORE", dir.join("store.sqlite"));
        command.env("MILLPOND_TOKEN", &nats.secrets.token);
        command.env("MILLPOND_VIEWER_TOKEN", &nats.secrets.viewer_token);
        command.envs(more.iter().copied());
        Process::start(command.stdout(Stdio::null()).stderr(log(dir, "collector")))
    }

    /// Ends the collector as `kill -9` does, and starts another on the same store.
    pub fn restart_collector(&mut self, failpoint: Option<&str>) {
        let failpoint: Vec<_> = failpoint.into_iter().map(|f| ("MILLPOND_FAILPOINT", f)).collect();
        self.restart_collector_with(&failpoint);
    }

    /// The same, with more in its environment.
    pub fn restart_collector_with(&mut self, more: &[(&str, &str)]) {
        self.collector.kill9();
        self.collector = Self::spawn_collector(&self.nats, self.dir.path(), self.http, more);
    }

    /// Starts one more collector; its process, and its API once it is ready.
    pub async fn another_collector(&self, more: &[(&str, &str)]) -> (Process, Api) {
        let (process, url) = self.another_collector_url(more).await;
        (process, Api::at(url, self.nats.secrets.token.clone()).unwrap())
    }

    /// The same; its process, and its address once it is ready.
    pub async fn another_collector_url(&self, more: &[(&str, &str)]) -> (Process, String) {
        let http = free_port();
        let process = Self::spawn_collector(&self.nats, self.dir.path(), http, more);
        let url = format!("http://127.0.0.1:{http}");
        is_ready(&url).await;
        (process, url)
    }

    /// Ends the collector, and has this program run it in a surrounding of its own.
    pub async fn wrap_collector(&mut self, wrapped: &[&str], more: &[(&str, &str)]) {
        self.collector.kill9();
        let (program, arguments) = wrapped.split_first().unwrap();
        let mut command = Command::new(program);
        command.args(arguments).arg(MILLPOND);
        self.collector = Self::start_collector(command, &self.nats, self.dir.path(), self.http, more);
        is_ready(&self.collector_url()).await;
    }

    /// Starts a worker process with short delays between attempts.
    pub fn worker(&self, name: &str, arguments: &[&str], failpoint: Option<&str>) -> Process {
        let failpoint: Vec<_> = failpoint.into_iter().map(|f| ("MILLPOND_FAILPOINT", f)).collect();
        self.worker_with(name, arguments, &failpoint)
    }

    /// The same, with more in its environment.
    pub fn worker_with(&self, name: &str, arguments: &[&str], more: &[(&str, &str)]) -> Process {
        self.worker_below(&[], name, arguments, more)
    }

    /// The same, started by a program with these words, which becomes the worker.
    pub fn worker_below(&self, starter: &[&str], name: &str, arguments: &[&str], more: &[(&str, &str)]) -> Process {
        let mut words = starter.iter().copied().chain([MILLPOND]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(["--state", "none", "worker", "run", "--name", name]).args(arguments);
        if !arguments.contains(&"--retry-delay") {
            command.args(["--retry-delay", "100ms"]);
        }
        command.env("MILLPOND_WORKER_NATS_URL", self.nats.url("worker"));
        // Tests use them as handlers of their own.
        command.env("MILLPOND_WORKER_BUILT_IN", "*");
        command.envs(more.iter().copied());
        Process::start(command.stdout(Stdio::null()).stderr(log(self.dir.path(), name)))
    }

    /// Starts a producer service; its process and address, once it answers.
    pub async fn producer(&self) -> (Process, String) {
        self.producer_with(&[]).await
    }

    /// Starts a producer service that dies at a failpoint.
    pub fn failing_producer(&self, failpoint: &str) -> Process {
        self.spawn_producer(&format!("http://127.0.0.1:{}", free_port()), &[("MILLPOND_FAILPOINT", failpoint)])
    }

    /// The same, with more in its environment.
    pub async fn producer_with(&self, more: &[(&str, &str)]) -> (Process, String) {
        let url = format!("http://127.0.0.1:{}", free_port());
        let process = self.spawn_producer(&url, more);
        is_ready(&url).await;
        (process, url)
    }

    fn spawn_producer(&self, url: &str, more: &[(&str, &str)]) -> Process {
        let mut command = Command::new(MILLPOND);
        command.args(["--state", "none", "producer", "run", "--listen", url.trim_start_matches("http://")]);
        command.env("MILLPOND_PRODUCER_NATS_URL", self.nats.url("producer"));
        command.env("MILLPOND_TOKEN", &self.nats.secrets.token).envs(more.iter().copied());
        Process::start(command.stdout(Stdio::null()).stderr(log(self.dir.path(), "producer")))
    }

    /// The `millpond` command on this cluster.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(MILLPOND);
        command.args(["--state", "none"]).args(arguments);
        command.env("MILLPOND_NATS_URL", self.nats.url("client"));
        command.env("MILLPOND_COLLECTOR_URL", self.collector_url());
        command.env("MILLPOND_TOKEN", &self.nats.secrets.token);
        command
    }

    /// A command that runs beside the test, and ends with it at the latest: also where an expectation fails.
    pub fn started(&self, arguments: &[&str]) -> tokio::process::Child {
        let mut command = tokio::process::Command::from(self.command(arguments));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.spawn().unwrap()
    }

    pub fn collector_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    /// What a log says; for the message of a failed assertion.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    pub async fn get(&self, path: &str, query: &[(&str, String)]) -> Option<Value> {
        self.api.find(path, &query).await.ok().flatten()
    }

    /// The task once it has ended one way or another; a dead one with its letter, which comes by another stream.
    pub async fn ended(&self, id: &str) -> Value {
        until(&format!("end of task {id}"), PATIENCE, async || {
            let task = self.get("/api/v1/task", &[("id", id.to_owned())]).await?;
            let whole = match text(&task, "status").as_str() {
                "done" | "cancelled" => true,
                "dead" => task["dead"].is_object(),
                _ => false,
            };
            whole.then_some(task)
        })
        .await
    }

    /// The worker's record once `wanted` is true of it.
    pub async fn worker_is(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        until(&format!("wanted state of worker {name}"), PATIENCE, async || {
            let workers = self.get("/api/v1/workers", &[]).await?;
            workers["rows"].as_array()?.iter().find(|w| w["name"] == name && wanted(w)).cloned()
        })
        .await
    }

    /// The end of each task of a job, by index, once there are `count`; each index exactly once, nothing left open.
    pub async fn job_ends(&self, job: &str, count: u64, limit: Duration) -> Vec<Value> {
        until(&format!("end of job {job}"), limit, async || {
            let found: JobRow = self.api.get(&format!("/api/v1/jobs/{job}"), &()).await.ok()?;
            (found.done + found.dead + found.cancelled == count && found.retrying == 0).then_some(())
        })
        .await;
        let path = format!("/api/v1/jobs/{job}/results");
        let ends: Vec<Value> = self.api.all(&path, &[("limit", PAGE_ROWS_MAX)]).await.unwrap();
        let indexes: Vec<u64> = ends.iter().filter_map(|e| e["index"].as_u64()).collect();
        assert_eq!(indexes, (0..count).collect::<Vec<_>>(), "each index of job {job} ends exactly once, in order");
        ends
    }

    /// The attempts of a task: its worker and status.
    pub async fn attempts(&self, id: &str) -> Vec<(String, String)> {
        let task: TaskDetails = self.api.get("/api/v1/task", &[("id", id)]).await.unwrap();
        let ended = |attempt: Attempt| Some((attempt.worker?, attempt.status?.to_string()));
        task.history.attempts.into_iter().filter_map(ended).collect()
    }
}

/// Waits until a service says that it is.
pub async fn is_ready(url: &str) {
    let ready = format!("{url}/readyz");
    until(&ready, PATIENCE, async || reqwest::get(&ready).await.ok()?.status().is_success().then_some(())).await;
}

/// A task of the default queue.
pub fn task(kind: &str, arguments: &str) -> NewTask {
    NewTask { queue: "default".into(), kind: kind.into(), payload: arguments.to_owned().into(), ..Default::default() }
}

/// A field as text; empty when it is not there.
pub fn text(value: &Value, field: &str) -> String {
    match value.get(field) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

pub fn statuses(ends: &[Value]) -> Vec<String> {
    ends.iter().map(|e| text(e, "status")).collect()
}

fn log(dir: &Path, name: &str) -> File {
    File::options().create(true).append(true).open(dir.join(format!("{name}.log"))).unwrap()
}

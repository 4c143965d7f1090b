//! A nats-server and workers within a test, without passwords and without a collector.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::builder::Resettable;
use clap::{Args, FromArgMatches};
use millpond::Client;
use millpond::bus::topology::{StreamLimits, setup};
use millpond::bus::{Bus, Role};
use millpond::limits::SERVER_PAYLOAD_BYTES_MAX;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::builder::WorkerBuilder;
use crate::config::Config;

/// How long the server may take to listen.
const SERVER_WITHIN: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A nats-server with the streams of millpond, and the workers that a test gives it. All of it ends when it is dropped, running
/// tasks too. It has no collector: [`status`](millpond::client::TaskHandle::status), `cancel` and the ends of jobs are for
/// `millpond up`.
///
/// ```no_run
/// # async fn example() -> anyhow::Result<()> {
/// use std::convert::Infallible;
/// use std::time::Duration;
/// use millpond::NewTask;
/// use millpond_worker::{Worker, testing::TestCluster};
///
/// async fn square(n: u64) -> Result<u64, Infallible> {
///     Ok(n * n)
/// }
///
/// let mut cluster = TestCluster::start().await?;
/// cluster.worker(Worker::builder().handle("square", square))?;
/// let task = NewTask::json("default", "square", &12)?.awaited();
/// let mut task = cluster.client().submit(&task, Duration::from_secs(10)).await?;
/// assert_eq!(task.wait::<u64>(Duration::from_secs(10)).await?, 144);
/// # Ok(()) }
/// ```
pub struct TestCluster {
    client: Client,
    url: String,
    workers: JoinSet<anyhow::Result<()>>,
    shutdown: CancellationToken,
    _server: Server,
}

/// A process that ends with this, and then its folder.
struct Server {
    process: Child,
    dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl TestCluster {
    /// Starts a server on a free port of this machine, its data in a folder for temporary files, and makes the streams. The program
    /// is the one on PATH, or one that `millpond up` has fetched.
    ///
    /// # Errors
    /// When there is no nats-server, or it does not start.
    pub async fn start() -> anyhow::Result<Self> {
        let (server, url) = Server::start().await?;
        let bus = Bus::connect(&url, Role::Setup, "test", SERVER_WITHIN).await?;
        setup(&bus, &StreamLimits::default()).await?;
        bus.close().await;
        let client = Client::connect(&url).await?;
        Ok(Self { client, url, workers: JoinSet::new(), shutdown: CancellationToken::new(), _server: server })
    }

    /// A client of it.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The address of its server.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Starts a worker that serves the queue `default`, with short delays between attempts; nothing of the environment changes it.
    ///
    /// # Errors
    /// When a handler wants a state that it was not given.
    pub fn worker(&mut self, worker: WorkerBuilder) -> anyhow::Result<()> {
        self.worker_with(worker, &[])
    }

    /// The same with flags of `millpond worker run`: `--queues high,default`.
    ///
    /// # Errors
    /// The first flag that does not fit; a handler that wants a state that it was not given.
    pub fn worker_with(&mut self, worker: WorkerBuilder, flags: &[&str]) -> anyhow::Result<()> {
        let name = format!("test-{}", self.workers.len() + 1);
        let known = ["worker", "--nats-url", &self.url, "--name", &name, "--retry-delay", "50ms", "--drain-time", "1s"];
        // A flag that is given again goes over the one before.
        let command = Config::augment_args(clap::Command::new("worker").args_override_self(true));
        let command = command.mut_args(|arg| arg.env(Resettable::Reset));
        let matches = command.try_get_matches_from(known.iter().chain(flags))?;
        let worker = worker.build(Config::from_arg_matches(&matches)?.check()?)?;
        self.workers.spawn(worker.run(self.shutdown.clone()));
        Ok(())
    }

    /// Drains the workers and ends the server.
    ///
    /// # Errors
    /// The error that a worker ended with.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        while let Some(ended) = self.workers.join_next().await {
            ended??;
        }
        self.client.close().await;
        Ok(())
    }
}

impl Server {
    async fn start() -> anyhow::Result<(Self, String)> {
        let dir = tempfile::Builder::new().prefix("millpond-test-").tempdir()?;
        let (data, conf) = (dir.path().display(), dir.path().join("nats.conf"));
        let settings = format!(
            "listen: \"127.0.0.1:-1\"\nmax_payload: {SERVER_PAYLOAD_BYTES_MAX}\njetstream {{ store_dir: \"{data}\" }}\n\
             ports_file_dir: \"{data}\"\n"
        );
        fs::write(&conf, settings)?;
        let program = find()?;
        let mut command = Command::new(&program);
        command.arg("-c").arg(&conf).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Self { process, dir };
        let started = Instant::now();
        while started.elapsed() < SERVER_WITHIN {
            if let Some(url) = server.address() {
                return Ok((server, url));
            }
            if let Some(status) = server.process.try_wait()? {
                bail!("{} ended at once: {status}", program.display());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("{} does not listen", program.display())
    }

    /// The address that the server has written down, once it listens.
    fn address(&self) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Ports {
            nats: Vec<String>,
        }
        // Its name is that of the program's file, which has the version in it where `millpond up` has fetched it.
        let mut files = fs::read_dir(self.dir.path()).ok()?.filter_map(Result::ok).map(|entry| entry.path());
        let file = files.find(|file| file.extension().is_some_and(|extension| extension == "ports"))?;
        let ports: Ports = serde_json::from_str(&fs::read_to_string(file).ok()?).ok()?;
        ports.nats.into_iter().next()
    }
}

/// The nats-server on PATH, else the newest that `millpond up` has fetched.
fn find() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut on_path = std::env::split_paths(&path).map(|dir| dir.join("nats-server"));
    if let Some(program) = on_path.find(|file| file.is_file()) {
        return Ok(program);
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    let newest = cache.and_then(|cache| fetched(&cache.join("millpond")));
    newest.context("there is no nats-server: put one of version 2.14 or newer on PATH, or run `millpond up` once, which fetches one")
}

fn fetched(cache: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(cache).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let named =
        files.filter(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nats-server-")));
    named.filter(|file| file.is_file()).max()
}

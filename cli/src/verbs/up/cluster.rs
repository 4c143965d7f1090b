//! The processes of `up`. They start in the order server, setup, collector, producer, workers, and are drained the other
//! way round. A process that dies is started again.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use millpond::bus::read::outcomes::{OutcomeReader, OutcomeStream};
use millpond::bus::topology::{StreamLimits, setup};
use millpond::bus::{Bus, Role};
use millpond_api::workers::WorkerState;
use tokio_util::sync::CancellationToken;

use super::super::worker::list::list;
use super::args::UpArgs;
use super::ports::Ports;
use super::process::{ClusterProcess, ProcessSpec, log_tail};
use crate::api::Api;
use crate::cluster_env::{COLLECTOR_NATS_URL, PRODUCER_NATS_URL, TOKEN, VIEWER_TOKEN, WORKER_NATS_URL};
use crate::credentials::Credentials;
use crate::{nats_config, nats_server, private_file};

/// The collector's store.
const STORE: &str = "MILLPOND_COLLECTOR_STORE";
/// Whether a worker's `fetch` may go to this machine.
const FETCH_LOCAL: &str = "MILLPOND_WORKER_FETCH_LOCAL";
/// How long the server, and then the services, may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How often it is polled whether the cluster is ready.
const READY_POLL_EVERY: Duration = Duration::from_millis(50);
/// How often the processes, and at the end the collector, are polled.
const POLL_EVERY: Duration = Duration::from_millis(200);
/// How long the collector may take at the end to store what is left.
const STORE_WITHIN: Duration = Duration::from_secs(15);
/// How long a service may take to end beyond its drain time.
const END_WITHIN: Duration = Duration::from_secs(10);

/// A cluster on this machine.
pub(super) struct LocalCluster {
    pub(super) ports: Ports,
    pub(super) credentials: Credentials,
    pub(super) workers: Vec<ClusterProcess>,
    /// The server of another cluster, when `up` did not start one.
    nats_url: Option<String>,
    nats: Option<ClusterProcess>,
    collector: ClusterProcess,
    producer: ClusterProcess,
    drain_time: Duration,
}

/// What every process of the cluster is started from.
struct Start<'a> {
    args: &'a UpArgs,
    dir: &'a Path,
    ports: &'a Ports,
    credentials: &'a Credentials,
}

impl LocalCluster {
    pub(super) async fn start(args: &UpArgs, dir: &Path, shutdown: &CancellationToken) -> anyhow::Result<Self> {
        let credentials = Credentials::load_or_generate(dir)?;
        let ports = Ports::choose(args.ports, args.nats_url.is_none())?;
        private_file::folder(&dir.join("log"))?;
        let start = Start { args, dir, ports: &ports, credentials: &credentials };
        let mut nats = match args.nats_url {
            Some(_) => None,
            None => Some(start.nats_server().await?),
        };
        let setup_url = start.nats_url("setup");
        let bus = tokio::select! {
            bus = Bus::connect(&setup_url, Role::Setup, "up", READY_WITHIN) => bus,
            () = shutdown.cancelled() => bail!("stopped before nats-server was ready"),
            why = ended(&mut nats) => bail!("nats-server ended at its start: {why}"),
        };
        let bus = bus.with_context(|| log_tail(&dir.join("log").join("nats-server.log"), 0))?;
        setup(&bus, &StreamLimits::default()).await?;
        bus.close().await;
        let (collector, producer, workers) = (start.collector()?, start.producer()?, start.workers()?);
        let (nats_url, drain_time) = (args.nats_url.clone(), args.drain_time);
        Ok(Self { ports, credentials, workers, nats_url, nats, collector, producer, drain_time })
    }

    /// The URL of NATS for a role.
    pub(super) fn nats_url(&self, role: &str) -> String {
        nats_url(self.nats_url.as_ref(), &self.credentials, &self.ports, role)
    }

    /// Waits until both HTTP services answer and every worker has announced itself.
    pub(super) async fn ready(&mut self, dir: &Path) -> anyhow::Result<()> {
        let collector = format!("http://127.0.0.1:{}", self.ports.collector);
        let producer = format!("http://127.0.0.1:{}", self.ports.producer);
        let api = Api::at(collector.clone(), self.credentials.token.clone())?;
        let deadline = tokio::time::Instant::now() + READY_WITHIN;
        loop {
            for process in self.processes() {
                if let Some(status) = process.ended()? {
                    bail!("{} ended at its start ({status}): {}", process.name(), process.log_tail());
                }
            }
            if answers(&collector).await && answers(&producer).await && self.workers_live(&api).await {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                bail!(
                    "not ready within {}; look at {}",
                    humantime::format_duration(READY_WITHIN),
                    dir.join("log").display()
                );
            }
            tokio::time::sleep(READY_POLL_EVERY).await;
        }
    }

    async fn workers_live(&self, api: &Api) -> bool {
        let Ok(rows) = list(api).await else { return false };
        let live = |name| rows.iter().any(|row| row.record.name == name && row.state == WorkerState::Live);
        self.workers.iter().all(|process| live(process.name()))
    }

    fn processes(&mut self) -> impl Iterator<Item = &mut ClusterProcess> {
        self.nats.iter_mut().chain([&mut self.collector, &mut self.producer]).chain(&mut self.workers)
    }

    /// Starts processes again that die, until `stop`.
    pub(super) async fn watch(&mut self, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(POLL_EVERY) => {}
            }
            for process in self.processes() {
                process.rotate_log();
                if let Err(error) = process.restart_if_dead() {
                    note!("millpond: {}: {error:#}", process.name());
                }
            }
        }
    }

    /// Drains and ends the processes in order. A second Ctrl-C skips that.
    pub(super) async fn drain(mut self) {
        let orderly = async {
            let limit = self.drain_time + END_WITHIN;
            self.producer.terminate();
            self.workers.iter().for_each(ClusterProcess::terminate);
            for worker in &mut self.workers {
                worker.wait(limit).await;
            }
            self.producer.wait(END_WITHIN).await;
            if let Err(error) = all_stored(&self.nats_url("setup")).await {
                note!("millpond: {error:#}; it is stored at the next start");
            }
            self.collector.terminate();
            self.collector.wait(END_WITHIN).await;
            if let Some(nats) = &mut self.nats {
                nats.terminate();
                nats.wait(END_WITHIN).await;
            }
        };
        tokio::select! {
            () = orderly => {}
            _ = tokio::signal::ctrl_c() => note!("millpond: stopping at once; running tasks run again at the next start"),
        }
    }
}

impl Start<'_> {
    fn nats_url(&self, role: &str) -> String {
        nats_url(self.args.nats_url.as_ref(), self.credentials, self.ports, role)
    }

    /// Starts a service. Secrets go by its environment, other settings by flags.
    fn service(
        &self,
        name: &str,
        verb: &str,
        flags: Vec<(&str, OsString)>,
        secrets: Vec<(&str, String)>,
    ) -> anyhow::Result<ClusterProcess> {
        let mut arguments: Vec<OsString> = vec!["--state".into(), self.dir.into()];
        arguments.extend([verb, "run", "--exit-with-parent"].map(OsString::from));
        arguments.extend(flags.into_iter().flat_map(|(flag, value)| [flag.into(), value]));
        let env = secrets.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        ClusterProcess::start(ProcessSpec::new(self.dir, name, arguments, env))
    }

    fn collector(&self) -> anyhow::Result<ClusterProcess> {
        let file = || self.dir.join("store.sqlite").display().to_string();
        let secrets = vec![
            (COLLECTOR_NATS_URL, self.nats_url("collector")),
            (TOKEN, self.credentials.token.clone()),
            (VIEWER_TOKEN, self.credentials.viewer_token.clone()),
            // The URL of a database holds its password.
            (STORE, self.args.store.clone().unwrap_or_else(file)),
        ];
        self.service("collector", "collector", vec![("--listen", on_loopback(self.ports.collector))], secrets)
    }

    fn producer(&self) -> anyhow::Result<ClusterProcess> {
        let secrets = vec![(PRODUCER_NATS_URL, self.nats_url("producer")), (TOKEN, self.credentials.token.clone())];
        self.service("producer", "producer", vec![("--listen", on_loopback(self.ports.producer))], secrets)
    }

    fn workers(&self) -> anyhow::Result<Vec<ClusterProcess>> {
        let args = self.args;
        let handlers = args.handlers.as_ref().map(|path| {
            path.canonicalize().with_context(|| format!("cannot read handlers from {} (--handlers)", path.display()))
        });
        let handlers = handlers.transpose()?;
        let flags = |name: &str| {
            let drain_time = humantime::format_duration(args.drain_time).to_string();
            let mut flags: Vec<(&str, OsString)> = vec![
                ("--name", name.into()),
                ("--queues", args.queues.join(",").into()),
                ("--listen", on_loopback(0)),
                ("--drain-time", drain_time.into()),
            ];
            flags.push(("--built-in", "*".into()));
            flags.extend(args.slots.map(|slots| ("--slots", slots.to_string().into())));
            flags.extend(args.io_slots.map(|slots| ("--io-slots", slots.to_string().into())));
            flags.extend(handlers.clone().map(|path| ("--handlers", path.into())));
            flags.extend(args.allow_xargs.clone().map(|list| ("--allow-xargs", list.into())));
            flags
        };
        let start = |n| {
            let name = format!("w{n}");
            let mut env = vec![(WORKER_NATS_URL, self.nats_url("worker"))];
            env.extend(args.fetch_local.then(|| (FETCH_LOCAL, "true".to_owned())));
            self.service(&name, "worker", flags(&name), env)
        };
        (1..=args.workers).map(start).collect()
    }

    /// Starts nats-server by `run-with-parent`, so that it never outlives `up`, and no other one is on its folder.
    async fn nats_server(&self) -> anyhow::Result<ClusterProcess> {
        note!("millpond: starting a cluster on this machine");
        let named = self.args.nats_server.clone();
        let program = tokio::task::spawn_blocking(move || nats_server::find(named.as_deref())).await??;
        let folder = self.dir.join("nats");
        private_file::folder(&folder)?;
        for (name, text) in nats_config::FILES {
            match (name, self.args.bench_account) {
                ("roles.conf", true) => {
                    private_file::write(&folder.join(name), nats_config::with_bench_account(text).as_bytes())?;
                }
                _ => private_file::write(&folder.join(name), text.as_bytes())?,
            }
        }
        let (parent, lock) = (std::process::id().to_string(), folder.join("lock"));
        let mut arguments: Vec<OsString> = vec!["--parent".into(), parent.into(), "run-with-parent".into()];
        arguments.extend(["--lock".into(), lock.into(), "--".into(), program.into()]);
        arguments.extend(["-c".into(), folder.join("millpond.conf").into(), "-sd".into(), folder.join("data").into()]);
        arguments.extend(["-a".into(), "127.0.0.1".into(), "-p".into(), self.ports.nats.to_string().into()]);
        let env = self.credentials.server_environment().collect();
        ClusterProcess::start(ProcessSpec::new(self.dir, "nats-server", arguments, env))
    }
}

/// What the own server last said, once it has ended by itself.
async fn ended(nats: &mut Option<ClusterProcess>) -> String {
    match nats {
        Some(nats) => nats.died().await,
        None => std::future::pending().await,
    }
}

/// The URL of NATS for a role: of the server that was given, whose user may do everything, or of the own one.
fn nats_url(given: Option<&String>, credentials: &Credentials, ports: &Ports, role: &str) -> String {
    given.cloned().unwrap_or_else(|| credentials.nats_url(role, ports.nats))
}

fn on_loopback(port: u16) -> OsString {
    format!("127.0.0.1:{port}").into()
}

/// Waits until the collector has stored the end of every task.
async fn all_stored(url: &str) -> anyhow::Result<()> {
    let bus = Bus::connect(url, Role::Setup, "up", END_WITHIN).await?;
    let deadline = tokio::time::Instant::now() + STORE_WITHIN;
    for ended in [OutcomeStream::Results, OutcomeStream::Dead] {
        let reader = OutcomeReader::new(bus.clone(), ended);
        loop {
            let state = reader.state().await?;
            if state.pending + state.ack_pending == 0 {
                break;
            }
            if tokio::time::Instant::now() > deadline {
                bail!("the collector still has {} messages to store", state.pending + state.ack_pending);
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }
    bus.close().await;
    Ok(())
}

async fn answers(url: &str) -> bool {
    reqwest::get(format!("{url}/readyz")).await.is_ok_and(|r| r.status().is_success())
}

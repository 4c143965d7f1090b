//! `up`: the whole cluster on this machine, each service a process of its own, everything under the state folder.
//! Order: server, setup, collector, producer, workers; drained the other way round. A child that dies is started again.

mod child;
mod ports;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use millpond::bus::read::outcomes::{OutcomeReader, OutcomeStream};
use millpond::bus::topology::{StreamLimits, setup};
use millpond::bus::{Bus, Role};
use millpond::config::duration;
use serde_json::Value;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, text};
use crate::bench::BENCH_NATS_URL;
use crate::state::{Lock, Secrets};
use crate::{nats_server, state};
use child::{Child, Spec};
use ports::{Ports, PortsArg};

/// How long the server, then the services, may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How often `up` looks at its children.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long the collector may take to store what is left at the end.
const STORE_WITHIN: Duration = Duration::from_secs(15);
/// How long a service may take to end beyond its drain time.
const END_WITHIN: Duration = Duration::from_secs(10);

/// The server's configuration, the same files as in deploy/.
pub(crate) const CONFIG_FILES: [(&str, &str); 2] = [
    ("millpond.conf", include_str!("../../../deploy/nats/millpond.conf")),
    ("roles.conf", include_str!("../../../deploy/nats/roles.conf")),
];

/// An account of its own, next to that of millpond.
const BENCH_ACCOUNT: &str =
    "  BENCH { jetstream: enabled, users: [ { user: bench, password: $MILLPOND_SETUP_PASSWORD } ] }\n";

/// What to start.
#[derive(Args, Debug)]
pub struct UpArgs {
    /// Worker processes.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Tasks that compute and that each worker runs at once. Default: the number of cores.
    #[arg(long)]
    slots: Option<usize>,
    /// Tasks that wait for something else and that each worker runs at once. Default: 64.
    #[arg(long)]
    io_slots: Option<usize>,
    /// A file `handlers.toml`: kinds that run as commands in child processes (docs/handlers.md).
    #[arg(long)]
    handlers: Option<PathBuf>,
    /// Commands that `millpond xargs` may run on the workers, separated by commas; `*` allows every command.
    #[arg(long)]
    allow_xargs: Option<String>,
    /// Queues that the workers serve, separated by commas, in this order (`worker run --help`).
    #[arg(long, default_value = "default")]
    queues: String,
    /// `fixed`: 4222 for NATS, 7610 and 7611 for HTTP. `auto`: free ones.
    #[arg(long, value_enum, default_value_t = PortsArg::Fixed)]
    ports: PortsArg,
    /// Use this NATS server, whose user may do everything, instead of starting one.
    #[arg(long, env = "NATS_URL", hide_env_values = true)]
    nats_url: Option<String>,
    /// The nats-server program to start. Default: the one on PATH, else one that is fetched once.
    #[arg(long, env = "MILLPOND_NATS_SERVER")]
    nats_server: Option<PathBuf>,
    /// The collector's store: a file of SQLite, or postgres://user:password@host:5432/database. Default: a file in --state.
    #[arg(long, env = "MILLPOND_COLLECTOR_STORE", hide_env_values = true)]
    store: Option<String>,
    /// Give the server an account for the raw rounds of `bench` too.
    #[arg(long, hide = true)]
    bench_account: bool,
    /// At the end: how long running tasks may take before they are handed back.
    #[arg(long, default_value = "25s", value_parser = duration)]
    drain_time: Duration,
    /// A millpond command to run on the cluster once it is ready; then everything is drained, and its exit code is ours.
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Starts the cluster, and runs the command or waits for Ctrl-C; then drains it.
///
/// # Errors
/// When something cannot be started; what was started is ended.
pub async fn run(args: UpArgs, dir: &Path) -> anyhow::Result<ExitCode> {
    let _lock = Lock::take(dir)?;
    let dir = dir.canonicalize().with_context(|| format!("cannot use {}", dir.display()))?;
    let shutdown = millpond::shutdown::on_signal()?;
    let mut cluster = Cluster::start(&args, &dir, &shutdown).await?;
    let result = cluster.serve(&args, &dir, &shutdown).await;
    state::remove_env(&dir);
    cluster.drain().await;
    if result.is_ok() && !args.command.is_empty() {
        // Cargo names itself to what it runs.
        let millpond = if std::env::var_os("CARGO").is_some() { "cargo run --" } else { "millpond" };
        eprintln!("millpond: the cluster has stopped; what it stored is kept in {}", dir.display());
        eprintln!("millpond: next, `{millpond} up` starts one that stays, for commands in other shells");
    }
    result
}

struct Cluster {
    ports: Ports,
    secrets: Secrets,
    setup_url: String,
    nats: Option<Child>,
    collector: Child,
    producer: Child,
    workers: Vec<Child>,
    drain_time: Duration,
}

impl Cluster {
    async fn start(args: &UpArgs, dir: &Path, shutdown: &CancellationToken) -> anyhow::Result<Self> {
        let secrets = Secrets::load_or_generate(dir)?;
        let ports = Ports::choose(args.ports, args.nats_url.is_none())?;
        std::fs::create_dir_all(dir.join("log"))?;
        let url = |role: &str| args.nats_url.clone().unwrap_or_else(|| secrets.nats_url(role, ports.nats));
        let nats = match args.nats_url {
            Some(_) => None,
            None => Some(start_server(args, dir, &secrets, &ports).await?),
        };
        let setup_url = url("setup");
        let bus = tokio::select! {
            bus = Bus::connect(&setup_url, Role::Setup, "up", READY_WITHIN) => bus,
            () = shutdown.cancelled() => bail!("stopped before nats-server was ready"),
        };
        let bus = bus.with_context(|| log_tail(dir, "nats-server"))?;
        setup(&bus, &StreamLimits::default()).await?;
        bus.close().await;
        let http = |port: u16| format!("127.0.0.1:{port}");
        let token = (state::TOKEN, secrets.token.clone());
        let service = |name: &str, verb: &str, env: Vec<(&str, String)>| {
            Spec::service(dir, name, &[verb, "run", "--exit-with-parent"], env)
        };
        let store = args.store.clone().unwrap_or_else(|| dir.join("store.sqlite").display().to_string());
        let collector = Child::start(service(
            "collector",
            "collector",
            vec![
                (state::COLLECTOR_NATS_URL, url("collector")),
                ("MILLPOND_COLLECTOR_LISTEN", http(ports.collector)),
                ("MILLPOND_COLLECTOR_STORE", store),
                token.clone(),
                (state::VIEWER_TOKEN, secrets.viewer_token.clone()),
            ],
        ))?;
        let producer = Child::start(service(
            "producer",
            "producer",
            vec![
                (state::PRODUCER_NATS_URL, url("producer")),
                ("MILLPOND_PRODUCER_LISTEN", http(ports.producer)),
                token,
            ],
        ))?;
        let handlers = args.handlers.as_ref().map(|path| {
            path.canonicalize().with_context(|| format!("cannot read handlers from {} (--handlers)", path.display()))
        });
        let handlers = handlers.transpose()?;
        let workers = (1..=args.workers).map(|n| {
            let name = format!("w{n}");
            let mut env = vec![
                (state::WORKER_NATS_URL, url("worker")),
                ("MILLPOND_WORKER_NAME", name.clone()),
                ("MILLPOND_WORKER_QUEUES", args.queues.clone()),
                ("MILLPOND_WORKER_LISTEN", "127.0.0.1:0".to_owned()),
                ("MILLPOND_WORKER_DRAIN_TIME", humantime::format_duration(args.drain_time).to_string()),
            ];
            env.extend(args.slots.map(|slots| ("MILLPOND_WORKER_SLOTS", slots.to_string())));
            env.extend(args.io_slots.map(|slots| ("MILLPOND_WORKER_IO_SLOTS", slots.to_string())));
            env.extend(handlers.as_ref().map(|path| ("MILLPOND_WORKER_HANDLERS", path.display().to_string())));
            env.extend(args.allow_xargs.as_ref().map(|list| ("MILLPOND_WORKER_ALLOW_XARGS", list.clone())));
            Child::start(service(&name, "worker", env))
        });
        let workers = workers.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { ports, secrets, setup_url, nats, collector, producer, workers, drain_time: args.drain_time })
    }

    fn env(&self, args: &UpArgs) -> Vec<(&'static str, String)> {
        let url = |role: &str| args.nats_url.clone().unwrap_or_else(|| self.secrets.nats_url(role, self.ports.nats));
        let mut env = vec![
            (state::CLIENT_NATS_URL, url("client")),
            (state::WORKER_NATS_URL, url("worker")),
            (state::PRODUCER_NATS_URL, url("producer")),
            (state::COLLECTOR_NATS_URL, url("collector")),
            (state::PUBLISHER_NATS_URL, url("publisher")),
            (state::PRODUCER_URL, format!("http://127.0.0.1:{}", self.ports.producer)),
            (state::COLLECTOR_URL, format!("http://127.0.0.1:{}", self.ports.collector)),
            (state::TOKEN, self.secrets.token.clone()),
            (state::VIEWER_TOKEN, self.secrets.viewer_token.clone()),
        ];
        // Ours came from the environment, and so do theirs; commands in other shells find it here.
        let keys = std::env::var(state::SIGNING_KEY).ok().filter(|keys| !keys.is_empty());
        env.extend(keys.map(|keys| (state::SIGNING_KEY, keys)));
        if args.bench_account {
            env.push((BENCH_NATS_URL, url("setup").replacen("setup:", "bench:", 1)));
        }
        env
    }

    /// From the first child to the last moment before the drain.
    async fn serve(&mut self, args: &UpArgs, dir: &Path, shutdown: &CancellationToken) -> anyhow::Result<ExitCode> {
        tokio::select! {
            ready = self.ready(dir) => ready?,
            () = shutdown.cancelled() => bail!("stopped before everything was ready"),
        }
        eprintln!(
            "millpond: the cluster is up: nats-server, collector, producer and {} worker{}; logs are in {}",
            self.workers.len(),
            if self.workers.len() == 1 { "" } else { "s" },
            dir.join("log").display()
        );
        let env = self.env(args);
        state::write_env(dir, &env)?;
        if args.command.is_empty() {
            self.greet(&env, dir);
            self.watch(shutdown).await;
            eprintln!("draining; Ctrl-C again to leave at once");
            return Ok(ExitCode::SUCCESS);
        }
        let program = std::env::current_exe().context("this program cannot be found again")?;
        let mut command = Command::new(program);
        command.arg("--state").arg(dir).args(&args.command).kill_on_drop(true);
        // What the shell around us says of another cluster is not for this one.
        command.envs(env.iter().map(|(name, value)| (*name, value)));
        let mut command = command.stdin(Stdio::inherit()).spawn().context("cannot run the command")?;
        eprintln!("millpond: running {}", args.command.join(OsStr::new(" ")).display());
        // Ctrl-C reaches the command too: it ends by itself, and its exit code is still ours.
        let never = CancellationToken::new();
        let status = tokio::select! {
            status = command.wait() => status?,
            () = self.watch(&never) => return Ok(ExitCode::SUCCESS),
        };
        Ok(ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(130)))
    }

    /// Waits until both HTTP services answer and every worker has announced itself.
    async fn ready(&mut self, dir: &Path) -> anyhow::Result<()> {
        let collector = format!("http://127.0.0.1:{}", self.ports.collector);
        let producer = format!("http://127.0.0.1:{}", self.ports.producer);
        let api = Api::at(collector.clone(), self.secrets.token.clone())?;
        let deadline = tokio::time::Instant::now() + READY_WITHIN;
        loop {
            for child in self.children() {
                if let Some(status) = child.ended()? {
                    bail!("{} ended at its start ({status}): {}", child.name(), log_tail(dir, child.name()));
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
            tokio::time::sleep(LOOK_EVERY / 4).await;
        }
    }

    async fn workers_live(&self, api: &Api) -> bool {
        let Ok(Some(answer)) = api.get("/api/v1/workers", &[]).await else { return false };
        let rows = answer.get("rows").and_then(Value::as_array).cloned().unwrap_or_default();
        self.workers.iter().all(|w| rows.iter().any(|r| text(r, "name") == w.name() && text(r, "state") == "live"))
    }

    fn children(&mut self) -> impl Iterator<Item = &mut Child> {
        self.nats.iter_mut().chain([&mut self.collector, &mut self.producer]).chain(&mut self.workers)
    }

    fn greet(&self, env: &[(&str, String)], dir: &Path) {
        let find = |name: &str| env.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v.as_str());
        println!("nats       {}", find(state::CLIENT_NATS_URL));
        println!("producer   {}", find(state::PRODUCER_URL));
        println!("collector  {}", find(state::COLLECTOR_URL));
        println!("console    {}/console/", find(state::COLLECTOR_URL));
        let (token, viewer) = (state::TOKEN, state::VIEWER_TOKEN);
        println!("tokens     in {}: {token} for everything, {viewer} to read", dir.join("env").display());
        println!("workers    {}", self.workers.iter().map(Child::name).collect::<Vec<_>>().join(" "));
        println!("any NATS client publishes a task:");
        println!("  nats --server {} req tasks.default.square 12", find(state::CLIENT_NATS_URL));
        println!("ready; Ctrl-C drains and leaves");
    }

    /// Starts again what dies, until told to stop.
    async fn watch(&mut self, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            for child in self.children() {
                if let Err(error) = child.revive() {
                    eprintln!("millpond: {}: {error:#}", child.name());
                }
            }
        }
    }

    /// Ends everything in order; a second Ctrl-C ends it at once.
    async fn drain(mut self) {
        let orderly = async {
            let limit = self.drain_time + END_WITHIN;
            self.producer.signal();
            self.workers.iter().for_each(Child::signal);
            for worker in &mut self.workers {
                worker.wait(limit).await;
            }
            self.producer.wait(END_WITHIN).await;
            if let Err(error) = all_stored(&self.setup_url).await {
                eprintln!("millpond: {error:#}; it is stored at the next start");
            }
            self.collector.signal();
            self.collector.wait(END_WITHIN).await;
            if let Some(nats) = &mut self.nats {
                nats.signal();
                nats.wait(END_WITHIN).await;
            }
        };
        tokio::select! {
            () = orderly => {}
            _ = tokio::signal::ctrl_c() => eprintln!("millpond: leaving at once; running tasks run again at the next start"),
        }
    }
}

/// Waits until the collector has stored all that has ended.
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
                bail!("the collector has {} messages to store still", state.pending + state.ack_pending);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    bus.close().await;
    Ok(())
}

async fn answers(url: &str) -> bool {
    reqwest::get(format!("{url}/readyz")).await.is_ok_and(|r| r.status().is_success())
}

/// Runs nats-server under a guard, so that it never outlives us.
async fn start_server(args: &UpArgs, dir: &Path, secrets: &Secrets, ports: &Ports) -> anyhow::Result<Child> {
    let named = args.nats_server.clone();
    eprintln!("millpond: starting a cluster on this machine");
    let program = tokio::task::spawn_blocking(move || nats_server::find(named.as_deref())).await??;
    let folder = dir.join("nats");
    std::fs::create_dir_all(&folder)?;
    for (name, text) in CONFIG_FILES {
        std::fs::write(folder.join(name), text)?;
    }
    if args.bench_account {
        let roles = folder.join("roles.conf");
        let text = std::fs::read_to_string(&roles)?;
        let text = text.trim_end().strip_suffix('}').unwrap_or_default();
        std::fs::write(&roles, format!("{text}{BENCH_ACCOUNT}}}\n"))?;
    }
    let mut guard: Vec<OsString> = vec!["guard".into(), "--".into(), program.into()];
    guard.extend(["-c".into(), folder.join("millpond.conf").into(), "-sd".into(), folder.join("data").into()]);
    guard.extend(["-a".into(), "127.0.0.1".into(), "-p".into(), ports.nats.to_string().into()]);
    let env = secrets.server_environment().collect();
    Child::start(Spec::new(dir, "nats-server", guard, env))
}

/// The last lines of a child's log, for an error message.
fn log_tail(dir: &Path, name: &str) -> String {
    let path = dir.join("log").join(format!("{name}.log"));
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines.iter().rev().take(3).rev().copied().collect::<Vec<_>>().join(" | ");
    format!("{tail} (log: {})", path.display())
}

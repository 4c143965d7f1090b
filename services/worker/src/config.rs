//! What is typed ([`Config`]) becomes what the worker uses ([`Settings`]). Nothing else reads the environment.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Command, FromArgMatches};
use millpond::config::{ConnectSettings, SigningArgs, duration, setting_duration};
use millpond::retry::{RetryOverrides, RetryPolicy, parse_attempts_max, parse_jitter, parse_queue_retry};
use millpond::signature::Signer;
use millpond::wire::subject::check_token;
use millpond::worker_record::BUILT_IN_KINDS;
use millpond_service::listen::HttpSettings;
use millpond_service::program::{NoCommand, Service};
use millpond_service::settings::{ServiceArgs, nats_url};
use tokio_util::sync::CancellationToken;

use crate::Worker;
use crate::child_main::own_kind;
use crate::container_name::container_name;
use crate::supervisor::check_env_pattern;

const NATS_URL: &str = "MILLPOND_WORKER_NATS_URL";
const LISTEN: &str = "MILLPOND_WORKER_LISTEN";
/// Most slots of one worker process.
const SLOTS_MAX: usize = 4096;
/// Tasks that wait on the I/O slots of a worker at once, when it is not told otherwise.
const IO_SLOTS_DEFAULT: usize = 64;
/// Timeout of one attempt, where neither the worker nor its task says otherwise.
const TASK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);
/// A task is dead-lettered when no live worker has announced its kind for this long.
const UNKNOWN_KIND_AFTER_DEFAULT: Duration = Duration::from_secs(60);

/// Settings of a worker, as typed.
#[derive(Args, Debug, Clone)]
pub struct Config {
    /// NATS, with the worker role's user and password: nats://worker:PASSWORD@host:4222.
    #[arg(long, env = NATS_URL, hide_env_values = true)]
    pub nats_url: Option<String>,
    /// Name of this worker in logs, results and `worker ls`; one token. Default: in a container of Docker its name, else host name
    /// and process id.
    #[arg(long, env = "MILLPOND_WORKER_NAME")]
    pub name: Option<String>,
    /// Queues to serve, separated by commas, in this order: while one has work it gets the slots, and all behind it together
    /// at least every tenth task.
    #[arg(long, env = "MILLPOND_WORKER_QUEUES", default_value = "default", value_delimiter = ',')]
    pub queues: Vec<String>,
    /// Tasks that compute and that run at once, on threads or in child processes. Default: the number of cores. Kinds of
    /// --handlers with `slots` of their own come on top.
    #[arg(long, env = "MILLPOND_WORKER_SLOTS")]
    pub slots: Option<usize>,
    /// Tasks that wait for something else (`fetch`, `sleep`, async handlers) and that run at once. Raise it for more waiting.
    #[arg(long, env = "MILLPOND_WORKER_IO_SLOTS", default_value_t = IO_SLOTS_DEFAULT)]
    pub io_slots: usize,
    /// A file `handlers.toml`: kinds that run as commands in child processes (docs/handlers.md).
    #[arg(long, env = "MILLPOND_WORKER_HANDLERS")]
    pub handlers: Option<PathBuf>,
    /// Commands that tasks of the kind `xargs` may run here, separated by commas; `*` allows every command. Whoever may
    /// publish tasks can then run them on this machine.
    #[arg(long, env = "MILLPOND_WORKER_ALLOW_XARGS", value_delimiter = ',')]
    pub allow_xargs: Vec<String>,
    /// Variables of the worker's environment that commands of the kind `xargs` get beside those that every child gets, separated
    /// by commas, such as `AWS_*` (docs/handlers.md).
    #[arg(long, env = "MILLPOND_WORKER_XARGS_ENV_PASS", value_delimiter = ',')]
    pub xargs_env_pass: Vec<String>,
    /// Built-in kinds that run here, separated by commas; `*` stands for all: echo, square, is_prime, count_primes, fetch, sleep,
    /// spin, fail. They are for trial: whoever may publish can then fetch addresses, compute for long, or end the worker.
    #[arg(long, env = "MILLPOND_WORKER_BUILT_IN", value_delimiter = ',')]
    pub built_in: Vec<String>,
    /// The built-in kind `fetch` may go to loopback and link-local addresses: this machine, and what a cloud serves there.
    #[arg(long, env = "MILLPOND_WORKER_FETCH_LOCAL")]
    pub fetch_local: bool,
    /// Folder for arguments that are too large for memory; it needs room for one of each running task. Default: TMPDIR,
    /// else /var/tmp.
    #[arg(long, env = "MILLPOND_WORKER_SPOOL")]
    pub spool: Option<PathBuf>,
    /// Where health and metrics are served over HTTP, such as 127.0.0.1:7612; nowhere, when not set.
    #[arg(long, env = LISTEN)]
    pub listen: Option<SocketAddr>,
    /// After SIGTERM or SIGINT: how long running tasks may take before the rest is published again. Raise it for long
    /// tasks, together with the grace period of whatever stops the process.
    #[arg(long, env = "MILLPOND_WORKER_DRAIN_TIME", default_value = "25s", value_parser = duration)]
    pub drain_time: Duration,
    /// Leave when nothing was to do for this long; never, when not set.
    #[arg(long, env = "MILLPOND_WORKER_IDLE_EXIT", value_parser = duration)]
    pub idle_exit: Option<Duration>,
    /// Timeout of an attempt of a task that brings none.
    #[arg(long, env = "MILLPOND_WORKER_TASK_TIMEOUT", default_value_t = humantime::Duration::from(TASK_TIMEOUT_DEFAULT),
        value_parser = setting_duration)]
    pub task_timeout: humantime::Duration,
    /// The longest timeout that a task may bring, where its kind (handlers.toml) says nothing else; a task that asks for more is
    /// dead-lettered. Default: --task-timeout.
    #[arg(long, env = "MILLPOND_WORKER_TASK_TIMEOUT_MAX", value_parser = duration)]
    pub task_timeout_max: Option<Duration>,
    /// Attempts before a task is dead-lettered, 1 to 100, where neither the task nor its kind says otherwise.
    #[arg(long, env = "MILLPOND_WORKER_ATTEMPTS_MAX", default_value_t = RetryPolicy::DEFAULT.attempts_max,
        value_parser = parse_attempts_max)]
    pub attempts_max: u32,
    /// Delay before the first retry; it doubles with each attempt.
    #[arg(long, env = "MILLPOND_WORKER_RETRY_DELAY",
        default_value_t = humantime::Duration::from(RetryPolicy::DEFAULT.delay),
        value_parser = setting_duration)]
    pub retry_delay: humantime::Duration,
    /// Longest delay before a retry.
    #[arg(long, env = "MILLPOND_WORKER_RETRY_DELAY_MAX",
        default_value_t = humantime::Duration::from(RetryPolicy::DEFAULT.delay_max),
        value_parser = setting_duration)]
    pub retry_delay_max: humantime::Duration,
    /// The part of each delay that is random, 0 to 1. Raise it when tasks that failed together come back together.
    #[arg(long, env = "MILLPOND_WORKER_RETRY_JITTER", default_value_t = RetryPolicy::DEFAULT.jitter,
        value_parser = parse_jitter)]
    pub retry_jitter: f64,
    /// What the tasks of one queue have instead, of `attempts`, `delay`, `delay-max` and `jitter`; several times for several
    /// queues, or separated by semicolons. A kind's own settings and a task's own header go over it.
    #[arg(long, env = "MILLPOND_WORKER_QUEUE_RETRY", value_name = "QUEUE:attempts=N,delay=TIME,…", value_delimiter = ';',
        value_parser = parse_queue_retry)]
    pub queue_retry: Vec<(String, RetryOverrides)>,
    /// A task is dead-lettered when no live worker has known its kind for this long. Raise it when workers come late.
    #[arg(long, env = "MILLPOND_WORKER_UNKNOWN_KIND_AFTER", default_value_t = humantime::Duration::from(UNKNOWN_KIND_AFTER_DEFAULT),
        value_parser = setting_duration)]
    pub unknown_kind_after: humantime::Duration,
    /// Whether tasks must be signed.
    #[command(flatten)]
    pub signing: SigningArgs,
    /// What every service has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Settings of a worker, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// NATS, with credentials.
    pub nats_url: String,
    /// Name: one token.
    pub name: String,
    /// Queues, at least one, each a token.
    pub queues: Vec<String>,
    /// Tasks that compute and run at once, at least one.
    pub slots: usize,
    /// Tasks that wait and run at once, at least one.
    pub io_slots: usize,
    /// File of the kinds that run as commands.
    pub handlers: Option<PathBuf>,
    /// Commands that tasks of the kind `xargs` may run.
    pub xargs: Vec<String>,
    /// Variables of the worker that commands of the kind `xargs` get.
    pub xargs_env_pass: Vec<String>,
    /// Built-in kinds that run here; `*` for all.
    pub built_in: Vec<String>,
    /// Whether the built-in kind `fetch` may go to loopback and link-local addresses.
    pub fetch_local: bool,
    /// Folder for arguments that are too large for memory.
    pub spool: PathBuf,
    /// Where health and metrics are served.
    pub listen: Option<SocketAddr>,
    /// How long running tasks may take after the stop signal.
    pub drain_time: Duration,
    /// Leave after this long without work.
    pub idle_exit: Option<Duration>,
    /// Timeout of an attempt of a task that brings none.
    pub task_timeout: Duration,
    /// The longest timeout that a task may bring, where its kind says nothing of timeouts.
    pub task_timeout_max: Duration,
    /// Retries of a task where neither it nor its kind says otherwise.
    pub retry: RetryPolicy,
    /// What a queue has instead, at most one entry for each.
    pub queue_retry: Vec<(String, RetryOverrides)>,
    /// When a task of a kind that no live worker knows is dead-lettered.
    pub unknown_kind_after: Duration,
    /// Keys; with them only signed tasks run.
    pub signer: Option<Signer>,
    /// What HTTP is served with, where it is by TLS.
    pub http: HttpSettings,
    /// How to reach NATS.
    pub access: ConnectSettings,
}

impl Settings {
    /// The settings of the environment (`MILLPOND_WORKER_NATS_URL` and the others that `millpond worker run --help` lists), for a
    /// program without a command line.
    ///
    /// # Errors
    /// The first setting that does not fit, and what would.
    pub fn from_env() -> anyhow::Result<Self> {
        let nothing_typed = [OsString::from(Config::NAME)];
        let matches = Config::augment_args(Command::new(Config::NAME)).try_get_matches_from(nothing_typed)?;
        Config::from_arg_matches(&matches)?.check()
    }
}

impl Config {
    /// The worker's name, as typed or as it is otherwise.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(default_name)
    }

    /// Checks what was typed.
    ///
    /// # Errors
    /// The first setting that does not fit, and what would.
    pub fn check(self) -> anyhow::Result<Settings> {
        let name = self.name();
        // A child of this program has none of the worker's settings, and needs no NATS.
        let nats_url = if own_kind().is_some() { String::new() } else { nats_url(self.nats_url, NATS_URL)? };
        check_token("worker name", &name)?;
        for queue in &self.queues {
            check_token("queue", queue)?;
        }
        if self.queues.is_empty() {
            bail!("a worker needs at least one queue: --queues default");
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let slots = self.slots.unwrap_or(cores);
        for (flag, slots) in [("--slots", slots), ("--io-slots", self.io_slots)] {
            if !(1..=SLOTS_MAX).contains(&slots) {
                bail!("{flag} {slots} must be a number from 1 to {SLOTS_MAX}");
            }
        }
        let mut seen = BTreeSet::new();
        for (queue, _) in &self.queue_retry {
            if !self.queues.contains(queue) {
                bail!("--queue-retry {queue}: this worker does not serve the queue {queue}, see --queues");
            }
            if !seen.insert(queue) {
                bail!("--queue-retry {queue}: the queue is named twice");
            }
        }
        let xargs_env_pass = env_patterns(self.xargs_env_pass)?;
        let built_in = built_in_kinds(self.built_in)?;
        let task_timeout = Duration::from(self.task_timeout);
        let task_timeout_max = self.task_timeout_max.unwrap_or(task_timeout);
        if task_timeout_max < task_timeout {
            bail!("--task-timeout-max must not be shorter than --task-timeout ({})", self.task_timeout);
        }
        let retry = RetryPolicy {
            attempts_max: self.attempts_max,
            delay: self.retry_delay.into(),
            delay_max: self.retry_delay_max.into(),
            jitter: self.retry_jitter,
        };
        let (http, access) = self.service.check()?;
        Ok(Settings {
            nats_url,
            name,
            queues: self.queues,
            slots,
            io_slots: self.io_slots,
            handlers: self.handlers,
            xargs: self.allow_xargs.into_iter().filter(|command| !command.is_empty()).collect(),
            xargs_env_pass,
            built_in,
            fetch_local: self.fetch_local,
            spool: self.spool.unwrap_or_else(default_spool),
            listen: self.listen,
            drain_time: self.drain_time,
            idle_exit: self.idle_exit,
            task_timeout,
            task_timeout_max,
            retry,
            queue_retry: self.queue_retry,
            unknown_kind_after: self.unknown_kind_after.into(),
            signer: self.signing.signer()?,
            http,
            access,
        })
    }
}

/// Names of variables as typed, checked.
fn env_patterns(typed: Vec<String>) -> anyhow::Result<Vec<String>> {
    let patterns: Vec<String> = typed.into_iter().filter(|name| !name.is_empty()).collect();
    for pattern in &patterns {
        check_env_pattern(pattern).map_err(anyhow::Error::msg).context("--xargs-env-pass")?;
    }
    Ok(patterns)
}

/// Built-in kinds as typed, checked.
fn built_in_kinds(typed: Vec<String>) -> anyhow::Result<Vec<String>> {
    let kinds: Vec<String> = typed.into_iter().filter(|kind| !kind.is_empty()).collect();
    if let Some(kind) = kinds.iter().find(|kind| *kind != "*" && !BUILT_IN_KINDS.contains(&kind.as_str())) {
        bail!("--built-in {kind} is no built-in kind; these are: {}", BUILT_IN_KINDS.join(", "));
    }
    Ok(kinds)
}

impl Service for Config {
    const NAME: &'static str = "millpond-worker";
    const ABOUT: &'static str = "Takes tasks from NATS, runs their handlers in slots, and settles them";
    type Command = NoCommand;

    fn args(&self) -> &ServiceArgs {
        &self.service
    }

    fn health_address(&self) -> anyhow::Result<SocketAddr> {
        self.listen.with_context(|| format!("this worker serves no health: set --listen or {LISTEN}"))
    }

    fn instance(&self) -> Option<String> {
        Some(self.name())
    }

    fn execute(self, command: NoCommand) -> anyhow::Result<()> {
        match command {}
    }

    async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        Worker::builder().build(self.check()?)?.run(shutdown).await
    }
}

/// A place for large files: the usual folder for temporary files may be memory.
fn default_spool() -> PathBuf {
    let large = PathBuf::from("/var/tmp");
    if std::env::var_os("TMPDIR").is_none() && large.is_dir() { large } else { std::env::temp_dir() }
}

fn default_name() -> String {
    if let Some(name) = container_name().filter(|name| check_token("worker name", name).is_ok()) {
        return name.to_owned();
    }
    let host: String = millpond::host()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' })
        .take(48)
        .collect();
    format!("{host}-{}", std::process::id())
}

//! The settings of `up`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use millpond::config::duration;

use super::ports::PortsChoice;
use crate::verbs::task_args::queue;

/// `up`.
#[derive(Args, Debug)]
pub struct UpArgs {
    /// Number of worker processes.
    #[arg(long, default_value_t = 1)]
    pub(super) workers: usize,
    /// How many computing tasks each worker runs at once. Default: the number of cores.
    #[arg(long)]
    pub(super) slots: Option<usize>,
    /// How many waiting tasks, such as downloads, each worker runs at once. Default: 64.
    #[arg(long)]
    pub(super) io_slots: Option<usize>,
    /// File `handlers.toml` with kinds that run as commands in child processes (docs/handlers.md).
    #[arg(long)]
    pub(super) handlers: Option<PathBuf>,
    /// Commands that `millpond xargs` may run on the workers, separated by commas; `*` allows every command.
    #[arg(long)]
    pub(super) allow_xargs: Option<String>,
    /// The built-in kind `fetch` may go to loopback and link-local addresses.
    #[arg(long)]
    pub(super) fetch_local: bool,
    /// Queues that the workers serve, separated by commas, the first one preferred (`worker run --help`).
    #[arg(long, default_value = "default", value_delimiter = ',', value_parser = queue)]
    pub(super) queues: Vec<String>,
    /// Which ports to listen on: `fixed` is 4222 for NATS, 7610 and 7611 for HTTP; `auto` takes free ones.
    #[arg(long, value_enum, default_value_t = PortsChoice::Fixed)]
    pub(super) ports: PortsChoice,
    /// URL of a NATS server to use, whose user may do everything, instead of starting one.
    #[arg(long, env = "NATS_URL", hide_env_values = true)]
    pub(super) nats_url: Option<String>,
    /// The nats-server program to start. Default: the one on PATH, else one that is fetched once.
    #[arg(long, env = "MILLPOND_NATS_SERVER")]
    pub(super) nats_server: Option<PathBuf>,
    /// The collector's store: an SQLite file, or postgres://user:password@host:5432/database. Default: a file in --state.
    #[arg(long, env = "MILLPOND_COLLECTOR_STORE", hide_env_values = true)]
    pub(super) store: Option<String>,
    /// Give the server a second account, for the raw rounds of `bench`.
    #[arg(long, hide = true)]
    pub(super) bench_account: bool,
    /// How long running tasks may take at the end before they are released for the next start.
    #[arg(long, default_value = "25s", value_parser = duration)]
    pub(super) drain_time: Duration,
    /// A millpond command to run on the cluster once it is ready. Then the cluster is drained, and `up` ends with the
    /// command's exit code.
    #[arg(last = true)]
    pub(super) command: Vec<OsString>,
}

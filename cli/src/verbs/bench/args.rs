//! The settings of `bench`, and the cluster that it measures.

use std::path::Path;

use anyhow::Context;
use tokio::process::Command;

/// Whose credentials the submitter of `bench` has.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SubmitterRole {
    /// Those of client programs, whose account is not that of the streams: the server passes each message from one to the other
    Client,
    /// Those of a producer service, which is in the account of the streams
    Producer,
}

/// `bench`.
#[derive(clap::Args, Debug, Clone)]
pub struct BenchArgs {
    /// How many rounds to run of each kind; their order is reversed each time.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// How many tasks a round with one task per message has; a round with batches has twenty times as many.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    pub(super) tasks: u64,
    /// How many single round trips a round has.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=1_000_000))]
    pub(super) lone: u64,
    /// How many slots the worker has. Default: the number of cores.
    #[arg(long)]
    pub(super) slots: Option<usize>,
    /// Instead measure handlers in child processes, beside Python's multiprocessing.Pool.
    #[arg(long)]
    pub(super) isolate: bool,
    /// Instead measure the cost of exported spans and logs, also when the OpenTelemetry Collector is away, hangs or refuses.
    #[arg(long, conflicts_with = "isolate")]
    pub(super) telemetry: bool,
    /// Whose credentials the submitter has.
    #[arg(long, value_enum, default_value_t = SubmitterRole::Client, conflicts_with_all = ["isolate", "telemetry"])]
    pub(super) role: SubmitterRole,
    /// Print all figures as one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    /// Measure on the cluster of `up --bench-account`, whose command this process is.
    #[arg(long, hide = true)]
    pub(super) inside: bool,
}

impl BenchArgs {
    /// How many slots the worker has.
    pub(super) fn slots(&self) -> usize {
        self.slots.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// The command that starts a cluster in this folder.
    pub(super) fn cluster(&self, dir: &Path) -> anyhow::Result<Command> {
        let program = std::env::current_exe().context("this program cannot be found again")?;
        let mut command = Command::new(program);
        // Killed, this process can tell the cluster nothing: it looks for its parent itself.
        command.args(["--parent", &std::process::id().to_string()]);
        command.arg("--state").arg(dir).args(["up", "--ports", "auto", "--bench-account"]);
        command.args(self.slots.map(|slots| format!("--slots={slots}"))).env_remove("NATS_URL");
        Ok(command)
    }
}

//! `setup`: creates or updates the streams, consumers and buckets on the NATS server.

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context;
use clap::Args;
use millpond::bus::topology::{StreamLimits, setup};
use millpond::bus::{Bus, Role};
use millpond::config::{ConnectArgs, bytes};

use crate::cluster_env::ClusterEnv;

/// URL of NATS with the setup role's password.
const SETUP_NATS_URL: &str = "MILLPOND_SETUP_NATS_URL";

/// `setup`.
#[derive(Args, Debug)]
pub struct SetupArgs {
    /// URL of NATS, with the setup role's user and password.
    #[arg(long, env = SETUP_NATS_URL, hide_env_values = true)]
    nats_url: Option<String>,
    /// How many messages the stream TASKS holds at most; publishers wait when it is full.
    #[arg(long, env = "MILLPOND_SETUP_TASKS_MAX", default_value_t = StreamLimits::default().tasks_max)]
    tasks_max: i64,
    /// Size of the stream TASKS at most; publishers wait when it is full. Raise it for long queues of large tasks.
    #[arg(long, env = "MILLPOND_SETUP_TASKS_BYTES_MAX", default_value_t = Size(StreamLimits::default().tasks_bytes_max))]
    tasks_bytes_max: Size,
    /// Size of the stream RESULTS at most; workers wait when it is full. Raise it for long outages of the collector.
    #[arg(long, env = "MILLPOND_SETUP_RESULTS_BYTES_MAX", default_value_t = Size(StreamLimits::default().results_bytes_max))]
    results_bytes_max: Size,
    /// Size of the stream DEAD at most.
    #[arg(long, env = "MILLPOND_SETUP_DEAD_BYTES_MAX", default_value_t = Size(StreamLimits::default().dead_bytes_max))]
    dead_bytes_max: Size,
    /// Size of the store of large payloads at most; programs that store more wait. Default: as much as the server allows.
    #[arg(long, env = "MILLPOND_SETUP_PAYLOADS_BYTES_MAX")]
    payloads_bytes_max: Option<Size>,
    /// How many servers of a cluster keep a copy: 1, or 3.
    #[arg(long, env = "MILLPOND_SETUP_REPLICAS", default_value_t = StreamLimits::default().replicas)]
    replicas: usize,
    /// Write what waits in TASKS to this new file, and make TASKS anew: for a stream that stands still (docs/operate.md).
    /// `task restore` publishes the file.
    #[arg(long, value_name = "FILE")]
    tasks_anew: Option<PathBuf>,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// A number of bytes, typed and printed as `4GiB`.
#[derive(Debug, Clone, Copy)]
struct Size(i64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        bytes(text).map(|size| Self(i64::try_from(size).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.trailing_zeros() {
            30.. => write!(f, "{}GiB", self.0 >> 30),
            20.. => write!(f, "{}MiB", self.0 >> 20),
            _ => write!(f, "{}", self.0),
        }
    }
}

/// Creates or updates everything on the server.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn run(args: SetupArgs, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let url = args.nats_url.map_or_else(|| env.need(SETUP_NATS_URL), Ok)?;
    let defaults = StreamLimits::default();
    let limits = StreamLimits {
        tasks_max: args.tasks_max,
        tasks_bytes_max: args.tasks_bytes_max.0,
        results_bytes_max: args.results_bytes_max.0,
        dead_bytes_max: args.dead_bytes_max.0,
        payloads_bytes_max: args.payloads_bytes_max.map_or(defaults.payloads_bytes_max, |size| size.0),
        replicas: args.replicas,
    };
    let bus = Bus::connect(&url, Role::Setup, "setup", args.connect.check()?).await?;
    if let Some(path) = &args.tasks_anew {
        let saved = save_tasks(&bus, path).await.with_context(|| format!("nothing was changed: {}", path.display()))?;
        note!("{saved} messages of TASKS are in {}", path.display());
        bus.make_tasks_anew(&limits).await?;
    }
    setup(&bus, &limits).await?;
    bus.close().await;
    note!("streams, consumers and buckets are in place");
    Ok(ExitCode::SUCCESS)
}

/// Writes all that lies in TASKS to a new file, a line each, and to the disk.
async fn save_tasks(bus: &Bus, path: &Path) -> anyhow::Result<u64> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let mut lines = BufWriter::new(&file);
    let epoch = bus.tasks_epoch().await?;
    let (mut from, mut saved) = (1, 0);
    while let Some(task) = bus.saved_task(&epoch, from).await? {
        from = task.seq + 1;
        saved += 1;
        writeln!(lines, "{}", serde_json::to_string(&task)?)?;
    }
    lines.flush()?;
    drop(lines);
    file.sync_all()?;
    Ok(saved)
}

//! `top`: queues, workers with their child processes, and jobs, as they are now: on a terminal until a key ends it,
//! elsewhere once as text, or as JSON. `snapshot` polls and counts, `view` makes lines, `screen` owns the terminal.

mod screen;
mod snapshot;
mod view;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use millpond::config::duration;
use millpond::worker_record::WORKER_HEARTBEAT_EVERY;

use crate::api::Api;
use crate::cluster_env::ClusterEnv;
use crate::output::{json_line, output};
use screen::Screen;
use snapshot::{Dashboard, poll, poll_after};

/// How often the screen is drawn when nothing happens, because it shows how long the collector has been away.
const DRAW_EVERY: Duration = Duration::from_secs(1);
/// The time between the two polls of a single picture: rates need two heartbeats of a worker.
const RATE_OVER: Duration = WORKER_HEARTBEAT_EVERY.saturating_add(Duration::from_millis(100));
/// The shortest time between two polls.
const POLL_EVERY_MIN: Duration = Duration::from_millis(100);

/// `top`.
#[derive(clap::Args, Debug)]
pub struct TopArgs {
    /// Time between two polls of the collector. Workers update their counters every two seconds.
    #[arg(long, default_value = "1s", value_parser = duration)]
    every: Duration,
    /// Print the state once as text and exit, as is done when standard output is not a terminal. It takes two seconds,
    /// because rates need two polls.
    #[arg(long)]
    once: bool,
    /// Print one JSON object per poll, without end; with --once, a single one.
    #[arg(long)]
    json: bool,
}

/// Shows the cluster.
///
/// # Errors
/// When the collector does not answer a single picture, or the terminal cannot be used.
pub async fn run(args: TopArgs, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let api = Api::new(env)?;
    let every = args.every.max(POLL_EVERY_MIN);
    match (args.once || !std::io::stdout().is_terminal(), args.json) {
        (_, true) if !args.once => print_lines(&api, every).await?,
        (true, json) => print_once(&api, json).await?,
        (false, _) => watch(&api, every).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn print_once(api: &Api, json: bool) -> anyhow::Result<()> {
    let mut dashboard = Dashboard::default();
    dashboard.add(Ok(poll(api).await?));
    if dashboard.counts_workers() {
        tokio::time::sleep(RATE_OVER).await;
        dashboard.add(Ok(poll(api).await?));
    }
    if json {
        return json_line(&dashboard.row());
    }
    let mut out = output();
    Ok(view::text(&dashboard).iter().try_for_each(|line| writeln!(out, "{line}"))?)
}

async fn print_lines(api: &Api, every: Duration) -> anyhow::Result<()> {
    let mut dashboard = Dashboard::default();
    let mut wait = Duration::ZERO;
    loop {
        dashboard.add(poll_after(api, wait).await);
        json_line(&dashboard.row())?;
        wait = every;
    }
}

async fn watch(api: &Api, every: Duration) -> anyhow::Result<()> {
    let stop = super::interrupt::on_signal()?;
    let mut dashboard = Dashboard::default();
    let mut screen = Screen::open()?;
    let mut polling = std::pin::pin!(poll_after(api, Duration::ZERO));
    loop {
        screen.draw(&dashboard)?;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            goes_on = screen.key() => if !goes_on {
                return Ok(());
            },
            polled = &mut polling => {
                dashboard.add(polled);
                polling.set(poll_after(api, every));
            }
            () = tokio::time::sleep(DRAW_EVERY) => {}
        }
    }
}

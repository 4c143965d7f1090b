//! `top`: queues, workers with their children, and jobs, as they are now: on a terminal until a key ends it, elsewhere
//! once as text, or as JSON. `sample` asks and counts, `view` makes lines of it, `screen` owns the terminal.

mod sample;
mod screen;
mod view;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use millpond::config::duration;
use millpond::limits::HEARTBEAT_EVERY;

use crate::api::Api;
use crate::output::json_line;
use crate::state::Env;
use sample::{History, look, look_again};
use screen::Screen;

/// How often the screen is drawn when nothing happens: it tells how long the collector has been away.
const DRAW_EVERY: Duration = Duration::from_secs(1);
/// Between the two looks of a single picture: rates need two of a worker's heartbeats.
const RATE_OVER: Duration = HEARTBEAT_EVERY.saturating_add(Duration::from_millis(100));

/// How to look.
#[derive(clap::Args, Debug)]
pub struct TopArgs {
    /// How long to wait between two looks. Workers tell their counters every two seconds.
    #[arg(long, default_value = "1s", value_parser = duration)]
    every: Duration,
    /// Print one picture as text and leave, as when standard output is not a terminal; it takes two seconds, for rates.
    #[arg(long)]
    once: bool,
    /// One JSON object a look, for ever; with --once, one.
    #[arg(long)]
    json: bool,
}

/// Looks.
///
/// # Errors
/// When the collector does not answer (a picture), or the terminal cannot be used.
pub async fn run(args: TopArgs, env: &Env) -> anyhow::Result<ExitCode> {
    let api = Api::new(env)?;
    let every = args.every.max(Duration::from_millis(100));
    match (args.once || !std::io::stdout().is_terminal(), args.json) {
        (_, true) if !args.once => lines(&api, every).await?,
        (true, json) => picture(&api, json).await?,
        (false, _) => watch(&api, every).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn picture(api: &Api, json: bool) -> anyhow::Result<()> {
    let mut history = History::default();
    history.add(Ok(look(api).await?));
    if history.counts_workers() {
        tokio::time::sleep(RATE_OVER).await;
        history.add(Ok(look(api).await?));
    }
    if json {
        return Ok(json_line(&history.json())?);
    }
    let mut out = std::io::stdout().lock();
    for line in view::text(&history) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

async fn lines(api: &Api, every: Duration) -> anyhow::Result<()> {
    let mut history = History::default();
    let mut wait = Duration::ZERO;
    loop {
        history.add(look_again(api, wait).await);
        json_line(&history.json())?;
        wait = every;
    }
}

async fn watch(api: &Api, every: Duration) -> anyhow::Result<()> {
    let stop = millpond::shutdown::on_signal()?;
    let mut history = History::default();
    let mut screen = Screen::open()?;
    let mut looking = std::pin::pin!(look_again(api, Duration::ZERO));
    loop {
        screen.draw(&history)?;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            goes_on = screen.key() => if !goes_on {
                return Ok(());
            },
            seen = &mut looking => {
                history.add(seen);
                looking.set(look_again(api, every));
            }
            () = tokio::time::sleep(DRAW_EVERY) => {}
        }
    }
}

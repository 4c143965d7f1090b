//! `schedule add|ls|rm|pause|resume`: tasks that recur, kept and published by the server.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::Subcommand;
use millpond::bus::publish::RetryDeadline;
use millpond::client::{Client, cron_in, shown};
use millpond::config::{ConnectArgs, SigningArgs, duration};
use millpond::schedule::{Schedule, When};
use serde_json::{Value, json};

use crate::api::text;
use crate::output::{Table, json_line, short, time};
use crate::state::{Env, publisher};
use crate::submit::check_json;

/// How long a person waits for the server's ack.
const PATIENCE: RetryDeadline = RetryDeadline::Within(Duration::from_secs(30));
/// Characters of the arguments that a list shows.
const ARGS_SHOWN: usize = 40;

/// `schedule`.
#[derive(clap::Args, Debug)]
pub struct ScheduleArgs {
    #[command(subcommand)]
    command: ScheduleCommand,
    /// Print JSON objects, one a line.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// What to do with schedules.
#[derive(Subcommand, Debug)]
pub enum ScheduleCommand {
    /// Publish a task again and again from now on; a schedule of the same name is replaced.
    Add(AddArgs),
    /// List schedules, and when each fires next.
    Ls,
    /// Remove a schedule; tasks that it has published already run.
    Rm {
        /// Its name.
        name: String,
    },
    /// Stop publishing until told to go on.
    Pause {
        /// Its name.
        name: String,
    },
    /// Go on publishing.
    Resume {
        /// Its name.
        name: String,
    },
}

/// A schedule to add.
#[derive(clap::Args, Debug)]
pub struct AddArgs {
    /// Its name.
    name: String,
    /// Which handler runs its tasks.
    kind: String,
    /// Their arguments, one JSON value; `-` reads standard input.
    #[arg(default_value = "null", allow_hyphen_values = true)]
    args: String,
    /// Publish a task after each such time, such as 10s; a second at the least.
    #[arg(long, value_parser = duration, required_unless_present = "cron", conflicts_with = "cron")]
    every: Option<Duration>,
    /// Publish a task at each time that fits: minute hour day month weekday, such as "0 9 * * 1-5"; with six fields the
    /// first is the second; or @hourly, @daily, @weekly, @monthly, @yearly.
    #[arg(long)]
    cron: Option<String>,
    /// The time zone of --cron, such as Europe/Berlin; UTC when none.
    #[arg(long, conflicts_with = "every")]
    tz: Option<String>,
    /// Who runs them.
    #[arg(long, default_value = "default")]
    queue: String,
    /// Timeout of one attempt, such as 30s.
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// Attempts before a task is a dead letter.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    attempts_max: Option<u32>,
}

impl AddArgs {
    fn schedule(self) -> anyhow::Result<Schedule> {
        let when = match (self.every, &self.cron) {
            (Some(interval), _) => When::every(interval)?,
            (None, cron) => cron_in(cron.as_deref().unwrap_or_default(), self.tz.as_deref())?,
        };
        let mut args = self.args;
        if args == "-" {
            args.clear();
            std::io::stdin().lock().read_to_string(&mut args).context("cannot read the arguments")?;
        }
        let args = args.trim().to_owned();
        check_json(&args)?;
        let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
        let host = nix::unistd::gethostname().ok().map(|host| host.to_string_lossy().into_owned());
        Ok(Schedule {
            name: self.name,
            queue: self.queue,
            kind: self.kind,
            payload: Bytes::from(args),
            when,
            paused: false,
            timeout: self.timeout,
            attempts_max: self.attempts_max,
            by: format!("{}@{}", user.as_deref().unwrap_or("somebody"), host.as_deref().unwrap_or("somewhere")),
            since_ms: 0,
        })
    }
}

/// Runs it.
///
/// # Errors
/// When what was typed does not fit, NATS cannot be reached, or refuses.
pub async fn run(args: ScheduleArgs, env: &Env) -> anyhow::Result<ExitCode> {
    // Before anything is asked of the server.
    let command = match args.command {
        ScheduleCommand::Add(add) => Ok(add.schedule()?),
        other => Err(other),
    };
    let client = publisher(env, "schedule", args.connect.check()?, &args.signing).await?;
    let done = match command {
        Ok(schedule) => add(&client, &schedule, args.json).await,
        Err(command) => act(&client, command, args.json).await,
    };
    client.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

async fn add(client: &Client, schedule: &Schedule, json: bool) -> anyhow::Result<()> {
    client.add_schedule(schedule, PATIENCE).await?;
    // As it stands there: it has its time from the server.
    let stored = client.schedule(&schedule.name).await?;
    say(stored.as_ref().unwrap_or(schedule), json)
}

async fn act(client: &Client, command: ScheduleCommand, json: bool) -> anyhow::Result<()> {
    match command {
        ScheduleCommand::Add(_) => Ok(()),
        ScheduleCommand::Ls => list(&client.schedules().await?, json),
        ScheduleCommand::Pause { name } => say(&client.pause_schedule(&name, true, PATIENCE).await?, json),
        ScheduleCommand::Resume { name } => say(&client.pause_schedule(&name, false, PATIENCE).await?, json),
        ScheduleCommand::Rm { name } => {
            client.remove_schedule(&name, PATIENCE).await?;
            if json {
                json_line(&json!({ "name": name, "removed": true }))?;
            } else {
                eprintln!("schedule {name} is removed");
            }
            Ok(())
        }
    }
}

fn next(row: &Value) -> String {
    if row.get("paused") == Some(&Value::Bool(true)) { "paused".to_owned() } else { time(row, "next_ms") }
}

fn say(schedule: &Schedule, json: bool) -> anyhow::Result<()> {
    let row = shown(schedule);
    if json {
        return Ok(json_line(&row)?);
    }
    let name = &schedule.name;
    match next(&row).as_str() {
        "paused" => eprintln!("schedule {name} is paused"),
        "" => eprintln!("schedule {name} is kept; this machine cannot tell when it fires next"),
        next => writeln!(std::io::stdout().lock(), "schedule {name} fires next at {next}")?,
    }
    Ok(())
}

fn list(schedules: &[Schedule], json: bool) -> anyhow::Result<()> {
    let mut table = Table::new(&["NAME", "QUEUE", "KIND", "ARGS", "SCHEDULE", "ZONE", "NEXT", "BY"]);
    for schedule in schedules {
        let row = shown(schedule);
        if json {
            json_line(&row)?;
            continue;
        }
        let mut cells: Vec<String> = ["name", "queue", "kind"].iter().map(|field| text(&row, field)).collect();
        cells.push(short(&row, "args", ARGS_SHOWN));
        cells.extend(["schedule", "zone"].iter().map(|field| text(&row, field)));
        cells.extend([next(&row), text(&row, "by")]);
        table.row(cells);
    }
    if !json {
        table.print("no schedules; `millpond schedule add NAME KIND --every 10s` adds one")?;
    }
    Ok(())
}

//! `schedule add|ls|rm|pause|resume`: recurring tasks, which the NATS server keeps and publishes.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use millpond::bus::publish::RetryDeadline;
use millpond::bus::publish::schedules::Refusals;
use millpond::client::{Client, cron_in};
use millpond::config::{ConnectArgs, SigningArgs, duration};
use millpond::schedule::{Schedule, ScheduleRecord, When};
use millpond_api::schedules::ScheduleRow;
use serde_json::json;

use super::task_args::RunnerArgs;
use super::{arguments, task_args};
use crate::cluster_env::ClusterEnv;
use crate::output::{Table, json_line, output, short, time};

/// How long a person waits for the server to acknowledge a change.
const RETRY_DEADLINE: RetryDeadline = RetryDeadline::Within(Duration::from_secs(30));
/// How many characters of the arguments a list shows.
const ARGS_CHARS_MAX: usize = 40;

/// `schedule`.
#[derive(clap::Args, Debug)]
pub struct ScheduleArgs {
    #[command(subcommand)]
    command: ScheduleCommand,
    /// Print one JSON object per line.
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
    /// Add a schedule that publishes a task again and again; it replaces one of the same name.
    Add(AddArgs),
    /// List schedules, and when each fires next.
    Ls,
    /// Remove a schedule; tasks that it has already published still run.
    Rm {
        /// Name of the schedule.
        #[arg(value_parser = task_args::schedule)]
        name: String,
    },
    /// Stop a schedule from firing until it is resumed.
    Pause {
        /// Name of the schedule.
        #[arg(value_parser = task_args::schedule)]
        name: String,
    },
    /// Let a paused schedule fire again.
    Resume {
        /// Name of the schedule.
        #[arg(value_parser = task_args::schedule)]
        name: String,
    },
}

/// `schedule add`.
#[derive(clap::Args, Debug)]
pub struct AddArgs {
    /// Name of the schedule.
    #[arg(value_parser = task_args::schedule)]
    name: String,
    /// Kind of its tasks: which handler runs them.
    #[arg(value_parser = task_args::kind)]
    kind: String,
    /// Arguments of its tasks, one JSON value; `-` reads them from standard input.
    #[arg(default_value = "null", allow_hyphen_values = true)]
    args: String,
    /// Publish a task whenever this much time has passed, such as 10s; 1s is the minimum.
    #[arg(long, value_parser = duration, required_unless_present = "cron", conflicts_with = "cron")]
    every: Option<Duration>,
    /// Publish a task at each time that matches: minute hour day month weekday, such as "0 9 * * 1-5"; with six fields the
    /// first one is the second. @hourly, @daily, @weekly, @monthly and @yearly work too.
    #[arg(long)]
    cron: Option<String>,
    /// Time zone of --cron, such as Europe/Berlin. Default: UTC.
    #[arg(long, conflicts_with = "every")]
    tz: Option<String>,
    #[command(flatten)]
    runner: RunnerArgs,
}

impl AddArgs {
    fn schedule(self) -> anyhow::Result<Schedule> {
        let when = match (self.every, &self.cron) {
            (Some(interval), _) => When::every(interval)?,
            (None, cron) => cron_in(cron.as_deref().unwrap_or_default(), self.tz.as_deref())?,
        };
        let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
        let host = nix::unistd::gethostname().ok().map(|host| host.to_string_lossy().into_owned());
        Ok(Schedule {
            name: self.name,
            queue: self.runner.queue,
            kind: self.kind,
            payload: arguments::bytes(arguments::read(&self.args)?),
            when,
            paused: false,
            timeout: self.runner.timeout,
            attempts_max: self.runner.attempts_max,
            by: format!("{}@{}", user.as_deref().unwrap_or("somebody"), host.as_deref().unwrap_or("somewhere")),
            since_ms: 0,
        })
    }
}

/// Runs the command.
///
/// # Errors
/// When what was typed does not fit, NATS cannot be reached, or refuses.
pub async fn run(args: ScheduleArgs, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    // What was typed is checked before the server is reached.
    let command = match args.command {
        ScheduleCommand::Add(add) => Ok(add.schedule()?),
        other => Err(other),
    };
    let client = env.publisher("schedule", args.connect.check()?, &args.signing).await?;
    let done = match command {
        Ok(schedule) => add(&client, &schedule, args.json).await,
        Err(command) => act(&client, command, args.json).await,
    };
    client.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

async fn add(client: &Client, schedule: &Schedule, json: bool) -> anyhow::Result<()> {
    client.add_schedule(schedule, RETRY_DEADLINE).await?;
    // The stored schedule has its time from the server.
    let stored = client.schedule(&schedule.name).await?;
    print(stored.as_ref().and_then(ScheduleRecord::schedule).unwrap_or(schedule), json)
}

async fn act(client: &Client, command: ScheduleCommand, json: bool) -> anyhow::Result<()> {
    match command {
        ScheduleCommand::Add(_) => Ok(()),
        ScheduleCommand::Ls => {
            let (schedules, refusals) = client.schedules().await?;
            list(&schedules, &refusals, json)
        }
        ScheduleCommand::Pause { name } => print(&client.pause_schedule(&name, true, RETRY_DEADLINE).await?, json),
        ScheduleCommand::Resume { name } => print(&client.pause_schedule(&name, false, RETRY_DEADLINE).await?, json),
        ScheduleCommand::Rm { name } => {
            client.remove_schedule(&name, RETRY_DEADLINE).await?;
            if json {
                return json_line(&json!({ "name": name, "removed": true }));
            }
            note!("schedule {name} is removed");
            Ok(())
        }
    }
}

/// Prints a schedule that the server has taken.
fn print(schedule: &Schedule, json: bool) -> anyhow::Result<()> {
    let row = ScheduleRow::readable(schedule, None, millpond::now_ms());
    if json {
        return json_line(&row);
    }
    let name = &row.name;
    for remark in &row.remarks {
        note!("millpond: schedule {name}: {remark}");
    }
    match row.next_ms {
        _ if row.paused => note!("schedule {name} is paused"),
        None => note!("schedule {name} is stored; this machine cannot tell when it fires next"),
        next_ms => writeln!(output(), "schedule {name} fires next at {}", time(next_ms))?,
    }
    Ok(())
}

/// Arguments that are no JSON.
fn bytes_shown(base64: Option<&str>) -> String {
    base64.map_or_else(String::new, |base64| short(&format!("{{\"base64\":\"{base64}\"}}"), ARGS_CHARS_MAX))
}

fn list(schedules: &[ScheduleRecord], refusals: &Refusals, json: bool) -> anyhow::Result<()> {
    let now_ms = millpond::now_ms();
    let mut table = Table::new(&["NAME", "QUEUE", "KIND", "ARGS", "SCHEDULE", "ZONE", "NEXT", "BY", "NOTE"]);
    for row in schedules.iter().map(|record| ScheduleRow::new(record, refusals, now_ms)) {
        if json {
            json_line(&row)?;
            continue;
        }
        let args = row.args.as_deref().map(|args| args.get()).or(row.args_text.as_deref());
        let args = args.map_or_else(|| bytes_shown(row.args_base64.as_deref()), |args| short(args, ARGS_CHARS_MAX));
        let next = if row.paused { "paused".to_owned() } else { time(row.next_ms) };
        let notes: Vec<String> = row.defect.into_iter().chain(row.remarks).collect();
        let (zone, remarks) = (row.zone.unwrap_or_default(), notes.join("; "));
        table.row(vec![row.name, row.queue, row.kind, args, row.schedule, zone, next, row.by, remarks]);
    }
    if !json {
        table.print("no schedules; `millpond schedule add NAME KIND --every 10s` adds one")?;
    }
    Ok(())
}

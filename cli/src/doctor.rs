//! `doctor`: looks at everything that a cluster needs, one line each: what was seen, and for all that is not well what
//! to do. Exit code 1 when something fails.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use millpond::bus::read::inspect;
use millpond::bus::read::inspect::StreamFacts;
use millpond::bus::{Bus, Role};
use millpond::config::{ConnectArgs, ConnectSettings};
use serde_json::{Value, json};

use crate::EXIT_TASK_FAILED;
use crate::api::{Api, text};
use crate::output::json_line;
use crate::state::{CLIENT_NATS_URL, COLLECTOR_URL, Env};

/// How full a stream may be before it is told, in percent.
const FULL_PERCENT: u64 = 80;
/// How far clocks may differ before it is told, and before it is a fault.
const CLOCK_OFF: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// Round trip to the server that is told.
const SLOW_TRIP: Duration = Duration::from_millis(100);
/// Messages that the collector may be behind.
const BEHIND_MAX: u64 = 10_000;

/// `doctor`.
#[derive(clap::Args, Debug)]
pub struct DoctorArgs {
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// What was found.
struct Finding {
    level: Level,
    about: String,
    seen: String,
    /// What to do, for all but [`Level::Ok`].
    advice: &'static str,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, about: &str, seen: impl Into<String>) {
        self.0.push(Finding { level: Level::Ok, about: about.to_owned(), seen: seen.into(), advice: "" });
    }

    fn not_ok(&mut self, level: Level, about: &str, seen: impl Into<String>, advice: &'static str) {
        self.0.push(Finding { level, about: about.to_owned(), seen: seen.into(), advice });
    }
}

/// Looks.
///
/// # Errors
/// When standard output is closed.
pub async fn run(args: DoctorArgs, env: &Env) -> anyhow::Result<ExitCode> {
    let mut findings = Findings::default();
    nats(&mut findings, env, args.connect.check()?).await;
    collector(&mut findings, env).await;
    for finding in &findings.0 {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        let Finding { about, seen, advice, .. } = finding;
        if args.json {
            json_line(&json!({ "level": level, "about": about, "seen": seen, "advice": advice }))?;
            continue;
        }
        let advice = if advice.is_empty() { String::new() } else { format!("; {advice}") };
        writeln!(std::io::stdout().lock(), "{level:<5} {about:<16} {seen}{advice}")?;
    }
    let failed = findings.0.iter().any(|finding| finding.level == Level::Fail);
    Ok(if failed { ExitCode::from(EXIT_TASK_FAILED) } else { ExitCode::SUCCESS })
}

async fn nats(findings: &mut Findings, env: &Env, access: ConnectSettings) {
    let Some(url) = env.get(CLIENT_NATS_URL) else {
        let advice =
            "set MILLPOND_NATS_URL, name the folder of a running `up` by --state, or start one with `millpond up`";
        return findings.not_ok(Level::Fail, "nats", "its address is not known", advice);
    };
    let bus = match Bus::connect(&url, Role::Client, "doctor", access).await {
        Ok(bus) => bus,
        Err(error) => {
            return findings.not_ok(
                Level::Fail,
                "nats",
                error.to_string(),
                "start the server, or correct the URL and its password",
            );
        }
    };
    let facts = inspect::server(&bus).await;
    findings.ok(
        "nats",
        format!(
            "nats-server {} at {}, messages up to {} bytes",
            facts.version,
            millpond::bus::without_password(&url),
            facts.max_payload
        ),
    );
    if !facts.version.starts_with("2.14") {
        // 2.14 is enough; older ones are refused at the connect.
        findings.ok("version", "2.15 or newer, as recommended");
    } else {
        findings.not_ok(Level::Warn, "version", "2.14 works", "2.15 is recommended");
    }
    match facts.round_trip {
        Some(trip) if trip <= SLOW_TRIP => findings.ok("round trip", format!("{:.2} ms", trip.as_secs_f64() * 1e3)),
        trip => findings.not_ok(
            Level::Warn,
            "round trip",
            format!("{trip:?}"),
            "look at the network between here and the server",
        ),
    }
    match facts.clock_off {
        None => findings.not_ok(Level::Warn, "clock", "the server's time is not known", "has `millpond setup` run?"),
        Some(off) if off <= CLOCK_OFF[0] => findings.ok("clock", format!("{} ms from the server's", off.as_millis())),
        Some(off) => {
            let level = if off > CLOCK_OFF[1] { Level::Fail } else { Level::Warn };
            findings.not_ok(
                level,
                "clock",
                format!("{off:?} from the server's"),
                "synchronise the clocks (NTP): expiry and schedules compare them",
            );
        }
    }
    for stream in inspect::streams(&bus).await {
        tell_stream(findings, &stream);
    }
    if facts.may_create_streams {
        let advice = "give each role its own user (deploy/nats/roles.conf): this one can remove everything";
        findings.not_ok(Level::Warn, "permissions", "the client may create streams", advice);
    } else {
        findings.ok("permissions", "the client may not create streams");
    }
    bus.close().await;
}

fn tell_stream(findings: &mut Findings, stream: &StreamFacts) {
    let about = format!("stream {}", stream.name);
    if let Some(problem) = &stream.problem {
        return findings.not_ok(Level::Fail, &about, problem.clone(), "run `millpond setup` with the setup role once");
    }
    let share =
        |held: u64, max: Option<u64>| max.filter(|max| *max > 0).map_or(0, |max| held.saturating_mul(100) / max);
    let full = share(stream.messages, stream.messages_max).max(share(stream.bytes, stream.bytes_max));
    let seen = format!("{} messages, {} bytes, {full} % full", stream.messages, stream.bytes);
    if full < FULL_PERCENT {
        findings.ok(&about, seen);
    } else {
        let advice = "publishers will wait: add workers (TASKS), look at the collector (RESULTS, DEAD), or raise the limit with `setup`";
        findings.not_ok(Level::Warn, &about, seen, advice);
    }
}

async fn collector(findings: &mut Findings, env: &Env) {
    let (Some(url), Ok(api)) = (env.get(COLLECTOR_URL), Api::new(env)) else {
        let advice =
            "set MILLPOND_COLLECTOR_URL and MILLPOND_TOKEN; without a collector nothing that ended can be read";
        return findings.not_ok(Level::Fail, "collector", "its address or token is not known", advice);
    };
    let workers = match api.get("/api/v1/workers", &[]).await {
        Ok(Some(workers)) => workers,
        Ok(None) => {
            return findings.not_ok(
                Level::Fail,
                "collector",
                "answers, but not as a collector",
                "correct MILLPOND_COLLECTOR_URL",
            );
        }
        Err(error) => {
            let seen = format!("the collector at {url}: {error:#}");
            return findings.not_ok(
                Level::Fail,
                "collector",
                seen,
                "start it (`millpond collector run`), or correct its URL and token",
            );
        }
    };
    match reqwest::get(format!("{url}/readyz")).await {
        Ok(ready) if ready.status().is_success() => findings.ok("collector", format!("{url} is ready")),
        Ok(complaint) => {
            let said: Value = complaint.json().await.unwrap_or_default();
            findings.not_ok(Level::Fail, "collector", text(&said, "error"), "the collector's log has the reason");
        }
        Err(error) => findings.not_ok(Level::Fail, "collector", error.to_string(), "start it again"),
    }
    let rows = workers.get("rows").and_then(Value::as_array).cloned().unwrap_or_default();
    let live: Vec<String> = rows.iter().filter(|w| text(w, "state") == "live").map(|w| text(w, "name")).collect();
    if live.is_empty() {
        findings.not_ok(Level::Warn, "workers", "none is live", "start one with `millpond worker run`");
    } else {
        findings.ok("workers", format!("{} live: {}", live.len(), live.join(" ")));
    }
    let Ok(metrics) = reqwest::get(format!("{url}/metrics")).await else { return };
    let metrics = metrics.text().await.unwrap_or_default();
    let gauges = metrics.lines().filter(|line| line.starts_with("millpond_messages_behind"));
    let behind: f64 = gauges.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
    if behind <= f64::from(u32::try_from(BEHIND_MAX).unwrap_or(u32::MAX)) {
        findings.ok("lag", format!("the collector is {behind} messages behind"));
    } else {
        findings.not_ok(
            Level::Warn,
            "lag",
            format!("the collector is {behind} messages behind"),
            "give it a faster disk or more CPU",
        );
    }
}

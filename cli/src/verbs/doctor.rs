//! `doctor`: checks everything that a cluster needs and prints a line for each: what was found, and how to repair what is
//! wrong, with the problems that a collector has found. The exit code is 1 when a check fails, or there is a problem.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use millpond::bus::error::BusError;
use millpond::bus::read::inspect::{self, StreamFacts};
use millpond::bus::{Bus, Role, without_password};
use millpond::client::{Client, ScheduleChangeError};
use millpond::config::{ConnectArgs, ConnectSettings};
use millpond_api::error::ErrorBody;
use millpond_api::overview::Problem;
use millpond_api::schedules::ScheduleRow;
use millpond_api::workers::WorkerState;
use serde_json::json;

use super::worker::list::list;
use crate::api::{Api, root};
use crate::cluster_env::{CLIENT_NATS_URL, COLLECTOR_URL, ClusterEnv, TOKEN};
use crate::exit;
use crate::output::{json_line, output};

/// How full a stream may be before a warning, in percent.
const FULL_PERCENT: u64 = 80;
/// How far clocks may differ before a warning.
const CLOCK_OFF_WARN: Duration = Duration::from_secs(2);
/// How far clocks may differ before the check fails.
const CLOCK_OFF_FAIL: Duration = Duration::from_secs(30);
/// How long a round trip to the server may take before a warning.
const ROUND_TRIP_WARN: Duration = Duration::from_millis(100);
/// How many messages the collector may be behind before a warning.
const BEHIND_WARN: f64 = 10_000.0;

/// `doctor`.
#[derive(clap::Args, Debug)]
pub struct DoctorArgs {
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Severity {
    Ok,
    Warn,
    /// A collector has found it.
    Problem,
    Fail,
}

/// The result of a check.
struct Finding {
    severity: Severity,
    about: String,
    seen: String,
    /// What to do; empty when the check went well.
    advice: &'static str,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, about: &str, seen: impl Into<String>) {
        self.add(Severity::Ok, about, seen, "");
    }

    fn warn(&mut self, about: &str, seen: impl Into<String>, advice: &'static str) {
        self.add(Severity::Warn, about, seen, advice);
    }

    fn fail(&mut self, about: &str, seen: impl Into<String>, advice: &'static str) {
        self.add(Severity::Fail, about, seen, advice);
    }

    fn add(&mut self, severity: Severity, about: &str, seen: impl Into<String>, advice: &'static str) {
        self.0.push(Finding { severity, about: about.to_owned(), seen: seen.into(), advice });
    }
}

/// Runs all checks.
///
/// # Errors
/// When standard output is closed.
pub async fn run(args: DoctorArgs, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
    let mut findings = Findings::default();
    nats(&mut findings, env, args.connect.check()?).await;
    collector(&mut findings, env).await;
    for finding in &findings.0 {
        let level = match finding.severity {
            Severity::Ok => "ok",
            Severity::Warn | Severity::Problem => "warn",
            Severity::Fail => "FAIL",
        };
        let Finding { about, seen, advice, .. } = finding;
        if args.json {
            json_line(&json!({ "level": level, "about": about, "seen": seen, "advice": advice }))?;
            continue;
        }
        let advice = if advice.is_empty() { String::new() } else { format!("; {advice}") };
        writeln!(output(), "{level:<5} {about:<16} {seen}{advice}")?;
    }
    let has = |severity| findings.0.iter().any(|finding| finding.severity == severity);
    if has(Severity::Problem) && !args.json {
        writeln!(
            output(),
            "\nmillpond explain CODE has more on the problems of the cluster; their codes are in the second column"
        )?;
    }
    let failed = has(Severity::Problem) || has(Severity::Fail);
    Ok(if failed { exit::TASK_FAILED.into() } else { ExitCode::SUCCESS })
}

async fn nats(findings: &mut Findings, env: &ClusterEnv, access: ConnectSettings) {
    let Some(url) = env.get(CLIENT_NATS_URL) else {
        let advice =
            "set MILLPOND_NATS_URL, name the folder of a running `up` with --state, or start one with `millpond up`";
        return findings.fail("nats", "its URL is not known", advice);
    };
    let bus = match Bus::connect(&url, Role::Client, "doctor", access).await {
        Ok(bus) => bus,
        Err(error) => {
            return findings.fail("nats", error.to_string(), "start the server, or correct the URL and its password");
        }
    };
    let facts = inspect::server(&bus).await;
    let (version, bytes_max) = (&facts.version, facts.max_payload);
    let address = without_password(&url);
    findings.ok("nats", format!("nats-server {version} at {address}, messages up to {bytes_max} bytes"));
    // Versions before 2.14 are refused when the bus connects.
    match version.starts_with("2.14") {
        false => findings.ok("version", "2.15 or newer, as recommended"),
        true => findings.warn("version", "2.14 works", "2.15 is recommended"),
    }
    match facts.round_trip {
        Some(trip) if trip <= ROUND_TRIP_WARN => {
            findings.ok("round trip", format!("{:.2} ms", trip.as_secs_f64() * 1e3));
        }
        trip => {
            let seen = trip.map_or_else(|| "no answer".to_owned(), |trip| format!("{trip:?}"));
            findings.warn("round trip", seen, "check the network between here and the server");
        }
    }
    clock(findings, facts.clock_off);
    for stream in inspect::streams(&bus).await {
        check_stream(findings, &stream);
    }
    schedules(findings, &bus).await;
    if facts.may_create_streams {
        let advice = "give each role its own user (deploy/nats/roles.conf): this one can remove everything";
        findings.warn("permissions", "the client may create streams", advice);
    } else {
        findings.ok("permissions", "the client may not create streams");
    }
    bus.close().await;
}

fn clock(findings: &mut Findings, off: Option<Duration>) {
    let Some(off) = off else {
        return findings.warn("clock", "the server's time is not known", "run `millpond setup` if it has not run yet");
    };
    let advice = "synchronise the clocks (NTP): where they differ the server's counts";
    match off {
        _ if off <= CLOCK_OFF_WARN => findings.ok("clock", format!("{} ms from the server's", off.as_millis())),
        _ if off <= CLOCK_OFF_FAIL => findings.warn("clock", format!("{off:?} from the server's"), advice),
        _ => findings.fail("clock", format!("{off:?} from the server's"), advice),
    }
}

fn check_stream(findings: &mut Findings, stream: &StreamFacts) {
    let about = format!("stream {}", stream.name);
    if let Some(standstill) = &stream.standstill {
        return findings.fail(&about, standstill.clone(), "");
    }
    if let Some(problem) = &stream.problem {
        return findings.fail(&about, problem.clone(), "run `millpond setup` with the setup role once");
    }
    let percent =
        |held: u64, max: Option<u64>| max.filter(|max| *max > 0).map_or(0, |max| held.saturating_mul(100) / max);
    let full = percent(stream.messages, stream.messages_max).max(percent(stream.bytes, stream.bytes_max));
    let seen = format!("{} messages, {} bytes, {full} % full", stream.messages, stream.bytes);
    if full < FULL_PERCENT {
        findings.ok(&about, seen);
    } else {
        let advice = "publishers will wait: add workers (TASKS), check the collector (RESULTS, DEAD), or raise the limit with `millpond setup`";
        findings.warn(&about, seen, advice);
    }
}

/// Whether the server fires all schedules.
async fn schedules(findings: &mut Findings, bus: &Bus) {
    let advice = "`millpond schedule ls` has all of them";
    let (records, refusals) = match Client::over(bus.clone()).schedules().await {
        Ok(found) => found,
        // That streams are missing is said already.
        Err(ScheduleChangeError::Topology(BusError::Missing { .. })) => return,
        Err(error) => return findings.warn("schedules", error.to_string(), "try again"),
    };
    let rows = records.iter().map(|record| ScheduleRow::new(record, &refusals, millpond::now_ms()));
    let wrong: Vec<(String, String)> = rows.filter_map(|row| Some((row.name, row.defect?))).collect();
    match wrong.first() {
        None => findings.ok("schedules", format!("{}, all of them fire unless they are paused", records.len())),
        Some((name, defect)) => {
            let seen = format!("{} of {} are not in order; {name}: {defect}", wrong.len(), records.len());
            findings.warn("schedules", seen, advice);
        }
    }
}

async fn collector(findings: &mut Findings, env: &ClusterEnv) {
    let api = match Api::new(env) {
        Ok(api) => api,
        Err(_) if env.get(COLLECTOR_URL).is_none() || env.get(TOKEN).is_none() => {
            let advice =
                "set MILLPOND_COLLECTOR_URL and MILLPOND_TOKEN; without a collector nothing that ended can be read";
            return findings.fail("collector", "its URL or token is not known", advice);
        }
        Err(error) => return findings.fail("collector", format!("{error:#}"), "correct the setting"),
    };
    let workers = match list(&api).await {
        Ok(workers) => workers,
        Err(error) => {
            let advice = "start it (`millpond collector run`), or correct its URL and token";
            return findings.fail("collector", format!("{error:#}"), advice);
        }
    };
    let mut metrics = None;
    for url in api.addresses().all() {
        collector_at(findings, &api, url).await;
        metrics = metrics.or(api.answer_of(url, "/metrics").await.ok());
    }
    let problems = api.all::<Problem>("/api/v1/problems", &()).await.unwrap_or_else(|error| {
        findings.fail("problems", format!("{error:#}"), "what the collector has found wrong is not known; try again");
        Vec::new()
    });
    for problem in problems.into_iter().filter(|problem| !problem.mended) {
        // Its sentence has what to do.
        findings.add(Severity::Problem, problem.kind.name(), problem.sentence, "");
    }
    let live = workers.iter().filter(|worker| worker.state == WorkerState::Live);
    let live: Vec<&str> = live.map(|worker| worker.record.name.as_str()).collect();
    if live.is_empty() {
        findings.warn("workers", "none is live", "start one with `millpond worker run`");
    } else {
        findings.ok("workers", format!("{} live: {}", live.len(), live.join(" ")));
    }
    let Some((_, metrics)) = metrics else { return };
    let metrics = String::from_utf8_lossy(&metrics);
    let gauges = metrics.lines().filter(|line| line.starts_with("millpond_messages_behind"));
    let gauges: Vec<f64> = gauges.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    if gauges.is_empty() {
        findings.ok("lag", "the collector has not measured it yet".to_owned());
        return;
    }
    let behind: f64 = gauges.iter().sum();
    let seen = format!("the collector is {behind} messages behind");
    if behind <= BEHIND_WARN {
        findings.ok("lag", seen);
    } else {
        findings.warn("lag", seen, "give the collector a faster disk or more CPU");
    }
}

/// Whether one of the collectors is ready. That it is gone is no more than a warning: another one has answered.
async fn collector_at(findings: &mut Findings, api: &Api, url: &str) {
    let name = without_password(url);
    match api.answer_of(url, "/readyz").await {
        Ok((status, _)) if status.is_success() => findings.ok("collector", format!("{name} is ready")),
        Ok((_, body)) => {
            let reason = serde_json::from_slice::<ErrorBody>(&body)
                .map_or_else(|_| "is not ready".to_owned(), |body| body.error);
            findings.fail("collector", format!("{name}: {reason}"), "the collector's log has the reason");
        }
        Err(error) => {
            let seen = format!("{name} does not answer: {}", root(&error));
            findings.warn("collector", seen, "start it again, or take it out of MILLPOND_COLLECTOR_URL");
        }
    }
}

//! Schedules: rows of the collector's list, and what the producer is asked to change.

use data_encoding::BASE64;
use millpond::bus::publish::schedules::Refusals;
use millpond::client::zone_of;
use millpond::schedule::{Refusal, Schedule, ScheduleRecord, UnreadableSchedule};
use millpond::wire::subject::TaskSubject;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::raw::{present, shown};

/// A task that recurs.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ScheduleRow {
    /// The name of the schedule.
    pub name: String,
    /// The queue of its tasks; empty where it cannot be read.
    pub queue: String,
    /// The kind of its tasks; empty where it cannot be read.
    pub kind: String,
    /// The arguments of its tasks, any JSON value; null also where they are in another field.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Value>)]
    pub args: Option<Box<RawValue>>,
    /// The same as text, where JSON parsers differ about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub args_text: Option<String>,
    /// The arguments in base64, where they are no JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub args_base64: Option<String>,
    /// When it fires: an interval such as `@every 10s`, or cron.
    pub schedule: String,
    /// The time zone of cron, an IANA name; null: UTC.
    pub zone: Option<String>,
    /// Whether it does not fire now.
    pub paused: bool,
    /// When it fires next, Unix time in milliseconds.
    pub next_ms: Option<i64>,
    /// Why it does not fire, or why this version cannot read it; null: it can, and it fires.
    #[serde(default)]
    pub defect: Option<String>,
    /// What to know of when it fires: a step that is not what it looks like, what the next changes of the clocks skip or repeat, a
    /// time zone that is not known here.
    #[serde(default)]
    pub remarks: Vec<String>,
    /// Timeout of one attempt of its tasks, in milliseconds; null: the default.
    pub timeout_ms: Option<u64>,
    /// Attempts before one of its tasks is dead-lettered; null: the default.
    pub attempts_max: Option<u32>,
    /// The role that made it.
    pub by: String,
    /// When it was made, or last paused or resumed, Unix time in milliseconds.
    pub since_ms: i64,
}

/// A schedule as it is made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSchedule {
    /// The queue of its tasks.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    pub queue: String,
    /// The kind of its tasks.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    pub kind: String,
    /// When it fires: an interval such as `@every 10s`, or cron: five fields, or six with seconds first.
    pub schedule: String,
    /// The time zone of cron, an IANA name; UTC when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub zone: Option<String>,
    /// The arguments of its tasks, any JSON value; null when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub args: Option<Box<RawValue>>,
    /// Timeout of one attempt of its tasks, a duration such as `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub timeout: Option<String>,
    /// Attempts before one of its tasks is dead-lettered, 1 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 100)]
    pub attempts_max: Option<u32>,
}

/// A schedule that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleChanged {
    /// Its name.
    pub name: String,
    /// Whether it does not fire now.
    pub paused: bool,
}

impl ScheduleRow {
    /// The row of what lies under the name of a schedule, at this time, Unix time in milliseconds.
    #[must_use]
    pub fn new(record: &ScheduleRecord, refusals: &Refusals, now_ms: i64) -> Self {
        match record {
            ScheduleRecord::Readable(schedule) => Self::readable(schedule, refusals.of(&schedule.when), now_ms),
            ScheduleRecord::Unreadable(record) => Self::unreadable(record),
        }
    }

    /// The row of a schedule, and why the server does not fire it.
    #[must_use]
    pub fn readable(schedule: &Schedule, refusal: Option<&Refusal>, now_ms: i64) -> Self {
        let zone = zone_of(&schedule.when);
        let remarks = match &zone {
            Ok(zone) => schedule.remarks(now_ms, zone),
            Err(unknown) => vec![format!("{unknown}: when it fires is not known here")],
        };
        let zone = zone.ok();
        let next_ms = zone.filter(|_| refusal.is_none()).and_then(|zone| schedule.next_ms(now_ms, &zone));
        let (args, args_text, args_base64) = arguments(&schedule.payload);
        Self {
            defect: refusal.map(ToString::to_string),
            remarks,
            name: schedule.name.clone(),
            queue: schedule.queue.clone(),
            kind: schedule.kind.clone(),
            args,
            args_text,
            args_base64,
            schedule: schedule.when.text(),
            zone: schedule.when.zone().map(str::to_owned),
            paused: schedule.paused,
            next_ms,
            timeout_ms: schedule.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            attempts_max: schedule.attempts_max,
            by: schedule.by.clone(),
            since_ms: schedule.since_ms,
        }
    }

    fn unreadable(record: &UnreadableSchedule) -> Self {
        let (args, args_text, args_base64) = arguments(&record.payload);
        let target = TaskSubject::parse(&record.target).ok();
        let (queue, kind) = target.map(|target| (target.queue, target.kind)).unwrap_or_default();
        let UnreadableSchedule { name, why, .. } = record;
        Self {
            defect: Some(format!("it cannot be read, and may fire: {why}; `millpond schedule rm {name}` removes it")),
            remarks: Vec::new(),
            name: name.clone(),
            queue,
            kind,
            args,
            args_text,
            args_base64,
            schedule: record.when.clone(),
            zone: record.zone.clone(),
            paused: false,
            next_ms: None,
            timeout_ms: None,
            attempts_max: None,
            by: record.by.clone(),
            since_ms: record.since_ms,
        }
    }
}

/// Arguments as JSON, as text where JSON parsers differ about it, or in base64 where they are no JSON.
fn arguments(payload: &[u8]) -> (Option<Box<RawValue>>, Option<String>, Option<String>) {
    let json = serde_json::from_slice::<&RawValue>(payload).ok();
    let (args, args_text) = json.map(shown).unwrap_or_default();
    (args, args_text, json.is_none().then(|| BASE64.encode(payload)))
}

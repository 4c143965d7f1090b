//! Schedules: rows of the list.

use data_encoding::BASE64;
use millpond::client::zone_of;
use millpond::schedule::Schedule;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::raw::{present, shown};

/// A task that recurs.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ScheduleRow {
    /// The name of the schedule.
    pub name: String,
    /// The queue of its tasks.
    pub queue: String,
    /// The kind of its tasks.
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

impl ScheduleRow {
    /// The row of a schedule at this time, Unix time in milliseconds.
    #[must_use]
    pub fn new(schedule: &Schedule, now_ms: i64) -> Self {
        let zone = zone_of(&schedule.when);
        let remarks = match &zone {
            Ok(zone) => schedule.remarks(now_ms, zone),
            Err(unknown) => {
                vec![format!("{unknown}: it is not known here when it fires, nor whether nats-server knows it")]
            }
        };
        let zone = zone.ok();
        let json = serde_json::from_slice::<&RawValue>(&schedule.payload).ok();
        let (args, args_text) = json.map(shown).unwrap_or_default();
        let args_base64 = json.is_none().then(|| BASE64.encode(&schedule.payload));
        Self {
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
            next_ms: zone.and_then(|zone| schedule.next_ms(now_ms, &zone)),
            timeout_ms: schedule.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            attempts_max: schedule.attempts_max,
            by: schedule.by.clone(),
            since_ms: schedule.since_ms,
        }
    }
}

//! Control requests (`ctl.>`): what an operator, a client or a service requests of a service; they are not stored.

use std::time::Duration;

use async_nats::client::{RequestError, RequestErrorKind};
use bytes::Bytes;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::bus::error::BusError;
use crate::bus::publish::schedules::Refusals;
use crate::bus::{Bus, Subscription};
use crate::dead_letter::Evidence;
use crate::retry::parse_attempts_max;
use crate::schedule::{Refusal, Schedule, ScheduleRecord, When};
use crate::wire::bounds::{self, Bounded};
use crate::wire::decode::decode;
use crate::wire::headers::Headers;

/// To a producer service: run a dead letter again, as its next attempt or in another queue.
pub const CTL_REPLAY: &str = "ctl.replay";

/// From a client to a collector: the results of a job that the collector has stored.
pub const CTL_RESULTS: &str = "ctl.request.results";
/// From a client to a collector: where a task or a job stands, by its name.
pub const CTL_STATUS: &str = "ctl.request.status";
/// From a client to a collector: cancel a task or a job, by its name.
pub const CTL_CANCEL: &str = "ctl.request.cancel";
/// To a producer service: publish the task that a job's end starts.
pub const CTL_CONTINUATION: &str = "ctl.continuation";
/// From a client to a producer service: a change of a schedule.
pub const CTL_SCHEDULE: &str = "ctl.request.schedule";

/// To one worker: drain.
#[must_use]
pub fn drain_subject(worker: &str) -> String {
    format!("ctl.drain.{worker}")
}

/// A dead letter whose task is to run again.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReplayRequest {
    /// The queue that it died in.
    pub queue: String,
    /// Its kind.
    pub kind: String,
    /// Why it died.
    pub evidence: Evidence,
    /// Its headers as they were on DEAD.
    pub headers: Headers,
    /// Its payload, base64.
    pub payload: String,
    /// Another queue: it becomes a new task there that points back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_queue: Option<String>,
    /// Arguments instead of its own, JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Box<RawValue>>,
}

impl Bounded for ReplayRequest {
    fn check(&self) -> Result<(), String> {
        self.evidence.check()
    }
}

/// A job that has ended, and the task that this starts.
///
/// ```
/// let text = r#"{"job":"j1","epoch":1,"queue":"default","kind":"report","total":3,"done":2,"dead":1,"cancelled":0,"purged":0}"#;
/// let ended: millpond::bus::operate::control::JobEnded = serde_json::from_str(text).unwrap();
/// assert_eq!(ended.id(), "j1.1/then");
/// assert_eq!(ended.arguments(), r#"{"job":"j1","epoch":1,"total":3,"done":2,"dead":1,"cancelled":0,"purged":0}"#);
/// ```
#[derive(Debug, Serialize, Deserialize)]
pub struct JobEnded {
    /// Its name.
    pub job: String,
    /// Its epoch.
    pub epoch: u32,
    /// Who runs the task.
    pub queue: String,
    /// Which handler runs it.
    pub kind: String,
    /// The signature of who submitted the job with a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// Tasks of the job.
    pub total: u64,
    /// Those with a result.
    pub done: u64,
    /// Those that died.
    pub dead: u64,
    /// Those that were cancelled.
    pub cancelled: u64,
    /// Those that a purge of their queue removed.
    #[serde(default)]
    pub purged: u64,
}

impl Bounded for JobEnded {
    fn check(&self) -> Result<(), String> {
        let Self { total, done, dead, cancelled, purged, .. } = *self;
        let counts = [("total", total), ("done", done), ("dead", dead), ("cancelled", cancelled), ("purged", purged)];
        counts.into_iter().try_for_each(|(what, n)| bounds::count(what, n))
    }
}

impl JobEnded {
    /// The id of the task: one for each epoch of the job.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}.{}/then", self.job, self.epoch)
    }

    /// The argument of the task, JSON.
    #[must_use]
    pub fn arguments(&self) -> String {
        let Self { epoch, total, done, dead, cancelled, purged, .. } = self;
        let job = serde_json::to_string(&self.job).unwrap_or_default();
        format!(
            r#"{{"job":{job},"epoch":{epoch},"total":{total},"done":{done},"dead":{dead},"cancelled":{cancelled},"purged":{purged}}}"#
        )
    }
}

/// A change of a schedule, or a look at all.
///
/// ```
/// use millpond::bus::operate::control::ScheduleRequest;
/// let text = r#"{"add":{"name":"report","queue":"default","kind":"square","schedule":"@every 10s","args":12}}"#;
/// let request: ScheduleRequest = serde_json::from_str(text).unwrap();
/// let ScheduleRequest::Add(add) = request else { panic!() };
/// assert_eq!(add.schedule().unwrap().0.payload, "12");
/// assert!(serde_json::from_str::<ScheduleRequest>(r#"{"pause":{"name":"report"}}"#).is_ok());
/// ```
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleRequest {
    /// It fires from now on; one of its name is replaced.
    Add(Box<ScheduleToAdd>),
    /// It does not fire until it is resumed.
    Pause {
        /// Its name.
        name: String,
    },
    /// It fires again.
    Resume {
        /// Its name.
        name: String,
    },
    /// It is no more.
    Remove {
        /// Its name.
        name: String,
    },
    /// What of all schedules the server does not fire.
    Look {},
}

impl Bounded for ScheduleRequest {}

/// A schedule as a request says it.
#[derive(Debug, Serialize, Deserialize)]
pub struct ScheduleToAdd {
    /// Its name, a token.
    pub name: String,
    /// The queue of its tasks.
    pub queue: String,
    /// The kind of its tasks.
    pub kind: String,
    /// When it fires: `@every 10s`, or six cron fields, seconds first.
    pub schedule: String,
    /// The time zone of cron fields; UTC when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The arguments of its tasks, JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Box<RawValue>>,
    /// The same where they are no JSON, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args_base64: Option<String>,
    /// Timeout of one attempt, as a duration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Attempts before a task of it is dead-lettered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts_max: Option<u32>,
    /// Who makes it.
    #[serde(default)]
    pub by: String,
    /// With keys: the signature of its message, by who makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

impl ScheduleToAdd {
    /// A schedule as a request, with the signature of its message.
    #[must_use]
    pub fn new(schedule: &Schedule, signature: Option<String>) -> Self {
        let json = serde_json::from_slice::<Box<RawValue>>(&schedule.payload).ok();
        // Only what is the same byte for byte: a signature covers it.
        let json = json.filter(|json| json.get().as_bytes() == &schedule.payload[..]);
        Self {
            name: schedule.name.clone(),
            queue: schedule.queue.clone(),
            kind: schedule.kind.clone(),
            schedule: schedule.when.text(),
            zone: schedule.when.zone().map(str::to_owned),
            args_base64: json.is_none().then(|| BASE64.encode(&schedule.payload)),
            args: json,
            timeout: schedule.timeout.map(|timeout| humantime::format_duration(timeout).to_string()),
            attempts_max: schedule.attempts_max,
            by: schedule.by.clone(),
            signature,
        }
    }

    /// The schedule that is requested, and its signature.
    ///
    /// # Errors
    /// What of it cannot be.
    pub fn schedule(self) -> Result<(Schedule, Option<String>), String> {
        let when = match When::parse(&self.schedule, self.zone.as_deref()).map_err(|e| e.to_string())? {
            When::Every(_) if self.zone.is_some() => return Err("zone: an interval has no time zone".to_owned()),
            When::Every(interval) => When::every(interval).map_err(|e| e.to_string())?,
            cron => cron,
        };
        let timeout = self.timeout.as_deref().map(bounds::parse_duration).transpose()?;
        let attempts = self.attempts_max.map(|n| parse_attempts_max(&n.to_string())).transpose();
        let payload = match (self.args, self.args_base64) {
            (Some(_), Some(_)) => return Err("it has both args and args_base64".to_owned()),
            (Some(json), None) => Bytes::from(json.get().to_owned()),
            (None, Some(text)) => {
                BASE64.decode(text.as_bytes()).map_err(|e| format!("args_base64 is not base64: {e}"))?.into()
            }
            (None, None) => Bytes::from_static(b"null"),
        };
        let schedule = Schedule {
            name: self.name,
            queue: self.queue,
            kind: self.kind,
            payload,
            when,
            paused: false,
            timeout,
            attempts_max: attempts.map_err(|wrong| format!("attempts_max {wrong}"))?,
            by: self.by,
            since_ms: 0,
        };
        schedule.check().map_err(|e| e.to_string())?;
        Ok((schedule, self.signature))
    }
}

/// A time at which the server would not fire a schedule.
#[derive(Debug, Serialize, Deserialize)]
pub struct RefusedTime {
    /// As the schedule says it.
    pub schedule: String,
    /// Its time zone.
    pub zone: Option<String>,
    /// It is the zone that the server does not know.
    pub is_zone: bool,
}

impl Bounded for RefusedTime {}

impl RefusedTime {
    /// Those of these schedules.
    #[must_use]
    pub fn of(records: &[ScheduleRecord], refusals: &Refusals) -> Vec<Self> {
        let all = records.iter().filter_map(ScheduleRecord::schedule);
        let refused = all.filter_map(|schedule| Some((&schedule.when, refusals.of(&schedule.when)?)));
        let refused = refused.map(|(when, refusal)| Self {
            schedule: when.text(),
            zone: when.zone().map(str::to_owned),
            is_zone: matches!(refusal, Refusal::Zone { .. }),
        });
        refused.collect()
    }
}

impl FromIterator<RefusedTime> for Refusals {
    fn from_iter<I: IntoIterator<Item = RefusedTime>>(refused: I) -> Self {
        let mut refusals = Self::default();
        for RefusedTime { schedule, zone, is_zone } in refused {
            refusals.note(schedule, zone, is_zone);
        }
        refusals
    }
}

/// The answer of a service.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlReply {
    /// It is done, and stored.
    Ok(Box<RawValue>),
    /// It is not, for this reason; the same request may succeed later.
    Error(String),
    /// It never will be, for this reason: the same request is answered so again.
    Refused(String),
}

impl Bounded for ControlReply {}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No service listens.
    #[error("no service listens on {0}")]
    Nobody(String),
    /// The answer did not come, or cannot be read.
    #[error("no answer on {0}: {1}")]
    NoAnswer(String, String),
}

/// One request and where its answer goes.
pub struct ControlRequest {
    bus: Bus,
    reply: String,
    /// The request, JSON.
    pub payload: Bytes,
}

impl ControlRequest {
    /// Answers it.
    pub async fn answer(self, answer: &ControlReply) {
        self.bus.publish_core(&self.reply, Bytes::from(serde_json::to_vec(answer).unwrap_or_default())).await;
    }
}

/// The requests on a subject; of several services in a group one gets each.
pub struct ControlRequests {
    bus: Bus,
    messages: Subscription,
}

impl ControlRequests {
    /// The next request; none when the connection is closed for good. What does not say where its answer goes is no request: an
    /// answer of somebody else, perhaps, who was told to send it here.
    pub async fn next(&mut self) -> Option<ControlRequest> {
        loop {
            let message = self.messages.next().await?;
            if let Some(reply) = message.reply {
                return Some(ControlRequest {
                    bus: self.bus.clone(),
                    reply: reply.to_string(),
                    payload: message.payload,
                });
            }
        }
    }
}

impl Bus {
    /// Listens for requests on `subject` in a group of services.
    ///
    /// # Errors
    /// [`BusError`] when the connection is closed.
    pub async fn serve(&self, subject: &str, group: &str) -> Result<ControlRequests, BusError> {
        let messages = self.listen_in_group(subject, group).await?;
        Ok(ControlRequests { bus: self.clone(), messages })
    }

    /// Sends a request to a service, and waits for its answer.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn request<T: Serialize>(
        &self,
        subject: &str,
        what: &T,
        within: Duration,
    ) -> Result<ControlReply, ControlError> {
        let payload = Bytes::from(serde_json::to_vec(what).unwrap_or_default());
        let no_answer = |why: String| ControlError::NoAnswer(subject.to_owned(), why);
        let reply = tokio::time::timeout(within, self.client.request(subject.to_owned(), payload)).await;
        let message = reply.map_err(|_| no_answer("it took too long".to_owned()))?.map_err(|e: RequestError| {
            if e.kind() == RequestErrorKind::NoResponders {
                ControlError::Nobody(subject.to_owned())
            } else {
                no_answer(e.to_string())
            }
        })?;
        decode(&message.payload).map_err(|e| no_answer(e.to_string()))
    }
}

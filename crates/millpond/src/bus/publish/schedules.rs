//! Schedules in DUE, one message for each name: the server keeps one per subject, so that to write is to replace.
//! To read them, a role needs the direct get of `sched.-.*` and nothing else.

use std::collections::BTreeMap;

use async_nats::jetstream;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::DirectGetErrorKind;
use bytes::Bytes;
use futures_util::StreamExt;

use crate::bus::error::BusError;
use crate::bus::publish::{PublishError, RetryDeadline};
use crate::bus::read::unix_ms;
use crate::bus::{Bus, from_nats, to_nats};
use crate::schedule::{Refusal, Schedule, ScheduleRecord, When};
use crate::wire::headers::{
    HEADER_EXPECTED_SEQUENCE, HEADER_SCHEDULE, HEADER_SCHEDULE_TARGET, HEADER_SCHEDULE_ZONE, Headers,
};
use crate::wire::streams::STREAM_DUE;
use crate::wire::subject;

/// How many schedules the server is requested to look at, or to give, at a time.
const REQUESTS_MAX: usize = 16;
/// What nats-server answers to an expression, to a time zone, and to a target that it does not take. It looks at the target last.
const PATTERN_INVALID: u64 = 10189;
const TARGET_INVALID: u64 = 10190;
const ZONE_INVALID: u64 = 10223;

/// A schedule, and where its message lies.
#[derive(Debug)]
pub struct StoredSchedule {
    /// Sequence of its message in DUE.
    pub seq: u64,
    /// Its signature is that of one of this program's keys; without keys nobody looks.
    pub is_believed: bool,
    /// What lies there.
    pub record: ScheduleRecord,
}

/// What the server does not fire, of the schedules that it was requested to look at.
#[derive(Debug, Default)]
pub struct Refusals(BTreeMap<(String, Option<String>), Refusal>);

impl Refusals {
    /// Why the server does not fire a schedule; none when it does.
    #[must_use]
    pub fn of(&self, when: &When) -> Option<&Refusal> {
        self.0.get(&key(when))
    }
}

impl Refusals {
    /// Adds a time that another program has asked the server about.
    pub(crate) fn note(&mut self, text: String, zone: Option<String>, is_zone: bool) {
        let refusal = match (&zone, is_zone) {
            (Some(zone), true) => Refusal::Zone { zone: zone.clone() },
            _ => Refusal::Pattern { text: text.clone() },
        };
        self.0.insert((text, zone), refusal);
    }
}

fn key(when: &When) -> (String, Option<String>) {
    (when.text(), when.zone().map(str::to_owned))
}

impl Bus {
    /// Writes a schedule. What was under its name is replaced at once; with `instead_of`, only that message is.
    ///
    /// # Errors
    /// [`PublishError`]; see [`was_changed`] for `instead_of`.
    pub async fn put_schedule(
        &self,
        schedule: &Schedule,
        instead_of: Option<u64>,
        deadline: RetryDeadline,
    ) -> Result<(), PublishError> {
        let mut headers = schedule.headers();
        headers.extend(instead_of.map(|seq| (HEADER_EXPECTED_SEQUENCE.to_owned(), seq.to_string())));
        let place = subject::schedule(&schedule.name);
        self.store(&place, &headers, schedule.payload.clone(), deadline).await?;
        Ok(())
    }

    /// Removes the schedule of a name, if there is one. The server does it when it stores this message, of which it
    /// keeps the last.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn remove_schedule(&self, name: &str, deadline: RetryDeadline) -> Result<(), PublishError> {
        let headers = [
            ("Nats-Scheduler", subject::schedule(name)),
            ("Nats-Schedule-Next", "purge".to_owned()),
            ("Nats-Rollup", "sub".to_owned()),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value)).into();
        self.store(subject::SCHEDULES_REMOVED, &headers, Bytes::new(), deadline).await?;
        Ok(())
    }

    /// The schedule of a name.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn schedule(&self, name: &str) -> Result<Option<StoredSchedule>, BusError> {
        let failed = |e: &(dyn std::error::Error + 'static)| BusError::new(&format!("the read of schedule {name}"), e);
        let due = self.js.get_stream_no_info(STREAM_DUE).await.map_err(|e| failed(&e))?;
        let message = match due.direct_get_last_for_subject(subject::schedule(name)).await {
            Ok(message) => message,
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        let since_ms = unix_ms(message.time);
        let headers = from_nats(Some(&message.headers));
        let target = headers.iter().find(|(name, _)| name == HEADER_SCHEDULE_TARGET).map_or("", |(_, target)| target);
        let is_believed =
            self.signer.as_ref().is_none_or(|signer| signer.verify(target, &headers, &message.payload).is_ok());
        let record = ScheduleRecord::read(name, &headers, message.payload, since_ms);
        Ok(Some(StoredSchedule { seq: message.sequence, is_believed, record }))
    }

    /// All schedules, by name, and what lies in their places and cannot be read.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn schedules(&self) -> Result<Vec<ScheduleRecord>, BusError> {
        let failed = |e: &(dyn std::error::Error + 'static)| BusError::new("a list of the schedules", e);
        let due = self.js.get_stream(STREAM_DUE).await.map_err(|e| failed(&e))?;
        let mut subjects = due.info_with_subjects(subject::SCHEDULES).await.map_err(|e| failed(&e))?;
        let mut names = Vec::new();
        while let Some(subject) = subjects.next().await {
            let (subject, _) = subject.map_err(|e| failed(&e))?;
            // The place of the removed is none.
            names.extend(subject.rsplit('.').next().filter(|name| *name != "-").map(str::to_owned));
        }
        names.sort();
        let mut schedules = Vec::new();
        let reads: Vec<_> = names.iter().map(|name| self.schedule(name)).collect();
        let mut reads = futures_util::stream::iter(reads).buffered(REQUESTS_MAX);
        while let Some(kept) = reads.next().await {
            // One may be gone by now.
            schedules.extend(kept?.map(|kept| kept.record));
        }
        Ok(schedules)
    }

    /// What the server would not fire of these, paused ones included: it may have been moved to a machine or an image without the
    /// data of a time zone, and then drops a schedule when its time has come, without a word.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn schedule_refusals(&self, records: &[ScheduleRecord]) -> Result<Refusals, BusError> {
        let all = records.iter().filter_map(ScheduleRecord::schedule);
        let distinct: BTreeMap<_, &When> = all.map(|schedule| (key(&schedule.when), &schedule.when)).collect();
        let looks: Vec<_> = distinct.values().map(|when| self.schedule_refusal(when)).collect();
        let answers: Vec<_> = futures_util::stream::iter(looks).buffered(REQUESTS_MAX).collect().await;
        let mut refusals = Refusals::default();
        for (key, answer) in distinct.into_keys().zip(answers) {
            refusals.0.extend(answer?.map(|refusal| (key, refusal)));
        }
        Ok(refusals)
    }

    /// Why the server would not fire this; none when it would. Nothing is stored: without a target it never is.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn schedule_refusal(&self, when: &When) -> Result<Option<Refusal>, BusError> {
        let zone = when.zone().map(|zone| (HEADER_SCHEDULE_ZONE.to_owned(), zone.to_owned()));
        let headers: Headers = [(HEADER_SCHEDULE.to_owned(), when.text())].into_iter().chain(zone).collect();
        let message = PublishMessage::build().headers(to_nats(&headers));
        let answer = match self.js.send_publish(subject::SCHEDULE_PROBE, message).await {
            Ok(ack) => ack.into_future().await,
            Err(error) => Err(error),
        };
        let Err(error) = answer else { return Ok(None) };
        let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<jetstream::Error>());
        match source.map(|error| error.error_code().0) {
            Some(TARGET_INVALID) => Ok(None),
            Some(ZONE_INVALID) => Ok(Some(Refusal::Zone { zone: when.zone().unwrap_or_default().to_owned() })),
            Some(PATTERN_INVALID) => Ok(Some(Refusal::Pattern { text: when.text() })),
            _ => Err(BusError::new("a look at a schedule", &error)),
        }
    }
}

/// Whether a write failed because another program wrote meanwhile.
#[must_use]
pub fn was_changed(error: &PublishError) -> bool {
    matches!(error, PublishError::NotLast { .. })
}

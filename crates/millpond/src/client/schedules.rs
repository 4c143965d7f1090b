//! Schedules: added, listed, paused, resumed and removed. Each is one message, which the server replaces or removes in one step:
//! nothing is ever half done. A producer service makes the changes; a client requests them of one.

use std::time::Duration;

use jiff::tz::TimeZone;
use serde_json::value::RawValue;

use super::Client;
use super::errors::ScheduleChangeError;
use crate::bus::operate::control::{
    CTL_SCHEDULE, ControlError, ControlReply, RefusedTime, ScheduleRequest, ScheduleToAdd,
};
use crate::bus::publish::RetryDeadline;
use crate::bus::publish::schedules::{Refusals, was_changed};
use crate::schedule::{Schedule, ScheduleError, ScheduleRecord, When};
use crate::wire::decode::decode;
use crate::wire::headers::HEADER_SIGNATURE;
use crate::wire::subject::{TaskSubject, check_token};

/// How long a producer service may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often a pause is tried again when another client changes the schedule meanwhile.
const TRIES_MAX: usize = 5;

impl Client {
    /// Adds a schedule, which fires from now on. A schedule of the same name is replaced, even if it was paused. The name of its time
    /// zone is stored as the server spells it, however it is spelled here (`europe/berlin`).
    ///
    /// # Errors
    /// [`ScheduleChangeError`]; nothing was changed then, but after [`crate::bus::publish::PublishError::NoAnswer`] it may have
    /// been: add it again.
    ///
    /// # Cancel safety
    /// When this is dropped, the change may be made or not; making it again is safe.
    pub async fn add_schedule(&self, schedule: &Schedule, deadline: RetryDeadline) -> Result<(), ScheduleChangeError> {
        schedule.check()?;
        let schedule = &Schedule { when: with_known_zone(&schedule.when)?, ..schedule.clone() };
        if self.bus.may_schedule() {
            return self.store_schedule(schedule, deadline).await;
        }
        let target = TaskSubject::new(&schedule.queue, &schedule.kind, None)?.due();
        let signature = self.bus.signer().and_then(|signer| {
            let mut headers = schedule.headers();
            signer.sign(&target, &mut headers, &schedule.payload);
            headers.into_iter().find(|(name, _)| name == HEADER_SIGNATURE).map(|(_, signature)| signature)
        });
        let request = ScheduleRequest::Add(Box::new(ScheduleToAdd::new(schedule, signature)));
        self.request_change(&request, deadline).await.map(drop)
    }

    /// The same where this program may, and knows no more of the time zone than the server does.
    ///
    /// # Errors
    /// [`ScheduleChangeError`].
    ///
    /// # Cancel safety
    /// When this is dropped, the change may be made or not; making it again is safe.
    #[doc(hidden)]
    pub async fn store_schedule(
        &self,
        schedule: &Schedule,
        deadline: RetryDeadline,
    ) -> Result<(), ScheduleChangeError> {
        if let Some(refusal) = self.bus.schedule_refusal(&schedule.when).await? {
            return Err(ScheduleChangeError::Refused(refusal));
        }
        Ok(self.bus.put_schedule(schedule, None, deadline).await?)
    }

    /// Has a producer service change a schedule: who may publish where the server keeps them could wipe what waits there.
    async fn request_change(
        &self,
        request: &ScheduleRequest,
        deadline: RetryDeadline,
    ) -> Result<Box<RawValue>, ScheduleChangeError> {
        let within = match deadline {
            RetryDeadline::Unlimited => ANSWER_WITHIN,
            RetryDeadline::Within(within) => within.min(ANSWER_WITHIN),
        };
        match self.bus.request(CTL_SCHEDULE, request, within).await {
            Ok(ControlReply::Ok(answer)) => Ok(answer),
            Ok(ControlReply::Refused(reason)) => Err(ScheduleChangeError::RefusedByProducer { reason }),
            Ok(ControlReply::Error(reason)) => Err(ScheduleChangeError::NotChanged { reason }),
            Err(ControlError::Nobody(_)) => Err(ScheduleChangeError::NoProducer),
            Err(error) => Err(ScheduleChangeError::NotChanged { reason: error.to_string() }),
        }
    }

    /// The schedule of a name.
    ///
    /// # Errors
    /// [`ScheduleChangeError`].
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn schedule(&self, name: &str) -> Result<Option<ScheduleRecord>, ScheduleChangeError> {
        check_token("schedule", name)?;
        Ok(self.bus.schedule(name).await?.map(|kept| kept.record))
    }

    /// All schedules, by name, and what the server does not fire of them.
    ///
    /// # Errors
    /// [`ScheduleChangeError`].
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn schedules(&self) -> Result<(Vec<ScheduleRecord>, Refusals), ScheduleChangeError> {
        let records = self.bus.schedules().await?;
        if self.bus.may_schedule() {
            let refusals = self.bus.schedule_refusals(&records).await?;
            return Ok((records, refusals));
        }
        let within = RetryDeadline::Within(ANSWER_WITHIN);
        let refusals = match self.request_change(&ScheduleRequest::Look {}, within).await {
            Ok(answer) => decode::<Vec<RefusedTime>>(answer.get().as_bytes()).unwrap_or_default(),
            // They are listed all the same; that no producer runs is said elsewhere.
            Err(_) => Vec::new(),
        };
        Ok((records, refusals.into_iter().collect()))
    }

    /// Pauses a schedule, or resumes it, and returns it. A schedule that is in this state already is left alone.
    ///
    /// # Errors
    /// [`ScheduleChangeError::NotFound`], and others.
    ///
    /// # Cancel safety
    /// When this is dropped, the change may be made or not; making it again is safe.
    pub async fn pause_schedule(
        &self,
        name: &str,
        paused: bool,
        deadline: RetryDeadline,
    ) -> Result<Schedule, ScheduleChangeError> {
        check_token("schedule", name)?;
        let mut tries = 0;
        loop {
            let kept = self
                .bus
                .schedule(name)
                .await?
                .ok_or_else(|| ScheduleChangeError::NotFound { name: name.to_owned() })?;
            let schedule = match kept.record {
                ScheduleRecord::Readable(schedule) => schedule,
                ScheduleRecord::Unreadable(record) => {
                    return Err(ScheduleChangeError::Unreadable { name: record.name, why: record.why });
                }
            };
            if schedule.paused == paused {
                return Ok(schedule);
            }
            if !self.bus.may_schedule() {
                let of = name.to_owned();
                let request =
                    if paused { ScheduleRequest::Pause { name: of } } else { ScheduleRequest::Resume { name: of } };
                self.request_change(&request, deadline).await?;
                // The stored one has its time from the server.
                let stored = self.bus.schedule(name).await?.and_then(|kept| kept.record.schedule().cloned());
                return Ok(stored.unwrap_or(Schedule { paused, ..schedule }));
            }
            // This would sign it.
            if !kept.is_believed {
                return Err(ScheduleChangeError::NotSigned { name: name.to_owned() });
            }
            if !paused && let Some(refusal) = self.bus.schedule_refusal(&schedule.when).await? {
                return Err(ScheduleChangeError::Refused(refusal));
            }
            let changed = Schedule { paused, ..schedule };
            match self.bus.put_schedule(&changed, Some(kept.seq), deadline).await {
                // The schedule is read again: the change may be our own write, sent twice.
                Err(error) if was_changed(&error) && tries < TRIES_MAX => tries += 1,
                Err(error) => return Err(error.into()),
                Ok(()) => {}
            }
        }
    }

    /// Removes a schedule; tasks that it has published already run.
    ///
    /// # Errors
    /// [`ScheduleChangeError::NotFound`], and others.
    ///
    /// # Cancel safety
    /// When this is dropped, the change may be made or not; making it again is safe.
    pub async fn remove_schedule(&self, name: &str, deadline: RetryDeadline) -> Result<(), ScheduleChangeError> {
        check_token("schedule", name)?;
        if self.bus.schedule(name).await?.is_none() {
            return Err(ScheduleChangeError::NotFound { name: name.to_owned() });
        }
        if !self.bus.may_schedule() {
            return self.request_change(&ScheduleRequest::Remove { name: name.to_owned() }, deadline).await.map(drop);
        }
        Ok(self.bus.remove_schedule(name, deadline).await?)
    }
}

/// The time zone of a schedule: the one it names, or UTC.
///
/// # Errors
/// [`ScheduleError::Zone`] when this machine does not know it.
pub fn zone_of(when: &When) -> Result<TimeZone, ScheduleError> {
    match when.zone() {
        None => Ok(TimeZone::UTC),
        Some(name) => TimeZone::get(name).map_err(|_| ScheduleError::Zone(name.to_owned())),
    }
}

/// Cron in a time zone, whose name becomes the one that the server knows.
///
/// # Errors
/// [`ScheduleError::Cron`] or [`ScheduleError::Zone`].
pub fn cron_in(text: &str, zone: Option<&str>) -> Result<When, ScheduleError> {
    Ok(When::Cron(crate::cron::Cron::parse(text)?, zone.map(known_zone).transpose()?))
}

/// The same times; the name of their time zone becomes the one that the server knows.
fn with_known_zone(when: &When) -> Result<When, ScheduleError> {
    match when {
        When::Cron(cron, Some(zone)) => Ok(When::Cron(cron.clone(), Some(known_zone(zone)?))),
        other => Ok(other.clone()),
    }
}

/// The name of a time zone as the database of time zones spells it: the server looks for a file of exactly that name.
fn known_zone(name: &str) -> Result<String, ScheduleError> {
    let zone = TimeZone::get(name).ok();
    let zone = zone.as_ref().and_then(|zone| zone.iana_name().map(str::to_owned));
    zone.ok_or_else(|| ScheduleError::Zone(name.to_owned()))
}

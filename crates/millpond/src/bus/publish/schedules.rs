//! Schedules in DUE, one message for each name: the server keeps one per subject, so that to write is to replace.
//! To read them, a role needs the direct get of `sched.-.*` and nothing else.

use async_nats::jetstream::stream::DirectGetErrorKind;
use bytes::Bytes;
use futures_util::StreamExt;

use crate::bus::error::BusError;
use crate::bus::publish::{PublishError, RetryDeadline};
use crate::bus::read::unix_ms;
use crate::bus::{Bus, from_nats};
use crate::schedule::Schedule;
use crate::wire::headers::HEADER_EXPECTED_SEQUENCE;
use crate::wire::streams::STREAM_DUE;
use crate::wire::subject;

/// A schedule, and where its message lies.
#[derive(Debug)]
pub struct StoredSchedule {
    /// Sequence of its message in DUE.
    pub seq: u64,
    /// The schedule.
    pub schedule: Schedule,
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
        let schedule = Schedule::parse(&from_nats(Some(&message.headers)), message.payload, since_ms);
        Ok(schedule.map(|schedule| StoredSchedule { seq: message.sequence, schedule }))
    }

    /// All schedules, by name.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn schedules(&self) -> Result<Vec<Schedule>, BusError> {
        let failed = |e: &(dyn std::error::Error + 'static)| BusError::new("a list of the schedules", e);
        let due = self.js.get_stream(STREAM_DUE).await.map_err(|e| failed(&e))?;
        let mut subjects = due.info_with_subjects(subject::SCHEDULES).await.map_err(|e| failed(&e))?;
        let mut names = Vec::new();
        while let Some(subject) = subjects.next().await {
            let (subject, _) = subject.map_err(|e| failed(&e))?;
            names.extend(subject.rsplit('.').next().map(str::to_owned));
        }
        names.sort();
        let mut schedules = Vec::new();
        for name in names {
            // One may be gone by now, and the place of the removed is none.
            schedules.extend(self.schedule(&name).await?.map(|kept| kept.schedule));
        }
        Ok(schedules)
    }
}

/// Whether a write failed because another program wrote meanwhile.
#[must_use]
pub fn was_changed(error: &PublishError) -> bool {
    matches!(error, PublishError::NotLast { .. })
}

//! A schedule: a task that the server publishes again and again, under a name. Its message in DUE is its only record: the headers
//! hold all of it, so that what is listed is what fires. No I/O, no clock.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::cron::{Cron, CronError};
use crate::retry::parse_attempts_max;
use crate::wire::bounds::{DURATION_MAX, parse_duration};
use crate::wire::headers::{
    HEADER_ATTEMPTS_MAX, HEADER_SCHEDULE, HEADER_SCHEDULE_BY, HEADER_SCHEDULE_NAME, HEADER_SCHEDULE_PAUSED,
    HEADER_SCHEDULE_PAUSED_ZONE, HEADER_SCHEDULE_TARGET, HEADER_SCHEDULE_ZONE, HEADER_TIMEOUT, Headers,
};
use crate::wire::subject::{SubjectError, TaskSubject, check_token};

/// When a paused schedule fires. The server counts nanoseconds in 64 bits, up to the year 2262.
const NEVER: &str = "@at 2200-01-01T00:00:00Z";
/// Shortest time between two firings that the server takes.
const EVERY_MIN: Duration = Duration::from_secs(1);

/// Why a schedule cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// A name, queue or kind that is not a token.
    #[error(transparent)]
    Token(#[from] SubjectError),
    /// Bad cron.
    #[error(transparent)]
    Cron(#[from] CronError),
    /// An interval that the server does not take.
    #[error("a schedule may fire every second at the most and every year at the least, in whole milliseconds; {} is not such a time", humantime::format_duration(*.0))]
    Every(Duration),
    /// No such time zone.
    #[error(
        "time zone {0:?} is not known on this machine; write one such as Europe/Berlin or UTC, or install tzdata here if there is one of that name"
    )]
    Zone(String),
}

/// Why a message under the name of a schedule cannot be read as one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A header that every schedule has.
    #[error("its message has no header {0}")]
    Missing(&'static str),
    /// A target that is no queue and kind.
    #[error("its target {0:?} is not due.<queue>.<kind>")]
    Target(String),
    /// The name in the message is another one than that of its subject.
    #[error("its message calls itself {0:?}")]
    OtherName(String),
    /// Bad cron.
    #[error(transparent)]
    Cron(#[from] CronError),
    /// An interval that cannot be.
    #[error("{0:?} is not an interval")]
    Interval(String),
    /// Something that happens once.
    #[error("{0:?} happens once and does not recur")]
    Once(String),
}

/// Why nats-server does not fire a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It does not know the time zone.
    #[error(
        "nats-server does not know time zone {zone}, so this does not fire: install tzdata where nats-server runs, start it again, and add the schedule anew; or write the cron in UTC"
    )]
    Zone {
        /// The zone.
        zone: String,
    },
    /// It does not take the expression.
    #[error("nats-server does not take {text:?}, so this does not fire: add the schedule anew in another way")]
    Pattern {
        /// The expression.
        text: String,
    },
}

/// When it fires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// Again and again after this long.
    Every(Duration),
    /// By a cron expression, in a time zone (an IANA name) or in UTC.
    Cron(Cron, Option<String>),
}

impl When {
    /// Fires again and again after this long, at least a second.
    ///
    /// # Errors
    /// [`ScheduleError::Every`].
    pub fn every(interval: Duration) -> Result<Self, ScheduleError> {
        let fits = (EVERY_MIN..=DURATION_MAX).contains(&interval) && interval.subsec_nanos().is_multiple_of(1_000_000);
        if fits { Ok(Self::Every(interval)) } else { Err(ScheduleError::Every(interval)) }
    }

    /// The text for the server, without the time zone.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Every(interval) if interval.subsec_nanos() == 0 => format!("@every {}s", interval.as_secs()),
            Self::Every(interval) => format!("@every {}ms", interval.as_millis()),
            Self::Cron(cron, _) => cron.text().to_owned(),
        }
    }

    /// The time zone, where one was given.
    #[must_use]
    pub fn zone(&self) -> Option<&str> {
        match self {
            Self::Every(_) => None,
            Self::Cron(_, zone) => zone.as_deref(),
        }
    }

    pub(crate) fn parse(text: &str, zone: Option<&str>) -> Result<Self, RecordError> {
        if let Some(interval) = text.strip_prefix("@every ") {
            let wrong = || RecordError::Interval(text.to_owned());
            // What the server has taken fires, however seldom: it is listed.
            let interval = humantime::parse_duration(interval).map_err(|_| wrong())?;
            return i64::try_from(interval.as_nanos()).map(|_| Self::Every(interval)).map_err(|_| wrong());
        }
        if text.starts_with("@at ") {
            return Err(RecordError::Once(text.to_owned()));
        }
        Ok(Self::Cron(Cron::parse(text)?, zone.map(str::to_owned)))
    }
}

/// A named task that recurs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Its name: a token. There is one schedule of a name.
    pub name: String,
    /// The queue of its tasks.
    pub queue: String,
    /// The kind of its tasks.
    pub kind: String,
    /// The arguments of its tasks.
    pub payload: Bytes,
    /// When it fires.
    pub when: When,
    /// It does not fire now.
    pub paused: bool,
    /// Timeout of one attempt; none means the worker's.
    pub timeout: Option<Duration>,
    /// Attempts before a task is dead-lettered; none means the default.
    pub attempts_max: Option<u32>,
    /// Who made it.
    pub by: String,
    /// When it was made, or last paused or resumed, Unix time in milliseconds; 0 before it is stored.
    pub since_ms: i64,
}

impl Schedule {
    /// Checks its name, queue and kind.
    ///
    /// # Errors
    /// [`ScheduleError::Token`].
    pub fn check(&self) -> Result<(), ScheduleError> {
        check_token("schedule", &self.name)?;
        TaskSubject::new(&self.queue, &self.kind, None)?;
        Ok(())
    }

    /// The headers of its message. No `Millpond-Id`: each firing is a task of its own.
    #[must_use]
    pub fn headers(&self) -> Headers {
        let text = self.when.text();
        let mut headers = Headers::new();
        let mut put = |name: &str, value: Option<String>| headers.extend(value.map(|v| (name.to_owned(), v)));
        put(HEADER_SCHEDULE, Some(if self.paused { NEVER.to_owned() } else { text.clone() }));
        put(HEADER_SCHEDULE_PAUSED, self.paused.then_some(text));
        let zone = if self.paused { HEADER_SCHEDULE_PAUSED_ZONE } else { HEADER_SCHEDULE_ZONE };
        put(zone, self.when.zone().map(str::to_owned));
        put(HEADER_SCHEDULE_TARGET, Some(format!("due.{}.{}", self.queue, self.kind)));
        put(HEADER_SCHEDULE_NAME, Some(self.name.clone()));
        put(HEADER_SCHEDULE_BY, Some(self.by.clone()));
        put(HEADER_TIMEOUT, self.timeout.map(|t| humantime::format_duration(t).to_string()));
        put(HEADER_ATTEMPTS_MAX, self.attempts_max.map(|n| n.to_string()));
        headers
    }

    /// Parses its message.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn parse(headers: &Headers, payload: Bytes, since_ms: i64) -> Result<Self, RecordError> {
        let get = |name: &str| header(headers, name);
        let of_all = |name: &'static str| get(name).ok_or(RecordError::Missing(name));
        let target = of_all(HEADER_SCHEDULE_TARGET)?;
        let target = TaskSubject::parse(target).map_err(|_| RecordError::Target(target.to_owned()))?;
        let paused = get(HEADER_SCHEDULE_PAUSED);
        let when = match paused {
            Some(text) => When::parse(text, get(HEADER_SCHEDULE_PAUSED_ZONE))?,
            None => When::parse(of_all(HEADER_SCHEDULE)?, get(HEADER_SCHEDULE_ZONE))?,
        };
        Ok(Self {
            name: of_all(HEADER_SCHEDULE_NAME)?.to_owned(),
            queue: target.queue,
            kind: target.kind,
            payload,
            when,
            paused: paused.is_some(),
            timeout: get(HEADER_TIMEOUT).and_then(|text| parse_duration(text).ok()),
            attempts_max: get(HEADER_ATTEMPTS_MAX).and_then(|text| parse_attempts_max(text).ok()),
            by: get(HEADER_SCHEDULE_BY).unwrap_or_default().to_owned(),
            since_ms,
        })
    }

    /// What a person should know of when it fires: steps that are not what they look like, and what changes of the clocks skip or
    /// repeat. `zone` is the one it names.
    #[must_use]
    pub fn remarks(&self, now_ms: i64, zone: &TimeZone) -> Vec<String> {
        let When::Cron(cron, _) = &self.when else { return Vec::new() };
        let mut remarks = cron.remarks();
        remarks.extend(Timestamp::from_millisecond(now_ms).iter().flat_map(|now| cron.clock_changes(*now, zone)));
        remarks
    }

    /// When it fires next, Unix time in milliseconds; none while it is paused. `zone` is the one it names.
    /// An interval counts from when it was made or resumed; a server that was down when it should have fired counts anew.
    #[must_use]
    pub fn next_ms(&self, now_ms: i64, zone: &TimeZone) -> Option<i64> {
        match &self.when {
            _ if self.paused => None,
            When::Every(interval) => {
                let interval = i64::try_from(interval.as_millis()).ok().filter(|ms| *ms > 0)?;
                // The server rounds to the second.
                let first = self.since_ms.checked_add(500)?.div_euclid(1000) * 1000;
                let times = (now_ms - first).div_euclid(interval).max(0) + 1;
                first.checked_add(interval.checked_mul(times)?)
            }
            When::Cron(cron, _) => {
                let now = Timestamp::from_millisecond(now_ms).ok()?;
                cron.next(now, zone).map(Timestamp::as_millisecond)
            }
        }
    }
}

/// What lies under the name of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScheduleRecord {
    /// A schedule.
    Readable(Schedule),
    /// A message that is none, as far as this version knows.
    Unreadable(UnreadableSchedule),
}

/// A message under the name of a schedule that this version cannot read. The server may fire it all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableSchedule {
    /// The name in its subject.
    pub name: String,
    /// Why it cannot be read.
    pub why: RecordError,
    /// When it fires, as the message has it.
    pub when: String,
    /// Its time zone, as the message has it.
    pub zone: Option<String>,
    /// Its target, as the message has it.
    pub target: String,
    /// Its payload.
    pub payload: Bytes,
    /// Who made it, as the message has it.
    pub by: String,
    /// When it was stored, Unix time in milliseconds.
    pub since_ms: i64,
}

impl ScheduleRecord {
    /// Reads the message that lies under a name.
    #[must_use]
    pub fn read(name: &str, headers: &Headers, payload: Bytes, since_ms: i64) -> Self {
        let why = match Schedule::parse(headers, payload.clone(), since_ms) {
            Ok(schedule) if schedule.name == name => return Self::Readable(schedule),
            Ok(schedule) => RecordError::OtherName(schedule.name),
            Err(why) => why,
        };
        let get = |name: &str| header(headers, name).map(str::to_owned);
        Self::Unreadable(UnreadableSchedule {
            name: name.to_owned(),
            why,
            when: get(HEADER_SCHEDULE_PAUSED).or_else(|| get(HEADER_SCHEDULE)).unwrap_or_default(),
            zone: get(HEADER_SCHEDULE_PAUSED_ZONE).or_else(|| get(HEADER_SCHEDULE_ZONE)),
            target: get(HEADER_SCHEDULE_TARGET).unwrap_or_default(),
            payload,
            by: get(HEADER_SCHEDULE_BY).unwrap_or_default(),
            since_ms,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Readable(schedule) => &schedule.name,
            Self::Unreadable(record) => &record.name,
        }
    }

    /// The queue that it publishes to; none when that cannot be read either.
    #[must_use]
    pub fn queue(&self) -> Option<String> {
        match self {
            Self::Readable(schedule) => Some(schedule.queue.clone()),
            Self::Unreadable(record) => TaskSubject::parse(&record.target).ok().map(|target| target.queue),
        }
    }

    /// The schedule; none when it cannot be read.
    #[must_use]
    pub fn schedule(&self) -> Option<&Schedule> {
        match self {
            Self::Readable(schedule) => Some(schedule),
            Self::Unreadable(_) => None,
        }
    }
}

fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Arrival, Origin, Task};

    fn schedule(when: When, paused: bool) -> Schedule {
        Schedule {
            name: "nightly".into(),
            queue: "q".into(),
            kind: "k".into(),
            payload: Bytes::from_static(b"12"),
            when,
            paused,
            timeout: Some(Duration::from_secs(90)),
            attempts_max: Some(5),
            by: "me@here".into(),
            since_ms: 7,
        }
    }

    #[test]
    fn headers_read_back() {
        let berlin = When::Cron(Cron::parse("0 9 * * 1-5").unwrap(), Some("Europe/Berlin".into()));
        for when in
            [berlin, When::every(Duration::from_millis(1500)).unwrap(), When::every(Duration::from_secs(90)).unwrap()]
        {
            for paused in [false, true] {
                let schedule = schedule(when.clone(), paused);
                let headers = schedule.headers();
                assert_eq!(Schedule::parse(&headers, schedule.payload.clone(), 7), Ok(schedule));
            }
        }
    }

    #[test]
    fn a_schedule_with_values_that_cannot_be_is_listed_without_them() {
        let mut headers = schedule(When::every(Duration::from_secs(60)).unwrap(), false).headers();
        for (name, value) in &mut headers {
            match name.as_str() {
                HEADER_TIMEOUT => *value = "18446744073709551615s".into(),
                HEADER_ATTEMPTS_MAX => *value = "4294967295".into(),
                _ => {}
            }
        }
        let listed = Schedule::parse(&headers, Bytes::new(), i64::MAX).unwrap();
        assert_eq!((listed.timeout, listed.attempts_max, listed.next_ms(0, &TimeZone::UTC)), (None, None, None));
    }

    #[test]
    fn what_cannot_be_read_says_why_under_the_name_of_its_subject() {
        let good = schedule(When::every(Duration::from_secs(60)).unwrap(), false).headers();
        let check = |name: &str, value: Option<&str>, expected: RecordError| {
            let mut headers = good.clone();
            headers.retain(|(n, _)| n != name);
            headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
            let ScheduleRecord::Unreadable(record) = ScheduleRecord::read("nightly", &headers, Bytes::new(), 7) else {
                panic!("{headers:?}")
            };
            assert_eq!((record.name.as_str(), record.why), ("nightly", expected));
        };
        check(HEADER_SCHEDULE_TARGET, None, RecordError::Missing(HEADER_SCHEDULE_TARGET));
        check(HEADER_SCHEDULE_TARGET, Some("due.q"), RecordError::Target("due.q".into()));
        check(HEADER_SCHEDULE_NAME, None, RecordError::Missing(HEADER_SCHEDULE_NAME));
        check(HEADER_SCHEDULE_NAME, Some("other"), RecordError::OtherName("other".into()));
        check(HEADER_SCHEDULE, None, RecordError::Missing(HEADER_SCHEDULE));
        check(HEADER_SCHEDULE, Some("@every 1 moon"), RecordError::Interval("@every 1 moon".into()));
        check(HEADER_SCHEDULE, Some(NEVER), RecordError::Once(NEVER.into()));
        // Of a version that knows more than this one, and of one that was paused by it.
        for name in [HEADER_SCHEDULE, HEADER_SCHEDULE_PAUSED] {
            let never = "0 0 0 30 2 *";
            check(name, Some(never), RecordError::Cron(CronError::Never { text: never.into() }));
            let newer = "@sunset";
            check(name, Some(newer), RecordError::Cron(CronError::Fields { text: newer.into(), count: 1 }));
        }
        assert_eq!(ScheduleRecord::read("nightly", &good, Bytes::new(), 7).schedule().unwrap().name, "nightly");
    }

    #[test]
    fn a_firing_is_a_task_of_its_own() {
        let headers = schedule(When::every(Duration::from_secs(1)).unwrap(), false).headers();
        let arrival = Arrival { origin: Origin::Due, epoch: "e", seq: 3, stored_ms: 5 };
        let task = Task::parse("due.q.k", &headers, Bytes::from_static(b"12"), arrival);
        assert_eq!((task.id().as_str(), task.republished, task.attempt), ("e-3", false, 1));
        assert_eq!(
            (task.timeout, task.attempts_max, task.defect.clone()),
            (Some(Duration::from_secs(90)), Some(5), None)
        );
        let again = task.republish_headers(None, 2, &[], "m".into());
        assert!(again.contains(&(HEADER_SCHEDULE_NAME.to_owned(), "nightly".to_owned())), "{again:?}");
    }

    #[test]
    fn intervals() {
        let more_than_a_year = DURATION_MAX + Duration::from_secs(1);
        for bad in [
            Duration::ZERO,
            Duration::from_millis(999),
            Duration::from_nanos(1_000_000_001),
            more_than_a_year,
            Duration::MAX,
        ] {
            assert_eq!(When::every(bad), Err(ScheduleError::Every(bad)));
        }
        let every = schedule(When::every(Duration::from_secs(10)).unwrap(), false);
        let next = |since_ms, now_ms| Schedule { since_ms, ..every.clone() }.next_ms(now_ms, &TimeZone::UTC);
        assert_eq!((next(1499, 1500), next(1500, 1500)), (Some(11_000), Some(12_000)));
        assert_eq!((next(1499, 11_000), next(1499, 20_999)), (Some(21_000), Some(21_000)));
    }
}

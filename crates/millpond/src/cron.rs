//! Cron as nats-server reads it: six fields, seconds first. It is the server that fires; this says beforehand whether it
//! will take a text, and when it will fire next. No I/O, no clock.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// A cron expression that names no day within this many years is refused, as the server does.
const YEARS_MAX: i32 = 5;
/// Changes of the clocks that are looked at; a zone has two a year, and a few around Ramadan.
const CLOCK_CHANGES_MAX: usize = 8;

/// Why a text is no cron expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    /// Too few or too many fields.
    #[error(
        "cron {text:?} has {count} fields, it must have 5 (minute hour day month weekday) or 6 (second first), or be @hourly, @daily, @weekly, @monthly or @yearly"
    )]
    Fields {
        /// The text as given.
        text: String,
        /// How many fields it has.
        count: usize,
    },
    /// A field that cannot be read.
    #[error(
        "cron field {name} is {text:?}, it must be *, a number from {min} to {max}, a range a-b, a list a,b, or one of these with a step /n"
    )]
    Field {
        /// Which one.
        name: &'static str,
        /// The field as given.
        text: String,
        /// Its smallest value.
        min: u32,
        /// Its largest value.
        max: u32,
    },
    /// No day is like that.
    #[error("cron {text:?} names no time within {YEARS_MAX} years")]
    Never {
        /// The text as given.
        text: String,
    },
}

/// What one field may say.
struct Field {
    name: &'static str,
    min: u32,
    max: u32,
    /// Names of values, from `min` on.
    names: &'static [&'static str],
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const FIELDS: [Field; 6] = [
    Field { name: "second", min: 0, max: 59, names: &[] },
    Field { name: "minute", min: 0, max: 59, names: &[] },
    Field { name: "hour", min: 0, max: 23, names: &[] },
    Field { name: "day", min: 1, max: 31, names: &[] },
    Field { name: "month", min: 1, max: 12, names: &MONTHS },
    Field { name: "weekday", min: 0, max: 6, names: &WEEKDAYS },
];

/// The values of a field, a bit each, and whether it is a star.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Values {
    bits: u64,
    star: bool,
}

impl Values {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|value| self.bits & (1 << value) != 0)
    }
}

/// A cron expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    text: String,
    fields: [Values; 6],
}

impl Field {
    fn value(&self, text: &str) -> Option<u32> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let value = match named {
            Some(place) => self.min + u32::try_from(place).ok()?,
            None if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok()?,
            None => return None,
        };
        (self.min..=self.max).contains(&value).then_some(value)
    }

    /// `*`, `a`, `a-b`, each with an optional `/step`; `a/step` goes up to the largest value.
    fn part(&self, text: &str) -> Option<Values> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<u32>().ok().filter(|step| *step > 0)?)),
            None => (text, None),
        };
        let star = matches!(range, "*" | "?");
        let (from, to) = match range.split_once('-') {
            _ if star => (self.min, self.max),
            Some((from, to)) => (self.value(from)?, self.value(to)?),
            None if step.is_some() => (self.value(range)?, self.max),
            None => (self.value(range)?, self.value(range)?),
        };
        let step = step.unwrap_or(1);
        let bits = (from..=to).step_by(usize::try_from(step).ok()?).fold(0, |bits, value| bits | 1 << value);
        (bits != 0).then_some(Values { bits, star: star && step == 1 })
    }

    /// What a step over all values means, where it does not come out even; none else.
    fn uneven(&self, word: &str, values: Values, whole: &str) -> Option<String> {
        let step: u32 = word.strip_prefix("*/").or_else(|| word.strip_prefix("?/"))?.parse().ok()?;
        let size = self.max - self.min + 1;
        if step <= 1 || size.is_multiple_of(step) {
            return None;
        }
        let meant: Vec<String> = (self.min..=self.max)
            .filter(|value| values.bits & (1 << value) != 0)
            .map(|value| value.to_string())
            .collect();
        let name = self.name;
        Some(format!("{name} {word} means {name} {} of each {whole}, not every {step} {name}s", meant.join(",")))
    }

    fn read(&self, text: &str) -> Result<Values, CronError> {
        let mut all = Values::default();
        for part in text.split(',') {
            let wrong = || CronError::Field { name: self.name, text: text.to_owned(), min: self.min, max: self.max };
            let part = self.part(part).ok_or_else(wrong)?;
            all = Values { bits: all.bits | part.bits, star: all.star || part.star };
        }
        Ok(all)
    }
}

impl Cron {
    /// Reads 5 or 6 fields, or a word such as `@hourly`.
    ///
    /// # Errors
    /// [`CronError`] names the first field that does not fit.
    pub fn parse(text: &str) -> Result<Self, CronError> {
        let words = match text.trim() {
            "@yearly" | "@annually" => "0 0 0 1 1 *",
            "@monthly" => "0 0 0 1 * *",
            "@weekly" => "0 0 0 * * 0",
            "@daily" | "@midnight" => "0 0 0 * * *",
            "@hourly" => "0 0 * * * *",
            other => other,
        };
        let mut words: Vec<&str> = words.split_ascii_whitespace().collect();
        if words.len() == FIELDS.len() - 1 {
            words.insert(0, "0");
        }
        if words.len() != FIELDS.len() {
            return Err(CronError::Fields { text: text.to_owned(), count: words.len() });
        }
        let mut fields = [Values::default(); 6];
        for ((field, word), values) in FIELDS.iter().zip(&words).zip(&mut fields) {
            *values = field.read(word)?;
        }
        let cron = Self { text: words.join(" "), fields };
        // Any February with 29 days will do for a start: the years after it are looked at.
        match cron.next(Timestamp::UNIX_EPOCH, &TimeZone::UTC) {
            Some(_) => Ok(cron),
            None => Err(CronError::Never { text: text.to_owned() }),
        }
    }

    /// The six fields, as the server is told.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What a person may take a step for and it is not, such as `*/90` for every 90 minutes: a step begins anew with each hour, day
    /// or month.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let words = self.text.split(' ');
        let fields = FIELDS.iter().zip(words).zip(&self.fields).zip(["minute", "hour", "day", "month", "year", "week"]);
        fields.filter_map(|(((field, word), values), whole)| field.uneven(word, *values, whole)).collect()
    }

    /// What the next changes of the clocks of that zone, within a year and a month, will skip or repeat.
    #[must_use]
    pub fn clock_changes(&self, after: Timestamp, zone: &TimeZone) -> Vec<String> {
        let [_, _, hour, ..] = self.fields;
        // What fires in each hour goes on through a change as if there was none.
        if (0..24).all(|value| hour.has(value)) {
            return Vec::new();
        }
        let Ok(until) = after.checked_add((400 * 24).hours()) else { return Vec::new() };
        let changes = zone.following(after).take_while(|change| change.timestamp() < until).take(CLOCK_CHANGES_MAX);
        changes.filter_map(|change| self.clock_change(change.timestamp(), zone)).collect()
    }

    fn clock_change(&self, at: Timestamp, zone: &TimeZone) -> Option<String> {
        let before = zone.to_offset(at.checked_sub(1.second()).ok()?);
        let (old, new) = (before.to_datetime(at), zone.to_datetime(at));
        let (skipped, mut local, end) = if new > old { (true, old, new) } else { (false, new, old) };
        let [second, minute, hour, ..] = self.fields;
        let mut found = Vec::new();
        while local < end {
            if self.fits(local.date()) && hour.has(local.hour()) && minute.has(local.minute()) && second.bits != 0 {
                found.push(local);
            }
            local = local.checked_add(1.minute()).ok()?;
        }
        let shown = |at: &DateTime| at.strftime("%Y-%m-%d %H:%M").to_string();
        let (first, last) = (found.first()?, found.last()?);
        let which = match found.len() {
            1 => shown(first),
            times => format!("{times} times from {} to {}", shown(first), last.strftime("%H:%M")),
        };
        Some(match skipped {
            true => format!("the change of the clocks skips {which}: it does not fire then"),
            false => format!("the change of the clocks repeats {which}: it fires twice"),
        })
    }

    /// The first time after `after` that fits, in that time zone; none within five years.
    ///
    /// What a change of the clocks leaves out does not fire that day, and what it repeats fires twice, as at the server.
    #[must_use]
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let [second, minute, hour, ..] = self.fields;
        let soonest = Timestamp::from_second(after.as_second()).ok()?.checked_add(1.second()).ok()?;
        let mut day = zone.to_datetime(soonest).date();
        let last = day.checked_add(YEARS_MAX.years()).ok()?;
        while day <= last {
            let tomorrow = day.tomorrow().ok()?;
            if self.fits(day) {
                let mut at = starts(day, zone)?.max(soonest);
                let end = starts(tomorrow, zone)?;
                while at < end {
                    let local = zone.to_datetime(at);
                    let skipped = if !hour.has(local.hour()) {
                        3600 - i64::from(local.minute()) * 60 - i64::from(local.second())
                    } else if !minute.has(local.minute()) {
                        60 - i64::from(local.second())
                    } else if !second.has(local.second()) {
                        1
                    } else {
                        return Some(at);
                    };
                    at = at.checked_add(skipped.seconds()).ok()?;
                }
            }
            day = tomorrow;
        }
        None
    }

    /// With a star in one of the two, the other decides; without, either day will do.
    fn fits(&self, date: Date) -> bool {
        let [_, _, _, day, month, weekday] = self.fields;
        let (by_day, by_weekday) = (day.has(date.day()), weekday.has(date.weekday().to_sunday_zero_offset()));
        let fits = if day.star || weekday.star { by_day && by_weekday } else { by_day || by_weekday };
        month.has(date.month()) && fits
    }
}

/// The first moment of a day.
fn starts(day: Date, zone: &TimeZone) -> Option<Timestamp> {
    zone.to_timestamp(day.at(0, 0, 0, 0)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, zone: &str, after: &str, expected: &[&str]) {
        let zone = TimeZone::get(zone).unwrap();
        let cron = Cron::parse(text).unwrap();
        let mut at: Timestamp = after.parse().unwrap();
        for expected in expected {
            at = cron.next(at, &zone).unwrap();
            assert_eq!(at, expected.parse().unwrap(), "{text} gives {at}");
        }
    }

    #[test]
    fn next_times() {
        check(
            "0 9 * * 1-5",
            "Europe/Berlin",
            "2026-01-02T08:00:00Z",
            &["2026-01-05T08:00:00Z", "2026-01-06T08:00:00Z"],
        );
        check("0 9 * * 1-5", "Europe/Berlin", "2026-07-03T07:00:00Z", &["2026-07-06T07:00:00Z"]);
        check("*/20 * * * * *", "UTC", "2026-01-01T00:00:19.9Z", &["2026-01-01T00:00:20Z", "2026-01-01T00:00:40Z"]);
        check("@monthly", "UTC", "2026-12-01T00:00:00Z", &["2027-01-01T00:00:00Z"]);
        check("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", &["2028-02-29T00:00:00Z"]);
        check("0 0 13 * FRI", "UTC", "2026-02-01T00:00:00Z", &["2026-02-06T00:00:00Z", "2026-02-13T00:00:00Z"]);
        check("0 0 13 * *", "UTC", "2026-02-01T00:00:00Z", &["2026-02-13T00:00:00Z"]);
        check(
            "30/15 7-8 * jan,Feb ?",
            "UTC",
            "2026-02-28T08:30:00Z",
            &["2026-02-28T08:45:00Z", "2027-01-01T07:30:00Z"],
        );
    }

    #[test]
    fn clocks_that_change() {
        // 02:30 is left out on 29 March, and comes twice on 25 October.
        check("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", &["2026-03-30T00:30:00Z"]);
        let twice = ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"];
        check("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", &twice);
    }

    #[test]
    fn what_a_change_of_the_clocks_skips_or_repeats_is_told() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let told = |text: &str| {
            let after: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
            Cron::parse(text).unwrap().clock_changes(after, &zone)
        };
        assert_eq!(
            told("30 2 * * *"),
            [
                "the change of the clocks skips 2026-03-29 02:30: it does not fire then",
                "the change of the clocks repeats 2026-10-25 02:30: it fires twice"
            ]
        );
        assert!(told("*/20 2 * * *")[0].contains("skips 3 times from 2026-03-29 02:00 to 02:40"));
        for quiet in ["0 9 * * 1-5", "30 * * * *", "*/10 * * * *", "30 2 * * 1"] {
            assert!(told(quiet).is_empty(), "{quiet}: {:?}", told(quiet));
        }
    }

    #[test]
    fn steps_that_do_not_come_out_even_are_told() {
        let told = |text: &str| Cron::parse(text).unwrap().remarks();
        assert_eq!(told("*/90 * * * *"), ["minute */90 means minute 0 of each hour, not every 90 minutes"]);
        assert_eq!(told("0 */7 * * *"), ["hour */7 means hour 0,7,14,21 of each day, not every 7 hours"]);
        assert_eq!(told("*/45 * * * * *").len(), 1);
        assert_eq!(told("0 0 */2 * *").len(), 1, "days begin anew with each month");
        for even in ["*/15 * * * *", "0 */6 * * *", "* * * * *", "*/1 * * * *", "5/15 * * * *"] {
            assert!(told(even).is_empty(), "{even}: {:?}", told(even));
        }
    }

    #[test]
    fn what_the_server_refuses_is_refused() {
        for text in [
            "",
            "* * * *",
            "* * * * * * *",
            "61 * * * *",
            "0 24 * * *",
            "0 0 0 * *",
            "0 0 * 13 *",
            "0 0 * * 7",
            "0 22-6 * * *",
            "*/0 * * * *",
            "0 0 31 2 *",
            "@reboot",
            "@every 1s",
            "a * * * *",
            "1,,2 * * * *",
            "-1 * * * *",
            "0 0 L * *",
            "1-2-3 * * * *",
            "*/2/2 * * * *",
            "+1 * * * *",
        ] {
            let error = Cron::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("cron "), "{text}: {error}");
        }
    }
}

//! A task that was published with a time (stream LATER): how that is said, when it is due, and what it is in DUE. No I/O, no clock.

use crate::outcome::cut;
use crate::task::{Task, schedule_headers};
use crate::wire::bounds::{parse_duration, parse_time};
use crate::wire::header_names::{self, Way};
use crate::wire::headers::{HEADER_AT, HEADER_DELAY, HEADER_ID, HEADER_SIGNATURE, Headers};

/// Bytes of a reason that repeats what was given.
const REASON_BYTES_MAX: usize = 512;

/// The header that says when a task may start; none when it is later than the server computes with. What is past is now.
#[must_use]
pub fn at_header(at_ms: i64, now_ms: i64) -> Option<(String, String)> {
    let at_ms = Some(at_ms.max(now_ms)).filter(|ms| *ms <= crate::wire::bounds::TIME_MS_MAX)?;
    Some((HEADER_AT.to_owned(), jiff::Timestamp::from_millisecond(at_ms).ok()?.to_string()))
}

/// When a message is due that the server stored at `stored_ms`; both in Unix milliseconds.
///
/// # Errors
/// What is wrong with its headers, and what would be right.
pub fn due_ms(headers: &Headers, stored_ms: i64) -> Result<i64, String> {
    header_names::check(headers, Way::Later).map_err(|wrong| wrong.to_string())?;
    let get = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    let wrong = |name: &str, wrong: String| cut(format!("header {name}: {wrong}"), REASON_BYTES_MAX);
    match (get(HEADER_DELAY), get(HEADER_AT)) {
        (Some(delay), None) => {
            let delay = parse_duration(delay).map_err(|reason| wrong(HEADER_DELAY, reason))?;
            Ok(stored_ms.saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)))
        }
        (None, Some(at)) => parse_time(at).map_err(|reason| wrong(HEADER_AT, reason)),
        (Some(_), Some(_)) => {
            Err(format!("it has both {HEADER_DELAY} and {HEADER_AT}: one of them says when it is due"))
        }
        (None, None) => Err(format!(
            "what is published to later.<queue>.<kind> has a header {HEADER_DELAY} or {HEADER_AT}; a task for now is published to \
             tasks.<queue>.<kind>"
        )),
    }
}

/// The headers that are the task's own, rather than of its message in LATER.
#[must_use]
pub fn of_the_task(headers: &Headers) -> Headers {
    let own = |name: &str| ![HEADER_DELAY, HEADER_AT, HEADER_SIGNATURE].contains(&name);
    headers.iter().filter(|(name, _)| own(name)).cloned().collect()
}

/// The headers under which a task waits in DUE; none when its time is later than the server computes with.
#[must_use]
pub fn waiting_headers(task: &Task, due_ms: i64, now_ms: i64) -> Option<Headers> {
    let mut headers = task.forwarded.clone();
    headers.push((HEADER_ID.to_owned(), task.original_id.clone()));
    headers.extend(schedule_headers(due_ms, now_ms, task.subject.due())?);
    Some(headers)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::task::{Arrival, Origin};

    fn headers(list: &[(&str, &str)]) -> Headers {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_delay_counts_from_when_it_was_stored_and_a_time_is_itself() {
        let due = |list: &[(&str, &str)]| due_ms(&headers(list), 1_000);
        assert_eq!(due(&[("Millpond-Delay", "30s")]), Ok(31_000));
        assert_eq!(due(&[("Millpond-Delay", "PT0S"), ("Nats-Msg-Id", "a")]), Ok(1_000));
        assert_eq!(due(&[("Millpond-At", "1970-01-01T01:00:02+01:00")]), Ok(2_000));
        for (list, said) in [
            (&[][..], "tasks.<queue>.<kind>"),
            (&[("Millpond-Delay", "1s"), ("Millpond-At", "1970-01-01T00:00:02Z")], "both"),
            (&[("Millpond-Delay", "soon")], "header Millpond-Delay"),
            (&[("Millpond-Delay", "2y")], "a year"),
            (&[("Millpond-At", "2026-01-01T00:00:00")], "no time zone"),
            (&[("Millpond-At", "9999-01-01T00:00:00Z")], "beyond what the server computes with"),
            (&[("Millpond-Delay", "1s"), ("Millpond-Typo", "1")], "Millpond-Typo is not known"),
            (&[("Millpond-Delay", "1s"), ("Millpond-Delay", "2s")], "twice"),
            (&[("Millpond-Delay", "1s"), ("Millpond-Unique", "k")], "u-<key>"),
        ] {
            let wrong = due(list).unwrap_err();
            assert!(wrong.contains(said), "{list:?}: {wrong}");
        }
    }

    #[test]
    fn what_waits_in_due_has_the_headers_of_the_task_and_no_others() {
        let given = headers(&[
            ("Nats-Msg-Id", "a"),
            ("Nats-Rollup", "all"),
            ("Millpond-Delay", "1s"),
            ("Millpond-Timeout", "5s"),
            ("Millpond-Attempt", "7"),
            ("Millpond-Signature", "v1:x:y"),
            ("User", "u"),
        ]);
        let arrival = Arrival { origin: Origin::Tasks, epoch: "e", seq: 3, stored_ms: 5 };
        let task = Task::parse("later.q.k.j-x", &of_the_task(&given), Bytes::new(), arrival);
        assert_eq!((task.defect.as_ref(), task.original_id.as_str()), (None, "a"));
        let waiting = waiting_headers(&task, 2_000, 1_000).unwrap();
        let expected = [
            ("Millpond-Timeout", "5s"),
            ("Millpond-Id", "a"),
            ("Nats-Schedule", "@at 1970-01-01T00:00:02Z"),
            ("Nats-Schedule-Target", "due.q.k.j-x"),
        ];
        assert_eq!(waiting, headers(&expected));
        let nameless = Task::parse("later.q.k", &headers(&[]), Bytes::new(), arrival);
        assert_eq!(nameless.original_id, "e-3");
        assert_eq!(at_header(i64::MAX, 0), None);
    }
}

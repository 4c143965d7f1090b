//! Which names headers have. Ours are read without regard to case, and made canonical by [`canonical`] before anything else sees
//! them; what is no header of ours, stands where it means nothing, or says two things is named by [`check`]. No I/O, no clock.

use std::collections::HashSet;

use super::headers::{
    HEADER_AT, HEADER_ATTEMPT, HEADER_ATTEMPTS_MAX, HEADER_BATCH, HEADER_CONTINUATION, HEADER_DEAD, HEADER_DELAY,
    HEADER_EXPIRES, HEADER_FAILURES, HEADER_ID, HEADER_IDEMPOTENCY_KEY, HEADER_INDEX, HEADER_ITEMS, HEADER_MSG_ID,
    HEADER_ORIGINAL_ID, HEADER_PIPE, HEADER_PIPE_CAPACITY, HEADER_PIPE_END, HEADER_PIPE_GOT, HEADER_PIPE_SEQ,
    HEADER_PUBLISHED, HEADER_RAW_HEADERS, HEADER_REF, HEADER_REPLAY_OF, HEADER_REPLY_TO, HEADER_SCHEDULE_BY,
    HEADER_SCHEDULE_NAME, HEADER_SCHEDULE_PAUSED, HEADER_SCHEDULE_PAUSED_ZONE, HEADER_SIGNATURE, HEADER_STARTS,
    HEADER_TIMEOUT, HEADER_TRACEPARENT, HEADER_TRACESTATE, HEADER_UNIQUE, HEADER_WORKER, Headers,
};

/// How the names of our headers begin.
const OURS: &str = "Millpond-";
/// Where all headers of a task are told.
const DOCUMENTED: &str = "docs/protocol.md#headers-on-a-task";

/// Characters of a name that an error repeats.
const NAME_SHOWN_CHARS_MAX: usize = 64;

/// What a header belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// A task, by any way, and its own time-out also a call.
    Timeout,
    /// A task, by any way.
    Task,
    /// A task over NATS: HTTP has another way, or none.
    NatsTask,
    /// What millpond itself says of a task or dead letter; a publisher's are not read.
    Own,
    /// A call or a pipe.
    Call,
    /// A request over HTTP.
    Http,
    /// When a task may start: on LATER, and its delay over HTTP, too.
    Start,
    /// The trace, on all of them.
    Trace,
}

static KNOWN: [(&str, Scope); 35] = [
    (HEADER_ID, Scope::NatsTask),
    (HEADER_ORIGINAL_ID, Scope::Own),
    (HEADER_ATTEMPT, Scope::Own),
    (HEADER_PUBLISHED, Scope::Own),
    (HEADER_TRACEPARENT, Scope::Trace),
    (HEADER_INDEX, Scope::NatsTask),
    (HEADER_BATCH, Scope::NatsTask),
    (HEADER_SIGNATURE, Scope::NatsTask),
    (HEADER_TIMEOUT, Scope::Timeout),
    (HEADER_ATTEMPTS_MAX, Scope::Task),
    (HEADER_EXPIRES, Scope::Task),
    (HEADER_REPLY_TO, Scope::Task),
    (HEADER_CONTINUATION, Scope::Task),
    (HEADER_REF, Scope::NatsTask),
    (HEADER_REPLAY_OF, Scope::NatsTask),
    (HEADER_ITEMS, Scope::Own),
    (HEADER_FAILURES, Scope::Own),
    (HEADER_STARTS, Scope::Own),
    (HEADER_SCHEDULE_NAME, Scope::NatsTask),
    (HEADER_SCHEDULE_BY, Scope::NatsTask),
    (HEADER_SCHEDULE_PAUSED, Scope::NatsTask),
    (HEADER_SCHEDULE_PAUSED_ZONE, Scope::NatsTask),
    (HEADER_TRACESTATE, Scope::Trace),
    (HEADER_DEAD, Scope::Own),
    (HEADER_RAW_HEADERS, Scope::Own),
    (HEADER_WORKER, Scope::Call),
    (HEADER_PIPE, Scope::Call),
    (HEADER_PIPE_SEQ, Scope::Call),
    (HEADER_PIPE_GOT, Scope::Call),
    (HEADER_PIPE_CAPACITY, Scope::Call),
    (HEADER_PIPE_END, Scope::Call),
    (HEADER_DELAY, Scope::Start),
    (HEADER_AT, Scope::Start),
    (HEADER_UNIQUE, Scope::Http),
    (HEADER_IDEMPOTENCY_KEY, Scope::Http),
];

/// Headers that nats-server reads, and reads in this spelling only.
const OF_THE_SERVER: [&str; 12] = [
    HEADER_MSG_ID,
    "Nats-Schedule",
    "Nats-Schedule-Target",
    "Nats-Schedule-Time-Zone",
    "Nats-Schedule-TTL",
    "Nats-Schedule-Source",
    "Nats-Rollup",
    "Nats-TTL",
    "Nats-Expected-Stream",
    "Nats-Expected-Last-Sequence",
    "Nats-Expected-Last-Msg-Id",
    "Nats-Expected-Last-Subject-Sequence",
];

/// By which way a header came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// On a message of `tasks.`, `sched.` or `due.`.
    Nats,
    /// On a message of `later.`.
    Later,
    /// On a request that publishes tasks.
    Http,
    /// On a call.
    Call,
}

/// Why a header is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderNameError {
    /// It looks like ours.
    #[error("header {name} is not known; {hint}")]
    Unknown {
        /// As given.
        name: String,
        /// The nearest right one, or where all are told.
        hint: String,
    },
    /// It belongs to another way of publishing, or to something else than a task.
    #[error("header {name} means nothing here: {advice}")]
    Misplaced {
        /// Its canonical name.
        name: String,
        /// What to do instead.
        advice: &'static str,
    },
    /// The server does not read it in this spelling.
    #[error("header {name} must be written {right}: nats-server reads it in this spelling only")]
    Spelling {
        /// As given.
        name: String,
        /// As the server reads it.
        right: &'static str,
    },
    /// It says two things.
    #[error("header {name} is given twice, with different values: one of them counts, and nobody knows which")]
    Twice {
        /// Its canonical name.
        name: String,
    },
}

/// The name as it stands everywhere behind this: that of a header of ours, whatever its case, or else the name as it is.
#[must_use]
pub fn canonical(name: &str) -> &str {
    // Most other headers are the server's, and need no search.
    if matches!(name.as_bytes().first(), Some(b'N' | b'n')) { name } else { known(name).map_or(name, |(name, _)| name) }
}

/// Whether a header is ours, known or not, in any case.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    name.get(..OURS.len()).is_some_and(|start| start.eq_ignore_ascii_case(OURS))
}

/// Whether a header changes what becomes of a task, beside its id: the signature covers it.
#[must_use]
pub fn is_read(name: &str) -> bool {
    is_ours(name) || name.eq_ignore_ascii_case(HEADER_IDEMPOTENCY_KEY) || misspelt(name).is_some()
}

/// Leaves out what is said twice in the same words. Of names that are canonical.
pub fn drop_repeated(headers: &mut Headers) {
    let mut seen = HashSet::new();
    headers.retain(|header| !is_read(&header.0) || seen.insert(header.clone()));
}

/// Checks that each header of ours is one that means something here and says one thing. Names are canonical.
///
/// # Errors
/// [`HeaderNameError`] of the first one that does not.
pub fn check<S: AsRef<str>>(headers: &[(S, S)], way: Way) -> Result<(), HeaderNameError> {
    for (place, (name, value)) in headers.iter().enumerate() {
        let name = name.as_ref();
        // Over HTTP names have no case.
        if way == Way::Http && OF_THE_SERVER.iter().any(|of_server| of_server.eq_ignore_ascii_case(name)) {
            return Err(HeaderNameError::Misplaced { name: name.to_owned(), advice: AT_HTTP_OF_THE_SERVER });
        }
        if let Some(right) = misspelt(name) {
            return Err(HeaderNameError::Spelling { name: shown(name), right });
        }
        match known(name) {
            None if is_ours(name) => {
                return Err(HeaderNameError::Unknown { name: shown(name), hint: hint(name, way) });
            }
            None if name != HEADER_MSG_ID => continue,
            Some((_, Scope::Trace)) => continue,
            Some((name, scope)) => {
                if let Some(advice) = misplaced(name, scope, way) {
                    return Err(HeaderNameError::Misplaced { name: name.to_owned(), advice });
                }
            }
            None => {}
        }
        let before = headers.get(..place).unwrap_or_default();
        if before.iter().any(|(other, said)| other.as_ref() == name && said.as_ref() != value.as_ref()) {
            return Err(HeaderNameError::Twice { name: name.to_owned() });
        }
    }
    Ok(())
}

const AT_HTTP_OF_THE_SERVER: &str =
    "over HTTP the id of a task is in Idempotency-Key, and how long it waits in Millpond-Delay";

/// A name as an error shows it, and compares it.
fn shown(name: &str) -> String {
    name.chars().take(NAME_SHOWN_CHARS_MAX).collect()
}

fn known(name: &str) -> Option<(&'static str, Scope)> {
    KNOWN.iter().find(|(known, _)| known.len() == name.len() && known.eq_ignore_ascii_case(name)).copied()
}

fn misspelt(name: &str) -> Option<&'static str> {
    if !matches!(name.as_bytes().first(), Some(b'N' | b'n')) {
        return None;
    }
    OF_THE_SERVER.iter().find(|right| **right != name && right.eq_ignore_ascii_case(name)).copied()
}

/// Why a header means nothing here, and what does.
fn misplaced(name: &str, scope: Scope, way: Way) -> Option<&'static str> {
    match (way, scope) {
        (Way::Nats, Scope::Start) => Some(
            "a task that waits for its time is published to later.<queue>.<kind> \
             (docs/protocol.md#a-task-that-waits-for-its-time)",
        ),
        (Way::Http, Scope::Start) if name == HEADER_AT => Some(AT_HTTP_OF_THE_SERVER),
        (Way::Nats | Way::Later, Scope::Http) if name == HEADER_UNIQUE => {
            Some("it is for HTTP; over NATS the unique key stands in the subject, tasks.<queue>.<kind>.u-<key>")
        }
        (Way::Nats | Way::Later, Scope::Http) => Some("it is for HTTP; over NATS the id of a task is in Nats-Msg-Id"),
        (Way::Nats | Way::Later, Scope::Call) => {
            Some("it is for calls and pipes (docs/protocol.md#calls-and-pipes), not for tasks")
        }
        (Way::Http, Scope::NatsTask | Scope::Own | Scope::Call) => Some(
            "over HTTP a task has Idempotency-Key, Millpond-Timeout, Millpond-Attempts-Max, Millpond-Expires, Millpond-Delay, \
             Millpond-Reply-To, Millpond-Continuation, Millpond-Unique and traceparent, and the lines of POST /v1/jobs are the \
             items of a job",
        ),
        (Way::Call, Scope::Task | Scope::NatsTask | Scope::Own | Scope::Http | Scope::Start) => {
            Some("a call has Millpond-Timeout and traceparent; what more a task may have needs a task")
        }
        _ => None,
    }
}

/// The nearest header that there is, by its distance in letters.
fn hint(name: &str, way: Way) -> String {
    let suffix = |name: &str| name.get(OURS.len()..).unwrap_or_default().to_ascii_lowercase();
    let given = suffix(&shown(name));
    // What a publisher cannot set is no advice.
    let named = KNOWN.iter().filter(|(known, scope)| is_ours(known) && *scope != Scope::Own);
    let near = named.map(|(known, scope)| (strsim::osa_distance(&given, &suffix(known)), known, *scope));
    // Whoever left out the end of a name meant that one.
    match near.min_by_key(|(distance, known, _)| (!suffix(known).starts_with(&given), *distance)) {
        Some((distance, near, scope)) if distance * 2 <= suffix(near).len().max(given.len()) => {
            match misplaced(near, scope, way) {
                Some(advice) => format!("the nearest is {near}, which means nothing here either: {advice}"),
                None => format!("the nearest is {near}"),
            }
        }
        _ => format!("{DOCUMENTED} has all that are"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(headers: &[(&str, &str)], way: Way) -> String {
        let canonical: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (canonical(name), *value)).collect();
        check(&canonical, way).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn names_of_ours_have_one_spelling_and_those_of_others_stay() {
        for (known, _) in KNOWN {
            for given in [known.to_owned(), known.to_lowercase(), known.to_uppercase()] {
                assert_eq!(canonical(&given), known);
            }
            assert_eq!(canonical(known).as_ptr(), known.as_ptr(), "nothing is copied");
        }
        for other in ["nats-msg-id", "Millpond-Timeouts", "X-Millpond-Timeout", "millpond", "", "é", "mmmmmmmmé"] {
            assert_eq!(canonical(other), other);
        }
        assert!(is_ours("MILLPOND-X") && !is_ours("Millpond") && !is_ours("Xillpond-X") && !is_ours("mmmmmmmmé"));
    }

    #[test]
    fn each_header_that_means_nothing_is_named_with_the_nearest_right_one() {
        for (name, said) in [
            ("Millpond-Expire", "the nearest is Millpond-Expires"),
            ("Millpond-Time", "the nearest is Millpond-Timeout"),
            ("millpond-time-out", "the nearest is Millpond-Timeout"),
            ("Millpond-Atempts-Max", "the nearest is Millpond-Attempts-Max"),
            ("MILLPOND-REPLYTO", "the nearest is Millpond-Reply-To"),
            ("Millpond-Delays", "the nearest is Millpond-Delay, which means nothing here either: a task that waits"),
            ("Millpond-Typo", "docs/protocol.md#headers-on-a-task"),
            ("Millpond-", "docs/protocol.md#headers-on-a-task"),
            ("Millpond-Delay", "later.<queue>.<kind>"),
            ("millpond-at", "later.<queue>.<kind>"),
            ("millpond-unique", "u-<key>"),
            ("idempotency-key", "Nats-Msg-Id"),
            ("Millpond-Pipe", "calls and pipes"),
            ("nats-msg-id", "must be written Nats-Msg-Id"),
            ("Nats-Msg-ID", "must be written Nats-Msg-Id"),
            ("NATS-SCHEDULE", "must be written Nats-Schedule"),
        ] {
            let text = checked(&[("Millpond-Timeout", "1s"), (name, "x")], Way::Nats);
            assert!(text.contains(said) && text.contains(canonical(name)), "{name}: {text}");
            assert!(is_read(name), "{name}: a signature covers it");
        }
        for (name, said) in [
            ("millpond-typo", DOCUMENTED),
            ("millpond-expire", "Millpond-Expires"),
            ("millpond-index", "POST /v1/jobs"),
            ("millpond-attempt", "Millpond-Attempts-Max"),
            ("Nats-Msg-Id", "Idempotency-Key"),
            ("nats-msg-id", "Idempotency-Key"),
        ] {
            let text = checked(&[(name, "x")], Way::Http);
            assert!(text.contains(said), "{name}: {text}");
        }
        assert!(checked(&[("millpond-expires", "x")], Way::Call).contains("a call has Millpond-Timeout"));
        assert!(checked(&[("millpond-at", "x")], Way::Http).contains("Millpond-Delay"));
        assert!(checked(&[("millpond-unique", "x")], Way::Later).contains("u-<key>"));
    }

    #[test]
    fn what_means_something_passes_and_two_values_do_not() {
        let task =
            [("Nats-Msg-Id", "a"), ("millpond-timeout", "1s"), ("Millpond-Index", "1"), ("User", "u"), ("User", "v")];
        assert_eq!(checked(&task, Way::Nats), "");
        assert_eq!(checked(&[("millpond-delay", "1s"), ("idempotency-key", "a"), ("traceparent", "t")], Way::Http), "");
        assert_eq!(
            checked(&[("millpond-delay", "1s"), ("Nats-Msg-Id", "a"), ("millpond-timeout", "1s")], Way::Later),
            ""
        );
        assert_eq!(checked(&[("millpond-timeout", "1s"), ("traceparent", "t")], Way::Call), "");
        // What only millpond sets is not read where a publisher sets it, as ever.
        assert_eq!(checked(&[("millpond-attempt", "7"), ("Nats-Unheard-Of", "x")], Way::Nats), "");
        assert_eq!(checked(&[("Millpond-Timeout", "1s"), ("millpond-timeout", "1s")], Way::Nats), "");
        for name in ["Millpond-Timeout", "Nats-Msg-Id"] {
            let text = checked(&[(name, "1s"), (&name.replace("Mill", "mill"), "2s")], Way::Nats);
            assert!(text.contains(name) && text.contains("twice"), "{text}");
        }
        let mut headers: Headers = ["1s", "1s", "2s"].map(|value| (HEADER_TIMEOUT.to_owned(), value.to_owned())).into();
        headers.extend(["u", "u"].map(|value| ("User".to_owned(), value.to_owned())));
        drop_repeated(&mut headers);
        assert_eq!(headers.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>(), ["1s", "2s", "u", "u"]);
    }
}

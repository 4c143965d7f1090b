//! Chains: what runs when a task is done, with its result as the argument. `Millpond-Then` lists the steps; each step takes
//! the first and carries the rest. The worker publishes the next step when it settles (services/worker/src/settle/continuations.rs).
//! No I/O, no clock.

use std::fmt;
use std::str::FromStr;

use crate::limits::{CHAIN_STEPS_MAX, TASK_ID_BYTES_MAX};
use crate::outcome::{Items, id_of};
use crate::task::Task;
use crate::wire::headers::{
    HEADER_ATTEMPT, HEADER_EXPIRES, HEADER_ID, HEADER_ITEMS, HEADER_MSG_ID, HEADER_ORIGINAL_ID, HEADER_PUBLISHED,
    HEADER_REPLY_TO, HEADER_THEN, HEADER_TRACEPARENT, HEADER_TRACESTATE, Headers,
};
use crate::wire::subject::{SubjectError, TaskSubject, check_token, key};

/// What a next step has of the one before it. Timeout and attempts are those of its own kind.
const INHERITED: [&str; 3] = [HEADER_EXPIRES, HEADER_REPLY_TO, HEADER_TRACESTATE];
/// What a step's id ends with; the id of the step before it stands in front.
const SUFFIX: &str = "/then";

/// One step of a chain. Without a queue it runs in the queue of the step before it.
///
/// ```
/// let step: millpond::chain::Step = "mail.send".parse().unwrap();
/// assert_eq!((step.queue.as_deref(), step.kind.as_str(), step.to_string().as_str()), (Some("mail"), "send", "mail.send"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Who runs it; none: whoever ran the step before it.
    pub queue: Option<String>,
    /// Which handler runs it.
    pub kind: String,
}

impl FromStr for Step {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let (queue, kind) = text.split_once('.').map_or((None, text), |(queue, kind)| (Some(queue), kind));
        if let Some(queue) = queue {
            check_token("queue", queue)?;
        }
        check_token("kind", kind)?;
        Ok(Self { queue: queue.map(str::to_owned), kind: kind.to_owned() })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.queue {
            Some(queue) => write!(f, "{queue}.{}", self.kind),
            None => f.write_str(&self.kind),
        }
    }
}

/// Reads a list of steps.
///
/// # Errors
/// What it should be.
pub fn parse(text: &str) -> Result<Vec<Step>, String> {
    let steps = text.split(',').map(|step| step.trim().parse()).collect::<Result<Vec<Step>, _>>();
    steps
        .ok()
        .filter(|steps| steps.len() <= CHAIN_STEPS_MAX)
        .ok_or_else(|| format!("1 to {CHAIN_STEPS_MAX} steps <kind> or <queue>.<kind>, separated by commas"))
}

/// The list as a header's value; none without steps.
#[must_use]
pub fn text(steps: &[Step]) -> Option<String> {
    let steps: Vec<String> = steps.iter().map(Step::to_string).collect();
    (!steps.is_empty()).then(|| steps.join(","))
}

/// The id of the step after the one with this id: always the same, so that whoever publishes it again adds nothing.
#[must_use]
pub fn next_id(id: &str) -> String {
    if id.len() + SUFFIX.len() > TASK_ID_BYTES_MAX { format!("{}{SUFFIX}", key(id)) } else { format!("{id}{SUFFIX}") }
}

/// The queue and kind of each step, when the first follows a task of `queue`.
pub fn resolve<'a>(queue: &str, steps: &'a [Step]) -> impl Iterator<Item = TaskSubject> + use<'a> {
    let mut queue = queue.to_owned();
    steps.iter().map(move |step| {
        queue = step.queue.clone().unwrap_or_else(|| std::mem::take(&mut queue));
        TaskSubject { queue: queue.clone(), kind: step.kind.clone(), job: None, unique: None }
    })
}

impl Task {
    /// Where the step after this one runs; none when it is the last. It belongs to no job: a job has the tasks that were
    /// submitted in it.
    #[must_use]
    pub fn next_step(&self) -> Option<TaskSubject> {
        resolve(&self.subject.queue, &self.then).next()
    }

    /// The headers of the step after this one, for `items` of it that are done: they keep their places, so that an item's
    /// next step has one id, whatever message it comes in. `at_ms` is now, Unix time in milliseconds; `traceparent` is of the
    /// attempt that it follows.
    #[must_use]
    pub fn next_headers(&self, items: Option<Items>, at_ms: i64, traceparent: String) -> Headers {
        let original_id = next_id(&self.original_id);
        let kept = self.forwarded.iter().filter(|(name, _)| INHERITED.contains(&name.as_str()));
        let mut headers: Headers = kept.cloned().collect();
        let mut put = |name: &str, value: String| headers.push((name.to_owned(), value));
        let id = id_of(&original_id, items);
        // Of the queue that publishes it: nobody else's ids are in its way.
        put(HEADER_MSG_ID, format!("{}/{id}/t{}", self.subject.queue, self.attempt));
        put(HEADER_ID, id);
        put(HEADER_ORIGINAL_ID, original_id);
        put(HEADER_ATTEMPT, "1".to_owned());
        put(HEADER_PUBLISHED, at_ms.to_string());
        put(HEADER_TRACEPARENT, traceparent);
        if let Some(i) = items {
            put(HEADER_ITEMS, format!("{}+{}/{}", i.from, i.len, i.of));
        }
        if let Some(rest) = self.then.get(1..).and_then(text) {
            put(HEADER_THEN, rest);
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Arrival, Origin};
    use bytes::Bytes;

    #[test]
    fn steps_are_read_and_written() {
        let steps = parse("a, q2.b,c").unwrap();
        assert_eq!(text(&steps).as_deref(), Some("a,q2.b,c"));
        let resolved: Vec<String> = resolve("q1", &steps).map(|s| s.due()).collect();
        assert_eq!(resolved, ["due.q1.a", "due.q2.b", "due.q2.c"]);
        for bad in ["", "a,", "a.b.c", ".a", "a.", "a b", &vec!["a"; CHAIN_STEPS_MAX + 1].join(",")] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_next_step_has_one_id_and_what_it_inherits() {
        let said = [
            (HEADER_MSG_ID, "r"),
            (HEADER_THEN, "b,q2.c"),
            ("Millpond-Batch", "5"),
            ("Millpond-Index", "10"),
            ("Millpond-Timeout", "5s"),
            ("Millpond-Attempts-Max", "9"),
            (HEADER_REPLY_TO, "reply.x"),
            (HEADER_TRACEPARENT, "00-t"),
        ];
        let headers: Headers = said.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let arrival = Arrival { origin: Origin::Tasks, epoch: "e", seq: 1, stored_ms: 5 };
        let task = Task::read("tasks.q.a.j-j", &headers, Bytes::from_static(b"[1,2,3,4,5]"), arrival);
        assert_eq!(task.next_step().unwrap().due(), "due.q.b");
        let next = task.next_headers(Some(Items { of: 5, from: 1, len: 2 }), 7, "00-u".into());
        let arrival = Arrival { origin: Origin::Due, ..arrival };
        let next = Task::read("due.q.b", &next, Bytes::from_static(b"[1,2]"), arrival);
        assert_eq!((next.id().as_str(), next.original_id.as_str(), next.items_len()), ("r/then/1+2", "r/then", 2));
        assert_eq!((next.index, next.attempt, next.timeout, next.attempts_max), (None, 1, None, None));
        assert_eq!(
            (next.reply_to.as_deref(), next.traceparent(), next.published_ms),
            (Some("reply.x"), Some("00-u"), 7)
        );
        assert_eq!((next.next_step().unwrap().due(), next.defect.clone()), ("due.q2.c".into(), None));
        let last =
            Task::read("due.q2.c", &next.next_headers(None, 8, "00-v".into()), Bytes::from_static(b"1"), arrival);
        assert_eq!((last.id().as_str(), last.next_step()), ("r/then/then", None));
        let long = next_id(&"x".repeat(TASK_ID_BYTES_MAX));
        assert!(long.len() < 64 && long == next_id(&"x".repeat(TASK_ID_BYTES_MAX)));
    }
}

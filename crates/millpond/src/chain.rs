//! Chains: the steps that run after a task is done, each with the result of the one before as its argument. `Millpond-Continuation` lists
//! the steps; each step takes the first and carries the others. The worker publishes the next step when it settles (services/worker/src/outbox/continuations.rs).
//! No I/O, no clock.

use std::fmt;
use std::str::FromStr;

use crate::limits::TASK_ID_BYTES_MAX;
use crate::wire::subject::{SubjectError, TaskSubject, check_token, key};

/// Steps of a chain after its first task, at the most.
const CHAIN_STEPS_MAX: usize = 16;
/// A step's id ends with it, behind the id, queue and kind of the step before it.
const SUFFIX: &str = "/then";

/// One step of a chain. Without a queue it runs in the queue of the step before it.
///
/// ```
/// let step: millpond::chain::ChainStep = "mail.send".parse().unwrap();
/// assert_eq!((step.queue.as_deref(), step.kind.as_str(), step.to_string().as_str()), (Some("mail"), "send", "mail.send"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainStep {
    /// Its queue; none: that of the step before it.
    pub queue: Option<String>,
    /// Its kind.
    pub kind: String,
}

impl FromStr for ChainStep {
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

impl fmt::Display for ChainStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.queue {
            Some(queue) => write!(f, "{queue}.{}", self.kind),
            None => f.write_str(&self.kind),
        }
    }
}

/// Why a list of steps is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A step that is neither `<kind>` nor `<queue>.<kind>`.
    #[error("{0}; steps are <kind> or <queue>.<kind>, separated by commas")]
    Step(#[from] SubjectError),
    /// Too many steps.
    #[error("{steps} steps ({bytes} bytes) are too many: {CHAIN_STEPS_MAX} steps at the most")]
    TooMany {
        /// How many there are.
        steps: usize,
        /// Their bytes as a header's value.
        bytes: usize,
    },
}

/// Parses a list of steps.
///
/// # Errors
/// [`ChainError`].
pub fn parse(text: &str) -> Result<Vec<ChainStep>, ChainError> {
    let steps = text.split(',').count();
    if steps > CHAIN_STEPS_MAX {
        return Err(ChainError::TooMany { steps, bytes: text.len() });
    }
    Ok(text.split(',').map(|step| step.trim().parse()).collect::<Result<Vec<ChainStep>, _>>()?)
}

/// Checks that a message can carry the steps.
///
/// # Errors
/// [`ChainError`].
pub fn check(steps: &[ChainStep]) -> Result<(), ChainError> {
    for step in steps {
        step.queue.iter().try_for_each(|queue| check_token("queue", queue))?;
        check_token("kind", &step.kind)?;
    }
    text(steps).map_or(Ok(()), |text| parse(&text).map(drop))
}

/// The list as a header's value; none without steps.
#[must_use]
pub fn text(steps: &[ChainStep]) -> Option<String> {
    let steps: Vec<String> = steps.iter().map(ChainStep::to_string).collect();
    (!steps.is_empty()).then(|| steps.join(","))
}

/// The id of the step after the task of this subject and id. It is always the same, so that publishing the step again adds
/// nothing; and it names queue and kind, because tasks of several kinds may have one id and one next step.
///
/// ```
/// let subject = millpond::wire::subject::TaskSubject::new("default", "square", None).unwrap();
/// assert_eq!(millpond::chain::next_id(&subject, "a1"), "a1/default.square/then");
/// ```
#[must_use]
pub fn next_id(subject: &TaskSubject, id: &str) -> String {
    let before = format!("{id}/{}.{}", subject.queue, subject.kind);
    let before = if before.len() + SUFFIX.len() > TASK_ID_BYTES_MAX { key(&before) } else { before };
    format!("{before}{SUFFIX}")
}

/// The queue and kind of each step, when the first follows a task of `queue`.
pub fn resolve<'a>(queue: &str, steps: &'a [ChainStep]) -> impl Iterator<Item = TaskSubject> + use<'a> {
    let mut queue = queue.to_owned();
    steps.iter().map(move |step| {
        queue = step.queue.clone().unwrap_or_else(|| std::mem::take(&mut queue));
        TaskSubject { queue: queue.clone(), kind: step.kind.clone(), job: None, unique: None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_parse_back() {
        let steps = parse("a, q2.b,c").unwrap();
        assert_eq!(text(&steps).as_deref(), Some("a,q2.b,c"));
        let resolved: Vec<String> = resolve("q1", &steps).map(|s| s.due()).collect();
        assert_eq!(resolved, ["due.q1.a", "due.q2.b", "due.q2.c"]);
        for bad in ["", "a,", "a.b.c", ".a", "a.", "a b", &vec!["a"; CHAIN_STEPS_MAX + 1].join(",")] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        // A name with a comma is no two steps, and one with a point names no queue.
        for kind in ["a,b", "a.b", ""] {
            let step = ChainStep { queue: None, kind: kind.to_owned() };
            assert!(matches!(check(&[step]), Err(ChainError::Step(_))), "{kind}");
        }
        assert_eq!(check(&[]), Ok(()));
    }

    #[test]
    fn what_is_too_large_is_refused_with_its_size_and_the_limit() {
        let widest = format!("{0}.{0}", "x".repeat(64));
        let steps = |count: usize| vec![widest.parse::<ChainStep>().unwrap(); count];
        assert_eq!(check(&steps(CHAIN_STEPS_MAX)), Ok(()));
        let refused = check(&steps(17)).unwrap_err().to_string();
        assert_eq!(refused, "17 steps (2209 bytes) are too many: 16 steps at the most");
        assert_eq!(parse(&text(&steps(17)).unwrap()).unwrap_err().to_string(), refused);
        let refused = parse(&"y".repeat(70_000)).unwrap_err().to_string();
        assert!(refused.contains("70000 bytes") && refused.contains("1 to 64") && refused.len() < 300, "{refused}");
    }

    #[test]
    fn a_long_id_is_hashed() {
        let next = |kind: &str| next_id(&TaskSubject::new("q", kind, None).unwrap(), &"x".repeat(TASK_ID_BYTES_MAX));
        assert!(next("a").len() < 64 && next("a") == next("a") && next("a") != next("b"));
    }
}
